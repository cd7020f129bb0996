"""Divides the scored images into folds, to choose on some and score on the rest; each patient is in one fold only."""

import numpy as np


def folds(cluster: np.ndarray, positive: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(N,) fold numbers 0 to count - 1.

    Args:
      cluster: (N,) numbers of the images' patients, of `bootstrap.clusters`; a cluster is never divided.
      positive: (N,) bool; clusters with positive images are dealt out first, so that each fold has its share.
      count: of folds; at least 2, and not more than there are clusters.
      seed: the same seed gives the same folds.

    Raises:
      ValueError: there are not that many clusters.
    """
    n_clusters = int(cluster.max(initial=-1)) + 1
    if not 2 <= count <= n_clusters:
        raise ValueError(f"{n_clusters} patients cannot be divided into {count} folds")
    order = np.random.default_rng(seed).permutation(n_clusters)
    with_positive = np.bincount(cluster, weights=positive, minlength=n_clusters) > 0
    dealt = np.concatenate([order[with_positive[order]], order[~with_positive[order]]])
    fold = np.empty(n_clusters, np.int64)
    fold[dealt] = np.arange(n_clusters) % count
    return fold[cluster]
