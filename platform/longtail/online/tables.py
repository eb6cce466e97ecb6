"""The published features of one run as of the end of its logs: what `pipelines.publish` writes and every store holds.

Arrays of everyone and everything (SHARED) are small and lie in every replica; arrays of users (PER_USER) are looked up, memory-mapped (longtail.online.mapped)
or in Redis (longtail.online.redis_store).

Letters: M users + 1, N items + 1, E events, F first meetings, C columns of a target, G groups, S code stages, A attributes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel

from longtail.collaborative import CollaborativeIndex
from longtail.entities import AttributeCoding, Entities, Vocabulary
from longtail.feature_state import FeatureState
from longtail.features import snapshot_us
from longtail.hashing import digest
from longtail.lent import UserGroups
from longtail.peers import TARGETS, PeerIndex
from longtail.samples import FeatureSpec
from longtail.times import to_us

Array = npt.NDArray[Any]


class OnlineMeta(BaseModel):
    """What the arrays are of; stands beside them as JSON."""

    format: int = 1
    spec: FeatureSpec
    end_us: int  # of the logs: events before it are in the arrays
    snapshot_us: int  # of what is known about items
    since_us: int  # requests of an earlier time would see what came later
    group_as_of_us: int | None  # None: no snapshot of groups by then
    kinds: tuple[str, ...]  # of the events that histories and counts are made of, the strongest last
    history_length: int
    cluster_depth: int
    min_group_size: int
    prior_users: float
    num_peer_levels: int
    num_active: int  # users with an event before the snapshot
    num_users: int
    users_digest: str  # of the ids by row
    items_digest: str
    attributes: list[dict[str, Any]]  # name, and values or edges
    categories: list[list[str]]  # by level
    brands: list[str]
    example_users: list[str]

    def codings(self) -> tuple[AttributeCoding, ...]:
        """How attributes become codes."""
        return tuple(
            AttributeCoding(
                one["name"],
                Vocabulary(pa.array(one["values"], pa.string())) if one["values"] is not None else None,
                np.array(one["edges"], np.float64) if one["edges"] is not None else None,
            )
            for one in self.attributes
        )


@dataclass(frozen=True)
class OnlineTables:
    """Everything that is published."""

    meta: OnlineMeta
    shared: Mapping[str, Array]
    per_user: Mapping[str, Array]
    user_ids: pa.Array  # by row, from 1
    item_ids: pa.Array


def ids_digest(ids: pa.Array) -> str:
    """Digest of ids by row."""
    return digest(ids.to_pylist())


def online_tables(state: FeatureState, end: datetime) -> OnlineTables:
    """The features of a run as they are known at the end of its logs."""
    own, entities, end_us = state.own, state.entities, to_us(end)
    snapshot = int(snapshot_us(np.array([end_us]), own.start_us, own.settings)[0])
    groups, lifts = state.lent.groups, state.lent.lifts
    at_group = int(groups.snapshot(np.array([end_us]))[0])
    since = [snapshot, *([int(groups.as_of_T[at_group])] if at_group >= 0 else [])]
    shared = _items(state, snapshot) | _groups(groups, at_group)
    per_user = _events(state) | {"attributes": entities.attribute_codes_MA, "codes": _codes(groups, at_group)}
    num_active = 0
    if own.collaborative is not None:
        at = int(np.searchsorted(own.collaborative.as_of_T, end_us, side="right")) - 1
        since += [int(own.collaborative.as_of_T[at])] if at >= 0 else []
        shared |= _collaborative(own.collaborative, at)
    if lifts is not None:
        peers = lifts.peers
        num_active = int(np.searchsorted(peers.firsts.since_sorted_M, snapshot))
        shared |= _met_by_everyone(peers, snapshot)
        per_user |= _met(peers, snapshot) | _peers(peers, snapshot, len(entities.users) + 1)
    meta = OnlineMeta(
        spec=state.spec,
        end_us=end_us,
        snapshot_us=snapshot,
        since_us=max(since),
        group_as_of_us=int(groups.as_of_T[at_group]) if at_group >= 0 else None,
        kinds=own.behaviour.kinds,
        history_length=own.settings.history_length,
        cluster_depth=own.settings.cluster_depth,
        min_group_size=groups.min_size,
        prior_users=lifts.peers.prior_users if lifts is not None else 0.0,
        num_peer_levels=len(lifts.peers.peers_TV[0]) if lifts is not None and lifts.peers.peers_TV else 0,
        num_active=num_active,
        num_users=len(entities.users),
        users_digest=ids_digest(entities.users.values),
        items_digest=ids_digest(entities.items.values),
        attributes=[_coding(coding) for coding in entities.attributes],
        categories=[level.values.to_pylist() for level in entities.categories],
        brands=entities.brands.values.to_pylist(),
        example_users=entities.users.values[:5].to_pylist(),
    )
    return OnlineTables(meta, shared, per_user, entities.users.values, entities.items.values)


def entities_of(meta: OnlineMeta, shared: Mapping[str, Array], item_ids: pa.Array) -> Entities:
    """The run's numbering, of items by row and of users not at all: those are looked up in a store."""
    return Entities(
        users=Vocabulary(pa.array([], pa.string())),
        items=Vocabulary(item_ids),
        attributes=meta.codings(),
        attribute_codes_MA=np.zeros((1, len(meta.attributes)), np.int32),
        categories=tuple(Vocabulary(pa.array(level, pa.string())) for level in meta.categories),
        category_codes_NC=np.zeros((1, len(meta.categories)), np.int32),
        leaf_codes_N=shared["item_leaf"],
        brands=Vocabulary(pa.array(meta.brands, pa.string())),
        brand_codes_N=shared["item_brand"],
        log_price_N=shared["item_log_price"],
        first_seen_N=shared["item_first_seen"],
    )


