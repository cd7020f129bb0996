"""`jaxpneumo export`: what other programs find in radiographs is what the run finds, or there is no file."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import onnx
import pytest
from helpers import REPOSITORY

from jaxpneumo.dicom.dicom import read_image
from jaxpneumo.export import export, onnx_network, self_check, stablehlo
from jaxpneumo.export.export import main
from jaxpneumo.export.onnx_model import OUTPUTS
from jaxpneumo.export.stablehlo import LOADER
from jaxpneumo.predict.infer import load_predictor
from jaxpneumo.predict.onnx_session import RUNTIMES, open_session, threshold_inputs
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, FAILED, InputError, exit_code
from jaxpneumo.process.files import read_json
from jaxpneumo.run import shared

MANUAL = (REPOSITORY / "docs/usage.md").read_text()


@pytest.fixture(scope="module")
def predictor(evaluated):
    return load_predictor(evaluated, batch_size=1)


@pytest.fixture(scope="module")
def images(radiographs):
    """Two radiographs of four times the network's size, and parts of them whose sides are no multiples of it."""
    whole = [read_image(path).image for path in sorted((radiographs / "dicom").rglob("*.dcm"))[:2]]
    return [*whole, np.ascontiguousarray(whole[0][:100, 5:95]), np.ascontiguousarray(whole[1][3:, :77])]


@pytest.fixture(scope="module")
def own(predictor, images):
    return list(self_check.found_by(predictor, images))


