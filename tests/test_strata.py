"""Which images are in which group, by hand."""

import numpy as np

from jaxpneumo.data.dataset import Index
from jaxpneumo.score.strata import strata


def make_index() -> Index:
    return Index(
        image_id=np.array(list("abcde")),
        patient=np.array([""] * 5),
        sex=np.array(["F", "M", "", "F", "F"]),
        age=np.array([17.0, 18, np.nan, 75, 59]),
        view=np.array(["AP", "PA", "PA", "PA", "LL"]),
        height=np.array([1024, 1024, 1024, 512, 1024]),
        width=np.array([1024, 1024, 1024, 512, 1024]),
        mask_area=np.array([0, 2047, 2048, 2048, 90_000]),
        label_rows=np.array([0, 5, 1, 1, 2]),  # drawn in more or fewer rows than there are regions
        source=np.array([""] * 5),
        sha256=np.array([""] * 5),
    )


def test_groups_by_hand():
    index = make_index()
    found = strata(index, np.arange(5), np.array([0, 1, 2, 1, 5]))
    groups = {(stratum, group): "".join(index.image_id[m]) for stratum, group, m in found}
    assert groups == {
        ("sex", "unknown"): "c",
        ("sex", "F"): "ade",
        ("sex", "M"): "b",
        ("view", "AP"): "a",
        ("view", "LL"): "e",
        ("view", "PA"): "bcd",
        ("age", "below 18 years"): "a",
        ("age", "18 to below 40 years"): "b",
        ("age", "40 to below 60 years"): "e",
        ("age", "75 years and more"): "d",
        ("age", "unknown"): "c",
        ("mask size", "below 2,048 px"): "b",
        ("mask size", "2,048 to below 4,096 px"): "c",
        ("mask size", "8,192 to below 18,432 px"): "d",  # 2048 px of a 512x512 image
        ("mask size", "18,432 px and more"): "e",
        ("regions", "single"): "bd",
        ("regions", "several"): "ce",
    }


def test_groups_are_of_the_rows_asked_for():
    groups = {
        group: in_group.tolist() for _, group, in_group in strata(make_index(), np.array([4, 0]), np.array([5, 0]))
    }
    assert groups["several"] == [True, False]
    assert groups["F"] == [True, True]
    assert groups["LL"] == [True, False]
    assert "M" not in groups
