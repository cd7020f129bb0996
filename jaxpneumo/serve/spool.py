"""The listener's folders. An image is a folder by the name of its UID, and its state is the folder that it lies in.

    incoming     it is safe on the disk and waits for the model
    working      the model looks at it
    outgoing     its results wait, in one folder for each destination
    done         all its results were delivered; record.json alone is left
    aside        it was not predicted; record.json says why
    dead-letter  results that a destination did not take, in one folder for each destination

A state changes by one rename, so an image has one state whenever the process is killed. `restore` takes back what was
in work. People may look, and move folders themselves: `mv aside/UID incoming/` predicts an image again, `mv
dead-letter/UID outgoing/` sends its results again, and without its folder in done an image counts as new.
"""

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxpneumo.process import jsonl
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.files import read_json

INCOMING, WORKING, OUTGOING, DONE, ASIDE, DEAD = "incoming", "working", "outgoing", "done", "aside", "dead-letter"
STATES = (INCOMING, WORKING, OUTGOING, DONE, ASIDE, DEAD)
ACCEPTED = (INCOMING, WORKING, OUTGOING, DONE)  # in the order that an image goes through
IMAGE, RECORD, RESULTS = "image.dcm", "record.json", "results"
MAKING = ".new"  # folders that are not whole yet
NEW, KNOWN, OTHER = "new", "known", "other content"


def content_digest(syntax: str, data_set: bytes) -> str:
    """SHA-256 of what an object holds: its transfer syntax and its data set, without the file's own header."""
    return hashlib.sha256(syntax.encode() + b"\n" + data_set).hexdigest()


