"""`jaxpneumo dicomweb` beside Orthanc: fetches, predicts as predict does, stores; and says what it cannot do."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import orthanc
import pydicom
import pytest

from jaxpneumo.predict.predict import main as predict
from jaxpneumo.process.errors import BAD_INPUT, DONE, FAILED, InputError, exit_code
from jaxpneumo.serve import dicomweb, pull

COUNT = 4


@pytest.fixture
def files(radiographs):
    return sorted((radiographs / "dicom").rglob("*.dcm"))[:COUNT]


def rows(folder):
    return sorted((folder / "submission.csv").read_text().splitlines())


def test_studies_are_fetched_predicted_and_their_results_stored(evaluated, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(pull.VARIABLE, "me:secret")
    (tmp_path / "in").mkdir()
    for path in files:
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    given = ["--workdir", str(evaluated), "--overlays", "0"]
    assert predict([*given, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "plain")]) == DONE
    with orthanc.running(tmp_path / "orthanc") as archive:
        url = f"{archive.url}/dicom-web"
        client = dicomweb.connect(url, "me:secret")
        for path in files:
            assert dicomweb.store(client, path) == ""
        line = ["--url", url, "--query", "Modality=CR", "--output", str(tmp_path / "out"), *given]
        assert pull.main([*line, "--dicom", "sr", "--store"]) == DONE
        assert "4 radiographs match; 0 objects of other kinds" in capsys.readouterr().out
        first = archive.files()
        assert len(first) == 2 * COUNT, "a report of each radiograph"
        noted = (tmp_path / "out" / pull.STORED).read_text()
        # Once more: the reports are no radiographs, nothing is fetched, predicted or stored again.
        assert pull.main([*line, "--dicom", "sr", "--store"]) == DONE
        assert archive.files() == first
        assert (tmp_path / "out" / pull.STORED).read_text() == noted
        study = pydicom.dcmread(files[0]).StudyInstanceUID
        one = ["--url", url, "--study", study, "--output", str(tmp_path / "one"), *given]
        assert pull.main(one) == DONE
        with pytest.raises(InputError, match="has no radiographs that match"):
            pull.main([*line[:3], "Modality=MG", *line[4:5], str(tmp_path / "none"), *given])
    assert rows(tmp_path / "out") == rows(tmp_path / "plain")
    assert len(rows(tmp_path / "one")) == 2
    reports = [pydicom.dcmread(BytesIO(data)) for data in first.values()]
    studies = [each.StudyInstanceUID for each in reports if each.Modality == "SR"]
    assert sorted(studies) == sorted(pydicom.dcmread(path).StudyInstanceUID for path in files)


class TestService:
    """Services that do not do what they should: a small one that answers as it is told."""

    @pytest.fixture
    def service(self):
        """Gives an address, the requests that came, and where to say what is answered."""
        answers, requests = [], []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append(self.path)
                status, headers, content = answers[0]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web", requests, answers
        server.shutdown()
        server.server_close()

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            ((503, {}, b""), "answered HTTP 503"),
            ((200, {"Content-Type": "text/html"}, b"<html>"), "answered what cannot be read"),
            ((200, {"Content-Type": "application/dicom+json"}, b'[{"00080018": 5}]'), "answered what cannot be read"),
        ],
    )
    def test_answers_that_cannot_be_used(self, service, answer, words):
        url, _, answers = service
        answers.append(answer)
        with pytest.raises(dicomweb.RefusedError, match=words):
            dicomweb.find(dicomweb.connect(url), None, {"Modality": "CR"})

    def test_a_service_that_gives_the_same_again_and_again_is_asked_twice(self, service):
        url, requests, answers = service
        tags = {"00080016": "1.2.840.10008.5.1.4.1.1.1", "00080018": "1.3", "0020000D": "1.1", "0020000E": "1.2"}
        instance = {tag: {"vr": "UI", "Value": [value]} for tag, value in tags.items()}
        answers.append((200, {"Content-Type": "application/dicom+json"}, json.dumps([instance]).encode()))
        assert dicomweb.find(dicomweb.connect(url), "1.1", {}) == ([dicomweb.Instance("1.1", "1.2", "1.3")], 0)
        assert len(requests) == 2

    def test_no_other_address_is_contacted(self, service, monkeypatch):
        url, requests, answers = service
        other = url.replace("/dicom-web", "/elsewhere")
        answers.append((302, {"Location": other}, b""))
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        with pytest.raises(dicomweb.RefusedError, match="answered HTTP 302"):
            dicomweb.find(dicomweb.connect(url), None, {})
        assert len(requests) == 1
        assert requests[0].startswith("/dicom-web/instances")

    def test_a_patient_of_the_request_is_not_told(self, service):
        url, _, answers = service
        answers.append((404, {}, b""))
        with pytest.raises(dicomweb.RefusedError) as caught:
            dicomweb.find(dicomweb.connect(url), None, {"PatientID": "SECRET"})
        assert "SECRET" not in str(caught.value)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ([], "name radiographs with --study UID, with --query"),
            (["--study", "x"], "--study: x is no UID"),
            (["--query", "PatientID=5"], "must not name patients"),
            (["--query", "Modalty=CR"], 'Did you mean "Modality"?'),
            (["--query", "Modality"], "Modality needs a value"),
            (["--query", "Modality=CR&PatientID=5"], "Modality needs a value"),
            (["--study", "1.2", "--url", "pacs"], "--url 'pacs' is no address"),
            (["--study", "1.2", "--url", "https://me:x@pacs"], "must not hold a user or password"),
            (["--study", "1.2", "--credentials", "none"], "--credentials none cannot be read"),
            (["--study", "1.2", "--authorities", "none"], "--authorities none cannot be used"),
        ],
    )
    def test_that_cannot_be_used(self, options, words, tmp_path, capsys):
        given = ["--url", "http://127.0.0.1:1/dicom-web", "--workdir", "run", "--output", str(tmp_path / "out")]
        assert exit_code(pull.main, [*given, *options]) == BAD_INPUT
        assert words in capsys.readouterr().err

    def test_a_service_that_cannot_be_reached(self, tmp_path, capsys):
        given = ["--url", "http://127.0.0.1:1/dicom-web", "--workdir", "run", "--output", str(tmp_path / "out")]
        assert pull.main([*given, "--study", "1.2"]) == FAILED
        assert "cannot be reached (ConnectionError). What was fetched" in capsys.readouterr().err
