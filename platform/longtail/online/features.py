"""The features of one request from published tables and one user's record: the same numbers as the training samples have (longtail.feature_state).

A training run asks about many users at many times and keeps indexes over all events; a request asks about one user now, so that their own events, a few
hundred, answer it. A test holds both against each other.

Letters: B candidates, E events, L history length, A attributes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longtail.entities import UNKNOWN_TIME, Entities
from longtail.features import NEVER_DAYS, Columns, Floats, Ints, ItemFacts, age_days, item_columns, recency
from longtail.lent import UserGroups
from longtail.online.added import AddedItems
from longtail.online.mapped import MappedStore
from longtail.online.met_by_peers import PeerStats
from longtail.online.records import UserRecord, UserStore
from longtail.online.tables import Array, OnlineMeta, OnlineTables, entities_of
from longtail.times import DAY_US

MOST_KEYS = 1 << 14  # of which tables are made for a request; of more, filling them costs more than a search


class ByKey(Protocol):
    """A user's events by one key, which answers how often, when last and when first for many keys."""

    def count_and_days(self, keys_B: Ints, now_us: int) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Events of each key [B], and days since the last; NaN where there is none."""

    def had_met(self, keys_B: Ints, before_us: int) -> npt.NDArray[np.bool_]:
        """Whether the first event of each key lies before a time."""


def events_by(keys_E: Ints, time_E: Ints) -> ByKey:
    """The events, ascending in time, by their keys, at least 0."""
    num_keys = int(keys_E.max(initial=0)) + 1
    return KeyTable(keys_E, time_E, num_keys) if num_keys <= MOST_KEYS else KeyIndex.of(keys_E, time_E)


@dataclass(frozen=True)
class KeyTable:
    """Looked up in tables over all keys, in less time than a search while they are few."""

    keys_E: Ints
    time_E: Ints
    num_keys: int  # keys from here on have no events

    def count_and_days(self, keys_B: Ints, now_us: int) -> tuple[Ints, npt.NDArray[np.float64]]:
        """See ByKey."""
        place_B = np.minimum(keys_B, self.num_keys)
        last_N = np.zeros(self.num_keys + 1, np.int64)
        last_N[self.keys_E] = self.time_E  # of a key's times the last one stays
        count_B = np.bincount(self.keys_E, minlength=self.num_keys + 1)[place_B]
        return count_B, np.where(count_B > 0, (now_us - last_N[place_B]) / DAY_US, np.nan)

    def had_met(self, keys_B: Ints, before_us: int) -> npt.NDArray[np.bool_]:
        """See ByKey."""
        met_N = np.zeros(self.num_keys + 1, bool)
        met_N[self.keys_E[: np.searchsorted(self.time_E, before_us)]] = True
        met_B: npt.NDArray[np.bool_] = met_N[np.minimum(keys_B, self.num_keys)]
        return met_B


@dataclass(frozen=True)
class KeyIndex:
    """Searched for among the user's own keys."""

    sorted_E: Ints
    time_E: Ints

    @staticmethod
    def of(keys_E: Ints, time_E: Ints) -> "KeyIndex":
        order = np.argsort(keys_E, kind="stable")
        return KeyIndex(keys_E[order], time_E[order])

    def count_and_days(self, keys_B: Ints, now_us: int) -> tuple[Ints, npt.NDArray[np.float64]]:
        """See ByKey."""
        start, end = np.searchsorted(self.sorted_E, keys_B), np.searchsorted(self.sorted_E, keys_B, side="right")
        last_B = self.time_E[np.maximum(end - 1, 0)] if len(self.time_E) else np.zeros(len(keys_B), np.int64)
        return end - start, np.where(end > start, (now_us - last_B) / DAY_US, np.nan)

    def had_met(self, keys_B: Ints, before_us: int) -> npt.NDArray[np.bool_]:
        """See ByKey."""
        if len(self.sorted_E) == 0:
            return np.zeros(len(keys_B), bool)
        start = np.minimum(np.searchsorted(self.sorted_E, keys_B), len(self.sorted_E) - 1)
        met_B: npt.NDArray[np.bool_] = (self.sorted_E[start] == keys_B) & (self.time_E[start] < before_us)
        return met_B


