"""The linear probe: logistic regression on frozen embeddings, from ten labels up, and its files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_tensors
from safetensors.numpy import save as format_tensors
from scipy import special

from gwtwins.encoders.weights import check_safetensors
from gwtwins.probes.features import KINDS, FeatureMap
from gwtwins.probes.logistic import Rows, fit_path, stratified_folds
from gwtwins.strain.command import write_bytes
from gwtwins.strain.draws import row_generator
from gwtwins.strain.errors import InputError
from gwtwins.strain.small_file import read_bytes, read_json

Array = NDArray[np.floating]

FORMAT = "gwtwins-linear-probe-1"
MIN_LABELS = 10
MAX_DETECTORS, MAX_EMBEDDING = 16, 1 << 16
MAX_BYTES = 256 << 20
"""Of a saved probe's tensors; the largest real one has a few MiB."""
MAX_JSON_BYTES = 16 << 20
_EXPECTED = "a saved probe: probe.safetensors with probe.json beside"
_FRAC = "a fraction in (0, 1], or a whole number of labels from 10 up"


def parse_frac(text: object, n_labelled: int) -> int:
    """How many labels ``--frac`` asks for: up to 1 a fraction of ``n_labelled``, from 10 up a count.

    Raises InputError for anything else, for fewer than ten labels and for more than there are.
    """
    where = f"--frac {text}"
    try:
        value = float(str(text).strip())
    except ValueError as error:
        raise InputError(where, "not a number", _FRAC) from error
    if 0.0 < value <= 1.0:
        count = round(value * n_labelled)
        if count < MIN_LABELS:
            raise InputError(where, f"is {count} of {n_labelled} labelled rows", f"at least {MIN_LABELS} labels")
        return count
    if not math.isfinite(value) or value < MIN_LABELS or value != int(value):
        raise InputError(where, "is neither a fraction nor a count", _FRAC)
    if value > n_labelled:
        raise InputError(where, f"only {n_labelled} rows are labelled", f"at most {n_labelled}")
    return int(value)


