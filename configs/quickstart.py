"""A complete run in a few minutes on two CPU cores: synthetic radiographs, both stages, scores, predictions.

    python -m jaxpneumo.main --config=configs/quickstart.py

This config draws SYNTHETIC chest radiographs, writes them as DICOM files with a label csv and prepares them, as
`jaxpneumo prepare` does with real radiographs. It trains the papers' network, with half the channels, at 96 and then
128 pixels, scores the held-out images, and outlines the findings in twelve more images. The scores only show that the
program works; they say nothing about patients. Expect a Dice of 0.7 or more on the held-out positives.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns all values of the run as literals. `--config.a.b=value` changes one value."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = ""  # folder of another run; stage 2 starts from its averaged weights, without stage 1

    config.data = ml_collections.ConfigDict()
    config.data.directory = "data/quickstart"  # created at the first start; the DICOM files are beside it
    config.data.split = "patient"  # keeps a patient's images together
    config.data.validation_fraction = 0.2
    config.data.split_seed = 0
    config.data.fold = 0  # validation fold, if the split is a file with folds (`jaxpneumo split --folds 5`)
    config.data.workers = 0  # number of reading processes; 0 reads in threads
    # "on": the device holds the whole training part (uint8 images, packed masks); "off": not; "auto": if it fits
    config.data.resident = "auto"
    config.data.synthetic = ml_collections.ConfigDict()
    config.data.synthetic.train = 200  # radiographs for training and validation, with labels
    config.data.synthetic.test = 12  # radiographs to predict
    config.data.synthetic.positive_fraction = 0.7
    config.data.synthetic.area_scale = 3.0  # findings larger than real ones, because training lasts only minutes

    config.model = ml_collections.ConfigDict()
    config.model.encoder = "resnet34_preact"  # the papers'; or resnet34, resnet50, se_resnext50_32x4d, efficientnet-b4
    config.model.dtype = "float32"  # type of the computation; parameters are float32
    config.model.input_convolution = False  # False repeats the grey channel three times
    config.model.momentum = 0.9  # of BatchNorm; the encoder's own value, 0.99, needs thousands of steps
    config.model.pretrained = ""  # local file of ImageNet weights (.h5 for resnet34_preact)
    config.model.depths = (3, 4, 6, 3)
    config.model.width = 32  # half the papers' channels: compiling and training fit into minutes
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
    config.stage1.size = 96
    config.stage1.batch_size = 8
    config.stage1.epochs = 7
    config.stage1.schedule = "cosine"
    config.stage1.learning_rate = 1e-3
    config.stage1.final_learning_rate = 0.0
    config.stage1.swa_epochs = 2  # averages the weights at the end of each of the last 2 epochs

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
    config.predict.threshold = 0.5  # B-TH, probability threshold
    config.predict.removal_threshold = 2048  # R-TH, area in pixels of a 1024x1024 image
    config.predict.removal_rule = "image"  # "component" removes small components one by one
    config.predict.input = "data/quickstart-test"  # folder of radiographs to predict after training
    config.predict.overlays = 100  # largest number of pictures to write
    return config
