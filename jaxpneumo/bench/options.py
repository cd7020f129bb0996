"""The options of all benchmarks, apart from what runs them: `jaxpneumo bench WHAT --help` loads no JAX."""

from collections.abc import Callable

from jaxpneumo.predict.onnx_session import RUNTIMES
from jaxpneumo.process import places
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.ranges import (
    BATCH,
    CALLS,
    COUNT,
    DEPTHS,
    PROBABILITY,
    REPEATS,
    SIDE,
    WIDTH,
    WORKERS,
    Several,
    multiple_of,
    number,
    whole,
)
from jaxpneumo.run.config_values import VALUES

CHALLENGE_IMAGES = 12047
ABOUT = "(default: about 0.3 s)"


def _parser(name: str, description: str, example: str, repeats: str = "results are medians") -> Parser:
    """A parser with the options of all benchmarks: --repeats, with what they are for, and --output."""
    parser = Parser(
        prog=f"jaxpneumo bench {name}",
        description=description,
        epilog=f"example: jaxpneumo bench {name} {example}",
    )
    add = parser.add_argument
    add("--repeats", type=REPEATS, default=5, metavar="N", help=f"{repeats} (default: %(default)s)")
    add("--output", type=places.file_to_write, metavar="JSON", help="also write the results as JSON")
    return parser


def add_network(parser: Parser, size: int | None = 256, batch: int | None = 4, types: bool = True) -> None:
    """Adds options for the network, its type with `types`, the image size unless `size` is None, the batch likewise."""
    add = parser.add_argument
    encoders = VALUES["model.encoder"].words
    add("--encoder", choices=encoders, default="resnet34_preact", help="encoder (default: %(default)s)")
    if types:
        kinds = ("float32", "bfloat16")
        add("--dtype", choices=kinds, default="bfloat16", help="computation type (default: %(default)s)")
    add(
        "--depths",
        type=DEPTHS,
        default="3,4,6,3",
        metavar="N,N,N,N",
        help="number of units in each stage of the encoder (default: %(default)s)",
    )
    add("--width", type=WIDTH, default=64, metavar="N", help="channels of the first stage (default: %(default)s)")
    if size:
        add("--size", type=SIDE, default=size, metavar="PIXELS", help="height and width (default: %(default)s)")
    if batch:
        add("--batch", type=BATCH, default=batch, metavar="N", help="images per batch (default: %(default)s)")


def _add_scratch(parser: Parser, what: str) -> None:
    parser.add_argument(
        "--scratch",
        type=places.scratch_folder,
        metavar="DIR",
        help=f"temporary folder for {what} (default: the system's)",
    )


def step() -> Parser:
    """Of `bench_step`."""
    parser = _parser(
        "step",
        "the compiled training step alone, with its batch already on the device.",
        "--size 512 --batch 16 --dtype bfloat16",
    )
    add_network(parser)
    add = parser.add_argument
    add("--calls", type=CALLS, metavar="N", help=f"steps per repeat {ABOUT}")
    add(
        "--augment",
        type=Several(PROBABILITY, 4),
        metavar="P,P,P,P",
        help="probabilities of the augmentations A1..A4 in the step, on the device",
    )
    add("--no-roofline", action="store_true", help="do not measure the device's peak rates")
    return parser


def predict() -> Parser:
    """Of `bench_predict`."""
    parser = _parser(
        "predict",
        "the compiled prediction, with flip test-time augmentation, from weights in memory.",
        "--size 512 --batch 32 --dtype bfloat16",
    )
    add_network(parser, size=512, batch=1)
    add = parser.add_argument
    add("--no-tta", action="store_true", help="predict without the mirror image")
    add("--calls", type=CALLS, metavar="N", help=f"predictions per repeat {ABOUT}")
    add("--no-roofline", action="store_true", help="do not measure the device's peak rates")
    return parser


def export() -> Parser:
    """Of `bench_export`."""
    parser = _parser(
        "export",
        "the prediction of an exported ONNX model on the CPU, in float32, from random weights.",
        "--runtime openvino --size 512 --batch 1",
    )
    add_network(parser, size=512, batch=1, types=False)
    add = parser.add_argument
    add("--runtime", choices=RUNTIMES, default=RUNTIMES[0], help="what computes it (default: %(default)s)")
    add("--no-tta", action="store_true", help="predict without the mirror image")
    add("--calls", type=CALLS, metavar="N", help=f"predictions per repeat {ABOUT}")
    return parser


