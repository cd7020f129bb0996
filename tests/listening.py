"""A listener for tests: a process of its own, with a small function in place of the network, and senders."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from jaxpneumo.dicom import dicom
from jaxpneumo.process.command import start_logging
from jaxpneumo.process.errors import exit_code
from jaxpneumo.serve.listen import Settings, serve
from jaxpneumo.serve.model_process import Look, Verdict
from jaxpneumo.serve.partners import Destination, read_partners
from jaxpneumo.serve.spool import Limits

REPOSITORY = Path(__file__).resolve().parent.parent  # helpers.py has it too, and loads JAX
KINDS = ("sr", "seg")
ROOT = "1.2.826.0.1.3680043.8.498"


def make_look(seconds: float = 0.0) -> Look:
    """What the model does, made small: it reads the image, and every result is a picture of the mean grey."""

    def look(image: Path, into: Path) -> Verdict:
        radiograph = dicom.read(image)
        if radiograph.body_part == "HAND":
            return Verdict("not a frontal chest radiograph: Body Part Examined is HAND")
        if radiograph.body_part == "CRASH":
            os.kill(os.getpid(), signal.SIGSEGV)
        if radiograph.body_part == "HANG":
            time.sleep(1000)
        if radiograph.body_part == "ODD":
            raise KeyError(radiograph.patient_id)
        time.sleep(seconds)
        into.mkdir()
        for number, kind in enumerate(KINDS):
            grey = np.full((16, 16), radiograph.image.mean().astype(np.uint8))
            grey[0, 0] ^= 1
            dicom.write(into / f"{kind}.dcm", grey, f"{radiograph.uid}.{number}")
        return Verdict(facts={"outlined": True})

    return look


def radiograph(path: Path, uid: str, seed: int = 0, part: str = "") -> Path:
    """A DICOM file of a small picture, of the chest or of another part."""
    image = np.random.default_rng(seed).integers(0, 255, (32, 32)).astype(np.uint8)
    dicom.write(path, image, uid, patient_id="SECRET")
    if part:
        data_set = pydicom.dcmread(path)
        data_set.BodyPartExamined = part
        data_set.save_as(path)
    return path


@dataclass(frozen=True)
class Listener:
    """A listener's process and where it answers."""

    process: subprocess.Popen
    spool: Path
    port: int
    health_port: int

    def destination(self, title: str = "LISTENER") -> Destination:
        """The listener as somewhere to send to."""
        return Destination("listener", "dicom", (), "127.0.0.1", self.port, title)

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of an HTTP request."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}{path}") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def end(self) -> int:
        """Asks it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def log(spool: Path) -> list[dict]:
    """The events that were noted."""
    lines = [line for path in sorted((spool / "log").glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


@contextmanager
def listening(spool: Path, partners: Path, **options: object) -> Iterator[Listener]:
    """Starts a listener in a process of its own, and kills it at the end of the block if it still runs."""
    before = sum(line["event"] == "started" for line in log(spool))
    line = [sys.executable, __file__, json.dumps({"spool": str(spool), "partners": str(partners), **options})]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: sum(line["event"] == "started" for line in log(spool)) > before, process)
            started = [line for line in log(spool) if line["event"] == "started"][-1]
            yield Listener(process, spool, started["port"], started["health_port"])
        finally:
            process.kill()


def wait_until(true: Callable[[], bool], process: subprocess.Popen | None = None, seconds: float = 60) -> None:
    """Waits for something that another process does."""
    end = time.monotonic() + seconds
    while not true():
        assert process is None or process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def main(arguments: str) -> int:
    """The listener's process."""
    options = json.loads(arguments)
    settings = Settings(
        Path(options["spool"]),
        "LISTENER",
        "127.0.0.1",
        options.get("port", 0),
        0,
        Limits(options.get("waiting", 1000), options.get("free", 0)),
        options.get("seconds", 60),
        options.get("give_up", 3600),
    )
    start_logging()
    partners = read_partners(Path(options["partners"]), KINDS)
    return exit_code(lambda _: serve(settings, partners, make_look, (options.get("look_seconds", 0),)), [])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
