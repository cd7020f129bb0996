"""Finds the image that an id of a csv means. An id may have an ending or be a path, if only one image fits.

An image is known by its SOP instance UID, by its file's name without ending, or, where several files have one
name, by its path below the images folder without ending. Where files differ in nothing but their endings, a csv tells
them apart by names or paths with endings.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from jaxpneumo.dicom.radiograph import file_id
from jaxpneumo.process.errors import InputError

T = TypeVar("T")
UID = re.compile(r"[0-9]+(\.[0-9]+)+")


def file_names(sources: Collection[str], known: Collection[str] = ()) -> dict[str, str]:
    """Source -> the id that a file has by its name.

    Args:
      sources: paths of files below one folder.
      known: ids of a csv. If several files have a name that is among these ids, they are copies of one image, unless
        the id is also the path of one of them. A file that others equal but for the ending is called with its ending if
        that is among these ids.
    """
    paths = {source: _path(source) for source in sources}
    copies = set(known) - set(paths.values())
    own = {source for source, path in paths.items() if path in known}
    repeated = repeated_names(sources)
    others = repeated - copies
    names = {source: name_of(source, repeated if source in own else others) for source in sources}
    return names | {source: source for source in twins(sources).values() if source in known}


def twins(sources: Iterable[str]) -> dict[str, str]:
    """The files that differ from another in their ending alone: path with ending -> source. A UID is not told apart."""
    groups: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        groups[_path(source)].append(source)
    return {
        _whole_path(source): source
        for path, group in groups.items()
        if len(group) > 1 and not UID.fullmatch(file_id(path))
        for source in group
    }


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
    """Replaces the ids of a csv by the ids of images: id -> id. Two ids become one only if they mean one file.

    - An id of a file stays as it is, and so does one that equals it but for the ending.
    - A bare name, or a path whose name is a UID, becomes the name without ending. The folders of a UID say nothing.
    - Any other path means one file: its whole path, its last folders and name, or its path below further folders. Names
      such as view1_frontal.jpg are in many folders.
    - Of `twins` an id means the file that has its ending, too.
    - An id that could mean several files stays. So does a path with further folders if another id could mean its file.

    Args:
      ids: of the csv.
      sources: paths of the images' files below one folder, or ids of images.
    """
    names = file_names(sources)
    own = {*names.values(), *map(file_id, sources)}
    found = _by_ending(ids, twins(sources))
    # Paths of Windows among them; the files' own have slashes.
    paths = {each: each if each in own else _path(_slashed(each)) for each in ids if each not in found}
    times = Counter(file_id(path) for path in set(paths.values()) if UID.fullmatch(file_id(path)))
    repeated = repeated_names(sources)
    means = {}
    for path in set(paths.values()):
        name = file_id(path)
        # One UID in several folders, here and in the csv, is told apart by them.
        if UID.fullmatch(name) and (name not in repeated or times[name] == 1):
            means[path] = name
        elif path in own or "/" not in path:
            means[path] = path
    means |= _by_path(
        {path for path in paths.values() if path not in means},
        {_path(source): name for source, name in names.items()},
        {*means.values(), *found.values()},
    )
    return {each: found.get(each) or means.get(paths[each], each) for each in ids}


def of_images(ids: Collection[str], images: Collection[str]) -> dict[str, str]:
    """Id of a csv -> id of the image that it means; itself where it means none."""
    image_of = {name: image for image, name in file_names(images, images).items()}
    found = {each: image_of.get(name, each) for each, name in plain_ids(ids, images).items()}
    # An image has an ending in its id to be told apart from a file of another ending.
    return {each: each if unclear(image, (each, image)) else image for each, image in found.items()}


def spellings(plain: Mapping[str, str]) -> dict[str, list[str]]:
    """Of the result of `plain_ids` or `of_images`, the images that several ids mean: image -> ids."""
    groups: dict[str, list[str]] = defaultdict(list)
    for each, image in plain.items():
        groups[image].append(each)
    return {image: group for image, group in groups.items() if len(group) > 1}


def unclear(image: str, group: Iterable[str]) -> bool:
    """Whether ids that mean one image may be of two files: they have different endings, and the image is no UID."""
    return len({_ending(each) for each in group} - {""}) > 1 and not UID.fullmatch(image)


def merged(rows: Mapping[str, list[T]], image_of: Mapping[str, str]) -> dict[str, list[T]]:
    """The rows of a csv by image, those of several ids of one image together."""
    found: dict[str, list[T]] = {}
    for each, its in rows.items():
        found.setdefault(image_of[each], []).extend(its)
    return found


def one_each(values: Mapping[str, T], image_of: Mapping[str, str], path: Path | str) -> dict[str, T]:
    """The values of a csv by image.

    Args:
      values: by the ids of the csv.
      image_of: id -> image.
      path: of the csv, for messages.

    Raises:
      InputError: several ids of one image have different values.
    """
    for group in spellings(image_of).values():
        first = values[group[0]]
        if any(values[each] != first for each in group):
            names = " and ".join(group)
            raise InputError(f"{path}: {names} mean one image here, and their lines differ. Keep one of the lines.")
    return {image_of[each]: value for each, value in values.items()}


def _by_ending(ids: Iterable[str], files: Mapping[str, str]) -> dict[str, str]:
    """Id -> the one of `twins` that it means: by its whole path, the path's end, or the path below further folders."""
    ends: dict[str, set[str]] = defaultdict(set)
    for path, source in files.items():
        for tail in _tails(path):
            ends[tail].add(source)
    found: dict[str, str] = {}
    further: dict[str, str] = {}
    for each in ids if files else ():
        path = _whole_path(_slashed(each))
        within = {files[path]} if path in files else ends.get(path, set())
        meant = within if path in files else within | _below(path, files)
        if len(meant) == 1:
            (found if meant <= within else further)[each] = next(iter(meant))
    return found | _alone(further, set(found.values()))


