"""A shared folder: a finished run's config and weights in files that anyone can read and check.

`jaxpneumo export --format folder` writes it. Wherever a finished run is read, it can stand in the run's place.

    config.json          the run's config, without paths of the machine
    model.safetensors    the last stage's {"params", "batch_stats"}; a name is the path, as params/encoder/conv0/kernel
    provenance.json      every start of the run
    thresholds/          the thresholds that `jaxpneumo thresholds` saved
    SHA256SUMS           checksums of all files, as `sha256sum --check` reads them
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from jaxpneumo.model.weight_files import read_weights
from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.errors import InputError
from jaxpneumo.run import checkpoint
from jaxpneumo.run.provenance import FILE as PROVENANCE

WEIGHTS, SUMS = "model.safetensors", "SHA256SUMS"


def is_shared(folder: Path) -> bool:
    """Whether a folder is a shared one and no run."""
    return (folder / SUMS).is_file()


def final_variables(workdir: Path, stage: str, template: dict[str, Any], sharding: Sharding) -> dict[str, Any]:
    """The variables that a stage of a run ended with, or those of a shared folder.

    Args:
      workdir: the run's folder, or a shared one, which has the last stage's only.
      stage: name of the stage.
      template: gives structure, shapes and types.
      sharding: of what is returned.

    Returns:
      {"params", "batch_stats"}.

    Raises:
      InputError: the stage has no result, or it is damaged, was changed or is of another network.
    """
    if not is_shared(workdir):
        return checkpoint.restore_final(workdir / stage, template, sharding)[0]
    check(workdir)
    return jax.device_put(from_arrays(read_weights(workdir / WEIGHTS), template, workdir / WEIGHTS), sharding)


def to_arrays(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Name -> array of a network's variables."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(variables))
    return {_name(path): np.ascontiguousarray(value) for path, value in leaves}


def from_arrays(arrays: dict[str, np.ndarray], template: dict[str, Any], path: Path) -> dict[str, Any]:
    """The inverse of `to_arrays`. Raises InputError, naming `path`, where they are not the template's."""
    wanted = {_name(place): (leaf.shape, leaf.dtype) for place, leaf in jax.tree_util.tree_leaves_with_path(template)}
    there = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if wrong := sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name)):
        raise InputError(
            f"{path} does not fit the network of its config.json: {len(wrong)} arrays differ, the first is {wrong[0]}. "
            "Get both files of the folder anew."
        )
    return jax.tree_util.tree_map_with_path(lambda place, _: arrays[_name(place)], template)


def _name(path: Any) -> str:
    return "/".join(key.key for key in path)


def write_sums(folder: Path) -> None:
    """Writes the checksums of all files of a folder into it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    with write_atomically(folder / SUMS) as file:
        file.writelines(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)


def check(folder: Path) -> list[str]:
    """Compares the files of a shared folder with their checksums.

    Returns:
      The names of these files below the folder. What else lies in it is unchecked.

    Raises:
      InputError: a file was changed, is missing, cannot be read, or is no file of the folder but a link, say; or the
        checksums are no such list.
    """
    sums, own = _sums(folder), folder.resolve()
    for digest, name in sums:
        path = folder / name
        if path.exists() and not (path.is_file() and path.resolve() == own / name):
            raise InputError(
                f"{path} is no file of the folder: it is a link, say, to one elsewhere, and is not used. Get the "
                "folder anew, or copy it with what its links lead to (cp -rL)."
            )
        try:
            found = _sha256(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}. Get the folder anew.") from error
        if found != digest:
            raise InputError(
                f"{path} is not the file that was shared: its SHA-256 begins with {found[:12]}, and {SUMS} says "
                f"{digest[:12]}. It was changed or is damaged, and is not used. Get the folder anew."
            )
    return [name for _, name in sums]


def _sums(folder: Path) -> list[tuple[str, str]]:
    """(checksum, name below the folder) of each line."""
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}). Get the folder anew.") from error
    found = [re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line) for line in lines]
    names = {match[2] for match in found if match}
    inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in names)
    if not all(found) or not inside or not names >= {"config.json", WEIGHTS, PROVENANCE}:
        raise InputError(f"{path} is not a list of checksums of a shared folder. Get the folder anew.")
    return [(match[1], match[2]) for match in found if match]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
