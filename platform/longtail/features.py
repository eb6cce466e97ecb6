"""Own features of (user, item, time) rows, as they were known strictly before the time, for training samples; a request has the same numbers from
longtail.online.features.

What groups and peers lend beside them is in longtail.lent.
Letters: B rows, E events, L history length, A attributes, U user, X user-by-item and I item statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib.stride_tricks import sliding_window_view

from longtail.behaviour import Behaviour
from longtail.collaborative import CollaborativeIndex
from longtail.entities import UNKNOWN_TIME, Entities
from longtail.item_counts import ItemCounts, Tally, boundaries
from longtail.samples import SamplesSettings
from longtail.times import DAY_US
from longtail.user_events import KeyEvents, UserEvents

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Columns = dict[str, npt.NDArray[Any]]  # features by name, [B, ..]

USER_STATS = ("log_purchases", "log_clicks", "log_active_days", "log_events_28d", "log_days_since_last", "mean_log_price")
CROSS_STATS = (
    *("log_same_item", "log_same_leaf", "log_same_root", "log_same_brand"),
    *("leaf_share", "item_recency", "leaf_recency", "price_gap"),
)
ITEM_STATS = ("log_events_7d", "log_events_28d", "log_events", "log_leaf_events_28d", "log_price", "price_known", "log_age_days", "age_known")

EXAMPLE_COLUMNS = ("example_id", "user_id", "item_id", "ts", "split", "outcome", "conversion")

NEVER_DAYS = 1000.0  # stands for "not yet": recency features are 1 / (1 + days), so that it reads as nearly 0


@dataclass(frozen=True)
class ItemFacts:
    """What is known of each row's item beside its events: looked up by item_row, or stated in a request (longtail.ranking)."""

    leaf_B: Ints  # 0 unknown, as root and brand
    root_B: Ints
    brand_B: Ints
    cluster_B: Ints
    log_price_B: Floats  # log1p, NaN unknown
    first_seen_B: Ints  # microseconds since the epoch, UNKNOWN_TIME where nobody knows


@dataclass(frozen=True)
class Rows:
    """What features are asked for, by row numbers (0 unknown)."""

    user_row_B: Ints
    item_row_B: Ints
    time_B: Ints  # microseconds since the epoch

    def __len__(self) -> int:
        return len(self.time_B)

    @staticmethod
    def of(examples: pa.Table, entities: Entities) -> "Rows":
        """Row numbers and times of a table with user_id, item_id and ts."""
        return Rows(
            entities.users.encode(examples.column("user_id")).astype(np.int64),
            entities.items.encode(examples.column("item_id")).astype(np.int64),
            pc.cast(examples.column("ts"), pa.int64()).to_numpy(),
        )


