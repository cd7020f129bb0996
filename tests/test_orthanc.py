"""Beside a real archive, Orthanc: radiographs by storescu and by its own routing, results back in it, both ways."""

import os
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import orthanc
import pydicom
import pytest
from helpers import REPOSITORY
from listening import KINDS, ROOT, free_port, listening, log, radiograph, wait_until

from jaxpneumo.predict.predict import main as predict
from jaxpneumo.process import errors
from jaxpneumo.process.errors import STOPPED
from jaxpneumo.serve import dicomweb
from jaxpneumo.serve.partners import Destination
from jaxpneumo.serve.spool import ASIDE, DONE, Spool

PARTNERS = """
[peers.PACS]
addresses = ["127.0.0.1"]

[peers.STORESCU]
addresses = ["127.0.0.1"]

[destinations.archive]
kind = "dicom"
address = "127.0.0.1"
port = 4242
title = "PACS"
results = ["sr"]

[destinations.web]
kind = "dicomweb"
url = "http://127.0.0.1:8042/dicom-web"
results = ["seg"]
credentials = "web.credentials"
"""


def routing() -> str:
    """The rule of docs/hospital.md, for these tests' title of the listener."""
    page = (REPOSITORY / "docs/hospital.md").read_text()
    return page.split("```lua\n")[1].split("```")[0].replace("JAXPNEUMO", "LISTENER")


@pytest.fixture
def files(tmp_path):
    return [radiograph(tmp_path / f"{i}.dcm", f"{ROOT}.{i}", i) for i in range(6)]


@pytest.fixture
def partners(tmp_path):
    (tmp_path / "web.credentials").write_text("me:secret")
    (tmp_path / "partners.toml").write_text(PARTNERS)
    return tmp_path / "partners.toml"


def storescu(port, title, files):
    """Sends with DCMTK, which shares no code with the listener; the JPEG files as they are."""
    # pynetdicom brings programs of the same names into the environment's folder.
    elsewhere = [each for each in os.get_exec_path() if Path(each) != Path(sys.executable).parent]
    if not (program := shutil.which("storescu", path=os.pathsep.join(elsewhere))):
        pytest.skip("storescu is not installed (Debian: dcmtk)")
    line = [program, "-xy", "-aet", "STORESCU", "-aec", title, "127.0.0.1", str(port), *map(str, files)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_results_come_back_by_c_store_and_by_stow(files, partners, tmp_path):
    with orthanc.running(tmp_path / "orthanc") as archive:
        with listening(tmp_path / "spool", partners) as one:
            assert storescu(one.port, "LISTENER", files).returncode == 0
            wait_until(lambda: Spool(one.spool).count(DONE) == len(files))
            assert storescu(one.port, "OTHER", files).returncode != 0, "another called title"
            assert one.end() == STOPPED
        got = archive.files()
    assert sorted(got) == sorted(f"{ROOT}.{i}.{kind}" for i in range(len(files)) for kind in range(len(KINDS)))
    for data in got.values():
        assert pydicom.dcmread(BytesIO(data)).pixel_array.shape == (16, 16)
    assert {line["destination"] for line in log(one.spool) if line["event"] == "sent"} == {"archive", "web"}


def test_the_archive_sends_its_radiographs_itself(files, partners, tmp_path):
    (tmp_path / "routing.lua").write_text(routing())
    port = free_port()
    with orthanc.running(tmp_path / "orthanc", port, LuaScripts=[str(tmp_path / "routing.lua")]) as archive:
        with listening(tmp_path / "spool", partners, port=port) as one:
            assert storescu(archive.port, "PACS", files).returncode == 0
            wait_until(lambda: Spool(one.spool).count(DONE) == len(files))
            assert one.end() == STOPPED
        got = archive.files()
    assert len(got) == len(files) * (1 + len(KINDS)), "the radiographs, and their results once each"
    received = [line["uid"] for line in log(one.spool) if line["event"] in ("received", "known")]
    assert sorted(received) == [f"{ROOT}.{i}" for i in range(len(files))], "no result came back to the listener"
    for path in files:
        original = pydicom.dcmread(path)
        assert pydicom.dcmread(BytesIO(got[original.SOPInstanceUID])) == original


@pytest.mark.long
def test_masks_in_the_archive_are_those_of_predict(evaluated, radiographs, tmp_path):
    """The command itself with a small run: every kind of result, compared with `predict --dicom` on the same files."""
    given = sorted((radiographs / "dicom").rglob("*.dcm"))[:6]
    kinds = "seg,sr,presentation,capture"
    (tmp_path / "in").mkdir()
    for path in given:
        shutil.copy(path, tmp_path / "in")
    options = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--dicom", kinds]
    assert predict(["--workdir", str(evaluated), "--overlays", "0", "--batch-size", "1", *options]) == errors.DONE
    expected = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, (tmp_path / "out").rglob("*.dcm"))}
    assert {"SEG", "SR", "PR", "OT"} == {one.Modality for one in expected.values()}
    partners, port, health = tmp_path / "partners.toml", free_port(), free_port()
    archive_alone = PARTNERS.split("[destinations.web]")[0]
    partners.write_text(archive_alone.replace('["sr"]', str(kinds.split(",")).replace("'", '"')))
    with orthanc.running(tmp_path / "orthanc") as archive:
        line = [sys.executable, "-m", "jaxpneumo", "listen", "--workdir", evaluated, "--spool", tmp_path / "spool"]
        line += ["--partners", partners, "--title", "LISTENER", "--port", port, "--health-port", health]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        with subprocess.Popen([*map(str, line)], env=environment) as process:
            try:
                spool = Spool(tmp_path / "spool")
                wait_until(lambda: any(each["event"] == "started" for each in log(spool.folder)), process, 120)
                assert storescu(port, "LISTENER", given).returncode == 0
                wait_until(lambda: spool.count(DONE) == len(given), process, 120)
                got = {uid: pydicom.dcmread(BytesIO(data)) for uid, data in archive.files().items()}
                # The listener's own pictures, sent to it, are no radiographs.
                pictures = [path for path in (tmp_path / "out").rglob("capture.dcm")]
                assert storescu(port, "LISTENER", pictures).returncode == 0
                wait_until(lambda: spool.count(ASIDE) == len(pictures), process, 60)
            finally:
                process.terminate()
                assert process.wait(60) == STOPPED
    assert got == expected
    for uid, one in got.items():
        if "PixelData" in one:
            np.testing.assert_array_equal(one.pixel_array, expected[uid].pixel_array)


