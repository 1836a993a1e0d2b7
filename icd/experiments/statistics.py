"""What a run shows: accuracy, differences with their intervals, who is taken for whom, and groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# scipy and scikit-learn are imported where they are used: seconds, and a training run needs this file too.


def within(groups: Sequence[int] | np.ndarray, logits: Tensor, labels: Tensor) -> float:
    """Of the wrong answers, the share that stays inside the right group (chapter 1).

    A group is a bird's family, say.

    Args:
        groups: the group of each class, (C,).
        logits: (N, C).
        labels: (N,).

    Returns:
        A share in [0, 1]; NaN where no answer is wrong.
    """
    group = torch.as_tensor(np.asarray(groups))
    answer = logits.argmax(1)
    wrong = answer != labels.cpu()
    return (group[answer[wrong]] == group[labels.cpu()[wrong]]).double().mean().item()


class Interval(NamedTuple):
    """A mean with the bounds of its confidence interval, printed with two decimals."""

    mean: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        verdict = "no difference seen" if self.low <= 0 <= self.high else "a difference"
        mean, low, high = (round(value, 2) + 0.0 for value in self[:3])  # 0.0: no "-0.00"
        return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] over {self.pairs} seeds: {verdict}"


def paired_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of `a - b`, pairs of one seed, and its Student t interval (chapters 2 and 6).

    Raises:
        ValueError: fewer than two pairs, lists of different length, or what is not finite.
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


def groups(likeness: np.ndarray, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """The things that each matrix compares, in groups: average linkage (chapter 4).

    Each thing starts as a group of its own. The two groups that are nearest, by the mean of
    `1 - likeness` over their pairs, become one, until as many are left as were asked for.

    Args:
        likeness: symmetric, at most 1, ones on the diagonal: Gram matrices (N, n, n).
        counts: how many groups, (N,), each 1 to n.

    Returns:
        The group of each thing, counted from 0, (N, n) int64.

    Raises:
        ValueError: shapes that do not fit, a number of groups that there cannot be, or a
            likeness that is not finite.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    likeness, counts = np.asarray(likeness, dtype=float), np.asarray(counts)
    if likeness.ndim != 3 or likeness.shape[1] != likeness.shape[2] or counts.shape != likeness.shape[:1]:
        raise ValueError(
            f"groups: likeness {likeness.shape} and counts {counts.shape}: expected (N, n, n) and (N,)"
        )
    most = likeness.shape[1]
    if not ((counts >= 1) & (counts <= most)).all():
        raise ValueError(f"groups: counts are {counts.tolist()}: {most} things make 1 to {most} groups")
    if not np.isfinite(likeness).all():
        raise ValueError("groups: a likeness is not finite")
    apart = np.clip(1 - likeness, 0, None)  # a cosine may round to more than 1
    trees = (linkage(squareform(matrix, checks=False), "average") for matrix in apart)
    cut = [fcluster(tree, count, "maxclust") for tree, count in zip(trees, counts, strict=True)]
    return np.array(cut, dtype=np.int64) - 1


def adjusted_mutual_information(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How far two groupings of n things agree beyond chance (Vinh et al. 2010; chapter 4).

    `(MI - E[MI]) / (mean entropy - E[MI])`: 1 where they are the same, 0 on average where one
    is shuffled. It is scikit-learn's `adjusted_mutual_info_score` for N pairs at once, which
    spends far longer on checking the arguments of sixteen things than on the sum.

    Args:
        first, second: the group of each thing, integers from 0, (N, n).

    Returns:
        (N,); below 0 where they agree less than chance would have it.

    Raises:
        ValueError: shapes that differ, or are not (N, n).
    """
    from scipy.special import entr, rel_entr
    from sklearn.metrics.cluster import expected_mutual_information

    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"adjusted_mutual_information: groupings {first.shape} and {second.shape}: expected (N, n) twice"
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
    alike = np.isclose(room, 0)  # all in one group, or each in its own, in both
    return np.where(alike, 1.0, (shared - chance) / np.where(alike, 1.0, room))
