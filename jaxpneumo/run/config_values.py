"""What each value of a config may be: the names in full, with their ranges."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from jaxpneumo.process import ranges
from jaxpneumo.process.ranges import SWITCH, TEXT, Words, number, whole
from jaxpneumo.run.tta import TTA

# The sections of stages that a config may have, in the order in which they are trained.
STAGES = tuple(f"stage{number}" for number in range(1, 10))

LOSS_WEIGHTS = ("bce_weight", "dice_weight", "focal_weight", "lovasz_weight")

# Every value a config has beside its stages', and what it may be.
VALUES = {
    "seed": ranges.SEED,
    "init_from": TEXT,
    "checkpoint_seconds": number(0, 86400),
    "data.directory": TEXT,
    "data.split": TEXT,
    "data.validation_fraction": ranges.FRACTION,
    "data.split_seed": ranges.SEED,
    "data.fold": whole(0, 999),
    "data.workers": ranges.WORKERS,
    "data.resident": Words(("auto", "on", "off")),
    "model.encoder": Words(("resnet34_preact", "resnet34", "resnet50", "se_resnext50_32x4d", "efficientnet-b4")),
    "model.dtype": Words(("float32", "bfloat16")),
    "model.input_convolution": SWITCH,
    "model.momentum": number(0, 1, below_high=True, word="None"),
    "model.pretrained": TEXT,
    "model.depths": ranges.DEPTHS,
    "model.width": ranges.WIDTH,
    "model.remat": SWITCH,
    "model.classifier": SWITCH,
    "model.attention": Words(("none", "scse")),
    "model.hypercolumns": SWITCH,
    "loss.dice": Words(("image", "batch", "positive")),
    "loss.smooth": number(0, 10**6, above_low=True),
    **{f"loss.{name}": ranges.WEIGHT for name in LOSS_WEIGHTS},
    "loss.focal_gamma": number(0, 10),
    "loss.lovasz": Words(("hinge", "symmetric")),
    "loss.border": whole(0, 16),
    "loss.classification": ranges.WEIGHT,
    "augment.engine": Words(("device", "host")),
    "augment.flip": ranges.PROBABILITY,
    "augment.intensity": ranges.PROBABILITY,
    "augment.distortion": ranges.PROBABILITY,
    "augment.crop": ranges.PROBABILITY,
    "predict.size": ranges.SIDE,
    "predict.batch_size": ranges.BATCH,
    "predict.tta": TTA,
    "predict.threshold": ranges.PROBABILITY,
    "predict.removal_threshold": ranges.AREA,
    "predict.removal_rule": Words(("image", "component")),
    "predict.classifier_threshold": number(0, 1, word="None"),
    "predict.input": TEXT,
    "predict.overlays": whole(0, 10**9),
}
# Values that only some configs have.
OPTIONAL = {
    "data.synthetic.train": ranges.COUNT,
    "data.synthetic.test": ranges.COUNT,
    "data.synthetic.positive_fraction": ranges.PROBABILITY,
    "data.synthetic.area_scale": ranges.AREA_SCALE,
    "predict.top_threshold": replace(ranges.PROBABILITY, word="None"),
    "predict.top_area": replace(ranges.AREA, word="None"),
}
MOST_EPOCHS = 10_000
EPOCHS = whole(1, MOST_EPOCHS)
STAGE_VALUES = {
    "size": ranges.SIDE,
    "batch_size": ranges.BATCH,
    "epochs": EPOCHS,
    "schedule": Words(("cosine", "plateau")),
    "learning_rate": number(0, 1, above_low=True),
    "swa_epochs": whole(0, MOST_EPOCHS),
    "warmup_epochs": whole(0, MOST_EPOCHS),
    "frozen_encoder_epochs": whole(0, MOST_EPOCHS),
    "positive_share": number(0, 1, word="None"),
    "final_positive_share": number(0, 1, word="None"),
    "start_from": TEXT,
    **{name: replace(ranges.WEIGHT, word="None") for name in LOSS_WEIGHTS},
}
SCHEDULE_VALUES = {
    "cosine": {"final_learning_rate": number(0, 1, word="None")},
    "plateau": {
        "plateau_factor": number(0, 1, above_low=True, below_high=True, word="None"),
        "plateau_patience": replace(EPOCHS, word="None"),
    },
}

# All of these under their full names.
ALLOWED = VALUES | OPTIONAL
for _stage in STAGES:
    for _kinds in (STAGE_VALUES, *SCHEDULE_VALUES.values()):
        ALLOWED |= {f"{_stage}.{_name}": _kind for _name, _kind in _kinds.items()}


def wrong_values(values: dict[str, Any]) -> Iterator[str]:
    """What cannot be of the values there are, flat ("stage1.size"), in words; what is missing is passed over."""
    for key, kind in ALLOWED.items():
        # The word None stands for the value on the command line, where it has been turned into it.
        if key in values and (not kind.allows(values[key]) or values[key] == "None"):
            yield f"{key} must be {kind}, not {values[key]!r}"
    there = [stage for stage in STAGES if f"{stage}.size" in values]
    if there and there[0] != "stage1":
        yield f"stage1 is missing, and there is {there[0]}"
    # A run starts from one set of weights.
    first = there[1] if values.get("init_from") and len(there) > 1 else "stage1"
    starts = [name for name in ("init_from", f"{first}.start_from", "model.pretrained") if values.get(name)]
    if len(starts) > 1:
        yield f"{' and '.join(starts)} are both given, and only one of them can be where the training starts"
    for stage in there:
        weights = [values.get(f"{stage}.{name}") for name in LOSS_WEIGHTS]
        own = [
            values.get(f"loss.{name}") if weight is None else weight
            for name, weight in zip(LOSS_WEIGHTS, weights, strict=True)
        ]
        classifies = values.get("model.classifier") and values.get("loss.classification")
        if all(weight == 0 for weight in own) and not classifies:
            yield f"{stage}: all weights of its loss are 0, so it would learn nothing"
    for stage in STAGES:
        epochs = values.get(f"{stage}.epochs")
        for name in ("swa_epochs", "warmup_epochs", "frozen_encoder_epochs"):
            some = values.get(f"{stage}.{name}")
            if isinstance(some, int) and isinstance(epochs, int) and 1 <= epochs < some:
                yield f"{stage}.{name} must be at most {stage}.epochs, {epochs}, not {some}"
        if values.get(f"{stage}.final_positive_share") is not None and values.get(f"{stage}.positive_share") is None:
            yield f"{stage}.final_positive_share needs {stage}.positive_share"

    if (values.get("predict.top_threshold") is None) != (values.get("predict.top_area") is None):
        yield "predict.top_threshold and predict.top_area belong together: both must be given, or none"
    if values.get("predict.classifier_threshold") is not None and values.get("model.classifier") is False:
        yield "predict.classifier_threshold needs model.classifier"
