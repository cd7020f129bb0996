"""Exp1 of the papers, the baseline: one stage of 50 epochs at 256, batch 40, one channel, no SWA.

    jaxpneumo prepare --images siim/dicom-images-train --labels siim/train-rle.csv --output data/siim
    python -m jaxpneumo.main --config=configs/exp1.py

The papers' results: validation IoU .7242 without and .7395 with flip TTA; test Dice of round 1 .8125.
Empty predictions score Dice .7785 on the round-2 training labels.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns all values of the run as literals. `--config.a.b=value` changes one value."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = ""  # folder of another run; training starts from its final weights

    config.data = ml_collections.ConfigDict()
    config.data.directory = "data/siim"  # written by `jaxpneumo prepare`
    config.data.split = "random"  # as in the papers; "patient" keeps a patient's images together; or a splits.json
    config.data.validation_fraction = 0.2
    config.data.split_seed = 0
    config.data.fold = 0  # validation fold, if the split is a file with folds (`jaxpneumo split --folds 5`)
    config.data.workers = 0  # number of reading processes; 0 reads in threads
    # "on": the device holds the whole training part (uint8 images, packed masks); "off": not; "auto": if it fits
    config.data.resident = "auto"

    config.model = ml_collections.ConfigDict()
    config.model.encoder = "resnet34_preact"  # the papers'; or resnet34, resnet50, se_resnext50_32x4d, efficientnet-b4
    config.model.dtype = "bfloat16"  # type of the computation; parameters are float32
    config.model.input_convolution = True  # a learnt convolution from the grey channel to three channels
    config.model.momentum = ml_collections.config_dict.placeholder(float)  # of BatchNorm; None: the encoder's own value
    config.model.pretrained = ""  # local file of ImageNet weights (.h5 for resnet34_preact)
    config.model.depths = (3, 4, 6, 3)
    config.model.width = 64
    config.model.remat = False  # True recomputes activations in the backward pass: less memory, more time

    config.loss = ml_collections.ConfigDict()
    config.loss.dice = "batch"  # soft Dice of all pixels of the batch; "image" and "positive" are each image's

    config.augment = ml_collections.ConfigDict()  # probabilities of the groups A1..A4
    config.augment.engine = "device"  # "host": albumentations, in the threads or processes that read the data
    config.augment.flip = 0.5
    config.augment.intensity = 0.3
    config.augment.distortion = 0.3
    config.augment.crop = 0.25

    config.stage1 = ml_collections.ConfigDict()
    config.stage1.size = 256
    config.stage1.batch_size = 40
    config.stage1.epochs = 50
    config.stage1.schedule = "plateau"  # lowers the learning rate when the validation loss stops improving
    config.stage1.plateau_factor = 0.2
    config.stage1.plateau_patience = 5
    config.stage1.learning_rate = 1e-3
    config.stage1.swa_epochs = 0  # no averaging; keeps the epoch with the best validation IoU

    config.predict = ml_collections.ConfigDict()
    config.predict.size = 256
    config.predict.batch_size = 32
    config.predict.tta = True  # mean over the image and its mirror image
    config.predict.threshold = 0.5  # B-TH, probability threshold
    config.predict.removal_threshold = 2048  # R-TH, area in pixels of a 1024x1024 image
    config.predict.removal_rule = "image"  # "component" removes small components one by one
    config.predict.input = ""  # folder of radiographs to predict after training
    config.predict.overlays = 100  # largest number of pictures to write
    return config