@dataclass(frozen=True)
class OnlineFeatures:
    """Features out of what one run has published; safe to call from several threads."""

    meta: OnlineMeta
    shared: Mapping[str, Array]
    entities: Entities  # of items and of what describes users
    groups: UserGroups  # of one snapshot
    users: UserStore
    peers: PeerStats | None
    added: AddedItems

    @staticmethod
    def build(meta: OnlineMeta, shared: Mapping[str, Array], item_ids: pa.Array, users: UserStore, spare_rows: int = 0) -> "OnlineFeatures":
        """Items that are added have rows behind the catalogue's and the `spare_rows` of those that only a request describes."""
        added = AddedItems(len(item_ids) + 1 + spare_rows)
        return OnlineFeatures(meta, shared, entities_of(meta, shared, item_ids), _groups(meta, shared), users, PeerStats.build(meta, shared, users), added)

    @staticmethod
    def of(tables: OnlineTables, spare_rows: int = 0) -> "OnlineFeatures":
        """Out of tables in memory, or mapped into it."""
        users = MappedStore(tables.per_user, tables.user_ids, tables.meta.num_peer_levels)
        return OnlineFeatures.build(tables.meta, tables.shared, tables.item_ids, users, spare_rows)

    def published(self, item_row_B: Ints) -> Ints:
        """Rows in the published tables: 0, of which nothing is known, for what was added since."""
        published_B: Ints = np.where(item_row_B < len(self.shared["item_leaf"]), item_row_B, 0)
        return published_B

    def facts(self, item_row_B: Ints, stated: ItemFacts | None = None) -> ItemFacts:
        """What is known of each item beside its events; `stated` is read in the rows of unknown items (row 0)."""
        shared, row_B = self.shared, self.published(item_row_B)
        found = ItemFacts(
            leaf_B=shared["item_leaf"][row_B].astype(np.int64),
            root_B=shared["item_root"][row_B].astype(np.int64),
            brand_B=shared["item_brand"][row_B].astype(np.int64),
            cluster_B=shared["item_cluster"][row_B].astype(np.int64),
            log_price_B=shared["item_log_price"][row_B],
            first_seen_B=shared["item_first_seen"][row_B],
        )
        places = np.flatnonzero(item_row_B >= self.added.first_row)
        for name, values in self.added.facts.items() if len(places) else ():
            getattr(found, name)[places] = values[item_row_B[places] - self.added.first_row]
        if stated is None:
            return found
        return ItemFacts(**{f.name: np.where(item_row_B == 0, getattr(stated, f.name), getattr(found, f.name)) for f in fields(ItemFacts)})

    def put_item(self, row: int, facts: ItemFacts) -> None:
        """Set what is known of an item, added or published; `facts` has one row."""
        if row >= self.added.first_row:
            self.added.put(row, facts)
            return
        for name, array in (("leaf_B", "item_leaf"), ("root_B", "item_root"), ("brand_B", "item_brand"), ("cluster_B", "item_cluster")):
            self.shared[array][row] = getattr(facts, name)[0]
        self.shared["item_log_price"][row] = facts.log_price_B[0]
        if facts.first_seen_B[0] < self.shared["item_first_seen"][row] or self.shared["item_first_seen"][row] == UNKNOWN_TIME:
            self.shared["item_first_seen"][row] = facts.first_seen_B[0]

    def columns(
        self, user: UserRecord, item_row_B: Ints, now_us: int, stated: ItemFacts | None, own_A: npt.NDArray[np.int32], codes: tuple[int, ...] | None
    ) -> Columns:
        """Feature columns of one request: [B, ..] of what a candidate decides, [1, ..] of the user's.

        Args:
            user: events at or after `now_us` have no effect.
            own_A: the user's attribute codes, the record's or a request's.
            codes: the user's group codes, None without a group.
        """
        user, facts = user.before(now_us), self.facts(item_row_B, stated)
        met = self.facts(user.item_row_E)
        keys = (met.leaf_B, user.item_row_E, met.cluster_B, met.root_B, met.brand_B)
        by_leaf, by_item, by_cluster, by_root, by_brand = (events_by(keys_E, user.time_E) for keys_E in keys)
        stats, activity, mean_price = _activity(user, now_us)
        counts = self.shared["item_counts"][self.published(item_row_B)].astype(np.int64)
        leaf_events = self.shared["leaf_counts"][facts.leaf_B].astype(np.int64)
        snapshot_B = np.full(len(item_row_B), self.meta.snapshot_us)
        age = age_days(facts.first_seen_B, counts[:, 2], snapshot_B)
        history, days = self._history(user, now_us)
        total = len(user.time_E)
        same_leaf, since_leaf = by_leaf.count_and_days(facts.leaf_B, now_us)
        same_leaf = np.where(facts.leaf_B > 0, same_leaf, 0)
        same_item, since_item = by_item.count_and_days(item_row_B, now_us)
        same_root = np.where(facts.root_B > 0, by_root.count_and_days(facts.root_B, now_us)[0], 0)
        same_brand = np.where(facts.brand_B > 0, by_brand.count_and_days(facts.brand_B, now_us)[0], 0)
        gap = np.where((total > 0) & ~np.isnan(facts.log_price_B), facts.log_price_B - mean_price, 0.0)
        logs = np.log1p(np.stack([same_item, same_leaf, same_root, same_brand], 1))
        rest = np.stack([same_leaf / max(total, 1), recency(since_item), np.where(facts.leaf_B > 0, recency(since_leaf), 0.0), gap], 1)
        same_cluster, since_cluster = by_cluster.count_and_days(facts.cluster_B, now_us)
        match = np.stack([np.log1p(same_cluster), same_cluster / max(total, 1), recency(since_cluster)], 1)
        return {
            "user_row": np.array([user.user_row]),
            "item_row": item_row_B,
            "history": history,
            "history_days": days,
            "attributes": own_A[None],
            "user_stats": stats,
            "cross_stats": np.concatenate([logs, rest], 1).astype(np.float32),
            "match_stats": np.where(facts.cluster_B[:, None] > 0, match, 0.0).astype(np.float32),
            "item_stats": item_columns(counts, leaf_events, facts, age),
            "collaborative_stats": self._collaborative(user, item_row_B),
            "activity": activity,
            "peer_stats": self._peer_stats(user, item_row_B, facts, (by_item, by_cluster, by_leaf, by_root)),
        } | self._lent(own_A, codes)

    def _history(self, user: UserRecord, now_us: int) -> tuple[Ints, Floats]:
        """The last L items [1, L], most recent first, and how many days ago."""
        length = self.meta.history_length
        items, days = np.zeros((1, length), np.int64), np.zeros((1, length), np.float32)
        last = slice(max(len(user.time_E) - length, 0), None)
        recent = user.item_row_E[last][::-1]
        items[0, : len(recent)] = recent
        days[0, : len(recent)] = (now_us - user.time_E[last][::-1]) / DAY_US
        return items, days

    def _collaborative(self, user: UserRecord, item_row_B: Ints) -> Floats:
        """Summed weights [B, F] from the items that the user has met."""
        num_methods = len(self.meta.spec.collaborative_stats)
        out_BF = np.zeros((len(item_row_B), num_methods), np.float32)
        if num_methods == 0:
            return out_BF
        source_N = self.shared["collaborative_source"]
        met = np.zeros(int(source_N.max(initial=0)) + 1, np.float32)
        met[source_N[self.published(user.item_row_E)]] = 1.0
        met[0] = 0.0
        for method in range(num_methods):
            row_B = self.shared[f"collaborative_row_{method}"][self.published(item_row_B)]
            columns_BK = self.shared[f"collaborative_column_{method}"][row_B]
            out_BF[:, method] = (self.shared[f"collaborative_weight_{method}"][row_B] * met[columns_BK]).sum(axis=1)
        return out_BF

    def _peer_stats(self, user: UserRecord, item_row_B: Ints, facts: ItemFacts, by_target: tuple[ByKey, ...]) -> Floats:
        """PEER_STATS [B, ..]."""
        if self.peers is None:
            return np.zeros((len(item_row_B), 0), np.float32)
        columns = (item_row_B, facts.cluster_B, facts.leaf_B, facts.root_B)
        own_met = tuple(key.had_met(column_B, self.meta.snapshot_us) for key, column_B in zip(by_target, columns, strict=True))
        return self.peers.of(user, columns, own_met)

    def _lent(self, own_A: npt.NDArray[np.int32], codes: tuple[int, ...] | None) -> Columns:
        """What the user's group, or everyone, lends."""
        groups = self.groups
        place = groups.lend(0, codes)
        lent = np.array([max(place, 0)]) if len(groups.size_P) else np.zeros(0, np.int64)
        num_stages = len(groups.code_sizes)

        def of(values_G: Array) -> Array:
            return values_G[lent] if place >= 0 else np.zeros((1, *values_G.shape[1:]), values_G.dtype)

        return {
            "completed": np.where(own_A > 0, own_A, of(groups.attributes_PA)),
            "group_stats": of(groups.stats_PU),
            "user_codes": np.array([codes]) + 1 if codes is not None else np.zeros((1, num_stages), np.int64),
            "group_history": of(groups.sequence_PG),
            "group_weight": of(groups.weight_PG),
        }


