"""`jaxpneumo import`: makes a run of a shared folder again."""

from collections.abc import Sequence

from jaxpneumo.process import places, run_report
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.errors import DONE

HELP = """\
Makes a run of a folder that `jaxpneumo export --format folder` wrote. The folder's checksums are compared first. The
run predicts what the shared one predicts, bit for bit. It can be evaluated on data of yours, have thresholds of its
own, and be the start of a training (--config.init_from=RUN, --config.stage2.start_from=RUN). Its own training cannot
be continued, as the folder holds neither data nor optimizer. Not a medical device.

example:
  jaxpneumo import shared/exp5 --output runs/exp5
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see HELP."""
    parser = Parser(prog="jaxpneumo import", description=HELP)
    parser.add_argument("folder", type=places.path, help="the shared folder")
    parser.add_argument("--output", type=places.folder_to_make, required=True, help="folder of the run, to be made")
    options = parser.parse_args(arguments)

    run_report.place(options.output)
    from jaxpneumo.export.shared_folder import new_folder, write_run

    with new_folder(options.output) as folder:
        write_run(folder, options.folder)
    print(f"{options.output} is a run of its own now; `jaxpneumo predict --workdir {options.output}` predicts with it.")
    return DONE
