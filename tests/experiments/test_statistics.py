"""Statistics: intervals cover, clusters join similar items, and agreement is corrected for chance."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score

from icd.experiments.statistics import (
    Interval,
    adjusted_mutual_information,
    average_linkage_clusters,
    paired_interval,
    within_group_error_share,
)


def test_a_95_percent_interval_covers_the_truth_in_about_95_of_100_worlds():
    generator = np.random.default_rng(0)
    worlds = [paired_interval(*generator.normal([[1.0], [0.0]], 1.0, (2, 5))) for _ in range(4000)]
    covered = np.mean([low <= 1.0 <= high for _, low, high, _ in worlds])
    assert 0.94 < covered < 0.96


def test_pairing_removes_what_both_runs_of_a_seed_share():
    seeds = np.array([0.5, 0.7, 0.6, 0.9, 0.2])
    interval = paired_interval(seeds + np.array([0.011, 0.009, 0.010, 0.012, 0.008]), seeds)
    assert interval.mean == pytest.approx(0.010)
    assert 0.007 < interval.low < interval.high < 0.013


def test_an_interval_is_printed_with_two_decimals():
    assert str(Interval(16.0, 13.7261, 18.2639, 5)) == "+16.00 [+13.73, +18.26] over 5 seeds: a difference"
    assert str(Interval(-0.007984, -0.5, 0.484, 5)) == "-0.01 [-0.50, +0.48] over 5 seeds: no difference seen"
    assert str(Interval(-0.001, -1, 1, 2)) == "+0.00 [-1.00, +1.00] over 2 seeds: no difference seen"


def test_errors_inside_a_family():
    logits = torch.eye(4)[[0, 1, 0, 3, 2]]
    labels = torch.tensor([0, 0, 2, 3, 3])  # right, inside, outside, right, inside
    assert within_group_error_share([0, 0, 1, 1], logits, labels) == pytest.approx(2 / 3)


def test_adjusted_mutual_information_is_scikit_learns():
    generator = np.random.default_rng(0)
    first = generator.integers(0, generator.integers(1, 6, (200, 1)), (200, 16))
    second = np.where(generator.random((200, 16)) < 0.4, first, generator.integers(0, 5, (200, 16)))
    first[0] = second[0] = 3  # one group each
    first[1] = second[1] = np.arange(16)  # each thing its own
    ours = adjusted_mutual_information(first, second)
    theirs = [adjusted_mutual_info_score(a, b) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_shuffled_clusters_agree_by_chance():
    generator = np.random.default_rng(0)
    first = np.tile([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3], (4000, 1))
    values = adjusted_mutual_information(first, generator.permuted(first, axis=1))
    assert abs(values.mean()) < 4 * values.std() / 4000**0.5
    assert adjusted_mutual_information(first[:1], (first[:1] + 1) % 4) == pytest.approx(1)


def test_clusters_join_similar_items():
    place = np.array([0.0, 0.1, 0.2, 5.0, 5.1, 9.0])
    similarity = 1 - np.abs(place[:, None] - place)[None].repeat(2, 0) / 10
    similarity[:, 0, 1] = similarity[:, 1, 0] = 1 + 1e-7  # as cosines may round
    three, two = average_linkage_clusters(similarity, [3, 2])
    assert adjusted_mutual_information(three[None], [[0, 0, 0, 1, 1, 2]]) == pytest.approx(1)
    assert adjusted_mutual_information(two[None], [[0, 0, 0, 1, 1, 1]]) == pytest.approx(1)


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"expected \(N, n, n\) and \(N,\)"):
        average_linkage_clusters(np.eye(3)[None], [1, 2])
    with pytest.raises(ValueError, match=r"expected \(N, n\) twice"):
        adjusted_mutual_information(np.zeros((2, 3), int), np.zeros((2, 4), int))
