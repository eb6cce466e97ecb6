"""Peers: whom a user borrows statistics of the target item from (ours; it generalises the paper's group to any neighbourhood of users).

ChoirRec's groups lend attributes, a sequence and an ID, none of which says whether the group met the very item that is being ranked. Peers say that: the
share of the user's peers who had met the item, its cluster, its leaf and its root category, as a log lift over everybody's share. Shares are shrunk along
the levels, from the widest to the nearest peers, by pseudo-users at the wider level's share (empirical Bayes with one prior strength); the user is never
one of their own peers.

Reads user vectors, item vectors and events before each as_of; the stage `peers` writes one row per (user, as_of).

Letters: M users + 1, N items + 1, C targets (items, clusters, categories), V levels of peers, P peers of a level, B rows, D dimensions, E events.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator
from scipy import sparse

from longtail.behaviour import Behaviour
from longtail.entities import Entities
from longtail.settings import Settings

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

TARGETS = ("item", "cluster", "leaf", "root")
PEER_STATS = (*(f"peer_{target}_lift" for target in TARGETS), "peer_support")

NUM_RECENT = 4

Space = Literal["profile", "titles", "behaviour"]
NumPeers = Annotated[int, Field(ge=1)]


class PeersSettings(Settings):
    """The `peers` stage; `form = "none"` (the paper's shape) makes no peers and every statistic zero."""

    form: Literal["none", "neighbours", "groups", "random"] = Field(
        "none", description="neighbours: the nearest users | groups: those of the same code prefixes | random: as many drawn anew, the control"
    )
    spaces: tuple[Space, ...] = Field(("titles", "behaviour"), min_length=1, description="where near is near; several are put side by side with equal weight")
    num_peers: tuple[NumPeers, ...] = Field((200,), min_length=1, description="neighbours by level, widest first; each level is shrunk to the one before")
    cluster_depth: int = Field(2, ge=1, description="items are of one cluster where so many of their semantic codes are the same")
    prior_users: float = Field(10.0, gt=0, description="pseudo-users at the wider level's share")
    behaviour_dim: int = Field(64, ge=2, description="of the truncated SVD of who met what")

    @model_validator(mode="after")
    def _narrowing(self) -> Self:
        if list(self.num_peers) != sorted(set(self.num_peers), reverse=True):
            raise ValueError(f"num_peers = {list(self.num_peers)} must narrow from level to level, such as [400, 100]")
        if len(set(self.spaces)) < len(self.spaces):
            raise ValueError(f"spaces = {list(self.spaces)}: name each once")
        return self


def unit(vectors_ND: npt.NDArray[np.floating]) -> Floats:
    """Rows of length one; zero rows stay zero."""
    norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    result: Floats = (vectors_ND / np.maximum(norms, 1e-12)).astype(np.float32)
    return result


def incidence(user_row_E: Ints, column_E: Ints, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Who met what, as a binary [M, C] matrix."""
    keys = np.unique(user_row_E * shape[1] + column_E)
    rows, columns = keys // shape[1], keys % shape[1]
    starts = np.searchsorted(rows, np.arange(shape[0] + 1))
    return sparse.csr_matrix((np.ones(len(keys), np.float32), columns, starts), shape=shape)


def _idf(met_MN: sparse.csr_matrix) -> npt.NDArray[np.float64]:
    """Inverse user frequency [N] of the items: what everybody met says little."""
    users = max(int((met_MN.getnnz(axis=1) > 0).sum()), 1)
    idf_N: npt.NDArray[np.float64] = np.log((1 + users) / (1 + met_MN.getnnz(axis=0)))
    return idf_N


def title_vectors(met_MN: sparse.csr_matrix, item_vectors_ND: Floats) -> Floats:
    """Unit vectors [M, D] of users: the mean of their items' vectors, weighted by idf."""
    centred = item_vectors_ND - item_vectors_ND[1:].mean(axis=0, keepdims=True)
    return unit(met_MN @ (_idf(met_MN)[:, None] * centred))


def behaviour_vectors(met_MN: sparse.csr_matrix, dim: int, seed: int) -> Floats:
    """Unit vectors [M, dim] of users: the left factors of a truncated SVD of the idf-weighted incidence."""
    from sklearn.utils.extmath import randomized_svd

    weighted = sparse.diags(1 / np.sqrt(np.maximum(met_MN.getnnz(axis=1), 1))) @ met_MN @ sparse.diags(_idf(met_MN))
    size = min(dim, min(weighted.shape) - 1)
    left, values, _ = randomized_svd(weighted.astype(np.float64), size, random_state=seed)
    return unit(left * np.sqrt(values))


def nearest(vectors_MD: Floats, known_M: npt.NDArray[np.bool_], num: int) -> Ints:
    """User rows [M, num] of the nearest known users by inner product, nearest first, never oneself; 0 where there are fewer, and for unknown users."""
    import faiss

    rows = np.flatnonzero(known_M)
    found = np.zeros((len(known_M), num), np.int64)
    if len(rows) < 2:
        return found
    index = faiss.IndexFlatIP(vectors_MD.shape[1])
    index.add(vectors_MD[rows])
    _, near = index.search(vectors_MD[rows], min(num + 1, len(rows)))
    others = near != np.arange(len(rows))[:, None]
    # Oneself is nearly always among the nearest; where copies crowd it out, the last of them goes instead.
    others[others.all(axis=1), -1] = False
    kept = rows[near[others].reshape(len(rows), -1)]
    found[rows[:, None], np.arange(kept.shape[1])[None]] = kept
    return found


def drawn(known_M: npt.NDArray[np.bool_], num: int, seed: int) -> Ints:
    """As `nearest`, with peers drawn uniformly: the control of equal size."""
    rng = np.random.default_rng([seed, 0x9EE5])
    rows = np.flatnonzero(known_M)
    found = np.zeros((len(known_M), num), np.int64)
    size = min(num, max(len(rows) - 1, 0))
    for place, row in enumerate(rows):
        picks = rng.choice(len(rows) - 1, size, replace=False)
        found[row, :size] = rows[picks + (picks >= place)]
    return found


def same_prefix(codes_MS: npt.NDArray[np.integer], known_M: npt.NDArray[np.bool_], depth: int, num: int, seed: int) -> Ints:
    """As `nearest`, with the members of the same code prefix, at most `num` of them in seeded random order."""
    rng = np.random.default_rng([seed, 0x6B0F, depth])
    rows = rng.permutation(np.flatnonzero(known_M))
    found = np.zeros((len(known_M), num), np.int64)
    _, group = np.unique(codes_MS[rows, :depth], axis=0, return_inverse=True)
    group = group.reshape(-1)
    for number in range(int(group.max(initial=-1)) + 1):
        members = rows[group == number]
        for place, row in enumerate(members):
            others = np.roll(members, -place - 1)[: min(len(members) - 1, num)]
            found[row, : len(others)] = others
    return found


def peer_levels(
    known_M: npt.NDArray[np.bool_], vectors: Sequence[Floats], codes_MS: npt.NDArray[np.integer], settings: PeersSettings, seed: int
) -> tuple[Ints, ...]:
    """Peers by level, widest first, each [M, P] user rows with 0 for nobody.

    Args:
        known_M: who has met anything.
        vectors: unit vectors [M, D] in each of settings.spaces; read for "neighbours".
        codes_MS: group codes, -1 where a user has none; read for "groups", whose last level is the whole tuple.
    """
    widths = settings.num_peers
    if settings.form == "random":
        return tuple(drawn(known_M, num, seed) for num in widths)
    if settings.form == "groups":
        first = codes_MS.shape[1] - len(widths) + 1
        grouped_M = known_M & (codes_MS[:, 0] >= 0)
        return tuple(same_prefix(codes_MS, grouped_M, first + place, num, seed) for place, num in enumerate(widths))
    near = nearest(unit(np.concatenate(vectors, axis=1)), known_M, widths[0])
    return tuple(near[:, :num] for num in widths)


@dataclass(frozen=True)
class PeerIndex:
    """Peers at each snapshot and first meetings, which together answer what a user's peers had met by a time.

    T snapshots; level v of snapshot t has peers_TV[t][v], [M, P] user rows with 0 for nobody.
    """

    as_of_T: Ints
    peers_TV: tuple[tuple[Ints, ...], ...]
    column_NC: Ints  # by item row, its column for each of TARGETS (0 unknown)
    sizes: tuple[int, ...]  # columns of each target, 0 included
    user_E: Ints
    item_E: Ints
    time_E: Ints  # ascending
    prior_users: float
    recent: dict[int, "_Met"] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def build(table: pa.Table, entities: Entities, behaviour: Behaviour, cluster_N: Ints, settings: PeersSettings) -> "PeerIndex":
        """From the stage's table (schema.PEERS), the run's events in time order and items' clusters by item row."""
        num_levels = len(settings.num_peers)
        user_row = entities.users.encode(table.column("user_id"))
        time = pc.cast(table.column("as_of"), pa.int64()).to_numpy()
        as_of = np.unique(time)
        by_level = [[np.zeros((len(entities.users) + 1, width), np.int64) for width in settings.num_peers] for _ in as_of]
        levels = table.column("peers").combine_chunks()
        for level in range(num_levels):
            lists = pc.list_element(levels, level)
            lengths = pc.list_value_length(lists).to_numpy()
            peers = entities.users.encode(lists.flatten())
            column = np.arange(len(peers)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            owner, at = np.repeat(user_row, lengths), np.repeat(np.searchsorted(as_of, time), lengths)
            for place in range(len(as_of)):
                mine = at == place
                by_level[place][level][owner[mine], column[mine]] = peers[mine]
        column_NC = np.stack([np.arange(len(cluster_N)), cluster_N, entities.leaf_codes_N, entities.root_codes], axis=1).astype(np.int64)
        return PeerIndex(
            as_of,
            tuple(tuple(levels) for levels in by_level),
            column_NC,
            tuple(int(column_NC[:, place].max()) + 1 for place in range(len(TARGETS))),
            behaviour.user_row_E,
            behaviour.item_row_E,
            behaviour.time_E,
            settings.prior_users,
        )

    def lifts(self, user_B: Ints, columns_BC: Ints, snapshot_B: Ints) -> Floats:
        """PEER_STATS [B, len(PEER_STATS)] of rows whose facts about items are as of `snapshot_B`; zeros where a user has no peers.

        Args:
            columns_BC: each row's column for each of TARGETS; 0 where it is unknown.
        """
        out = np.zeros((len(user_B), len(PEER_STATS)), np.float32)
        for time in np.unique(snapshot_B):
            at = int(np.searchsorted(self.as_of_T, time, side="right")) - 1
            if at >= 0:
                rows = np.flatnonzero(snapshot_B == time)
                out[rows] = self._at(at, int(time), user_B[rows], columns_BC[rows])
        return out

    def _at(self, at: int, time: int, user_B: Ints, columns_BC: Ints) -> Floats:
        users_U, place_B = np.unique(user_B, return_inverse=True)
        place_B = place_B.reshape(-1)
        met = self._met(time)
        links = [_links(peers[users_U], met.num_rows) for peers in self.peers_TV[at]]
        support_BV = [np.asarray(link.sum(axis=1)).reshape(-1)[place_B] for link in links]
        out = np.zeros((len(user_B), len(PEER_STATS)), np.float32)
        others_B = np.maximum(int(met.active_M.sum()) - met.active_M[user_B], 1)
        for place, (matrix, users_C) in enumerate(met.targets):
            column_B = columns_BC[:, place]
            everyone_B = (users_C[column_B] - _values(matrix[users_U], place_B, column_B) + 0.5) / (others_B + 1)
            share_B = everyone_B
            for link, support_B in zip(links, support_BV, strict=True):
                share_B = (_values(link @ matrix, place_B, column_B) + self.prior_users * share_B) / (support_B + self.prior_users)
            out[:, place] = np.where((column_B > 0) & (support_BV[0] > 0), np.log(share_B / everyone_B), 0)
        out[:, -1] = np.log1p(support_BV[-1])
        return out

    def _met(self, time: int) -> "_Met":
        """Who had met what before `time`; the last few are kept, since requests ask for the same one again and again."""
        found = self.recent.get(time)
        if found is None:
            end = int(np.searchsorted(self.time_E, time))
            active_M = np.zeros(len(self.peers_TV[0][0]), bool)
            active_M[self.user_E[:end]] = True
            matrices = [incidence(self.user_E[:end], self.column_NC[self.item_E[:end], place], (len(active_M), size)) for place, size in enumerate(self.sizes)]
            found = _Met(active_M, tuple((matrix, np.asarray(matrix.sum(axis=0)).reshape(-1)) for matrix in matrices))
            for old in list(self.recent)[: max(len(self.recent) - NUM_RECENT + 1, 0)]:
                self.recent.pop(old, None)
            self.recent[time] = found
        return found


@dataclass(frozen=True)
class _Met:
    """Who had met what by one time: per target the binary matrix [M, C], and how many users met each column [C]."""

    active_M: npt.NDArray[np.bool_]
    targets: tuple[tuple[sparse.csr_matrix, Floats], ...]

    @property
    def num_rows(self) -> int:
        return len(self.active_M)


def _links(peers_UP: Ints, num_rows: int) -> sparse.csr_matrix:
    """[U, M] with a one for each peer."""
    there = peers_UP > 0
    starts = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return sparse.csr_matrix((np.ones(int(there.sum()), np.float32), peers_UP[there], starts), shape=(len(peers_UP), num_rows))


def _values(matrix: sparse.csr_matrix, row_B: Ints, column_B: Ints) -> npt.NDArray[np.float64]:
    """The entries [B] of a sparse matrix at given places."""
    matrix = matrix.tocsr()
    matrix.sort_indices()
    width = matrix.shape[1]
    keys = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)) * width + matrix.indices
    wanted = row_B * width + column_B
    place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    if len(keys) == 0:
        return np.zeros(len(wanted))
    return np.where(keys[place] == wanted, matrix.data[place], 0).astype(np.float64)


def clusters(codes_NS: npt.NDArray[np.integer], depth: int) -> Ints:
    """Cluster numbers from 1 of items [N] by the first `depth` of their semantic codes."""
    _, number = np.unique(codes_NS[:, :depth], axis=0, return_inverse=True)
    numbers: Ints = number.reshape(-1).astype(np.int64) + 1
    return numbers
