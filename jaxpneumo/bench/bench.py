"""`jaxpneumo bench WHAT`: the list of benchmarks. It runs the module of the chosen benchmark."""

import argparse
import sys
from importlib import import_module

from jaxpneumo.bench.options import PARSERS
from jaxpneumo.process import run_report
from jaxpneumo.process.errors import BAD_INPUT, DONE
from jaxpneumo.process.ranges import did_you_mean

BENCHMARKS = {
    "step": "the compiled training step alone, beside the device's roofline",
    "predict": "prediction with flip TTA, on the device and from host to host",
    "export": "prediction by ONNX Runtime and OpenVINO, of an exported model",
    "profile": "where the device's time goes, by module and kind of kernel",
    "input": "batches a second of the input path alone",
    "augment": "the augmentation engines, alone and as a share of the step",
    "prepare": "DICOM files to arrays, beside pure decoding",
    "start": "process start to first finished step, without and with a filled cache",
    "plan": "the largest batch that fits into the device's memory",
    "run": "a whole training run: images a second, idle share, time for all of a config's epochs",
}


def main(argv: list[str]) -> int:
    """Runs `jaxpneumo bench`. Returns 0, or 2 for wrong use. Raises InputError for bad input."""
    name = argv[0] if argv else "--help"
    if name in BENCHMARKS:
        output = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        output.add_argument("--output")
        if path := output.parse_known_args(argv[1:])[0].output:
            run_report.place(path)
        # Help and refusals come first: the benchmarks load JAX.
        PARSERS[name]().parse_known_args(argv[1:])
        return import_module(f"jaxpneumo.bench.bench_{name}").main(argv[1:])
    print("usage: jaxpneumo bench WHAT ...   (jaxpneumo bench WHAT --help says more)\n")
    print("\n".join(f"  {each:12} {purpose}" for each, purpose in BENCHMARKS.items()))
    print("\nexample:\n  jaxpneumo bench step --size 512 --batch 16 --dtype bfloat16")
    if name in ("-h", "--help"):
        return DONE
    print(f"\njaxpneumo bench: there is no {name!r}.{did_you_mean(name, BENCHMARKS)}", file=sys.stderr)
    return BAD_INPUT
