"""Archives for tests: many files with ids of their own, some of them damaged; processes that are killed on the way."""

import os
import subprocess
import sys
import time
from pathlib import Path

from jaxpneumo.dicom import dicom
from jaxpneumo.predict.manifest import MANIFEST, read_entries

# Runs `jaxpneumo predict` and kills it (SIGKILL) as soon as so many lines are in the manifest, before the next.
KILLED = """
import os, signal, sys
from contextlib import contextmanager
from jaxpneumo.predict import predict

lines, real = int(sys.argv[1]), predict.open_manifest

@contextmanager
def open_manifest(*arguments):
    with real(*arguments) as (left, append):
        def count(entry):
            global lines
            if lines == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            lines -= 1
            append(entry)
        yield left, count

predict.open_manifest = open_manifest
sys.exit(predict.main(sys.argv[2:]))
"""


def entries(output: Path) -> dict[str, dict]:
    """The entries of the manifest in an output folder, by file."""
    return {entry["file"]: entry for entry in read_entries(output / MANIFEST) if "file" in entry}


def write_archive(folder: Path, originals: list[Path], count: int, corrupt: int) -> None:
    """`count` DICOM files in folders of 100: copies under new SOP instance UIDs, `corrupt` of them damaged in turns."""
    damages = (lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\0" * 200 + data[200:])
    every = count // corrupt
    for number in range(count):
        data = originals[number % len(originals)].read_bytes()
        uid = dicom.read_uid(data)
        # Of the same length, so that no length in the file changes.
        new = f"2.25.1{number * 7919 % 100_000:0{len(uid) - 6}d}"
        data = data.replace(uid.encode(), new.encode())
        if number % every == every - 1:
            data = damages[number // every % len(damages)](data)
        path = folder / f"{number // 100:03d}" / f"{number:05d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def kill_after(lines: int, arguments: list[str]) -> int:
    """Runs a prediction that is killed after so many lines; gives its return code."""
    return subprocess.run([sys.executable, "-c", KILLED, str(lines), *arguments], capture_output=True).returncode


def watch(arguments: list[str], manifest: Path, at: tuple[int, ...]) -> tuple[int, list[tuple[int, int]]]:
    """Runs `jaxpneumo predict` and reads its memory whenever the manifest has so many lines.

    Returns:
      The exit code, and for each of `at` the resident bytes of the process and of its children together.
    """
    process = subprocess.Popen([sys.executable, "-m", "jaxpneumo", "predict", *arguments], stdout=subprocess.DEVNULL)
    found, lines, place = [], 0, 0
    while process.poll() is None and len(found) < len(at):
        time.sleep(0.02)
        if manifest.exists():
            with open(manifest, "rb") as file:
                file.seek(place)
                data = file.read()
            lines, place = lines + data.count(b"\n"), place + len(data)
            if lines >= at[len(found)]:
                found.append((_resident(process.pid), sum(map(_resident, _children(process.pid)))))
    return process.wait(), found


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
