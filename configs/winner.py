"""The recipe of the challenge's first place, whose ensemble at 1024 reached a private Dice of .8679.

    jaxpneumo prepare --images siim/dicom-images-train --labels siim/train-rle.csv --output data/siim --sizes 512,1024
    launch/winner.sh data/siim siim/dicom-images-test                    folds, thresholds, ensemble, submission
    python -m jaxpneumo.main --config=configs/winner.py:resnet34         one network, one split

The network stands after the colon: resnet34, resnet50 or se_resnext50_32x4d.

As in the first place's settings:
- Positive images are drawn more often: .8 of all at first, .4 at the end.
- Cross-entropy, Dice of the whole batch and focal loss weigh 3 : 1 : 4.
- Training begins at 512 and goes on at 1024. There the encoder is frozen at first.
- Learning rates are 1e-4 and then 1e-5. Prediction uses flip TTA and the triplet rule (.75, 2000, .3).
- The decoder of se_resnext50_32x4d has SCSE attention.

Different: no gradient clipping, no weight decay, and the mean of the last epochs' weights
instead of the three best checkpoints. Our epoch has as many images as the training part; theirs has the positive ones
and as many others as the share needs. About three of theirs make one of ours.
Empty predictions score Dice .7785 on the round-2 training labels.
"""

import ml_collections

NETWORKS = ("resnet34", "resnet50", "se_resnext50_32x4d")


def get_config(network: str = "resnet34") -> ml_collections.ConfigDict:
    """Returns all values of the run as literals. `--config.a.b=value` changes one value."""
    if network not in NETWORKS:
        raise ValueError(f"there is no network {network!r}: choose of {', '.join(NETWORKS)}")
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = ""

    config.data = ml_collections.ConfigDict()
    config.data.directory = "data/siim"  # written by `jaxpneumo prepare --sizes 512,1024`
    config.data.split = "patient"  # or a file with folds (`jaxpneumo split --folds 5`)
    config.data.validation_fraction = 0.2
    config.data.split_seed = 0
    config.data.fold = 0
    config.data.workers = 0
    config.data.resident = "auto"

    config.model = ml_collections.ConfigDict()
    config.model.encoder = network
    config.model.dtype = "bfloat16"
    config.model.input_convolution = False
    config.model.momentum = ml_collections.config_dict.placeholder(float)
    # The first place starts from ImageNet weights, and its small learning rates need them: see docs/data.md
    # and WEIGHTS in launch/winner.sh.
    config.model.pretrained = ""
    config.model.depths = (3, 4, 6, 3)
    config.model.width = 64
    config.model.remat = False
    # Of the first place's networks, the one with this encoder has attention in its decoder.
    config.model.attention = "scse" if network == "se_resnext50_32x4d" else "none"

    config.loss = ml_collections.ConfigDict()
    config.loss.dice = "batch"
    config.loss.smooth = 1.0
    config.loss.bce_weight = 3.0
    config.loss.dice_weight = 1.0
    config.loss.focal_weight = 4.0
    config.loss.focal_gamma = 2.0
    config.loss.lovasz_weight = 0.0  # "hinge" or "symmetric" Lovász loss
    config.loss.lovasz = "symmetric"
    config.loss.border = 0

    config.augment = ml_collections.ConfigDict()  # the papers took their four groups from this recipe
    config.augment.engine = "device"
    config.augment.flip = 0.5
    config.augment.intensity = 0.3
    config.augment.distortion = 0.3
    config.augment.crop = 0.25

    def stage(size: int, batch: int, epochs: int, rate: float, share: float) -> ml_collections.ConfigDict:
        section = ml_collections.ConfigDict()
        section.size = size
        section.batch_size = batch
        section.epochs = epochs
        section.schedule = "cosine"
        section.learning_rate = rate
        section.final_learning_rate = rate / 100
        section.swa_epochs = 3
        section.warmup_epochs = 0
        section.frozen_encoder_epochs = 0
        section.positive_share = share  # of positive images in the first epoch
        section.final_positive_share = share  # and in the last
        section.start_from = ""
        return section

    config.stage1 = stage(size=512, batch=16, epochs=20, rate=1e-4, share=0.8)
    config.stage1.final_positive_share = 0.6
    config.stage1.warmup_epochs = 1
    config.stage2 = stage(size=1024, batch=8, epochs=8, rate=1e-4, share=0.8)
    config.stage2.frozen_encoder_epochs = 1
    config.stage3 = stage(size=1024, batch=8, epochs=8, rate=1e-5, share=0.6)
    config.stage4 = stage(size=1024, batch=8, epochs=8, rate=1e-5, share=0.4)

    config.predict = ml_collections.ConfigDict()
    config.predict.size = 1024
    config.predict.batch_size = 8
    config.predict.tta = True
    config.predict.threshold = 0.3  # of the mask, where there is one
    config.predict.top_threshold = 0.75  # there is one where top_area pixels reach this
    config.predict.top_area = 2000  # in pixels of a 1024x1024 image
    config.predict.removal_threshold = 0
    config.predict.removal_rule = "image"
    config.predict.input = ""
    config.predict.overlays = 100
    return config
