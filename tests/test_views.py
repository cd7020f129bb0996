"""Test-time augmentation by name: views that are worked out by hand, and the values that a config may have."""

from argparse import ArgumentTypeError
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import as_typed, load_config, shrink

from jaxpneumo.data import dataset
from jaxpneumo.evaluate import evaluate
from jaxpneumo.predict import predict, saved_thresholds
from jaxpneumo.predict.infer import load_predictor, predict_masks, predict_probabilities
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.predict.views import mean_of_views, scaled_sizes, shift_of
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.run import tta
from jaxpneumo.run.config import read_config, typed
from jaxpneumo.run.config_files import read_config_file
from jaxpneumo.run.network import make_model


def pictures(size=64, count=3):
    return np.random.default_rng(5).integers(0, 256, (count, size, size)).astype(np.uint8)


def as_seen(image):
    """A network that gives back what it sees."""
    return image.astype(jnp.float32) / 255


def averaged(predict, image, *names):
    plain, mean = mean_of_views(predict, jnp.asarray(image), names)
    return np.asarray(plain), np.asarray(mean)


@pytest.mark.parametrize("names", [("flip",), ("shift",), ("flip", "shift")])
def test_flips_and_shifts_bring_every_pixel_back_to_its_place(names):
    """A network that sees each pixel alone gives the image itself, to rounding: no pixel from beyond it has a part."""
    image = pictures()
    plain, mean = averaged(as_seen, image, *names)
    np.testing.assert_array_equal(plain, np.asarray(as_seen(jnp.asarray(image))))
    np.testing.assert_allclose(mean, plain, atol=1e-6)


def test_the_mean_of_a_flip_is_that_of_both_views():
    """A network whose answer is the column: the mirror image's mean is the same in every column."""
    mean = averaged(lambda image: jnp.broadcast_to(jnp.arange(32.0), image.shape), pictures(32), "flip")[1]
    np.testing.assert_array_equal(mean, np.full((3, 32, 32), 31 / 2, np.float32))


def test_the_mean_of_shifts_by_hand():
    """A network whose answer is the row, at 64 pixels: shifts of one pixel see it one row later and one earlier.

    Inside all three have a part and their mean is the row. The first row is outside of the shift up and to the left:
    (0 + 1) / 2. So is the first column, where the mean of the others is half a row more.
    """
    mean = averaged(lambda image: jnp.broadcast_to(jnp.arange(64.0)[:, None], image.shape), pictures(64, 1), "shift")[1]
    assert shift_of(64) == 1
    expected = np.repeat(np.arange(64.0)[:, None], 64, axis=1)
    expected[0, :] = 0.5
    expected[-1, :] = 62.5
    expected[1:-1, 0] += 0.5
    expected[1:-1, -1] -= 0.5
    # In these corners only the image itself has a part.
    expected[0, -1], expected[-1, 0] = 0, 63
    np.testing.assert_allclose(mean[0], expected, atol=1e-5)


def test_scaled_views_are_predicted_at_their_sizes_and_brought_back():
    assert [scaled_sizes(size) for size in (32, 64, 256, 512, 1024)] == [
        (64,),
        (32, 96),
        (192, 320),
        (384, 640),
        (768, 1280),
    ]
    # A network whose answer is its size: the mean of 64, 32 and 96, each also mirrored.
    sizes = []

    def size_of(image):
        sizes.append(image.shape)
        return jnp.full(image.shape, float(image.shape[-1]))

    mean = averaged(size_of, pictures(64), "flip", "scale")[1]
    assert sizes == [(6, 64, 64), (6, 32, 32), (6, 96, 96)]
    np.testing.assert_allclose(mean, 64, rtol=1e-6)
    # A smooth image is the same in all sizes, but at its border.
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8) * 4, (1, 64, 64))
    plain, mean = averaged(as_seen, smooth, "scale")
    np.testing.assert_allclose(mean[:, :, 2:-2], plain[:, :, 2:-2], atol=2 / 255)


def test_all_views_together_count_alike():
    """A network whose answer is 1 on the mirror images of a marked image and 0 else: half of all views."""
    marked = np.zeros((1, 64, 64), np.uint8)
    marked[:, :, :32] = 255

    def mirrored(image):
        dark_left = image[:, :, 4].mean(1) < image[:, :, -5].mean(1)
        return jnp.broadcast_to(dark_left[:, None, None].astype(jnp.float32), image.shape)

    inside = averaged(mirrored, marked, "flip", "scale", "shift")[1][:, 1:-1, 1:-1]
    np.testing.assert_allclose(inside, 0.5, atol=1e-6)


