"""The DICOM node: who may call, what is answered, and that a radiograph is on the disk before the answer."""

import ipaddress
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from contextlib import closing, suppress
from dataclasses import replace

import numpy as np
import pytest
from helpers import mutate
from listening import ROOT, radiograph
from pydicom import dcmread, dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid
from pynetdicom import AE
from pynetdicom.association import Association

from jaxpneumo.process.files import read_json
from jaxpneumo.serve import accepted
from jaxpneumo.serve.events import Events
from jaxpneumo.serve.listener import DAMAGED, LONGEST, listening, send
from jaxpneumo.serve.partners import Destination, Partners, Tls
from jaxpneumo.serve.spool import ASIDE, IMAGE, INCOMING, RECORD, Limits, Spool

DX = "1.2.840.10008.5.1.4.1.1.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def spool(tmp_path):
    one = Spool(tmp_path / "spool")
    os.close(one.open())
    return one


@pytest.fixture
def events(tmp_path):
    return Events(tmp_path / "log")


@pytest.fixture
def node(spool, events):
    """Starts a node that takes from PACS on the loopback interface; gives it as a destination."""
    with closing(_Nodes(spool, events)) as nodes:
        yield nodes.start


class _Nodes:
    def __init__(self, spool, events):
        self.given, self.open = (spool, events), []

    def start(self, limits=None, peer="127.0.0.0/8", tls=None) -> Destination:
        spool, events = self.given
        partners = Partners({"PACS": (ipaddress.ip_network(peer),)}, (), tls)
        limits = limits or Limits(1000, 0)
        one = listening(spool, partners, limits, events, "LISTENER", ("127.0.0.1", 0))
        host, port = one.__enter__()
        self.open.append(one)
        return Destination("node", "dicom", (), host, port, "LISTENER")

    def close(self) -> None:
        for one in self.open:
            one.__exit__(None, None, None)


@pytest.fixture
def files(tmp_path):
    return [radiograph(tmp_path / f"{i}.dcm", f"{ROOT}.{i}", i) for i in range(4)]


def log(tmp_path) -> list[dict]:
    return [json.loads(line) for path in (tmp_path / "log").iterdir() for line in path.read_text().splitlines()]


def answers(destination, files, title="PACS") -> list[str]:
    return [answer for _, answer in send(destination, files, title)]


def test_an_event_without_facts_is_its_name_alone(events, caplog):
    caplog.set_level("INFO", "jaxpneumo")
    events.note("ending")
    events.note("refused", "PACS", status="0xA700")
    assert caplog.messages == ["ending", "refused: destination PACS, status 0xA700"]


