"""Our half of the comparison in learning: trains on a prepared data set and a split, and scores both parts.

It has the options of the peer, `../shared/peers/torch_train.py`, and prints the same lines: one JSON object for some
epochs, then one with the mean Dice of all and of positive images, of averaged weights, with flip TTA, at threshold 0.5
and at the size of the last stage. The recipe is configs/exp5.py with flips only and without pretrained weights.

    python benchmarks/learn.py --data data/siim --splits splits.json --sizes 96,128 --epochs 50,30 --dice batch
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
# Before our own imports: this checkout is measured, whatever is installed.
sys.path.insert(0, str(REPOSITORY))

from jaxpneumo.bench.bench_run import load_config  # noqa: E402
from jaxpneumo.data import dataset, splits  # noqa: E402
from jaxpneumo.predict.infer import Predictor, load_predictor  # noqa: E402
from jaxpneumo.run.config import Config  # noqa: E402
from jaxpneumo.train.log import read_log  # noqa: E402
from jaxpneumo.train.stages import train  # noqa: E402

PARTS = ("train", "validation")


def main(argv: Sequence[str]) -> int:
    """Trains one run in a folder of its own, which is removed, and prints what it learnt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="of `jaxpneumo prepare`, with arrays of these sizes")
    add("--splits", type=Path, required=True, help="file with the image ids of train and validation")
    add("--sizes", default="256,512")
    add("--epochs", default="100,70")
    add("--batches", default="16,16")
    add("--swa", default="5,3")
    add("--dice", default="image", choices=("image", "batch", "positive"))
    add("--encoder", default="resnet34")
    add("--width", type=int, default=64, help="channels of the first stage; the peer has no such option")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--device", default="cpu", choices=("cpu", "cuda"), help="for the peer's sake: JAX finds its device by itself")
    add("--start-from", default="", metavar="RUN", help="start from this run's weights, with all stages")
    add("--seed", type=int, default=0)
    add("--every", type=int, default=10, help="epochs between two lines")
    options = parser.parse_args(argv)
    start = time.monotonic()
    config = recipe(options)
    with tempfile.TemporaryDirectory(prefix="jaxpneumo-learn-") as folder:
        train(config, Path(folder))
        for stage in config.stages:
            for record in read_log(Path(folder) / stage.name / "log.jsonl"):
                if record["epoch"] % options.every == 0 or record["epoch"] == stage.epochs - 1:
                    print(json.dumps(line(stage.size, record)), flush=True)
        predictor = load_predictor(folder)
        rows = splits.split_rows(dataset.read_index(options.data), str(options.splits), 0.0, 0)[:2]
        parts = {part: score(predictor, options.data, each) for part, each in zip(PARTS, rows, strict=True)}
    print(json.dumps({"seed": options.seed, "dice": options.dice, **parts, "seconds": time.monotonic() - start}))
    return 0


def recipe(options: argparse.Namespace) -> Config:
    """configs/exp5.py with the options' sizes, epochs and batches, flips only."""
    changes = {
        "seed": options.seed,
        "stage1.start_from": options.start_from,
        "data.directory": str(options.data.resolve()),
        "data.split": str(options.splits.resolve()),
        "model.encoder": options.encoder,
        "model.width": options.width,
        "model.dtype": options.dtype,
        "loss.dice": options.dice,
        **{f"augment.{group}": 0.0 for group in ("intensity", "distortion", "crop")},
        "predict.threshold": 0.5,
    }
    names = ("sizes", "epochs", "batches", "swa")
    stages = zip(*([int(n) for n in getattr(options, name).split(",")] for name in names), strict=True)
    for stage, (size, epochs, batch, averaged) in zip(("stage1", "stage2"), stages, strict=True):
        values = {"size": size, "epochs": epochs, "batch_size": batch, "swa_epochs": averaged}
        changes |= {f"{stage}.{key}": value for key, value in values.items()} | {"predict.size": size}
    file = str(REPOSITORY / "configs/exp5.py")
    return load_config(file, [f"--config.{key}={value!r}" for key, value in changes.items()])


def line(size: int, record: dict) -> dict:
    """An epoch of a stage's log in the peer's words."""
    validation = {"dice": record["validation_dice"], "outlined": record.get("validation_outlined")}
    losses = {"bce": record["train_bce"], "dice_loss": record["train_dice_loss"]}
    return {"size": size, "epoch": record["epoch"], **losses, "validation": validation}


def score(predictor: Predictor, data: Path, rows: np.ndarray) -> dict[str, float]:
    """Mean Dice of all and of positive images at the network's size; empty on empty is 1."""
    settings = predictor.settings
    images, masks = dataset.open_arrays(data, settings.size)
    found, positive = [], []
    for start in range(0, len(rows), settings.batch_size):
        part = rows[start : start + settings.batch_size]
        filled = np.resize(images[part], (settings.batch_size, settings.size, settings.size))
        probability = jax.device_get(predictor.probabilities(predictor.variables, filled, True))[1][: len(part)]
        truth = np.unpackbits(masks[part], axis=-1)
        hit = probability >= 0.5
        total = hit.sum((1, 2)) + truth.sum((1, 2), dtype=int)
        found += np.where(total == 0, 1.0, 2 * (hit & (truth > 0)).sum((1, 2)) / np.maximum(total, 1)).tolist()
        positive += (truth.sum((1, 2), dtype=int) > 0).tolist()
    dice = np.array(found)
    return {"dice": float(dice.mean()), "dice_positive": float(dice[positive].mean())}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
