"""Two views of each row: what Barlow Twins is asked to see as the same.

``detector``  Hanford or Livingston against Virgo: a signal reaches both, noise does not.
``pairs``     every pair of detectors in turn.
``noise``     one signal in two noise draws, same detector (simulations only).
``augment``   two augmentations of one detector's window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from gwtwins.encoders.paired import BRANCH
from gwtwins.ssl.augment import AugmentConfig, Augmenter
from gwtwins.strain import draws
from gwtwins.strain.batch import Batch
from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import load_psd
from gwtwins.strain.sources import Source


@dataclass
class Views:
    """Two views of N rows, and the detector each came from."""

    first: Tensor
    """(N, T) float32."""
    second: Tensor
    """(N, T) float32."""
    first_detector: Tensor
    """(N,) int64, index into the source's detectors."""
    second_detector: Tensor
    row: Tensor
    """(N,) int64, the global row each came from; rows that lacked a detector are left out."""

    def __len__(self) -> int:
        return self.first.shape[0]


ViewMaker = Callable[[int, int, range, float, int], Views]


def _pick(strain: Tensor, detector: Tensor) -> Tensor:
    """(B, D, T) and (B,) to (B, T)."""
    return strain[torch.arange(len(strain), device=strain.device), detector]


def make_views(
    kind: str, source: Source, augment: AugmentConfig, always: bool = False, shortest: float = 0.0, hop: float = 0.0
) -> ViewMaker:
    """The function ``(seed, step, rows, progress, batch) -> Views`` behind ``--views``.

    Every choice is a function of (seed, step, global row). With ``always`` the views of any kind are augmented on top.
    With ``shortest`` they are cut to that length, or up to 0.25 s more, in steps of ``hop`` seconds.

    Raises:
        InputError: an unknown kind, or a source without the detectors, or the noise, that it needs.
    """
    if kind not in _MAKERS:
        raise InputError(f"--views {kind}", "not a kind of views", ", ".join(_MAKERS))
    maker = _MAKERS[kind](source)
    maker = _augmented(maker, source, augment) if always or kind == "augment" else maker
    return _cut(maker, source, shortest, hop) if shortest else maker


def _detector(source: Source) -> ViewMaker:
    hl = [i for i, name in enumerate(source.detectors) if BRANCH[name] == "hl"]
    v = [i for i, name in enumerate(source.detectors) if BRANCH[name] == "v"]
    if not hl or not v:
        held = " ".join(source.detectors)
        raise InputError("--views detector", f"the data hold {held} only", "H1 or L1, and V1 or K1; or --views pairs")
    pairs = torch.tensor([(a, b) for a in hl for b in v])
    return _from_pairs(source, pairs, lambda u, step, number: (u * number).long())


def _pairs(source: Source) -> ViewMaker:
    pairs = torch.tensor(list(combinations(range(len(source.detectors)), 2)))
    if not len(pairs):
        raise InputError("--views pairs", "the data hold one detector", "two or more; or --views augment")
    return _from_pairs(source, pairs, lambda u, step, number: step % number)


def _from_pairs(source: Source, pairs: Tensor, choose: Callable[[Tensor, int, Tensor], Tensor]) -> ViewMaker:
    """Views of one of ``pairs`` (P, 2) in each row: the ``choose(u, step, number)``-th of the ``number`` it has."""

    def views(seed: int, step: int, rows: range, progress: float, batch: int) -> Views:
        u = draws.hashed_uniform(seed, "views", step, rows, 1)[:, 0]

        def pair(present: Tensor) -> Tensor:
            held = present[:, pairs.to(present.device)].all(dim=-1)  # (B, P)
            number = held.sum(dim=1).clamp_min(1)
            wanted = choose(u.to(present.device), step, number)
            # The wanted-th of a row's pairs is where the running count of those it has first exceeds it.
            index = (held.cumsum(dim=1) > wanted[:, None]).to(torch.int8).argmax(dim=1)
            return pairs.to(present.device)[index]

        windows, which = source.train_chosen(seed, step, rows, progress, batch, pair)
        keep, row = windows.present.all(dim=1), torch.tensor(rows, device=which.device)
        strain = windows.strain
        if not bool(keep.all()):  # of a row without any pair both were chosen, and one is absent
            strain, which, row = strain[keep], which[keep], row[keep]
        return Views(strain[:, 0], strain[:, 1], which[:, 0], which[:, 1], row)

    return views


