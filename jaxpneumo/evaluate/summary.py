"""Computes the scores of a run and of its strata, with intervals, from the measurements of the images."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpneumo.data.dataset import Index
from jaxpneumo.evaluate.modes import VIEWS
from jaxpneumo.score import bootstrap, metrics, scores
from jaxpneumo.score.calibration import NO_INTERVAL, expected_calibration_error
from jaxpneumo.score.detection import auroc, average_precision
from jaxpneumo.score.strata import strata

if TYPE_CHECKING:  # this module imports JAX
    from jaxpneumo.evaluate.images import Measured

IMAGE_LEVEL = {"auroc": auroc, "average_precision": average_precision}
CALIBRATION_ERROR = "expected_calibration_error"
OF_STRATA = ("dice", "iou", "dice_positive", "iou_positive", "dice_negative", "sensitivity", "specificity")


def summarise(
    measured: "Measured",
    index: Index,
    rows: np.ndarray,
    own_mode: str,
    replicates: int = bootstrap.REPLICATES,
    seed: int = bootstrap.SEED,
) -> dict[str, Any]:
    """Computes all scores with their intervals, for JSON.

    Args:
      measured: measurements of these rows.
      index: index of the data set.
      rows: rows of the images.
      own_mode: the mode of the strata's scores.
      replicates, seed: number of replicates and seed of the bootstrap.

    Returns:
      n_images, n_positive: counts.
      all_empty, mean_shape: scores of the baselines; mean_shape is None without a mean shape.
      scores: scores of each mode.
      image_level: scores of each view and image-level score.
      strata: groups of patients with their scores in `own_mode` and their own intervals.
      intervals: the method, and the intervals of all other scores under the same names; None for a score without one.
    """
    truth_area = measured.counts.truth_area
    positive = truth_area > 0
    empty = {"tp": np.zeros_like(truth_area), "fp": np.zeros_like(truth_area), "fn": truth_area}
    parts: dict[tuple, scores.Ratios] = {}
    for mode, table in measured.modes.items():
        parts["scores", mode] = scores.ratios(table)
    baseline = metrics.all_empty(truth_area)
    parts["all_empty",] = {name: pair for name, pair in scores.ratios(empty).items() if name in baseline}
    if measured.mean_shape is not None:
        parts["mean_shape",] = scores.ratios(measured.mean_shape)
    groups = strata(index, rows, measured.modes["plain"]["lesions"])
    for number, (_, _, in_group) in enumerate(groups):
        selected = scores.select(parts["scores", own_mode], in_group)
        parts["strata", number] = {name: selected[name] for name in OF_STRATA}

    image_level = [
        (view, name, statistic) for view in VIEWS for name in measured.image_scores[view] for statistic in IMAGE_LEVEL
    ]
    flat = {(*part, name): pair for part, pairs in parts.items() for name, pair in pairs.items()}
    names = [*flat, *(("image_level", *name) for name in image_level)]
    of_ratios = bootstrap.of_ratios(flat)

    def statistic(weights: np.ndarray) -> np.ndarray:
        columns = [
            IMAGE_LEVEL[kind](measured.image_scores[view][name], positive, weights) for view, name, kind in image_level
        ]
        return np.concatenate([of_ratios(weights), np.stack(columns, axis=1)], axis=1)

    cluster, unit = bootstrap.clusters(index.patient[rows])
    found = statistic(np.ones((1, len(rows))))[0]
    kinds = min(len(np.unique(cluster[images])) for images in (positive, ~positive))
    trials = np.concatenate([bootstrap.contributing(flat, cluster), [kinds] * len(image_level)])
    ends = bootstrap.intervals(statistic, cluster, replicates, seed, trials=trials)
    exact = _exact(flat, cluster)
    ends[: len(flat)] = np.where(np.isnan(exact), ends[: len(flat)], exact)
    point = _nested({name: None if np.isnan(value) else float(value) for name, value in zip(names, found, strict=True)})
    interval = _nested({name: bootstrap.as_list(pair) for name, pair in zip(names, ends, strict=True)})
    for view in VIEWS:
        for name, score in measured.image_scores[view].items():
            point["image_level"][view][name][CALIBRATION_ERROR] = float(expected_calibration_error(score, positive)[0])
            interval["image_level"][view][name][CALIBRATION_ERROR] = None

    return {
        "n_images": baseline["n_images"],
        "n_positive": baseline["n_positive"],
        "all_empty": baseline,
        "mean_shape": None if measured.mean_shape is None else _with_counts(measured.mean_shape, point["mean_shape"]),
        "scores": {mode: _with_counts(table, point["scores"][mode]) for mode, table in measured.modes.items()},
        "image_level": point["image_level"],
        "strata": [
            {
                "stratum": stratum,
                "group": group,
                "n_images": int(in_group.sum()),
                "n_positive": int((in_group & positive).sum()),
                "all_empty": float((in_group & ~positive).sum() / in_group.sum()),
                "scores": point["strata"][number],
                "intervals": interval["strata"][number],
            }
            for number, (stratum, group, in_group) in enumerate(groups)
        ],
        "intervals": {
            "method": "expanded percentile bootstrap",
            "method_at_0_or_1": "Clopper-Pearson, n = the clusters that contribute",
            "without_interval": NO_INTERVAL,
            "level": bootstrap.LEVEL,
            "replicates": replicates,
            "seed": seed,
            **unit,
            **{key: value for key, value in interval.items() if key != "strata"},
        },
    }


def _exact(pairs: scores.Ratios, cluster: np.ndarray) -> np.ndarray:
    """Exact intervals of scores that are 0 or 1 for all clusters; nan for all other scores and for the baselines.

    A baseline can have such a score by construction, so an interval would mean nothing.
    """
    estimated = [part in ("scores", "strata") and name not in scores.UNBOUNDED for part, *_, name in pairs]
    return np.where(np.array(estimated)[:, None], bootstrap.exact(pairs, cluster), np.nan)


def _with_counts(table: dict[str, np.ndarray], values: dict[str, Any]) -> dict[str, Any]:
    """Adds the scores to the counts of `metrics.summarise`."""
    return {**metrics.summarise(table["tp"], table["fp"], table["fn"]), **values}


def _nested(flat: dict[tuple, Any]) -> dict[Any, Any]:
    tree: dict[Any, Any] = {}
    for path, value in flat.items():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = value
    return tree
