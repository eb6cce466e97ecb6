"""Collaborative-filtering scores of (user, item, time) rows: the rival that statistics of groups and peers are compared with.

Both methods are item-item weights: a user's score of an item is the sum of the weights to it from the distinct items that the user met strictly before the
row's time. EASE (Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data") learns them by ridge regression of every item on the others; PureSVD
(Cremonesi et al. 2010) takes them from the right factors of a truncated SVD.
Departs from both papers: only the items with most users have weights, and each target keeps only its largest ones, because a dense matrix of all items
does not fit. Departs from PureSVD: columns are scaled by 1 / sqrt(users of the item), since popularity has features of its own, and an item lends nothing
to itself, as in EASE.

Reads events before each as_of; the stage `collaborative` writes one row per (as_of, method, source item, target item).

Letters: M users + 1, N items + 1, C chosen items (in the index: source items + 1), W weights, T snapshots, P weighted (as_of, target) pairs + 1, K weights of
a target, F first meetings, B rows, U distinct users of some rows, S scores.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator
from scipy import sparse

from longtail import schema
from longtail.behaviour import Behaviour, first_meetings
from longtail.entities import Entities, Vocabulary
from longtail.settings import Settings
from longtail.snapshots import as_of_us

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]

Score = Literal["ease", "svd"]
COLLABORATIVE_STATS: tuple[Score, ...] = ("ease", "svd")

NEVER = np.iinfo(np.int64).max
NUM_CELLS = 1 << 20  # of the widest intermediate array: 8 MB, whatever number of rows is asked for


class CollaborativeSettings(Settings):
    """The `collaborative` stage; without `scores` it fits nothing."""

    scores: tuple[Score, ...] = Field((), description="ease | svd, the columns in their order; empty: off")
    ease_l2: float = Field(200.0, gt=0, description="ridge of EASE, in users")
    svd_dim: int = Field(64, ge=2, description="of the truncated SVD")
    num_items: int = Field(4096, ge=2, description="the items with most users; the others score 0. Memory is some 32 bytes * num_items ** 2 per snapshot")
    num_weights: int = Field(256, ge=1, description="weights kept per target item, largest by magnitude: they bound the artifact")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.scores)) < len(self.scores):
            raise ValueError(f"scores = {list(self.scores)}: name each once")
        return self


def most_met(met_MN: sparse.csr_matrix, num: int) -> Ints:
    """Item rows [C] of the `num` items with most users, most first and ties by row; items that nobody met are never among them."""
    users_N = met_MN.getnnz(axis=0)
    ranked = np.argsort(-users_N, kind="stable")[:num]
    rows: Ints = ranked[users_N[ranked] > 0]
    return rows


def ease(met_MC: sparse.csr_matrix, l2: float) -> Weights:
    """EASE's weights [C, C] from row to column item, diagonal 0 (Steck 2019, equation 8)."""
    gram = (met_MC.T @ met_MC).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += l2
    inverse = np.linalg.inv(gram)
    weights: Weights = -inverse / np.diag(inverse)[None]
    np.fill_diagonal(weights, 0)
    return weights


def pure_svd(met_MC: sparse.csr_matrix, dim: int, seed: int) -> Weights:
    """PureSVD's weights V V^T [C, C] of the incidence with tempered popularity, diagonal 0 (Cremonesi et al. 2010, section 3.2)."""
    from sklearn.utils.extmath import randomized_svd

    tempered = met_MC.astype(np.float64) @ sparse.diags(1 / np.sqrt(np.maximum(met_MC.getnnz(axis=0), 1)))
    _, values, right = randomized_svd(tempered, min(dim, *tempered.shape), random_state=seed)
    right = right[values > 1e-6 * values[0]]  # beyond the rank, right factors are arbitrary
    weights: Weights = right.T @ right
    np.fill_diagonal(weights, 0)
    return weights


def strongest(weights_CC: Weights, num: int) -> tuple[Ints, Ints, Floats]:
    """Source, target and weight [W] of the `num` weights of each column that are largest by magnitude, without zeros; by target, largest first."""
    by_target = np.ascontiguousarray(weights_CC.T, np.float32)
    source = np.argsort(-np.abs(by_target), axis=1, kind="stable")[:, :num]
    weight = np.take_along_axis(by_target, source, axis=1)
    target, place = np.nonzero(weight)
    return source[target, place], target, weight[target, place]


def fit(met_MN: sparse.csr_matrix, items: Vocabulary, as_of_us: int, settings: CollaborativeSettings, seed: int) -> pa.Table:
    """All methods' weights at one as_of (schema.COLLABORATIVE).

    Args:
        met_MN: who met what strictly before it, binary.
    """
    chosen = most_met(met_MN, settings.num_items)
    met_MC = met_MN[:, chosen]
    ids = items.values.take(pa.array(chosen - 1))
    tables = [schema.COLLABORATIVE.empty_table()]
    for name in settings.scores if len(chosen) else ():
        weights = ease(met_MC, settings.ease_l2) if name == "ease" else pure_svd(met_MC, settings.svd_dim, seed)
        source, target, weight = strongest(weights, settings.num_weights)
        times = pa.repeat(pa.scalar(as_of_us, pa.int64()), len(weight)).cast(schema.TIMESTAMP)
        columns = [times, pa.repeat(name, len(weight)), ids.take(pa.array(source)), ids.take(pa.array(target)), pa.array(weight)]
        tables.append(pa.Table.from_arrays(columns, schema=schema.COLLABORATIVE))
    return pa.concat_tables(tables)


