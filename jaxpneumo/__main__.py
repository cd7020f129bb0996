"""The `jaxpneumo` command: a table of verbs."""

import sys
from importlib import import_module
from typing import NamedTuple

from jaxpneumo import __version__
from jaxpneumo.process.command import OPTIONS, asks_for_help, run, until_closed
from jaxpneumo.process.errors import BAD_INPUT, DONE
from jaxpneumo.process.ranges import did_you_mean
from jaxpneumo.process.runtime import prepare_process


class Verb(NamedTuple):
    """A verb of the command.

    Attributes:
      module: that has its `main`.
      purpose: in a few words.
      computes: whether it runs programs compiled by JAX. The others do not start anew, and do not import JAX, but for
        `clean`, which reads results before it removes anything.
    """

    module: str
    purpose: str
    computes: bool = False


VERBS = {
    "synthesize": Verb("jaxpneumo.synthetic.radiographs", "make synthetic radiographs as DICOM files with labels"),
    "prepare": Verb("jaxpneumo.data.prepare", "turn DICOM files and a label csv into arrays"),
    "verify": Verb("jaxpneumo.data.verify", "check that a prepared data set is undamaged"),
    "describe": Verb("jaxpneumo.evaluate.describe", "count patients, findings and duplicates of a data set"),
    "split": Verb("jaxpneumo.data.partition", "divide images into training and validation, report leaks"),
    "train": Verb("jaxpneumo.main", "train a config's stages, evaluate, predict", computes=True),
    "evaluate": Verb("jaxpneumo.evaluate.evaluate", "score a finished run at native size", computes=True),
    "compare": Verb("jaxpneumo.evaluate.compare", "compare two runs on the same images"),
    "thresholds": Verb("jaxpneumo.evaluate.thresholds", "choose probability and removal thresholds"),
    "tables": Verb("jaxpneumo.evaluate.tables", "print the papers' tables beside our runs"),
    "report": Verb("jaxpneumo.report.report", "write one HTML page about a run"),
    "page": Verb("jaxpneumo.serve.page", "serve a page that outlines the radiographs dropped on it", computes=True),
    "predict": Verb("jaxpneumo.predict.predict", "outline pneumothorax in a folder of radiographs", computes=True),
    "listen": Verb("jaxpneumo.serve.listen", "predict what an archive sends by DICOM, send results on", computes=True),
    "dicomweb": Verb("jaxpneumo.serve.pull", "predict studies of a DICOMweb service", computes=True),
    "merge": Verb("jaxpneumo.predict.merge", "join the parts of an archive into one submission"),
    "validate": Verb("jaxpneumo.predict.validate", "check a submission csv"),
    "export": Verb("jaxpneumo.export.export", "write a run for other programs, or to share", computes=True),
    "import": Verb("jaxpneumo.export.import_folder", "make a run of a shared folder", computes=True),
    "clean": Verb("jaxpneumo.run.clean", "remove the checkpoints of finished runs"),
    "bench": Verb("jaxpneumo.bench.bench", "measure the speed of this machine", computes=True),
}


def main() -> int:
    """Runs the verb that the command line names and returns its exit code."""
    return until_closed(_main)


def _main() -> int:
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name == "help" and arguments:
        name, arguments = arguments[0], ["--help"]
    if name == "--version":
        print(f"jaxpneumo {__version__}")
        return DONE
    if name in ("-h", "--help", "help"):
        print("usage: jaxpneumo VERB ...   (jaxpneumo help VERB says more, with examples)\n")
        print("\n".join(f"  {name:12} {verb.purpose}" for name, verb in VERBS.items()))
        print(f"\n{OPTIONS}")
        print("\nFinds and outlines pneumothorax in chest radiographs. Not a medical device.")
        return DONE
    if name not in VERBS:
        like = did_you_mean(name, VERBS)
        print(f"jaxpneumo: there is no verb {name!r}; choose one of {', '.join(VERBS)}.{like}", file=sys.stderr)
        return BAD_INPUT
    verb = VERBS[name]
    if verb.computes and not asks_for_help(arguments):
        prepare_process()
    return run(name, lambda rest: import_module(verb.module).main(rest), arguments)


if __name__ == "__main__":
    sys.exit(main())
