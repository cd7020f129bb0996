"""The whole listener as a process: nothing is lost or doubled over its kills, and nothing but the loopback is bound."""

import ipaddress
import os
import re
import signal
import socket
import struct
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from listening import KINDS, ROOT, listening, log, radiograph, wait_until

from jaxpneumo.process.errors import STOPPED
from jaxpneumo.process.files import read_json
from jaxpneumo.serve import listener
from jaxpneumo.serve.events import Events
from jaxpneumo.serve.health import answering
from jaxpneumo.serve.partners import Partners
from jaxpneumo.serve.spool import ASIDE, DONE, INCOMING, OUTGOING, STATES, WORKING, Limits, Spool

COUNT = 12
PARTNERS = """
[peers.PACS]
addresses = ["127.0.0.1"]

[destinations.archive]
kind = "dicom"
address = "127.0.0.1"
port = {}
title = "PACS"
results = ["sr", "seg"]
"""


class Archive:
    """An archive in this process: a node that keeps what it is sent, and counts it."""

    def __init__(self, folder: Path):
        self.folder, self.spool = folder, Spool(folder / "archive")
        os.close(self.spool.open())
        partners = Partners({"LISTENER": (ipaddress.ip_network("127.0.0.1"),)}, ())
        events = Events(folder / "archive/log")
        self._node = listener.listening(self.spool, partners, Limits(10_000, 0), events, "PACS", ("127.0.0.1", 0))
        _, port = self._node.__enter__()
        (folder / "partners.toml").write_text(PARTNERS.format(port))

    def close(self):
        self._node.__exit__(None, None, None)

    @property
    def events(self) -> Counter:
        return Counter(line["event"] for line in log(self.spool.folder))


@pytest.fixture
def archive(tmp_path):
    one = Archive(tmp_path)
    yield one
    one.close()


@pytest.fixture
def files(tmp_path):
    return [radiograph(tmp_path / f"{i}.dcm", f"{ROOT}.{i}", i) for i in range(COUNT)]


def send(one, files) -> list[Path]:
    """Sends files; gives those whose receipt was answered."""
    taken = []
    try:
        for path, answer in listener.send(one.destination(), files, "PACS"):
            assert answer == ""
            taken.append(path)
    except ConnectionError:
        pass
    return taken


def done(spool: Path) -> list[str]:
    return Spool(spool).listed(DONE)


def test_images_are_predicted_and_their_results_sent_on(archive, files, tmp_path):
    """And nothing but the loopback interface is bound, and no log names a patient."""
    hand = radiograph(tmp_path / "hand.dcm", f"{ROOT}.99", part="HAND")
    with listening(tmp_path / "spool", tmp_path / "partners.toml") as one:
        assert send(one, [*files, hand]) == [*files, hand]
        wait_until(lambda: len(done(one.spool)) == COUNT and Spool(one.spool).count(ASIDE) == 1)
        assert archive.spool.count(INCOMING) == COUNT * len(KINDS)
        assert one.get("/health") == (200, '{"ok": true, "problems": []}')
        _, metrics = one.get("/metrics")
        assert f'jaxpneumo_events_total{{event="sent",destination="archive"}} {COUNT * len(KINDS)}\n' in metrics
        assert 'jaxpneumo_images{state="aside"} 1\n' in metrics
        assert one.get("/other")[0] == 404
        bound = sorted(_bound(one.process.pid))
        assert bound == sorted(("127.0.0.1", port) for port in (one.port, one.health_port))
        assert "jaxlib" not in Path(f"/proc/{one.process.pid}/maps").read_text(), "the model's process alone loads JAX"
        record = read_json(one.spool / ASIDE / f"{ROOT}.99/record.json")
        assert record["reason"] == "not a frontal chest radiograph: Body Part Examined is HAND"
        assert one.end() == STOPPED
        assert one.process.stderr is not None
        told = one.process.stderr.read().decode()
    assert "SECRET" not in told + "".join(path.read_text() for path in (one.spool / "log").iterdir())
    assert "set aside" in told


def test_a_client_of_the_metrics_that_hangs_up_is_no_error(capfd):
    asked, hung_up = threading.Event(), threading.Event()

    def metrics():
        asked.set()
        assert hung_up.wait(10)
        return "a line\n" * 1_000_000

    with answering(0, list, metrics) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert asked.wait(10)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        hung_up.set()
        wait_until(lambda: not any("process_request" in thread.name for thread in threading.enumerate()))
    assert capfd.readouterr().err == ""


def _bound(process: int):
    """The kernel's own table of TCP sockets that listen, those of a process."""
    sockets = set()
    for entry in Path(f"/proc/{process}/fd").iterdir():
        if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry)):
            sockets.add(found[1])
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[9] in sockets and (parts[3] == "0A" or table.startswith("udp")):
                address, port = parts[1].split(":")
                # An IPv4 address in the kernel's order of bytes
                yield ".".join(str(byte) for byte in reversed(bytes.fromhex(address))), int(port, 16)