@dataclass(frozen=True)
class Spool:
    """The folders below `folder`. All renames are made by one process, under one lock.

    Attributes:
      folder: holds the folders of the states; `open` makes them.
    """

    folder: Path
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    def open(self) -> int:
        """Makes the folders and takes the spool for this process until it ends; returns the descriptor that holds it.

        Raises:
          InputError: another listener has the spool.
        """
        for name in (*STATES, MAKING):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            jsonl.lock(descriptor, self.folder)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def restore(self) -> list[str]:
        """Takes back what an earlier process was doing when it ended; returns the UIDs that wait again."""
        for name in os.listdir(self.folder / MAKING):
            shutil.rmtree(self.folder / MAKING / name, ignore_errors=True)
        taken_back = self.listed(WORKING)
        for uid in taken_back:
            self.take_back(uid)
        for uid in self.listed(OUTGOING):
            self.finish(uid)
        return taken_back

    def listed(self, state: str) -> list[str]:
        """The UIDs in a state, the oldest first."""
        with os.scandir(self.folder / state) as entries:
            aged = [(_came(entry), entry.name) for entry in entries if entry.is_dir()]
        return [name for _, name in sorted(aged)]

    def count(self, state: str) -> int:
        """How many images are in a state."""
        with os.scandir(self.folder / state) as entries:
            return sum(1 for _ in entries)

    def oldest(self, state: str) -> float:
        """Seconds since the oldest image of a state came; 0 without any."""
        with os.scandir(self.folder / state) as entries:
            first = min(map(_came, entries), default=time.time())
        return max(0.0, time.time() - first)

    def free(self) -> int:
        """Bytes that can still be written here."""
        return shutil.disk_usage(self.folder).free

    def receive(self, uid: str, digest: str, data: bytes, facts: dict[str, Any]) -> str:
        """Keeps an object. When this returns, it is on the disk, also after a power failure.

        Args:
          uid: SOP instance UID, a valid one.
          digest: `content_digest` of the object.
          data: the DICOM file.
          facts: for its record; nothing about the patient.

        Returns:
          NEW: it waits in incoming now. KNOWN: the same object was accepted or set aside before. OTHER: an object of
          this UID with other content was accepted before; this one is kept aside.

        Raises:
          OSError: it could not be written.
        """
        if (answer := self._known(uid, digest)) is KNOWN:
            return answer
        made = self._make(data, {"uid": uid, "sha256": digest, **facts})
        with self._lock:  # another association may have sent it in the meantime
            answer = self._known(uid, digest)
            if answer is NEW:
                os.rename(made, self.folder / INCOMING / uid)
        if answer is NEW:
            _to_disk(self.folder / INCOMING)
        elif answer is KNOWN:
            shutil.rmtree(made)
        else:
            self._keep_aside(made, uid, digest, "the same SOP Instance UID came before with other content")
        return answer

    def refuse(self, uid: str, digest: str, data: bytes, reason: str, facts: dict[str, Any]) -> None:
        """Keeps an object aside that cannot be accepted; a repeated one once. Raises OSError as `receive`."""
        self._keep_aside(self._make(data, {"uid": uid, "sha256": digest, **facts}), uid, digest, reason)

    def begin(self, uid: str) -> Path | None:
        """Takes an image from incoming to working; returns its folder, or None if it is no longer there."""
        with self._lock:
            try:
                os.rename(self.folder / INCOMING / uid, self.folder / WORKING / uid)
            except FileNotFoundError:
                return None
        return self.folder / WORKING / uid

    def take_back(self, uid: str) -> None:
        """Lets an image in work wait again, without what was made of it.

        What a person has put into its place in the meantime is set aside.
        """
        folder, target = self.folder / WORKING / uid, self.folder / INCOMING / uid
        if folder.is_dir():
            _leave_only(folder, IMAGE, RECORD)
            with self._lock:
                if target.exists():
                    self._keep_aside(target, uid, self._digest(target), "the image of this UID was in work")
                os.rename(folder, target)

    def set_aside(self, uid: str, reason: str) -> None:
        """Sets an image in work aside."""
        folder = self.folder / WORKING / uid
        _leave_only(folder, IMAGE, RECORD)
        self._keep_aside(folder, uid, self._digest(folder), reason)

    def publish(self, uid: str, wanted: dict[str, Iterable[str]], facts: dict[str, Any]) -> None:
        """Gives the results of an image in work to the destinations, all at once.

        Args:
          uid: of the image; its results are NAME.dcm in the folder `results` of its folder.
          wanted: the names of results by destination. A result that does not exist is left out.
          facts: are added to its record.
        """
        folder = self.folder / WORKING / uid
        for destination, names in wanted.items():
            (folder / destination).mkdir(exist_ok=True)
            for name in names:
                with suppress(FileNotFoundError):
                    os.link(folder / RESULTS / f"{name}.dcm", folder / destination / f"{name}.dcm")
            _to_disk(folder / destination)
        for path in (folder / RESULTS).glob("*.dcm"):
            _to_disk(path)
        made = sorted(path.stem for path in (folder / RESULTS).glob("*.dcm"))
        shutil.rmtree(folder / RESULTS, ignore_errors=True)
        write_json(folder / RECORD, {**self._record(folder), **facts, "results": made})
        _to_disk(folder)
        with self._lock:
            os.rename(folder, self.folder / OUTGOING / uid)
        _to_disk(self.folder / OUTGOING)
        self.finish(uid)

    def waiting(self, destination: str) -> list[Path]:
        """The results that wait for a destination, the oldest images first. Images without any left are finished."""
        found: list[Path] = []
        for uid in self.listed(OUTGOING):
            results = sorted((self.folder / OUTGOING / uid / destination).glob("*.dcm"))
            found += results
            if not results:
                self.finish(uid)
        return found

    def destinations(self) -> set[str]:
        """The destinations that results wait for."""
        return {path.parent.name for path in (self.folder / OUTGOING).glob("*/*/*.dcm")}

    def delivered(self, path: Path) -> None:
        """Removes a result that its destination has; the last one of an image finishes it."""
        path.unlink(missing_ok=True)
        self.finish(path.parent.parent.name)

    def give_up(self, path: Path, reason: str) -> None:
        """Moves a result that waits to dead-letter, with the reason in a text file beside it."""
        uid, destination = path.parent.parent.name, path.parent.name
        folder = self.folder / DEAD / uid / destination
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{path.stem}.txt").write_text(f"{reason}\n", encoding="utf-8")
        with suppress(FileNotFoundError):
            os.replace(path, folder / path.name)
        _to_disk(folder)
        self.finish(uid)

    def finish(self, uid: str) -> None:
        """Moves an image from outgoing to done if no result of it waits any more. Its own pixels are removed."""
        folder = self.folder / OUTGOING / uid
        with self._lock:
            if not folder.is_dir() or any(folder.glob("*/*.dcm")):
                return
            # Of letters sent again there is no record here, and the image is in done already.
            if not (folder / RECORD).exists():
                shutil.rmtree(folder)
                return
            _leave_only(folder, RECORD)
            target = self.folder / DONE / uid
            if target.exists():  # a person had it predicted again
                shutil.rmtree(target)
            os.rename(folder, target)

    def _known(self, uid: str, digest: str) -> str:
        """NEW, KNOWN or OTHER. No object of another content has to be read for it: records have the digests."""
        with self._lock:
            for state in ACCEPTED:
                folder = self.folder / state / uid
                if folder.exists():
                    same = self._digest(folder) == digest
                    if same:
                        _to_disk(folder.parent)  # whoever sent it first may still wait for that
                    return KNOWN if same else OTHER
            # A corrected copy of an object that was set aside is new.
            for folder in (self.folder / ASIDE / uid, self.folder / ASIDE / _with_digest(uid, digest)):
                if folder.exists() and self._digest(folder) == digest:
                    return KNOWN
        return NEW

    def _make(self, data: bytes, record: dict[str, Any]) -> Path:
        """A whole folder of an object, on the disk, that has no state yet."""
        made = Path(tempfile.mkdtemp(dir=self.folder / MAKING))
        try:
            for name, content in ((IMAGE, data), (RECORD, json.dumps(record, indent=2).encode() + b"\n")):
                with open(made / name, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            _to_disk(made)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return made

    def _keep_aside(self, folder: Path, uid: str, digest: str, reason: str) -> None:
        write_json(folder / RECORD, {**self._record(folder), "reason": reason})
        with self._lock:
            targets = [self.folder / ASIDE / name for name in (uid, _with_digest(uid, digest))]
            if any(target.exists() and self._digest(target) == digest for target in targets):
                shutil.rmtree(folder)
            else:
                os.rename(folder, next(target for target in targets if not target.exists()))
        _to_disk(self.folder / ASIDE)

    def _digest(self, folder: Path) -> str:
        return str(self._record(folder).get("sha256", ""))

    def _record(self, folder: Path) -> dict[str, Any]:
        """The record of an image; empty where a person has spoilt it."""
        try:
            record = read_json(folder / RECORD)
        except ValueError:
            return {}
        return record if isinstance(record, dict) else {}


@dataclass(frozen=True)
class Limits:
    """From where on nothing more is taken, so that what was taken is safe.

    Attributes:
      waiting: images that wait or are in work.
      free: bytes that must be free on the disk.
    """

    waiting: int
    free: int

    def problem(self, spool: Spool) -> str:
        """Why nothing more is taken now, in words; "" if it is."""
        if (free := spool.free()) < self.free:
            return f"the disk has {free >> 20} MiB free, fewer than {self.free >> 20}"
        if (waiting := spool.count(INCOMING) + spool.count(WORKING)) >= self.waiting:
            return f"{waiting} images wait, no fewer than {self.waiting}"
        return ""


def _with_digest(uid: str, digest: str) -> str:
    return f"{uid}-{digest[:16]}"


def _came(entry: os.DirEntry) -> float:
    """When an object came, in seconds; now where it has just gone on."""
    try:
        return os.stat(os.path.join(entry.path, IMAGE)).st_mtime
    except OSError:
        return time.time()


def _leave_only(folder: Path, *names: str) -> None:
    for path in folder.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _to_disk(path: Path) -> None:
    """Forces a file's content, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