def profile() -> Parser:
    """Of `bench_profile`."""
    parser = _parser(
        "profile",
        "where the device's time goes in a training step or a prediction, by module and kind of kernel.",
        "--what predict --size 512 --batch 1",
        repeats="calls that are recorded",
    )
    add_network(parser)
    add = parser.add_argument
    add("--what", choices=("step", "predict"), default="step", help="what to profile (default: %(default)s)")
    add("--rows", type=COUNT, default=40, metavar="N", help="rows to print (default: %(default)s); JSON has all")
    return parser


def input_path() -> Parser:
    """Of `bench_input`."""
    parser = _parser(
        "input",
        "the input path alone, from a prepared data set to batches on the device.",
        "--size 256 --batch 64",
    )
    add = parser.add_argument
    size = {"type": multiple_of(8, 4096), "default": 256, "metavar": "PIXELS"}
    add("--size", help="height and width (default: %(default)s)", **size)
    add("--batch", type=BATCH, default=64, metavar="N", help="images per batch (default: %(default)s)")
    add("--images", type=COUNT, metavar="N", help="images in the data set (default: 512 or two batches)")
    add("--workers", type=WORKERS, default=0, metavar="N", help="reading processes (default: 0, threads)")
    add("--calls", type=CALLS, metavar="N", help=f"batches per repeat {ABOUT}")
    _add_scratch(parser, "the data set")
    return parser


def augment() -> Parser:
    """Of `bench_augment`."""
    parser = _parser(
        "augment",
        "the augmentation engines, alone and as a share of the training step.",
        "--size 256 --batch 64 --dtype bfloat16",
    )
    add_network(parser)
    parser.add_argument("--calls", type=CALLS, metavar="N", help=f"calls per repeat {ABOUT}")
    return parser


def plan() -> Parser:
    """Of `bench_plan`."""
    parser = _parser(
        "plan",
        "the largest batch whose training step fits into the device's memory.",
        "--sizes 256,512 --memory 80",
    )
    add_network(parser, size=None, batch=None)
    add = parser.add_argument
    add("--sizes", type=Several(SIDE), default="256,512", metavar="PIXELS", help="image sizes (default: %(default)s)")
    add(
        "--memory",
        type=number(0, 1e6, above_low=True),
        metavar="GIB",
        help="memory of one device (default: as reported by the device)",
    )
    return parser


def prepare() -> Parser:
    """Of `bench_prepare`."""
    parser = _parser(
        "prepare",
        "Compare the preparation of DICOM files with decoding them alone.",
        "--images siim/dicom-images-train --labels siim/train-rle.csv",
    )
    add = parser.add_argument
    add("--images", type=places.path, required=True, metavar="DIR", help="folder with JPEG Baseline DICOM files")
    add("--labels", dest="labels_path", type=places.path, metavar="CSV", help="labels (default: all negative)")
    add("--count", type=COUNT, default=1000, metavar="N", help="images, repeated under new ids (default: 1000)")
    add("--workers", type=whole(2, 1024), metavar="N", help="number of processes (default: one per core, at least 2)")
    _add_scratch(parser, "files and arrays")
    return parser


def start() -> Parser:
    """Of `bench_start`."""
    parser = _parser(
        "start", "from the start of a process to its first finished training step.", "--size 256 --batch 4"
    )
    add_network(parser)
    return parser


def run() -> Parser:
    """Of `bench_run`. What it does not know are changes of the config."""
    from jaxpneumo.synthetic import radiographs  # not at the top: `bench start` measures what this module imports

    parser = _parser(
        "run",
        "a whole training run of a config on synthetic data, with a few epochs per stage.",
        "--config=configs/exp5.py --images 12047 --epochs 3",
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="config to run; --config.a.b=value changes one value")
    add("--images", type=COUNT, default=CHALLENGE_IMAGES, metavar="N", help="radiographs (default: %(default)s)")
    epochs = {"type": whole(2, 10_000), "default": 3, "metavar": "N"}
    add("--epochs", help="epochs per stage; the first does not count (default: 3)", **epochs)
    size = {"type": radiographs.SIZE, "default": 1024, "metavar": "PIXELS"}
    add("--radiograph-size", help="height and width of the drawn radiographs (default: %(default)s)", **size)
    _add_scratch(parser, "data and run")
    return parser


PARSERS: dict[str, Callable[[], Parser]] = {
    "step": step,
    "predict": predict,
    "export": export,
    "profile": profile,
    "input": input_path,
    "augment": augment,
    "prepare": prepare,
    "start": start,
    "plan": plan,
    "run": run,
}