class TestOnnx:
    @pytest.mark.parametrize("runtime", RUNTIMES)
    def test_masks_probabilities_and_scores_are_the_runs(self, onnx_file, predictor, images, own, runtime):
        session = open_session(onnx_file, runtime)
        thresholds = threshold_inputs(predictor.settings, classifier=False)
        assert any(found.mask.any() for found in own)
        for image, expected in zip(images, own, strict=True):
            mask, probability, score = session.run({"image": image[None], **thresholds}, list(OUTPUTS))
            assert (mask.dtype, probability.dtype) == (np.uint8, np.float32)
            np.testing.assert_array_equal(mask[0], expected.mask)
            np.testing.assert_allclose(probability[0], expected.probability, rtol=0, atol=1e-5)
            np.testing.assert_allclose(score[0], expected.score, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("runtime", RUNTIMES)
    def test_several_images_of_one_size_are_predicted_together(self, onnx_file, predictor, images, own, runtime):
        session = open_session(onnx_file, runtime)
        inputs = {"image": np.stack(images[:2]), **threshold_inputs(predictor.settings, classifier=False)}
        masks, scores = session.run(inputs, ["mask", "score"])
        np.testing.assert_array_equal(masks, [found.mask for found in own[:2]])
        np.testing.assert_allclose(scores, [found.score for found in own[:2]], rtol=0, atol=1e-5)

    def test_thresholds_are_inputs_and_those_of_the_triplet_rule_too(self, onnx_file, images):
        """A mask of 128 x 128 pixels is a 64th of one of 1024 x 1024."""
        model = onnx.load(onnx_file)
        assert [each.name for each in model.graph.input] == [
            *("image", "threshold", "removal_threshold", "top_threshold", "top_area"),
        ]
        assert not {each.name for each in model.graph.input} & {each.name for each in model.graph.initializer}
        session = open_session(onnx_file)

        def area(threshold, removal=0, top=0.0, top_area=0):
            numbers = {"threshold": np.float32(threshold), "removal_threshold": np.int64(removal)}
            numbers |= {"top_threshold": np.float32(top), "top_area": np.int64(top_area)}
            given = {name: np.array(value) for name, value in numbers.items()}
            mask, probability = session.run({"image": images[0][None], **given}, ["mask", "probability"])
            return int(mask.sum()), probability

        whole, probability = area(0.3)
        assert whole == np.count_nonzero(probability >= np.float32(0.3)) > 0
        assert [area(0.3, removal=size)[0] for size in (64 * whole, 64 * whole + 1)] == [whole, 0]
        top = float(np.quantile(probability, 0.9))
        above = np.count_nonzero(probability >= np.float32(top))
        assert [area(0.3, top=top, top_area=64 * (above + more))[0] for more in (0, 1)] == [whole, 0]

    def test_the_file_says_whose_network_it_is_and_that_it_is_no_device(self, onnx_file, evaluated, predictor):
        told = {each.key: each.value for each in onnx.load(onnx_file).metadata_props}
        assert told["model"] == predictor.model_id
        assert "Research use only; not a medical device." in told["note"]
        assert (told["synthetic"], told["tta"], told["size"]) == ("true", "true", "32")
        assert (float(told["threshold"]), int(told["removal_threshold"])) == (0.3, 20000)
        scores = read_json(evaluated / "evaluation/summary.json")["scores"]["tta_removal"]
        assert json.loads(told["evaluation"])["dice"][0] == scores["dice"]
        for runtime in RUNTIMES:
            assert dict(open_session(onnx_file, runtime).metadata) == told

    def test_the_manuals_example_finds_the_same(self, onnx_file, images, own):
        (code,) = (block for block in MANUAL.split("```python\n") if "onnxruntime.InferenceSession" in block)
        found = {"image": images[0]}
        exec(code.split("```")[0].replace("exp5.onnx", str(onnx_file)), found)
        np.testing.assert_array_equal(found["mask"][0], own[0].mask)
        np.testing.assert_allclose(found["score"], [own[0].score], rtol=0, atol=1e-5)

    def test_the_same_run_is_the_same_file(self, onnx_file, evaluated, tmp_path):
        main(["--workdir", str(evaluated), "--format", "onnx", "--output", str(tmp_path / "again.onnx")])
        assert (tmp_path / "again.onnx").read_bytes() == onnx_file.read_bytes()

    @pytest.mark.parametrize("runtime", RUNTIMES)
    def test_what_is_no_model_is_told_in_words(self, runtime, tmp_path):
        (tmp_path / "a.onnx").write_bytes(b"no model")
        with pytest.raises(InputError, match=r"a\.onnx cannot be used as an ONNX model"):
            open_session(tmp_path / "a.onnx", runtime)
        with pytest.raises(InputError, match=r"b\.onnx: no such file"):
            open_session(tmp_path / "b.onnx", runtime)

    def test_openvino_is_kept_from_its_telemetry(self, onnx_file, tmp_path):
        """Importing it sends an event and leaves an identity in the home folder."""
        code = (
            "import socket, sys; from pathlib import Path\n"
            "def refuse(*_): raise AssertionError('a connection')\n"
            "socket.socket.connect = refuse\n"
            "from jaxpneumo.predict.onnx_session import open_session\n"
            f"open_session(Path({str(onnx_file)!r}), 'openvino')\n"
            "print([name for name in sys.modules if name.startswith('openvino_telemetry') or name == 'jax'])"
        )
        done = run(code, HOME=str(tmp_path), CI="")
        assert (done.stdout.strip(), done.stderr) == ("[]", "")
        assert list(tmp_path.iterdir()) == []


def run(code, **environment):
    line = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(
        line, capture_output=True, text=True, env={**os.environ, **environment}, check=False, timeout=300
    )


def test_stablehlo_needs_jax_alone_and_gives_the_same_bits(evaluated, predictor, images, own, tmp_path):
    """In a process that has nothing of this package, by the loader that lies beside the file."""
    from jaxpneumo.export.stablehlo import from_stablehlo

    path = tmp_path / "run.stablehlo"
    assert main(["--workdir", str(evaluated), "--format", "stablehlo", "--output", str(path)]) == DONE
    told = read_json(f"{path}.json")
    assert told["loader"] == LOADER.splitlines()
    assert f"```python\n{LOADER}```" in MANUAL
    assert (told["model"], told["thresholds"]["removal_threshold"]) == (predictor.model_id, 20000)
    np.save(tmp_path / "images.npy", np.stack(images[:2]))
    code = LOADER + (
        f"\nfound = load({str(path)!r})(np.load({str(tmp_path / 'images.npy')!r}))\n"
        f"np.savez({str(tmp_path / 'found.npz')!r}, **found)\n"
        "import sys\nprint('jaxpneumo' in sys.modules)"
    )
    done = run(code)
    assert done.stdout.strip() == "False", done.stderr
    found = np.load(tmp_path / "found.npz")
    here = from_stablehlo(path.read_bytes(), predictor.settings)(np.stack(images[:2]))
    for name, expected in zip(OUTPUTS, here, strict=True):
        np.testing.assert_array_equal(found[name], expected)
    np.testing.assert_array_equal(found["mask"], [each.mask for each in own[:2]])
    np.testing.assert_allclose(found["probability"], [each.probability for each in own[:2]], rtol=0, atol=1e-5)


class TestChecks:
    @pytest.mark.parametrize("form", ["onnx", "folder"])
    def test_an_export_with_a_fault_is_removed_and_told(self, evaluated, tmp_path, monkeypatch, capsys, form):
        """Pooling without padding before, and a weight that is another."""
        pool, to_arrays = onnx_network._pool, shared.to_arrays

        def spoilt(variables):
            arrays = to_arrays(variables)
            return arrays | {"params/segmentation_head/bias": arrays["params/segmentation_head/bias"] + 1}

        monkeypatch.setattr(onnx_network, "_pool", lambda graph, x, before: pool(graph, x, 1 - before))
        monkeypatch.setattr(shared, "to_arrays", spoilt)
        arguments = ["--workdir", str(evaluated), "--format", form, "--output", str(tmp_path / "out")]
        assert exit_code(main, arguments) == FAILED
        assert "the export does not find what the run finds, and was removed" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_a_pixel_that_is_no_matter_of_rounding_and_a_nan_are_noticed(self, own):
        """A pixel whose probability is within the bound of the threshold may be another, and no other pixel."""
        one, threshold = own[0], 0.3
        distance = np.abs(one.probability - np.float32(threshold))
        for nearest, allowed in ((distance.argmin(), True), (distance.argmax(), False)):
            mask = one.mask.copy()
            mask.flat[nearest] ^= 1
            assert (distance.flat[nearest] < self_check.ROUNDED) == allowed
            if allowed:
                found = self_check.compare([one], [one._replace(mask=mask)], threshold, self_check.ROUNDED)
                assert (found.different, found.clear) == (1, 0)
            else:
                with pytest.raises(self_check.CheckError, match="1 of 16384 mask pixels differ"):
                    self_check.compare([one], [one._replace(mask=mask)], threshold, self_check.ROUNDED)
        nan = one._replace(probability=np.full_like(one.probability, np.nan))
        for wrong in (nan, one._replace(score=one.score + 0.02)):
            with pytest.raises(self_check.CheckError):
                self_check.compare([one], [wrong], threshold, self_check.ROUNDED)
        equal = self_check.compare(own, own, threshold, self_check.EQUAL)
        assert (equal.different, equal.probability, equal.pictures) == (0, 0, len(own))

    def test_pictures_are_the_runs_own_or_given_or_drawn(self, evaluated, radiographs, tmp_path, monkeypatch):
        data = read_json(evaluated / "config.json")["data"]["directory"]
        monkeypatch.setattr(self_check, "DRAWN_SIZE", 96)
        for folder, images, count, size, words in (
            (data, None, 8, 64, data),
            (data, radiographs / "dicom", 24, 128, "dicom"),
            (tmp_path / "gone", None, 8, 96, "drawn"),
        ):
            read, where = self_check.pictures(folder, images)
            for _ in range(2):  # for the run, and for the export
                assert [image.shape for image in read()] == [(size, size)] * count
            assert words in where

    def test_a_folder_without_radiographs_is_told(self, tmp_path):
        (tmp_path / "film.dcm").write_bytes(b"no film")
        with pytest.raises(InputError, match="none of the 1 files is a radiograph that can be used"):
            self_check.pictures(tmp_path, tmp_path)

    def test_no_description_lies_beside_another_network(self, tmp_path, monkeypatch):
        """After each step that a kill may follow: the older pair, one alone, or the new pair."""
        network, description = tmp_path / "network", tmp_path / "network.json"
        network.write_bytes(b"old")
        description.write_text('"old"')
        seen, replace, unlink = [], os.replace, Path.unlink

        def state():
            return tuple(path.read_text().strip() if path.exists() else "" for path in (network, description))

        def noted(step, *arguments, **options):
            step(*arguments, **options)
            seen.append(state())

        monkeypatch.setattr(os, "replace", partial(noted, replace))
        monkeypatch.setattr(Path, "unlink", lambda path, **options: noted(unlink, path, **options))
        monkeypatch.setattr(stablehlo, "to_stablehlo", lambda predictor: b"new")
        monkeypatch.setattr(stablehlo, "from_stablehlo", lambda data, settings: None)
        monkeypatch.setattr(stablehlo, "beside", lambda description: '"new"')
        monkeypatch.setattr(self_check, "compare", lambda *arguments: self_check.Comparison())
        subject = SimpleNamespace(predictor=MagicMock(), description={})
        export._write_stablehlo(subject, network, lambda: iter(()), [])
        assert seen == [("old", ""), ("new", ""), ("new", '"new"')]

    def test_memory_does_not_grow_with_the_number_of_pictures(self, predictor, own, images):
        """The run reads a few pictures ahead. What both find in a picture is gone when the next is compared."""
        there: list[weakref.ref] = []
        most = 0

        def made():
            nonlocal most
            for _ in range(50):
                mask = own[0].mask.copy()
                there.append(weakref.ref(mask))
                most = max(most, sum(each() is not None for each in there))
                yield own[0]._replace(mask=mask)
                del mask

        self_check.compare(made(), made(), 0.3, self_check.EQUAL)
        assert (len(there), most <= 4) == (100, True)
        ahead = iter(images * 20)
        next(self_check.found_by(predictor, ahead))
        assert len(list(ahead)) > 10 * len(images)


class TestRefusals:
    def changed(self, evaluated, tmp_path, **predict):
        shutil.copytree(evaluated, tmp_path / "run")
        config = read_json(evaluated / "config.json")
        config["predict"] |= predict
        write_json(tmp_path / "run/config.json", config)
        return ["--workdir", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--format"]

    def test_what_a_format_does_not_have_is_told_with_the_way_out(self, evaluated, tmp_path):
        arguments = self.changed(evaluated, tmp_path, removal_rule="component", tta="flip,shift")
        for form, words in {
            "onnx": r"predicts with flip\+shift TTA\. --tta True",
            "stablehlo": "--removal-rule image exports it with the other rule",
            "torch": "it lacks the pre-activation encoder resnet34_preact .* and encoders of width 8",
        }.items():
            with pytest.raises(InputError, match=words):
                main([*arguments, form])
        assert not (tmp_path / "out").exists()
        assert main([*arguments, "onnx", "--tta", "False", "--removal-rule", "image"]) == DONE
        told = open_session(tmp_path / "out").metadata
        assert (told["tta"], told["removal_rule"]) == ("false", "image")

    @pytest.mark.parametrize("name", ["onnx", *RUNTIMES])
    def test_a_missing_package_is_told_with_its_command(self, name, evaluated, onnx_file, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, name, None)
        arguments = ["--workdir", str(evaluated), "--output", str(tmp_path / "out"), "--format", "onnx"]
        needs_it = partial(main, arguments) if name == "onnx" else partial(open_session, onnx_file, name)
        with pytest.raises(InputError, match=r"pip install 'jaxpneumo\[export\]'"):
            needs_it()
        assert list(tmp_path.iterdir()) == []

    def test_an_output_that_is_there(self, evaluated, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/film.dcm").touch()
        for form, words in {"onnx": "is a folder", "folder": "is there already"}.items():
            with pytest.raises(InputError, match=words):
                main(["--workdir", str(evaluated), "--output", str(tmp_path / "out"), "--format", form])
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["film.dcm"]