def test_flip_has_the_bits_that_it_always_had(evaluated, prepared):
    """Image and mirror image in one batch, side by side; the mean is half of the sum."""
    model, predictor = make_model(read_config(evaluated).model, training=False), load_predictor(evaluated)
    image = jnp.asarray(dataset.open_arrays(prepared, 32)[0][:4])

    @jax.jit
    def by_hand(variables, image):
        batch = jnp.stack([image, image[..., ::-1]], axis=1).reshape(-1, 32, 32)
        logits = model.apply(variables, batch.astype(jnp.float32)[..., None] / 255.0, train=False)
        both = jax.nn.sigmoid(logits).reshape(4, 2, 32, 32)
        plain, mirrored = both[:, 0], both[:, 1, :, ::-1]
        return jnp.stack([plain, (plain + mirrored) / 2])

    ours = jax.jit(lambda variables, image: predict_probabilities(model, variables, image, True))
    expected = by_hand(predictor.variables, image)
    np.testing.assert_array_equal(ours(predictor.variables, image), expected)
    compiled = np.asarray(predictor.probabilities(predictor.variables, image, "flip,shift"))
    np.testing.assert_allclose(compiled[0], expected[0], atol=1e-6)
    assert np.abs(compiled[1] - expected[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("value", "names", "recorded"),
    [
        (True, ("flip",), True),
        ("flip", ("flip",), True),
        ("True", ("flip",), True),
        (False, (), False),
        ("", (), False),
        ([], (), False),
        ("scale", ("scale",), "scale"),
        ("shift, flip", ("flip", "shift"), "flip,shift"),
        (["scale", "flip", "shift"], ("flip", "scale", "shift"), "flip,scale,shift"),
    ],
)
def test_a_value_has_one_form_in_records(value, names, recorded):
    assert tta.names(value) == names
    assert tta.recorded(value) == recorded
    assert tta.TTA.allows(value)
    config = load_config("exp5").to_dict()
    config["predict"]["tta"] = value
    assert typed(config).predict.tta == recorded
    assert typed(typed(config).to_dict()).predict.tta == recorded


@pytest.mark.parametrize("value", ["rotate", "flip,flip", "flip;scale", 1, None, [1], ["flip", ["scale"]]])
def test_other_values_are_refused_in_words(value):
    config = load_config("exp5").to_dict()
    config["predict"]["tta"] = value
    with pytest.raises(InputError, match=r"predict\.tta must be True, False, or some of flip, scale, shift between"):
        typed(config)
    if isinstance(value, str):
        with pytest.raises(ArgumentTypeError, match="cannot be used; give True, False, or some of flip"):
            tta.TTA(value)


def test_a_flag_can_name_views_in_place_of_a_configs_switch(tmp_path):
    """ml_collections keeps a value's type, so a switch of a config file is read as text."""
    shipped = read_config_file("configs/exp5.py")
    shipped.predict.tta = "flip,scale"
    assert typed(shipped.to_dict()).predict.tta == "flip,scale"
    shipped.predict.tta = "False"
    assert typed(shipped.to_dict()).predict.tta is False


def test_predictions_and_scores_use_the_named_views(evaluated, radiographs, prepared, tmp_path):
    arguments = ["--workdir", str(evaluated), "--input", str(radiographs / "dicom"), "--overlays", "0"]
    arguments += ["--workers", "0", "--removal-threshold", "0", "--threshold", "0.42"]
    for name, flags in {"all": ["--tta", "flip,scale,shift"], "none": ["--no-tta"]}.items():
        assert predict.main([*arguments, *flags, "--output", str(tmp_path / name)]) == DONE
    with pytest.raises(InputError, match="tta"):
        predict.main([*arguments, "--output", str(tmp_path / "all")])

    predictor = load_predictor(evaluated)
    settings = replace(predictor.settings, tta="flip,scale,shift", threshold=0.42, removal_threshold=0)
    predictor = replace(predictor, settings=settings)
    assert (
        evaluate.main(["--workdir", str(evaluated), "--tta", "shift,flip,scale", "--output", str(tmp_path / "e")])
        == DONE
    )
    summary = read_json(tmp_path / "e/summary.json")
    assert (summary["tta"], summary["run"]["mode"]) == ("flip,scale,shift", "tta_removal")
    own = read_json(evaluated / "evaluation/summary.json")
    assert summary["scores"]["plain"] == own["scores"]["plain"]
    assert summary["image_level"]["tta"] != own["image_level"]["tta"]
    codes = read_submission(tmp_path / "all/submission.csv")
    index = dataset.read_index(prepared)
    stream = [(str(index.image_id[0]), dataset.open_arrays(prepared, 32)[0][0], (128, 128))]
    ((image_id, masks),) = predict_masks(predictor, stream, (1,))
    assert (codes[image_id] == "-1") == (masks[1].area == 0)


def test_thresholds_hold_for_the_views_that_they_were_chosen_with(evaluated, tmp_path):
    saved = {"threshold": 0.4, "removal_threshold": 0, "removal_rule": "image", "size": 32}
    write_json(tmp_path / "thresholds/views.json", {**saved, "tta": ["scale", "flip"]})
    settings = shrink(load_config("exp5"), tmp_path)
    settings.predict.size = 32
    settings = as_typed(settings).predict
    with pytest.raises(InputError, match=r"was chosen with flip\+scale TTA at size 32"):
        saved_thresholds.use(tmp_path, "views", settings)
    assert saved_thresholds.use(tmp_path, "views", replace(settings, tta="flip,scale")).threshold == 0.4
