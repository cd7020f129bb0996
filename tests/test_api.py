"""The short Python way: a run in a notebook predicts as the command does, and takes nothing that it would misread."""

import functools
import json
import os
import re
import shutil
from dataclasses import replace
from itertools import islice

import cv2
import jax
import numpy as np
import pytest
from commands import run
from helpers import REPOSITORY
from networks import pattern
from pydicom import dcmread

import jaxpneumo
from jaxpneumo.api import NOTE
from jaxpneumo.data import dataset, rle
from jaxpneumo.data.resize import resize_to_squares
from jaxpneumo.dicom import dicom
from jaxpneumo.dicom.arrays import from_array
from jaxpneumo.evaluate.results import read_metrics
from jaxpneumo.predict import predict
from jaxpneumo.predict.finding import BY_CONVENTION, side_of
from jaxpneumo.predict.infer import Predictor, compile_network
from jaxpneumo.predict.pictures import overlay
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, PARTIAL, InputError
from jaxpneumo.run.network import make_model
from jaxpneumo.run.sharding import replicated
from jaxpneumo.score.metrics import all_empty, summarise


@pytest.fixture(scope="module")
def model(evaluated, tmp_path_factory):
    """The shared run without its removal threshold, which would leave few outlines; saved under a name."""
    folder = shutil.copytree(evaluated, tmp_path_factory.mktemp("api") / "run")
    saved = {"threshold": 0.3, "removal_threshold": 0, "removal_rule": "image", "tta": True, "size": 32}
    write_json(folder / "thresholds/all.json", saved)
    return jaxpneumo.load(folder, thresholds="all")


@pytest.fixture(scope="module")
def files(radiographs):
    return sorted((radiographs / "dicom").rglob("*.dcm"))


@pytest.fixture(scope="module")
def film(files):
    return jaxpneumo.read_radiograph(files[0])


def by_command(model, where, output, *more):
    """What `jaxpneumo predict` writes: id -> code."""
    arguments = ["--workdir", str(model.predictor.workdir), "--input", str(where), "--output", str(output)]
    assert predict.main([*arguments, "--thresholds", "all", "--overlays", "0", "--workers", "0", *more]) in (
        DONE,
        PARTIAL,
    )
    return read_submission(output / "submission.csv")


def loaded_after(program):
    return set(run("-c", f"import sys\n{program}\nprint(*sys.modules)").stdout.split())


def test_importing_loads_nothing_heavy():
    assert not loaded_after("import jaxpneumo; dir(jaxpneumo)") & {"jax", "numpy", "cv2", "pydicom", "jaxpneumo.api"}
    assert set(jaxpneumo.__all__) <= set(dir(jaxpneumo))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = jaxpneumo.lode


def test_reading_a_radiograph_does_without_jax(files):
    loaded = loaded_after(f"import jaxpneumo; jaxpneumo.read_radiograph({str(files[0])!r})")
    assert "jaxpneumo.dicom.dicom" in loaded
    assert "jax" not in loaded


def test_a_radiograph_is_grey_and_without_its_patient(files, film, tmp_path):
    there = dicom.read(files[0])
    assert there.patient_id
    np.testing.assert_array_equal(film.image, there.image)
    assert (film.image.dtype, film.uid, film.pixel_spacing) == (np.uint8, there.uid, (0.139, 0.139))
    assert (film.patient_id, film.sex, film.age) == ("", "", None)
    assert there.patient_id not in repr(film)
    with pytest.raises(InputError, match="cannot be read"):
        jaxpneumo.read_radiograph(tmp_path / "nothing.dcm")


def test_a_folders_masks_are_those_of_the_command(model, files, radiographs, tmp_path):
    codes = by_command(model, radiographs / "dicom", tmp_path / "out")
    results = list(model.predict(radiographs / "dicom"))
    assert {result.id: rle.encode(result.mask.astype(np.uint8)) for result in results} == codes
    assert [result.source for result in results] == [str(file) for file in files]
    areas = [int(rle.decode(codes[result.id], *result.mask.shape).sum()) for result in results]
    assert [result.area for result in results] == areas
    assert any(areas)
    assert list(map(str, model.predict([str(file) for file in files]))) == list(map(str, results))


