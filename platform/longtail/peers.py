"""Peers: whom a user borrows statistics of the target item from (ours; it generalises the paper's group to any neighbourhood of users).

ChoirRec's groups lend attributes, a sequence and an ID, none of which says whether the group met the very item that is being ranked. Peers say that: the
share of the user's peers who had met the item, its cluster, its leaf and its root category, as a log lift over everybody's share. Shares are shrunk along
the levels, from the widest to the nearest peers, by pseudo-users at the wider level's share (empirical Bayes with one prior strength); the user is never
one of their own peers.

Reads user vectors, item vectors and events before each as_of; the stage `peers` writes one row per (user, as_of).

Letters: M users + 1, N items + 1, C targets (items, clusters, categories), V levels of peers, P peers of a level, B rows, D dimensions, E events.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator
from scipy import sparse

from longtail.behaviour import Behaviour, incidence
from longtail.entities import Entities
from longtail.settings import Settings

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

TARGETS = ("item", "cluster", "leaf", "root")
PEER_STATS = (*(f"peer_{target}_lift" for target in TARGETS), "peer_support")

NUM_RECENT = 4

NumPeers = Annotated[int, Field(ge=1)]


class PeersSettings(Settings):
    """The `peers` stage; `form = "none"` (the paper's shape) makes no peers and every statistic zero."""

    form: Literal["none", "neighbours", "leaves", "groups", "random"] = Field(
        "none",
        description="neighbours: the nearest users | leaves: the members of the nearest leaf groups | groups: those of the same code prefixes | "
        "random: as many drawn anew, a control",
    )
    num_peers: tuple[NumPeers, ...] = Field((200,), min_length=1, description="peers by level, widest first; each level is shrunk to the one before")
    prior_users: float = Field(10.0, gt=0, description="pseudo-users at the wider level's share")
    sharpness: float = Field(0.0, ge=0, description="neighbours: how much nearer ones count for more, by cosine to this power; 0: all alike")
    seed: int | None = Field(None, ge=0, description="of what is drawn; without it run.seed")

    @model_validator(mode="after")
    def _narrowing(self) -> Self:
        if list(self.num_peers) != sorted(set(self.num_peers), reverse=True):
            raise ValueError(f"num_peers = {list(self.num_peers)} must narrow from level to level, such as [400, 100]")
        return self


@dataclass(frozen=True)
class Peers:
    """Peers of one level: user rows [M, P], nearest first, 0 for nobody, and how much each counts."""

    row_MP: Ints
    weight_MP: Floats

    @staticmethod
    def alike(row_MP: Ints) -> "Peers":
        """All of them count the same."""
        return Peers(row_MP, (row_MP > 0).astype(np.float32))

    def first(self, num: int) -> "Peers":
        return Peers(self.row_MP[:, :num], self.weight_MP[:, :num])


def nearest(vectors_MD: Floats, borrower_M: Bools, lender_M: Bools, num: int, sharpness: float = 0.0) -> Peers:
    """The lenders nearest to each borrower by cosine, never oneself; weights are cosines (from 0) to the power of `sharpness`, the nearest counting 1."""
    import faiss

    borrowers, lenders = np.flatnonzero(borrower_M), np.flatnonzero(lender_M)
    row_MP, cosine_MP = np.zeros((len(borrower_M), num), np.int64), np.zeros((len(borrower_M), num), np.float32)
    if len(borrowers) == 0 or len(lenders) == 0:
        return Peers.alike(row_MP)
    index = faiss.IndexFlatIP(vectors_MD.shape[1])
    index.add(vectors_MD[lenders])
    # One more than asked for: oneself is nearly always among the nearest. Where copies crowd it out, or for one who does not lend, the last is left over.
    cosine, near = index.search(vectors_MD[borrowers], min(num + 1, len(lenders)))
    others = lenders[near] != borrowers[:, None]
    place = np.cumsum(others, axis=1) - 1
    borrower, column = np.nonzero(others & (place < num))
    at = borrowers[borrower], place[borrower, column]
    row_MP[at] = lenders[near[borrower, column]]
    cosine_MP[at] = np.maximum(cosine[borrower, column], 1e-6)
    relative = cosine_MP / np.maximum(cosine_MP[:, :1], 1e-6)
    return Peers(row_MP, np.where(row_MP > 0, relative**sharpness, 0).astype(np.float32))


def drawn(borrower_M: Bools, lender_M: Bools, num: int, seed: int) -> Peers:
    """As `nearest`, with lenders drawn uniformly: a control of equal size."""
    rng = np.random.default_rng([seed, 0x9EE5])
    lenders = np.flatnonzero(lender_M)
    found = np.zeros((len(borrower_M), num), np.int64)
    for row in np.flatnonzero(borrower_M):
        others = lenders[lenders != row]
        size = min(num, len(others))
        found[row, :size] = rng.choice(others, size, replace=False)
    return Peers.alike(found)


def same_prefix(codes_MS: npt.NDArray[np.integer], borrower_M: Bools, lender_M: Bools, depth: int, num: int, seed: int) -> Peers:
    """As `nearest`, with the lenders of the same code prefix, at most `num` of them in seeded random order; users with codes -1 have none."""
    rng = np.random.default_rng([seed, 0x6B0F, depth])
    rows = np.flatnonzero((borrower_M | lender_M) & (codes_MS[:, 0] >= 0))
    found = np.zeros((len(borrower_M), num), np.int64)
    _, group = np.unique(codes_MS[rows, :depth], axis=0, return_inverse=True)
    group = group.reshape(-1)
    for number in range(int(group.max(initial=-1)) + 1):
        members = rows[group == number]
        lenders = rng.permutation(members[lender_M[members]])
        for place, row in enumerate(members[borrower_M[members]]):
            around = np.roll(lenders, -place)
            others = around[around != row][:num]
            found[row, : len(others)] = others
    return Peers.alike(found)


def nearest_leaves(vectors_MD: Floats, codes_MS: npt.NDArray[np.integer], borrower_M: Bools, lender_M: Bools, num: int) -> Peers:
    """As `nearest`, with the lenders of the leaf groups whose centres lie nearest, leaf by leaf until there are `num`: soft membership of groups."""
    lenders = np.flatnonzero(lender_M & (codes_MS[:, 0] >= 0))
    found = np.zeros((len(borrower_M), num), np.int64)
    _, leaf = np.unique(codes_MS[lenders], axis=0, return_inverse=True)
    leaf = leaf.reshape(-1)
    num_leaves = int(leaf.max(initial=-1)) + 1
    sums = np.zeros((num_leaves, vectors_MD.shape[1]), np.float32)
    np.add.at(sums, leaf, vectors_MD[lenders])
    centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    members = [lenders[leaf == number] for number in range(num_leaves)]
    for row in np.flatnonzero(borrower_M):
        chosen: list[Ints] = []
        for number in np.argsort(-(centres @ vectors_MD[row]), kind="stable"):
            chosen.append(members[number][members[number] != row])
            if sum(map(len, chosen)) >= num:
                break
        others = np.concatenate(chosen)[:num] if chosen else np.zeros(0, np.int64)
        found[row, : len(others)] = others
    return Peers.alike(found)


def peer_levels(vectors_MD: Floats, lender_M: Bools, codes_MS: npt.NDArray[np.integer], settings: PeersSettings, seed: int) -> tuple[Peers, ...]:
    """Peers by level, widest first.

    Args:
        vectors_MD: unit vectors of the users; who has none, a zero vector, borrows from nobody.
        lender_M: who has met anything; they alone lend, so that a user without history can still borrow.
        codes_MS: group codes, -1 where a user has none; read for "groups", whose last level is the whole tuple, and for "leaves".
    """
    widths = settings.num_peers
    borrower_M = (vectors_MD != 0).any(axis=1)
    if settings.form == "random":
        return tuple(drawn(borrower_M, lender_M, num, seed) for num in widths)
    if settings.form == "groups":
        first = codes_MS.shape[1] - len(widths) + 1
        return tuple(same_prefix(codes_MS, borrower_M, lender_M, first + place, num, seed) for place, num in enumerate(widths))
    if settings.form == "leaves":
        widest = nearest_leaves(vectors_MD, codes_MS, borrower_M, lender_M, widths[0])
    else:
        widest = nearest(vectors_MD, borrower_M, lender_M, widths[0], settings.sharpness)
    return tuple(widest.first(num) for num in widths)


@dataclass(frozen=True)
class PeerIndex:
    """Peers at each snapshot and first meetings, which together answer what a user's peers had met by a time.

    T snapshots; level v of snapshot t has peers_TV[t][v].
    """

    as_of_T: Ints
    peers_TV: tuple[tuple[Peers, ...], ...]
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
        shape = len(entities.users) + 1
        by_level = [[Peers.alike(np.zeros((shape, width), np.int64)) for width in settings.num_peers] for _ in as_of]
        levels, weights = table.column("peers").combine_chunks(), table.column("weights").combine_chunks()
        for level in range(num_levels):
            lists = pc.list_element(levels, level)
            lengths = pc.list_value_length(lists).to_numpy()
            peers, weight = entities.users.encode(lists.flatten()), pc.list_element(weights, level).flatten().to_numpy()
            column = np.arange(len(peers)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            owner, at = np.repeat(user_row, lengths), np.repeat(np.searchsorted(as_of, time), lengths)
            for place in range(len(as_of)):
                mine = at == place
                by_level[place][level].row_MP[owner[mine], column[mine]] = peers[mine]
                by_level[place][level].weight_MP[owner[mine], column[mine]] = weight[mine]
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
        links = [_links(peers.row_MP[users_U], peers.weight_MP[users_U], met.num_rows) for peers in self.peers_TV[at]]
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
            active_M = np.zeros(len(self.peers_TV[0][0].row_MP), bool)
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


def _links(row_UP: Ints, weight_UP: Floats, num_rows: int) -> sparse.csr_matrix:
    """[U, M] with the weight of each peer."""
    there = row_UP > 0
    starts = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return sparse.csr_matrix((weight_UP[there], row_UP[there], starts), shape=(len(row_UP), num_rows))


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
