"""The challenge's second place (private Dice .8665) in its two steps: one run decides, the other outlines.

    jaxpneumo prepare --images siim/dicom-images-train --labels siim/train-rle.csv --output data/siim --sizes 512,1024
    python -m jaxpneumo.main --config=configs/x5.py:decide --workdir=runs/x5_decide
    python -m jaxpneumo.main --config=configs/x5.py:outline --workdir=runs/x5_outline
    jaxpneumo thresholds --workdir runs/x5_decide --name gate
    jaxpneumo predict --workdir runs/x5_outline --gate runs/x5_decide --gate-thresholds gate --input images --output out

`decide` is trained on all images at 512. Its outline decides whether there is a pneumothorax, by thresholds chosen on
its validation images. `outline` starts from its weights and is trained at 1024 on positive images alone: it finds
something in nearly every image, so its own scores over all images mean little.
The second place decided by classifiers; here a segmenter decides, by the area that reaches the upper threshold. Sizes,
epochs and rates are ours.
Empty predictions score Dice .7785 on the round-2 training labels.
"""

import ml_collections

STEPS = ("decide", "outline")


def get_config(step: str = "decide") -> ml_collections.ConfigDict:
    """Returns all values of the run as literals. `--config.a.b=value` changes one value."""
    if step not in STEPS:
        raise ValueError(f"there is no step {step!r}: choose of {', '.join(STEPS)}")
    decide = step == "decide"
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = ""

    config.data = ml_collections.ConfigDict()
    config.data.directory = "data/siim"  # written by `jaxpneumo prepare --sizes 512,1024`
    config.data.split = "patient"  # both steps must have the same
    config.data.validation_fraction = 0.2
    config.data.split_seed = 0
    config.data.fold = 0
    config.data.workers = 0
    config.data.resident = "auto"

    config.model = ml_collections.ConfigDict()
    config.model.encoder = "resnet34"
    config.model.dtype = "bfloat16"
    config.model.input_convolution = False
    config.model.momentum = ml_collections.config_dict.placeholder(float)
    config.model.pretrained = ""  # local file of ImageNet weights
    config.model.depths = (3, 4, 6, 3)
    config.model.width = 64
    config.model.remat = False

    config.loss = ml_collections.ConfigDict()
    config.loss.dice = "batch" if decide else "positive"

    config.augment = ml_collections.ConfigDict()
    config.augment.engine = "device"
    config.augment.flip = 0.5
    config.augment.intensity = 0.3
    config.augment.distortion = 0.3
    config.augment.crop = 0.25

    config.stage1 = ml_collections.ConfigDict()
    config.stage1.size = 512 if decide else 1024
    config.stage1.batch_size = 16 if decide else 8
    config.stage1.epochs = 30 if decide else 15
    config.stage1.schedule = "cosine"
    config.stage1.learning_rate = 1e-3 if decide else 1e-4
    config.stage1.final_learning_rate = 0.0
    config.stage1.swa_epochs = 3
    config.stage1.warmup_epochs = 1
    config.stage1.frozen_encoder_epochs = 0
    config.stage1.positive_share = 0.5 if decide else 1.0  # of positive images in the first epoch
    config.stage1.final_positive_share = 0.22 if decide else 1.0  # and in the last; the challenge has .22
    config.stage1.start_from = "" if decide else "runs/x5_decide"  # folder of the run whose result it starts from

    config.predict = ml_collections.ConfigDict()
    config.predict.size = 512 if decide else 1024
    config.predict.batch_size = 16 if decide else 8
    config.predict.tta = True
    config.predict.threshold = 0.5
    config.predict.removal_threshold = 0
    config.predict.removal_rule = "image"
    config.predict.input = ""
    config.predict.overlays = 100
    return config
