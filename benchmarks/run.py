"""Measures this project and its PyTorch peer on one machine, in turns, and prints a table.

    python benchmarks/run.py --profile cpu
    python benchmarks/run.py --profile gpu --output benchmarks/results/h100.json
    python benchmarks/run.py --profile gpu --only step,predict --peer ../shared/peers/torch_unet.py

Every measurement is a process of its own, and never are two of them at work. Case by case the output holds what was
found so far: the same command goes on where it stopped, and measures again what was measured with other versions.
Exit codes: 0 done, 2 wrong use, 3 some measurements failed (the output says why), the others are there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parent.parent
# Before our own imports: the command runs from any folder, and measures this checkout whatever is installed.
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

from cases import MAX_AUTOTUNE, PROFILES, Case  # noqa: E402

from jaxpneumo.process.atomic import write_json  # noqa: E402
from jaxpneumo.process.errors import BAD_INPUT, DONE, PARTIAL  # noqa: E402
from jaxpneumo.process.files import read_json  # noqa: E402
from jaxpneumo.process.machine import cores  # noqa: E402
from jaxpneumo.process.software import software  # noqa: E402

GIB = 2**30
PEER_NEEDS = ("torch", "segmentation-models-pytorch")


def main(argv: Sequence[str]) -> int:
    """Runs a profile's cases. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--profile", choices=tuple(PROFILES), required=True, help="cpu: small batches; gpu: the papers'")
    add("--only", metavar="A,B", help="cases whose first word, or whole name, is one of these")
    peer = REPOSITORY.parent / "shared/peers/torch_unet.py"
    add("--peer", type=Path, default=peer, metavar="FILE", help="its program (default: ../shared/peers/torch_unet.py)")
    add("--peer-python", default=sys.executable, metavar="FILE", help="its interpreter (default: this one)")
    add("--output", type=Path, metavar="JSON", help="default: benchmarks/results/PROFILE.json")
    add("--again", action="store_true", help="measure also what the output already has")
    add("--limit", type=float, default=900, metavar="SECONDS", help="for one process (default: %(default)g)")
    add("--warm", type=int, default=0, metavar="N", help="first run every program once, N at a time, to compile it")
    add("--max-autotune", action="store_true", help="measure torch.compile's max-autotune too, which takes minutes")
    options = parser.parse_args(argv)
    output = options.output or REPOSITORY / f"benchmarks/results/{options.profile}.json"
    every = PROFILES[options.profile]()
    cases = choose(every, options.only)
    if not options.max_autotune:
        cases = [
            replace(case, peers={way: a for way, a in case.peers.items() if way != MAX_AUTOTUNE}) for case in cases
        ]
    if not cases:
        groups = ", ".join(dict.fromkeys(case.group for case in every))
        print(f"--only {options.only} names no case of this profile: choose among {groups}.", file=sys.stderr)
        return BAD_INPUT

    if missing := missing_packages():
        print(f"Packages that are not installed, some cases will fail: {', '.join(missing)}")
    absent, versions = find_peer(options.peer, options.peer_python)
    if absent:
        print(f"Without the peer: {absent}")
    report = {**_describe_machine(), "profile": options.profile, "peer": absent or versions, "cases": {}}
    old = read_json(output)["cases"] if output.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="jaxpneumo-benchmarks-") as scratch:
        runner = Runner(Path(scratch), options.peer, options.peer_python, options.limit)
        if options.warm:
            print(f"running every program once, {options.warm} at a time", flush=True)
            runner.warm(cases, not absent, options.warm)
        for number, case in enumerate(cases, start=1):
            key = {"ours": case.ours, "peers": {} if absent else case.peers, "peer": versions}
            key = json.loads(json.dumps({**key, "software": report["software"]}))
            before = old.get(case.name, {})
            if not options.again and before.get("key") == key and not failures(before):
                print(f"[{number}/{len(cases)}] {case.name}: measured before", flush=True)
                report["cases"][case.name] = before
                continue
            print(f"[{number}/{len(cases)}] {case.name}", flush=True)
            start = time.monotonic()
            measured = runner.measure(case, not absent)
            report["cases"][case.name] = {**measured, "key": key, "took_seconds": time.monotonic() - start}
            # What was found before of the cases that are still to come, or were not asked for, stays.
            write_json(output, {**report, "cases": old | report["cases"]})
    write_json(output, {**report, "cases": old | report["cases"]})
    print("\n".join(table(report)))
    print(f"\n{output}")
    return PARTIAL if any(failures(case) for case in report["cases"].values()) else DONE


def choose(cases: list[Case], only: str | None) -> list[Case]:
    """The cases that `--only` names, all without it."""
    wanted = {name.strip() for name in only.split(",")} if only else set()
    return [case for case in cases if not wanted or wanted & {case.group, case.name}]


def missing_packages() -> list[str]:
    """What this project needs, directly and indirectly, and this interpreter has not."""
    with open(REPOSITORY / "pyproject.toml", "rb") as file:
        needed = [Requirement(each) for each in tomllib.load(file)["project"]["dependencies"]]
    seen: dict[str, bool] = {}
    while needed:
        requirement = needed.pop()
        name = requirement.name.lower().replace("_", "-")
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            needed += map(Requirement, metadata.requires(name) or [])
            seen[name] = True
        except metadata.PackageNotFoundError:
            seen[name] = False
    return sorted(name for name, there in seen.items() if not there)


