"""An Orthanc archive for tests. It binds all interfaces, so it gets a network that has none but the loopback."""

import base64
import ctypes
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
CLONE_NEWNET = 0x40000000


@contextmanager
def network_of_its_own() -> Iterator[None]:
    """This thread, and the processes and threads that it starts, have a loopback interface and no other."""
    library = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as before:
        if library.unshare(CLONE_NEWNET) != 0:
            pytest.skip(
                f"no network of its own for Orthanc ({os.strerror(ctypes.get_errno())}): it takes root on Linux"
            )
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            library.setns(before.fileno(), CLONE_NEWNET)


@dataclass(frozen=True)
class Orthanc:
    """A running archive: AE title PACS, DICOM on port 4242, HTTP on port 8042 for the user `me`, password `secret`."""

    folder: Path
    url: str = "http://127.0.0.1:8042"
    port: int = 4242

    def get(self, path: str) -> Any:
        """The answer to a request, from JSON."""
        return json.loads(self.get_bytes(path))

    def get_bytes(self, path: str) -> bytes:
        """The answer to a request."""
        request = urllib.request.Request(self.url + path)
        request.add_header("Authorization", f"Basic {base64.b64encode(b'me:secret').decode()}")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read()

    def files(self) -> dict[str, bytes]:
        """All DICOM files that it has, by SOP Instance UID."""
        found = self.get("/instances?expand")
        return {one["MainDicomTags"]["SOPInstanceUID"]: self.get_bytes(f"/instances/{one['ID']}/file") for one in found}


@contextmanager
def running(folder: Path, listener_port: int = 11112, **settings: Any) -> Iterator[Orthanc]:
    """Starts Orthanc in a network of its own; skips where it is not installed."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or not PLUGIN.exists():
        pytest.skip("Orthanc and its DICOMweb plugin are not installed (Debian: orthanc, orthanc-dicomweb)")
    folder.mkdir()
    configuration = {
        "StorageDirectory": str(folder / "files"),
        "IndexDirectory": str(folder / "files"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": 8042,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"me": "secret"},
        "DicomAet": "PACS",
        "DicomPort": 4242,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowStore": False,
        "DicomModalities": {
            "listener": ["LISTENER", "127.0.0.1", listener_port],
            "sender": ["STORESCU", "127.0.0.1", 104],
        },
        **settings,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with network_of_its_own(), open(folder / "log", "wb") as log:
        line = [program, str(folder / "orthanc.json")]
        with subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, cwd=folder) as process:
            try:
                _wait(Orthanc(folder), process)
                yield Orthanc(folder)
            finally:
                process.kill()


def _wait(orthanc: Orthanc, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while True:
        assert process.poll() is None, (orthanc.folder / "log").read_text()
        try:
            orthanc.get("/system")
            return
        except OSError:
            assert time.monotonic() < end, (orthanc.folder / "log").read_text()
            time.sleep(0.1)
