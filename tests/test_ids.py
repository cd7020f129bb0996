"""Ids of a csv find the file that they mean, and none where it could be another."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpneumo.data.ids import file_names, of_images, plain_ids, spellings, unclear
from jaxpneumo.dicom.radiograph import file_id

VIEWS = [f"patient{number}/study1/view1_frontal.jpg" for number in (1, 2, 3)]
UIDS = ["1.2.826.17", "1.2.826.18"]


def test_names_are_paths_where_several_files_have_one():
    names = file_names(["a/x.png", "b/x.png", "b/y.dcm", "1.2.3"])
    assert names == {"a/x.png": "a/x", "b/x.png": "b/x", "b/y.dcm": "y", "1.2.3": "1.2.3"}
    # Copies of an image that the csv knows by this name.
    assert file_names(["a/x.png", "b/x.png"], ["x"]) == {"a/x.png": "x", "b/x.png": "x"}
    assert file_names(["a/x.png", "b/x.png"], ["x", "b/x"]) == {"a/x.png": "x", "b/x.png": "b/x"}
    assert file_names(["x.png", "b/x.png"], ["x"]) == {"x.png": "x", "b/x.png": "b/x"}


@pytest.mark.parametrize(
    ("ids", "sources", "expected"),
    [
        # with endings, as paths, of Windows, from the root
        (["1.2.3.dcm", "ID_a.png", "b"], ["1.2.3.dcm", "ID_a.dcm", "b"], ["1.2.3", "ID_a", "b"]),
        ([f"train/{uid}.dcm" for uid in UIDS], [f"{uid}.dcm" for uid in UIDS], UIDS),
        ([f"train/{uid}.dcm" for uid in UIDS], ["scan1.dcm", "scan2.dcm"], UIDS),  # the UIDs are in the headers
        ([f"train/{uid}.dcm" for uid in UIDS], [f"study/{uid}.dcm" for uid in UIDS], UIDS),
        (["data\\train\\a.png", "/data/train/b.png", "./c.png"], ["a.png", "train/b.png", "c.png"], ["a", "b", "c"]),
        # every name in every folder
        (VIEWS, VIEWS, [each[:-4] for each in VIEWS]),
        ([f"CheXpert-v1.0/train/{each}" for each in VIEWS], VIEWS, [each[:-4] for each in VIEWS]),
        (VIEWS, [f"train/{each}" for each in VIEWS], [f"train/{each}"[:-4] for each in VIEWS]),
        (VIEWS[:1], VIEWS, [VIEWS[0][:-4]]),
        (VIEWS, VIEWS[:1], ["view1_frontal", *VIEWS[1:]]),
        # the folders of another patient, or only the end of a folder's name
        (VIEWS[:1], VIEWS[1:2], VIEWS[:1]),
        ([f"x{each}" for each in VIEWS], VIEWS, [f"x{each}" for each in VIEWS]),
        (["train/a.png"], ["test/a.png"], ["train/a.png"]),
        # one file that two ids could mean, one id that could mean two files
        (["train/a.png", "valid/a.png"], ["a.png"], ["train/a.png", "valid/a.png"]),
        (["s/a.png"], ["p/s/a.png", "q/s/a.png"], ["s/a.png"]),
        (["a.png"], ["p/a.png", "q/a.png"], ["a"]),  # copies, or it is said that they differ
        # an id that is there as it is goes before one that could be
        (["a", "a.png", "train/a.png"], ["a.png"], ["a", "a", "train/a.png"]),
        (["p/a.png", "train/p/a.png"], ["p/a.png", "q/a.png"], ["p/a", "train/p/a.png"]),
        (["b", "q/b.png", "train/q/b.png"], ["p/q/b.png"], ["b", "b", "train/q/b.png"]),
        # several spellings of one image
        (["a", "a.dcm", "a.DCM", "./a.png"], ["a.dcm"], ["a"] * 4),
        (["a.dcm", "a"], [], ["a"] * 2),
        (["p/a", "p/a.png", "\\p\\a.png"], ["p/a.png", "q/a.png"], ["p/a"] * 3),
        (["1.2.3", "train/1.2.3.dcm", "valid/1.2.3"], ["1.2.3.dcm"], ["1.2.3"] * 3),
        (["1.2.3", "train/1.2.3.dcm"], ["scan.dcm"], ["1.2.3"] * 2),
        (["p/1.2.3", "q/1.2.3.dcm"], ["p/1.2.3.dcm", "q/1.2.3.dcm"], ["p/1.2.3", "q/1.2.3"]),
        # files that differ in their endings
        (["a.png", "a.jpg"], ["a.png", "a.jpg"], ["a.png", "a.jpg"]),
        (["a.png", "a"], ["a.png", "a.jpg"], ["a.png", "a"]),
        (["a.png", "q/a.png"], ["p/a.png", "p/a.jpg"], ["p/a.png", "q/a.png"]),
        (["p/a.png", "x/p/a.jpg"], ["p/a.png", "p/a.jpg"], ["p/a.png", "p/a.jpg"]),
        (["p/b", "q/b"], ["b", "b.png"], ["p/b", "q/b"]),
        (["p/b", "b"], ["b", "b.png"], ["p/b", "b"]),
        (["1.2.3.dcm", "1.2.3.png"], ["1.2.3.dcm", "1.2.3.png"], ["1.2.3"] * 2),
        # letters count as they are
        (["id_a.PNG", "ID_B"], ["ID_a.png", "ID_b.png"], ["id_a", "ID_B"]),
    ],
)
def test_ids_mean_files(ids, sources, expected):
    assert plain_ids(ids, sources) == dict(zip(ids, expected, strict=True))


def test_files_that_differ_in_their_endings_are_told_apart_by_them():
    assert file_names(["x.png", "x.jpg", "y.png"], ["x.png", "y.png"]) == {"x.png": "x.png", "x.jpg": "x", "y.png": "y"}
    assert of_images(["x.png", "x.jpg", "x"], ["x.png", "x.jpg"]) == {"x.png": "x.png", "x.jpg": "x.jpg", "x": "x"}
    assert of_images(["x.png", "x.jpg", "x"], ["x.png"]) == {"x.png": "x.png", "x.jpg": "x.jpg", "x": "x.png"}


def test_endings_of_one_image_may_be_of_two_files():
    assert spellings({"a": "a", "a.png": "a", "b.png": "b"}) == {"a": ["a", "a.png"]}
    assert not unclear("a", ["a", "a.png", "q/a.PNG"])
    assert unclear("a", ["a", "a.png", "a.jpg"])
    assert not unclear("1.2.3", ["1.2.3.dcm", "1.2.3.png"])


def test_ids_mean_ids_of_images():
    images = ["train/1.2.3.dcm", "p1/view", "p2/view", "ID_7"]
    ids = ["1.2.3", "x/p1/view.jpg", "p2/view", "ID_7.png", "other"]
    expected = ["train/1.2.3.dcm", "p1/view", "p2/view", "ID_7", "other"]
    assert of_images(ids, images) == dict(zip(ids, expected, strict=True))


paths = st.builds(
    lambda folders, name, ending: "/".join([*folders, name + ending]),
    st.lists(st.sampled_from(["p", "q", "train"]), max_size=2),
    st.sampled_from(["a", "b", "1.2"]),
    st.sampled_from(["", ".png", ".dcm"]),
)


@given(st.sets(paths, max_size=6), st.sets(paths, max_size=6))
def test_ids_of_other_images_stay_different_and_names_stay_apart(ids, sources):
    found = plain_ids(ids, sources)
    assert found.keys() == ids
    for one, other in combinations(ids, 2):
        if found[one] == found[other]:
            (*folders, name), (*others, end) = ([*each.split("/")[:-1], file_id(each)] for each in (one, other))
            short = min(len(folders), len(others))
            assert name == end
            assert name == "1.2" or not short or folders[-short:] == others[-short:]
    names = file_names(sources, found.values())
    for each, name in found.items():
        for source in (source for source in sources if names[source] == name):
            *folders, last = each.split("/")
            *others, end = source.split("/")
            assert end.split(".png")[0].split(".dcm")[0] == last.split(".png")[0].split(".dcm")[0]
            short = min(len(folders), len(others))
            assert name == "1.2" or not short or folders[-short:] == others[-short:]
