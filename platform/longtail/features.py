"""Features of (user, item, time) rows, as they were known strictly before the time; training samples and serving requests both come through here.

Letters: B rows, L history length, G group history length, A attributes, U user, X user-by-item and I item statistics, S code stages.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longtail.behaviour import Behaviour, CountIndex
from longtail.entities import UNKNOWN_TIME, Entities
from longtail.groups import GroupsSettings
from longtail.peers import PeerIndex
from longtail.samples import FeatureSpec, SamplesSettings
from longtail.times import DAY_US

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

USER_STATS = ("log_purchases", "log_clicks", "log_active_days", "log_events_28d", "log_days_since_last", "mean_log_price")
CROSS_STATS = ("log_same_item", "log_same_leaf", "log_same_root", "log_same_brand", "leaf_share", "item_recency", "leaf_recency", "price_gap")
ITEM_STATS = ("log_events_7d", "log_events_28d", "log_events", "log_leaf_events_28d", "log_price", "price_known", "log_age_days", "age_known")

EXAMPLE_COLUMNS = ("example_id", "user_id", "item_id", "ts", "split", "outcome", "conversion")

NEVER_DAYS = 1000.0  # stands for "not yet": recency features are 1 / (1 + days), so that it reads as nearly 0


@dataclass(frozen=True)
class ItemFacts:
    """What is known of each row's item beside its events: looked up by item_row, or stated in a request."""

    leaf_B: Ints  # 0 unknown, as root and brand
    root_B: Ints
    brand_B: Ints
    log_price_B: Floats  # log1p, NaN unknown
    first_seen_B: Ints  # microseconds since the epoch, UNKNOWN_TIME where nobody knows


@dataclass(frozen=True)
class Rows:
    """What features are asked for, by row numbers (0 unknown)."""

    user_row_B: Ints
    item_row_B: Ints
    time_B: Ints  # microseconds since the epoch
    stated: ItemFacts | None = None  # what a request says of items that the run does not know; read where item_row is 0

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


@dataclass(frozen=True)
class UserGroups:
    """Group membership by snapshot, and what each group lends. T snapshots, M users + 1, P prefix groups over all snapshots, K (user, as_of) pairs."""

    as_of_T: Ints  # snapshots, ascending
    codes_KS: npt.NDArray[np.int32]
    place_TM: npt.NDArray[np.int32]  # by snapshot number and user_row, the row of codes_KS; -1 where the user has no codes
    group_of: dict[tuple[int, tuple[int, ...]], int]  # (snapshot number, prefix) -> row of the tables below
    size_P: Ints
    attributes_PA: npt.NDArray[np.int32]
    stats_PU: Floats
    sequence_PG: Ints
    weight_PG: Floats
    code_sizes: tuple[int, ...]
    min_size: int

    @staticmethod
    def build(codes: pa.Table, groups: pa.Table, entities: Entities, code_sizes: tuple[int, ...], settings: GroupsSettings) -> "UserGroups":
        as_of = pc.cast(groups.column("as_of"), pa.int64()).to_numpy()
        snapshots = np.unique(as_of)
        number = {int(time): i for i, time in enumerate(snapshots)}
        length = settings.sequence_length
        sequence = np.zeros((len(groups), length), np.int64)
        weight = np.zeros((len(groups), length), np.float32)
        rows = groups.select(["prefix", "sequence", "sequence_weight"]).to_pylist()
        for place, row in enumerate(rows):
            filled = len(row["sequence"])
            sequence[place, :filled] = entities.items.encode(row["sequence"])
            weight[place, :filled] = row["sequence_weight"]
        num_stages = len(code_sizes)
        codes_KS = codes.column("codes").combine_chunks().flatten().to_numpy().reshape(-1, num_stages)
        user_rows = entities.users.encode(codes.column("user_id"))
        code_times = pc.cast(codes.column("as_of"), pa.int64()).to_numpy()
        place_TM = np.full((len(snapshots), len(entities.users) + 1), -1, np.int32)
        place_TM[np.searchsorted(snapshots, code_times), user_rows] = np.arange(len(codes))
        return UserGroups(
            as_of_T=snapshots,
            codes_KS=codes_KS,
            place_TM=place_TM,
            group_of={(number[int(time)], tuple(row["prefix"])): i for i, (time, row) in enumerate(zip(as_of, rows, strict=True))},
            size_P=groups.column("size").to_numpy().astype(np.int64),
            attributes_PA=_matrix(groups, "attributes"),
            stats_PU=_matrix(groups, "stats"),
            sequence_PG=sequence,
            weight_PG=weight,
            code_sizes=code_sizes,
            min_size=settings.min_size,
        )

    def snapshot(self, time_B: Ints) -> Ints:
        """Number of the latest snapshot not after each time; -1 before the first."""
        return np.searchsorted(self.as_of_T, time_B, side="right") - 1

    def codes_of(self, snapshot: int, user_row: int) -> tuple[int, ...] | None:
        """The user's codes at a snapshot; None before the first one, and for a user without any."""
        place = self.place_TM[snapshot, user_row] if snapshot >= 0 else -1
        return tuple(self.codes_KS[place].tolist()) if place >= 0 else None

    def lend(self, snapshot: int, codes: tuple[int, ...] | None) -> int:
        """Row of the deepest group on the path of `codes` with enough members; the root's for None, -1 before the first snapshot."""
        for depth in range(len(codes) if codes is not None else 0, -1, -1):
            place = self.group_of.get((snapshot, codes[:depth] if codes is not None else ()))
            if place is not None and (depth == 0 or self.size_P[place] >= self.min_size):
                return place
        return -1


