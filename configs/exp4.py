"""Exp4 of the papers (2ST-UNet): 60 epochs at 256, batch 40, then 29 epochs at 512, batch 14.

    jaxpneumo prepare --images siim/dicom-images-train --labels siim/train-rle.csv --output data/siim
    python -m jaxpneumo.main --config=configs/exp4.py

The papers' results: validation IoU .7422 without and .7631 with flip TTA; test Dice of round 1 .8407.
Empty predictions score Dice .7785 on the round-2 training labels.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns all values of the run as literals. `--config.a.b=value` changes one value."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = ""  # folder of another run; stage 2 starts from its averaged weights, without stage 1

    config.data = ml_collections.ConfigDict()
    config.data.directory = "data/siim"  # written by `jaxpneumo prepare`
    config.data.split = "random"  # as in the papers; "patient" keeps a patient's images together; or a splits.json
    config.data.validation_fraction = 0.1
    config.data.split_seed = 0
    config.data.fold = 0  # validation fold, if the split is a file with folds (`jaxpneumo split --folds 5`)
    config.data.workers = 0  # number of reading processes; 0 reads in threads
    # "on": the device holds the whole training part (uint8 images, packed masks); "off": not; "auto": if it fits
    config.data.resident = "auto"

    config.model = ml_collections.ConfigDict()
    config.model.encoder = "resnet34_preact"  # the papers'; or resnet34, resnet50, se_resnext50_32x4d, efficientnet-b4
    config.model.dtype = "bfloat16"  # type of the computation; parameters are float32
    config.model.input_convolution = False  # False repeats the grey channel three times
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
    config.stage1.epochs = 60
    config.stage1.schedule = "cosine"
    config.stage1.learning_rate = 1e-3
    config.stage1.final_learning_rate = 0.0
    config.stage1.swa_epochs = 5  # averages the weights at the end of each of the last 5 epochs

    config.stage2 = ml_collections.ConfigDict()
    config.stage2.size = 512
    config.stage2.batch_size = 14
    config.stage2.epochs = 29
    config.stage2.schedule = "cosine"
    config.stage2.learning_rate = 1e-3
    config.stage2.final_learning_rate = 0.0
    config.stage2.swa_epochs = 3

    config.predict = ml_collections.ConfigDict()
    config.predict.size = 512
    config.predict.batch_size = 16
    config.predict.tta = True  # mean over the image and its mirror image
    config.predict.threshold = 0.75  # B-TH, probability threshold
    config.predict.removal_threshold = 2048  # R-TH, area in pixels of a 1024x1024 image
    config.predict.removal_rule = "image"  # "component" removes small components one by one
    config.predict.input = ""  # folder of radiographs to predict after training
    config.predict.overlays = 100  # largest number of pictures to write
    return config
