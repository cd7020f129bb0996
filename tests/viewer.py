"""OHIF before Orthanc, on loopback: one small server gives the viewer's files and passes its requests on."""

import functools
import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
CONFIG = """
window.config = {
  extensions: [], modes: [], customizationService: {}, showStudyList: true, maxNumberOfWebWorkers: 2,
  investigationalUseDialog: { option: 'never' }, defaultDataSourceName: 'dicomweb',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'dicomweb',
    configuration: {
      name: 'Orthanc', friendlyName: 'Orthanc', qidoRoot: location.origin + '/dicom-web',
      wadoRoot: location.origin + '/dicom-web', imageRendering: 'wadors', thumbnailRendering: 'wadors',
      qidoSupportsIncludeField: false, supportsFuzzyMatching: false, enableStudyLazyLoad: true,
      bulkDataURI: { enabled: true }, omitQuotationForMultipartRequest: true,
    },
  }],
};
"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of the viewer, its configuration, and what Orthanc answers."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments, orthanc: str, **options):
        self.orthanc = orthanc
        super().__init__(*arguments, **options)

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/dicom-web"):
            self._pass_on()
        elif self.path.startswith("/app-config.js"):
            self._answer(200, "text/javascript", CONFIG.encode())
        else:
            if not Path(self.translate_path(self.path)).is_file():
                self.path = "/index.html"
            super().do_GET()

    def _pass_on(self) -> None:
        headers = {name: self.headers[name] for name in ("Accept", "Host") if name in self.headers}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.orthanc + self.path, headers=headers)) as answer:
                self._answer(answer.status, answer.headers["Content-Type"], answer.read())
        except urllib.error.HTTPError as error:
            self._answer(error.code, "text/plain", error.read())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def orthanc(folder: Path, files: Sequence[Path]) -> Iterator[str]:
    """An archive that holds these files and answers this machine only; yields its address."""
    program = shutil.which("Orthanc")
    if program is None or not PLUGIN.exists():
        pytest.skip("no Orthanc with DICOMweb here: apt-get install orthanc orthanc-dicomweb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "StorageDirectory": str(folder / "archive"),
        "IndexDirectory": str(folder / "archive"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "DicomServerEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    address = f"http://127.0.0.1:{port}"
    with (
        open(folder / "orthanc.log", "wb") as log,
        subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log) as process,
    ):
        try:
            _wait_for(f"{address}/system")
            for path in files:
                request = urllib.request.Request(f"{address}/instances", data=path.read_bytes())
                with urllib.request.urlopen(request) as answer:
                    assert json.load(answer)["Status"] == "Success"
            yield address
        finally:
            process.terminate()


@contextmanager
def ohif(dist: Path, archive: str) -> Iterator[str]:
    """The viewer on the files of an archive; yields its address."""
    handler = functools.partial(Handler, directory=str(dist), orthanc=archive)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _wait_for(address: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
