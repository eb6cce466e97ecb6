"""Behaviour: events as arrays that answer, for many (key, time) pairs at once, what had happened strictly before.

Every point-in-time feature is one such question, so that training rows and a request in serving are answered alike.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from longtail.entities import Entities
from longtail.times import DAY_US

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CountIndex:
    """Events sorted by (key, time). E events, K distinct keys."""

    keys_K: Ints
    starts_K: Ints  # first event of each key
    times_E: Ints  # microseconds
    order_E: Ints  # the events' places in the arrays that the index was built from
    clock: Ints  # distinct times, sorted
    composite_E: Ints  # key number * (len(clock) + 1) + time number

    @staticmethod
    def build(keys: Ints, times: Ints) -> "CountIndex":
        """Index events by `keys` [E] and `times` [E]."""
        order = np.lexsort((times, keys))
        keys_sorted, times_sorted = keys[order], times[order]
        distinct, starts = np.unique(keys_sorted, return_index=True)
        clock = np.unique(times_sorted)
        number = np.repeat(np.arange(len(distinct)), np.diff(np.append(starts, len(keys_sorted))))
        composite = number * (len(clock) + 1) + np.searchsorted(clock, times_sorted)
        return CountIndex(distinct, starts.astype(np.int64), times_sorted, order, clock, composite.astype(np.int64))

    def span(self, keys: Ints, times: Ints) -> tuple[Ints, Ints]:
        """For each (key, time): [start, end) of the key's events strictly before the time, as places in index order."""
        if len(self.keys_K) == 0:
            zeros = np.zeros(len(keys), np.int64)
            return zeros, zeros
        number = np.minimum(np.searchsorted(self.keys_K, keys), len(self.keys_K) - 1)
        known = self.keys_K[number] == keys
        end = np.searchsorted(self.composite_E, number * (len(self.clock) + 1) + np.searchsorted(self.clock, times))
        start = self.starts_K[number]
        return np.where(known, start, 0), np.where(known, end, 0)

    def count(self, keys: Ints, times: Ints, since: Ints | None = None) -> Ints:
        """Events of each key strictly before `times`, and not before `since` where it is given."""
        start, end = self.span(keys, times)
        if since is None:
            total: Ints = end - start
            return total
        _, before = self.span(keys, since)
        within: Ints = end - np.maximum(before, start)
        return within

    def days_since_last(self, keys: Ints, times: Ints) -> npt.NDArray[np.float64]:
        """Days from the key's last event before each time; NaN where there is none."""
        return self.count_and_days(keys, times)[1]

    def count_and_days(self, keys: Ints, times: Ints) -> tuple[Ints, npt.NDArray[np.float64]]:
        """`count` and `days_since_last`, looked up once."""
        start, end = self.span(keys, times)
        found = end > start
        last = self.times_E[np.maximum(end - 1, 0)] if len(self.times_E) else np.zeros(len(keys), np.int64)
        days: npt.NDArray[np.float64] = np.where(found, (times - last) / DAY_US, np.nan)
        return end - start, days


@dataclass(frozen=True)
class Behaviour:
    """Events of the kinds that make histories and counts, by row numbers, in time order. E events."""

    user_row_E: Ints
    item_row_E: Ints
    time_E: Ints
    kind_E: npt.NDArray[np.int8]  # place in `kinds`
    log_price_E: npt.NDArray[np.float64]  # paid price, the item's where the event has none, NaN where neither is known
    kinds: tuple[str, ...]  # strongest last

    @staticmethod
    def build(events: pa.Table, entities: Entities, kinds: tuple[str, ...]) -> "Behaviour":
        """Keep the events of `kinds` with a known user and item."""
        number = pc.index_in(events.column("kind"), value_set=pa.array(list(kinds), pa.string()))
        events = events.append_column("number", number).filter(pc.is_valid(number))
        user_row = entities.users.encode(events.column("user_id")).astype(np.int64)
        item_row = entities.items.encode(events.column("item_id")).astype(np.int64)
        time = pc.cast(events.column("ts"), pa.int64()).to_numpy()
        kind = events.column("number").to_numpy().astype(np.int8)
        price = events.column("price").to_numpy().astype(np.float64) if "price" in events.column_names else np.full(len(events), np.nan)
        log_price = np.log1p(np.maximum(np.where(np.isfinite(price), price, np.nan), 0))
        log_price = np.where(np.isnan(log_price), entities.log_price_N[item_row], log_price)
        order = np.lexsort((item_row, user_row, time))
        order = order[(user_row[order] > 0) & (item_row[order] > 0)]
        return Behaviour(user_row[order], item_row[order], time[order], kind[order], log_price[order], kinds)

    def before(self, time: int) -> "Behaviour":
        """The events strictly before `time`, in microseconds."""
        end = int(np.searchsorted(self.time_E, time))
        return Behaviour(self.user_row_E[:end], self.item_row_E[:end], self.time_E[:end], self.kind_E[:end], self.log_price_E[:end], self.kinds)

    @property
    def is_strongest(self) -> npt.NDArray[np.bool_]:
        """True for events of the strongest kind, which count as purchases."""
        strongest: npt.NDArray[np.bool_] = self.kind_E == len(self.kinds) - 1
        return strongest

    @property
    def is_purchase(self) -> npt.NDArray[np.bool_]:
        """True for events of the strongest kind; for all events where none is."""
        return self.is_strongest if self.is_strongest.any() else np.ones(len(self.time_E), bool)


def first_meetings(user_row_E: Ints, column_E: Ints, num_columns: int) -> tuple[Ints, Ints]:
    """The event [F] in which each user first met each column, by user and column, and its key: user * num_columns + column.

    Args:
        user_row_E: of events in time order.
        column_E: what they met; 0 is unknown and kept out.
        num_columns: with the unknown one.
    """
    known = np.flatnonzero(column_E)
    key_F, first = np.unique(user_row_E[known] * num_columns + column_E[known], return_index=True)
    return known[first], key_F


def incidence(user_row_E: Ints, column_E: Ints, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Who met what, as a binary matrix of `shape` [users, columns]."""
    keys = np.unique(user_row_E * shape[1] + column_E)
    rows, columns = keys // shape[1], keys % shape[1]
    starts = np.searchsorted(rows, np.arange(shape[0] + 1))
    return sparse.csr_matrix((np.ones(len(keys), np.float32), columns, starts), shape=shape)


def incidence_idf(met_MN: sparse.csr_matrix) -> npt.NDArray[np.float64]:
    """Inverse user frequency [N] of an incidence's columns: what everybody met says little."""
    users = max(int((met_MN.getnnz(axis=1) > 0).sum()), 1)
    idf_N: npt.NDArray[np.float64] = np.log((1 + users) / (1 + met_MN.getnnz(axis=0)))
    return idf_N
