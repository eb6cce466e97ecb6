"""Peers: whom a user borrows statistics of the target item from (ours; it generalises the paper's group to any neighbourhood of users).

ChoirRec's groups lend attributes, a sequence and an ID, none of which says whether the group met the very item that is being ranked. Peers say that: the
share of the user's peers who had met the item, its cluster, its leaf and its root category, as a log lift over everybody's share. Shares are shrunk along
the levels, from the widest to the nearest peers, by pseudo-users at the wider level's share (empirical Bayes with one prior strength); the user is never
one of their own peers.

Reads user spaces, user codes and events before each as_of; the stage `peers` writes one row per (user, as_of).

Letters: M users + 1, N items + 1, C targets (items, clusters, categories), V levels of peers, P peers of a level, B rows, D dimensions, E events.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from longtail.behaviour import Behaviour, CountIndex, first_meetings
from longtail.entities import Entities
from longtail.settings import Compute, Settings
from longtail.snapshots import as_of_us

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

TARGETS = ("item", "cluster", "leaf", "root")
PEER_STATS = (*(f"peer_{target}_lift" for target in TARGETS), "peer_support")

NEVER = np.iinfo(np.int64).max
NUM_CELLS = 1 << 27  # users by columns that are looked at together, a byte each
NUM_GATHERED = 1 << 20  # peers whose meetings are looked up at once

NumPeers = Annotated[int, Field(ge=1)]


class PeersSettings(Settings):
    """The `peers` stage; `form = "none"` (the paper's shape) makes no peers and every statistic zero."""

    form: Literal["none", "neighbours", "leaves", "groups", "random"] = Field(
        "neighbours",
        description="neighbours: the nearest users | leaves: the members of the nearest leaf groups | groups: those of the same code prefixes | "
        "random: as many drawn anew, a control",
    )
    num_peers: tuple[NumPeers, ...] = Field((200,), min_length=1, description="peers by level, widest first; each level is shrunk to the one before")
    prior_users: float = Field(10.0, ge=1e-3, description="pseudo-users at the wider level's share")
    sharpness: float = Field(0.0, ge=0, description="neighbours: how much nearer ones count for more, by cosine to this power; 0: all alike")
    seed: int | None = Field(None, ge=0, description="of what is drawn; without it run.seed")
    compute: Compute = Field(Compute(), description="of the search for neighbours; GPUs need faiss's GPU build")

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


def flat_index(dim: int, num_gpus: float) -> Any:
    """An empty faiss index of inner products, on every GPU that the process sees where it has reserved some.

    Raises:
        ValueError: GPUs are reserved, and faiss's CPU build is installed or sees none.
    """
    import faiss

    index = faiss.IndexFlatIP(dim)
    if num_gpus == 0:
        return index
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        raise ValueError(
            f"peers.compute.num_gpus = {num_gpus:g}, but the installed faiss finds no GPU. Install faiss's GPU build in place of faiss-cpu "
            "(faiss-gpu-cu12 on PyPI), or set peers.compute.num_gpus = 0: the search is exact on both."
        )
    return faiss.index_cpu_to_all_gpus(index)


def nearest(vectors_MD: Floats, borrower_M: Bools, lender_M: Bools, num: int, sharpness: float = 0.0, num_gpus: float = 0) -> Peers:
    """The lenders nearest to each borrower by cosine, never oneself; weights are cosines (from 0) to the power of `sharpness`, the nearest counting 1."""
    borrowers, lenders = np.flatnonzero(borrower_M), np.flatnonzero(lender_M)
    row_MP, cosine_MP = np.zeros((len(borrower_M), num), np.int64), np.zeros((len(borrower_M), num), np.float32)
    if len(borrowers) == 0 or len(lenders) == 0:
        return Peers.alike(row_MP)
    index = flat_index(vectors_MD.shape[1], num_gpus)
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
    widths = [min(num, len(lender_M)) for num in settings.num_peers]
    borrower_M = (vectors_MD != 0).any(axis=1)
    if settings.form == "random":
        return tuple(drawn(borrower_M, lender_M, num, seed) for num in widths)
    if settings.form == "groups":
        first = codes_MS.shape[1] - len(widths) + 1
        return tuple(same_prefix(codes_MS, borrower_M, lender_M, first + place, num, seed) for place, num in enumerate(widths))
    if settings.form == "leaves":
        widest = nearest_leaves(vectors_MD, codes_MS, borrower_M, lender_M, widths[0])
    else:
        widest = nearest(vectors_MD, borrower_M, lender_M, widths[0], settings.sharpness, settings.compute.num_gpus)
    return tuple(widest.first(num) for num in widths)


@dataclass(frozen=True)
class Meetings:
    """When each user first met each column of one target. F first meetings, by user and column."""

    num_columns: int
    starts_M: Ints  # first of each user's meetings, and the end
    column_F: Ints
    time_F: Ints
    key_F: Ints  # user * num_columns + column, ascending
    by_column: CountIndex

    @staticmethod
    def build(user_E: Ints, column_E: Ints, time_E: Ints, num_users: int, num_columns: int) -> "Meetings":
        """From events in time order; column 0 is unknown and kept out."""
        event_F, key_F = first_meetings(user_E, column_E, num_columns)
        time_F, column_F = time_E[event_F], column_E[event_F]
        starts_M = np.searchsorted(key_F, np.arange(num_users + 1) * num_columns)
        return Meetings(num_columns, starts_M, column_F, time_F, key_F, CountIndex.build(column_F, time_F))

    def had_met(self, user_B: Ints, column_B: Ints, time_B: Ints) -> Bools:
        """Whether each user had met each column strictly before each time."""
        if len(self.key_F) == 0:
            return np.zeros(len(user_B), bool)
        wanted = user_B * self.num_columns + column_B
        place = np.minimum(np.searchsorted(self.key_F, wanted), len(self.key_F) - 1)
        before: Bools = (self.key_F[place] == wanted) & (self.time_F[place] < time_B)
        return before

    def first(self, columns: Ints, users_L: Ints, clock: Ints) -> npt.NDArray[np.unsignedinteger]:
        """When each user first met each of some columns [C, L]: how many times of the clock were not after it, more than there are where not at all."""
        kind = np.min_scalar_type(len(clock) + 1)
        first_CL = np.full((len(columns), len(users_L)), np.iinfo(kind).max, kind)
        begin_L, length_L = self.starts_M[users_L], self.starts_M[users_L + 1] - self.starts_M[users_L]
        owner = np.repeat(np.arange(len(users_L)), length_L)
        place = np.arange(len(owner)) + (begin_L - np.cumsum(length_L) + length_L)[owner]
        row_of = np.full(self.num_columns, -1)
        row_of[columns[columns > 0]] = np.flatnonzero(columns > 0)
        row = row_of[self.column_F[place]]
        asked = row >= 0
        first_CL[row[asked], owner[asked]] = np.searchsorted(clock, self.time_F[place[asked]], side="right")
        return first_CL


@dataclass(frozen=True)
class FirstMeetings:
    """Who met what first when, in a whole run: the same for whatever peers are asked about."""

    column_NC: Ints  # by item row, its column for each of TARGETS (0 unknown)
    meetings_C: tuple[Meetings, ...]  # of each target
    since_M: Ints  # each user's first event, NEVER without one
    since_sorted_M: Ints

    @staticmethod
    def build(behaviour: Behaviour, entities: Entities, cluster_N: Ints) -> "FirstMeetings":
        """From the run's events in time order, and items' clusters by item row."""
        num_users = len(entities.users) + 1
        column_NC = np.stack([np.arange(len(cluster_N)), cluster_N, entities.leaf_codes_N, entities.root_codes], axis=1).astype(np.int64)
        since_M = np.full(num_users, NEVER)
        np.minimum.at(since_M, behaviour.user_row_E, behaviour.time_E)
        meetings = [
            Meetings.build(behaviour.user_row_E, column_NC[behaviour.item_row_E, place], behaviour.time_E, num_users, int(column_NC[:, place].max()) + 1)
            for place in range(len(TARGETS))
        ]
        return FirstMeetings(column_NC, tuple(meetings), since_M, np.sort(since_M))


@dataclass(frozen=True)
class PeerIndex:
    """Peers at each snapshot and first meetings, which together answer what a user's peers had met by a time.

    T snapshots; level v of snapshot t has peers_TV[t][v]. What a question costs is what the peers have met, whatever the size of the logs.
    """

    as_of_T: Ints
    peers_TV: tuple[tuple[Peers, ...], ...]
    firsts: FirstMeetings
    prior_users: float

    @staticmethod
    def build(table: pa.Table, entities: Entities, firsts: FirstMeetings, settings: PeersSettings) -> "PeerIndex":
        """From the stage's table (schema.PEERS) and the run's first meetings."""
        num_levels, num_users = len(settings.num_peers), len(entities.users) + 1
        user_row = entities.users.encode(table.column("user_id"))
        time = as_of_us(table)
        as_of = np.unique(time)
        by_level = [[Peers.alike(np.zeros((num_users, min(width, num_users)), np.int64)) for width in settings.num_peers] for _ in as_of]
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
        return PeerIndex(as_of, tuple(tuple(levels) for levels in by_level), firsts, settings.prior_users)

    def lifts(self, user_B: Ints, columns_BC: Ints, snapshot_B: Ints) -> Floats:
        """PEER_STATS [B, len(PEER_STATS)] of rows whose facts about items are as of `snapshot_B`; zeros where a user has no peers.

        Args:
            columns_BC: each row's column for each of TARGETS; 0 where it is unknown.
        """
        out = np.zeros((len(user_B), len(PEER_STATS)), np.float32)
        others_B = np.maximum(np.searchsorted(self.firsts.since_sorted_M, snapshot_B) - (self.firsts.since_M[user_B] < snapshot_B), 1)
        everyone_BC = np.stack(
            [
                (meetings.by_column.count(columns_BC[:, place], snapshot_B) - meetings.had_met(user_B, columns_BC[:, place], snapshot_B) + 0.5) / (others_B + 1)
                for place, meetings in enumerate(self.firsts.meetings_C)
            ],
            axis=1,
        )
        at_B = np.searchsorted(self.as_of_T, snapshot_B, side="right") - 1
        for at, peers_V in enumerate(self.peers_TV):
            rows = np.flatnonzero((at_B == at) & (peers_V[0].row_MP[user_B, 0] > 0))
            for some in self._portions(rows[np.argsort(user_B[rows], kind="stable")], user_B, columns_BC, peers_V[0].row_MP.shape[1]):
                out[some] = self._of_users(peers_V, user_B[some], columns_BC[some], snapshot_B[some], everyone_BC[some])
        return out

    def _portions(self, rows: Ints, user_B: Ints, columns_BC: Ints, num_peers: int) -> Iterator[Ints]:
        """Rows, which are ordered by user, in as few portions as NUM_CELLS allows, at least a user each."""
        users, starts = np.unique(user_B[rows], return_index=True)
        num_lenders = min(len(users) * num_peers, len(self.firsts.since_M))
        num_columns = max((len(np.unique(column_B)) for column_B in columns_BC[rows].T), default=0)
        if num_lenders * num_columns <= NUM_CELLS or len(users) < 2:
            if len(rows):
                yield rows
            return
        middle = starts[len(users) // 2]
        yield from self._portions(rows[:middle], user_B, columns_BC, num_peers)
        yield from self._portions(rows[middle:], user_B, columns_BC, num_peers)

    def _of_users(self, peers_V: Sequence[Peers], user_B: Ints, columns_BC: Ints, time_B: Ints, everyone_BC: npt.NDArray[np.float64]) -> Floats:
        """PEER_STATS [B, ..] of rows whose users have these peers, level by level."""
        users_U, mine_B = np.unique(user_B, return_inverse=True)
        lenders_L, lender_VUP = np.unique(np.concatenate([peers.row_MP[users_U] for peers in peers_V], axis=1), return_inverse=True)
        lender_VU = np.split(lender_VUP.reshape(len(users_U), -1), np.cumsum([peers.row_MP.shape[1] for peers in peers_V])[:-1], axis=1)
        weight_VU = [peers.weight_MP[users_U] for peers in peers_V]
        support_V = [weight_UP.sum(axis=1, dtype=np.float64)[mine_B] for weight_UP in weight_VU]
        clock, when_B = np.unique(time_B, return_inverse=True)
        out = np.zeros((len(time_B), len(PEER_STATS)), np.float32)
        for place, meetings in enumerate(self.firsts.meetings_C):
            columns, column_B = np.unique(columns_BC[:, place], return_inverse=True)
            first_CL = meetings.first(columns, lenders_L, clock)
            share_B = everyone_BC[:, place]
            for lender_UP, weight_UP, support_B in zip(lender_VU, weight_VU, support_V, strict=True):
                met_B = _met(first_CL, column_B, lender_UP, weight_UP, mine_B, when_B)
                share_B = (met_B + self.prior_users * share_B) / (support_B + self.prior_users)
            out[:, place] = np.where(columns_BC[:, place] > 0, np.log(share_B / everyone_BC[:, place]), 0)
        out[:, -1] = np.log1p(support_V[-1])
        return out


def _met(first_CL: npt.NDArray[np.unsignedinteger], column_B: Ints, lender_UP: Ints, weight_UP: Floats, mine_B: Ints, when_B: Ints) -> npt.NDArray[np.float64]:
    """Summed weights [B] of each row's peers who had met its column by its time."""
    alike = bool(((weight_UP == 1) | (weight_UP == 0)).all())  # 0 is nobody, who has met nothing
    cells, num_lenders = first_CL.reshape(-1), first_CL.shape[1]
    out_B = np.zeros(len(column_B))
    step = max(NUM_GATHERED // max(lender_UP.shape[1], 1), 1)
    for start in range(0, len(column_B), step):
        some = slice(start, start + step)
        met_BP = cells.take(lender_UP[mine_B[some]] + (column_B[some] * num_lenders)[:, None]) <= when_B[some, None]
        out_B[some] = np.count_nonzero(met_BP, axis=1) if alike else (weight_UP[mine_B[some]] * met_BP).sum(axis=1, dtype=np.float64)
    return out_B


def clusters(codes_NS: npt.NDArray[np.integer], depth: int) -> Ints:
    """Cluster numbers from 1 of items [N] by the first `depth` of their semantic codes."""
    _, number = np.unique(codes_NS[:, :depth], axis=0, return_inverse=True)
    numbers: Ints = number.reshape(-1).astype(np.int64) + 1
    return numbers
