"""`jaxpneumo clean`: removes what a finished run no longer needs, its checkpoints."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from jaxpneumo.process import places, run_report
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.run.config import read_config
from jaxpneumo.run.folders import final_directory

HELP = """\
Removes the checkpoints of finished runs. They take most of a run's disk space and are needed only to continue its
training. Prediction, evaluation, reports and further stages need the results (stage1/final, stage2/final), which stay.
So do configs, splits, logs, evaluations, predictions and thresholds. Before anything is removed, the results are read
and their checksums compared. A run that is not finished is refused. Not a medical device.

examples:
  jaxpneumo clean --workdir runs/exp5
  jaxpneumo clean --workdir runs/exp5 --dry-run
  jaxpneumo clean --workdir runs/exp5_fold0 --workdir runs/exp5_fold1
"""


def disk_used(folder: Path) -> int:
    """Bytes that a folder's files take on the disk."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if not path.is_dir())


def checkpoints(workdir: Path) -> list[Path]:
    """The folders of checkpoints in a run's folder. Raises InputError when it is none."""
    folders = [workdir / stage.name / "checkpoints" for stage in read_config(workdir).trained_stages()]
    return [folder for folder in folders if folder.is_dir()]


def words(workdir: Path) -> str:
    """What a run's folder takes on the disk, and how to make it less."""
    used = sum(map(disk_used, checkpoints(workdir)))
    way_out = (
        f", of which checkpoints {_amount(used)}; `jaxpneumo clean --workdir {workdir}` removes these and keeps what "
        "prediction and evaluation need"
    )
    return f"{workdir}: {_amount(disk_used(workdir))} on the disk{way_out if used else ''}."


def check(workdir: Path) -> None:
    """Sees to it that a run is finished and that its results can be read.

    Raises:
      InputError: the folder is no run, a stage of it has no result, or a result is damaged.
    """

    from jaxpneumo.run import checkpoint
    from jaxpneumo.run.network import make_model
    from jaxpneumo.run.sharding import make_local_mesh, replicated
    from jaxpneumo.run.state import variable_shapes

    config = read_config(workdir)
    for stage in config.trained_stages():
        if not final_directory(workdir / stage.name).is_dir():
            raise InputError(
                f"{workdir} is an unfinished run ({stage.name} has no result) and needs its checkpoints. Start its "
                "training command again: it goes on where it stopped."
            )
    template = variable_shapes(make_model(config.model))
    for stage in config.trained_stages():
        checkpoint.restore_final(workdir / stage.name, template, replicated(make_local_mesh()))
    for folder in checkpoints(workdir):
        if folder.is_symlink():
            raise InputError(f"{folder} is a link; other runs may use what it leads to. Remove it yourself.")


def main(arguments: Sequence[str]) -> int:
    """The verb: see HELP."""
    parser = Parser(prog="jaxpneumo clean", description=HELP)
    parser.add_argument(
        "--workdir", type=places.path, action="append", required=True, help="a finished run; may be repeated"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    options = parser.parse_args(arguments)

    # All before the first: a wrong name among them removes nothing.
    for workdir in options.workdir:
        check(workdir)
    if not options.dry_run:
        run_report.place(options.workdir[0] / "clean.json")
    for workdir in options.workdir:
        folders = checkpoints(workdir)
        freed = _amount(sum(map(disk_used, folders)))
        names = ", ".join(str(folder.relative_to(workdir)) for folder in folders)
        if not folders:
            print(f"{workdir}: nothing to remove; it takes {_amount(disk_used(workdir))} on the disk.")
        elif options.dry_run:
            print(f"{workdir}: {names} would be removed, {freed}.")
        else:
            for folder in folders:
                _remove(folder)
            print(f"{workdir}: {names} removed, {freed} freed; {_amount(disk_used(workdir))} are left.")
    return DONE


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be removed: {error.strerror}. Mend that, then start the same command again."
        ) from error


def _amount(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
