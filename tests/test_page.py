"""The page's server: answers as `predict`, refuses strangers, stays up, keeps nothing."""

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import REPOSITORY
from pydicom import dcmread
from serving import Client, options_of, predictor_of, serving

from jaxpneumo.data import rle
from jaxpneumo.data.resize import resize_to_squares
from jaxpneumo.dicom import dicom
from jaxpneumo.predict import predict
from jaxpneumo.predict.reading import Reading, read
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.serve import page
from jaxpneumo.serve.answers import emptied, levels, position, slider
from jaxpneumo.serve.decoding import Decoders
from jaxpneumo.serve.guard import is_own_name, why_refused
from jaxpneumo.serve.site import MOST_BYTES


@pytest.fixture(scope="module")
def files(radiographs):
    return sorted((radiographs / "dicom").rglob("*.dcm"))


@pytest.fixture(scope="module")
def client(evaluated):
    with serving(predictor_of(evaluated, batch_size=4)) as client:
        yield client


@pytest.fixture(scope="module")
def settings(client):
    return client.engine.predictor.settings


def picture_of(client, file):
    return read(Reading(file.parent, client.engine.predictor.settings.size), file.name)


def finding_of(client, file):
    return client.engine.predict(picture_of(client, file)).result()()


def unpacked(answer: dict) -> np.ndarray:
    """The levels of an answer, (H, W)."""
    data = zlib.decompress(base64.b64decode(answer["levels"]))
    return np.frombuffer(data, np.uint8).reshape(answer["height"], answer["width"])


