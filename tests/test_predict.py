"""Prediction: both views in one call, masks at native size, folders with bad files, a submission."""

import csv

import cv2
import jax
import numpy as np
import pytest
from conftest import load_config, shrink

from jaxpneumo.data import rle
from jaxpneumo.data.dicom import read
from jaxpneumo.errors import DONE, PARTIAL, InputError
from jaxpneumo.predict import predict
from jaxpneumo.predict.infer import (
    load_predictor,
    predict_masks,
    predict_probabilities,
    to_native_mask,
)
from jaxpneumo.predict.infer import (
    shrink as resize,
)
from jaxpneumo.predict.postprocess import remove_small
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.train.loop import make_model
from jaxpneumo.train.run import train


@pytest.fixture(scope="module")
def workdir(prepared, tmp_path_factory):
    """A finished one-stage run of a tiny network."""
    folder = tmp_path_factory.mktemp("run")
    config = shrink(load_config("exp2"), prepared)
    config.model.dtype = "float32"
    config.predict.threshold = 0.5
    config.predict.removal_threshold = 0
    train(config, folder)
    return folder


@pytest.fixture(scope="module")
def predictor(workdir):
    return load_predictor(workdir)


def test_probabilities_are_those_of_two_separate_calls(predictor):
    model = make_model(predictor.config)
    image = np.random.default_rng(0).integers(0, 256, (4, 32, 32), np.uint8)

    def one_view(image):
        return jax.nn.sigmoid(model.apply(predictor.variables, image[..., None] / np.float32(255), train=False))

    plain, tta = predict_probabilities(model, predictor.variables, image, True)
    np.testing.assert_allclose(plain, one_view(image), atol=1e-5)
    by_hand = (one_view(image) + one_view(image[..., ::-1])[..., ::-1]) / 2
    np.testing.assert_allclose(tta, by_hand, atol=1e-5)
    (alone,) = predict_probabilities(model, predictor.variables, image, False)
    np.testing.assert_allclose(alone, plain, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (101, 77), (64, 200)])
def test_native_mask_is_opencvs_bilinear_resize_and_threshold(height, width):
    probability = cv2.GaussianBlur(np.random.default_rng(1).random((64, 64), np.float32), (0, 0), 3)[None]
    bits = to_native_mask(probability, np.float32(0.5), height, width)
    mask = np.unpackbits(np.asarray(bits), axis=-1)[0, :, :width]
    native = cv2.resize(probability[0], (width, height), interpolation=cv2.INTER_LINEAR)
    certain = np.abs(native - 0.5) > 1e-4
    assert mask.shape == (height, width)
    assert 0 < mask.mean() < 1
    np.testing.assert_array_equal(mask[certain], (native >= 0.5)[certain])


def test_masks_do_not_depend_on_batch_or_company(predictor):
    rng = np.random.default_rng(2)
    images = [(i, rng.integers(0, 256, (32, 32), np.uint8), (64, 64) if i % 3 else (50, 70)) for i in range(7)]
    together = dict(predict_masks(predictor, images, (0, 1)))
    assert sorted(together) == list(range(7))
    for key, image, native in images:
        ((_, alone),) = predict_masks(predictor, [(key, image, native)], (0, 1))
        for view in (0, 1):
            assert alone[view].shape == native
            # Convolutions of another batch may round differently just at the threshold.
            assert (alone[view] != together[key][view]).mean() < 0.002


def test_many_native_sizes_do_not_pile_up(predictor):
    """Every image of another size: masks come out long before the stream ends, each once and at its size."""
    taken = 0

    def stream():
        nonlocal taken
        for i in range(40):
            taken += 1
            yield i, np.full((32, 32), 5 * i, np.uint8), (40 + i, 64)

    seen, most = {}, 0
    for key, masks in predict_masks(predictor, stream(), (0,)):
        seen[key] = masks[0].shape
        most = max(most, taken - len(seen))
    assert seen == {i: (40 + i, 64) for i in range(40)}
    assert most <= 5 * predictor.config.predict.batch_size


def test_folder_is_predicted_with_its_bad_files_set_aside(predictor, workdir, radiographs, tmp_path, capsys):
    files = sorted((radiographs / "dicom").rglob("*.dcm"))[:6]
    source = tmp_path / "in"
    source.mkdir()
    for path in files:
        (source / path.name).write_bytes(path.read_bytes())
    (source / "truncated.dcm").write_bytes(files[0].read_bytes()[:2000])
    (source / "text.dcm").write_text("not a radiograph")
    (source / "zz_copy.dcm").write_bytes(files[0].read_bytes())
    cv2.imwrite(str(source / "film.png"), read(files[1]).image)

    arguments = ["--workdir", str(workdir), "--input", str(source), "--output", str(tmp_path / "out"), "--quiet"]
    assert predict.main(arguments) == PARTIAL
    assert "7 radiographs" in capsys.readouterr().out
    codes = read_submission(tmp_path / "out/submission.csv")
    assert set(codes) == {read(path).uid for path in files} | {"film"}
    assert {path.stem for path in (tmp_path / "out/overlays").iterdir()} == set(codes)
    with open(tmp_path / "out/quarantine.csv") as file:
        reasons = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert set(reasons) == {"truncated.dcm", "text.dcm", "zz_copy.dcm"}
    assert "not a DICOM" in reasons["text.dcm"]

    # The submission holds what the network says of that radiograph.
    radiograph = read(files[2])
    stream = [("x", resize(radiograph.image, 32), radiograph.image.shape)]
    ((_, masks),) = predict_masks(predictor, stream, (1,))
    settings = predictor.config.predict
    expected = remove_small(masks[1], settings.removal_threshold, settings.removal_rule)
    assert (rle.decode(codes[radiograph.uid], *radiograph.image.shape) != expected).mean() < 0.002


def test_options_change_the_runs_settings(workdir, radiographs, tmp_path):
    arguments = ["--workdir", str(workdir), "--input", str(radiographs / "dicom"), "--quiet", "--overlays", "2"]
    output = tmp_path / "all"
    assert predict.main([*arguments, "--output", str(output), "--threshold", "0", "--no-tta"]) == DONE
    codes = read_submission(output / "submission.csv")
    assert len(codes) == 24
    assert set(codes.values()) == {f"0 {128 * 128}"}
    assert len(list((output / "overlays").iterdir())) == 2
    assert not (output / "quarantine.csv").exists()
    output = tmp_path / "none"
    assert predict.main([*arguments, "--output", str(output), "--removal-threshold", "2000000"]) == DONE
    assert set(read_submission(output / "submission.csv").values()) == {"-1"}


def test_wrong_folders_are_refused_in_words(workdir, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.dcm"):
        predict.main(["--workdir", str(workdir), "--input", str(tmp_path / "empty"), "--output", str(tmp_path)])
    with pytest.raises(InputError, match="is not a run"):
        load_predictor(tmp_path)
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(InputError, match="no finished stage"):
        load_predictor(tmp_path)
    (tmp_path / "empty/broken.dcm").write_text("x")
    with pytest.raises(InputError, match="none of the 1 files"):
        predict.main(["--workdir", str(workdir), "--input", str(tmp_path / "empty"), "--output", str(tmp_path / "o")])
