"""`benchmarks/run.py`: both sides in turns, a report that can be gone on with, and words for what is absent."""

import importlib.util
import json
import sys

import pytest
from helpers import REPOSITORY

PEER = """
import argparse, json
p = argparse.ArgumentParser()
for name in ("device", "dtype", "size", "batch", "compile", "repeats"):
    p.add_argument("--" + name)
a = p.parse_args()
if a.compile == "2":
    raise SystemExit("this way of compiling fails")
rate = 10.0 * (1 + int(a.compile))
print(json.dumps({"train_img_per_s": rate, "predict_img_per_s": 4 * rate, "repeats": int(a.repeats),
                  "train_peak_gib": None}))
"""


@pytest.fixture(scope="module")
def benchmarks():
    """benchmarks/run.py as a module."""
    specification = importlib.util.spec_from_file_location("benchmarks_run", REPOSITORY / "benchmarks/run.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def peer(tmp_path):
    """A program with the peer's command line and output."""
    path = tmp_path / "peer.py"
    path.write_text(PEER)
    return path


def tiny(benchmarks, turns=1):
    """A prediction beside two ways of the peer's, one of which fails, and a case without the peer."""
    step = (
        "predict",
        "--depths=1,1,1,1",
        "--width=8",
        "--size=32",
        "--batch=2",
        "--repeats=2",
        "--calls=1",
        "--no-roofline",
    )
    peers = {way: (f"--compile={number}", "--repeats=3") for number, way in enumerate(("eager", "compile", "bad"))}
    case = benchmarks.Case("predict 32", {"float32": (*step, "--dtype=float32")}, peers, "predict_img_per_s", 2, turns)
    single = benchmarks.Case("input 32", {"": ("input", "--size=32", "--batch=2", "--images=4", "--repeats=1")})
    return [case, single]


@pytest.mark.long
def test_both_sides_in_one_report(benchmarks, peer, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(benchmarks.PROFILES, "cpu", lambda: tiny(benchmarks, turns=2))
    monkeypatch.setattr(benchmarks, "PEER_NEEDS", ("numpy",))
    output = tmp_path / "a.json"
    arguments = ["--profile=cpu", f"--peer={peer}", f"--output={output}"]
    assert benchmarks.main(arguments) == 3  # one way of the peer's fails, as it shall
    report = json.loads(output.read_text())
    assert report["peer"]["numpy"]
    assert {"date", "device", "cores", "load_average", "software"} <= report.keys()
    case = report["cases"]["predict 32"]
    ours = case["ours"]["float32"]
    assert (ours["repeats"], len(ours["turns"])) == (4, 2)
    # Two of the peer's images are one of our predictions.
    assert case["peers"]["compile"]["images_per_second"] == 4 * 20 / 2
    assert ours["ratios"].keys() == {"eager", "compile"}
    assert ours["ratios"]["eager"] == pytest.approx(2 * ours["ratios"]["compile"])
    assert ours["process_peak_bytes"] > 2**20
    assert "this way of compiling fails" in case["peers"]["bad"]["failed"]
    text = capsys.readouterr().out
    assert "FAILED predict 32, peer, bad: exit code 1: this way of compiling fails" in text
    assert "compile     40.00" in text
    assert "batches/s" in text

    # What is there with the same versions stays.
    before = report["cases"]["input 32"]
    assert benchmarks.main([*arguments, "--only=input"]) == 0
    assert "input 32: measured before" in capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report["cases"]["input 32"] == before
    assert benchmarks.main([*arguments, "--only=input", "--again"]) == 0
    assert json.loads(output.read_text())["cases"]["input 32"] != before
    assert "predict 32" in json.loads(output.read_text())["cases"]


def test_peer_absent_is_said(benchmarks, tmp_path, peer):
    assert "there is no program" in benchmarks.find_peer(tmp_path / "no.py", sys.executable)[0]
    assert "cannot be run" in benchmarks.find_peer(peer, str(tmp_path / "python"))[0]
    benchmarks.PEER_NEEDS, needs = ("surely-not-installed",), benchmarks.PEER_NEEDS
    try:
        assert "has no surely-not-installed" in benchmarks.find_peer(peer, sys.executable)[0]
    finally:
        benchmarks.PEER_NEEDS = needs


@pytest.mark.long
def test_without_the_peer_our_half_is_measured_and_a_failing_case_does_not_end_the_others(
    benchmarks, tmp_path, monkeypatch, capsys
):
    cases = [benchmarks.Case("step", {"": ("step", "--size=30")}), tiny(benchmarks)[0]]
    monkeypatch.setitem(benchmarks.PROFILES, "cpu", lambda: cases)
    assert benchmarks.main(["--profile=cpu", f"--peer={tmp_path / 'no.py'}", f"--output={tmp_path / 'a.json'}"]) == 3
    report = json.loads((tmp_path / "a.json").read_text())
    assert "multiple of 32" in report["cases"]["step"]["ours"][""]["failed"]
    case = report["cases"]["predict 32"]
    assert case["ours"]["float32"]["images_per_second"] > 0
    assert (case["peers"], case["ours"]["float32"]["ratios"]) == ({}, {})
    assert "Without the peer: there is no program" in capsys.readouterr().out


def test_medians_are_over_the_repeats_of_all_turns(benchmarks):
    line = {"floor_seconds": 1.0, "bound": "memory", "share": 0.1}
    turn = {"images_per_second": 1, "batch": 6, "peak_bytes": {"device": None}, "process_peak_bytes": 5}
    turns = [
        {**turn, "repeats": [1.0, 9.0, 2.0], "roofline": {"counted": line}},
        {**turn, "repeats": [4.0, 3.0], "process_peak_bytes": 7},
    ]
    found = benchmarks.summarise_ours(turns)
    assert (found["seconds"], found["images_per_second"], found["repeats"]) == (3.0, 2.0, 5)
    assert found["roofline"]["counted"]["share"] == pytest.approx(1 / 3)
    assert found["process_peak_bytes"] == 7
    assert benchmarks.summarise_ours([{"process_peak_bytes": 7}]) == {"process_peak_bytes": 7}
    rates = ([{"images_per_second": rate} for rate in rates] for rates in ((2, 8, 9), (1, 2, 9)))
    assert benchmarks.ratio(*rates) == 2


def test_a_measurement_that_hangs_is_ended(benchmarks, tmp_path):
    peer = tmp_path / "peer.py"
    peer.write_text("import time\ntime.sleep(600)\n")
    runner = benchmarks.Runner(tmp_path, peer, sys.executable, limit=0.5)
    case = benchmarks.Case("step", {}, {"eager": ()})
    assert "took more than 0.5 s" in runner.measure(case, True)["peers"]["eager"]["failed"]


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_profiles_can_be_parsed(benchmarks, profile):
    cases = benchmarks.PROFILES[profile]()
    assert len({case.name for case in cases}) == len(cases)
    assert {case.group for case in cases} >= {"step", "predict", "input", "augment", "prepare", "start", "run"}
    assert [case.name for case in benchmarks.choose(cases, "step,start 256")] == [
        *(case.name for case in cases if case.group == "step"),
        "start 256",
    ]
    assert not benchmarks.choose(cases, "speed")
    for case in cases:
        # At least five repeats of everything that stands beside the peer.
        repeats = [int(a.split("=")[1]) for v in case.peers.values() for a in v if a.startswith("--repeats")]
        assert all(case.turns * each >= 5 for each in repeats)
