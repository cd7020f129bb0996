"""Compares what this project and its PyTorch peer learn: the same images, split, recipe and seeds, one after the other.

    python benchmarks/learning.py --data data/siim --profile cpu
    python benchmarks/learning.py --data data/siim --profile gpu --seeds 0,1,2,3,4 --only "ours batch,peer batch"
    python benchmarks/learning.py --data data/siim --profile gpu --at-once 8 --pretrained runs/synthetic

Both are trained from random weights, with exp5's recipe and flips only, under each of their Dice losses. A run is a
process of its own. The output holds what was found so far: the same command goes on where it stopped. It ends with a
table of the mean Dice of positive images on both parts, over the seeds, and of the runs that outline nothing.
Exit codes: 0 done, 2 wrong use, 3 some runs failed (the output says why), the others are there.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
# Before our own imports: the command runs from any folder, and measures this checkout whatever is installed.
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

from run import find_peer  # noqa: E402

from jaxpneumo.data import dataset, splits  # noqa: E402
from jaxpneumo.process.atomic import write_json  # noqa: E402
from jaxpneumo.process.errors import BAD_INPUT, DONE, PARTIAL, InputError  # noqa: E402
from jaxpneumo.process.files import read_json  # noqa: E402
from jaxpneumo.process.software import software  # noqa: E402

# On a CPU small images and few epochs: a run of ours takes five minutes of one core (2026-11).
PROFILES = {
    "cpu": {"device": "cpu", "sizes": "64,96", "epochs": "40,20", "batches": "16,16",
            "dtypes": ("float32", "bfloat16")},
    "gpu": {"device": "cuda", "sizes": "256,512", "epochs": "100,70", "batches": "16,16",
            "dtypes": ("bfloat16", "float32")},
}  # fmt: skip
LOSSES = {"ours": ("batch", "image", "positive"), "peer": ("batch", "image"), "pretrained": ("batch",)}


def main(argv: Sequence[str]) -> int:
    """Trains all that is not yet in the output. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="of `jaxpneumo prepare`, with arrays of the profile's sizes")
    add("--split", default="patient", help="patient, random, or a splits file (default: %(default)s)")
    add("--fraction", type=float, default=0.3, help="of validation images (default: %(default)s)")
    add("--profile", choices=tuple(PROFILES), required=True, help="cpu: small images; gpu: exp5's own")
    add("--seeds", default="0,1,2", metavar="N,N", help="of weights and order (default: %(default)s)")
    add("--only", metavar="A,B", help="such as 'ours batch,peer batch' (default: all)")
    add("--pretrained", metavar="RUN", help="also train ours from the result of this run, as a side of its own")
    add("--at-once", type=int, default=1, metavar="N", help="runs at a time; they share the device (default: one)")
    peer = REPOSITORY.parent / "shared/peers/torch_train.py"
    add("--peer", type=Path, default=peer, metavar="FILE", help="its program (default: ../shared/peers/torch_train.py)")
    add("--peer-python", default=sys.executable, metavar="FILE", help="its interpreter (default: this one)")
    add("--output", type=Path, metavar="JSON", help="default: benchmarks/results/learning-PROFILE.json")
    options = parser.parse_args(argv)
    output = options.output or REPOSITORY / f"benchmarks/results/learning-{options.profile}.json"
    profile = PROFILES[options.profile]
    sides = [f"{side} {loss} {dtype}" for side in LOSSES for loss in LOSSES[side] for dtype in profile["dtypes"]]
    if not options.pretrained:
        sides = [side for side in sides if not side.startswith("pretrained")]
    if options.only:
        wanted = [name.strip() for name in options.only.split(",")]
        sides = [side for side in sides if any(side.startswith(name) for name in wanted)]
    try:
        split, described = make_split(options.data, options.split, options.fraction)
    except InputError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    if not sides:
        print(f"--only {options.only} names no side.", file=sys.stderr)
        return BAD_INPUT
    absent, versions = find_peer(options.peer, options.peer_python)
    if absent:
        print(f"Without the peer: {absent}")
        sides = [side for side in sides if not side.startswith("peer")]

    key = {"profile": json.loads(json.dumps(profile)), "split": described, "software": software(), "peer": versions}
    report = read_json(output) if output.is_file() else {}
    if report.get("key") != key:
        report = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "key": key, "runs": {}}
    splits_file = output.with_suffix(".splits.json")
    write_json(splits_file, split)
    programs = {
        "ours": (sys.executable, REPOSITORY / "benchmarks/learn.py"),
        "peer": (options.peer_python, options.peer),
        "pretrained": (sys.executable, REPOSITORY / "benchmarks/learn.py", f"--start-from={options.pretrained}"),
    }
    # Seed by seed, so that a comparison that is stopped early has as many of each side.
    runs = [(side, seed) for seed in options.seeds.split(",") for side in sides]
    lock = threading.Lock()

    def run(number: int, side: str, seed: str) -> None:
        name = f"{side} {seed}"
        before = "result" in report["runs"].get(name, {})
        print(f"[{number}/{len(runs)}] {side}, seed {seed}{': trained before' if before else ''}", flush=True)
        if before:
            return
        who, dice, dtype = side.split()
        command = [*map(str, programs[who]), f"--data={options.data}", f"--splits={splits_file}", f"--dice={dice}"]
        command += [f"--dtype={dtype}", f"--seed={seed}", "--every=5"]
        command += [f"--{name}={profile[name]}" for name in ("device", "sizes", "epochs", "batches")]
        found = train(command)
        with lock:
            report["runs"][name] = found
            write_json(output, report)

    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda each: run(each[0], *each[1]), enumerate(runs, start=1)))
    splits_file.unlink()
    print("\n".join(table(report)))
    print(f"\n{output}")
    return PARTIAL if any("failed" in report["runs"][f"{side} {seed}"] for side, seed in runs) else DONE


