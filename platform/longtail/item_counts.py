"""How many events items and their leaf categories had had by a snapshot, out of counts per item and interval between snapshots.

Letters: N items + 1, T boundaries, K pairs of a key and an interval that had events, E events, B rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from longtail.times import DAY_US

Ints = npt.NDArray[np.int64]

WINDOW_DAYS = (7, 28)


def boundaries(first_us: int, last_us: int, start_us: int, snapshot_days: int) -> Ints:
    """Every snapshot [T] and every start of a window that ends in one, from the last not after `first_us` to the first after `last_us`."""
    period = snapshot_days * DAY_US
    grids = []
    for days in (0, *WINDOW_DAYS):
        origin = start_us - days * DAY_US
        grids.append(origin + period * np.arange((first_us - origin) // period, (last_us - origin) // period + 2))
    whole = np.unique(np.concatenate(grids))
    inner: Ints = whole[np.searchsorted(whole, first_us, side="right") - 1 : np.searchsorted(whole, last_us, side="right") + 1]
    return inner


@dataclass(frozen=True)
class Tally:
    """Events by key and interval; interval t lies before boundary t and not before the one in front of it."""

    keys_K: Ints  # key * (T + 1) + interval, ascending
    count_K: Ints

    @cached_property
    def running(self) -> Ints:
        """Events of the first keys, with a leading 0 [K + 1]."""
        return np.concatenate([[0], np.cumsum(self.count_K)])

    @staticmethod
    def of(key_E: npt.NDArray[np.integer], time_E: Ints, boundaries_T: Ints) -> "Tally":
        interval = np.searchsorted(boundaries_T, time_E, side="right")
        keys, count = np.unique(key_E.astype(np.int64) * (len(boundaries_T) + 1) + interval, return_counts=True)
        return Tally(keys, count)

    @staticmethod
    def summed(keys: Ints, counts: Ints) -> "Tally":
        """From keys in any order, which may come more than once."""
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1)) if len(keys) else np.zeros(0, np.int64)
        return Tally(keys[starts], np.add.reduceat(counts[order], starts) if len(keys) else counts)

    def before(self, lowest_B: Ints, intervals: Sequence[Ints]) -> list[Ints]:
        """Events of each key up to each of the intervals [B], the interval included; `lowest_B` is the key's lowest number."""
        order = np.argsort(lowest_B + intervals[0])  # a sorted search is ten times as fast
        running, sorted_B = self.running, lowest_B[order]
        start = running[np.searchsorted(self.keys_K, sorted_B)]
        counts = [np.empty(len(order), np.int64) for _ in intervals]
        for count_B, interval_B in zip(counts, intervals, strict=True):
            count_B[order] = running[np.searchsorted(self.keys_K, sorted_B + interval_B[order], side="right")] - start
        return counts


@dataclass(frozen=True)
class ItemCounts:
    """Events of items and of their leaf categories before a snapshot."""

    boundaries_T: Ints
    by_item: Tally
    by_leaf: Tally

    @staticmethod
    def build(tally: Tally, leaf_N: npt.NDArray[np.integer], boundaries_T: Ints) -> "ItemCounts":
        """From the items' tally; `leaf_N` are their leaf categories."""
        item, interval = np.divmod(tally.keys_K, len(boundaries_T) + 1)
        by_leaf = Tally.summed(leaf_N[item].astype(np.int64) * (len(boundaries_T) + 1) + interval, tally.count_K)
        return ItemCounts(boundaries_T, tally, by_leaf)

    def of(self, item_B: Ints, leaf_B: Ints, snapshot_B: Ints) -> tuple[Ints, Ints]:
        """Of each item in 7 days, in 28 days and in all [B, 3], and of its leaf in 28 days [B]; snapshots are boundaries, or beyond them all."""
        whole, week, month = (np.searchsorted(self.boundaries_T, snapshot_B - days * DAY_US) for days in (0, *WINDOW_DAYS))
        width = len(self.boundaries_T) + 1
        total, before_week, before_month = self.by_item.before(item_B * width, (whole, week, month))
        leaf_total, leaf_before = self.by_leaf.before(leaf_B * width, (whole, month))
        return np.stack([total - before_week, total - before_month, total], 1), leaf_total - leaf_before