@dataclass(frozen=True)
class TargetWeights:
    """One method's weights by target, padded to the target with most; row 0 is every item without any."""

    row_TN: npt.NDArray[np.int32]  # by snapshot and item row, the row of the arrays below
    column_PK: npt.NDArray[np.int32]  # of the source items, 0 where there are no more
    weight_PK: Floats

    @staticmethod
    def build(snapshot_W: Ints, target_W: Ints, column_W: Ints, weight_W: Floats, shape: tuple[int, int]) -> "TargetWeights":
        """From one row per weight; `shape` is (T, N)."""
        key_W = snapshot_W * shape[1] + target_W
        order = np.argsort(key_W, kind="stable")
        keys, starts, counts = np.unique(key_W[order], return_index=True, return_counts=True)
        row_TN = np.zeros(shape, np.int32)
        row_TN.reshape(-1)[keys] = np.arange(1, len(keys) + 1)
        row, place = np.repeat(np.arange(1, len(keys) + 1), counts), np.arange(len(order)) - np.repeat(starts, counts)
        padded = (len(keys) + 1, int(counts.max(initial=1)))
        column_PK, weight_PK = np.zeros(padded, np.int32), np.zeros(padded, np.float32)
        column_PK[row, place], weight_PK[row, place] = column_W[order], weight_W[order]
        return TargetWeights(row_TN, column_PK, weight_PK)


@dataclass(frozen=True)
class CollaborativeIndex:
    """Weights at each snapshot and first meetings, which together score rows; built once, then a question costs what it asks for."""

    as_of_T: Ints
    weights_S: tuple[TargetWeights, ...]  # in the order of settings.scores
    column_N: npt.NDArray[np.int32]  # of each item row as a source, 0 where it is none
    num_columns: int  # source items + 1
    starts_M: Ints  # first of each user's meetings, and the end
    column_F: npt.NDArray[np.int32]  # of the source item met, by user
    time_F: Ints  # when the user first met it

    @staticmethod
    def build(table: pa.Table, entities: Entities, behaviour: Behaviour, settings: CollaborativeSettings) -> "CollaborativeIndex":
        """From the stage's table (schema.COLLABORATIVE) and the run's events in time order."""
        num_items = len(entities.items) + 1
        source, target = (entities.items.encode(table.column(name)).astype(np.int64) for name in ("source_item_id", "target_item_id"))
        assert min(source.min(initial=1), target.min(initial=1)) > 0, "the table is of other items"
        as_of_T, snapshot = np.unique(as_of_us(table), return_inverse=True)
        weight = table.column("weight").to_numpy()
        column_N = np.zeros(num_items, np.int64)
        sources = np.unique(source)
        column_N[sources] = np.arange(1, len(sources) + 1)

        def of(name: Score) -> TargetWeights:
            mine = pc.equal(table.column("method"), name).to_numpy()
            return TargetWeights.build(snapshot[mine], target[mine], column_N[source[mine]], weight[mine], (len(as_of_T), num_items))

        column_E = column_N[behaviour.item_row_E]
        event_F, _ = first_meetings(behaviour.user_row_E, column_E, len(sources) + 1)
        starts_M = np.searchsorted(behaviour.user_row_E[event_F], np.arange(len(entities.users) + 2))
        column_F, time_F = column_E[event_F].astype(np.int32), behaviour.time_E[event_F]
        weights_S = tuple(of(name) for name in settings.scores)
        return CollaborativeIndex(as_of_T, weights_S, column_N.astype(np.int32), len(sources) + 1, starts_M, column_F, time_F)

    def scores(self, user_B: npt.NDArray[np.integer], item_B: npt.NDArray[np.integer], time_B: Ints) -> Floats:
        """Scores [B, S]: summed weights from the items that each user met strictly before the time, at the latest as_of not after it.

        Zeros before the first as_of, for unknown users and items (row 0), and for items without weights.
        """
        out_BS = np.zeros((len(user_B), len(self.weights_S)), np.float32)
        snapshot_B = np.searchsorted(self.as_of_T, time_B, side="right") - 1
        rows = np.flatnonzero((snapshot_B >= 0) & (self.starts_M[user_B + 1] > self.starts_M[user_B]))
        rows = rows[np.argsort(user_B[rows], kind="stable")]
        step = max(NUM_CELLS // max(self.num_columns, *(weights.weight_PK.shape[1] for weights in self.weights_S), 1), 1)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            first_UC, owner_B = self._first(user_B[some])
            offset_B = owner_B * self.num_columns
            for place, weights in enumerate(self.weights_S):
                row_B = weights.row_TN[snapshot_B[some], item_B[some]]
                met_BK = first_UC.take(weights.column_PK[row_B] + offset_B[:, None]) < time_B[some, None]
                out_BS[some, place] = (weights.weight_PK[row_B] * met_BK).sum(axis=1)
        return out_BS

    def _first(self, user_B: npt.NDArray[np.integer]) -> tuple[Ints, Ints]:
        """When each distinct user first met each column [U, C], NEVER where not at all, and each row's place among them."""
        users_U, owner_B = np.unique(user_B, return_inverse=True)
        begin_U, length_U = self.starts_M[users_U], self.starts_M[users_U + 1] - self.starts_M[users_U]
        meeting = np.arange(length_U.sum()) + np.repeat(begin_U - np.cumsum(length_U) + length_U, length_U)
        first_UC = np.full((len(users_U), self.num_columns), NEVER)
        first_UC[np.repeat(np.arange(len(users_U)), length_U), self.column_F[meeting]] = self.time_F[meeting]
        return first_UC, owner_B