def find_peer(program: Path, python: str) -> tuple[str, dict[str, str]]:
    """Why the peer cannot be measured ("" where it can), and the versions of what it stands on."""
    if not program.is_file():
        return f"there is no program {program}; give it with --peer FILE.", {}
    code = "import importlib.metadata as m, json\n"
    code += "print(json.dumps({(d.name or '').lower().replace('_', '-'): d.version for d in m.distributions()}))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{python} cannot be run ({error}); give its interpreter with --peer-python FILE.", {}
    installed = json.loads(done.stdout)
    missing = [name for name in PEER_NEEDS if name not in installed]
    if missing:
        return f"{python} has no {' and no '.join(missing)}; the README beside the program says how to install.", {}
    return "", {name: installed[name] for name in PEER_NEEDS}


class Failure(Exception):  # noqa: N818 (it is a result, which the table shows)
    """A measurement that ended without a figure; says why."""


class Runner:
    """Runs measurements one after the other, each in a process of its own."""

    def __init__(self, scratch: Path, peer: Path, peer_python: str, limit: float):
        self._scratch, self._peer, self._peer_python, self._limit = scratch, peer, peer_python, limit

    def warm(self, cases: list[Case], with_peer: bool, at_once: int) -> None:
        """Runs all steps and predictions once, several at a time, so that both sides find their programs compiled."""
        commands = []
        for case in cases:
            if case.group in ("step", "predict"):
                ours = [[sys.executable, "-m", "jaxpneumo", "bench", *a, "--no-roofline"] for a in case.ours.values()]
                peers = [[self._peer_python, str(self._peer), *a] for a in case.peers.values() if with_peer]
                commands += [[*command, "--repeats=1"] for command in (*ours, *peers)]
        # One process must not take all of a GPU's memory from the others.
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

        def run(command: list[str]) -> None:
            with suppress(Failure):  # the measurement will say so
                self._run(command, shared)

        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(run, commands))

    def measure(self, case: Case, with_peer: bool) -> dict[str, Any]:
        """Both sides of a case in turns; a side that fails says so, the others go on."""
        sides = [("ours", variant) for variant in case.ours]
        sides += [("peers", variant) for variant in case.peers if with_peer]
        found: dict[str, dict[str, Any]] = {"ours": {}, "peers": {}}
        for side, variant in sides:
            found[side][variant] = {"turns": []}
        for turn in range(case.turns):
            # Opposite orders, so that a machine that slows down or speeds up does so to both.
            for side, variant in sides if turn % 2 == 0 else reversed(sides):
                figures = found[side][variant]
                if "failed" in figures:
                    continue
                measure = self._ours if side == "ours" else self._peers
                try:
                    figures["turns"].append(measure(case, variant, turn))
                except Failure as failure:
                    figures["failed"] = str(failure)
        for side, summary in (("ours", summarise_ours), ("peers", summarise_peer)):
            for figures in found[side].values():
                figures |= summary(figures["turns"]) if figures["turns"] else {}
        for figures in found["ours"].values():
            peers = {name: peer for name, peer in found["peers"].items() if "failed" not in {*peer, *figures}}
            figures["ratios"] = {name: ratio(figures["turns"], peer["turns"]) for name, peer in peers.items()}
        return found

    def _ours(self, case: Case, variant: str, turn: int) -> dict[str, Any]:
        arguments = [self._fill(argument) for argument in case.ours[variant]]
        output = self._scratch / "figures.json"
        output.unlink(missing_ok=True)
        # The device's own rates once a case are enough.
        saved = ["--no-roofline"] if turn and arguments[0] in ("step", "predict") else []
        command = [sys.executable, "-m", "jaxpneumo", "bench", *arguments, *saved, f"--output={output}"]
        printed, peak = self._run(command)
        return {**read_json(output), "printed": printed.strip().splitlines(), "process_peak_bytes": peak}

    def _peers(self, case: Case, variant: str, _: int) -> dict[str, Any]:
        printed, peak = self._run([self._peer_python, str(self._peer), *case.peers[variant]])
        try:
            figures = json.loads(printed.strip().splitlines()[-1])
            rate = figures[case.peer_rate] / case.peer_images
        except (IndexError, KeyError, ValueError) as error:
            raise Failure(f"its output is not understood ({error!r}): {printed[-200:]}") from error
        return {"images_per_second": rate, "figures": figures, "process_peak_bytes": peak}

    def _fill(self, argument: str) -> str:
        """An argument with the folder of synthetic radiographs, which is made when it is first asked for."""
        folder = self._scratch / "radiographs"
        if "{radiographs}" in argument and not folder.is_dir():
            synthesize = [sys.executable, "-m", "jaxpneumo", "synthesize", "--count=100", f"--output={folder}"]
            self._run([*synthesize, "--quiet"])
        return argument.replace("{radiographs}", str(folder))

    def _run(self, command: list[str], more: Mapping[str, str] = MappingProxyType({})) -> tuple[str, int]:
        """What a process printed, and the most memory it had resident. Raises Failure unless it ends well."""
        environment = {
            **os.environ,
            **more,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
            # The second turn need not compile again: compiling is a case of its own.
            "JAX_COMPILATION_CACHE_DIR": str(self._scratch / "compiled"),
        }
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=REPOSITORY)
            timer = threading.Timer(self._limit, process.kill)
            timer.start()
            # Not `wait`: this call tells the memory of this one child.
            _, status, usage = os.wait4(process.pid, 0)
            late = timer.finished.is_set()
            timer.cancel()
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            err.seek(0)
            if process.returncode:
                said = [line.strip() for line in err if line.strip()]
                why = f"took more than {self._limit:g} s" if late else f"exit code {process.returncode}"
                raise Failure(f"{why}: {said[-1] if said else 'no message'}")
            return out.read(), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def summarise_ours(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Memory, and where there is a rate the medians over the repeats of all turns and the roofline of the first."""
    first = turns[0]
    found = {"process_peak_bytes": max(turn["process_peak_bytes"] for turn in turns)}
    if "images_per_second" in first:
        repeats = [seconds for turn in turns for seconds in turn["repeats"]]
        seconds = statistics.median(repeats)
        found |= {"images_per_second": first["batch"] / seconds, "seconds": seconds, "repeats": len(repeats)}
        found |= {"device_peak_bytes": first["peak_bytes"]["device"], "roofline": {}}
        for name, line in (first.get("roofline") or {}).items():
            share = None if line["floor_seconds"] is None else line["floor_seconds"] / seconds
            found["roofline"][name] = {**line, "share": share}
    return found


def summarise_peer(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of the turns, each a median of repeats itself; memory."""
    peaks = [turn["figures"].get("train_peak_gib") for turn in turns]
    return {
        "images_per_second": statistics.median(turn["images_per_second"] for turn in turns),
        "repeats": sum(turn["figures"].get("repeats", 0) for turn in turns),
        "process_peak_bytes": max(turn["process_peak_bytes"] for turn in turns),
        "device_peak_bytes": max((peak * GIB for peak in peaks if peak), default=None),
    }


def ratio(ours: list[dict[str, Any]], peers: list[dict[str, Any]]) -> float:
    """Our rate over the peer's: the median over turns, so that what slows a turn slows both sides of it."""
    pairs = zip(ours, peers, strict=True)
    return statistics.median(one["images_per_second"] / other["images_per_second"] for one, other in pairs)


def failures(case: dict[str, Any]) -> list[str]:
    """What failed in a case, in words."""
    sides = case["ours"] | {f"peer, {name}": peer for name, peer in case["peers"].items()} if case else {}
    return [f"{name or 'ours'}: {side['failed']}" for name, side in sides.items() if "failed" in side]


def table(report: dict[str, Any]) -> list[str]:
    """The report as lines of text: rates beside the peer's, then what the other cases printed, then failures."""
    lines = [
        "",
        f"{report['date']}, {report['device']}, {report['cores']} cores, load {report['load_average']:.1f} before",
        f"peer: {report['peer']}; one prediction with flip TTA counts as two of its images",
        "",
        f"{'case':46} {'images/s':>9} {'the peer, at its best':>24} {'ratio':>6} {'roofline':>9} {'GiB':>6} {'its':>6}",
    ]
    others, failed = [], []
    for name, case in report["cases"].items():
        for variant, ours in case["ours"].items():
            if "images_per_second" in ours:
                lines.append(_row(f"{name} {variant}".strip(), ours, case["peers"]))
            elif ours["turns"]:
                others += ["", *ours["turns"][0]["printed"]]
        failed += [f"FAILED {name}, {failure}" for failure in failures(case)]
    return [*lines, *others, *([""] if failed else []), *failed]


def _row(name: str, ours: dict[str, Any], peers: dict[str, Any]) -> str:
    best = max(ours["ratios"], key=lambda key: peers[key]["images_per_second"], default=None)
    peer, beside = peers[best] if best else None, f"{'-':>24} {'-':>6}"
    if peer:
        rate = f"{best} {peer['images_per_second']:9.2f}"
        beside = f"{rate:>24} {ours['ratios'][best]:6.2f}"
    share = next((line["share"] for line in ours["roofline"].values() if line["share"]), None)
    memory = [f"{_peak(side) / GIB:6.2f}" if side else f"{'-':>6}" for side in (ours, peer)]
    roof = f"{share:9.1%}" if share else f"{'-':>9}"
    return f"{name:46} {ours['images_per_second']:9.2f} {beside} {roof} {' '.join(memory)}"


def _peak(side: dict[str, Any]) -> float:
    return side["device_peak_bytes"] or side["process_peak_bytes"]


def _describe_machine() -> dict[str, Any]:
    """When and where: taken before anything runs."""
    command = [sys.executable, "-c", "import jax; print(jax.device_count(), jax.devices()[0].device_kind)"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0],
        "cores": cores(),
        "device": done.stdout.strip() or "unknown device",
        "software": software(),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
