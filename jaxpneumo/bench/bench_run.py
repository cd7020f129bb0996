"""`jaxpneumo bench run`: a whole training run of a config on synthetic data, with a few epochs per stage.

The benchmark draws radiographs, writes them as DICOM files, repeats them under new ids and prepares them like real
ones. Then it runs the config's training command in a separate process. It compares the speed in the log of each epoch,
and the time from one record to the next, with the training step alone, which is measured right afterwards. What the
steps of the epochs alone would not take of that whole time counts as idle: ends of epochs with validation, log and
checkpoint as well as waits for input.
"""

import ast
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jaxpneumo.bench.bench_prepare import repeat_files
from jaxpneumo.bench.measure import finish
from jaxpneumo.bench.options import CHALLENGE_IMAGES, PARSERS
from jaxpneumo.data.prepare import prepare
from jaxpneumo.process.errors import DONE, InputError, TrainingError
from jaxpneumo.process.files import read_json
from jaxpneumo.run.config import Config, Stage, typed
from jaxpneumo.run.config_files import find_config_file, read_config_file, why_refused
from jaxpneumo.synthetic import radiographs

DISTINCT = 200  # number of drawn radiographs; the others are copies of them


def bench_run(
    config_file: str,
    overrides: list[str],
    count: int,
    epochs: int = 3,
    full: int = CHALLENGE_IMAGES,
    radiograph_size: int = 1024,
    scratch: Path | None = None,
) -> dict[str, Any]:
    """Runs a config for a few epochs and projects the time of all its epochs.

    Args:
      config_file: see `python -m jaxpneumo.main --config=`.
      overrides: changes of the config, such as "--config.a.b=value".
      count: number of radiographs for training and validation together.
      epochs: epochs per stage, 2 or more. The first epoch compiles and does not count.
      full: number of radiographs in the projected data set.
      radiograph_size: height and width of the drawn radiographs.
      scratch: folder for data and run, removed at the end; None uses the system's temporary folder.

    Returns:
      {"config", "images", "seconds" (of the whole process), "prepare_images_per_second", "stages": {stage: {"size",
      "batch", "epochs" (of the config), "images_per_second", "step_seconds" (medians of the epochs that count),
      "step_alone_seconds", "ratio" (step_seconds / step_alone_seconds), "steps" (per epoch), "idle_share" (of all time
      from the first counted epoch's start to the last one's end, what the steps alone would not take; validation is in
      it), "epoch_seconds" (from one log record to the next, with validation and checkpoint), "projected_seconds" (of
      all epochs of the config with `full` images)}}, "other_seconds" (start, compilation, averaged statistics,
      evaluation, report), "projected_seconds"}.

    Raises:
      InputError: the config cannot be read or used.
      TrainingError: the run failed.
    """
    config = load_config(config_file, overrides)
    stages = [stage.name for stage in config.stages]
    folder = Path(tempfile.mkdtemp(prefix="jaxpneumo-bench-", dir=scratch))
    try:
        sizes = tuple({*(stage.size for stage in config.stages), config.predict.size})
        rate = _make_data(folder, count, sizes, radiograph_size)
        changes = [f"--config.data.directory={folder / 'data'}", "--config.predict.input="]
        changes += [f"--config.{stage}.epochs={epochs}" for stage in stages]
        changes += [f"--config.{stage.name}.swa_epochs={min(1, stage.swa_epochs)}" for stage in config.stages]
        command = [sys.executable, "-m", "jaxpneumo.main", f"--config={config_file}", *overrides, *changes]
        seconds, moments = _watch([*command, f"--workdir={folder / 'run'}"], folder, stages)
        images = len(read_json(folder / "run/splits.json")["train"])
        found = {
            stage.name: _stage(config, stage, moments[stage.name], images, full / count, folder)
            for stage in config.stages
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    watched = sum(sum(stage.pop("all_epoch_seconds")) for stage in found.values())
    return {
        "config": config_file,
        "images": count,
        "seconds": seconds,
        "prepare_images_per_second": rate,
        "stages": found,
        "other_seconds": seconds - watched,
        "projected_seconds": sum(stage["projected_seconds"] for stage in found.values()),
    }


def load_config(file: str, overrides: list[str]) -> Config:
    """Reads a config file and applies "--config.a.b=value" changes. Raises InputError for wrong files or changes."""
    config = read_config_file(find_config_file(file))
    for override in overrides:
        name, equals, text = override.removeprefix("--config.").partition("=")
        if not override.startswith("--config.") or not equals:
            raise InputError(f"{override} is not understood: changes have the form --config.stage1.batch_size=8.")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        try:
            config.update_from_flattened_dict({name: value})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{override} cannot be used: {why_refused(error)}") from error
    return typed(config.to_dict())


def _make_data(folder: Path, count: int, sizes: tuple[int, ...], radiograph_size: int) -> float:
    """Makes the prepared data set folder/data. Returns the images per second of its preparation."""
    radiographs.write(folder / "drawn", min(count, DISTINCT), size=radiograph_size, positive_fraction=0.22)
    (folder / "files").mkdir()
    repeat_files(folder / "drawn", folder / "drawn/labels.csv", folder / "files", count, quiet=True)
    source = folder / "files"
    report = prepare(source / "dicom", source / "labels.csv", folder / "data", sizes, duplicate_pixels="keep")
    for used in ("drawn", "files"):
        shutil.rmtree(folder / used)
    # A config that draws its own data skips this if these folders exist.
    for part in ("train", "test"):
        (folder / f"data-{part}").mkdir()
    return report.images_per_second


def _watch(command: list[str], folder: Path, stages: list[str]) -> tuple[float, dict[str, list[tuple[float, dict]]]]:
    """Runs a training process. Returns its seconds, and each stage's log records with the times they appeared."""
    found: dict[str, list[tuple[float, dict]]] = {stage: [] for stage in stages}
    start = time.monotonic()
    with open(folder / "output.txt", "w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                time.sleep(0.01)
                for stage, records in found.items():
                    path = folder / "run" / stage / "log.jsonl"
                    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
                    whole = [line for line in lines if line.endswith("\n")]
                    records += [(time.monotonic(), json.loads(line)) for line in whole[len(records) :]]
        finally:
            process.kill()
            process.wait()
        seconds = time.monotonic() - start
        if process.returncode:
            output.seek(0)
            print("".join(output.readlines()[-20:]), file=sys.stderr)
            raise TrainingError(
                f"the run that was to be measured failed with exit code {process.returncode}; see above."
            )
    return seconds, found


def _stage(
    config: Config, stage: Stage, records: list[tuple[float, dict]], images: int, scale: float, folder: Path
) -> dict[str, Any]:
    """Computes the results of a stage from its log, and measures its training step alone."""
    batch, steps = stage.batch_size, images // stage.batch_size
    epochs = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(records)]
    rate = statistics.median(record["images_per_second"] for _, record in records[1:])
    epoch, step = statistics.median(epochs), batch / rate
    alone = _step_alone(config, stage, folder)
    return {
        "size": stage.size,
        "batch": batch,
        "epochs": stage.epochs,
        "images_per_second": rate,
        "step_seconds": step,
        "step_alone_seconds": alone,
        "ratio": step / alone,
        "idle_share": 1 - alone * steps * len(epochs) / sum(epochs),
        "steps": steps,
        "epoch_seconds": epoch,
        "all_epoch_seconds": epochs,
        "projected_seconds": stage.epochs * epoch * scale,
    }


def _step_alone(config: Config, stage: Stage, folder: Path) -> float:
    """Measures the seconds of the stage's training step alone, in a separate process."""
    model, output = config.model, folder / f"{stage.name}.json"
    command = [sys.executable, "-m", "jaxpneumo", "bench", "step", "--no-roofline", f"--output={output}"]
    command += [f"--encoder={model.encoder}", f"--dtype={model.dtype}", f"--width={model.width}"]
    command += [f"--depths={','.join(map(str, model.depths))}"]
    command += [f"--size={stage.size}", f"--batch={stage.batch_size}"]
    if config.augment.engine == "device":
        probabilities = (getattr(config.augment, group) for group in ("flip", "intensity", "distortion", "crop"))
        command.append(f"--augment={','.join(map(str, probabilities))}")
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise TrainingError(f"{' '.join(command[1:])} failed with exit code {done.returncode}; see above.")
    return read_json(output)["seconds"]


def main(argv: list[str]) -> int:
    """Runs `jaxpneumo bench run`."""
    options, overrides = PARSERS["run"]().parse_known_args(argv)
    result = bench_run(
        options.config,
        overrides,
        options.images,
        options.epochs,
        radiograph_size=options.radiograph_size,
        scratch=options.scratch,
    )
    lines = [f"{options.config} on {options.images} synthetic radiographs, {result['seconds']:.0f} s in all"]
    for stage, found in result["stages"].items():
        lines.append(
            f"  {stage} at {found['size']}, batch {found['batch']}: {found['images_per_second']:.1f} images/s, step "
            f"{found['step_seconds'] * 1e3:.1f} ms in the run, {found['step_alone_seconds'] * 1e3:.1f} ms alone (ratio "
            f"{found['ratio']:.3f}); an epoch {found['epoch_seconds']:.1f} s, {found['idle_share']:.1%} of it without "
            "training steps"
        )
    lines.append(
        f"  all epochs of the config on {CHALLENGE_IMAGES} images: {result['projected_seconds'] / 60:.1f} minutes; "
        f"start, compilation, evaluation and report took {result['other_seconds']:.0f} s here"
    )
    finish(result, lines, options.output)
    return DONE
