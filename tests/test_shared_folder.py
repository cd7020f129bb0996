"""A folder to share: everything of a run that others need, nothing of the machine, and refused when it was changed."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import yaml
from helpers import assert_same

import jaxpneumo
from jaxpneumo.evaluate.evaluate import main as evaluate
from jaxpneumo.export.description import was_evaluated
from jaxpneumo.export.export import main as export
from jaxpneumo.export.import_folder import main as import_folder
from jaxpneumo.predict.certainty import bands_of
from jaxpneumo.predict.infer import load_predictor
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.run.config import read_config
from jaxpneumo.run.network import make_model, stage_result
from jaxpneumo.run.provenance import trained_on_synthetic
from jaxpneumo.run.state import variable_shapes

FILES = {"README.md", "SHA256SUMS", "config.json", "metadata.json", "model.safetensors", "provenance.json"}
FILES |= {"evaluation/summary.json", "evaluation/calibration.json", "thresholds/low.json"}
THRESHOLDS = {"threshold": 0.2, "removal_threshold": 64, "removal_rule": "component", "tta": True, "size": 32}


@pytest.fixture(scope="module")
def run(evaluated, tmp_path_factory):
    """The shared run with thresholds of a name, in a folder of its own."""
    folder = tmp_path_factory.mktemp("shared") / "run"
    shutil.copytree(evaluated, folder)
    (folder / "thresholds").mkdir()
    write_json(folder / "thresholds/low.json", THRESHOLDS)
    return folder


@pytest.fixture(scope="module")
def shared(run):
    folder = run.parent / "to share"
    assert export(["--workdir", str(run), "--format", "folder", "--output", str(folder)]) == DONE
    return folder


@pytest.fixture
def copied(shared, tmp_path):
    return shutil.copytree(shared, tmp_path / "copy")


def test_it_has_these_files_and_sums_that_other_tools_read(shared):
    assert {path.relative_to(shared).as_posix() for path in shared.rglob("*") if path.is_file()} == FILES
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=shared, capture_output=True, text=True, check=True
    )
    assert done.stdout.count(": OK") == len(FILES) - 1


def test_nothing_of_the_machine_is_in_it(shared, run):
    """The report of the command, which has paths, lies beside it."""
    data = str(read_config(run).data.directory)
    for path in shared.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(name.encode() in content for name in (str(run.parent), data, str(path.home()))), path


def test_from_python_it_is_the_run_bit_for_bit(shared, run, radiographs):
    for thresholds in (None, "low"):
        ours, theirs = (jaxpneumo.load(folder, thresholds=thresholds) for folder in (run, shared))
        assert ours.predictor.model_id == theirs.predictor.model_id
        assert bands_of(ours.predictor) == bands_of(theirs.predictor)
        results = zip(ours.predict(radiographs / "dicom"), theirs.predict(radiographs / "dicom"), strict=True)
        found = 0
        for one, other in results:
            np.testing.assert_array_equal(one.mask, other.mask)
            np.testing.assert_array_equal(one.probability, other.probability)
            assert (one.score, one.side) == (other.score, other.side)
            found += one.area
        assert found > 0


def test_its_card_says_what_the_evaluation_says(shared, run):
    _, head, text = (shared / "README.md").read_text().split("---\n", 2)
    head, summary = yaml.safe_load(head), read_json(run / "evaluation/summary.json")
    assert head["pipeline_tag"] == "image-segmentation"
    (result,) = head["model-index"][0]["results"]
    scores = summary["scores"]["tta_removal"]
    assert {each["type"]: each["value"] for each in result["metrics"]}["dice"] == round(scores["dice"], 4)
    low, high = summary["intervals"]["scores"]["tta_removal"]["dice"]
    assert (
        f"| mean Dice of all images | {scores['dice']:.4f} | {low:.4f} to {high:.4f} "
        f"| {summary['all_empty']['dice']:.4f} | {summary['mean_shape']['dice']:.4f} |" in text
    )
    assert "split by patient" in text
    assert "not a medical device" in text
    assert "Trained on synthetic radiographs: these outlines say nothing about patients." in text


def test_a_run_that_was_not_evaluated_says_so(evaluated, tmp_path):
    shutil.copytree(evaluated, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    assert export(["--workdir", str(tmp_path / "run"), "--format", "folder", "--output", str(tmp_path / "out")]) == DONE
    card = (tmp_path / "out/README.md").read_text()
    assert "The run was not evaluated before it was shared" in card
    assert "model-index" not in card
    assert not (tmp_path / "out/evaluation").exists()


def test_its_metadata_has_monais_mandatory_keys(shared, run):
    metadata = read_json(shared / "metadata.json")
    assert {
        *("version", "monai_version", "pytorch_version", "numpy_version", "optional_packages_version", "task"),
        *("description", "authors", "copyright", "network_data_format"),
    } <= metadata.keys()
    for part in ("inputs", "outputs"):
        (tensor,) = metadata["network_data_format"][part].values()
        assert {
            *("type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range"),
            *("is_patch_data", "channel_def"),
        } == tensor.keys()
    scores = read_json(run / "evaluation/summary.json")["scores"]["tta_removal"]
    assert metadata["eval_metrics"]["dice"] == scores["dice"]
    assert metadata["jaxpneumo"]["synthetic"] is True


@pytest.mark.parametrize("name", sorted(FILES - {"SHA256SUMS"}))
def test_a_file_that_was_changed_or_is_gone_is_refused(copied, tmp_path, name):
    """Changed so that it is read as before: a blank behind the text, a bit of the last weight."""
    path = copied / name
    content = bytearray(path.read_bytes())
    if name.endswith(".safetensors"):
        content[-1] ^= 1
    else:
        content += b" "
    path.write_bytes(content)
    words = rf"{re.escape(name)} is not the file that was shared.*is not used"
    with pytest.raises(InputError, match=words):
        jaxpneumo.load(copied)
    with pytest.raises(InputError, match=words):
        import_folder([str(copied), "--output", str(tmp_path / "run")])
    path.unlink()
    with pytest.raises(InputError, match=r"config\.json|cannot be read"):
        jaxpneumo.load(copied)
    assert not (tmp_path / "run").exists()


ZEROS = "0" * 64


@pytest.mark.parametrize(
    "lines",
    [
        *("", "nonsense", f"{ZEROS}  ../config.json", f"{ZEROS}  config.json"),
        f"{ZEROS}  config.json\n{ZEROS}  model.safetensors",
    ],
)
def test_sums_that_are_none_are_refused(copied, lines):
    (copied / "SHA256SUMS").write_text(lines)
    with pytest.raises(InputError, match="is not a list of checksums of a shared folder"):
        jaxpneumo.load(copied)


def test_links_are_refused_with_the_way_out(copied, tmp_path):
    """Of a file and of a folder, to the very same bytes."""
    for name in ("config.json", "thresholds"):
        (copied / name).rename(tmp_path / name)
        (copied / name).symlink_to(tmp_path / name)
        for use in (jaxpneumo.load, lambda folder: import_folder([str(folder), "--output", str(tmp_path / "run")])):
            with pytest.raises(InputError, match=r"is no file of the folder: it is a link.*cp -rL"):
                use(copied)
        (copied / name).unlink()
        (tmp_path / name).rename(copied / name)
    assert not (tmp_path / "run").exists()


def test_a_file_without_a_checksum_is_not_taken_into_a_run(copied, tmp_path):
    write_json(copied / "thresholds/other.json", THRESHOLDS)
    (tmp_path / "secret").write_text("{}")
    (copied / "evaluation/secret.json").symlink_to(tmp_path / "secret")
    assert import_folder([str(copied), "--output", str(tmp_path / "run")]) == DONE
    for name in ("thresholds", "evaluation"):
        expected = sorted(file.removeprefix(f"{name}/") for file in FILES if file.startswith(f"{name}/"))
        assert sorted(path.name for path in (tmp_path / "run" / name).iterdir()) == expected


def test_weights_of_another_network_are_refused(copied):
    """With checksums that fit: whoever made the folder has mixed two."""
    from jaxpneumo.run import shared

    config = read_json(copied / "config.json")
    config["model"]["width"] = 16
    write_json(copied / "config.json", config)
    shared.write_sums(copied)
    with pytest.raises(
        InputError, match=r"model\.safetensors does not fit the network of its config\.json: .* arrays differ"
    ):
        jaxpneumo.load(copied)


def test_scores_of_a_shared_folder_need_a_place_of_their_own(copied):
    with pytest.raises(InputError, match="is a shared folder and stays as it is: give --output"):
        evaluate(["--workdir", str(copied)])


def test_a_run_is_made_of_it_again(copied, run, tmp_path):
    """Restorable by Orbax, with the same weights; the start of a training, and of another export."""
    again = tmp_path / "again"
    assert import_folder([str(copied), "--output", str(again)]) == DONE
    predictor = load_predictor(again, 1)
    assert predictor.model_id == read_json(run / "evaluation/summary.json")["run"]["model"]
    assert read_config(again).predict == read_config(run).predict
    assert trained_on_synthetic(again)
    assert read_json(again / "thresholds/low.json") == THRESHOLDS
    template = variable_shapes(make_model(predictor.config.model))
    for folder in (again, copied):
        assert_same(stage_result(folder, None, template), stage_result(run, None, template))
    assert export(["--workdir", str(again), "--format", "folder", "--output", str(tmp_path / "second")]) == DONE
    for name in ("model.safetensors", "config.json", "evaluation/summary.json"):
        assert (tmp_path / "second" / name).read_bytes() == (copied / name).read_bytes()
    with pytest.raises(InputError, match="is no folder of `jaxpneumo export --format folder`"):
        import_folder([str(run), "--output", str(tmp_path / "third")])


def test_thresholds_of_a_name_become_its_own(run, tmp_path):
    arguments = ["--workdir", str(run), "--format", "folder", "--output", str(tmp_path / "low"), "--thresholds", "low"]
    assert export(arguments) == DONE
    settings = read_config(tmp_path / "low").predict
    assert (settings.threshold, settings.removal_threshold, settings.removal_rule) == (0.2, 64, "component")
    told = json.loads((tmp_path / "low/metadata.json").read_text())["jaxpneumo"]
    assert (told["threshold"], told["removal_rule"]) == (0.2, "component")
    # Their scores are not known: those of the run's own thresholds are told as such, and to no program.
    assert json.loads((tmp_path / "low/metadata.json").read_text())["eval_metrics"] == {}
    card = (tmp_path / "low/README.md").read_text()
    assert "model-index" not in card
    assert (
        "The thresholds, views and size of this folder were not evaluated: nothing is known about how good they are. "
        "The scores below are of other ones, with flip TTA at size 32, B-TH 0.3, R-TH 20000 px (image)." in card
    )


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"threshold": 0.31}, False),
        ({"removal_rule": "component"}, False),
        ({"removal_threshold": 0}, False),
        ({"tta": False}, False),
        ({"size": 64}, False),
        ({"top_threshold": 0.7, "top_area": 9}, False),
        ({"classifier_threshold": 0.5}, False),
    ],
)
def test_scores_are_of_the_shared_settings_or_are_not_called_so(shared, changes, same):
    told = read_json(shared / "metadata.json")["jaxpneumo"]
    assert was_evaluated({**told, **changes}) == same
