"""The listener's folders: whatever moment a process is killed at, no image is lost and none is there twice."""

import os

import pytest

from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.serve import spool as module
from jaxpneumo.serve.spool import (
    ASIDE,
    DEAD,
    DONE,
    INCOMING,
    KNOWN,
    NEW,
    OTHER,
    OUTGOING,
    RESULTS,
    STATES,
    WORKING,
    Limits,
    Spool,
    content_digest,
)

UID, SYNTAX = "1.2.3", "1.2.840.10008.1.2.1"
WANTED = {"archive": ("sr", "seg"), "web": ("sr",)}


@pytest.fixture
def spool(tmp_path):
    one = Spool(tmp_path / "spool")
    os.close(one.open())
    return one


def receive(spool: Spool, uid: str = UID, data: bytes = b"pixels") -> str:
    return spool.receive(uid, content_digest(SYNTAX, data), data, {"calling": "PACS"})


def predict(spool: Spool, uid: str = UID) -> None:
    folder = spool.begin(uid)
    assert folder is not None
    (folder / RESULTS).mkdir()
    for kind in ("sr", "seg"):
        (folder / RESULTS / f"{kind}.dcm").write_text(kind)
    spool.publish(uid, WANTED, {"outlined": True})


def states(spool: Spool) -> dict[str, list[str]]:
    return {state: uids for state in STATES if (uids := spool.listed(state))}


class TestAnImage:
    def test_goes_through_its_states(self, spool):
        assert receive(spool) is NEW
        assert states(spool) == {INCOMING: [UID]}
        predict(spool)
        assert states(spool) == {OUTGOING: [UID]}
        assert [path.name for path in spool.waiting("archive")] == ["seg.dcm", "sr.dcm"]
        for path in spool.waiting("archive"):
            spool.delivered(path)
        assert states(spool) == {OUTGOING: [UID]}, "the other destination has not got its result yet"
        for path in spool.waiting("web"):
            assert path.read_text() == "sr"
            spool.delivered(path)
        assert states(spool) == {DONE: [UID]}
        assert [path.name for path in (spool.folder / DONE / UID).iterdir()] == ["record.json"], "the pixels are gone"
        record = read_json(spool.folder / DONE / UID / "record.json")
        assert (record["calling"], record["outlined"], record["results"]) == ("PACS", True, ["seg", "sr"])

    def test_that_comes_again_is_known_in_every_state(self, spool):
        receive(spool)
        assert receive(spool) is KNOWN
        folder = spool.begin(UID)
        assert receive(spool) is KNOWN
        (folder / RESULTS).mkdir()
        (folder / RESULTS / "sr.dcm").write_text("sr")
        spool.publish(UID, WANTED, {})
        assert receive(spool) is KNOWN
        for name in WANTED:
            for path in spool.waiting(name):
                spool.delivered(path)
        assert receive(spool) is KNOWN
        assert states(spool) == {DONE: [UID]}

    def test_that_comes_with_other_content_is_kept_aside_once(self, spool):
        receive(spool)
        assert receive(spool, data=b"others") is OTHER
        assert receive(spool, data=b"others") is OTHER
        assert states(spool) == {INCOMING: [UID], ASIDE: [UID]}
        assert "other content" in read_json(spool.folder / ASIDE / UID / "record.json")["reason"]
        assert (spool.folder / ASIDE / UID / "image.dcm").read_bytes() == b"others"

    def test_in_another_transfer_syntax_has_other_content(self):
        assert content_digest(SYNTAX, b"x") != content_digest("1.2.840.10008.1.2", b"x")

    def test_that_was_set_aside_is_known_and_its_corrected_copy_is_new(self, spool):
        receive(spool)
        spool.begin(UID)
        spool.set_aside(UID, "it is truncated")
        assert read_json(spool.folder / ASIDE / UID / "record.json")["reason"] == "it is truncated"
        assert receive(spool) is KNOWN
        assert receive(spool, data=b"whole") is NEW
        spool.begin(UID)
        spool.set_aside(UID, "it is a hand")
        assert len(spool.listed(ASIDE)) == 2, "both are kept"

    def test_without_results_is_done(self, spool):
        receive(spool)
        spool.begin(UID)
        spool.publish(UID, WANTED, {})
        assert states(spool) == {DONE: [UID]}

    def test_that_a_person_moves_back_is_predicted_again(self, spool):
        receive(spool)
        spool.begin(UID)
        spool.set_aside(UID, "it is a lateral view")
        os.rename(spool.folder / ASIDE / UID, spool.folder / INCOMING / UID)
        predict(spool)
        assert states(spool) == {OUTGOING: [UID]}

    def test_that_a_person_puts_beside_one_in_work_is_kept_too(self, spool):
        receive(spool)
        spool.refuse(UID, content_digest(SYNTAX, b"others"), b"others", "it is a hand", {})
        spool.begin(UID)
        os.rename(spool.folder / ASIDE / UID, spool.folder / INCOMING / UID)
        assert spool.restore() == [UID]
        assert states(spool) == {INCOMING: [UID], ASIDE: [UID]}
        images = {state: (spool.folder / state / UID / "image.dcm").read_bytes() for state in states(spool)}
        assert images == {INCOMING: b"pixels", ASIDE: b"others"}
        assert "was in work" in read_json(spool.folder / ASIDE / UID / "record.json")["reason"]


