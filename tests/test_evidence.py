"""Evidence: intervals that cover, and shares that count what they say."""

import numpy as np
import pytest
import torch

from icd.evidence import paired_interval, within


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
    assert str(interval).endswith("over 5 seeds: a difference")
    assert str(paired_interval([1.0, 2.0], [2.0, 1.0])).endswith("no difference seen")


def test_too_few_or_unpaired_runs_are_refused():
    for a, b in (([1.0], [2.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(ValueError, match="needs two pairs at least, seed by seed"):
            paired_interval(a, b)


def test_errors_inside_a_family():
    logits = torch.eye(4)[[0, 1, 0, 3, 2]]
    labels = torch.tensor([0, 0, 2, 3, 3])  # right, inside, outside, right, inside
    assert within([0, 0, 1, 1], logits, labels) == pytest.approx(2 / 3)