def labelled_subset(
    ids_or_n: Sequence[str] | int, n: int, seed: int, label: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Which ``n`` rows are given labels: indices in the order they are drawn.

    A simple random sample without replacement; a smaller one is the beginning of a larger one. With ids the
    order is that of a hash of (seed, id), so that it does not depend on how rows are sorted.

    The sample is not stratified: its share of signals fluctuates as it would for a person who labels rows as
    they come. Only where the first ten rows hold fewer than two of a class (2% of draws at even odds) do the
    next of that class in the order move up to end the ten: no probe can be fitted before both have been seen.

    Args:
        ids_or_n: the rows' ids, or how many rows there are.
        n: rows to draw.
        seed: of the draw.
        label: (N,) 0 or 1, to see whether both classes are there.
    """
    total = ids_or_n if isinstance(ids_or_n, int) else len(ids_or_n)
    if not 0 < n <= total:
        raise InputError("labelled subset", f"{n} of {total} rows", f"1 to {total}")
    if isinstance(ids_or_n, int):
        order = row_generator(seed, "labelled subset", 0, 0).permutation(total)
    else:
        keys = [hashlib.sha256(f"{seed}\0{name}".encode()).digest() for name in ids_or_n]
        order = np.array(sorted(range(total), key=keys.__getitem__))
    if label is not None:
        drawn = np.asarray(label)[order] == 1
        for kind in (True, False):
            first = np.flatnonzero(drawn == kind)[:2]
            if first.size and first[-1] >= MIN_LABELS:
                order = np.insert(np.delete(order, first), MIN_LABELS - first.size, order[first])
                break
    return order[:n].astype(np.int64)


@dataclass
class LinearProbe:
    """A weighted sum of standardised features whose value is a logit.

    ``coef`` and ``intercept`` hold the held-out gain and offset already (see `logistic.fit_path`): the logit
    is calibrated, and so, up to a positive factor, the solution at ``about["c"]``.
    """

    features: FeatureMap
    coef: Array
    """(F,) float64."""
    intercept: float
    detectors: tuple[str, ...]
    encoder: str
    """Fingerprint of the encoder whose embeddings it was fitted to."""
    about: dict[str, Any] = field(default_factory=dict)
    """``c``, ``held_out_loss``, ``n_labels``, ``n_signals``, ``seed``, ``tried``: how it came about."""

    @classmethod
    def fit(
        cls,
        embeddings: Array,
        present: NDArray[np.bool_] | None,
        label: ArrayLike,
        rows: NDArray[np.integer] | None = None,
        kind: str = "concat",
        seed: int = 0,
        detectors: Sequence[str] | None = None,
        encoder: str = "",
        together: Array | None = None,
        evidence: int = 0,
    ) -> LinearProbe:
        """Standardise and fit, everything learnt from the labelled rows alone.

        Args:
            embeddings: (N, D, E) float32; never copied whole.
            present: (N, D) bool, all by default.
            label: (N,) 1 signal, 0 noise.
            rows: indices of the rows whose labels may be looked at, all by default; their order makes no
                difference.
            kind: "concat" or "coherent", see `FeatureMap`.
            seed: of the cross-validation folds.
            detectors, encoder: kept with the probe, see `Features`.
            together: (N, J) float32, see `Features`; wanted for coherent features.
            evidence: how many of the J are evidence, see `Features`.

        Raises:
            InputError: shapes that do not fit, labels other than 0 and 1, fewer than ten or than two of a
            class.
        """
        n, d = np.shape(embeddings)[:2]
        index = np.arange(n) if rows is None else np.sort(np.asarray(rows))
        truth = np.asarray(label)
        if truth.shape != (n,):
            raise InputError("labels", f"shape {truth.shape} for {n} rows", "one label a row")
        truth = truth[index]
        if not np.all((truth == 0) | (truth == 1)):
            raise InputError("labels", "a value that is neither 0 nor 1", "0 for noise, 1 for a signal")
        if index.size < MIN_LABELS:
            raise InputError("labels", f"{index.size} labelled rows", f"at least {MIN_LABELS}")
        signal = truth == 1
        folds = stratified_folds(signal, seed)
        here = np.ones((n, d), dtype=bool) if present is None else np.asarray(present, dtype=bool)
        features = FeatureMap(kind).fit(embeddings, here, index, together, evidence)

        def read(start: int, stop: int) -> Array:
            part = slice(index[start], index[stop - 1] + 1) if rows is None else index[start:stop]
            return features.transform(embeddings[part], here[part], None if together is None else together[part])

        path = fit_path(Rows(index.size, features.n_features, read), signal, folds)
        about = {
            "c": path.c,
            "held_out_loss": min(t["loss"] for t in path.tried if t["c"] == path.c),
            "n_labels": int(index.size),
            "n_signals": int(signal.sum()),
            "seed": int(seed),
            "tried": path.tried,
        }
        names = tuple(detectors) if detectors is not None else tuple(f"D{i + 1}" for i in range(d))
        return cls(features, path.gain * path.coef, path.offset, names, encoder, about)

    def decision(
        self, embeddings: Array, present: NDArray[np.bool_] | None = None, together: Array | None = None
    ) -> Array:
        """Logit (N,) float64, unbounded, of embeddings (N, D, E): the statistic to rank by."""
        out = np.empty(len(embeddings))
        step = max(128, (1 << 22) // self.coef.size)
        for start in range(0, out.size, step):
            part = slice(start, start + step)
            here = None if present is None else present[part]
            z = self.features.transform(embeddings[part], here, None if together is None else together[part])
            out[part] = z @ self.coef + self.intercept
        return out

    def probability(
        self, embeddings: Array, present: NDArray[np.bool_] | None = None, together: Array | None = None
    ) -> Array:
        """Probability (N,) of a signal, at the share of signals among the labelled rows."""
        return special.expit(self.decision(embeddings, present, together))

    def check_encoder(self, encoder: str, detectors: Sequence[str], where: object = "probe") -> None:
        """Raise InputError unless this is the encoder that the probe was fitted to."""
        if tuple(detectors) != self.detectors:
            raise InputError(where, f"was fitted to {' '.join(self.detectors)}", f"{' '.join(detectors)}")
        if encoder != self.encoder:
            fault = f"was fitted to another encoder (fingerprint {self.encoder[:12]})"
            raise InputError(where, fault, f"a probe of this one ({encoder[:12]})")

    def save(self, path: Path | str, figures: dict[str, Any] | None = None) -> None:
        """Write ``path`` (.safetensors) and the .json beside it, which holds ``figures`` too.

        The JSON's entry ``linear_probe`` names the tensors' SHA-256, so that two files that do not belong
        together are found out. Raises ValueError if a figure is NaN or infinite, which JSON has no word for.
        """
        target = Path(path)
        tensors = {"coef": self.coef, "intercept": np.array([self.intercept]), **self.features.state}
        data = format_tensors({key: np.ascontiguousarray(v, dtype=np.float64) for key, v in tensors.items()})
        entry = {
            "format": FORMAT,
            "features": self.features.kind,
            "detectors": list(self.detectors),
            "embedding_dim": int(self.features.state["mean"].shape[1]),
            "together_dim": int(self.features.state.get("together_mean", np.zeros(0)).size),
            "classes": ["noise", "signal"],
            "encoder": self.encoder,
            "sha256": hashlib.sha256(data).hexdigest(),
            **self.about,
            "versions": {name: metadata.version(name) for name in ("gwtwins", "numpy", "scipy", "torch")},
        }
        text = json.dumps({**(figures or {}), "linear_probe": entry}, indent=2, allow_nan=False) + "\n"
        write_bytes(target, data)
        write_bytes(target.with_suffix(".json"), text.encode())

    @classmethod
    def load(cls, path: Path | str) -> LinearProbe:
        """The probe of a folder, or of either of its two files.

        Raises InputError: a file that is absent, too large or not what it should be, or two that do not
        belong together.
        """
        target = Path(path) / "probe.safetensors" if Path(path).is_dir() else Path(path).with_suffix(".safetensors")
        beside = target.with_suffix(".json")
        node = read_json(beside, MAX_JSON_BYTES, _EXPECTED)
        entry = node.get("linear_probe") if isinstance(node, dict) else None
        if not isinstance(entry, dict) or entry.get("format") != FORMAT:
            raise InputError(beside, "holds no linear probe", f"an entry linear_probe of format {FORMAT}")
        kind, names, e = entry.get("features"), entry.get("detectors"), entry.get("embedding_dim")
        if kind not in KINDS:
            raise InputError(beside, f"features {kind!r}", " or ".join(KINDS))
        if not isinstance(names, list) or not 1 <= len(names) <= MAX_DETECTORS or not all(map(_is_name, names)):
            raise InputError(beside, f"detectors {names!r}", "a list of names")
        if type(e) is not int or not 1 <= e <= MAX_EMBEDDING:
            raise InputError(beside, f"embedding_dim {e!r}", f"1 to {MAX_EMBEDDING}")
        j = entry.get("together_dim", 0)
        if type(j) is not int or not 0 <= j <= MAX_EMBEDDING or (j > 0) != (kind == "coherent"):
            raise InputError(beside, f"together_dim {j!r} of {kind} features", f"0, or to {MAX_EMBEDDING} if coherent")
        encoder = entry.get("encoder")
        if not isinstance(encoder, str) or len(encoder) > 64:
            raise InputError(beside, "encoder is not a fingerprint", "up to 64 hexadecimal digits")
        data = read_bytes(target, MAX_BYTES, _EXPECTED)
        if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
            raise InputError(beside, f"does not belong to {target.name}", "the two files of one probe")
        check_safetensors(target)
        tensors = _tensors(target, data, len(names), e, j)
        features = FeatureMap(kind)
        coef, intercept = tensors.pop("coef"), float(tensors.pop("intercept")[0])
        features.state = tensors
        about = {k: entry[k] for k in ("c", "held_out_loss", "n_labels", "n_signals", "seed", "tried") if k in entry}
        return cls(features, coef, intercept, tuple(names), encoder, about)


def _tensors(path: Path, data: bytes, d: int, e: int, j: int) -> dict[str, Array]:
    """The tensors of a saved probe, each checked for shape, type and finite values."""
    shapes: dict[str, tuple[int, ...]] = {
        "coef": (d * e + j,),
        "intercept": (1,),
        "mean": (d, e),
        "inverse": (d, e),
    }
    if j:
        shapes |= {"together_mean": (1, j), "together_inverse": (1, j)}
    try:
        tensors = parse_tensors(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(path, "is not a readable safetensors file", "the tensors of a saved probe") from error
    if set(tensors) != set(shapes):
        raise InputError(path, f"holds {', '.join(sorted(tensors))}"[:200], ", ".join(sorted(shapes)))
    for name, shape in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype != np.float64:
            raise InputError(path, f"{name} is {tensors[name].dtype} {tensors[name].shape}", f"float64 {shape}")
        if not np.all(np.isfinite(tensors[name])):
            raise InputError(path, f"{name} has a value that is not finite", "finite numbers")
    return tensors


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isalnum() and len(name) <= 8
