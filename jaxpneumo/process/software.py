"""Which software is at work: this package's version and commit, Python, the libraries that decide results."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jaxpneumo

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "albumentations", "pydicom", "numpy")
PACKAGES += ("opencv-python-headless", "onnxruntime", "openvino")


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
