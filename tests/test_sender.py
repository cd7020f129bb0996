"""Results are sent on: again after a delay that doubles, and in the end they become dead letters."""

import json
import os
import threading
import time

import pytest

from jaxpneumo.serve import sender
from jaxpneumo.serve.events import Events
from jaxpneumo.serve.partners import Destination
from jaxpneumo.serve.retry import FIRST, LONGEST, Schedule, delay
from jaxpneumo.serve.spool import DEAD, DONE, OUTGOING, RESULTS, Spool

ARCHIVE = Destination("archive", "dicom", ("sr",))


class TestTheDelay:
    def test_doubles_up_to_the_longest(self):
        assert [delay(failures) for failures in (1, 2, 3, 4)] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
        assert delay(9) < LONGEST == delay(10) == delay(10_000)

    def test_begins_anew_after_a_success(self):
        schedule = Schedule()
        assert schedule.may_try("a", 0.0)
        assert [schedule.failed("a", 0.0), schedule.failed("a", 10.0)] == [FIRST, 2 * FIRST]
        assert not schedule.may_try("a", 10.0 + 2 * FIRST - 0.1)
        assert schedule.may_try("a", 10.0 + 2 * FIRST)
        assert schedule.may_try("b", 0.0), "others do not wait"
        schedule.succeeded("a")
        assert schedule.may_try("a", 10.0)
        assert schedule.failed("a", 20.0) == FIRST

    def test_what_is_gone_is_forgotten(self):
        schedule = Schedule()
        schedule.failed("a", 0.0)
        schedule.failed("b", 0.0)
        schedule.keep({"b"})
        assert (list(schedule.failures), list(schedule.due), list(schedule.since)) == (["b"], ["b"], ["b"])

    def test_failures_count_from_the_first_or_from_what_holds_a_thing_up(self):
        schedule = Schedule()
        schedule.held_up("a", 10.0)
        assert schedule.may_try("a", 10.0)
        schedule.failed("a", 20.0)
        schedule.failed("b", 20.0)
        assert [schedule.seconds(thing, 30.0) for thing in ("a", "b", "c")] == [20.0, 10.0, 0.0]


@pytest.fixture
def spool(tmp_path):
    one = Spool(tmp_path / "spool")
    os.close(one.open())
    for number in range(3):
        uid = f"1.2.{number}"
        one.receive(uid, uid, b"pixels", {})
        folder = one.begin(uid)
        assert folder is not None
        (folder / RESULTS).mkdir()
        (folder / RESULTS / "sr.dcm").write_text(uid)
        one.publish(uid, {"archive": ("sr",)}, {})
    return one


@pytest.fixture
def deliver(spool, tmp_path, monkeypatch):
    """Sends with a function that answers until it is satisfied; gives the calls and the log."""
    monkeypatch.setattr(sender, "PAUSE", 0.001)
    monkeypatch.setattr("jaxpneumo.serve.retry.FIRST", 0.002)

    def deliver(send, give_up=3600.0, until=lambda: spool.count(OUTGOING) == 0):
        ending, events = threading.Event(), Events(tmp_path / "log")
        arguments = (spool, ARCHIVE, send, events, ending, give_up)
        thread = threading.Thread(target=sender.deliver_waiting, args=arguments)
        thread.start()
        end = time.monotonic() + 20
        while not until() and time.monotonic() < end:
            time.sleep(0.005)
        ending.set()
        thread.join()
        lines = next((tmp_path / "log").glob("*.jsonl")).read_text().splitlines()
        return [json.loads(line) for line in lines]

    return deliver


def test_what_is_taken_is_done(spool, deliver):
    sent = []

    def send(paths):
        for path in paths:
            sent.append(path.read_text())
            yield path, ""

    log = deliver(send)
    assert sent == ["1.2.0", "1.2.1", "1.2.2"], "the oldest first"
    assert [(line["event"], line["uid"], line["destination"]) for line in log] == [
        ("sent", uid, "archive") for uid in sent
    ]
    assert len(spool.listed(DONE)) == 3


def test_a_destination_that_is_away_gets_everything_once_when_it_is_back(spool, deliver):
    sent, tries = [], []

    def send(paths):
        tries.append(len(paths))
        if len(tries) < 4:
            raise ConnectionError("refused")
        for path in paths:
            sent.append(path.read_text())
            yield path, ""

    log = deliver(send)
    assert sorted(sent) == ["1.2.0", "1.2.1", "1.2.2"]
    waits = [line["next_try_seconds"] for line in log if line["event"] == "not sent"]
    assert waits == [0.002, 0.004, 0.008]


def test_credentials_that_are_no_text_are_said_without_them_and_read_again(spool, deliver):
    tries = []

    def send(paths):
        tries.append(b"user:pass\xff" if not tries else b"user:password")
        assert tries[-1].decode()
        for path in paths:
            yield path, ""

    log = deliver(send)
    assert len(spool.listed(DONE)) == 3
    assert [line["reason"] for line in log if line["event"] == "not sent"] == ["its credentials are not UTF-8 text"]


def test_one_that_is_not_taken_does_not_hold_up_the_others(spool, deliver):
    tries = []

    def send(paths):
        for path in paths:
            bad = path.read_text() == "1.2.0"
            tries.append(bad)
            yield path, "it answered 0xc000" if bad else ""

    log = deliver(send, until=lambda: sum(tries) > 4)
    assert len(spool.listed(DONE)) == 2
    assert spool.listed(OUTGOING) == ["1.2.0"]
    waits = [line["next_try_seconds"] for line in log if line["event"] == "not sent"]
    assert waits[:4] == [0.002, 0.004, 0.008, 0.016]


@pytest.mark.parametrize("away", [True, False])
def test_what_is_never_taken_becomes_a_dead_letter(spool, deliver, away):
    def send(paths):
        if away:
            raise ConnectionError("refused")
        for path in paths:
            yield path, "it answered 0xc000"

    log = deliver(send, give_up=0.05)
    assert len(spool.listed(DEAD)) == len(spool.listed(DONE)) == 3
    assert (spool.folder / DEAD / "1.2.0/archive/sr.dcm").read_text() == "1.2.0"
    reason = (spool.folder / DEAD / "1.2.0/archive/sr.txt").read_text()
    assert reason == ("refused\n" if away else "it answered 0xc000\n")
    assert [line["uid"] for line in log if line["event"] == "given up"] == ["1.2.0", "1.2.1", "1.2.2"]


def test_age_alone_makes_no_dead_letter(spool, deliver):
    """Of a letter that a person sends again, after days without a listener, or when the clock jumps."""
    for path in spool.waiting("archive"):
        os.utime(path, (0, 0))
    tries = []

    def send(paths):
        tries.append(len(paths))
        if len(tries) < 3:
            raise ConnectionError("refused")
        for path in paths:
            yield path, "it answered 0xa700" if len(tries) < 5 else ""

    deliver(send)
    assert len(spool.listed(DONE)) == 3
    assert spool.listed(DEAD) == []


def test_what_is_left_is_tried_once_more_at_the_end(spool, deliver):
    calls = []

    def send(paths):
        calls.append(len(paths))
        yield paths[0], ""
        raise ConnectionError("gone")

    deliver(send, until=lambda: True)
    assert calls
    assert len(spool.listed(DONE)) >= 1
