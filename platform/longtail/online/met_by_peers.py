"""What a user's peers had met by the published snapshot, as a request asks for it (longtail.peers.PeerIndex.lifts asks for many users at many times).

Peers and what they met stand still until the next release, so that the sums are kept for the users who asked last: one who looks around asks many times.

Letters: B candidates, C columns that peers had met, V levels of peers, L lenders.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from longtail.online.records import Floats, Ints, UserRecord, UserStore
from longtail.online.tables import Array, OnlineMeta
from longtail.peers import PEER_STATS, TARGETS

MOST_KEPT = 1024  # users; about 100 kB each where 50 peers have met 10,000 items
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MetByPeers:
    """Of one user: the columns of each target that any peer had met, ascending, and the summed weights of those who had, by level; supports by level."""

    column_C: tuple[npt.NDArray[np.int32], ...]
    weight_VC: tuple[Doubles, ...]
    support_V: Doubles

    @staticmethod
    def of(user: UserRecord, store: UserStore) -> "MetByPeers":
        """Summed up from what each of the user's peers had met."""
        lenders = np.unique(np.concatenate(user.peer_row_VP))
        lenders = lenders[lenders > 0]
        met = store.met(lenders)
        weight_VL = np.stack([_by_lender(lenders, rows, weights) for rows, weights in zip(user.peer_row_VP, user.peer_weight_VP, strict=True)])
        columns: list[npt.NDArray[np.int32]] = []
        sums: list[Doubles] = []
        for column_T, owner_T in zip(met.column_T, met.owner_T, strict=True):
            column_C, place_T = np.unique(column_T, return_inverse=True)
            columns.append(column_C)
            sums.append(np.stack([np.bincount(place_T, weight_L[owner_T], len(column_C)) for weight_L in weight_VL]).astype(np.float64))
        return MetByPeers(tuple(columns), tuple(sums), weight_VL.sum(axis=1))

    def weights(self, target: int, column_B: Ints) -> Doubles:
        """Summed weights [V, B] of the peers who had met each column."""
        column_C, weight_VC = self.column_C[target], self.weight_VC[target]
        if len(column_C) == 0:
            return np.zeros((len(weight_VC), len(column_B)))
        place_B = np.minimum(np.searchsorted(column_C, column_B), len(column_C) - 1)
        found: Doubles = weight_VC[:, place_B] * (column_C[place_B] == column_B)
        return found


@dataclass(frozen=True)
class PeerStats:
    """Answers for one release; safe to call from several threads."""

    meta: OnlineMeta
    everyone: tuple[Array, ...]  # by target: how many users had met each column
    store: UserStore
    _kept: OrderedDict[int, MetByPeers] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def build(meta: OnlineMeta, shared: Mapping[str, Array], store: UserStore) -> "PeerStats | None":
        """None where the run has no peers."""
        return PeerStats(meta, tuple(shared[f"everyone_{target}"] for target in TARGETS), store) if meta.spec.peer_stats else None

    def of(self, user: UserRecord, columns: tuple[Ints, ...], own_met: tuple[npt.NDArray[np.bool_], ...]) -> Floats:
        """PEER_STATS [B, ..]; zeros for a user without peers.

        Args:
            columns: each candidate's column for each of TARGETS, 0 where it is unknown.
            own_met: whether the user had met it by the snapshot.
        """
        out = np.zeros((len(columns[0]), len(PEER_STATS)), np.float32)
        if not user.peer_row_VP or user.peer_row_VP[0][0] == 0:
            return out
        met = self._met(user)
        active = bool(len(user.time_E)) and user.time_E[0] < self.meta.snapshot_us
        others, prior = max(self.meta.num_active - active, 1), self.meta.prior_users
        for place, (column_B, own_B, everyone_N) in enumerate(zip(columns, own_met, self.everyone, strict=True)):
            known_B = column_B < len(everyone_N)  # what came after the snapshot has been met by nobody
            number_B = np.where(known_B, everyone_N[np.where(known_B, column_B, 0)], 0)
            everyone_B = (np.maximum(number_B - own_B, 0) + 0.5) / (others + 1)
            share_B = everyone_B
            for met_B, support in zip(met.weights(place, column_B), met.support_V, strict=True):
                share_B = (met_B + prior * share_B) / (support + prior)
            out[:, place] = np.where(column_B > 0, np.log(share_B / everyone_B), 0)
        out[:, -1] = np.log1p(met.support_V[-1])
        return out

    def _met(self, user: UserRecord) -> MetByPeers:
        with self._lock:
            found = self._kept.get(user.user_row)
            if found is not None:
                self._kept.move_to_end(user.user_row)
                return found
        found = MetByPeers.of(user, self.store)
        with self._lock:
            self._kept[user.user_row] = found
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return found


def _by_lender(lenders_L: Ints, rows_P: Ints, weights_P: Floats) -> Doubles:
    """Each lender's weight [L] at one level; 0 for one who is no peer there."""
    there = rows_P > 0
    weight_L = np.zeros(len(lenders_L))
    weight_L[np.searchsorted(lenders_L, rows_P[there])] = weights_P[there]
    return weight_L
