"""Trains the stages of a config one after another, then evaluates and predicts. Not a medical device.

    python -m jaxpneumo.main --config=configs/quickstart.py
    python -m jaxpneumo.main --config=configs/exp5.py --config.data.directory=data/siim --workdir=runs/exp5
    python -m jaxpneumo.main --config=configs/exp5.py --config.stage1.epochs=20 --config.model.dtype=float32
    python -m jaxpneumo.main --config=configs/augmentation_study.py:A1

After a stop or a kill, the same command continues where it stopped. --config.a.b=value changes one value of the
config; the config files explain every value. --workdir is the folder of the run (default: runs/ and the config's name).

exit codes: 0 done; 1 failure; 2 wrong use or bad input; 3 done, but some files to predict were set aside; 75 stopped by
SIGTERM after saving

A process uses all devices that it sees. Several processes, on one machine or on several, train together if they are
tasks of one Slurm step, or if JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set. All processes must
see the same folders.
"""

import logging
import re
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
from jaxpneumo.run.config_files import check_flags, check_option, find_config_file, read_config_file, why_refused

# `run` imports JAX and all modules that need it, because Grain's worker processes import this module too.


def main(arguments: Sequence[str]) -> int:
    """Reads the flags and runs the config. Returns the exit code; raises InputError for wrong flags."""
    if command.asks_for_help(arguments):
        print(__doc__)
        return DONE
    config_file, arguments = _without_config(arguments)
    found = find_config_file(config_file)
    own = flags.FlagValues()
    workdir = flags.DEFINE_string("workdir", "", "Folder of the run.", flag_values=own)
    try:
        values = read_config_file(found)
    except Exception as error:  # the config file is the user's program and can raise any exception
        raise InputError(f"--config={config_file} cannot be used: {why_refused(error)}") from error
    check_flags(arguments, values, config_file)
    try:
        config = config_flags.DEFINE_config_dict("config", values, flag_values=own, sys_argv=list(arguments))
        rest = own(["jaxpneumo", *arguments])[1:]
    except Exception as error:  # a wrong value can raise any exception, too
        raise InputError(why_refused(error)) from error
    if rest:
        raise InputError(f"{' '.join(rest)} is not understood: flags have the form --config.stage1.epochs=20.")
    flags.FLAGS(["jaxpneumo"])  # Grain reads absl's own
    name = config_file.removesuffix(".py").replace(".py:", "_").rsplit("/", 1)[-1]
    return run(config.value, places.path(workdir.value) if workdir.value else Path(f"runs/{name}"))


def _without_config(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The value of --config=FILE or --config FILE, and the other arguments. Raises InputError where it is missing."""
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            after = place + (1 if equals else 2)
            value = value if equals else "".join(arguments[place + 1 : after])
            if value:
                return value, [*arguments[:place], *arguments[after:]]
    for argument in arguments:
        check_option(argument.split(".")[0])
        if not argument.startswith("-") and re.search(r"\.py(:|$)", argument):
            raise InputError(f"no config: write --config={argument}.")
    raise InputError("no config: give one as --config=configs/exp5.py; --help has examples.")


def run(config_file: ConfigDict, workdir: Path) -> int:
    """Runs all stages, the evaluation and the prediction of a config in one folder.

    If the environment describes several processes, they train together. Only the first evaluates and predicts.

    Args:
      config_file: the config, as returned by the files in configs/.
      workdir: folder of the run. It is created, or an earlier run in it continues.

    Returns:
      The exit code: 0, or 3 if files to predict were set aside.

    Raises:
      InputError: the config, the data or the folder cannot be used.
      TrainingError: training failed.
    """
    # Checks everything first. Later, an error in one process would leave the other processes waiting.
    config = typed(config_file.to_dict())
    check_paths(config)
    places.check_folder(workdir, "--workdir")
    _check_input(config, workdir)
    _check_sizes(config)

    from jaxpneumo.process.stop import end_on_sigterm
    from jaxpneumo.run.sharding import is_first, start_processes

    start_processes()
    end_on_sigterm()  # after JAX, which installs its own handler for several processes
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
        return DONE  # at exit this process waits for the first one, which evaluates and predicts alone
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


def _check_sizes(config: Config) -> None:
    """Raises InputError unless the data set has all sizes of the config. Synthetic data need not exist yet."""
    directory = Path(config.data.directory)
    if config.data.synthetic and not directory.is_dir():
        return
    sizes = sorted({config.predict.size, *(stage.size for stage in config.stages)})
    if config.data.synthetic:
        way_out = "Name a new folder as --config.data.directory: this command makes the data there."
    else:
        listed = ",".join(map(str, sizes))
        way_out = f"Prepare into a new folder with --sizes {listed}, and give it as --config.data.directory."
    dataset.check_sizes(directory, sizes, way_out)


def _check_input(config: Config, workdir: Path) -> None:
    """Raises InputError if there are no files to predict. Synthetic data need not exist yet."""
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
