"""Stretches of usable seconds, and the account of what is left out."""

from __future__ import annotations

import numpy as np

from gwtwins.strain.segments import EDGE_REASON, SHORT_REASON, inner, long_enough, not_used, segments

ONE = np.zeros(40, int)


def seconds(*spans: tuple[int, int], size: int = 40) -> np.ndarray:
    use = np.zeros(size, bool)
    for start, stop in spans:
        use[start:stop] = True
    return use


def test_a_stretch_is_what_lies_between_unusable_seconds() -> None:
    assert segments(seconds((2, 12), (20, 25)), ONE, 100) == [(102.0, 112.0), (120.0, 125.0)]


def test_what_reaches_the_end_of_the_view_goes_on() -> None:
    assert segments(seconds((0, 5), (30, 40)), ONE, 100) == [(-np.inf, 105.0), (130.0, np.inf)]
    assert segments(seconds((0, 40)), ONE, 100) == [(-np.inf, np.inf)]
    assert segments(seconds(), ONE, 100) == []


def test_a_change_of_sampling_breaks_a_stretch() -> None:
    sampling = np.repeat([0, 1], 20)
    assert segments(seconds((5, 35)), sampling, 0) == [(5.0, 20.0), (20.0, 35.0)]
    assert np.flatnonzero(~inner(seconds((0, 40)), sampling)).tolist() == [18, 19]  # of seconds 1 to 38


def test_only_stretches_that_a_psd_can_be_measured_in_count() -> None:
    assert long_enough([(-np.inf, 3.0), (5.0, 13.5), (20.0, 29.0)]) == [(-np.inf, 3.0), (20.0, 29.0)]


def test_every_moment_is_either_used_or_has_one_reason() -> None:
    reasons = np.full(40, "", object)
    reasons[:5], reasons[30:34] = "no data", "fails CBC_CAT2"
    stretches = long_enough(segments(reasons == "", ONE, 1000))
    left_out = not_used(reasons, stretches, 1000)
    assert [(span.start - 1000, span.end - 1000, span.why) for span in left_out] == [
        (0.0, 5.0, "no data"),
        (5.0, 5.5, EDGE_REASON),
        (29.5, 30.0, EDGE_REASON),
        (30.0, 34.0, "fails CBC_CAT2"),
        (34.0, 34.5, EDGE_REASON),
    ]
    reasons[12] = "hardware injection"  # leaves 7 s before it
    left_out = not_used(reasons, long_enough(segments(reasons == "", ONE, 1000)), 1000)
    assert (5.0, 12.0, SHORT_REASON) in [(span.start - 1000, span.end - 1000, span.why) for span in left_out]


def test_a_stretch_that_ends_with_its_block_ends_in_it() -> None:
    reasons = np.full(40, "", object)
    (span,) = not_used(reasons, [(-np.inf, 1040.0)], 1000)
    assert (span.start, span.end, span.why) == (1039.5, 1040.0, EDGE_REASON)
    assert not_used(reasons, [(-np.inf, np.inf)], 1000) == []
