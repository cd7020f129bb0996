"""Uncertainty of scores: intervals and paired tests that treat the images of a patient as one cluster.

Images of one patient resemble each other, so the bootstrap draws patients, not images (cluster bootstrap). An image
whose patient is unknown is a cluster of its own, and the result says so.

If all draws agree, a bootstrap interval has no width and would look certain. A score between 0 and 1 that is 0 for all
patients, or 1 for all, therefore has the exact interval (`exact`). All other scores without width have no interval. A
score to which fewer than five patients contribute has no bootstrap interval either, and of one patient there is none.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxpneumo.data.splits import patient_groups
from jaxpneumo.score.scores import Ratios

REPLICATES, SEED, LEVEL = 2000, 0, 0.95
FEWEST = 5  # clusters that must contribute to a score with a bootstrap interval; of fewer it covers too little
_CHUNK = 1 << 22  # weights in memory at a time
_WIDTH = 1e-12  # of an interval; less is rounding

Statistic = Callable[[np.ndarray], np.ndarray]


def clusters(patient: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Groups images by patient.

    Args:
      patient: (N,) str, "" = unknown; such an image is a cluster of its own.

    Returns:
      (N,) cluster numbers from 0, and for reports {"unit": "patient" or "image", "clusters",
      "images_without_patient"}.
    """
    unknown = patient == ""
    # By first appearance: the hashes change with every preparation, and the draws must not.
    cluster = patient_groups(patient)
    description = {
        "unit": "image" if unknown.all() else "patient",
        "clusters": int(cluster.max(initial=-1)) + 1,
        "images_without_patient": int(unknown.sum()),
    }
    return cluster, description


