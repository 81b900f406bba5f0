"""A quick look at a frozen encoder while it is being trained: watched only, nothing is chosen by it."""

from __future__ import annotations

import numpy as np
import torch

from gwtwins.encoders.paired import PairedEncoder
from gwtwins.probes.knn import KnnProbe
from gwtwins.probes.linear import MIN_LABELS, LinearProbe
from gwtwins.probes.metrics import auc
from gwtwins.strain.batch import Batch
from gwtwins.strain.sources import Source


class LabelledWatch:
    """AUC of a linear and of a kNN probe on about the first ``rows`` labelled rows of a source, in whole batches.

    Half of them fit the probe, the other half score it; the test rows are never read.
    """

    def __init__(self, source: Source, rows: int) -> None:
        self.batches: list[Batch] = []
        held = 0
        for batch in source.batches("labelled", min(rows, 256)):
            self.batches.append(batch)
            held += len(batch)
            if held >= rows:
                break
        self.label = np.concatenate([b.label.cpu().numpy() for b in self.batches if b.label is not None]).astype(int)

    @property
    def possible(self) -> bool:
        """Whether either half holds enough rows of either class for a probe and an AUC."""
        half = len(self.label) // 2
        parts = self.label[:half], self.label[half:]
        return half >= MIN_LABELS and all(2 <= part.sum() <= len(part) - 2 for part in parts)

    def __call__(self, encoder: PairedEncoder) -> dict[str, float]:
        """``linear_auc`` and ``knn_auc``; the encoder is handed back in the mode it came in."""
        training = encoder.training
        encoder.eval()
        with torch.inference_mode():
            made = [encoder.network(b.strain, b.present) for b in self.batches]
        embeddings = np.concatenate([x.float().cpu().numpy() for x, _ in made])
        # Not the evidence, which is the same from the first step to the last.
        parts = [y.float().cpu().numpy()[:, : y.shape[1] - encoder.evidence] for _, y in made if y is not None]
        together, kind = (np.concatenate(parts), "coherent") if parts else (None, "concat")
        encoder.train(training)
        half = len(embeddings) // 2
        fit, score = np.arange(half), slice(half, None)
        linear = LinearProbe.fit(
            embeddings, None, self.label, fit, kind, detectors=encoder.detectors, together=together
        )
        knn = KnnProbe(kind=kind).fit(embeddings, None, self.label, fit, together)
        held_out = None if together is None else together[score]
        return {
            "linear_auc": float(auc(self.label[score], linear.decision(embeddings[score], None, held_out))["value"]),
            "knn_auc": float(auc(self.label[score], knn.decision(embeddings[score], None, held_out))["value"]),
        }