def make_split(data: Path, split: str, fraction: float) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The image ids of both parts, and the split in words and figures. Raises InputError."""
    index = dataset.read_index(data)
    train_rows, validation_rows, described = splits.split_rows(index, split, fraction, 0)
    parts = {"train": train_rows, "validation": validation_rows}
    positive = {f"{part}_positive": int(index.positive[rows].sum()) for part, rows in parts.items()}
    return {part: index.image_id[rows].tolist() for part, rows in parts.items()}, {**described, **positive}


def train(command: list[str]) -> dict[str, Any]:
    """What a program printed: {"epochs", "result"}, or {"failed"} with its last words."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        # Runs at the same time share a GPU's memory.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    try:
        *epochs, result = (json.loads(text) for text in done.stdout.splitlines() if text.startswith("{"))
        return {"epochs": epochs, "result": {part: result[part] for part in ("train", "validation", "seconds")}}
    except (ValueError, KeyError):
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1], "exit_code": done.returncode}


def table(report: dict[str, Any]) -> list[str]:
    """A row a side: mean, least and greatest over the seeds, and how many of its runs outline nothing."""
    split = report["key"]["split"]
    lines = [
        "",
        f"{split['train_images']} training and {split['validation_images']} validation images "
        f"({split['train_positive']} and {split['validation_positive']} positive), split {split['method']}; "
        "mean Dice of the positive images: mean of the seeds (least to greatest)",
        "",
        f"{'side':26} {'seeds':>5} {'training':>22} {'validation':>22} {'outline nothing':>16} {'minutes':>8}",
    ]
    sides: dict[str, list[dict[str, Any]]] = {}
    for name, run in report["runs"].items():
        found = sides.setdefault(name.rpartition(" ")[0], [])
        if "failed" in run:
            lines.append(f"{name}: FAILED, {run['failed']}")
        else:
            found.append(run["result"])
    for side, results in sides.items():
        scores = [np.array([result[part]["dice_positive"] for result in results]) for part in ("train", "validation")]
        shown = "".join(f" {f'{s.mean():.3f} ({s.min():.3f} to {s.max():.3f})':>22}" for s in scores if results)
        nothing = int(sum((scores[0] == 0) & (scores[1] == 0)))
        minutes = sum(result["seconds"] for result in results) / 60 / max(len(results), 1)
        lines.append(f"{side:26} {len(results):5}{shown} {nothing:>16} {minutes:8.1f}")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
