"""The page's server: answers as `predict`, refuses strangers, stays up, keeps nothing, serves programs by KServe v2."""

import base64
import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from helpers import REPOSITORY
from serving import model_of, options_of

from jaxpneumo.data import rle
from jaxpneumo.dicom import dicom
from jaxpneumo.predict import predict
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.serve import page
from jaxpneumo.serve.answers import levels, position, slider
from jaxpneumo.serve.decoding import Decoders
from jaxpneumo.serve.engine import Engine
from jaxpneumo.serve.guard import is_own_name, why_refused
from jaxpneumo.serve.kserve import LENGTH
from jaxpneumo.serve.site import MOST_BYTES, make_app

pytest.importorskip("starlette", reason="Starlette is not installed: pip install 'jaxpneumo[serve]'")
pytest.importorskip("httpx", reason="httpx, which Starlette's test client needs, is not installed: pip install httpx")


@pytest.fixture(scope="module")
def files(radiographs):
    return sorted((radiographs / "dicom").rglob("*.dcm"))


@pytest.fixture(scope="module")
def engine(evaluated):
    return Engine(model_of(evaluated, batch_size=4))


@pytest.fixture(scope="module")
def client(engine):
    from starlette.testclient import TestClient

    app = make_app(engine, Decoders(1), "tiny", "127.0.0.1")
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        assert engine.ready.wait(120)
        yield client


def send(client, data: bytes, where: str = "/radiographs", name: str = "film.dcm", **headers: str):
    return client.post(where, content=data, headers={"X-File-Name": name, **headers})


def unpacked(answer: dict) -> np.ndarray:
    """The levels of an answer, (H, W)."""
    data = zlib.decompress(base64.b64decode(answer["levels"]))
    return np.frombuffer(data, np.uint8).reshape(answer["height"], answer["width"])


def by_command(evaluated, file, output, *options) -> np.ndarray:
    """The mask that `jaxpneumo predict` writes for a file."""
    arguments = ["--workdir", str(evaluated), "--input", str(file), "--output", str(output), *options]
    assert predict.main(arguments) == DONE
    ((code),) = read_submission(output / "submission.csv").values()
    return rle.decode(code, *dicom.read(file).image.shape)


