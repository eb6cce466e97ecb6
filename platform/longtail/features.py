"""Own features of (user, item, time) rows, as they were known strictly before the time, for training samples; a request has the same numbers from
longtail.online.features.

What groups and peers lend beside them is in longtail.lent.
Letters: B rows, L history length, A attributes, U user, X user-by-item and I item statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longtail.behaviour import Behaviour, CountIndex
from longtail.collaborative import CollaborativeIndex
from longtail.entities import UNKNOWN_TIME, Entities
from longtail.samples import SamplesSettings
from longtail.times import DAY_US

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

    by_user: CountIndex
    by_user_purchase: CountIndex
    by_user_click: CountIndex
    by_user_day: CountIndex
    price_sum: npt.NDArray[np.float64]  # running sums over by_user's order, with a leading 0
    price_num: Ints

    @staticmethod
    def build(behaviour: Behaviour) -> "ActivityIndex":
        user, time, purchase = behaviour.user_row_E, behaviour.time_E, behaviour.is_strongest
        day = np.unique(np.stack([user, time // DAY_US]), axis=1)
        by_user = CountIndex.build(user, time)
        price = behaviour.log_price_E[by_user.order_E]
        return ActivityIndex(
            by_user=by_user,
            by_user_purchase=CountIndex.build(user[purchase], time[purchase]),
            by_user_click=CountIndex.build(user[~purchase], time[~purchase]),
            by_user_day=CountIndex.build(day[0], day[1] * DAY_US),
            price_sum=np.concatenate([[0.0], np.cumsum(np.nan_to_num(price))]),
            price_num=np.concatenate([[0], np.cumsum(~np.isnan(price))]),
        )

    def statistics(self, user_B: Ints, time_B: Ints) -> tuple[Floats, Floats]:
        """USER_STATS [B, U], and raw purchases, clicks and active days [B, 3]."""
        purchases = self.by_user_purchase.count(user_B, time_B)
        clicks = self.by_user_click.count(user_B, time_B)
        # A day counts once it is over: the day of the row itself is not known yet.
        days = self.by_user_day.count(user_B, time_B // DAY_US * DAY_US)
        recent = self.by_user.count(user_B, time_B, time_B - 28 * DAY_US)
        since = np.nan_to_num(self.by_user.days_since_last(user_B, time_B), nan=NEVER_DAYS)
        stats = np.stack([np.log1p(purchases), np.log1p(clicks), np.log1p(days), np.log1p(recent), np.log1p(since), self.mean_log_price(user_B, time_B)], 1)
        return stats.astype(np.float32), np.stack([purchases, clicks, days], 1).astype(np.float32)

    def mean_log_price(self, user_B: Ints, time_B: Ints) -> npt.NDArray[np.float64]:
        """Mean log1p price over the user's events; 0 where none has a price."""
        start, end = self.by_user.span(user_B, time_B)
        number = self.price_num[end] - self.price_num[start]
        mean: npt.NDArray[np.float64] = (self.price_sum[end] - self.price_sum[start]) / np.maximum(number, 1)
        return mean


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
class ItemCounts:
    """Events of items and of their leaf categories before a snapshot."""

    by_item: CountIndex
    by_leaf: CountIndex

    def of(self, item_B: Ints, leaf_B: Ints, snapshot_B: Ints) -> tuple[Ints, Ints]:
        """Of each item in 7 days, in 28 days and in all [B, 3], and of its leaf in 28 days [B]."""
        total = self.by_item.count(item_B, snapshot_B)
        recent = [self.by_item.count(item_B, snapshot_B, snapshot_B - days * DAY_US) for days in (7, 28)]
        return np.stack([*recent, total], 1), self.by_leaf.count(leaf_B, snapshot_B, snapshot_B - 28 * DAY_US)


