"""The whole path in a few minutes on two CPU cores: synthetic radiographs, both stages, scores, predictions.

    python -m jaxpneumo.main --config=configs/quickstart.py

It draws SYNTHETIC chest radiographs, writes them as DICOM files with a label csv, prepares them as `jaxpneumo
prepare` does for real ones, trains the papers' network at 96 and then 128 pixels, scores the held-out images
and outlines the findings in twelve further ones. The scores say that the program works, and nothing about
patients: expect a Dice of 0.7 or more on the held-out positives.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Every value of the run, as literals; `--config.a.b=value` changes one."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = ""  # folder of another run whose averaged weights to start stage 2 from, without stage 1

    config.data = ml_collections.ConfigDict()
    config.data.directory = "data/quickstart"  # made at the first start, beside its DICOM files
    config.data.split = "patient"  # keeps a patient's images together
    config.data.validation_fraction = 0.2
    config.data.split_seed = 0
    config.data.fold = 0  # which one validates, where the split is a file of folds (`jaxpneumo split --folds 5`)
    config.data.workers = 0  # reading processes; 0 reads in threads
    config.data.resident = "auto"  # "on", "off": the whole training part as uint8 images and packed masks on the device
    config.data.synthetic = ml_collections.ConfigDict()
    config.data.synthetic.train = 200  # radiographs for training and validation, with labels
    config.data.synthetic.test = 12  # radiographs to predict
    config.data.synthetic.positive_fraction = 0.7
    config.data.synthetic.area_scale = 3.0  # larger findings than real ones: there are only minutes to learn

    config.model = ml_collections.ConfigDict()
    config.model.encoder = "resnet34_preact"  # the papers' network; "resnet34" is torchvision's
    config.model.dtype = "float32"  # of the computation; parameters are float32
    config.model.input_convolution = False  # the grey channel is repeated to three
    config.model.momentum = 0.9  # of BatchNorm; the encoder's own 0.99 is for thousands of steps
    config.model.pretrained = ""  # local file of ImageNet weights (.h5 for resnet34_preact)
    config.model.depths = (3, 4, 6, 3)
    config.model.width = 64
    config.model.remat = False  # True computes activations again in the backward pass: less memory, more time

    config.loss = ml_collections.ConfigDict()
    config.loss.dice = "image"  # soft Dice per image; "batch": over all pixels of the batch

    config.augment = ml_collections.ConfigDict()  # probabilities of the groups A1..A4
    config.augment.engine = "device"  # "host": albumentations, in the threads that read the data
    config.augment.flip = 0.5
    config.augment.intensity = 0.3
    config.augment.distortion = 0.3
    config.augment.crop = 0.25

    config.stage1 = ml_collections.ConfigDict()
    config.stage1.size = 96
    config.stage1.batch_size = 8
    config.stage1.epochs = 7
    config.stage1.schedule = "cosine"
    config.stage1.learning_rate = 1e-3
    config.stage1.final_learning_rate = 0.0
    config.stage1.swa_epochs = 2  # the weights at the ends of the last 2 epochs are averaged

    config.stage2 = ml_collections.ConfigDict()
    config.stage2.size = 128
    config.stage2.batch_size = 8
    config.stage2.epochs = 2
    config.stage2.schedule = "cosine"
    config.stage2.learning_rate = 5e-4
    config.stage2.final_learning_rate = 0.0
    config.stage2.swa_epochs = 1

    config.predict = ml_collections.ConfigDict()
    config.predict.size = 128
    config.predict.batch_size = 8
    config.predict.tta = True  # mean over the image and its mirror image
    config.predict.threshold = 0.5  # B-TH
    config.predict.removal_threshold = 2048  # R-TH, pixels of a 1024x1024 image
    config.predict.removal_rule = "image"  # "component" removes small components one by one
    config.predict.input = "data/quickstart-test"  # folder of radiographs to predict after training
    config.predict.overlays = 100  # pictures to write at most
    return config