@dataclass(frozen=True)
class FeatureState:
    """Everything that features are computed from; built once per process from the artifacts of one run."""

    entities: Entities
    behaviour: Behaviour
    groups: UserGroups
    spec: FeatureSpec
    settings: SamplesSettings
    start_us: int
    activity: ActivityIndex
    by_user_item: CountIndex
    by_user_leaf: CountIndex
    by_user_root: CountIndex
    by_user_brand: CountIndex
    by_item: CountIndex
    by_leaf: CountIndex
    peers: PeerIndex | None  # None: spec.peer_stats is empty

    @staticmethod
    def build(
        entities: Entities,
        behaviour: Behaviour,
        groups: UserGroups,
        spec: FeatureSpec,
        settings: SamplesSettings,
        start_us: int,
        peers: PeerIndex | None = None,
    ) -> "FeatureState":
        user, item, time = behaviour.user_row_E, behaviour.item_row_E, behaviour.time_E
        leaf, root, brand = entities.leaf_codes_N[item], entities.root_codes[item], entities.brand_codes_N[item]
        return FeatureState(
            entities=entities,
            behaviour=behaviour,
            groups=groups,
            spec=spec,
            settings=settings,
            start_us=start_us,
            activity=ActivityIndex.build(behaviour),
            by_user_item=CountIndex.build(_pair(user, item), time),
            by_user_leaf=CountIndex.build(_pair(user, leaf), time),
            by_user_root=CountIndex.build(_pair(user, root), time),
            by_user_brand=CountIndex.build(_pair(user, brand), time),
            by_item=CountIndex.build(item, time),
            by_leaf=CountIndex.build(leaf.astype(np.int64), time),
            peers=peers,
        )

    def features(self, rows: Rows, attributes_BA: npt.NDArray[np.int32] | None = None, codes: list[tuple[int, ...] | None] | None = None) -> pa.Table:
        """Feature columns of the samples table for `rows`; unknown users and items get what their group, or everyone, lends.

        Args:
            rows: what is asked for.
            attributes_BA: attribute codes that a request states, for users whom the run does not know.
            codes: group codes found for such users, None where there are none.
        """
        user, item, time = rows.user_row_B, rows.item_row_B, rows.time_B
        snapshot = self.snapshot_us(time)
        user_stats, activity = self.activity.statistics(user, time)
        own = (
            self.entities.attribute_codes_MA[user]
            if attributes_BA is None
            else np.where(attributes_BA > 0, attributes_BA, self.entities.attribute_codes_MA[user])
        )
        group_place, codes_BS = self._memberships(rows, codes)
        lent = group_place >= 0
        place = np.maximum(group_place, 0)
        group_attributes = np.where(lent[:, None], self.groups.attributes_PA[place], 0)
        history, history_days = self._history(user, time)
        item_events = self.by_item.count(item, snapshot)
        facts = self._item_facts(rows)
        age_days = _age_days(facts.first_seen_B, item_events, snapshot)
        columns = {
            "user_row": pa.array(user.astype(np.int32)),
            "item_row": pa.array(item.astype(np.int32)),
            "history": _fixed(history, pa.int32()),
            "history_days": _fixed(history_days, pa.float32()),
            "attributes": _fixed(own, pa.int32()),
            "completed": _fixed(np.where(own > 0, own, group_attributes), pa.int32()),
            "user_stats": _fixed(user_stats, pa.float32()),
            "cross_stats": _fixed(self._cross(user, item, time, facts), pa.float32()),
            "item_stats": _fixed(self._item(item, snapshot, facts, age_days), pa.float32()),
            "group_stats": _fixed(np.where(lent[:, None], self.groups.stats_PU[place], 0), pa.float32()),
            "user_codes": _fixed(codes_BS, pa.int32()),
            "group_history": _fixed(np.where(lent[:, None], self.groups.sequence_PG[place], 0), pa.int32()),
            "group_weight": _fixed(np.where(lent[:, None], self.groups.weight_PG[place], 0), pa.float32()),
            "peer_stats": _fixed(self._peer_stats(user, item, snapshot, facts), pa.float32()),
            "activity": _fixed(activity, pa.float32()),
            "num_purchases": pa.array(activity[:, 0].astype(np.int32)),
            "item_events": pa.array(item_events.astype(np.int32)),
            "item_age_days": pa.array(age_days.astype(np.float32)),
        }
        # Parquet has no lists of width 0 (a source without attributes): such columns are left out, and Batch takes them as empty.
        return pa.table({name: column for name, column in columns.items() if not (pa.types.is_fixed_size_list(column.type) and column.type.list_size == 0)})

    def snapshot_us(self, time_B: Ints) -> Ints:
        """The popularity boundary not after each time: item counts change only there."""
        period = self.settings.snapshot_days * DAY_US
        return self.start_us + (time_B - self.start_us) // period * period

    def _item_facts(self, rows: Rows) -> ItemFacts:
        """The run's facts of each row's item, or the request's where the run does not know the item."""
        item = rows.item_row_B
        facts = ItemFacts(
            leaf_B=self.entities.leaf_codes_N[item].astype(np.int64),
            root_B=self.entities.root_codes[item].astype(np.int64),
            brand_B=self.entities.brand_codes_N[item].astype(np.int64),
            log_price_B=self.entities.log_price_N[item],
            first_seen_B=self.entities.first_seen_N[item],
        )
        if rows.stated is None:
            return facts
        return ItemFacts(**{f.name: np.where(item == 0, getattr(rows.stated, f.name), getattr(facts, f.name)) for f in fields(ItemFacts)})

    def _history(self, user_B: Ints, time_B: Ints) -> tuple[Ints, Floats]:
        """The last L items before each time, most recent first, and how many days ago."""
        start, end = self.activity.by_user.span(user_B, time_B)
        place = end[:, None] - 1 - np.arange(self.spec.history_length)[None]
        there = place >= start[:, None]
        safe = np.where(there, place, 0)
        if len(self.activity.by_user.times_E) == 0:
            return np.zeros(place.shape, np.int64), np.zeros(place.shape, np.float32)
        items = np.where(there, self.behaviour.item_row_E[self.activity.by_user.order_E[safe]], 0)
        days = np.where(there, (time_B[:, None] - self.activity.by_user.times_E[safe]) / DAY_US, 0)
        return items, days.astype(np.float32)

    def _cross(self, user_B: Ints, item_B: Ints, time_B: Ints, facts: ItemFacts) -> Floats:
        """CROSS_STATS [B, X]: what this user did with the item, its categories and its brand."""
        leaf, root, brand, price = facts.leaf_B, facts.root_B, facts.brand_B, facts.log_price_B
        same_item = self.by_user_item.count(_pair(user_B, item_B), time_B)
        same_leaf = np.where(leaf > 0, self.by_user_leaf.count(_pair(user_B, leaf), time_B), 0)
        same_root = np.where(root > 0, self.by_user_root.count(_pair(user_B, root), time_B), 0)
        same_brand = np.where(brand > 0, self.by_user_brand.count(_pair(user_B, brand), time_B), 0)
        total = self.activity.by_user.count(user_B, time_B)
        gap = np.where((total > 0) & ~np.isnan(price), np.nan_to_num(price) - self.activity.mean_log_price(user_B, time_B), 0.0)
        return np.stack(
            [
                np.log1p(same_item),
                np.log1p(same_leaf),
                np.log1p(same_root),
                np.log1p(same_brand),
                same_leaf / np.maximum(total, 1),
                _recency(self.by_user_item.days_since_last(_pair(user_B, item_B), time_B)),
                np.where(leaf > 0, _recency(self.by_user_leaf.days_since_last(_pair(user_B, leaf), time_B)), 0.0),
                gap,
            ],
            1,
        ).astype(np.float32)

    def _item(self, item_B: Ints, snapshot_B: Ints, facts: ItemFacts, age_days_B: npt.NDArray[np.float64]) -> Floats:
        """ITEM_STATS [B, I], counts as of the snapshot."""
        leaf, price = facts.leaf_B, facts.log_price_B
        return np.stack(
            [
                np.log1p(self.by_item.count(item_B, snapshot_B, snapshot_B - 7 * DAY_US)),
                np.log1p(self.by_item.count(item_B, snapshot_B, snapshot_B - 28 * DAY_US)),
                np.log1p(self.by_item.count(item_B, snapshot_B)),
                np.where(leaf > 0, np.log1p(self.by_leaf.count(leaf, snapshot_B, snapshot_B - 28 * DAY_US)), 0.0),
                np.nan_to_num(price),
                ~np.isnan(price),
                np.log1p(np.nan_to_num(age_days_B)),
                ~np.isnan(age_days_B),
            ],
            1,
        ).astype(np.float32)

    def _peer_stats(self, user_B: Ints, item_B: Ints, snapshot_B: Ints, facts: ItemFacts) -> Floats:
        """PEER_STATS [B, P], width 0 without peers: what the user's peers had met by the snapshot, beside everybody."""
        if self.peers is None:
            return np.zeros((len(user_B), 0), np.float32)
        columns_BC = np.stack([item_B, self.peers.column_NC[item_B, 1], facts.leaf_B, facts.root_B], axis=1)
        return self.peers.lifts(user_B, columns_BC, snapshot_B)

    def _memberships(self, rows: Rows, given: list[tuple[int, ...] | None] | None) -> tuple[Ints, npt.NDArray[np.int32]]:
        """Row of the lending group [B], and the user's codes plus one [B, S]; looked up once per distinct (user, snapshot)."""
        snapshots = self.groups.snapshot(rows.time_B)
        num_stages = len(self.spec.code_sizes)
        pairs, inverse = np.unique(np.stack([snapshots, rows.user_row_B]), axis=1, return_inverse=True)
        if given is not None:  # a request: few rows, each with its own codes
            pairs, inverse = np.stack([snapshots, rows.user_row_B]), np.arange(len(rows))
        place = np.empty(pairs.shape[1], np.int64)
        codes_PS = np.zeros((pairs.shape[1], num_stages), np.int32)
        for number, (snapshot, user) in enumerate(pairs.T):
            codes = self.groups.codes_of(int(snapshot), int(user)) or (given[number] if given is not None else None)
            place[number] = self.groups.lend(int(snapshot), codes)
            if codes is not None:
                codes_PS[number] = np.array(codes) + 1
        inverse = inverse.reshape(-1)
        return place[inverse], codes_PS[inverse]