def _activity(user: UserRecord, now_us: int) -> tuple[Floats, Floats, float]:
    """USER_STATS [1, U], raw purchases, clicks and active days [1, 3], and the mean log1p price (longtail.features.ActivityIndex)."""
    purchases, total = int(user.purchase_E.sum()), len(user.time_E)
    days_E = user.time_E // DAY_US
    days = len(np.unique(days_E[days_E < now_us // DAY_US]))  # a day counts once it is over
    recent = total - int(np.searchsorted(user.time_E, now_us - 28 * DAY_US))
    since = (now_us - int(user.time_E[-1])) / DAY_US if total else NEVER_DAYS
    priced = user.log_price_E[~np.isnan(user.log_price_E)]
    mean = float(priced.sum() / max(len(priced), 1))
    stats = np.array([[*np.log1p([purchases, total - purchases, days, recent, since]), mean]], np.float32)
    return stats, np.array([[purchases, total - purchases, days]], np.float32), mean


def _groups(meta: OnlineMeta, shared: Mapping[str, Array]) -> UserGroups:
    """The groups of the published snapshot, as those of the only one."""
    prefix_GS = shared["group_prefix"]
    group_of = {(0, tuple(int(code) for code in row if code >= 0)): place for place, row in enumerate(prefix_GS)}
    return UserGroups(
        as_of_T=np.array([] if meta.group_as_of_us is None else [meta.group_as_of_us], np.int64),
        codes_KS=np.zeros((0, prefix_GS.shape[1]), np.int32),
        place_TM=np.zeros((1, 0), np.int32),
        group_of=group_of,
        size_P=shared["group_size"],
        attributes_PA=shared["group_attributes"],
        stats_PU=shared["group_stats"],
        sequence_PG=shared["group_sequence"],
        weight_PG=shared["group_weight"],
        code_sizes=meta.spec.code_sizes,
        min_size=meta.min_group_size,
    )
