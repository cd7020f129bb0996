"""Finds the image that an id of a csv means. An id may have an ending or be a path, if only one image fits.

An image is known by its SOP instance UID, by its file's name without ending, or, where several files have one
name, by its path below the images folder without ending.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from jaxpneumo.dicom.radiograph import file_id

UID = re.compile(r"[0-9]+(\.[0-9]+)+")


def file_names(sources: Collection[str], known: Collection[str] = ()) -> dict[str, str]:
    """Source -> the id that a file has by its name.

    Args:
      sources: paths of files below one folder.
      known: ids of a csv. If several files have a name that is among these ids, they are copies of one image, unless
        the id is also the path of one of them.
    """
    paths = {source: _path(source) for source in sources}
    copies = set(known) - set(paths.values())
    own = {source for source, path in paths.items() if path in known}
    repeated = repeated_names(sources)
    others = repeated - copies
    return {source: name_of(source, repeated if source in own else others) for source in sources}


def repeated_names(sources: Iterable[str]) -> frozenset[str]:
    """The file names without ending that occur more than once among the sources."""
    counts = Counter(map(file_id, sources))
    return frozenset(name for name, count in counts.items() if count > 1)


def name_of(source: str, repeated: Container[str]) -> str:
    """What an image is called whose header does not say it: its file's name, without ending.

    Where other files have that name too, it is the path below the folder.

    Args:
      source: path below the folder, with slashes.
      repeated: of `repeated_names` of the whole folder, so that the name does not depend on what else is read.
    """
    name = file_id(source)
    return _path(source) if name in repeated else name


def plain_ids(ids: Collection[str], sources: Collection[str]) -> dict[str, str]:
    """Replaces the ids of a csv by the ids of images: id -> id; different ids stay different.

    - An id of a file stays as it is.
    - A bare name, or a path whose name is a UID, becomes the name without ending. The folders of a UID say nothing.
    - Any other path means one file: its whole path, its last folders and name, or its path below further folders. Names
      such as view1_frontal.jpg are in many folders.
    - An id that could mean several files stays, and so does an id if several ids could mean its file.

    Args:
      ids: of the csv.
      sources: paths of the images' files below one folder, or ids of images.
    """
    names = file_names(sources)
    own = {*names.values(), *map(file_id, sources)}
    # Paths of Windows among them; the files' own have slashes.
    paths = {each: _path(each.replace("\\", "/")) for each in ids if each not in own}
    times = Counter(file_id(path) for path in paths.values())
    found = {each: each for each in ids if each in own}
    for each, path in paths.items():
        name = file_id(path)
        if times[name] == 1 and name not in found and ("/" not in path or UID.fullmatch(name)):
            found[each] = name
    taken = set(found.values())
    found |= _by_path(
        {each: path for each, path in paths.items() if each not in found},
        {_path(source): name for source, name in names.items() if name not in taken},
    )
    return {each: found.get(each, each) for each in ids}


def of_images(ids: Collection[str], images: Collection[str]) -> dict[str, str]:
    """Id of a csv -> id of the image that it means; itself where it means none."""
    image_of = {name: image for image, name in file_names(images).items()}
    return {each: image_of.get(name, each) for each, name in plain_ids(ids, images).items()}


def _by_path(ids: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Pairs of an id and a file that fit only each other by their paths; equal paths have priority."""
    ends: dict[str, set[str]] = defaultdict(set)
    for path, name in names.items():
        for tail in _tails(path):
            ends[tail].add(name)
    found = _one_to_one({each: {names[path]} for each, path in ids.items() if path in names})
    taken = set(found.values())
    meant = {}
    for each, path in ids.items():
        longest = next((names[tail] for tail in _tails(path) if tail in names), None)
        if path not in names:
            meant[each] = (ends.get(path, set()) | {longest}) - taken - {None}
    return found | _one_to_one(meant)


def _one_to_one(meant: Mapping[str, set[str]]) -> dict[str, str]:
    """The pairs in which neither the id nor the file has a second candidate."""
    times = Counter(name for files in meant.values() for name in files)
    single = {each: next(iter(files)) for each, files in meant.items() if len(files) == 1}
    return {each: name for each, name in single.items() if times[name] == 1}


def _path(text: str) -> str:
    """A path without ending and without empty and "." folders."""
    *folders, name = PurePosixPath("/", text).parts[1:] or ("",)
    return "/".join([*folders, file_id(name)])


def _tails(path: str) -> Iterator[str]:
    """The path, then without its first folder, and so on down to its name."""
    yield path
    while "/" in path:
        path = path.split("/", 1)[1]
        yield path