def sample_rows(state: FeatureState, examples: pa.Table) -> pa.Table:
    """The samples table's rows: example columns followed by feature columns."""
    features = state.features(Rows.of(examples, state.entities))
    labels = examples.select(list(EXAMPLE_COLUMNS))
    return pa.table({name: table.column(name) for table in (labels, features) for name in table.column_names})


def _recency(days: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    recency: npt.NDArray[np.float64] = 1.0 / (1.0 + np.nan_to_num(days, nan=NEVER_DAYS))
    return recency


def _age_days(first_seen_B: Ints, events_B: Ints, snapshot_B: Ints) -> npt.NDArray[np.float64]:
    """Days from each item's first sight to the snapshot, 0 where nobody had seen it by then; NaN where it was seen but nobody knows since when.

    As of the snapshot and not of the row: an item's first sale is its first positive, so that a finer clock would tell the labels around it.
    """
    known = first_seen_B != UNKNOWN_TIME
    since = np.where(known, np.maximum(snapshot_B - np.where(known, first_seen_B, snapshot_B), 0) / DAY_US, 0.0)
    return np.where(~known & (events_B > 0), np.nan, since)


def _pair(first: npt.NDArray[np.signedinteger], second: npt.NDArray[np.signedinteger]) -> Ints:
    """One key of two row numbers below 2**31."""
    return first.astype(np.int64) << 32 | second.astype(np.int64)


def _matrix(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """A list column whose lists all have one length, as [rows, length]."""
    flat = table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix: npt.NDArray[Any] = flat.reshape(len(table), len(flat) // max(len(table), 1))
    return matrix


def _fixed(values: npt.NDArray[np.generic], kind: pa.DataType) -> pa.FixedSizeListArray:
    """[B, W] as a fixed_size_list column of width W."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind)
    if values.shape[1] == 0:
        return pa.nulls(len(values), pa.list_(kind, 0))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