def grey(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def by_command(evaluated, file, output, *options) -> np.ndarray:
    """The mask that `jaxpneumo predict` writes for a file."""
    arguments = ["--workdir", str(evaluated), "--input", str(file), "--output", str(output), *options]
    assert predict.main(arguments) == DONE
    ((code),) = read_submission(output / "submission.csv").values()
    return rle.decode(code, *dicom.read(file).image.shape)


class TestAnswers:
    def test_picture_levels_and_area_are_those_of_predict(self, client, settings, evaluated, files, tmp_path):
        areas = []
        for number, file in enumerate(files[:3]):
            answer = client.send(file.read_bytes()).json()
            mask = by_command(evaluated, file, tmp_path / f"{number}", *options_of())
            assert answer["area"] == mask.sum()
            reached = unpacked(answer) >= position(settings.threshold, settings)
            assert not mask.any() or np.array_equal(reached, mask)
            np.testing.assert_array_equal(grey(base64.b64decode(answer["image"])), dicom.read(file).image)
            areas.append(answer["area"])
        assert any(areas)

    def test_levels_hold_the_region_at_every_position_of_the_slider(self, client, settings, evaluated, files, tmp_path):
        answer = client.send(files[0].read_bytes()).json()
        for threshold in (0.2, 0.345):
            mask = by_command(evaluated, files[0], tmp_path / f"{threshold}", *options_of(threshold))
            reached = unpacked(answer) >= position(threshold, settings)
            # Host and device may round a probability's last bit otherwise.
            assert np.count_nonzero(reached != mask) <= 1
            assert mask.any()

    def test_the_slider_has_the_runs_thresholds_among_its_own(self, settings):
        odd = replace(settings, threshold=0.3337, top_threshold=0.81234, top_area=5)
        thresholds = slider(odd)
        assert thresholds == sorted(thresholds)
        assert len(thresholds) == 202
        for threshold in (0.3337, 0.81234, 0.005, 1.0):
            assert thresholds[position(threshold, odd) - 1] == threshold
        assert len(slider(replace(settings, threshold=0.3))) == 200

    @pytest.mark.parametrize("rule", ["image", "component"])
    def test_levels_agree_with_a_mask_whose_last_bit_was_rounded_otherwise(self, client, settings, files, rule):
        size = settings.size
        settings = replace(settings, threshold=0.5, removal_rule=rule)
        probability = np.full((size, size), np.nextafter(np.float32(0.5), np.float32(0)))
        probability[5:9, 5:9] = probability[0, size - 1] = 0.9
        mask = np.zeros((size, size), np.uint8)
        mask[5:10, 5:8] = 1  # a row more than the host's probabilities say, and a column less
        mask[0, size - 1] = rule == "image"  # a small component, which the other rule removes
        picture = replace(picture_of(client, files[0]), height=size, width=size)
        finding = replace(finding_of(client, files[0]), picture=picture, probability=probability)
        finding = replace(finding, bits=np.packbits(mask, axis=-1), area=int(mask.sum()))
        reached = levels(finding, settings) >= position(0.5, settings)
        mask[0, size - 1] = 1
        np.testing.assert_array_equal(reached, mask)

    def test_the_page_is_told_what_empties_a_mask_at_every_threshold(self, client, settings, files):
        finding = replace(finding_of(client, files[0]), classifier=0.2)
        assert emptied(finding, settings) == ""
        strict = replace(settings, classifier_threshold=0.25)
        assert emptied(finding, strict) == "Left empty: the classifier's 0.200 is below its threshold, 0.25."
        empty = replace(finding, area=0, emptied_by="gate")
        assert emptied(empty, settings) == "Left empty: the gate, another run, outlines nothing here."
        assert emptied(replace(empty, emptied_by=""), settings) == ""

    def test_pictures_are_taken_too_and_have_no_square_millimetres(self, client, files, tmp_path):
        image = dicom.read(files[0]).image
        png = cv2.imencode(".png", image)[1].tobytes()
        answer = client.send(png, name="Fra%CC%88nz/a.png").json()
        of_dicom = client.send(files[0].read_bytes()).json()
        assert (answer["area"], answer["score"]) == (of_dicom["area"], of_dicom["score"])
        assert (answer["area_mm2"], of_dicom["area_mm2"]) == (None, pytest.approx(of_dicom["area"] * 0.139**2))
        assert answer["id"] == "a"

    def test_downloads_are_made_at_the_sliders_threshold(self, client, evaluated, files, tmp_path):
        data = files[0].read_bytes()
        for threshold in (0.3, 0.2):
            answer = client.send(data, "/radiographs/mask.png", X_Threshold=str(threshold))
            expected = by_command(evaluated, files[0], tmp_path / f"{threshold}", *options_of(threshold))
            np.testing.assert_array_equal(grey(answer.content), 255 * expected)
        answer = client.send(data, "/radiographs/outlined.png")
        assert (answer.headers["content-type"], grey(answer.content).shape[2]) == ("image/png", 3)
        assert client.send(data, "/radiographs/mask.gif").status == 404
        for wrong in ("7", "nan", "much"):
            refused = client.send(data, "/radiographs/mask.png", X_Threshold=wrong)
            assert (refused.status, refused.error) == (400, f"X-Threshold is {wrong}; give a number from 0 to 1.")

    def test_downloads_of_dicom_are_predicts_own_and_leave_nothing_behind(self, client, files, tmp_path, monkeypatch):
        pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'jaxpneumo[dicom]'")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        data, source = files[0].read_bytes(), dcmread(files[0])
        segment = client.send(data, "/radiographs/seg.dcm", X_Threshold="0.2")
        assert (segment.status, segment.headers["content-type"]) == (200, "application/dicom")
        found = dcmread(BytesIO(segment.content))
        assert (found.Modality, found.PatientID) == ("SEG", source.PatientID)
        mask = grey(client.send(data, "/radiographs/mask.png", X_Threshold="0.2").content)
        np.testing.assert_array_equal(found.pixel_array.squeeze() * 255, mask)
        report = dcmread(BytesIO(client.send(data, "/radiographs/sr.dcm", X_Threshold="0.2").content))
        assert found.SOPInstanceUID in str(report)
        assert client.send(data, "/radiographs/seg.dcm", X_Threshold="0.2").content == segment.content
        assert (
            dcmread(BytesIO(client.send(data, "/radiographs/seg.dcm").content)).SOPInstanceUID != found.SOPInstanceUID
        )
        assert client.send(data, "/radiographs/seg.dcm", X_Threshold="1").error.startswith("nothing is outlined")
        assert client.send(data, "/radiographs/sr.dcm", X_Threshold="1").status == 200
        png = cv2.imencode(".png", dicom.read(files[0]).image)[1].tobytes()
        assert "has no DICOM results" in client.send(png, "/radiographs/sr.dcm", name="a.png").error
        assert list(tmp_path.iterdir()) == []

    def test_what_cannot_be_used_is_answered_in_words(self, client, files):
        for data, words in (
            (b"", "film.dcm is not a DICOM, PNG or JPEG file"),
            (files[0].read_bytes()[:3000], "film.dcm"),
            (cv2.imencode(".png", np.eye(99, dtype=np.uint8))[1].tobytes()[:70], "film.dcm is truncated or damaged"),
        ):
            answer = client.send(data)
            assert answer.status == 400
            assert words in answer.error

    def test_a_picture_of_something_else_is_refused_with_the_way_out(self, client, files):
        lateral = dcmread(files[0])
        lateral.ViewPosition = "LL"
        data = BytesIO()
        lateral.save_as(data)
        error = client.send(data.getvalue()).error
        assert "View Position is LL" in error
        assert "--any-image" in error

    def test_many_at_once_have_the_results_of_each_alone(self, client, files):
        engine, pictures = client.engine, [picture_of(client, file) for file in files[:11]]
        alone = [engine.predict(picture).result()() for picture in pictures]
        together = [future.result()() for future in [engine.predict(picture) for picture in pictures]]
        for one, other in zip(alone, together, strict=True):
            assert one.picture == other.picture
            # Another batch rounds otherwise.
            assert other.score == pytest.approx(one.score, abs=1e-5)
            assert abs(one.area - other.area) <= 2
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda file: client.send(file.read_bytes()).json(), files[:6]))
        assert [answer["id"] for answer in answers] == [one.picture.uid for one in alone[:6]]

    def test_a_failure_of_one_in_a_batch_leaves_the_others_alone(self, client, files):
        good = picture_of(client, files[0])
        wrong = replace(good, image=np.zeros((3, 5), np.uint8))
        futures = [client.engine.predict(one) for one in (good, wrong, good, good)]
        expected = finding_of(client, files[0]).area
        assert [futures[number].result()().area for number in (0, 2, 3)] == [expected] * 3
        with pytest.raises(ValueError, match="broadcast"):
            futures[1].result()


