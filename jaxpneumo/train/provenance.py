"""What a result was made with: versions, the code's commit, the machine's devices."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jaxpneumo
from jaxpneumo.errors import InputError
from jaxpneumo.files import read_json, write_json

FILE = "provenance.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "albumentations", "pydicom", "numpy")
PACKAGES += ("opencv-python-headless",)


def software() -> dict[str, Any]:
    """{"jaxpneumo", "commit", "python", "platform", "packages": {name: version}}.

    `commit` is the checkout's, with "+changes" where tracked files differ from it; None for an installed package.
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "jaxpneumo": jaxpneumo.__version__,
        "commit": _commit(Path(jaxpneumo.__file__).resolve().parent.parent),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": versions,
    }


def record_start(workdir: Path) -> None:
    """Adds this start of a run to provenance.json in its folder: when, with which software, on which devices."""
    import jax

    if jax.process_index() != 0:
        return
    devices = [device.device_kind for device in jax.devices()]
    start = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "devices": {kind: devices.count(kind) for kind in sorted(set(devices))},
        "processes": jax.process_count(),
        **software(),
    }
    write_json(workdir / FILE, {"starts": [*read_starts(workdir), start]})


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """The starts of a run, oldest first; none where they were not recorded. Raises InputError when damaged."""
    path = workdir / FILE
    if not path.is_file():
        return []
    content = read_json(path)
    starts = content.get("starts") if isinstance(content, dict) else None
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise InputError(f"{path} is damaged: it has no list of starts. Remove it to go on without.")
    return starts


def _commit(folder: Path) -> str | None:
    """The commit of a checkout whose top is `folder`; a package inside of another repository has none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder:
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
