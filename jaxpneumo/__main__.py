"""The `jaxpneumo` command: a table of verbs."""

import sys
from importlib import import_module

from jaxpneumo import __version__
from jaxpneumo.process.command import OPTIONS, run, until_closed
from jaxpneumo.process.errors import BAD_INPUT, DONE
from jaxpneumo.process.ranges import did_you_mean
from jaxpneumo.process.runtime import prepare_process

VERBS = {
    "synthesize": ("jaxpneumo.synthetic.radiographs", "make synthetic radiographs as DICOM files with labels"),
    "prepare": ("jaxpneumo.data.prepare", "turn DICOM files and a label csv into arrays"),
    "verify": ("jaxpneumo.data.verify", "check that a prepared data set is undamaged"),
    "describe": ("jaxpneumo.evaluate.describe", "count patients, findings and duplicates of a data set"),
    "split": ("jaxpneumo.data.partition", "divide images into training and validation, report leaks"),
    "train": ("jaxpneumo.main", "train a config's stages, evaluate, predict"),
    "evaluate": ("jaxpneumo.evaluate.evaluate", "score a finished run at native size"),
    "compare": ("jaxpneumo.evaluate.compare", "compare two runs on the same images"),
    "thresholds": ("jaxpneumo.evaluate.thresholds", "choose probability and removal thresholds"),
    "tables": ("jaxpneumo.evaluate.tables", "print the papers' tables beside our runs"),
    "report": ("jaxpneumo.report.report", "write one HTML page about a run"),
    "predict": ("jaxpneumo.predict.predict", "outline pneumothorax in a folder of radiographs"),
    "merge": ("jaxpneumo.predict.merge", "join the parts of an archive into one submission"),
    "validate": ("jaxpneumo.predict.validate", "check a submission csv"),
    "clean": ("jaxpneumo.run.clean", "remove the checkpoints of finished runs"),
    "bench": ("jaxpneumo.bench.bench", "measure the speed of this machine"),
}


def main() -> int:
    """Runs the verb that the command line names and returns its exit code."""
    return until_closed(_main)


def _main() -> int:
    verb, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if verb == "help" and arguments:
        verb, arguments = arguments[0], ["--help"]
    if verb == "--version":
        print(f"jaxpneumo {__version__}")
        return DONE
    if verb in ("-h", "--help", "help"):
        print("usage: jaxpneumo VERB ...   (jaxpneumo help VERB says more, with examples)\n")
        print("\n".join(f"  {name:12} {purpose}" for name, (_, purpose) in VERBS.items()))
        print(f"\n{OPTIONS}")
        print("\nFinds and outlines pneumothorax in chest radiographs. Not a medical device.")
        return DONE
    if verb not in VERBS:
        like = did_you_mean(verb, VERBS)
        print(f"jaxpneumo: there is no verb {verb!r}; choose one of {', '.join(VERBS)}.{like}", file=sys.stderr)
        return BAD_INPUT
    prepare_process()
    return run(verb, lambda rest: import_module(VERBS[verb][0]).main(rest), arguments)


if __name__ == "__main__":
    sys.exit(main())