class TestDeadLetters:
    def test_keep_result_and_reason_and_can_be_sent_again(self, spool):
        receive(spool)
        predict(spool)
        for name in WANTED:
            for path in spool.waiting(name):
                spool.give_up(path, "it answered 0xc000")
        assert states(spool) == {DONE: [UID], DEAD: [UID]}
        letters = {path.relative_to(spool.folder / DEAD / UID).as_posix() for path in spool.folder.glob("dead-*/*/*/*")}
        sent = ("archive/sr", "archive/seg", "web/sr")
        assert letters == {f"{letter}.{end}" for letter in sent for end in ("dcm", "txt")}
        os.rename(spool.folder / DEAD / UID, spool.folder / OUTGOING / UID)
        for name in WANTED:
            for path in spool.waiting(name):
                spool.delivered(path)
        assert states(spool) == {DONE: [UID]}
        assert (spool.folder / DONE / UID / "record.json").exists(), "of the image, not of the letters"


class TestRefused:
    def test_objects_are_kept_once_each(self, spool):
        for data in (b"a", b"b", b"a"):
            spool.refuse("no-uid", content_digest(SYNTAX, data), data, "it cannot be read", {})
        assert len(spool.listed(ASIDE)) == 2


class TestLimits:
    def test_what_waits_or_is_in_work_counts(self, spool):
        limits = Limits(waiting=2, free=0)
        receive(spool, "1.1")
        spool.begin("1.1")
        assert limits.problem(spool) == ""
        receive(spool, "1.2")
        assert "2 images wait" in limits.problem(spool)

    def test_the_disk(self, spool):
        assert "MiB free" in Limits(waiting=2, free=1 << 60).problem(spool)

    def test_only_one_listener_has_a_spool(self, spool):
        held = spool.open()
        with pytest.raises(InputError, match="another process"):
            Spool(spool.folder).open()
        os.close(held)


class KilledError(BaseException):
    """The process ends here."""


class Killing:
    """Ends the process before the `at`-th change of the disk: nothing is changed any more, not even by cleaning up."""

    NAMES = ("rename", "replace", "link", "mkdir", "unlink", "rmdir")

    def __init__(self, monkeypatch, at: int):
        self.left = at
        for name in self.NAMES:
            monkeypatch.setattr(module.os, name, self._counted(getattr(os, name)))
        monkeypatch.setattr(module.os, "fsync", self._counted(lambda _: None))  # a kill leaves the system's memory

    def _counted(self, function):
        def call(*arguments, **options):
            if self.left <= 0:
                raise KilledError
            self.left -= 1
            return function(*arguments, **options)

        return call


def live(spool: Spool, log: list[str]) -> None:
    """A sender that goes on until it is told that the image is safe, the model and two destinations."""
    if "accepted" not in log:
        assert receive(spool) in (NEW, KNOWN)
        log.append("accepted")
    if UID in spool.listed(INCOMING):
        log.append("predicted")
        predict(spool)
    for name in WANTED:
        for path in spool.waiting(name):
            log.append(f"{name} {path.stem}")
            spool.delivered(path)


def test_a_kill_at_any_moment_loses_and_doubles_nothing(tmp_path):
    whole: list[str] = []
    for at in range(1000):
        spool = Spool(tmp_path / str(at))
        os.close(spool.open())
        log: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            killing = Killing(patch, at)
            try:
                live(spool, log)
                whole = log
            except KilledError:
                log.append("killed")
        again = Spool(spool.folder)
        os.close(again.open())
        again.restore()
        if "accepted" in log:
            assert any(UID in again.listed(state) for state in (INCOMING, OUTGOING, DONE)), at
        assert again.listed(WORKING) == [], at
        live(again, log)
        again.restore()
        assert states(again) == {DONE: [UID]}, at
        assert sorted(set(log) - {"killed"}) == ["accepted", "archive seg", "archive sr", "predicted", "web sr"], at
        # What was sent at the moment of the kill is sent again, as the same object; nothing else is.
        twice = [event for event in set(log) if log.count(event) > 1]
        assert len(twice) <= 1, (at, log)
        assert not list((again.folder / ".new").iterdir()), at
        if killing.left > 0:
            break
    assert at > 25, "every change of the disk was a moment"
    assert whole.count("predicted") == 1