@dataclass(frozen=True)
class OwnState:
    """What a user's and an item's own features are computed from; built once per process from the artifacts of one run."""

    entities: Entities
    behaviour: Behaviour
    settings: SamplesSettings
    start_us: int
    activity: ActivityIndex
    by_user_item: CountIndex
    by_user_leaf: CountIndex
    by_user_root: CountIndex
    by_user_brand: CountIndex
    item_counts: ItemCounts
    collaborative: CollaborativeIndex | None

    @staticmethod
    def build(
        entities: Entities,
        behaviour: Behaviour,
        settings: SamplesSettings,
        start_us: int,
        collaborative: CollaborativeIndex | None = None,
    ) -> "OwnState":
        user, item, time = behaviour.user_row_E, behaviour.item_row_E, behaviour.time_E
        leaf, root, brand = entities.leaf_codes_N[item], entities.root_codes[item], entities.brand_codes_N[item]
        counts = ItemCounts(CountIndex.build(item, time), CountIndex.build(leaf.astype(np.int64), time))
        return OwnState(
            entities=entities,
            behaviour=behaviour,
            settings=settings,
            start_us=start_us,
            activity=ActivityIndex.build(behaviour),
            by_user_item=CountIndex.build(pair_keys(user, item), time),
            by_user_leaf=CountIndex.build(pair_keys(user, leaf), time),
            by_user_root=CountIndex.build(pair_keys(user, root), time),
            by_user_brand=CountIndex.build(pair_keys(user, brand), time),
            item_counts=counts,
            collaborative=collaborative,
        )

    def columns(self, rows: Rows, own_BA: npt.NDArray[np.int32]) -> Columns:
        """The rows' own features; `own_BA` are their users' attribute codes."""
        user, item, time = rows.user_row_B, rows.item_row_B, rows.time_B
        snapshot = snapshot_us(time, self.start_us, self.settings)
        user_stats, activity = self.activity.statistics(user, time)
        history, history_days = self._history(user, time)
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
            "cross_stats": self._cross(rows, facts),
            "item_stats": item_columns(counts, leaf_events, facts, ages),
            "collaborative_stats": collaborative,
            "activity": activity,
            "num_purchases": activity[:, 0].astype(np.int32),
            "item_events": item_events,
            "item_age_days": ages.astype(np.float32),
        }

    def _history(self, user_B: Ints, time_B: Ints) -> tuple[Ints, Floats]:
        """The last L items before each time, most recent first, and how many days ago."""
        start, end = self.activity.by_user.span(user_B, time_B)
        place = end[:, None] - 1 - np.arange(self.settings.history_length)[None]
        there = place >= start[:, None]
        safe = np.where(there, place, 0)
        if len(self.activity.by_user.times_E) == 0:
            return np.zeros(place.shape, np.int64), np.zeros(place.shape, np.float32)
        items = np.where(there, self.behaviour.item_row_E[self.activity.by_user.order_E[safe]], 0)
        days = np.where(there, (time_B[:, None] - self.activity.by_user.times_E[safe]) / DAY_US, 0)
        return items, days.astype(np.float32)

    def _cross(self, rows: Rows, facts: ItemFacts) -> Floats:
        """CROSS_STATS [B, X]: what this user did with the item, its categories and its brand."""
        user_B, time_B = rows.user_row_B, rows.time_B
        leaf, root, brand, price = facts.leaf_B, facts.root_B, facts.brand_B, facts.log_price_B
        same_item, since_item = self.by_user_item.count_and_days(pair_keys(user_B, rows.item_row_B), time_B)
        same_leaf, since_leaf = self.by_user_leaf.count_and_days(pair_keys(user_B, leaf), time_B)
        same_leaf = np.where(leaf > 0, same_leaf, 0)
        same_root = np.where(root > 0, self.by_user_root.count(pair_keys(user_B, root), time_B), 0)
        same_brand = np.where(brand > 0, self.by_user_brand.count(pair_keys(user_B, brand), time_B), 0)
        total = self.activity.by_user.count(user_B, time_B)
        gap = np.where((total > 0) & ~np.isnan(price), np.nan_to_num(price) - self.activity.mean_log_price(user_B, time_B), 0.0)
        return np.stack(
            [
                np.log1p(same_item),
                np.log1p(same_leaf),
                np.log1p(same_root),
                np.log1p(same_brand),
                same_leaf / np.maximum(total, 1),
                recency(since_item),
                np.where(leaf > 0, recency(since_leaf), 0.0),
                gap,
            ],
            1,
        ).astype(np.float32)


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