def test_a_single_file_has_a_batch_of_its_own_as_for_the_command(model, files, film, tmp_path):
    codes = by_command(model, files[1], tmp_path / "one")
    result = model.predict(files[1])
    assert {result.id: rle.encode(result.mask.astype(np.uint8))} == codes
    codes = by_command(model, files[1], tmp_path / "four", "--batch-size", "4")
    fixed = jaxpneumo.load(model.predictor.workdir, 4, "all").predict(str(files[1]))
    assert {fixed.id: rle.encode(fixed.mask.astype(np.uint8))} == codes


@pytest.mark.long
def test_a_process_of_its_own_compiles_as_the_command_does(model, radiographs, tmp_path, monkeypatch):
    """With none of the settings of the tests' own process."""
    for name in [name for name in os.environ if name.startswith(("XLA_", "JAX_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    workdir, images = model.predictor.workdir, radiographs / "dicom"
    paths = ("--workdir", workdir, "--input", images, "--output", tmp_path / "out")
    assert run("-m", "jaxpneumo", "predict", *paths, "--thresholds", "all", "--overlays", "0").returncode == DONE
    program = f"""
import jaxpneumo, numpy
from jaxpneumo.data import rle
from jaxpneumo.predict.submission import write_submission
results = jaxpneumo.load({str(workdir)!r}, thresholds="all").predict({str(images)!r})
write_submission({str(tmp_path / "own.csv")!r}, [(one.id, rle.encode(one.mask.astype(numpy.uint8))) for one in results])
"""
    done = run("-c", program)
    assert done.returncode == 0, done.stderr
    assert read_submission(tmp_path / "own.csv") == read_submission(tmp_path / "out/submission.csv")


def test_a_result_is_what_it_says(model, film):
    result = model.predict(film)
    threshold = model.predictor.settings.threshold
    assert (result.probability.dtype, result.probability.shape) == (np.float32, film.image.shape)
    clear = np.abs(result.probability - threshold) > 1e-5
    np.testing.assert_array_equal(result.mask[clear], (result.probability >= threshold)[clear])
    assert (result.mask.dtype, result.area) == (bool, result.mask.sum())
    assert result.area > 0
    assert result.area_mm2 == pytest.approx(result.area * 0.139**2)
    assert (result.id, result.source, result.synthetic) == (film.uid, "", True)
    for frozen in (result.mask, result.probability):
        with pytest.raises(ValueError, match="read-only"):
            frozen[0] = 0
    with pytest.raises(AttributeError):
        result.area = 0
    picture = result.outlined(film)
    inside = [picture[top : top + len(film.image)] for top in range(len(picture) - len(film.image))]
    assert any(np.array_equal(one, overlay(film.image, result.mask)) for one in inside)


def test_everything_says_that_it_is_for_research(model, film):
    assert NOTE == "research use only; not a medical device"
    for value in (model, model.predict(film)):
        assert NOTE in repr(value)
    for documented in (jaxpneumo.load, jaxpneumo.LoadedModel, jaxpneumo.Result, jaxpneumo):
        assert "not a medical device" in documented.__doc__


def test_the_score_is_the_evaluations(model, files):
    table = read_metrics(model.predictor.workdir / "evaluation/metrics.csv")
    expected = dict(zip(table["ImageId"], table["tta_top_mean"].astype(float), strict=True))
    scores = {result.id: result.score for result in model.predict(files)}
    for name, score in expected.items():
        assert scores[name] == pytest.approx(score, abs=2e-3)


def test_with_a_classifier_the_score_is_its_probability(model, film):
    """Of the mean over the image and its mirror image."""
    own = model.predictor
    config = replace(own.config, model=replace(own.config.model, classifier=True))
    network = make_model(config.model, training=False)
    shapes = jax.eval_shape(functools.partial(make_model(config.model).init, train=False), jax.random.key(0), ZEROS)
    compiled = compile_network(
        network, jax.device_put(pattern(shapes, 1), replicated(own.mesh)), own.settings, own.mesh
    )
    parts = {"config": config, "workdir": own.workdir, "stage": own.stage, "model_id": "x"}
    result = jaxpneumo.LoadedModel(Predictor(**vars(compiled), **parts), fixed=True).predict(film)
    images = np.zeros((4, 32, 32), np.uint8)
    images[0] = resize_to_squares(film.image, (32,))[0]
    assert result.score == float(compiled.outputs(compiled.variables, images, True)[1][1, 0])


def test_results_are_made_when_they_are_asked_for(model, film):
    """The first of a thousand comes long before the last is read."""

    class Counted:
        taken = 0

        def __array__(self, dtype=None, copy=None):
            Counted.taken += 1
            return film.image

    results = model.predict([Counted()] * 1000)
    assert [result.id for result in islice(results, 3)] == ["array_0", "array_1", "array_2"]
    assert Counted.taken < 100
    results.close()


def same_as(model, array, expected):
    result = model.predict(array)
    np.testing.assert_array_equal(result.mask, expected.mask)
    np.testing.assert_array_equal(result.probability, expected.probability)
    return result


def test_arrays_of_every_type_mean_the_same_picture(model, film):
    expected = model.predict(film)
    for array in (
        film.image,
        film.image.astype(np.int64),
        film.image.astype(">i2"),
        (film.image / 255).astype(np.float32),
        film.image.astype(np.float64) / 255,
        np.dstack([film.image] * 3),
        np.asfortranarray(film.image),
    ):
        result = same_as(model, array, expected)
        assert (result.id, result.area_mm2, result.side) == ("array_0", None, None)
    assert same_as(model, film.image / 255, expected).remarks == ("values of 0 to 1 were multiplied by 255",)


def test_sixteen_bits_are_stretched_as_in_a_picture(model, film, tmp_path):
    array = film.image.astype(np.uint16) * 13 + 700
    cv2.imwrite(str(tmp_path / "film.png"), array)
    result = same_as(model, array, model.predict(tmp_path / "film.png"))
    low, high = array.min(), array.max()
    assert result.remarks == (f"uint16 values of {low} to {high} were stretched to 0 to 255; bones must be white",)
    same_as(model, array.astype(">u2"), result)


ZEROS = np.zeros((1, 32, 32, 1), np.float32)
GREY = np.random.default_rng(0).integers(0, 256, (40, 48), np.uint8)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (GREY.astype(np.float32), "float32 with values from 0 to 255; floating-point .* 0 to 1.*image / 255"),
        (GREY / 255 - 0.5, "values from -0.5 to 0.5.*path of the DICOM file"),
        (GREY.astype(np.int16) * 16 - 1024, "int16 with values from -1024 to .* integers must be 0 to 255"),
        (GREY.astype(np.uint32) * 300, "uint32 with values from 0 to 76500"),
        (np.where(GREY == 7, np.nan, GREY / 255), "nan or infinity"),
        (np.where(GREY == 7, np.inf, GREY / 255), "nan or infinity"),
        (GREY > 100, "is a mask"),
        (np.ma.masked_equal(GREY, GREY[0, 0]), r"is a masked array\. Give the grey levels of all pixels"),
        (GREY.astype(complex), "of type complex128"),
        (GREY.astype(str), "of type <U"),
        (np.dstack([GREY, GREY, 255 - GREY]), "a colour picture"),
        (np.dstack([GREY] * 4), r"shape \(40, 48, 4\), not \(height, width\)\. It seems to be a colour"),
        (GREY[..., None], r"image\[\.\.\., 0\]"),
        (np.stack([GREY] * 5), r"predict\(list\(images\)\)"),
        (GREY[0], r"shape \(48,\)"),
        (GREY[:8], "8 x 48 pixels"),
        (np.tile(GREY, (1, 4)), "not a frontal chest radiograph: its picture has 40 rows and 192 columns.*any_image"),
        (GREY * 0, "a single grey"),
        (np.full((40, 48), 4000, np.uint16), "a single grey"),
        (np.full((40, 48), 0.4), "a single grey"),
        (7, "image 0 is of type int"),
        ([GREY, [1, 2]], "image 1 is of type list"),
        ([GREY, None], "image 1 is of type NoneType"),
        ([], "list of images is empty"),
        ("nowhere.dcm", "neither a folder nor a file"),
    ],
)
def test_what_would_be_misread_is_refused_in_words(model, array, words):
    with pytest.raises(InputError, match=words):
        model.predict(array)


def test_the_refused_array_of_a_list_is_named(model):
    with pytest.raises(InputError, match="array_1 is float64"):
        list(model.predict([GREY, GREY * 1.0]))


def test_any_image_takes_what_is_not_frontal(model):
    wide = np.tile(GREY, (1, 4))
    assert model.predict(wide, any_image=True).mask.shape == wide.shape


def test_rules_for_arrays_cut_nothing_off():
    """Every grey level comes out as it went in."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for kind in (np.uint8, np.int16, np.int32, np.uint64):
        np.testing.assert_array_equal(from_array(levels.astype(kind), "a").image, levels)
    for kind in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(from_array((levels / 255).astype(kind), "a").image, levels)
    np.testing.assert_array_equal(from_array(levels.astype(np.uint16) * 257, "a").image, levels)


def test_a_file_of_a_folder_that_cannot_be_used_is_told(model, files, tmp_path):
    shutil.copy(files[0], tmp_path / "a.dcm")
    (tmp_path / "b.dcm").write_text("not a radiograph")
    with pytest.warns(UserWarning, match=r"Left out: b\.dcm is not a DICOM"):
        (result,) = model.predict(tmp_path)
    assert result.source == str(tmp_path / "a.dcm")
    with pytest.raises(InputError, match=r"b\.dcm is not a DICOM"):
        model.predict(tmp_path / "b.dcm")
    with pytest.raises(InputError, match=r"b\.dcm is not a DICOM"):
        list(model.predict([tmp_path / "a.dcm", tmp_path / "b.dcm"]))
    (tmp_path / "a.dcm").unlink()
    with pytest.warns(UserWarning, match="Left out"), pytest.raises(InputError, match="none of the 1 files"):
        list(model.predict(tmp_path))


def with_header(file, path, **elements):
    data = dcmread(file)
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path)
    return path


def test_a_lateral_view_is_refused_with_the_way_out(model, files, tmp_path):
    lateral = with_header(files[0], tmp_path / "side.dcm", ViewPosition="LATERAL")
    with pytest.raises(InputError, match=r"side\.dcm: not a frontal .* View Position is LATERAL\. any_image=True"):
        model.predict(lateral)


def side_where(columns, film):
    """The side of a mask of 41 columns in which some are outlined."""
    mask = np.zeros((40, 41), bool)
    mask[5:15, columns] = True
    return side_of(mask, film.leads_to, film.view)[0]


@pytest.mark.parametrize(
    ("orientation", "left_half"),
    [(["L", "F"], "right"), (["R", "F"], "left"), (["LH", "FL"], "right"), (["F", "L"], None), (["L"], None)],
)
def test_the_side_is_the_patients_by_the_header(files, tmp_path, orientation, left_half):
    path = with_header(files[0], tmp_path / "a.dcm", PatientOrientation=orientation, ViewPosition="")
    film = jaxpneumo.read_radiograph(path)
    other = {"right": "left", "left": "right", None: None}[left_half]
    assert side_where(np.s_[3:9], film) == left_half
    assert side_where(np.s_[30:40], film) == other
    assert side_where(np.s_[10:31], film) is None  # on both sides
    assert side_where(np.s_[20:21], film) is None  # in the middle column
    assert side_where(np.s_[:0], film) is None


def test_without_orientation_the_side_follows_the_convention_and_says_so(model, film):
    mask = np.zeros((40, 40), bool)
    mask[:, :9] = True
    assert (film.leads_to, film.view in ("AP", "PA")) == ("", True)
    assert side_of(mask, "", film.view) == ("right", BY_CONVENTION)
    assert side_of(mask, "L", film.view) == ("right", "")
    assert side_of(mask, "", "") == (None, "")
    result = model.predict(film)
    assert (BY_CONVENTION in result.remarks) == (result.side is not None)


def test_evaluation_scores_in_batches(model, files, prepared):
    labels = dataset.read_labels(prepared)
    films = [jaxpneumo.read_radiograph(file) for file in files]
    truths = [rle.decode(labels[film.uid], *film.image.shape) for film in films]
    found = model.evaluate(files, truths)
    masks = [result.mask for result in model.predict(files)]
    pairs = zip(masks, (truth > 0 for truth in truths), strict=True)
    tp, fp, fn = np.array([((m & t).sum(), (m & ~t).sum(), (t & ~m).sum()) for m, t in pairs]).T
    expected = summarise(tp, fp, fn)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["all_empty"] == all_empty(np.array([truth.sum() for truth in truths]))
    assert (found["n_images"], found["n_positive"], found["note"]) == (24, 12, NOTE)
    assert json.loads(json.dumps(found)) == found
    assert model.evaluate([film.image for film in films], [truth > 0 for truth in truths]) == found


def test_wrong_masks_are_refused_in_words(model, film, files):
    mask = np.zeros(film.image.shape, np.uint8)
    for images, masks, words in (
        ([film, film], [mask], "2 images and 1 masks"),
        ([film], [mask[1:]], r"mask 0 has the shape \(127, 128\), and its image .* \(128, 128\)"),
        ([film], [mask * 0.5], "mask 0 is float64"),
        ([film], [mask[0]], r"mask 0 is uint8 \(128,\)"),
        (film, mask, "needs a list of images"),
        ([film], {"a": mask}, "needs a list of masks"),
        (str(files[0]), [mask], "needs a list of images"),
        ([files[0].parent], [mask], "is a folder"),
        ([], [], "list of images is empty"),
    ):
        with pytest.raises(InputError, match=words):
            model.evaluate(images, masks)


def test_wrong_runs_are_refused_in_words(model, tmp_path):
    folder = model.predictor.workdir
    with pytest.raises(InputError, match="is not a run"):
        jaxpneumo.load(tmp_path)
    with pytest.raises(InputError, match="has no thresholds named best: it has all"):
        jaxpneumo.load(folder, thresholds="best")
    with pytest.raises(InputError, match="batch_size 0 is below 1"):
        jaxpneumo.load(folder, 0)


@pytest.fixture
def quickstart(evaluated, radiographs, tmp_path, monkeypatch):
    """A folder with the shared run and its radiographs in the place of the quickstart's."""
    for folder, name in ((evaluated, "runs/quickstart"), (radiographs, "data/quickstart-test")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)


def test_the_notebook_runs_as_it_stands(quickstart):
    notebook = json.loads((REPOSITORY / "docs/notebook.ipynb").read_text())
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert 4 <= len(code) <= 8
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    names = {}
    for cell in code:
        exec(compile(cell, "notebook", "exec"), names)
    height, width, _ = cv2.imread("outlined.png").shape
    assert height > width == 128  # with text
    assert names["scores"]["n_images"] == len(names["results"]) == 24


def test_the_readmes_lines_run_as_they_stand(quickstart, tmp_path):
    (lines,) = re.findall(r"```python\n(import jaxpneumo\n.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) == 5
    exec(compile(lines, "README", "exec"), {})
    height, width, _ = cv2.imread("outlined.png").shape
    assert height > width == 128  # with text
