"""Which parts of the first place's recipe help: each added to exp5's, at equal epochs, on synthetic radiographs.

    python benchmarks/recipes.py --output benchmarks/results/recipes.json
    python benchmarks/recipes.py --seeds 0,1,2,3,4 --only exp5,sampling --output benchmarks/results/recipes.json

The radiographs are drawn once. Every recipe trains from random weights on the same images for the same epochs, with
half the papers' channels and one block in each stage of the encoder; a run takes three minutes of one core. A run is a
process of its own. The output holds what was found so far: the same command goes on where it stopped. It ends with a
table: the Dice of positive images and of all, mean and range over the seeds, and the difference of the latter to exp5's
of the same seeds. The rule "chosen" has each recipe's own thresholds, chosen on one half of the held-out patients and
scored on the other half. SYNTHETIC radiographs say nothing about patients; they show whether a part works and what it
costs. "large" takes a quarter of the steps.
Exit codes: 0 done, 2 wrong use, 3 some runs failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
# Before our own imports: this checkout is measured, whatever is installed.
sys.path.insert(0, str(REPOSITORY))

from jaxpneumo.bench.bench_run import load_config  # noqa: E402
from jaxpneumo.data import dataset, splits  # noqa: E402
from jaxpneumo.process.atomic import write_json  # noqa: E402
from jaxpneumo.process.errors import BAD_INPUT, DONE, PARTIAL  # noqa: E402
from jaxpneumo.process.files import read_json  # noqa: E402
from jaxpneumo.process.software import software  # noqa: E402

IMAGES = {"train": 400, "test": 1, "positive_fraction": 0.4, "area_scale": 3.0}
BASE = {
    "checkpoint_seconds": 3600.0,
    "data.split": "patient",
    "data.validation_fraction": 0.6,
    "model.encoder": "resnet34",
    "model.dtype": "float32",
    "model.width": 32,
    "model.depths": (1, 1, 1, 1),
    "loss.dice": "batch",
    **{f"stage1.{key}": value for key, value in {"size": 64, "batch_size": 8, "epochs": 48, "swa_epochs": 2}.items()},
    **{f"stage2.{key}": value for key, value in {"size": 96, "batch_size": 8, "epochs": 18, "swa_epochs": 2}.items()},
    "stage2.learning_rate": 5e-4,
    "predict.size": 96,
}
STAGES = ("stage1", "stage2")
SAMPLING = {
    "stage1.positive_share": 0.8,
    "stage1.final_positive_share": 0.6,
    "stage2.positive_share": 0.6,
    "stage2.final_positive_share": 0.4,
}
LOSS = {"loss.bce_weight": 3.0, "loss.dice_weight": 1.0, "loss.focal_weight": 4.0}
FROZEN = {"stage2.frozen_encoder_epochs": 1}
SCSE = {"model.attention": "scse"}
WARM_UP = {"stage1.warmup_epochs": 1}
SMALL_RATES = WARM_UP | {"stage1.learning_rate": 1e-4, "stage2.learning_rate": 1e-5}
# Four times the batch, with twice the learning rate: as many epochs, a quarter of the steps.
LARGE = WARM_UP | {"stage1.batch_size": 32, "stage1.learning_rate": 2e-3}
LARGE |= {"stage2.batch_size": 32, "stage2.learning_rate": 1e-3, "stage2.warmup_epochs": 1}
RECIPES: dict[str, dict[str, Any]] = {
    "exp5": {},
    "parts": SAMPLING | LOSS | FROZEN | SCSE,
    "sampling": SAMPLING,
    "loss": LOSS,
    "scse": SCSE,
    "frozen": FROZEN,
    "winner": SAMPLING | LOSS | FROZEN | SCSE | SMALL_RATES,
    "large": LARGE,
}
# How a mask is made of the same probabilities: exp5's thresholds, and the triplet rule of configs/winner.py.
RULES: dict[str, dict[str, Any]] = {
    "plain": {"threshold": 0.5, "removal_threshold": 0},
    "exp5": {"threshold": 0.75, "removal_threshold": 2048},
    "triplet": {"threshold": 0.3, "removal_threshold": 0, "top_threshold": 0.75, "top_area": 2000},
}


def main(argv: Sequence[str]) -> int:
    """Trains all that is not yet in the output. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", default="0,1,2", metavar="N,N", help="of weights and order (default: %(default)s)")
    add("--only", default=",".join(RECIPES), metavar="A,B", help="recipes (default: %(default)s)")
    add("--data", type=Path, default=REPOSITORY / "data/recipes", help="radiographs; drawn if absent")
    add("--output", type=Path, default=REPOSITORY / "benchmarks/results/recipes.json", metavar="JSON")
    add(
        "--one",
        nargs=2,
        metavar=("RECIPE", "SEED"),
        help="trains one and prints its scores; used by the command itself",
    )
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(train_one(options.one[0], int(options.one[1]), options.data)))
        return DONE
    names = options.only.split(",")
    if unknown := [name for name in names if name not in RECIPES]:
        print(f"--only {','.join(unknown)}: there is no such recipe. Choose of {', '.join(RECIPES)}.", file=sys.stderr)
        return BAD_INPUT
    key = {"images": IMAGES, "base": BASE, "recipes": RECIPES, "rules": RULES}
    report = read_json(options.output) if options.output.is_file() else {}
    if report.get("key") != json.loads(json.dumps(key)):
        report = {"note": "SYNTHETIC radiographs, not patients.", "key": key, "software": software(), "runs": {}}
    # Seed by seed, so that a comparison that is stopped early has as many of each recipe.
    runs = [(name, seed) for seed in options.seeds.split(",") for name in names]
    for number, (name, seed) in enumerate(runs, start=1):
        run = f"{name} {seed}"
        print(f"[{number}/{len(runs)}] {name}, seed {seed}", flush=True)
        if "scores" in report["runs"].get(run, {}):
            continue
        command = [sys.executable, __file__, "--one", name, seed, "--data", str(options.data)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == DONE:
            report["runs"][run] = json.loads(done.stdout.splitlines()[-1])
        else:
            report["runs"][run] = {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        write_json(options.output, report)
    print("\n".join(table(report)))
    return PARTIAL if any("failed" in report["runs"][f"{name} {seed}"] for name, seed in runs) else DONE


def train_one(name: str, seed: int, data: Path) -> dict[str, Any]:
    """Trains a recipe and scores the held-out images under each of RULES, with flip TTA, at native size."""
    from jaxpneumo.evaluate.evaluate import evaluate
    from jaxpneumo.evaluate.thresholds import choose
    from jaxpneumo.predict.infer import load_predictor
    from jaxpneumo.score.bootstrap import clusters
    from jaxpneumo.score.threshold_counts import read_counts
    from jaxpneumo.train.stages import make_synthetic_data, train

    drawn = {f"data.synthetic.{key}": value for key, value in IMAGES.items()}
    values = {
        "seed": seed,
        "data.directory": str(data.resolve()),
        "predict.input": "",
        **drawn,
        **BASE,
        **RECIPES[name],
    }
    config = load_config(str(REPOSITORY / "configs/quickstart.py"), [f"--config.{k}={v!r}" for k, v in values.items()])
    make_synthetic_data(config)
    found: dict[str, Any] = {"scores": {}}
    with tempfile.TemporaryDirectory(prefix="jaxpneumo-recipes-") as folder:
        work = Path(folder)
        train(config, work / "run")
        predictor = load_predictor(work / "run")
        _, rows, split = splits.split_rows(dataset.read_index(data), work / "run/splits.json", 0.0, 0)
        for rule, changes in RULES.items():
            changed = replace(predictor, settings=replace(predictor.settings, **changes))
            summary = evaluate(changed, data, rows, split, work / rule, quiet=True)
            scores = summary["scores"]["tta" if rule == "plain" else "tta_removal"]
            found["scores"][rule] = {
                key: scores[key] for key in ("dice", "dice_positive", "sensitivity", "specificity")
            }
            found["all_empty"] = summary["all_empty"]["dice"]
        # A loss moves the probabilities. So each recipe is also scored at its own thresholds: chosen on one half of the
        # patients, scored on the other, and the other way round.
        counts = read_counts(work / "plain/levels.npz")
        cluster, _ = clusters(dataset.read_index(data).patient[rows])
        chosen = choose(counts, cluster, "image", "dice", "half", 0)
        found["scores"]["chosen"] = {"dice": chosen["held_out"], "thresholds": chosen["held_out_thresholds"]}
    return found


def table(report: dict[str, Any]) -> list[str]:
    """A row a recipe and rule: mean (least to greatest) over the seeds, and the mean difference to exp5's."""
    lines = [f"{'recipe':10} {'rule':8} {'seeds':>5} {'Dice of positives':>24} {'Dice':>24} {'Dice, against exp5':>26}"]
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for run, result in report["runs"].items():
        name, seed = run.split()
        for rule, scores in result.get("scores", {}).items():
            found.setdefault((name, rule), {})[seed] = scores
        if "failed" in result:
            lines.append(f"{run}: FAILED, {result['failed']}")
    for (name, rule), by_seed in found.items():
        columns = []
        for score in ("dice_positive", "dice"):
            values = [scores[score] for scores in by_seed.values() if score in scores]
            columns.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "")
        base = found.get(("exp5", rule), {})
        pairs = [by_seed[seed]["dice"] - base[seed]["dice"] for seed in by_seed if seed in base]
        against = (
            "" if name == "exp5" or not pairs else f"{np.mean(pairs):+.3f} ({min(pairs):+.3f} to {max(pairs):+.3f})"
        )
        lines.append(f"{name:10} {rule:8} {len(by_seed):5} {columns[0]:>24} {columns[1]:>24} {against:>26}")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
