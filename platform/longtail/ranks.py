"""Ranks within groups."""

import numpy as np
import numpy.typing as npt


def rank_within(group_N: npt.NDArray[np.integer], *by: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """Rank [N] from 0 of each element in its group, by the first of `by`, ties by the next."""
    order = np.lexsort((*reversed(by), group_N))
    sorted_group = group_N[order]
    rank = np.empty(len(group_N), np.int64)
    rank[order] = np.arange(len(group_N)) - np.searchsorted(sorted_group, sorted_group)
    return rank
