"""Statistics of results: paired intervals, confusions within groups, clusters and their agreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# scipy and scikit-learn are imported where they are used: they take seconds, and comparisons need this file.


def within_group_error_share(groups: Sequence[int] | np.ndarray, logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of wrong predictions that name a class of the right group (chapter 1).

    Args:
        groups: the group of each class, such as a bird's family, (C,).
        logits: (N, C).
        labels: (N,).

    Returns:
        A fraction in [0, 1]; NaN if no prediction is wrong.
    """
    group = torch.as_tensor(np.asarray(groups))
    answer = logits.argmax(1)
    wrong = answer != labels.cpu()
    return (group[answer[wrong]] == group[labels.cpu()[wrong]]).double().mean().item()


class Interval(NamedTuple):
    """A mean with its confidence interval, printed with two decimals."""

    mean: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        verdict = "no difference seen" if self.low <= 0 <= self.high else "a difference"
        mean, low, high = (round(value, 2) + 0.0 for value in self[:3])  # 0.0: no "-0.00"
        return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] over {self.pairs} seeds: {verdict}"


def paired_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of `a - b`, paired by seed, and its Student t interval (chapters 2 and 6).

    Raises:
        ValueError: fewer than two pairs, lists of different length, or a value that is not finite.
    """
    from scipy.stats import t as student_t

    if len(a) != len(b) or len(a) < 2:
        raise ValueError(
            f"{len(a)} and {len(b)} runs: a paired interval needs two pairs at least, seed by seed"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: give a number between 0 and 1, like 0.95")
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if not np.isfinite(difference).all():
        raise ValueError(
            f"the difference of pair {np.argmin(np.isfinite(difference))}, from 0, is not finite"
        )
    mean, spread = difference.mean(), difference.std(ddof=1) / np.sqrt(len(difference))
    reach = float(student_t.ppf((1 + confidence) / 2, len(difference) - 1)) * spread
    return Interval(float(mean), float(mean - reach), float(mean + reach), len(difference))


def average_linkage_clusters(similarity: np.ndarray, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Cluster the items of each similarity matrix by average linkage (chapter 4).

    Starts with a cluster for each item and merges the two clusters with the least mean of `1 - similarity`
    over their pairs, until `counts` are left.

    Args:
        similarity: symmetric, at most 1, ones on the diagonal: Gram matrices (N, n, n).
        counts: the number of clusters of each matrix, (N,), from 1 to n.

    Returns:
        The cluster of each item, from 0, (N, n) int64.

    Raises:
        ValueError: shapes that do not match, counts outside 1 to n, or a similarity that is not finite.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    similarity, counts = np.asarray(similarity, dtype=float), np.asarray(counts)
    shape = similarity.shape
    if similarity.ndim != 3 or shape[1] != shape[2] or counts.shape != shape[:1]:
        raise ValueError(
            f"average_linkage_clusters: similarity {shape} and counts {counts.shape}: "
            "expected (N, n, n) and (N,)"
        )
    if not ((counts >= 1) & (counts <= shape[1])).all():
        raise ValueError(f"average_linkage_clusters: counts are {counts.tolist()}: give 1 to {shape[1]}")
    if not np.isfinite(similarity).all():
        raise ValueError("average_linkage_clusters: a similarity is not finite")
    distance = np.clip(1 - similarity, 0, None)  # a cosine may round to more than 1
    trees = (linkage(squareform(matrix, checks=False), "average") for matrix in distance)
    cut = [fcluster(tree, count, "maxclust") for tree, count in zip(trees, counts, strict=True)]
    return np.array(cut, dtype=np.int64) - 1


def adjusted_mutual_information(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the agreement of two clusterings beyond chance (Vinh et al. 2010; chapter 4).

    `(MI - E[MI]) / (mean entropy - E[MI])`: 1 if they are the same, 0 on average if one is shuffled. It is
    scikit-learn's `adjusted_mutual_info_score` for N pairs at once, and much faster on small clusterings.

    Args:
        first, second: the cluster of each item, integers from 0, (N, n).

    Returns:
        (N,); below 0 if they agree less than by chance.

    Raises:
        ValueError: shapes that differ, or are not (N, n).
    """
    from scipy.special import entr, rel_entr
    from sklearn.metrics.cluster import expected_mutual_information

    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"adjusted_mutual_information: shapes {first.shape} and {second.shape}: expected (N, n) twice"
        )
    n = first.shape[1]
    member_first = first[:, :, None] == np.arange(first.max() + 1)
    member_second = second[:, :, None] == np.arange(second.max() + 1)
    tables = np.einsum("nia,nib->nab", member_first.astype(np.int64), member_second.astype(np.int64))
    joint = tables / n
    rows, columns = joint.sum(2, keepdims=True), joint.sum(1, keepdims=True)
    shared = rel_entr(joint, rows * columns).sum((1, 2))
    entropy = (entr(rows).sum((1, 2)) + entr(columns).sum((1, 2))) / 2
    chance = np.array([expected_mutual_information(t[t.any(1)][:, t.any(0)], n) for t in tables])
    room = entropy - chance
    same = np.isclose(room, 0)  # both have one cluster, or both one for each item
    return np.where(same, 1.0, (shared - chance) / np.where(same, 1.0, room))
