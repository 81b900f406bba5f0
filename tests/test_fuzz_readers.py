"""Whatever is in a file: its reader refuses it in one line, or gives a result that keeps what the reader promises.

`benchmarks/fuzz.py` does the same for minutes a reader; here are a few hundred cases of each, drawn by hypothesis.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gwtwins.benchmarks.fuzz import Outcome, attempt, digest, spoil
from gwtwins.benchmarks.fuzz_subjects import SUBJECTS, Subject
from gwtwins.strain.errors import InputError, shown
from gwtwins.strain.small_file import MAX_DEPTH, deeper_than, read_json, read_yaml

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are Linux's to tell"
)
FINE = ("right", "refused")
SLOW = {"config": 4, "gwosc": 5, "gwf": 5, "embeddings": 5, "checkpoint": 6}  # examples; 10 of the others
OPTIONS = {"suppress_health_check": list(HealthCheck), "derandomize": True, "deadline": None, "database": None}


@cache
def sound(name: str) -> tuple[Path, str]:
    """A folder of sound files, and the digest of what is read from them."""
    folder, subject = Path(mkdtemp(prefix=f"sound-{name}-")), SUBJECTS[name]
    subject.prepare()
    subject.make(folder)
    return folder, digest(subject.read(folder))


def everyone(check: Callable[[str, Subject, Path, int], None]) -> Callable[..., None]:
    """Run ``check`` for each reader, with the folder its case goes to and the number of examples."""

    @pytest.mark.parametrize("name", SUBJECTS)
    def test(name: str, tmp_path: Path) -> None:
        check(name, SUBJECTS[name], tmp_path / "case", SLOW.get(name, 10))

    return test


@everyone
def test_spoilt_files_are_refused_or_read_right(name: str, subject: Subject, folder: Path, examples: int) -> None:
    files, baseline = sound(name)

    @settings(max_examples=examples, **OPTIONS)
    @given(case=st.integers(0, 2**31))
    def holds(case: int) -> None:
        done, may = spoil(subject, name, 1, case, files, folder)
        outcome = attempt(subject, folder, may, baseline)
        assert outcome.what in FINE, (
            f"{outcome}, python benchmarks/fuzz.py --reader {name} --seed 1 --case {case}: {done}"
        )

    holds()


@everyone
def test_any_bytes_at_all(name: str, subject: Subject, folder: Path, examples: int) -> None:
    files, baseline = sound(name)
    start = {target: (files / target).read_bytes()[:64] for target in sorted(subject.mutations)}

    @settings(max_examples=examples, **OPTIONS)
    @given(target=st.sampled_from(sorted(start)), kept=st.integers(0, 64), tail=st.binary(max_size=300))
    def holds(target: str, kept: int, tail: bytes) -> None:
        spoil(subject, name, 1, 0, files, folder)
        for other in start:
            (folder / other).write_bytes((files / other).read_bytes())
        (folder / target).write_bytes(start[target][:kept] + tail)
        outcome: Outcome = attempt(subject, folder, "", baseline)
        assert outcome.what in FINE, outcome

    holds()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("name", "file"), [("weights", "encoder.json"), ("probe", "probe.json"), ("scan-folder", "scan.json")]
)
def test_any_value_in_the_place_of_any_member_of_a_json(name: str, file: str, tmp_path: Path) -> None:
    files, baseline = sound(name)
    subject, folder = SUBJECTS[name], tmp_path / "case"
    tree = json.loads((files / file).read_text())

    def places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        return [at, *(place for key, value in items for place in places(value, (*at, key)))]

    @settings(max_examples=15, **OPTIONS)
    @given(at=st.sampled_from(places(tree)[1:]), value=JSON)
    def holds(at: tuple[Any, ...], value: Any) -> None:
        spoil(subject, name, 1, 0, files, folder)
        for other in subject.mutations:
            (folder / other).write_bytes((files / other).read_bytes())
        changed = json.loads(json.dumps(tree))
        holder = changed
        for key in at[:-1]:
            holder = holder[key]
        holder[at[-1]] = value
        (folder / file).write_text(json.dumps(changed))
        outcome = attempt(subject, folder, "", baseline)
        assert outcome.what in FINE, outcome

    holds()


@settings(max_examples=100, **OPTIONS)
@given(node=JSON)
def test_json_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, node: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(node))
    back = read_json(path, 1 << 20, "JSON")
    assert json.dumps(back) == json.dumps(node)
    assert not deeper_than(back, MAX_DEPTH)


@settings(max_examples=100, **OPTIONS)
@given(text=st.text(st.characters(codec="utf-8"), max_size=80) | st.text("[]{}:,&*!?-|>'\"% \na1~<=", max_size=40))
def test_yaml_is_data_or_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode())
    with suppress(InputError):  # any other exception fails
        json.dumps(read_yaml(path, "YAML"), default=str, skipkeys=True)


@settings(max_examples=200, **OPTIONS)
@given(where=st.text(), fault=st.text(), expected=st.text())
def test_an_error_is_one_printable_line_of_bounded_length(where: str, fault: str, expected: str) -> None:
    line = str(InputError(where, fault * 40, expected))
    assert line.isprintable() and len(line) < 1600
    assert shown(line) == line