class TestAnswers:
    def test_picture_levels_and_area_are_those_of_predict(self, client, engine, evaluated, files, tmp_path):
        settings = engine.model.predictor.settings
        areas = []
        for number, file in enumerate(files[:3]):
            answer = send(client, file.read_bytes()).json()
            mask = by_command(evaluated, file, tmp_path / f"{number}", *options_of())
            assert answer["area"] == mask.sum()
            reached = unpacked(answer) >= position(settings.threshold, settings)
            assert not mask.any() or np.array_equal(reached, mask)
            image = cv2.imdecode(np.frombuffer(base64.b64decode(answer["image"]), np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(image, dicom.read(file).image)
            areas.append(answer["area"])
        assert any(areas)

    def test_levels_hold_the_region_at_every_position_of_the_slider(self, client, engine, evaluated, files, tmp_path):
        answer, settings = send(client, files[0].read_bytes()).json(), engine.model.predictor.settings
        for threshold in (0.2, 0.345):
            mask = by_command(evaluated, files[0], tmp_path / f"{threshold}", *options_of(threshold))
            reached = unpacked(answer) >= position(threshold, settings)
            # Host and device may round a probability's last bit otherwise.
            assert np.count_nonzero(reached != mask) <= 1
            assert mask.any()

    def test_the_slider_has_the_runs_thresholds_among_its_own(self, engine):
        from dataclasses import replace

        settings = replace(engine.model.predictor.settings, threshold=0.3337, top_threshold=0.81234, top_area=5)
        thresholds = slider(settings)
        assert thresholds == sorted(thresholds)
        assert len(thresholds) == 202 <= 255
        for threshold in (0.3337, 0.81234, 0.005, 1.0):
            assert thresholds[position(threshold, settings) - 1] == threshold
        assert len(slider(replace(settings, threshold=0.3, top_threshold=None))) == 200

    @pytest.mark.parametrize("rule", ["image", "component"])
    def test_levels_agree_with_a_mask_whose_last_bit_was_rounded_otherwise(self, engine, files, rule):
        from dataclasses import replace

        settings = replace(engine.model.predictor.settings, threshold=0.5, removal_rule=rule)
        probability = np.full((20, 20), np.nextafter(np.float32(0.5), np.float32(0)))
        probability[5:9, 5:9], probability[0, 19] = 0.9, 0.9
        mask = np.zeros((20, 20), bool)
        mask[5:10, 5:8] = True  # a row more than the host's probabilities say, and a column less
        mask[0, 19] = rule == "image"  # a small component, which one rule removes
        result = replace(engine.model.predict(dicom.read(files[0])), probability=probability, mask=mask, area=16)
        reached = levels(result, settings) >= position(0.5, settings)
        mask[0, 19] = True
        np.testing.assert_array_equal(reached, mask)

    def test_pictures_are_taken_too_and_have_no_square_millimetres(self, client, files, tmp_path):
        image = dicom.read(files[0]).image
        png = cv2.imencode(".png", image)[1].tobytes()
        answer, of_dicom = send(client, png, name="Fra%CC%88nz/a.png").json(), send(client, files[0].read_bytes()).json()
        assert (answer["area"], answer["score"]) == (of_dicom["area"], of_dicom["score"])
        assert (answer["area_mm2"], of_dicom["area_mm2"]) == (None, pytest.approx(of_dicom["area"] * 0.139**2))
        assert answer["id"] == "a"

    def test_downloads_are_made_at_the_sliders_threshold(self, client, evaluated, files, tmp_path):
        data = files[0].read_bytes()
        for threshold in (0.3, 0.2):
            answer = send(client, data, "/radiographs/mask.png", **{"X-Threshold": str(threshold)})
            mask = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
            expected = by_command(evaluated, files[0], tmp_path / f"{threshold}", *options_of(threshold))
            np.testing.assert_array_equal(mask, 255 * expected)
        answer = send(client, data, "/radiographs/outlined.png")
        picture = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
        assert (answer.headers["content-type"], picture.shape[2]) == ("image/png", 3)
        assert send(client, data, "/radiographs/mask.gif").status_code == 404
        refused = send(client, data, "/radiographs/mask.png", **{"X-Threshold": "7"})
        assert (refused.status_code, refused.json()["error"]) == (400, "X-Threshold is 7; give a number from 0 to 1.")

    def test_what_cannot_be_used_is_answered_in_words(self, client, files):
        for data, words in (
            (b"", "film.dcm is not a DICOM, PNG or JPEG file"),
            (files[0].read_bytes()[:3000], "film.dcm"),
            (b"\x89PNG\r\n\x1a\n" + bytes(50), "film.dcm is truncated or damaged"),
        ):
            answer = send(client, data)
            assert answer.status_code == 400
            assert words in answer.json()["error"]

    def test_a_picture_of_something_else_is_refused_with_the_way_out(self, client, files):
        from pydicom import dcmread

        lateral = dcmread(files[0])
        lateral.ViewPosition = "LL"
        data = dicom.BytesIO()
        lateral.save_as(data)
        error = send(client, data.getvalue()).json()["error"]
        assert "View Position is LL" in error
        assert "--any-image" in error

    def test_many_at_once_have_the_results_of_each_alone(self, client, engine, files):
        radiographs = [dicom.read(file) for file in files[:11]]
        alone = [engine.predict(radiograph).result() for radiograph in radiographs]
        together = [future.result() for future in [engine.predict(radiograph) for radiograph in radiographs]]
        for one, other in zip(alone, together, strict=True):
            assert one.id == other.id
            assert other.score == pytest.approx(one.score, abs=1e-5)
            assert abs(one.area - other.area) <= 2
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda file: send(client, file.read_bytes()).json(), files[:6]))
        assert [answer["id"] for answer in answers] == [one.id for one in alone[:6]]

    def test_a_failure_of_one_in_a_batch_leaves_the_others_alone(self, engine, files, monkeypatch):
        from dataclasses import replace

        good = dicom.read(files[0])
        futures = [engine.predict(one) for one in (good, replace(good, image=good.image[0]), good, good)]
        assert [futures[n].result().area for n in (0, 2, 3)] == [engine.predict(good).result().area] * 3
        with pytest.raises(Exception, match="."):
            futures[1].result()


