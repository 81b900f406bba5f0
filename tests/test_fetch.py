"""Fetching: what the folder holds afterwards is what the server published, whatever happened on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import gwosc.api.v2
import numpy as np
import pytest
import requests

import gwtwins.strain.download as downloading
import gwtwins.strain.http_session as http_session
from gwosc_server import GwoscServer, Misbehaviour
from gwosc_writer import write_gwosc
from gwtwins.strain.download import download
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.fetch import FetchConfig, fetch, main
from gwtwins.strain.gwosc import read_gwosc
from gwtwins.strain.http_session import Unreachable, open_session
from gwtwins.strain.published import Archive

START, SECONDS, RATE = 1186741845, 32, 4096
EVENT = "GW170814"
CUT = 4 << 16  # bytes, of about a million: a whole number of the blocks that are written at a time


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 s files of two detectors, and the 32 s after them of one."""
    folder = tmp_path_factory.mktemp("published")
    rng = np.random.default_rng(14)
    for detector, start in (("H1", START), ("L1", START), ("H1", START + SECONDS)):
        strain = 1e-21 * rng.standard_normal(SECONDS * RATE)
        write_gwosc(_path(folder, detector, start), strain, RATE, detector, start)
    return folder


@pytest.fixture
def server(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GwoscServer]:
    """GW170814 with its 32 s, among forty other events, and an observing run with three files; no waiting."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    gwosc.api.v2.JSON_CACHE.clear()  # what the client holds of an earlier server at this port
    monkeypatch.setattr(http_session, "BACKOFF", 0.0)
    monkeypatch.setattr(downloading, "BACKOFF", 0.0)
    with GwoscServer() as server:
        for day in range(1, 32):
            server.add_event(f"GW1901{day:02d}", 1.23e9 + day)
        server.add_event(EVENT, START + 15.5, version=2)
        server.add_event(EVENT, START + 15.5, version=3)
        server.add_run("O2", START - 1000, START + 1000, ["H1", "L1", "V1"])
        server.add_run("O3a", START + 10_000, START + 20_000, ["H1", "L1", "V1"])
        for path in sorted(published.glob("*.hdf5")):
            server.add_run_file("O2", path)
            if f"-{START}-" in path.name:
                server.add_event_file(f"{EVENT}-v3", path)
        yield server


def _path(folder: Path, detector: str, start: int = START) -> Path:
    return folder / f"{detector[0]}-{detector}_GWOSC_4KHZ_R1-{start}-{SECONDS}.hdf5"


def _config(server: GwoscServer, out: Path, **more: object) -> FetchConfig:
    return FetchConfig(**{"duration": SECONDS, "host": server.host, "out": str(out), **more})  # type: ignore[arg-type]


def _fetch(server: GwoscServer, out: Path, *events: str, **more: object) -> list[Path]:
    return fetch(_config(server, out, **more), () if "gps" in more else events or (EVENT,), progress=False)


def _left_behind(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith((".part", ".lock", ".tmp"))]


def test_an_event_comes_whole_and_is_fetched_once(server, published, tmp_path) -> None:
    paths = _fetch(server, tmp_path)
    assert paths == [_path(tmp_path, "H1"), _path(tmp_path, "L1")]
    for path, detector in zip(paths, ("H1", "L1"), strict=True):
        assert path.read_bytes() == _path(published, detector).read_bytes()
        recording = read_gwosc(path)
        assert (recording.detector, recording.gps_start, recording.rate) == (detector, START, RATE)
        record = json.loads(path.with_name(f"{path.name}.json").read_text())
        assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert record["size"] == path.stat().st_size
    assert not _left_behind(tmp_path)
    asked = len(server.fetched())
    assert _fetch(server, tmp_path) == paths
    assert len(server.fetched()) == asked == 2


def test_real_files_pass_under_their_real_names(server, tmp_path, request) -> None:
    real = request.getfixturevalue("gwosc")
    server.add_event("GW150914", 1126259462.4, version=2)
    for name in ("H-H1_LOSC_4_V2-1126259446-32.hdf5", "L-L1_LOSC_4_V2-1126259446-32.hdf5"):
        server.add_event_file("GW150914-v2", real / name)
    paths = _fetch(server, tmp_path, "GW150914")
    assert [path.read_bytes() for path in paths] == [(real / path.name).read_bytes() for path in paths]
    assert [read_gwosc(path).detector for path in paths] == ["H1", "L1"]


def test_the_command_prints_the_paths_alone(server, tmp_path, capsys) -> None:
    given = [EVENT, "--host", server.host, "--duration", "32", "--out", str(tmp_path), "--detectors", "L1"]
    assert run_command(lambda: main(given)) == 0
    assert capsys.readouterr().out == f"{_path(tmp_path, 'L1')}\n"


def test_the_cache_is_where_files_go_by_default(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GWTWINS_CACHE", str(tmp_path))
    config = FetchConfig(duration=SECONDS, host=server.host, detectors="H1")
    assert fetch(config, [EVENT], False) == [_path(tmp_path / "strain", "H1")]


def test_a_cut_connection_is_taken_up_where_it_broke(server, published, tmp_path) -> None:
    server.misbehaviours = [Misbehaviour("/H-H1", cut_after=CUT)]
    (path,) = _fetch(server, tmp_path, detectors="H1")
    assert path.read_bytes() == _path(published, "H1").read_bytes()
    assert [span for _, span in server.fetched()] == ["", f"bytes={CUT}-"]


def test_another_process_takes_up_what_the_first_one_left(server, published, tmp_path, monkeypatch) -> None:
    server.misbehaviours = [Misbehaviour("/H-H1", cut_after=CUT)]
    monkeypatch.setattr(downloading, "RETRIES", 0)
    with pytest.raises(Unreachable, match="broke"):
        _fetch(server, tmp_path, detectors="H1")
    assert not _path(tmp_path, "H1").exists()
    assert _path(tmp_path, "H1").with_suffix(".hdf5.part").stat().st_size == CUT
    (path,) = _fetch(server, tmp_path, detectors="H1")
    assert path.read_bytes() == _path(published, "H1").read_bytes()
    assert [span for _, span in server.fetched()] == ["", f"bytes={CUT}-"]
    assert not _left_behind(tmp_path)


def test_a_server_without_ranges_sends_it_all_again(server, published, tmp_path) -> None:
    server.ranges = False
    server.misbehaviours = [Misbehaviour("/H-H1", cut_after=CUT, times=2)]
    (path,) = _fetch(server, tmp_path, detectors="H1")
    assert path.read_bytes() == _path(published, "H1").read_bytes()


def test_a_part_of_a_file_that_was_replaced_is_not_mixed_with_the_new_one(server, published, tmp_path, capsys) -> None:
    (place,) = [place for place in server.files if "eventapi" in place and "/H-H1" in place]
    server.files[place] = bytes(CUT) + server.files[place][CUT:]
    server.misbehaviours = [Misbehaviour(place, cut_after=CUT)]
    whole = _path(published, "H1").read_bytes()
    original = server.misbehaviour

    def replaced_after_the_cut(path: str) -> Misbehaviour | None:
        if place in path and not server.misbehaviours[0].times:
            server.files[place] = whole
        return original(path)

    server.misbehaviour = replaced_after_the_cut  # type: ignore[method-assign]
    (path,) = _fetch(server, tmp_path, detectors="H1")
    assert path.read_bytes() == whole
    assert capsys.readouterr().err == ""  # nothing was pieced together, and then found not to read back


def test_a_spoilt_part_does_not_end_up_in_the_file(server, published, tmp_path, monkeypatch, capsys) -> None:
    server.misbehaviours = [Misbehaviour("/H-H1", cut_after=CUT)]
    monkeypatch.setattr(downloading, "RETRIES", 0)
    with pytest.raises(Unreachable):
        _fetch(server, tmp_path, detectors="H1")
    part = _path(tmp_path, "H1").with_suffix(".hdf5.part")
    part.write_bytes(bytes(CUT))  # what a crash of the machine may leave: the length without the content
    (path,) = _fetch(server, tmp_path, detectors="H1")
    assert path.read_bytes() == _path(published, "H1").read_bytes()
    assert "fetching it whole" in capsys.readouterr().err


@pytest.mark.parametrize(
    "record", ["", "[]", '{"url": "%s", "size": null}', '{"url": "%s", "size": 9}', '{"url": "/x"}']
)
def test_a_part_of_which_nothing_is_known_is_not_gone_on_with(server, published, tmp_path, record: str) -> None:
    (url,) = [server.host + place for place in server.files if "eventapi" in place and "/H-H1" in place]
    whole = _path(published, "H1")
    _path(tmp_path, "H1").with_suffix(".hdf5.part").write_bytes(whole.read_bytes()[:CUT])
    _path(tmp_path, "H1").with_suffix(".hdf5.json").write_text(record.replace("%s", url))
    assert _fetch(server, tmp_path, detectors="H1")[0].read_bytes() == whole.read_bytes()
    assert server.fetched() == [(whole.name, "")]


def test_a_host_that_lets_packets_vanish_is_given_up_after_one_round_of_tries() -> None:
    sent: list[str] = []

    class Vanishing(requests.adapters.HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *args: object, **kwargs: object) -> requests.Response:
            sent.append(str(request.url))
            raise requests.ConnectTimeout("timed out")

    with open_session() as session:
        session.mount("http://", Vanishing())
        with pytest.raises(Unreachable, match="timed out"):
            Archive("http://nowhere", session, RATE).of_event(EVENT, SECONDS)
    assert len(sent) == 1


def test_a_file_shorter_than_the_server_says_is_refused(server, tmp_path) -> None:
    server.misbehaviours = [Misbehaviour("/H-H1", promise=1000, times=99)]
    with pytest.raises(InputError, match="H-H1"):
        _fetch(server, tmp_path, detectors="H1")
    assert not list(tmp_path.glob("*.hdf5"))


def test_a_file_whose_length_is_not_said_comes_whole(server, published, tmp_path) -> None:
    server.misbehaviours = [Misbehaviour("/H-H1", length=False)]
    (path,) = _fetch(server, tmp_path, detectors="H1")
    assert path.read_bytes() == _path(published, "H1").read_bytes()


def test_a_silent_server_is_given_up(server, tmp_path, monkeypatch) -> None:
    server.misbehaviours = [Misbehaviour("/H-H1", pause=1.0, times=9)]
    monkeypatch.setattr(downloading, "RETRIES", 0)
    monkeypatch.setattr(downloading, "TIMEOUT", (1.0, 0.1))
    with pytest.raises(Unreachable, match="timed out"):
        _fetch(server, tmp_path, detectors="H1")


def test_a_file_that_changed_in_the_cache_is_fetched_again(server, published, tmp_path, capsys) -> None:
    (path,) = _fetch(server, tmp_path, detectors="H1")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert _fetch(server, tmp_path, detectors="H1") == [path]
    assert path.read_bytes() == _path(published, "H1").read_bytes()
    assert "has changed since it was fetched" in capsys.readouterr().err


def test_a_file_of_the_same_name_from_another_release_is_another_file(server, published, tmp_path) -> None:
    (path,) = _fetch(server, tmp_path, f"{EVENT}-v3", detectors="H1")
    write_gwosc(other := tmp_path / path.name, np.full(SECONDS * RATE, 1e-21), RATE, "H1", START)
    cleaned = other.read_bytes()
    server.add_event_file(f"{EVENT}-v2", other, f"/eventapi/json/O1_O2-Preliminary/{path.name}")
    path.write_bytes(_path(published, "H1").read_bytes())
    assert _fetch(server, tmp_path, f"{EVENT}-v2", detectors="H1")[0].read_bytes() == cleaned
    assert (
        _fetch(server, tmp_path, f"{EVENT}-v3", detectors="H1")[0].read_bytes() == _path(published, "H1").read_bytes()
    )


def test_a_good_file_that_was_there_is_used_and_a_broken_one_replaced(server, published, tmp_path) -> None:
    shutil.copy(_path(published, "H1"), tmp_path)
    _path(tmp_path, "L1").write_bytes(_path(published, "L1").read_bytes()[:-1000])
    _fetch(server, tmp_path)
    assert [name for name, _ in server.fetched()] == [_path(tmp_path, "L1").name]
    assert _path(tmp_path, "L1").read_bytes() == _path(published, "L1").read_bytes()


def test_an_unknown_event_names_the_nearest(server, tmp_path, capsys) -> None:
    given = ["gw170841", "--host", server.host, "--out", str(tmp_path)]
    assert run_command(lambda: main(given)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert f"gw170841: is not an event {server.host} knows; expected GW170814" in said.err


@pytest.mark.parametrize("event", ["../../api/v2/runs", "GW170814/strain-files?x=", "G", "GW 170814", "x" * 200])
def test_what_is_not_a_name_is_never_asked_for(server, tmp_path, event: str) -> None:
    with pytest.raises(InputError, match="not the name of an event"):
        _fetch(server, tmp_path, event)
    assert not server.asked


def test_a_missing_file_and_a_refusal_are_said(server, tmp_path) -> None:
    server.files = {}
    with pytest.raises(InputError, match="hdf5: the server answers 404 Not Found"):
        _fetch(server, tmp_path)
    server.misbehaviours = [Misbehaviour("event-versions", status=403)]
    with pytest.raises(InputError, match="403 Forbidden"):
        _fetch(server, tmp_path, "GW190101")
    assert not [name for name in os.listdir(tmp_path) if not name.startswith(".listing")]


def test_a_server_that_stumbles_is_asked_again_and_one_that_is_down_is_not_asked_for_ever(
    server, published, tmp_path
) -> None:
    server.misbehaviours = [Misbehaviour(f"{EVENT}/", 2, status=500), Misbehaviour("/H-H1", 2, status=503)]
    (path,) = _fetch(server, tmp_path, detectors="H1")
    assert path.read_bytes() == _path(published, "H1").read_bytes()
    server.misbehaviours = [Misbehaviour("/L-L1", 99, status=502)]
    with pytest.raises(InputError, match="502"):
        _fetch(server, tmp_path, detectors="L1")
    assert server.misbehaviours[0].times == 99 - http_session.RETRIES - 1


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", b"[]", b'{"results": 3}', b'{"num_pages": 1}'])
def test_an_answer_that_is_not_gwoscs_is_said(server, tmp_path, body: bytes) -> None:
    server.misbehaviours = [Misbehaviour("/api/", 99, body=body)]
    with pytest.raises(InputError, match="answer"):
        _fetch(server, tmp_path)


def test_without_a_network_one_line_says_so_and_the_cache_still_works(server, tmp_path, capsys) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert run_command(lambda: main([EVENT, "--host", host, "--out", str(tmp_path)])) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert f"error: {host}: cannot be reached (Connection refused); expected a network connection" in said.err

    paths = _fetch(server, tmp_path)
    host = server.host
    server.__exit__()
    gwosc.api.v2.JSON_CACHE.clear()  # as in a process that asks for the first time
    assert fetch(FetchConfig(duration=SECONDS, host=host, out=str(tmp_path)), [EVENT], False) == paths
    assert "going by its answer of" in capsys.readouterr().err
    server.__enter__()


@pytest.mark.parametrize(
    "url",
    [
        "http://here/data/evil.sh",
        "http://here/data/..",
        "http://here/data/..%2F..%2FH-H1_GWOSC_4KHZ_R1-1186741845-32.hdf5",
        "http://here/data/H-H1_..\\..\\x-1186741845-32.hdf5",
        "http://here/data/.H-H1_GWOSC_4KHZ_R1-1186741845-32.hdf5",
        "http://here/data/H-L1_GWOSC_4KHZ_R1-1186741845-32.hdf5",
        "http://here/data/H-H1_GWOSC_4KHZ_R1-1186741845-32.hdf5.sh",
        "file:///data/H-H1_GWOSC_4KHZ_R1-1186741845-32.hdf5",
        "http://here/data/",
    ],
)
def test_a_name_that_is_no_strain_files_never_becomes_a_file(server, tmp_path, url: str) -> None:
    server.event_files[f"{EVENT}-v3"][0]["download_url"] = url
    with pytest.raises(InputError, match="is not a strain file"):
        _fetch(server, tmp_path)
    assert not os.listdir(tmp_path)


def test_a_file_that_holds_something_else_than_its_name_says_is_refused(server, published, tmp_path) -> None:
    places = [place for place in server.files if "eventapi" in place]
    server.files[places[0]] = server.files[places[1]]
    with pytest.raises(InputError, match="holds L1 from 1186741845 on for 32 s.*expected H1 from 1186741845"):
        _fetch(server, tmp_path)
    server.files[places[0]] = b"<html>Please log in</html>"
    with pytest.raises(InputError, match="is not what its name says"):
        _fetch(server, tmp_path)
    assert not list(tmp_path.glob("*.hdf5"))
    assert not _left_behind(tmp_path)


def test_a_stretch_of_time_brings_every_file_it_touches(server, published, tmp_path, capsys) -> None:
    paths = _fetch(server, tmp_path, gps=[START + 10, START + 40.5])
    assert paths == [_path(tmp_path, "H1"), _path(tmp_path, "L1"), _path(tmp_path, "H1", START + SECONDS)]
    for path in paths:
        assert path.read_bytes() == (published / path.name).read_bytes()
    assert capsys.readouterr().err == "L1: 22 of 31 s are published, 1 files\n"
    strain = np.concatenate([read_gwosc(path).strain for path in paths if "H1" in path.name])
    assert strain.size == 2 * SECONDS * RATE
    assert _fetch(server, tmp_path, gps=[START + 33, START + 34]) == paths[2:]
    assert _fetch(server, tmp_path, gps=[START, START + SECONDS]) == paths[:2]  # the last one begins where this ends


def test_a_stretch_over_more_files_than_a_page_lists(server, published, tmp_path) -> None:
    content = _path(published, "H1").read_bytes()
    for k in range(2, 26):
        path = _path(tmp_path, "H1", START + k * SECONDS)
        path.write_bytes(content)
        server.add_run_file("O2", path)
        path.unlink()
    with pytest.raises(InputError, match=f"expected H1 from {START + 2 * SECONDS} on"):
        _fetch(server, tmp_path, gps=[START, START + 26 * SECONDS])
    assert len([path for path, _ in server.asked if "strain-files" in path and "detector=H1" in path]) == 2


def test_the_command_takes_two_times(server, tmp_path, capsys) -> None:
    given = ["--host", server.host, "--out", str(tmp_path), "--gps", str(START), str(START + 5.5), "--detectors=H1"]
    assert run_command(lambda: main(given)) == 0
    assert capsys.readouterr().out == f"{_path(tmp_path, 'H1')}\n"


def test_a_detector_that_is_asked_for_must_be_there(server, tmp_path) -> None:
    with pytest.raises(InputError, match=r"GW170814: .* lists no 4096 Hz strain of V1; expected fewer --detectors"):
        _fetch(server, tmp_path, detectors="H1,V1")
    with pytest.raises(InputError, match="lists no 4096 Hz strain; expected another"):
        _fetch(server, tmp_path, gps=[START - 900, START - 800])
    with pytest.raises(InputError, match="lists no 16384 Hz strain"):
        _fetch(server, tmp_path, rate=16384)


def test_an_event_without_files_of_its_own_comes_from_its_run(server, tmp_path, capsys) -> None:
    server.add_event("GW230529_181500", START + 16.0)
    config = _config(server, tmp_path, duration=4096)
    assert fetch(config, ["GW230529_181500"], False) == [_path(tmp_path, "H1"), _path(tmp_path, "L1")]
    assert "no 4096 s files of it are published; 32 s instead" in capsys.readouterr().err


def test_two_at_once_fetch_a_file_once(server, published, tmp_path) -> None:
    (place,) = [place for place in server.files if "eventapi" in place and "/H-H1" in place]
    server.misbehaviours = [Misbehaviour("/H-H1", pause=0.02)]
    done: list[bytes] = []

    def one() -> None:
        with open_session() as session:
            done.append(download(server.host + place, tmp_path, session, lambda path: None, False).read_bytes())

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [_path(published, "H1").read_bytes()] * 4
    assert len(server.fetched()) == 1
    assert not _left_behind(tmp_path)


def test_an_interrupted_command_keeps_what_arrived(server, published, tmp_path) -> None:
    server.misbehaviours = [Misbehaviour("/H-H1", pause=0.2)]
    given = [EVENT, "--host", server.host, "--duration", "32", "--detectors", "H1", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "gwtwins.strain.fetch", *given]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = _path(tmp_path, "H1").with_suffix(".hdf5.part")
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size):
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (130, "")
    assert "the same command goes on from there" in err
    arrived = part.read_bytes()
    assert 0 < len(arrived) < len(_path(published, "H1").read_bytes())
    assert _fetch(server, tmp_path, detectors="H1")[0].read_bytes() == _path(published, "H1").read_bytes()
    assert server.fetched()[-1][1] == f"bytes={len(arrived)}-"


def test_a_full_disk_is_said_before_and_while_writing(server, tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(InputError, match=r"part: 0\.0 MB free on its disk; expected \d\.\d MB"):
            _fetch(server, tmp_path)

    class Full(FileIO):
        def write(self, block: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloading, "FileIO", Full)
    with pytest.raises(InputError, match="part: cannot be written: No space left on device"):
        _fetch(server, tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "nothing to fetch"),
        ([EVENT, "--gps", "1186741845", "1186741945"], "too much"),
        (["--gps", "1186741845"], "two GPS times"),
        (["--gps", "1186741945", "1186741845"], "the earlier first"),
        (["--gps", "now", "later"], "two GPS times"),
        ([EVENT, "--rate", "2048"], "4096 or 16384 Hz"),
        ([EVENT, "--duration", "64"], "4096 or 32 s"),
        ([EVENT, "--detectors", "H1,X1"], "unknown 'X1'; expected some of H1,L1,V1,K1"),
        ([EVENT, "--host", "gwosc.org"], "https://gwosc.org"),
        ([EVENT, "--detector", "H1"], "--detectors"),
        ([EVENT, "--out", "/dev/null/strain"], "cannot be made"),
    ],
)
def test_a_bad_argument_is_one_line(given: list[str], said: str, capsys) -> None:
    assert run_command(lambda: main(given)) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert said in shown.err