def _by_path(paths: Collection[str], names: Mapping[str, str], taken: set[str]) -> dict[str, str]:
    """Paths of a csv -> names of the files that they mean.

    Args:
      paths: without ending.
      names: path without ending -> name, of the files.
      taken: names that other ids have; a path with further folders means none of these.
    """
    ends: dict[str, set[str]] = defaultdict(set)
    for path, name in names.items():
        for tail in _tails(path):
            ends[tail].add(name)
    found = {path: names[path] for path in paths if path in names}
    taken = taken | set(found.values())
    further: dict[str, str] = {}
    for path in set(paths) - found.keys():
        within = ends.get(path, set())
        meant = (within | _below(path, names)) - taken or within
        if len(meant) == 1:
            (found if meant <= within else further)[path] = next(iter(meant))
    return found | _alone(further, set(found.values()))


def _alone(further: Mapping[str, str], known: set[str]) -> dict[str, str]:
    """Of paths with further folders than the file that they may mean, those whose file no other path or id means."""
    times = Counter(further.values())
    return {path: name for path, name in further.items() if times[name] == 1 and name not in known}


def _below(path: str, files: Mapping[str, str]) -> set[str]:
    """The file whose path is the longest end of a longer path, if there is one."""
    return set(next(([files[tail]] for tail in _tails(path) if tail in files), []))


def _path(text: str) -> str:
    """A path without ending and without empty and "." folders."""
    *folders, name = PurePosixPath("/", text).parts[1:] or ("",)
    return "/".join([*folders, file_id(name)])


def _whole_path(text: str) -> str:
    """A path with its ending, without empty and "." folders."""
    return "/".join(PurePosixPath("/", text).parts[1:])


def _slashed(text: str) -> str:
    return text.replace("\\", "/")


def _ending(text: str) -> str:
    """The ending of an image format, in small letters; "" for none."""
    name = PurePosixPath(_slashed(text)).name
    return name[len(file_id(name)) :].lower()


def _tails(path: str) -> Iterator[str]:
    """The path, then without its first folder, and so on down to its name."""
    yield path
    while "/" in path:
        path = path.split("/", 1)[1]
        yield path