class TestDicomweb:
    def test_finds_fetches_and_stores(self, files, tmp_path):
        ct = pydicom.dcmread(radiograph(tmp_path / "ct.dcm", f"{ROOT}.77"))
        ct.Modality, ct.SOPClassUID = "CT", "1.2.840.10008.5.1.4.1.1.2"
        ct.file_meta.MediaStorageSOPClassUID = ct.SOPClassUID
        ct.save_as(tmp_path / "ct.dcm")
        with orthanc.running(tmp_path / "orthanc") as archive:
            client = dicomweb.connect(f"{archive.url}/dicom-web", "me:secret")
            for path in (*files, tmp_path / "ct.dcm"):
                assert dicomweb.store(client, path) == ""
            assert dicomweb.store(client, files[0]) == "", "once more is no failure"
            found, others, partial = dicomweb.find(client, None, {})
            assert ({one.uid for one in found}, others, partial) == ({f"{ROOT}.{i}" for i in range(6)}, 1, "")
            study = pydicom.dcmread(files[2]).StudyInstanceUID
            (one,), *_ = dicomweb.find(client, study, {})
            fetched = pydicom.dcmread(BytesIO(dicomweb.fetch(client, one)))
            assert dicomweb.find(client, None, {"Modality": "MR"}) == ([], 0, "")
        original = pydicom.dcmread(files[2])
        assert fetched == original
        assert fetched.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID, "JPEG, as it was stored"

    def test_says_what_went_wrong(self, files, tmp_path):
        (tmp_path / "bad.dcm").write_bytes(files[0].read_bytes()[:1500])
        with orthanc.running(tmp_path / "orthanc") as archive:
            client = dicomweb.connect(f"{archive.url}/dicom-web", "me:secret")
            assert "answered HTTP 4" in dicomweb.store(client, tmp_path / "bad.dcm")
            for url, credentials, words in (
                (f"{archive.url}/dicom-web", "me:wrong", "answered HTTP 401"),
                (f"{archive.url}/nothing", "me:secret", "answered HTTP 404"),
                ("http://127.0.0.1:1/dicom-web", "", "cannot be reached"),
            ):
                with pytest.raises((ConnectionError, dicomweb.RefusedError), match=words):
                    dicomweb.find(dicomweb.connect(url, credentials), None, {"PatientID": "SECRET"})
            away = Destination("web", "dicomweb", ("sr",), url="http://127.0.0.1:1/dicom-web")
            with pytest.raises(ConnectionError, match="cannot be reached"):
                list(dicomweb.send(away, files))
