"""The papers' augmentation study: 20 epochs at 256, batch 64, cosine 1e-4 to 1e-5, one augmentation group per arm.

    jaxpneumo prepare --images siim/dicom-images-train --labels siim/train-rle.csv --output data/siim
    python -m jaxpneumo.main --config=configs/augmentation_study.py:A1

Give the arm after the colon: none, A1 (flip), A2 (contrast, gamma or brightness), A1+A2, A3 (elastic, grid or
optical distortion), A4 (random sized crop). The papers report four values for each score: plain, with flip TTA, with
removal threshold, and with both:

    none    validation IoU .7459 .7370 .7840 .7832   test Dice .7859 .7824 .8111 .8074
    A1      validation IoU .7490 .7593 .7842 .7850   test Dice .8000 .8067 .8127 .8188
    A2      validation IoU .7330 .7341 .7825 .7819   test Dice .7820 .7767 .8105 .8105
    A1+A2   validation IoU .7496 .7608 .7842 .7843   test Dice .8004 .8092 .8152 .8212
    A3      validation IoU .7457 .7379 .7846 .7833   test Dice .7985 .7889 .8172 .8095
    A4      validation IoU .7660 .7656 .7844 .7842   test Dice .8012 .8027 .8142 .8144

Empty predictions score Dice .7785 on the round-2 training labels.
"""

import ml_collections

ARMS = ("none", "A1", "A2", "A1+A2", "A3", "A4")


def get_config(arm: str = "") -> ml_collections.ConfigDict:
    """Returns all values of the run as literals. `arm` is one of ARMS; another value raises ValueError."""
    if arm not in ARMS:
        raise ValueError(f"name an arm of {', '.join(ARMS)}, for instance --config=configs/augmentation_study.py:A1+A2")
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = ""  # folder of another run; training starts from its final weights

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
    config.augment.flip = 0.5 if arm in ("A1", "A1+A2") else 0.0
    config.augment.intensity = 0.3 if arm in ("A2", "A1+A2") else 0.0
    config.augment.distortion = 0.3 if arm == "A3" else 0.0
    config.augment.crop = 0.25 if arm == "A4" else 0.0

    config.stage1 = ml_collections.ConfigDict()
    config.stage1.size = 256
    config.stage1.batch_size = 64
    config.stage1.epochs = 20
    config.stage1.schedule = "cosine"
    config.stage1.learning_rate = 1e-4
    config.stage1.final_learning_rate = 1e-5
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
