"""Trains a config's stages, one after the other, then evaluates and predicts. Not a medical device.

    python -m jaxpneumo.main --config=configs/quickstart.py
    python -m jaxpneumo.main --config=configs/exp5.py --config.data.directory=data/siim --workdir=runs/exp5
    python -m jaxpneumo.main --config=configs/exp5.py --config.stage1.epochs=2 --config.model.dtype=float32
    python -m jaxpneumo.main --config=configs/augmentation_study.py:A1

After a stop or a kill, the same command continues where it stopped. --config.a.b=value changes one value of the
config; the config files explain every value. --workdir is the folder of the run (default: runs/ and the config's name).

exit codes: 0 done; 1 failure; 2 wrong use or bad input; 3 done, but some files to predict were set aside; 75 stopped by
SIGTERM after saving

A process uses all devices it sees. Several processes, on one machine or on many, train together as tasks of one Slurm
step, or where JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set. All must see the same folders.
"""

import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxpneumo.data import dataset, finder
from jaxpneumo.process import command, places, run_report
from jaxpneumo.process.errors import DONE, PARTIAL, InputError
from jaxpneumo.process.runtime import prepare_process
from jaxpneumo.run.config import Config, check_paths, synthetic_folders, typed
from jaxpneumo.run.config_files import find_config_file, why_refused

# JAX and everything above it are imported inside `run`: Grain's worker processes import this module again.

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File with get_config(); configs/ has the papers' experiments."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run (default: runs/ and the config's name).")


def main(arguments: Sequence[str]) -> int:
    """Reads the flags and runs the config. Returns the exit code; raises InputError for wrong flags."""
    if command.asks_for_help(arguments):
        print(__doc__)
        return DONE
    config_file, arguments = _with_found_file(arguments)
    try:
        rest = FLAGS(["jaxpneumo", *arguments])[1:]
    except Exception as error:
        # The config file is the user's program and may raise anything; so may a wrong override.
        raise InputError(f"--config={config_file} cannot be used: {why_refused(error)}") from error
    if rest:
        raise InputError(f"{' '.join(rest)} is not understood: flags have the form --config.stage1.epochs=2.")
    workdir = _WORKDIR.value
    name = config_file.removesuffix(".py").replace(".py:", "_").rsplit("/", 1)[-1]
    return run(_CONFIG.value, places.path(workdir) if workdir else Path(f"runs/{name}"))


def _with_found_file(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """What --config names, with = or a blank, and the arguments with the file that was found for it.

    Raises InputError where it names nothing, or no file.
    """
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            after = place + (1 if equals else 2)
            value = value if equals else "".join(arguments[place + 1 : after])
            if value:
                return value, [*arguments[:place], f"--config={find_config_file(value)}", *arguments[after:]]
    raise InputError("no config: give one as --config=configs/exp5.py; --help has examples.")


def run(config_file: ConfigDict, workdir: Path) -> int:
    """All stages, evaluation and prediction of one config in one folder.

    Several processes, where the environment names them, train together; the first evaluates and predicts.

    Args:
      config_file: as the files in configs/ return it.
      workdir: folder of the run; made, or gone on with.

    Returns:
      The exit code: 0, or 3 when files to predict were set aside.

    Raises:
      InputError: the config, the data or the folder cannot be used.
      TrainingError: training failed.
    """
    # Before anything starts that takes time: several processes would wait for each other.
    config = typed(config_file.to_dict())
    check_paths(config)
    places.check_folder(workdir, "--workdir")
    _check_input(config, workdir)
    if config.data.synthetic is None:
        dataset.read_info(config.data.directory)

    from jaxpneumo.process.stop import end_on_sigterm
    from jaxpneumo.run.sharding import is_first, start_processes

    start_processes()
    end_on_sigterm()  # after jax, which has a handler of its own for several processes
    if not is_first():
        logging.getLogger("jaxpneumo").setLevel(logging.WARNING)

    from jaxpneumo.evaluate.evaluate import evaluate_run, table
    from jaxpneumo.predict.infer import load_predictor
    from jaxpneumo.predict.predict import predict_folder
    from jaxpneumo.report.report import write_report
    from jaxpneumo.run import clean
    from jaxpneumo.train.stages import train

    run_report.place(workdir)
    train(config, workdir)
    if not is_first():
        return DONE  # and waits, at its end, for the first, which evaluates and predicts alone
    predictor = load_predictor(workdir)
    print(table(evaluate_run(predictor)))

    complete = True
    if config.predict.input:
        report = predict_folder(
            predictor, Path(config.predict.input), workdir / "predictions", config.predict.overlays, anew=True
        )
        complete = report.complete
        print(
            f"Predicted {report.images} radiographs of {config.predict.input}, set aside {report.set_aside} files. "
            f"{report.note}"
        )
    else:
        (workdir / "predictions").mkdir(exist_ok=True)
        shutil.copyfile(workdir / "evaluation/submission.csv", workdir / "predictions/submission.csv")
        print("Predicted the validation images; --config.predict.input=FOLDER predicts a folder of DICOM files.")
    write_report(workdir)
    print(f"Everything is in {workdir}; open {workdir / 'report.html'} in a browser.")
    print(clean.words(workdir))
    return DONE if complete else PARTIAL


def _check_input(config: Config, workdir: Path) -> None:
    """Raises InputError where there will be nothing to predict; synthetic data may have to be made first."""
    where, made = config.predict.input, config.data.synthetic and synthetic_folders(config)["test"]
    if not where or Path(where) == made:
        return
    if not Path(where).exists():
        drawn = f"; the synthetic ones will be in {made}" if made else ""
        raise InputError(
            f"--config.predict.input={where}: there is no such folder. Give a folder of radiographs{drawn}."
        )
    finder.find(Path(where), workdir / "predictions")


if __name__ == "__main__":
    if not command.asks_for_help(sys.argv[1:]):
        prepare_process()
    sys.exit(command.run("train", main, sys.argv[1:]))
