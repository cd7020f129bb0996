"""What is measured: a CPU and a GPU profile of the same cases.

Our side of a case is a command of `jaxpneumo bench`, the peer's one of its own program. That program predicts single
views, so that one of our predictions with flip test-time augmentation is two of its images: it gets batches twice as
large, and its rate is halved.
"""

from dataclasses import dataclass, field

# The peer's own encoder comes first: only then are both sides the same network.
ENCODERS = ("resnet34", "resnet34_preact")
# A way of the peer's that compiles for many minutes; `--max-autotune` asks for it.
MAX_AUTOTUNE = "max-autotune"
TRAIN, PREDICT = "train_img_per_s", "predict_img_per_s"


@dataclass(frozen=True)
class Case:
    """One piece of work, measured for us and for the peer in turns.

    Attributes:
      name: unique; its first word is the group that `--only` picks by.
      ours: arguments of `jaxpneumo bench` by variant; "{radiographs}" stands for a folder of synthetic DICOM files.
      peers: arguments of the peer's program by variant; none where it has nothing alike.
      peer_rate: which figure of the peer's is compared.
      peer_images: of the peer's for one of ours.
      turns: how often both are run, in opposite orders.
    """

    name: str
    ours: dict[str, tuple[str, ...]]
    peers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    peer_rate: str = TRAIN
    peer_images: int = 1
    turns: int = 1

    @property
    def group(self) -> str:
        """The part of `--only` that picks this case."""
        return self.name.split()[0]


def cpu() -> list[Case]:
    """Small batches, for machines with few cores; about ten minutes on two."""
    types, ways = ("float32", "bfloat16"), {"eager float32": ("float32", 0)}
    few = {"encoders": ENCODERS[:1], "repeats": 3, "turns": 2}
    # A narrow network: on a CPU the checkpoints of the whole one are written by the cores that train.
    small = ("--images=480", "--epochs=3", "--radiograph-size=256", "--config.model.width=16")
    return [
        _beside_peer("step", 256, 4, types, ways, "cpu", **few),
        _beside_peer("step", 512, 1, types, ways, "cpu", **few),
        _beside_peer("predict", 512, 1, types, ways, "cpu", **few),
        _beside_peer("predict", 512, 4, types, ways, "cpu", **few),
        _exported(512, 1, repeats=3, turns=2),
        *_inputs(256, 4, "float32"),
        *_inputs(512, 1, "float32"),
        _prepare(count=200),
        Case("start 256", {"": ("start", "--size=256", "--batch=4", "--dtype=float32", "--repeats=1")}),
        Case("run quickstart", {"": ("run", "--config=configs/quickstart.py", *small)}),
    ]


def gpu() -> list[Case]:
    """The papers' batches in bfloat16, beside the peer in all its ways of compiling."""
    types = ("bfloat16",)
    ways = {"eager": ("bfloat16", 0), "compile": ("bfloat16", 1), MAX_AUTOTUNE: ("bfloat16", 2)}
    return [
        _beside_peer("step", 256, 64, types, ways, "cuda"),
        _beside_peer("step", 512, 16, types, ways, "cuda"),
        _beside_peer("predict", 512, 1, types, ways, "cuda"),
        _beside_peer("predict", 512, 32, types, ways, "cuda"),
        *_inputs(256, 64, "bfloat16"),
        *_inputs(512, 16, "bfloat16"),
        _prepare(count=4000),
        Case("plan", {"": ("plan", "--sizes=256,512", "--dtype=bfloat16")}),
        Case("start 256", {"": ("start", "--size=256", "--batch=64", "--dtype=bfloat16", "--repeats=3")}),
        Case("run exp5", {"": ("run", "--config=configs/exp5.py", "--epochs=4")}),
    ]


PROFILES = {"cpu": cpu, "gpu": gpu}


def _beside_peer(
    what: str,
    size: int,
    batch: int,
    types: tuple[str, ...],
    ways: dict[str, tuple[str, int]],
    device: str,
    encoders: tuple[str, ...] = ENCODERS,
    repeats: int = 5,
    turns: int = 1,
) -> Case:
    """Training step or prediction in our types and encoders, beside the peer's ways (type, how it compiles)."""
    views = 2 if what == "predict" else 1
    common = (f"--size={size}", f"--repeats={repeats}")
    theirs = (f"--device={device}", *common, f"--batch={batch * views}")
    return Case(
        f"{what} {size} batch {batch}",
        {
            f"{encoder} {dtype}": (what, *common, f"--batch={batch}", f"--dtype={dtype}", f"--encoder={encoder}")
            for encoder in encoders
            for dtype in types
        },
        {way: (*theirs, f"--dtype={dtype}", f"--compile={how}") for way, (dtype, how) in ways.items()},
        PREDICT if what == "predict" else TRAIN,
        views,
        turns,
    )


def _exported(size: int, batch: int, repeats: int, turns: int) -> Case:
    """Prediction in float32 by JAX and by the runtimes of an exported model."""
    network = (f"--size={size}", f"--batch={batch}", f"--repeats={repeats}", f"--encoder={ENCODERS[0]}")
    return Case(
        f"export {size} batch {batch}",
        {
            "ours": ("predict", *network, "--dtype=float32", "--no-roofline"),
            "ONNX Runtime": ("export", *network, "--runtime=onnxruntime"),
            "OpenVINO": ("export", *network, "--runtime=openvino"),
        },
        turns=turns,
    )


def _inputs(size: int, batch: int, dtype: str) -> list[Case]:
    shape = (f"--size={size}", f"--batch={batch}")
    return [
        Case(f"input {size} batch {batch}", {"": ("input", *shape)}),
        Case(f"augment {size} batch {batch}", {"": ("augment", *shape, f"--dtype={dtype}")}),
    ]


def _prepare(count: int) -> Case:
    labels = "--labels={radiographs}/labels.csv"
    return Case("prepare", {"": ("prepare", "--images={radiographs}/dicom", labels, f"--count={count}", "--quiet")})