def _coding(coding: AttributeCoding) -> dict[str, Any]:
    return {
        "name": coding.name,
        "values": coding.vocabulary.values.to_pylist() if coding.vocabulary is not None else None,
        "edges": coding.edges.tolist() if coding.edges is not None else None,
    }


def _items(state: FeatureState, snapshot: int) -> dict[str, Array]:
    own, entities = state.own, state.entities
    num_items, num_leaves = len(entities.items) + 1, sum(len(level) for level in entities.categories) + 1
    items, leaves = np.arange(num_items), np.arange(num_leaves)
    counts, _ = own.item_counts.of(items, np.zeros_like(items), np.full(num_items, snapshot))
    _, by_leaf = own.item_counts.of(np.zeros_like(leaves), leaves, np.full(num_leaves, snapshot))
    return {
        "item_leaf": entities.leaf_codes_N.astype(np.int32),
        "item_root": entities.root_codes.astype(np.int32),
        "item_brand": entities.brand_codes_N.astype(np.int32),
        "item_cluster": state.matches.cluster_N.astype(np.int32),
        "item_log_price": entities.log_price_N,
        "item_first_seen": entities.first_seen_N,
        "item_counts": counts.astype(np.int32),
        "leaf_counts": by_leaf.astype(np.int32),
    }


def _events(state: FeatureState) -> dict[str, Array]:
    """Every user's events one after another, in time order."""
    behaviour, order = state.own.behaviour, state.own.activity.by_user.order_E
    users = behaviour.user_row_E[order]
    return {
        "event_starts": np.searchsorted(users, np.arange(len(state.entities.users) + 2)),
        "event_item": behaviour.item_row_E[order].astype(np.int32),
        "event_time": behaviour.time_E[order],
        "event_purchase": behaviour.is_strongest[order],
        "event_log_price": behaviour.log_price_E[order],
    }


def _groups(groups: UserGroups, at: int) -> dict[str, Array]:
    """Prefixes [G, S] of the snapshot's groups, -1 beyond their depth, and what each lends."""
    mine = [(prefix, place) for (snapshot, prefix), place in groups.group_of.items() if snapshot == at]
    prefix_GS = np.full((len(mine), len(groups.code_sizes)), -1, np.int32)
    for row, (prefix, _) in enumerate(mine):
        prefix_GS[row, : len(prefix)] = prefix
    places = np.array([place for _, place in mine], np.int64)
    return {
        "group_prefix": prefix_GS,
        "group_size": groups.size_P[places],
        "group_attributes": groups.attributes_PA[places],
        "group_stats": groups.stats_PU[places],
        "group_sequence": groups.sequence_PG[places],
        "group_weight": groups.weight_PG[places],
    }


def _codes(groups: UserGroups, at: int) -> Array:
    """Codes [M, S], -1 for a user without any."""
    num_users, num_stages = groups.place_TM.shape[1], len(groups.code_sizes)
    codes_MS = np.full((num_users, num_stages), -1, np.int32)
    if at >= 0:
        placed = np.flatnonzero(groups.place_TM[at] >= 0)
        codes_MS[placed] = groups.codes_KS[groups.place_TM[at, placed]]
    return codes_MS


def _collaborative(index: CollaborativeIndex, at: int) -> dict[str, Array]:
    """Each method's weights at the snapshot."""
    found: dict[str, Array] = {"collaborative_source": index.column_N}
    for method, weights in enumerate(index.weights_S):
        row_N = weights.row_TN[at] if at >= 0 else np.zeros_like(weights.row_TN[0])
        found |= {
            f"collaborative_row_{method}": row_N,
            f"collaborative_column_{method}": weights.column_PK,
            f"collaborative_weight_{method}": weights.weight_PK,
        }
    return found


def _met_by_everyone(peers: PeerIndex, snapshot: int) -> dict[str, Array]:
    """How many users had met each column of each target."""
    found = {}
    for target, meetings in zip(TARGETS, peers.firsts.meetings_C, strict=True):
        columns = np.arange(meetings.num_columns)
        found[f"everyone_{target}"] = meetings.by_column.count(columns, np.full(len(columns), snapshot)).astype(np.int32)
    return found


def _met(peers: PeerIndex, snapshot: int) -> dict[str, Array]:
    """Columns that each user had met, one user after another."""
    found = {}
    for target, meetings in zip(TARGETS, peers.firsts.meetings_C, strict=True):
        before = meetings.time_F < snapshot
        found[f"met_{target}"] = meetings.column_F[before].astype(np.int32)
        found[f"met_starts_{target}"] = np.concatenate([[0], np.cumsum(before)])[meetings.starts_M]
    return found


def _peers(peers: PeerIndex, snapshot: int, num_users: int) -> dict[str, Array]:
    """Each level's peers and their weights; nobody before the first snapshot of peers."""
    at = int(np.searchsorted(peers.as_of_T, snapshot, side="right")) - 1
    found: dict[str, Array] = {}
    for level in range(len(peers.peers_TV[0]) if peers.peers_TV else 0):
        of = peers.peers_TV[max(at, 0)][level]
        there = at >= 0
        found[f"peer_row_{level}"] = (of.row_MP if there else np.zeros_like(of.row_MP)).astype(np.int32)
        found[f"peer_weight_{level}"] = of.weight_MP if there else np.zeros_like(of.weight_MP)
    return found