class TestUploads:
    def test_one_that_is_too_large_is_refused_before_it_is_read(self, client):
        answer = send(client, b"DICM", **{"Content-Length": str(MOST_BYTES + 1)})
        assert answer.status_code == 413
        assert "64 MiB" in answer.json()["error"]

    def test_one_without_a_length_is_cut_off(self, client):
        parts = (bytes(1 << 20) for _ in range(1000))
        answer = client.post("/radiographs", content=parts)
        assert answer.status_code == 413
        assert sum(1 for _ in parts) > 0

    def test_a_decoder_that_dies_or_hangs_costs_its_file_alone(self, files):
        decoders = Decoders(1, seconds=0.3)
        data = files[0].read_bytes()
        try:
            assert decoders.read(data, "film.dcm").result().uid == dicom.read(files[0]).uid
            (decoder,) = decoders._all
            os.kill(decoder._process.pid, signal.SIGSTOP)
            with pytest.raises(InputError, match=r"film\.dcm: decoding it took too long"):
                decoders.read(data, "film.dcm").result()
            os.kill(decoder._process.pid, signal.SIGKILL)
            with pytest.raises(InputError, match=r"film\.dcm: decoding it crashed"):
                decoders.read(data, "film.dcm").result()
            assert decoders.read(data, "film.dcm").result().image.shape == (128, 128)
        finally:
            decoders.close()

    def test_nothing_about_the_patient_leaves_the_decoder(self, files):
        assert dicom.read(files[0]).patient_id
        decoders = Decoders(1)
        try:
            found = decoders.read(files[0].read_bytes(), "film.dcm").result()
        finally:
            decoders.close()
        assert (found.patient_id, found.sex, found.age) == ("", "", None)


class TestStrangers:
    @pytest.mark.parametrize(
        ("name", "bound", "own"),
        [
            ("127.0.0.1", "127.0.0.1", True),
            ("localhost", "127.0.0.1", True),
            ("::1", "127.0.0.1", True),
            ("evil.example", "127.0.0.1", False),
            ("localhost.evil.example", "127.0.0.1", False),
            ("192.168.1.7", "127.0.0.1", False),
            ("", "127.0.0.1", False),
            ("192.168.1.7", "0.0.0.0", True),
            (socket.gethostname().lower(), "0.0.0.0", True),
            ("evil.example", "0.0.0.0", False),
            ("ward7", "ward7", True),
        ],
    )
    def test_names_that_others_can_point_here_are_not_ours(self, name, bound, own):
        assert is_own_name(name, bound) == own

    def test_a_request_under_another_name_is_refused(self, client, files):
        for host in ("evil.example", "evil.example:8000", "", "[::1"):
            answer = client.get("/", headers={"Host": host})
            assert (answer.status_code, "jaxpneumo page" in answer.json()["error"]) == (403, True)
        for host in ("localhost:9000", "[::1]:8000", "127.0.0.1"):  # also through a tunnel with another port
            assert client.get("/", headers={"Host": host}).status_code == 200

    def test_a_request_from_another_sites_page_is_refused(self, client, files):
        for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8000"):
            answer = send(client, files[0].read_bytes(), Origin=origin)
            assert (answer.status_code, answer.json()["error"][:30]) == (403, "the request comes from a page ")
        assert send(client, files[0].read_bytes(), Origin="http://127.0.0.1:8000").status_code == 200
        assert why_refused("127.0.0.1:1", "http://127.0.0.1:1", "127.0.0.1") == ""

    def test_no_other_site_may_read_or_frame_an_answer_and_no_browser_keeps_one(self, client):
        for path in ("/", "/v2", "/nothing"):
            headers = client.get(path, headers={"Origin": "http://127.0.0.1:8000"}).headers
            assert not [name for name in headers if name.startswith("access-control")]
            assert (headers["cache-control"], headers["x-frame-options"]) == ("no-store", "DENY")
        policy = client.get("/").headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert client.options("/radiographs", headers={"Origin": "http://evil.example"}).status_code == 403

    def test_loopback_is_bound_unless_another_address_is_given(self):
        with page.listen("127.0.0.1", 0) as listening:
            host, port = listening.getsockname()
            assert (host, port > 0) == ("127.0.0.1", True)
            assert page.address(listening) == f"http://127.0.0.1:{port}/"
            with pytest.raises(InputError, match=f"--host 127.0.0.1 --port {port} .*Leave out --port"):
                page.listen("127.0.0.1", port)
        with pytest.raises(InputError, match=r"--host no\.such\.host\.invalid"):
            page.listen("no.such.host.invalid", 0)

    def test_what_the_server_lacks_is_said_with_its_command(self, monkeypatch):
        monkeypatch.setattr(page, "find_spec", lambda name: None)
        with pytest.raises(InputError, match=r"needs starlette and uvicorn: pip install 'jaxpneumo\[serve\]'"):
            page.main(["--workdir", "runs/none"])


