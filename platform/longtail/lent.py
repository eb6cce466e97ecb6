"""Lent features of (user, item, time) rows: what a user's groups and peers lend (ChoirRec, group-aware hierarchical representation; peers are ours).

For training samples; a request has the same numbers from longtail.online.features.
Letters: B rows, G group history length, A attributes, U user statistics, S code stages.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longtail.entities import Entities
from longtail.features import Columns, Floats, Ints, Rows, item_facts, snapshot_us
from longtail.groups import GroupsSettings
from longtail.peers import PeerIndex
from longtail.samples import SamplesSettings
from longtail.snapshots import as_of_us


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
        as_of = as_of_us(groups)
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
        group_of = {(number[int(time)], tuple(row["prefix"])): i for i, (time, row) in enumerate(zip(as_of, rows, strict=True))}
        code_times = as_of_us(codes)
        place_TM = np.full((len(snapshots), len(entities.users) + 1), -1, np.int32)
        place_TM[np.searchsorted(snapshots, code_times), user_rows] = np.arange(len(codes))
        return UserGroups(
            as_of_T=snapshots,
            codes_KS=codes_KS,
            place_TM=place_TM,
            group_of=group_of,
            size_P=groups.column("size").to_numpy().astype(np.int64),
            attributes_PA=inherited(_matrix(groups, "attributes"), group_of),
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


def inherited(attributes_PA: npt.NDArray[np.int32], group_of: Mapping[tuple[int, tuple[int, ...]], int]) -> npt.NDArray[np.int32]:
    """Majorities [P, A] with that of the parent prefix, or of its parent, where too few members of a group have a value: people without one lie together.

    Departs from ChoirRec (attribute completion), which does not name such a case.
    """
    found_PA = attributes_PA.copy()
    for (snapshot, prefix), place in sorted(group_of.items(), key=lambda item: len(item[0][1])):
        if prefix:
            parent_A = found_PA[group_of[snapshot, prefix[:-1]]]
            found_PA[place] = np.where(found_PA[place] > 0, found_PA[place], parent_A)
    return found_PA


@dataclass(frozen=True)
class PeerLifts:
    """What peers lend alone: the dear part, which a change of groups leaves as it is."""

    entities: Entities
    cluster_N: Ints  # of items by their semantic codes, from 1; 0 unknown
    peers: PeerIndex
    settings: SamplesSettings
    start_us: int

    def of(self, rows: Rows) -> Floats:
        """PEER_STATS [B, P]: what each user's peers had met by the snapshot, beside everybody."""
        facts = item_facts(rows.item_row_B, self.entities, self.cluster_N)
        columns_BC = np.stack([rows.item_row_B, facts.cluster_B, facts.leaf_B, facts.root_B], axis=1)
        return self.peers.lifts(rows.user_row_B, columns_BC, snapshot_us(rows.time_B, self.start_us, self.settings))


@dataclass(frozen=True)
class LentState:
    """What lent features are computed from; built once per process from the artifacts of one run."""

    entities: Entities
    groups: UserGroups
    lifts: PeerLifts | None

    def columns(self, rows: Rows, own_BA: npt.NDArray[np.int32]) -> Columns:
        """What is lent to each row's user; unknown users get what everyone lends. `own_BA` are own attribute codes, which a group's never replace."""
        group_place, codes_BS = self._memberships(rows.user_row_B, rows.time_B)
        lent = group_place >= 0
        place = np.maximum(group_place, 0)
        group_attributes = np.where(lent[:, None], self.groups.attributes_PA[place], 0)
        return {
            "completed": np.where(own_BA > 0, own_BA, group_attributes),
            "group_stats": np.where(lent[:, None], self.groups.stats_PU[place], np.float32(0)),
            "user_codes": codes_BS,
            "group_history": np.where(lent[:, None], self.groups.sequence_PG[place], 0),
            "group_weight": np.where(lent[:, None], self.groups.weight_PG[place], np.float32(0)),
            "peer_stats": self.lifts.of(rows) if self.lifts is not None else np.zeros((len(rows), 0), np.float32),
        }

    def _memberships(self, user_B: Ints, time_B: Ints) -> tuple[Ints, npt.NDArray[np.int32]]:
        """Row of the lending group [B], and the user's codes plus one [B, S]; looked up once per distinct (user, snapshot)."""
        pairs, inverse = np.unique(np.stack([self.groups.snapshot(time_B), user_B]), axis=1, return_inverse=True)
        place = np.empty(pairs.shape[1], np.int64)
        codes_PS = np.zeros((pairs.shape[1], len(self.groups.code_sizes)), np.int32)
        for number, (snapshot, user) in enumerate(pairs.T):
            codes = self.groups.codes_of(int(snapshot), int(user))
            place[number] = self.groups.lend(int(snapshot), codes)
            if codes is not None:
                codes_PS[number] = np.array(codes) + 1
        inverse = inverse.reshape(-1)
        return place[inverse], codes_PS[inverse]


def _matrix(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """A list column whose lists all have one length, as [rows, length]."""
    flat = table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix: npt.NDArray[Any] = flat.reshape(len(table), len(flat) // max(len(table), 1))
    return matrix
