"""Makes a folder to share of a run, and a run of such a folder; `run.shared` reads and checks one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpneumo.export.model_card import write_card
from jaxpneumo.export.monai_metadata import monai_metadata
from jaxpneumo.model.weight_files import read_weights, to_safetensors
from jaxpneumo.process import run_report
from jaxpneumo.process.atomic import take_name, write_atomically, write_json
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.run.config import read_config, typed
from jaxpneumo.run.provenance import FILE as PROVENANCE
from jaxpneumo.run.provenance import read_starts

if TYPE_CHECKING:  # this module imports JAX
    from jaxpneumo.predict.infer import Predictor

METADATA, CARD, THRESHOLDS, EVALUATION = "metadata.json", "README.md", "thresholds", "evaluation"


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its name when the block ends without an error, and is removed otherwise.

    Raises:
      InputError: `output` is there and not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output {output} is there already. Choose another name, or remove it.")
    made = output.with_name(f"{output.name}.partial")
    shutil.rmtree(made, ignore_errors=True)  # of a start that was killed
    made.mkdir(parents=True)
    try:
        yield made
        take_name(made, output)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    run_report.wrote(output)


def write_shared(
    folder: Path,
    predictor: "Predictor",
    variables: dict[str, Any],
    description: dict[str, Any],
    summary: dict[str, Any] | None,
) -> None:
    """Writes all files of a shared folder into an empty one.

    Args:
      folder: the folder.
      predictor: of the run, with the settings to share.
      variables: {"params", "batch_stats"} of the run's last stage.
      description: the result of `description.describe`.
      summary: the run's evaluation; None without one.
    """
    from jaxpneumo.run import shared

    workdir = predictor.workdir
    config = typed(description["config"])
    write_json(folder / "config.json", config.to_dict())
    with write_atomically(folder / shared.WEIGHTS, "wb") as file:
        file.write(to_safetensors(shared.to_arrays(variables), {"model": predictor.model_id}))
    starts = [{**start, "synthetic": predictor.synthetic} for start in read_starts(workdir) or [{}]]
    write_json(folder / PROVENANCE, {"starts": starts})
    for path in sorted((workdir / THRESHOLDS).glob("*.json")):
        (folder / THRESHOLDS).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / THRESHOLDS / path.name)
    if summary:
        origin = summary.get("thresholds_from", "").replace(str(workdir), workdir.name)
        write_json(folder / EVALUATION / "summary.json", {**summary, "thresholds_from": origin})
        write_json(folder / EVALUATION / "calibration.json", read_json(workdir / EVALUATION / "calibration.json"))
    write_json(folder / METADATA, monai_metadata(description))
    with write_atomically(folder / CARD) as file:
        file.write(write_card(description, config, summary))
    shared.write_sums(folder)


def write_run(folder: Path, source: Path) -> None:
    """Writes the run of a shared folder into an empty one: config, the last stage's result, thresholds and scores.

    Only files with a checksum are taken.

    Raises:
      InputError: a file of the shared folder was changed or is damaged, or `source` is no shared folder.
    """
    from jaxpneumo.run import checkpoint, shared
    from jaxpneumo.run.network import make_model
    from jaxpneumo.run.state import variable_shapes

    if not shared.is_shared(source):
        raise InputError(f"{source} is no folder of `jaxpneumo export --format folder` (no {shared.SUMS}).")
    names = shared.check(source)
    config = read_config(source)
    weights = source / shared.WEIGHTS
    variables = shared.from_arrays(read_weights(weights), variable_shapes(make_model(config.model)), weights)
    checkpoint.save_final(folder / config.stages[-1].name, variables, {"imported_from": source.resolve().name})
    for name in names:
        if name == PROVENANCE or Path(name).parts[0] in (THRESHOLDS, EVALUATION):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    write_json(folder / "config.json", config.to_dict())