class TestKServe:
    def test_health_and_metadata(self, client):
        assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
        assert client.get("/v2/health/live").json() == {"live": True}
        for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
            assert (client.get(path).status_code, client.get(path).json()) == (200, {"ready": True})
        about = client.get("/v2/models/tiny").json()
        assert about["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1]}]
        assert [output["name"] for output in about["outputs"]] == ["mask", "probability", "score", "area"]
        answer = client.get("/v2/models/huge")
        assert (answer.status_code, answer.json()["error"]) == (404, "there is no model of this name; there is tiny.")

    @pytest.mark.parametrize("nested", [False, True])
    def test_json_in_and_out(self, client, engine, files, nested):
        radiograph = dicom.read(files[0])
        data = radiograph.image.tolist() if nested else radiograph.image.ravel().tolist()
        tensor = {"name": "image", "datatype": "UINT8", "shape": [128, 128], "data": data}
        answer = client.post("/v2/models/tiny/infer", json={"id": "7", "inputs": [tensor]}).json()
        result = engine.predict(radiograph).result()
        assert (answer["id"], answer["model_name"]) == ("7", "tiny")
        found = {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in answer["outputs"]}
        np.testing.assert_array_equal(found["mask"], result.mask)
        np.testing.assert_array_equal(found["probability"].astype(np.float32), result.probability)
        assert (found["area"], found["score"]) == (result.area, pytest.approx(result.score))

    def test_binary_data_in_and_out(self, client, engine, files):
        radiograph = dicom.read(files[1])
        parameters = {"binary_data_size": radiograph.image.size}
        tensor = {"name": "image", "datatype": "UINT8", "shape": [128, 128], "parameters": parameters}
        wanted = [{"name": "score"}, {"name": "probability", "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
        content, headers = head + radiograph.image.tobytes(), {LENGTH: str(len(head))}
        answer = client.post("/v2/models/tiny/infer", content=content, headers=headers)
        length = int(answer.headers[LENGTH])
        score, probability = json.loads(answer.content[:length])["outputs"]
        assert probability["parameters"]["binary_data_size"] == 4 * 128 * 128
        result = engine.predict(radiograph).result()
        assert score["data"] == [pytest.approx(result.score)]
        values = np.frombuffer(answer.content[length:], "<f4").reshape(probability["shape"])
        np.testing.assert_array_equal(values, result.probability)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"name": "x"}, "the input must be image, UINT8"),
            ({"datatype": "FP32"}, "the input must be image, UINT8"),
            ({"shape": [4]}, "of a shape [height, width]"),
            ({"shape": [True, 256]}, "of a shape [height, width]"),
            ({"shape": [3, 3]}, "does not fit the 256 values"),
            ({"data": [0.5] * 256}, "whole numbers from 0 to 255"),
            ({"data": [-1] * 256}, "whole numbers from 0 to 255"),
            ({"data": [256] * 256}, "whole numbers from 0 to 255"),
            ({"data": [[1], [1, 2]]}, "whole numbers from 0 to 255"),
            ({"data": "x"}, "whole numbers from 0 to 255"),
            ({"data": [7] * 256}, "a single grey"),
            ({"parameters": []}, None),
            ({"parameters": [1]}, "is not understood"),
            ({"parameters": {"binary_data_size": 4}}, "does not fit"),
        ],
    )
    def test_what_is_no_image_is_refused_in_words(self, client, changes, words):
        tensor = {"name": "image", "datatype": "UINT8", "shape": [16, 16], "data": list(range(256)), **changes}
        answer = client.post("/v2/models/tiny/infer", json={"inputs": [tensor], "outputs": [{"name": "score"}]})
        assert answer.status_code == (200 if words is None else 400)
        assert words is None or words in answer.json()["error"]

    def test_what_is_no_request_is_refused_in_words(self, client):
        for body in (b"", b"[", b"[]", b"7", b'{"inputs": []}', b'{"inputs": [7]}', b"[" * 100_000):
            answer = client.post("/v2/models/tiny/infer", content=body)
            assert (answer.status_code, answer.json()["error"][:29]) == (400, "the request is not understood")
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1], "data": [1]}
        answer = client.post("/v2/models/tiny/infer", json={"inputs": [tensor], "outputs": [{"name": "x"}]})
        assert answer.json()["error"] == "there is no output x; there are mask, probability, score, area."
        answer = client.post("/v2/models/tiny/infer", content=b"{}", headers={LENGTH: "7"})
        assert answer.json()["error"].startswith(f"{LENGTH} is 7, and the body has 2 bytes")