class TestUploads:
    def test_one_that_is_too_large_is_refused_before_it_is_read(self, client):
        answer = client.send(b"DICM", Content_Length=str(MOST_BYTES + 1))
        assert answer.status == 413
        assert answer.error == "the upload has more than 64 MiB. `jaxpneumo predict` takes larger files."

    def test_one_without_a_length_is_cut_off(self, client):
        parts = iter([bytes(1 << 20)] * 1000)
        with pytest.raises(OSError, match=r"Broken pipe|reset"):  # nobody takes the rest
            client.send(parts)
        assert 64 <= 1000 - len(list(parts)) < 300
        assert client.get("/v2/health/live").status == 200

    def test_a_decoder_that_dies_or_hangs_costs_its_file_alone(self, files):
        decoders = Decoders(1, Reading(Path(), 32), seconds=2)
        data = files[0].read_bytes()
        try:
            upload = decoders.read(data, "film.dcm").result()
            image = dicom.read(files[0]).image
            np.testing.assert_array_equal(upload.image, image)
            np.testing.assert_array_equal(upload.picture.image, resize_to_squares(image, (32,))[0])
            (decoder,) = decoders._all
            os.kill(decoder._process.pid, signal.SIGSTOP)
            with pytest.raises(InputError, match=r"film\.dcm: decoding it took too long"):
                decoders.read(data, "film.dcm").result()
            os.kill(decoder._process.pid, signal.SIGKILL)
            with pytest.raises(InputError, match=r"film\.dcm: decoding it crashed"):
                decoders.read(data, "film.dcm").result()
            assert decoders.read(data, "film.dcm").result().picture.sha256 == upload.picture.sha256
        finally:
            decoders.close()


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
            answer = client.get("/", Host=host)
            assert (answer.status, "jaxpneumo page" in answer.error) == (403, True)
        for host in ("localhost:9000", "[::1]:8000", "127.0.0.1"):  # also through a tunnel with another port
            assert client.get("/", Host=host).status == 200

    def test_a_request_from_another_sites_page_is_refused(self, client, files):
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"http://localhost:{client.port}"):
            answer = client.send(files[0].read_bytes(), Origin=origin)
            assert (answer.status, answer.error) == (403, "the request comes from a page of another site.")
        assert client.send(files[0].read_bytes(), Origin=client.address.rstrip("/")).status == 200
        assert why_refused("127.0.0.1:1", "http://127.0.0.1:1", "127.0.0.1") == ""

    def test_no_other_site_may_read_or_frame_an_answer_and_no_browser_keeps_one(self, client):
        for path in ("/", "/v2", "/nothing"):
            headers = client.get(path, Origin=client.address.rstrip("/")).headers
            assert not [name for name in headers if name.startswith("access-control")]
            assert (headers["cache-control"], headers["x-frame-options"]) == ("no-store", "DENY")
        policy = client.get("/").headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert client.ask("OPTIONS", "/radiographs", Origin="http://evil.example").status == 403

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


@pytest.mark.long
class TestCommand:
    """The command in a process of its own."""

    @pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
    def test_it_prints_the_address_serves_says_nothing_of_requests_and_ends(self, evaluated, files, tmp_path, end):
        line = [sys.executable, "-m", "jaxpneumo", "page", "--workdir", str(evaluated), "--verbose"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)}
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process:
            told = []
            for line in process.stdout:
                told.append(line)
                if found := re.match(r"Open http://127\.0\.0\.1:(\d+)/ in a browser", line):
                    break
            client = Client(int(found[1]))
            answer = client.send(files[0].read_bytes(), name="secret.dcm")
            assert (answer.status, answer.json()["id"]) == (200, dicom.read(files[0]).uid)
            assert client.send(b"secret", name="secret.dcm").status == 400
            assert client.get(f"/v2/models/{evaluated.name}").status == 200
            process.send_signal(end)
            rest, _ = process.communicate(timeout=60)
        assert process.returncode == DONE, rest
        for word in ("secret", dicom.read(files[0]).patient_id, "POST", "Traceback"):
            assert word not in "".join(told) + rest
        assert [file for file in tmp_path.rglob("*") if file.is_file()] == []

    def test_another_host_is_warned_about(self, evaluated):
        line = [sys.executable, "-m", "jaxpneumo", "page", "--workdir", str(evaluated), "--host", "0.0.0.0"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process:
            for line in process.stdout:
                if line.startswith("Everybody who can reach 0.0.0.0 can use this page"):
                    break
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
        assert "without a password" in line