class TestWhatIsKept:
    def test_is_what_was_sent_bit_for_bit_in_its_transfer_syntax(self, node, spool, files):
        assert answers(node(), files) == [""] * 4
        for path in files:
            sent = dcmread(path)
            kept = dcmread(spool.folder / INCOMING / sent.SOPInstanceUID / IMAGE)
            assert kept == sent
            assert kept.file_meta.TransferSyntaxUID == JPEGBaseline8Bit == sent.file_meta.TransferSyntaxUID
            assert kept.PixelData == sent.PixelData

    def test_has_a_record_without_the_patient(self, node, spool, files, tmp_path):
        answers(node(), files[:1])
        record = read_json(spool.folder / INCOMING / f"{ROOT}.0" / RECORD)
        assert (record["calling"], record["address"], record["uid"]) == ("PACS", "127.0.0.1", f"{ROOT}.0")
        assert [line["event"] for line in log(tmp_path)] == ["received"]
        written = [path.read_text() for path in (*spool.folder.rglob("*.json"), *(tmp_path / "log").iterdir())]
        assert written
        assert not any("SECRET" in text for text in written)

    def test_is_kept_once_when_it_comes_again(self, node, spool, files):
        one = node()
        assert answers(one, [*files, *files]) == [""] * 8
        assert spool.count(INCOMING) == 4

    def test_keeps_the_first_of_two_contents(self, node, spool, files, tmp_path):
        one = node()
        answers(one, files)
        radiograph(files[0], f"{ROOT}.0", seed=77)
        assert answers(one, files[:1]) == ["it answered 0xc000"]
        assert spool.listed(ASIDE) == [f"{ROOT}.0"]
        assert [line["event"] for line in log(tmp_path)].count("conflict") == 1

    def test_four_associations_at_once(self, node, spool, tmp_path):
        one, got = node(), []
        groups = [[radiograph(tmp_path / f"{g}-{i}.dcm", f"{ROOT}.{g}.{i}", i) for i in range(8)] for g in range(4)]
        # Every group has one radiograph more, which is the same for all.
        same = radiograph(tmp_path / "same.dcm", f"{ROOT}.9")
        threads = [
            threading.Thread(target=lambda group=group: got.extend(answers(one, [same, *group]))) for group in groups
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [""] * 36
        assert spool.count(INCOMING) == 33
        assert spool.count(ASIDE) == 0


class TestWhoMayCall:
    @pytest.mark.parametrize(("called", "calling"), [("OTHER", "PACS"), ("LISTENER", "OTHER")])
    def test_titles(self, node, spool, files, tmp_path, called, calling):
        with pytest.raises(ConnectionError, match="rejected the association"):
            answers(replace(node(), title=called), files, calling)
        assert spool.count(INCOMING) == 0
        (line,) = log(tmp_path)
        assert (line["event"], line["calling"], line["address"]) == ("rejected", calling, "127.0.0.1")

    def test_addresses(self, node, files, tmp_path):
        with pytest.raises(ConnectionError, match="cannot be reached"):
            answers(node(peer="10.0.0.5"), files)
        assert log(tmp_path)[0]["reason"] == "no peer has this address"

    def test_an_echo_is_answered(self, node):
        one, entity = node(), AE("PACS")
        entity.add_requested_context("1.2.840.10008.1.1")
        association = entity.associate(one.address, one.port, ae_title=one.title)
        assert association.send_c_echo().Status == 0x0000
        association.release()

    def test_tls_with_a_client_certificate(self, node, files, tmp_path):
        own, other = (_certificate(tmp_path, name) for name in ("own", "other"))
        one = node(tls=own)
        one = replace(one, address="localhost")
        with pytest.raises(ConnectionError):
            answers(one, files)  # without TLS
        for tls in (replace(own, certificate=None, key=None), replace(other, authorities=own.authorities)):
            with pytest.raises(ConnectionError):
                answers(replace(one, tls=tls), files)
        assert answers(replace(one, tls=own), files) == [""] * 4
        assert "rejected" in [line["event"] for line in log(tmp_path)]

    def test_a_caller_that_says_nothing_holds_up_nobody(self, node, files, tmp_path):
        one = node(tls=_certificate(tmp_path, "own"))
        with socket.create_connection((one.address, one.port)), socket.create_connection((one.address, one.port)):
            tls = Tls(*(tmp_path / name for name in ("own.pem", "own.key", "own.pem")))
            assert answers(replace(one, address="localhost", tls=tls), files) == [""] * 4


class TestBeforeACallerHasSaidWhoItIs:
    @pytest.fixture
    def hasty(self, monkeypatch):
        monkeypatch.setattr("jaxpneumo.serve.listener.SECONDS", 0.4)

    def test_it_cannot_fill_the_memory(self, node, files):
        one = node()
        with socket.create_connection((one.address, one.port), timeout=5) as connection:
            connection.sendall(struct.pack(">BBL", 1, 0, LONGEST + 1))
            assert hung_up(connection)
        assert answers(one, files) == [""] * 4

    def test_it_has_so_much_time_and_not_so_much_after_each_byte(self, hasty, node):
        one = node()
        with socket.create_connection((one.address, one.port), timeout=0.05) as connection:
            connection.sendall(struct.pack(">BBL", 1, 0, 60_000))
            for _ in range(100):
                with suppress(TimeoutError):
                    assert hung_up(connection)
                    break
                connection.sendall(b"\0")
            else:
                pytest.fail("it has all the time")

    def test_too_many_at_once_are_noted(self, node, files, tmp_path, monkeypatch):
        monkeypatch.setattr("jaxpneumo.serve.listener.ASSOCIATIONS", 1)
        one = node()
        silent = socket.create_connection((one.address, one.port))
        with silent, pytest.raises(ConnectionError, match="rejected the association"):
            answers(one, files)
        assert log(tmp_path)[-1]["reason"] == "too many associations at once, more than 1"


def hung_up(connection) -> bool:
    """Whether the other side has ended a connection; TimeoutError if it has not said anything."""
    try:
        return connection.recv(1000) == b""
    except ConnectionError:
        return True


def _certificate(folder, name) -> Tls:
    if not (openssl := shutil.which("openssl")):
        pytest.skip("openssl, which makes the certificates, is not installed")
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    made = ["-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    line = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *made]
    subprocess.run(line, check=True, capture_output=True)
    return Tls(certificate, key, certificate)


class TestWhenItCannotTakeMore:
    def test_for_those_that_wait(self, node, spool, files, tmp_path):
        assert answers(node(Limits(waiting=3, free=0)), files) == ["", "", "", "it answered 0xa700"]
        assert spool.count(INCOMING) == 3
        assert log(tmp_path)[-1]["event"] == "busy"
        assert "3 images wait" in log(tmp_path)[-1]["reason"]

    def test_for_the_disk(self, node, spool, files):
        assert answers(node(Limits(waiting=9, free=spool.free() * 2)), files) == ["it answered 0xa700"] * 4
        assert spool.count(INCOMING) == 0

    def test_for_a_full_disk(self, node, spool, files, monkeypatch, tmp_path):
        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("jaxpneumo.serve.spool.Spool._make", full)
            assert answers(node(), files) == ["it answered 0xa700"] * 4
        assert "No space left on device" in log(tmp_path)[-1]["reason"]


class TestBadObjects:
    @pytest.fixture
    def spoilt(self, tmp_path):
        """A radiograph whose data set says other than the request; the request's UIDs are in the file's own header."""

        def spoilt(**values):
            data_set = dcmread(radiograph(tmp_path / "spoilt.dcm", f"{ROOT}.5"))
            for keyword, value in values.items():
                target = data_set.file_meta if keyword in data_set.file_meta else data_set
                if value is None:
                    delattr(target, keyword)
                else:
                    setattr(target, keyword, value)
            dcmwrite(tmp_path / "spoilt.dcm", data_set)
            return tmp_path / "spoilt.dcm"

        return spoilt

    @pytest.mark.parametrize(
        ("values", "answer", "reason"),
        [
            ({"SOPInstanceUID": f"{ROOT}.6"}, "0xa900", "its data set has another SOP Instance UID"),
            ({"SOPInstanceUID": None}, "0xc000", "its data set cannot be read, or has no SOP Instance UID"),
        ],
    )
    def test_are_answered_and_kept_aside_with_the_reason(self, node, spool, spoilt, values, answer, reason):
        assert answers(node(), [spoilt(**values)]) == [f"it answered {answer}"]
        assert spool.count(INCOMING) == 0
        (uid,) = spool.listed(ASIDE)
        assert read_json(spool.folder / ASIDE / uid / RECORD)["reason"] == reason

    def test_other_kinds_are_not_negotiated(self, node, spool, spoilt, tmp_path):
        other = spoilt(MediaStorageSOPClassUID=CT, SOPClassUID=CT)
        radiograph(tmp_path / "own.dcm", f"{ROOT}.7")
        one = node()
        assert answers(one, [other, tmp_path / "own.dcm"]) == [
            "it takes no objects of this SOP class and transfer syntax",
            "",
        ]
        with pytest.raises(ConnectionError, match="takes no such objects"):
            answers(one, [other])
        assert spool.count(INCOMING) == 1

    @pytest.mark.parametrize("uid", ["../../x", "1.2/3", ".", "", "1..2", "1.2." + "3" * 64])
    def test_a_uid_that_is_none_never_names_a_folder(self, uid):
        assert not accepted.is_uid(uid)
        assert accepted.judge(uid, DX, DX, b"")[0] == accepted.NOT_UNDERSTOOD

    def test_mutated_data_sets_are_answered_and_none_is_lost(self, node, spool, tmp_path):
        rng, one, paths = np.random.default_rng(5), node(), []
        for number in range(200):
            path = radiograph(tmp_path / f"m{number}.dcm", f"{ROOT}.8.{number}")
            data = path.read_bytes()
            start = 144 + struct.unpack("<I", data[140:144])[0]
            path.write_bytes(data[:start] + mutate(data[start:], rng))
            paths.append(path)
        got = answers(one, paths)
        assert len(got) == 200
        taken = got.count("")
        assert set(got) <= {"", "it answered 0xa900", "it answered 0xc000"}
        assert 0 < taken < 200, "mutations in the pixels are the model's matter"
        assert spool.count(INCOMING) == taken
        assert spool.count(ASIDE) == 200 - taken
        assert answers(one, [radiograph(tmp_path / "whole.dcm", generate_uid())]) == [""]

    def test_noise_instead_of_messages_ends_that_connection_alone(self, node, files):
        rng, one = np.random.default_rng(6), node()
        for length in (1, 6, 74, 5000):
            with socket.create_connection((one.address, one.port)) as connection:
                connection.sendall(bytes([rng.integers(1, 8), 0]) + rng.bytes(length))
        assert answers(one, files) == [""] * 4

    def test_an_object_beyond_any_radiograph_is_cut_off(self, node, spool, tmp_path, monkeypatch):
        monkeypatch.setattr("jaxpneumo.serve.listener.MAX_BYTES", 300_000)
        data_set = dcmread(radiograph(tmp_path / "big.dcm", f"{ROOT}.5"))
        data_set.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data_set.PixelData = bytes(2_000_000)
        data_set["PixelData"].VR, data_set["PixelData"].is_undefined_length = "OW", False
        dcmwrite(tmp_path / "big.dcm", data_set)
        one = node()
        with pytest.raises(ConnectionError, match="did not answer"):
            answers(one, [tmp_path / "big.dcm"])
        assert spool.count(INCOMING) == 0
        assert answers(one, [radiograph(tmp_path / "small.dcm", f"{ROOT}.6")]) == [""]


class TestADestination:
    """Whatever it does is a ConnectionError, after which the rest is sent again."""

    @pytest.mark.parametrize(
        "end",
        [
            lambda association: association.abort(),
            lambda association: association.acse.send_release(),
            lambda association: association.dul.socket.socket.shutdown(socket.SHUT_RDWR),
        ],
        ids=["aborts", "releases", "closes"],
    )
    def test_that_ends_the_association_between_two_files(self, spool, events, files, end):
        partners = Partners({"PACS": (ipaddress.ip_network("127.0.0.1"),)}, ())
        with listening(spool, partners, Limits(1000, 0), events, "LISTENER", ("127.0.0.1", 0)) as (host, port):
            sending = send(Destination("node", "dicom", (), host, port, "LISTENER"), files, "PACS")
            assert next(sending) == (files[0], "")
            own, other = associations()
            end(other)
            while own.is_established:
                time.sleep(0.01)
            with pytest.raises(ConnectionError, match="ended the association"):
                next(sending)

    def test_that_stops_in_mid_message(self, monkeypatch, node, files):
        one = node()  # which has its patience, unlike the sender
        monkeypatch.setattr("jaxpneumo.serve.listener.SECONDS", 0.4)
        sending, failed = send(one, files, "PACS"), []
        next(sending)
        connection = associations()[1].dul.socket
        assert connection is not None
        connection.send(struct.pack(">BBL", 4, 0, 100) + b"half")

        def rest():
            with suppress(ConnectionError):
                list(sending)
            failed.append(True)

        thread = threading.Thread(target=rest)
        thread.start()
        thread.join(10)
        assert failed

    def test_gets_all_files_but_a_damaged_one(self, node, files):
        whole = files[0].read_bytes()
        for path, data in zip(files, (b"", bytes(400), whole[:200]), strict=False):
            path.write_bytes(data)
        one = node()
        assert answers(one, files) == [DAMAGED] * 3 + [""]
        assert answers(replace(one, port=1), files[:3]) == [DAMAGED] * 3

    def test_whose_name_no_host_can_have(self, node, files):
        with pytest.raises(ConnectionError, match="is no host's name"):
            answers(replace(node(), address="pacs..example.org"), files)


def associations() -> list[Association]:
    """Those that are established in this process: the sender's and the node's."""
    running = [one for one in threading.enumerate() if isinstance(one, Association) and one.is_established]
    return sorted(running, key=lambda one: one.is_acceptor)
