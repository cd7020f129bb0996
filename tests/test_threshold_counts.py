"""Counts at many thresholds on the device against plain comparisons; files of counts."""

from dataclasses import fields

import cv2
import jax
import numpy as np
import pytest

from jaxpneumo.predict.image_scores import image_scores
from jaxpneumo.predict.native import native_grid, to_native
from jaxpneumo.predict.postprocess import remove_small
from jaxpneumo.process.errors import InputError
from jaxpneumo.score.threshold_counts import (
    AREAS,
    THRESHOLDS,
    ThresholdCounts,
    count_at_thresholds,
    count_components,
    read_counts,
    write_counts,
)


def blobs(seed: int, size: int, sigma: float = 3) -> np.ndarray:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((size, size), np.float32), (0, 0), sigma)
    return ((noise - noise.min()) / (noise.max() - noise.min())).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 75)])
def test_counts_of_a_batch_are_those_of_comparisons(height, width):
    probability = np.stack([blobs(0, 32), blobs(1, 32) ** 4, np.zeros((32, 32), np.float32)])
    truth = np.stack([blobs(seed, 80)[:height, :width] > 0.6 for seed in (2, 3, 4)])
    grid = native_grid([(height, width)] * 3, 32, 3)
    native = np.asarray(to_native(probability, grid))
    packed = np.zeros((*native.shape[:2], native.shape[2] // 8), np.uint8)
    packed[:, :height, : -(-width // 8)] = np.packbits(truth, axis=-1)
    reached, area, tp = jax.jit(count_at_thresholds)(native, packed)
    assert not np.any(np.asarray(reached)[:, height:])
    assert not np.any(np.asarray(reached)[:, :, width:])
    reached, native = np.asarray(reached)[:, :height, :width], native[:, :height, :width]
    at_least = native[:, None] >= THRESHOLDS[None, :, None, None]
    np.testing.assert_array_equal(reached, at_least.sum(axis=1))
    np.testing.assert_array_equal(area, at_least.sum(axis=(2, 3)))
    np.testing.assert_array_equal(tp, (at_least & truth[:, None]).sum(axis=(2, 3)))
    assert np.asarray(area).max() > 0


def test_components_are_removed_as_prediction_removes_them():
    probability = blobs(5, 200, sigma=6)
    reached = (probability[None] >= THRESHOLDS[:, None, None]).sum(axis=0).astype(np.uint8)
    truth = (blobs(6, 200) > 0.5).astype(np.uint8)
    area, tp = count_components(reached, truth)
    assert area.shape == tp.shape == (len(THRESHOLDS), len(AREAS))
    for k in range(0, len(THRESHOLDS), 3):
        for m, threshold in enumerate(AREAS):
            kept = remove_small((reached > k).astype(np.uint8), int(threshold), "component")
            assert (area[k, m], tp[k, m]) == (kept.sum(), (kept & truth).sum())
    assert 0 < area[10, 5] < area[10, 0]
    nothing = count_components(np.zeros_like(reached), truth)
    assert not np.any(nothing)


def test_image_scores_by_hand():
    probability = np.zeros((2, 4, 4), np.float32)
    probability[0, 1, 1:4] = [0.9, 0.6, 0.3]
    np.testing.assert_allclose(image_scores(probability, 2), [[0.9, 0.75], [0, 0]])


def test_files_read_back_and_bad_ones_are_refused(tmp_path):
    n, k, m = 3, 2, 4
    shapes = {"thresholds": k, "areas": m, "area": (n, k), "tp": (n, k)}
    shapes |= {"component_area": (n, k, m), "component_tp": (n, k, m)}
    counts = ThresholdCounts(
        image_id=np.array(["1.2", "x", "y"]),
        **{
            f.name: np.arange(np.prod(shapes.get(f.name, n))).reshape(shapes.get(f.name, n))
            for f in fields(ThresholdCounts)
            if f.name != "image_id"
        },
    )
    path = tmp_path / "run" / "evaluation" / "levels.npz"
    with pytest.raises(InputError, match="jaxpneumo evaluate --workdir"):
        read_counts(path)
    write_counts(path, counts)
    again = read_counts(path)
    for field in fields(ThresholdCounts):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(counts, field.name))
    earlier = {field.name: getattr(counts, field.name) for field in fields(ThresholdCounts)}
    np.savez(path, levels=earlier.pop("thresholds"), **earlier)
    np.testing.assert_array_equal(read_counts(path).thresholds, counts.thresholds)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="damaged"):
        read_counts(path)
    np.savez(path, thresholds=THRESHOLDS)
    with pytest.raises(InputError, match="damaged"):
        read_counts(path)
    np.savez(path, **{field.name: np.array([{}], object) for field in fields(ThresholdCounts)})
    with pytest.raises(InputError, match="damaged"):  # pickled objects are not read
        read_counts(path)
