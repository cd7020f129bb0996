"""The options of `jaxpneumo prepare`."""

from jaxpneumo.process import places
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.ranges import FRACTION, NATIVE, SECONDS, SEED, SIDE, TEAM, Several

MAX_SECONDS = 60.0  # for one file; a stalled network drive may need some


def make_parser() -> Parser:
    """The options are the arguments of `prepare.prepare`."""
    parser = Parser(
        prog="jaxpneumo prepare",
        description="Turns radiographs (DICOM, PNG, JPEG) and their labels, a csv or masks as PNG files, into the "
        "arrays that everything else reads. Killed or stopped, it goes on where it was when the same command is given "
        "again; finished, it does nothing.",
        epilog="""examples:
  jaxpneumo prepare --images siim/dicom-images-train --labels siim/train-rle.csv --output data/siim
  jaxpneumo prepare --images siim/dicom-images-train --labels siim/train-rle.csv --output data/siim \\
      --patients patients.csv --split patient --sizes 256,512,1024
  jaxpneumo prepare --images images --masks masks --output data/own
  jaxpneumo prepare --images archive --labels labels.csv --output data/archive \\
      --native-size 1024 --require-frontal --on-quarantine error

exit codes: 0 done; 3 done, but something was set aside; 1 failed: something was set aside with --on-quarantine error,
or the disk is full; 2 wrong use or bad input, nothing was written""",
    )
    add = parser.add_argument
    add("--images", type=places.path, required=True, metavar="DIR", help="folder with the images, at any depth")
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument(
        "--labels",
        type=places.path,
        metavar="CSV",
        help="csv with ImageId,EncodedPixels; may end in .gz",
    )
    labels.add_argument(
        "--masks",
        type=places.path,
        metavar="DIR",
        help="instead: folder with one grey PNG an image, of the image's size and called by its id or as its file; 0 "
        "is background, all else pneumothorax",
    )
    add(
        "--missing-masks",
        choices=("set-aside", "empty"),
        default="set-aside",
        help="images without a file in --masks: set them aside (default), or take them for negative; then each mask "
        "has to be of one of the images",
    )
    add(
        "--output",
        type=places.folder_to_make,
        required=True,
        metavar="DIR",
        help="folder to make; until it is complete it is called OUTPUT.partial",
    )
    add(
        "--sizes",
        type=Several(SIDE),
        default=(256, 512),
        metavar="S,S",
        help="side lengths of the arrays in pixels (default: 256,512)",
    )
    add(
        "--patients",
        type=places.path,
        metavar="CSV",
        help="csv with ImageId,patient[,sex,age,view] (default: DICOM headers)",
    )
    add(
        "--patient-key",
        type=places.path,
        metavar="FILE",
        help="key for the hash of patient ids (default: random, not kept)",
    )
    add("--native-size", type=NATIVE, metavar="S", help="set aside images that are not S x S (default: any size)")
    add(
        "--require-frontal",
        action="store_true",
        help="set aside what its header does not call a frontal radiograph (Modality such as CR or DX, View Position "
        "PA or AP), or calls another body part than the chest",
    )
    add(
        "--duplicate-pixels",
        choices=("set-aside", "keep"),
        default="set-aside",
        help="images whose pixels have several ids: use the lowest id, none where masks differ (default), or keep all",
    )
    add(
        "--on-quarantine",
        choices=("warn", "error"),
        default="warn",
        help="if anything is set aside: warn and go on (default), or fail with OUTPUT.quarantine.csv and no data set",
    )
    add("--workers", type=TEAM, metavar="N", help="worker processes (default: one per core, at least 2; 1: none)")
    add(
        "--time-limit",
        type=SECONDS,
        default=MAX_SECONDS,
        metavar="S",
        help="seconds that reading a file may take (default: 60)",
    )
    add("--split", default="random", metavar="HOW", help="random (default), patient, or a splits.json")
    add("--validation-fraction", type=FRACTION, default=0.1, metavar="F", help="default: 0.1")
    add("--seed", type=SEED, default=0, metavar="N", help="of the split (default: 0)")
    return parser