def joined(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Names of the patients of images by two tables together, for `clusters`: the same whichever comes first.

    Args:
      one, other: (N,) str, the tables' names of the images' patients, "" = unknown. The same patient may have other
        names in the other table, as every preparation of data gives names of its own.

    Returns:
      (N,) str: images that either table gives to one patient have one name; "" where neither names any.
    """
    from scipy.sparse import coo_array  # here: slow to import
    from scipy.sparse.csgraph import connected_components

    # Each image is a line between its patients in both tables: what hangs together is one patient.
    first, second = patient_groups(one), patient_groups(other)
    size = len(one) + len(other)
    _, group = connected_components(coo_array((np.ones(len(one)), (first, len(one) + second)), (size, size)))
    return np.where((one == "") & (other == ""), "", group[first].astype(str))


def draws(cluster: np.ndarray, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap replicates as weights (r, N) float64, `replicates` in all, some at a time.

    A replicate draws as many clusters as there are, with replacement; an image's weight is how often its
    cluster was drawn.
    """
    rng = np.random.default_rng(seed)
    count = int(cluster.max()) + 1
    step = max(1, _CHUNK // len(cluster))
    for start in range(0, replicates, step):
        rows = min(step, replicates - start)
        drawn = rng.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield weights[:, cluster].astype(float)


def intervals(
    statistic: Statistic,
    cluster: np.ndarray,
    replicates: int = REPLICATES,
    seed: int = SEED,
    level: float = LEVEL,
    trials: np.ndarray | None = None,
) -> np.ndarray:
    """Expanded percentile bootstrap intervals (Hesterberg 2015, section 5.3).

    For few clusters, percentiles of the replicates are too narrow: by the factor sqrt((n - 1) / n), and by the normal
    distribution's tails in place of Student's. The percentiles are moved outwards to correct both. Only the
    clusters that contribute to a score count, such as the patients with a finding for a mean over positive images.

    Args:
      statistic: weights (r, N) -> (r, M), M scores of each replicate; nan where one has no value.
      cluster: (N,) of `clusters`.
      replicates, seed: of the draw.
      level: probability with which the interval is to cover the truth.
      trials: (M,) how many clusters contribute to each score; None: all of them.

    Returns:
      (M, 2) lower and upper end; nan where less than FEWEST clusters contribute, less than half of the replicates have
      a value, or all agree.
    """
    from scipy.stats import norm, t  # here: it takes longer to import than a whole command without it

    sample = np.concatenate([statistic(weights) for weights in draws(cluster, replicates, seed)])
    missing = np.isnan(sample).mean(axis=0) > 0.5
    sample[:, missing] = 0
    trials = np.full(sample.shape[1], int(cluster.max()) + 1) if trials is None else trials
    ends = np.full((len(trials), 2), np.nan)
    for count in np.unique(trials[trials >= FEWEST]):
        tail = float(norm.cdf(t.ppf((1 - level) / 2, count - 1) * np.sqrt(count / (count - 1))))
        ends[trials == count] = np.nanquantile(sample[:, trials == count], [tail, 1 - tail], axis=0).T
    ends[missing | (ends[:, 1] - ends[:, 0] < _WIDTH)] = np.nan
    return ends


def exact(pairs: Ratios, cluster: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Exact intervals (Clopper and Pearson 1934) of scores that are 0 in every cluster, or 1 in every one.

    The trials are the n clusters that contribute, whatever their numbers of images. The interval is valid for every
    score between 0 and 1, not only for shares: if the mean is m, the chance of n times 1 is at most m ** n.

    Args:
      pairs: scores between 0 and 1.
      cluster: (N,) of `clusters`.
      level: probability with which the interval is to cover the truth.

    Returns:
      (M, 2): [0, 1 - tail ** (1 / n)] or [tail ** (1 / n), 1] with tail = (1 - level) / 2; nan for all other scores
      and for those of one cluster.
    """
    numerator, denominator = (np.stack(column) for column in zip(*pairs.values(), strict=True))
    trials = contributing(pairs, cluster)
    reach = ((1 - level) / 2) ** (1 / np.maximum(trials, 1))
    none, every = (numerator == 0).all(axis=1), (numerator == denominator).all(axis=1)
    ends = np.full((len(pairs), 2), np.nan)
    ends[none] = np.stack([np.zeros(len(pairs)), 1 - reach], axis=1)[none]
    ends[every] = np.stack([reach, np.ones(len(pairs))], axis=1)[every]
    ends[trials < 2] = np.nan
    return ends


def contributing(pairs: Ratios, cluster: np.ndarray) -> np.ndarray:
    """(M,) int: how many clusters have a term in each score."""
    return np.array([len(np.unique(cluster[denominator > 0])) for _, denominator in pairs.values()])


def of_ratios(pairs: Ratios) -> Statistic:
    """The statistic for `intervals` of scores that are ratios of sums, in their order."""
    numerator, denominator = (np.stack(column, axis=1) for column in zip(*pairs.values(), strict=True))

    def statistic(weights: np.ndarray) -> np.ndarray:
        return _divide(weights @ numerator, weights @ denominator)

    return statistic


def paired(
    a: Ratios, b: Ratios, cluster: np.ndarray, replicates: int = REPLICATES, seed: int = SEED
) -> dict[str, dict[str, Any]]:
    """Compares two runs on the same images.

    The interval is that of the difference b - a over the same bootstrap draws. The test exchanges the results of the
    two runs in a random half of the clusters, many times. Without a difference between the runs, the observed
    difference would be a typical one of these. For a mean over images this is the sign-flip permutation test.

    Args:
      a, b: scores of the two runs, the same names in the same order, over the same images.
      cluster: (N,) of `clusters`.
      replicates, seed: of the draws.

    Returns:
      name -> {"a", "b", "difference", "interval", "p"}; p is two-sided, at least 1 / (replicates + 1). p is None where
      there is no difference or fewer than two clusters contribute to it, interval where `intervals` has none.
    """
    count = int(cluster.max()) + 1
    sums = []  # (clusters, scores): numerators and denominators of a, then of b
    for pairs in (a, b):
        for column in zip(*pairs.values(), strict=True):
            total = np.zeros((count, len(pairs)))
            np.add.at(total, cluster, np.stack(column, axis=1))
            sums.append(total)
    first, second = (_divide(n.sum(0), d.sum(0)) for n, d in (sums[:2], sums[2:]))
    difference = second - first

    identity = np.arange(count)

    def statistic(weights: np.ndarray) -> np.ndarray:
        totals = [weights @ total for total in sums]
        return _divide(totals[2], totals[3]) - _divide(totals[0], totals[1])

    trials = np.minimum(contributing(a, cluster), contributing(b, cluster))
    ends = intervals(statistic, identity, replicates, seed, trials=trials)
    rng = np.random.default_rng([seed, 1])
    extreme, done = np.zeros(len(a)), 0
    while done < replicates:
        rows = min(replicates - done, max(1, _CHUNK // count))
        exchanged = rng.integers(0, 2, (rows, count)).astype(float)
        n, d = exchanged @ (sums[2] - sums[0]), exchanged @ (sums[3] - sums[1])
        under_null = _divide(sums[2].sum(0) - n, sums[3].sum(0) - d) - _divide(sums[0].sum(0) + n, sums[1].sum(0) + d)
        # Exact ties must count whatever the order of summation.
        extreme += (np.abs(under_null) >= np.abs(difference) - 1e-12).sum(axis=0)
        done += rows
    p = (1 + extreme) / (1 + replicates)
    return {
        name: {
            "a": _number(first[i]),
            "b": _number(second[i]),
            "difference": _number(difference[i]),
            "interval": as_list(ends[i]),
            "p": None if trials[i] < 2 or np.isnan(difference[i]) else float(p[i]),
        }
        for i, name in enumerate(a)
    }


def words(intervals: dict[str, Any]) -> str:
    """One line that says how the intervals of a summary were made."""
    count, unit = intervals["clusters"], intervals["unit"]
    if count < 2:
        return f"no intervals: all images are of one {unit}" if unit == "patient" else "no intervals: one image"
    exactly = f"exact (Clopper-Pearson, n = the {unit}s that contribute) where a score is 0 or 1 for all of them"
    if count < FEWEST:
        return f"95 % intervals: {exactly}; no others, as there are fewer than {FEWEST} {unit}s"
    return (
        f"95 % intervals: bootstrap of {count} {unit}s, {intervals['replicates']} replicates, seed {intervals['seed']};"
        f" {exactly}; no others for fewer than {FEWEST} {unit}s"
    )


def as_list(ends: np.ndarray) -> list[float] | None:
    """An interval for JSON: [low, high], or None where it has no value."""
    return None if np.isnan(ends).any() else [float(end) for end in ends]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)