@dataclass(frozen=True)
class ActivityIndex:
    """What a user has done by a time; groups average the same statistics over their members."""

    by_user: UserEvents
    purchases: Ints  # how many of the first events, in by_user's order, are purchases: with a leading 0, as the other running sums
    days: Ints  # how many of them are the first of a user's day
    price_sum: npt.NDArray[np.float64]
    price_num: Ints

    @staticmethod
    def build(behaviour: Behaviour, price_before: float = 0.0) -> "ActivityIndex":
        """From events that are in time order within every user.

        Args:
            price_before: sum of log prices of all users in front of these, where they are a part of the users: sums round alike however users are parted.
        """
        by_user = UserEvents.build(behaviour.user_row_E, behaviour.time_E)
        order, user, day = by_user.order_E, behaviour.user_row_E[by_user.order_E], by_user.time_E // DAY_US
        first_of_day = (np.diff(user, prepend=-1) != 0) | (np.diff(day, prepend=0) != 0)
        price = behaviour.log_price_E[order]
        return ActivityIndex(
            by_user=by_user,
            purchases=_running(behaviour.is_strongest[order]),
            days=_running(first_of_day),
            price_sum=np.cumsum(np.concatenate([[price_before], np.nan_to_num(price)])),
            price_num=_running(~np.isnan(price)),
        )

    def statistics(self, user_B: Ints, time_B: Ints) -> tuple[Floats, Floats]:
        """USER_STATS [B, U], and raw purchases, clicks and active days [B, 3]."""
        return self.statistics_of(*self.by_user.span(user_B, time_B), time_B)

    def statistics_of(self, start_B: Ints, end_B: Ints, time_B: Ints) -> tuple[Floats, Floats]:
        """The same from the spans of the users' events before each time."""
        purchases = self.purchases[end_B] - self.purchases[start_B]
        clicks = end_B - start_B - purchases
        # A day counts once it is over: the day of the row itself is not known yet.
        days = self.days[self.by_user.before(start_B, end_B, time_B // DAY_US * DAY_US)] - self.days[start_B]
        recent = end_B - self.by_user.before(start_B, end_B, time_B - 28 * DAY_US)
        since = np.nan_to_num(self.by_user.days_since(end_B, end_B > start_B, time_B), nan=NEVER_DAYS)
        counts = np.log1p(np.stack([purchases, clicks, days, recent], 1))
        stats = np.concatenate([counts, np.log1p(since)[:, None], self.mean_log_price(start_B, end_B)[:, None]], 1)
        return stats.astype(np.float32), np.stack([purchases, clicks, days], 1).astype(np.float32)

    def mean_log_price(self, start_B: Ints, end_B: Ints) -> npt.NDArray[np.float64]:
        """Mean log1p price over the events of each span; 0 where none has a price."""
        number = self.price_num[end_B] - self.price_num[start_B]
        mean: npt.NDArray[np.float64] = (self.price_sum[end_B] - self.price_sum[start_B]) / np.maximum(number, 1)
        return mean


def _running(flags_E: npt.NDArray[np.bool_]) -> Ints:
    return np.concatenate([[0], np.cumsum(flags_E)])


def snapshot_us(time_B: Ints, start_us: int, settings: SamplesSettings) -> Ints:
    """The popularity boundary not after each time: facts about items and about other users change only there."""
    period = settings.snapshot_days * DAY_US
    return start_us + (time_B - start_us) // period * period


def item_facts(item_row_B: Ints, entities: Entities, cluster_N: Ints | None = None) -> ItemFacts:
    """The run's facts of each row's item; without clusters all items are of none."""
    return ItemFacts(
        leaf_B=entities.leaf_codes_N[item_row_B].astype(np.int64),
        root_B=entities.root_codes[item_row_B].astype(np.int64),
        brand_B=entities.brand_codes_N[item_row_B].astype(np.int64),
        cluster_B=cluster_N[item_row_B] if cluster_N is not None else np.zeros(len(item_row_B), np.int64),
        log_price_B=entities.log_price_N[item_row_B],
        first_seen_B=entities.first_seen_N[item_row_B],
    )


@dataclass(frozen=True)
class OwnState:
    """What a user's and an item's own features are computed from: all users' events, or those of a part of the users and the item counts of all."""

    entities: Entities
    behaviour: Behaviour
    settings: SamplesSettings
    start_us: int
    activity: ActivityIndex
    item_E: Ints  # of each event, latest event first, in the reversed order of activity.by_user and with a history of zeros at the end
    time_E: Ints  # likewise
    by_item: KeyEvents
    by_leaf: KeyEvents
    by_root: KeyEvents
    by_brand: KeyEvents
    item_counts: ItemCounts
    collaborative: CollaborativeIndex | None

    @staticmethod
    def build(
        entities: Entities,
        behaviour: Behaviour,
        settings: SamplesSettings,
        start_us: int,
        collaborative: CollaborativeIndex | None = None,
        item_counts: ItemCounts | None = None,
        price_before: float = 0.0,
    ) -> "OwnState":
        """From events that are in time order within every user; `item_counts` and `price_before` are given where they are those of some of the users."""
        activity = ActivityIndex.build(behaviour, price_before)
        by_user = activity.by_user
        user, item = behaviour.user_row_E[by_user.order_E], behaviour.item_row_E[by_user.order_E]
        codes = {"item": np.arange(len(entities.items) + 1), "leaf": entities.leaf_codes_N, "root": entities.root_codes, "brand": entities.brand_codes_N}
        by_key = {name: KeyEvents.build(by_user, user, code_N[item], int(code_N.max()) + 1) for name, code_N in codes.items()}
        padding = np.zeros(settings.history_length, np.int64)
        return OwnState(
            entities=entities,
            behaviour=behaviour,
            settings=settings,
            start_us=start_us,
            activity=activity,
            item_E=np.concatenate([item[::-1], padding]),
            time_E=np.concatenate([by_user.time_E[::-1], padding]),
            by_item=by_key["item"],
            by_leaf=by_key["leaf"],
            by_root=by_key["root"],
            by_brand=by_key["brand"],
            item_counts=item_counts if item_counts is not None else all_item_counts(entities, behaviour, settings, start_us),
            collaborative=collaborative,
        )

    def columns(self, rows: Rows, own_BA: npt.NDArray[np.int32]) -> Columns:
        """The rows' own features; `own_BA` are their users' attribute codes."""
        user, item, time = rows.user_row_B, rows.item_row_B, rows.time_B
        snapshot = snapshot_us(time, self.start_us, self.settings)
        start, end = self.activity.by_user.span(user, time)
        user_stats, activity = self.activity.statistics_of(start, end, time)
        history, history_days = self._history(start, end, time)
        facts = item_facts(item, self.entities)
        counts, leaf_events = self.item_counts.of(item, facts.leaf_B, snapshot)
        item_events = counts[:, 2]
        ages = age_days(facts.first_seen_B, item_events, snapshot)
        collaborative = np.zeros((len(rows), 0), np.float32) if self.collaborative is None else self.collaborative.scores(user, item, time)
        return {
            "user_row": user,
            "item_row": item,
            "history": history,
            "history_days": history_days,
            "attributes": own_BA,
            "user_stats": user_stats,
            "cross_stats": self._cross(rows, facts, start, end),
            "item_stats": item_columns(counts, leaf_events, facts, ages),
            "collaborative_stats": collaborative,
            "activity": activity,
            "num_purchases": activity[:, 0].astype(np.int32),
            "item_events": item_events,
            "item_age_days": ages.astype(np.float32),
        }

    def _history(self, start_B: Ints, end_B: Ints, time_B: Ints) -> tuple[Ints, Floats]:
        """The last L items before each time, most recent first, and how many days ago."""
        length = self.settings.history_length
        latest = len(self.time_E) - length - end_B  # of the span, in the reversed order
        items = sliding_window_view(self.item_E, length)[latest]
        days = ((time_B[:, None] - sliding_window_view(self.time_E, length)[latest]) / DAY_US).astype(np.float32)
        short = np.flatnonzero(end_B - start_B < length)
        absent = np.arange(length)[None] >= (end_B - start_B)[short, None]
        items[short] = np.where(absent, 0, items[short])
        days[short] = np.where(absent, 0, days[short])
        return items, days

    def _cross(self, rows: Rows, facts: ItemFacts, start_B: Ints, end_B: Ints) -> Floats:
        """CROSS_STATS [B, X]: what this user did with the item, its categories and its brand."""
        by_user, time_B = self.activity.by_user, rows.time_B
        leaf, root, brand, price = facts.leaf_B, facts.root_B, facts.brand_B, facts.log_price_B
        same_item, last_item = self.by_item.count_and_last(rows.user_row_B, rows.item_row_B, start_B, end_B)
        same_leaf, last_leaf = self.by_leaf.count_and_last(rows.user_row_B, leaf, start_B, end_B)
        same_leaf = np.where(leaf > 0, same_leaf, 0)
        same_root = np.where(root > 0, self.by_root.count_and_last(rows.user_row_B, root, start_B, end_B)[0], 0)
        same_brand = np.where(brand > 0, self.by_brand.count_and_last(rows.user_row_B, brand, start_B, end_B)[0], 0)
        total = end_B - start_B
        gap = np.where((total > 0) & ~np.isnan(price), np.nan_to_num(price) - self.activity.mean_log_price(start_B, end_B), 0.0)
        return np.stack(
            [
                np.log1p(same_item),
                np.log1p(same_leaf),
                np.log1p(same_root),
                np.log1p(same_brand),
                same_leaf / np.maximum(total, 1),
                recency(by_user.days_since(last_item, last_item > 0, time_B)),
                np.where(leaf > 0, recency(by_user.days_since(last_leaf, last_leaf > 0, time_B)), 0.0),
                gap,
            ],
            1,
        ).astype(np.float32)


def all_item_counts(entities: Entities, behaviour: Behaviour, settings: SamplesSettings, start_us: int) -> ItemCounts:
    """Counts of all items at every snapshot that these events reach."""
    times = behaviour.time_E
    grid = boundaries(int(times.min(initial=start_us)), int(times.max(initial=start_us)), start_us, settings.snapshot_days)
    return ItemCounts.build(Tally.of(behaviour.item_row_E, times, grid), entities.leaf_codes_N, grid)


def item_columns(counts_B3: Ints, leaf_events_B: Ints, facts: ItemFacts, age_days_B: npt.NDArray[np.float64]) -> Floats:
    """ITEM_STATS [B, I], counts as of the snapshot."""
    priced_B, aged_B = ~np.isnan(facts.log_price_B), ~np.isnan(age_days_B)
    return np.stack(
        [
            *np.log1p(counts_B3).T,
            np.where(facts.leaf_B > 0, np.log1p(leaf_events_B), 0.0),
            np.where(priced_B, facts.log_price_B, 0.0),
            priced_B,
            np.log1p(np.where(aged_B, age_days_B, 0.0)),
            aged_B,
        ],
        1,
    ).astype(np.float32)


def written(columns: Mapping[str, npt.NDArray[Any] | pa.Array | pa.ChunkedArray]) -> pa.Table:
    """Columns as a table that Parquet takes; lists of width 0 (a source without attributes) are left out, Batch takes them as empty."""
    made = {}
    for name, column in columns.items():
        if isinstance(column, np.ndarray):
            if column.ndim == 2 and column.shape[1] == 0:
                continue
            kind = pa.int32() if np.issubdtype(column.dtype, np.integer) else pa.float32()
            made[name] = fixed(column, kind) if column.ndim == 2 else pa.array(column.astype(kind.to_pandas_dtype()), kind)
        else:
            made[name] = column
    return pa.table(made)


def recency(days: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    recency: npt.NDArray[np.float64] = 1.0 / (1.0 + np.where(np.isnan(days), NEVER_DAYS, days))
    return recency


def age_days(first_seen_B: Ints, events_B: Ints, snapshot_B: Ints) -> npt.NDArray[np.float64]:
    """Days from each item's first sight to the snapshot, 0 where nobody had seen it by then; NaN where it was seen but nobody knows since when.

    As of the snapshot and not of the row: an item's first sale is its first positive, so that a finer clock would tell the labels around it.
    """
    known = first_seen_B != UNKNOWN_TIME
    since = np.where(known, np.maximum(snapshot_B - np.where(known, first_seen_B, snapshot_B), 0) / DAY_US, 0.0)
    return np.where(~known & (events_B > 0), np.nan, since)


def pair_keys(first: npt.NDArray[np.signedinteger], second: npt.NDArray[np.signedinteger]) -> Ints:
    """One key of two row numbers below 2**31."""
    return first.astype(np.int64) << 32 | second.astype(np.int64)


def fixed(values: npt.NDArray[np.generic], kind: pa.DataType) -> pa.FixedSizeListArray:
    """[B, W] as a fixed_size_list column of width W."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind)
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
