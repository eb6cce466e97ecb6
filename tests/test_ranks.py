"""Ranks within groups, against the slow definition."""

import numpy as np

from longtail.ranks import rank_within


def test_ranks_by_hand() -> None:
    assert rank_within(np.array([1, 0, 1, 1]), np.array([5, 9, 2, 5]), np.array([0, 0, 0, -1])).tolist() == [2, 0, 0, 1]
    assert rank_within(np.zeros(0, np.int64), np.zeros(0)).tolist() == []


def test_ranks_agree_with_the_slow_definition() -> None:
    rng = np.random.default_rng(0)
    group, value, tie = rng.integers(0, 9, 300), rng.integers(0, 5, 300), rng.permutation(300)
    slow = [sum(group[other] == group[row] and (value[other], tie[other]) < (value[row], tie[row]) for other in range(300)) for row in range(300)]
    assert rank_within(group, value, tie).tolist() == slow