def test_sigterm_finishes_the_image_in_work_and_the_next_start_goes_on(archive, files, tmp_path):
    with listening(tmp_path / "spool", tmp_path / "partners.toml", look_seconds=0.3) as one:
        send(one, files[:4])
        wait_until(lambda: Spool(one.spool).count(WORKING) == 1)
        assert one.end() == STOPPED
    spool = Spool(one.spool)
    assert spool.count(WORKING) == 0
    left = spool.count(INCOMING)
    assert 0 < left < 4
    assert spool.count(OUTGOING) == 0, "what was finished was sent"
    with listening(tmp_path / "spool", tmp_path / "partners.toml") as one:
        wait_until(lambda: len(done(one.spool)) == 4)
        assert one.end() == STOPPED
    assert archive.events == {"received": 4 * len(KINDS)}


@pytest.mark.long
def test_an_image_that_crashes_or_hangs_the_model_costs_itself_alone(archive, files, tmp_path):
    parts = ("CRASH", "HANG", "ODD")
    bad = [radiograph(tmp_path / f"{part}.dcm", f"{ROOT}.9{i}", part=part) for i, part in enumerate(parts)]
    with listening(tmp_path / "spool", tmp_path / "partners.toml", seconds=1.5) as one:
        send(one, [files[0], *bad, files[1]])
        wait_until(lambda: len(done(one.spool)) == 2 and Spool(one.spool).count(ASIDE) == 3)
        reasons = [read_json(one.spool / ASIDE / f"{ROOT}.9{i}/record.json")["reason"] for i in range(3)]
        assert one.get("/health")[0] == 200
        assert one.end() == STOPPED
    assert reasons[0] == "the process of the model crashed with it"
    assert reasons[1] == "the process of the model took more than 1.5 seconds with it"
    assert reasons[2].startswith("the process of the model met an unforeseen error (KeyError in listening.py")
    assert "SECRET" not in reasons[2]


def test_a_destination_that_was_down_gets_all_results(files, tmp_path):
    first = Archive(tmp_path)
    first.close()
    port = int(re.findall(r"port = (\d+)", (tmp_path / "partners.toml").read_text())[0])
    with listening(tmp_path / "spool", tmp_path / "partners.toml") as one:
        send(one, files)
        wait_until(lambda: Spool(one.spool).count(OUTGOING) == COUNT)
        wait_until(lambda: any(line["event"] == "not sent" for line in log(one.spool)))
        node = listener.listening(
            first.spool,
            Partners({"LISTENER": (ipaddress.ip_network("127.0.0.1"),)}, ()),
            Limits(10_000, 0),
            Events(tmp_path / "archive/log"),
            "PACS",
            ("127.0.0.1", port),
        )
        with node:
            wait_until(lambda: len(done(one.spool)) == COUNT)
        assert one.end() == STOPPED
    assert first.events == {"received": COUNT * len(KINDS)}


def predicted_over_a_kill(archive: Archive, files: list[Path], folder: Path, seconds: float) -> Counter:
    """How often each image was predicted when the listener is killed so long after the first was sent to it."""
    with listening(folder / "spool", folder / "partners.toml", look_seconds=0.03) as one:
        killer = threading.Timer(seconds, one.process.kill)
        killer.start()
        taken = send(one, files)
        killer.join()
        assert one.process.wait() == -signal.SIGKILL
    spool = Spool(one.spool)
    there = {uid for state in STATES for uid in spool.listed(state)}
    assert {f"{ROOT}.{files.index(path)}" for path in taken} <= there, "what was answered with 0x0000 is on the disk"
    with listening(folder / "spool", folder / "partners.toml") as one:
        assert send(one, files) == files, "a sender sends again what was not answered; here it sends all"
        wait_until(lambda: len(done(one.spool)) == len(files))
        assert one.end() == STOPPED
    assert [state for state in STATES if spool.count(state)] == [DONE]
    # The archive has every result once, also those that it was sent twice since the kill came before their receipt.
    assert archive.spool.count(INCOMING) == len(files) * len(KINDS)
    assert archive.spool.count(ASIDE) == 0, "a result that was sent twice was the same"
    assert archive.events["known"] <= 2
    return Counter(line["uid"] for line in log(spool.folder) if line["event"] == "predicted")


# By hand all of them: pytest -m "long or slow" tests/test_listen.py -k kill
SEEDS = [pytest.param(seed, marks=pytest.mark.long if seed < 3 else pytest.mark.slow) for seed in range(20)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_kill_loses_and_doubles_nothing(archive, files, tmp_path, seed):
    seconds = np.random.default_rng(seed).uniform(0.0, 1.2)
    times = predicted_over_a_kill(archive, files, tmp_path, seconds)
    # The image in work at the kill is predicted again, or is finished and lacks its line in the log, which comes last.
    assert COUNT - 1 <= sum(times.values()) <= COUNT + 1
    assert max(times.values()) <= 2