def _one_detector(batch: Batch, seed: int, step: int, rows: range) -> tuple[Tensor, Tensor]:
    """A present detector of each row (N,), and the rows that have one at all (B,) bool."""
    u = draws.hashed_uniform(seed, "views", step, rows, batch.strain.shape[1]).to(batch.strain.device)
    detector = torch.where(batch.present, u, -1.0).argmax(dim=1)
    return detector, batch.present.any(dim=1)


def _noise(source: Source) -> ViewMaker:
    if not source.fresh_noise:
        source.train_pair(0, 0, range(1))  # refuses with its reason

    def views(seed: int, step: int, rows: range, progress: float, batch: int) -> Views:
        first, second = source.train_pair(seed, step, rows, progress, batch)
        detector, keep = _one_detector(first, seed, step, rows)
        detector, row = detector[keep], torch.tensor(rows, device=keep.device)[keep]
        a, b = _pick(first.strain[keep], detector), _pick(second.strain[keep], detector)
        return Views(a, b, detector, detector, row)

    return views


def _augment(source: Source) -> ViewMaker:
    """One detector's window twice; what tells the two apart is `_augmented`'s."""

    def views(seed: int, step: int, rows: range, progress: float, batch: int) -> Views:
        windows = source.train_batch(seed, step, rows, progress, batch)
        detector, keep = _one_detector(windows, seed, step, rows)
        x = _pick(windows.strain[keep], detector[keep])
        return Views(x, x, detector[keep], detector[keep], torch.tensor(rows, device=keep.device)[keep])

    return views


def _augmented(maker: ViewMaker, source: Source, config: AugmentConfig) -> ViewMaker:
    psds = [source.psds[name] for name in source.detectors]
    extra = [load_psd(name) for name in config.aug_noise_psds] if config.aug_noise_probability > 0 else []
    augmenter = Augmenter(config, source.rate, source.f_low, source.f_high, psds, extra, source.window)

    def views(seed: int, step: int, rows: range, progress: float, batch: int) -> Views:
        made = maker(seed, step, rows, progress, batch)
        augmenter.to(made.first.device)
        left = made.row.tolist()
        first = augmenter(made.first, seed, step, left, "augment first", made.first_detector)
        second = augmenter(made.second, seed, step, left, "augment second", made.second_detector)
        return replace(made, first=first, second=second)

    return views


_SPREAD = 0.25  # s, of the lengths of views and of their ends


def _cut(maker: ViewMaker, source: Source, shortest: float, hop: float) -> ViewMaker:
    """Views cut to one length a step, at a place of each row that both of its views share.

    Where a merger lies in a window is then less of a guide to what is noise. They end in the window's last quarter of a
    second: mergers lie near the end, and what is long before one costs time and teaches little.
    """
    longest = int(source.window / hop + 1e-6)  # whole hops; a window need not be a multiple
    least = round(shortest / hop)
    if not 0 < least <= longest:
        raise InputError("--crop", f"{shortest:g} s", f"{hop:g} to {source.window:g} s, or 0")
    samples, spread = round(hop * source.rate), int(_SPREAD / hop + 1e-6)
    lengths = min(longest - least, spread) + 1

    def views(seed: int, step: int, rows: range, progress: float, batch: int) -> Views:
        made = maker(seed, step, rows, progress, batch)
        length = least + int(draws.hashed_uniform(seed, "crop length", step, [0], 1) * lengths)
        u = draws.hashed_uniform(seed, "crop", step, made.row.tolist(), 1).to(made.first.device)
        latest = longest - length
        start = (latest - (u * (min(latest, spread) + 1)).long()) * samples  # (N, 1)
        index = start + torch.arange(length * samples, device=start.device)
        return replace(made, first=made.first.gather(1, index), second=made.second.gather(1, index))

    return views


_MAKERS: dict[str, Callable[[Source], ViewMaker]] = {
    "detector": _detector,
    "pairs": _pairs,
    "noise": _noise,
    "augment": _augment,
}
