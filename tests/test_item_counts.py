"""Item counts at snapshots: against slow counts, in pieces, and refused to look past a boundary."""

import numpy as np
import pytest

from longtail.item_counts import WINDOW_DAYS, ItemCounts, Tally, boundaries
from longtail.times import DAY_US

LEAF_N = np.array([0, 1, 1, 2])


def random_events() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(1, 4, 300), np.sort(rng.integers(0, 60 * DAY_US, 300))


@pytest.mark.parametrize("period", [1, 5, 7])
def test_counts_agree_with_a_slow_recount_at_every_snapshot(period: int) -> None:
    item, time = random_events()
    start = int(time[0])
    grid = boundaries(start, int(time[-1]), start, period)
    counts = ItemCounts.build(Tally.of(item, time, grid), LEAF_N, grid)
    snapshots = start + period * DAY_US * np.arange(80 // period)  # some lie after the last event
    asked, leaf = np.arange(len(snapshots)) % 4, LEAF_N[np.arange(len(snapshots)) % 4]
    got, of_leaf = counts.of(asked, leaf, snapshots)
    for place, snapshot in enumerate(snapshots):
        mine = time[(item == asked[place]) & (time < snapshot)]
        assert got[place].tolist() == [*((mine >= snapshot - days * DAY_US).sum() for days in WINDOW_DAYS), len(mine)]
        theirs = time[(LEAF_N[item] == leaf[place]) & (time < snapshot)]
        assert of_leaf[place] == (theirs >= snapshot - WINDOW_DAYS[1] * DAY_US).sum()


def test_tallies_of_pieces_add_up_to_the_whole() -> None:
    item, time = random_events()
    grid = boundaries(int(time[0]), int(time[-1]), int(time[0]), 7)
    pieces = [Tally.of(item[some], time[some], grid) for some in (slice(0, 0), slice(0, 120), slice(120, None))]
    summed = Tally.summed(np.concatenate([one.keys_K for one in pieces]), np.concatenate([one.count_K for one in pieces]))
    whole = Tally.of(item, time, grid)
    assert np.array_equal(summed.keys_K, whole.keys_K)
    assert np.array_equal(summed.count_K, whole.count_K)


def test_the_grid_reaches_from_before_the_first_event_to_after_the_last() -> None:
    grid = boundaries(10 * DAY_US, 20 * DAY_US, 10 * DAY_US, 7)
    assert grid[0] <= 10 * DAY_US
    assert grid[-1] > 20 * DAY_US
    assert {17 * DAY_US, 10 * DAY_US} <= set(grid.tolist())
