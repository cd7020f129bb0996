"""`jaxpneumo dicomweb` beside Orthanc: fetches, predicts as predict does, stores; and says what it cannot do."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import orthanc
import pydicom
import pytest

from jaxpneumo.predict.predict import main as predict
from jaxpneumo.process.errors import BAD_INPUT, DONE, FAILED, PARTIAL, InputError, exit_code
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


@pytest.fixture
def service():
    """Gives an address, the requests that came, and where to say what is answered.

    That is status, headers and content, or a function of the path that says so, with None to close the connection.
    """
    answers, requests = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            answer = answers[0](self.path) if callable(answers[0]) else answers[0]
            if answer is None:
                self.close_connection = True
                return
            status, headers, content = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web", requests, answers
    server.shutdown()
    server.server_close()


def listing(instances, **headers):
    """The answer to a search: these radiographs."""
    found = []
    for each in instances:
        tags = {"00080016": "1.2.840.10008.5.1.4.1.1.1", "00080018": each.uid, "0020000D": each.study}
        tags["0020000E"] = each.series
        found.append({tag: {"vr": "UI", "Value": [value]} for tag, value in tags.items()})
    return 200, {"Content-Type": "application/dicom+json", **headers}, json.dumps(found).encode()


def delivery(path):
    """The answer that holds a DICOM file."""
    content = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n--x--\r\n"
    return 200, {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}, content


def instance_of(path):
    header = pydicom.dcmread(path, stop_before_pixels=True)
    return dicomweb.Instance(header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID)


def archive_of(files, closed=()):
    """Answers as a service with these radiographs does; for the instances of `closed` it closes the connection."""
    there = {instance_of(path): path for path in files}

    def answer(request):
        path, _, query = request.partition("?")
        parts = path.split("/")
        if parts[-1] in closed:
            return None
        if parts[-2] == "instances":
            return delivery(next(path for each, path in there.items() if each.uid == parts[-1]))
        if parts[-1] == "instances":
            matching = [each for each in there if "studies" not in parts or each.study in parts]
            return listing([] if "offset" in query else matching)
        return 200, {"Content-Type": "application/dicom+json"}, b"{}"  # of what was stored

    return answer


class TestOneQuery:
    """An output folder that held other studies before, and objects that the service cannot deliver."""

    def test_only_what_it_found_is_predicted_and_stored(self, service, evaluated, files, tmp_path, capsys):
        url, requests, answers = service
        first, *others = (instance_of(path) for path in files)
        given = ["--workdir", str(evaluated), "--overlays", "0", "--output", str(tmp_path / "out"), "--dicom", "sr"]
        answers.append(archive_of(files))
        assert pull.main(["--url", url, "--study", first.study, *given]) == DONE
        before = len(requests)
        elsewhere = ["--url", url.replace("dicom-web", "elsewhere"), "--study", others[0].study, *given, "--store"]
        assert exit_code(pull.main, elsewhere) == BAD_INPUT
        assert f"has radiographs of {url}, and its results must not come to another" in capsys.readouterr().err
        assert len(requests) == before
        # The service has the other studies and cannot deliver the last of them, also when it is asked again.
        answers[0] = archive_of(files[1:], closed=[others[-1].uid])
        query = ["--url", f"{url}/", "--query", "Modality=CR", *given, "--store"]
        for stored in (len(others) - 1, 0):
            before = len(requests)
            assert pull.main(query) == PARTIAL
            assert f"{others[-1].uid}: {url} cannot be reached (ConnectionError)" in capsys.readouterr().out
            assert sum(path.endswith("/studies") for path in requests[before:]) == stored
        sent = [json.loads(line)["file"] for line in (tmp_path / "out" / pull.STORED).read_text().splitlines()]
        assert sorted(sent) == sorted(str(tmp_path / "out/dicom_results" / each.uid / "sr.dcm") for each in others[:-1])
        assert len(rows(tmp_path / "out")) == 1 + len(others) - 1

    def test_a_service_that_answers_nothing_is_away(self, service, files, tmp_path):
        url, requests, answers = service
        found = [instance_of(path) for path in files]
        answers.append(None)
        for count in (1, len(found)):
            before = len(requests)
            with pytest.raises(ConnectionError):
                pull.fetch_all(dicomweb.connect(url), found[:count], tmp_path / "out", quiet=True)
            assert len(requests) - before == min(count, pull.MOST_UNREACHED) + 1

    def test_objects_that_it_cannot_deliver_do_not_keep_the_others_back(self, service, files, tmp_path):
        url, requests, answers = service
        found = [instance_of(path) for path in files]
        answers.append(archive_of(files, closed=[each.uid for each in found[:3]]))
        problems = pull.fetch_all(dicomweb.connect(url), found, tmp_path, quiet=True)
        assert [problem.split(":")[0] for problem in problems] == [each.uid for each in found[:3]]
        assert [path.stem for path in tmp_path.iterdir()] == [found[3].uid]
        assert sum(path.endswith("/studies?limit=1") for path in requests) == 1

    def test_a_result_that_it_does_not_take_is_told_and_tried_again(self, service, files, tmp_path):
        url, requests, answers = service
        taken = 200, {"Content-Type": "application/dicom+json"}, b"{}"
        answers.append(lambda _: None if len(requests) == 2 else taken)
        client, journal = dicomweb.connect(url), tmp_path / pull.STORED
        (problem,) = pull.store_all(client, files, journal, quiet=True)
        assert problem == f"{files[1]}: {url} cannot be reached (ConnectionError)"
        assert len(requests) == len(files)
        assert pull.store_all(client, files, journal, quiet=True) == []
        assert len(requests) == len(files) + 1

    def test_an_object_that_was_not_asked_for_is_not_kept(self, service, files, tmp_path):
        url, _, answers = service
        asked = instance_of(files[0])
        answers.append(delivery(files[1]))
        (problem,) = pull.fetch_all(dicomweb.connect(url), [asked], tmp_path / "out", quiet=True)
        assert problem == f"{asked.uid}: {url} answered another object than the one asked for"
        assert not list((tmp_path / "out").iterdir())


class TestService:
    """Services that do not do what they should: a small one that answers as it is told."""

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

    def test_a_service_that_gives_the_same_again_and_again_is_asked_twice_and_may_have_more(self, service):
        url, requests, answers = service
        instance = dicomweb.Instance("1.1", "1.2", "1.3")
        answers.append(listing([instance]))
        found, others, partial = dicomweb.find(dicomweb.connect(url), "1.1", {})
        assert (found, others) == ([instance], 0)
        assert f"{url} may have more that matches: it gave the same again" in partial
        assert len(requests) == 2

    @pytest.mark.parametrize(
        ("warned", "words"),
        [([0], ""), ([1], "says that it has more, and does not give it"), ([2], "says that it has more")],
    )
    def test_what_it_says_of_more_is_told_unless_it_gives_more(self, service, warned, words):
        """Two pages and an empty one; a page that says that there are more is right where a page follows."""
        url, requests, answers = service
        pages = [[dicomweb.Instance("1.1", "1.2", f"1.3.{i}")] for i in range(2)] + [[]]

        def answer(_):
            number = len(requests) - 1
            return listing(pages[number], **({"Warning": '299 x: "There are more."'} if number in warned else {}))

        answers.append(answer)
        found, _, partial = dicomweb.find(dicomweb.connect(url), None, {})
        assert len(found) == 2
        assert (partial == "") == (words == "")
        assert words in partial

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
            (["--study", "1.2", "--url", "https://pacs", "--authorities", "none"], "--authorities none cannot be used"),
            (["--study", "1.2", "--authorities", "none"], "--authorities is for addresses of https"),
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

    @pytest.mark.parametrize(
        ("address", "credentials", "warned"),
        [("http://192.0.2.1", "me:x", True), ("http://127.0.0.1:1", "me:x", False), ("http://192.0.2.1", "", False)],
    )
    def test_credentials_in_the_clear_are_warned_of(self, address, credentials, warned, tmp_path, monkeypatch, caplog):
        """The service is not asked: the documentation's address is nobody's."""
        monkeypatch.setenv(pull.VARIABLE, credentials)
        monkeypatch.setattr(pull, "_pull", lambda *_: DONE)
        given = ["--url", address, "--workdir", "run", "--output", str(tmp_path / "out"), "--study", "1.2"]
        assert pull.main(given) == DONE
        assert ("the credentials can be read on the way" in caplog.text) == warned
