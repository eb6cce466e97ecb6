"""Peers: whom a user borrows statistics of the target item from (ours; it generalises the paper's group to any neighbourhood of users).

ChoirRec's groups lend attributes, a sequence and an ID, none of which says whether the group met the very item that is being ranked. Peers say that: the
share of the user's peers who had met the item, its cluster, its leaf and its root category, as a log lift over everybody's share. Shares are shrunk along
the levels, from the widest to the nearest peers, by pseudo-users at the wider level's share (empirical Bayes with one prior strength); the user is never
one of their own peers.

Reads user spaces, user codes and events before each as_of; the stage `peers` writes one row per (user, as_of).

Letters: M users + 1, N items + 1, C targets (items, clusters, categories), V levels of peers, P peers of a level, B rows, D dimensions, E events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from longtail.behaviour import Behaviour, CountIndex
from longtail.entities import Entities
from longtail.settings import Settings
from longtail.snapshots import as_of_us

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

TARGETS = ("item", "cluster", "leaf", "root")
PEER_STATS = (*(f"peer_{target}_lift" for target in TARGETS), "peer_support")

NEVER = np.iinfo(np.int64).max

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
        known = np.flatnonzero(column_E)
        key_F, first = np.unique(user_E[known] * num_columns + column_E[known], return_index=True)  # the first in time order is the earliest
        time_F, column_F = time_E[known][first], key_F % num_columns
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

    def of_users(self, rows: Ints) -> tuple[Ints, Ints]:
        """Places of all meetings of some users, and whose each is (its place in `rows`)."""
        begin, length = self.starts_M[rows], self.starts_M[rows + 1] - self.starts_M[rows]
        owner = np.repeat(np.arange(len(rows)), length)
        return np.arange(len(owner)) + (begin - np.cumsum(length) + length)[owner], owner


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
        by_level = [[Peers.alike(np.zeros((num_users, width), np.int64)) for width in settings.num_peers] for _ in as_of]
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
        order = np.lexsort((at_B, user_B))
        order = order[at_B[order] >= 0]
        if len(order) == 0:
            return out
        changes = np.flatnonzero(np.diff(user_B[order]) | np.diff(at_B[order])) + 1
        for rows in np.split(order, changes):
            peers_V = self.peers_TV[at_B[rows[0]]]
            user = int(user_B[rows[0]])
            if peers_V[0].row_MP[user, :1].any():
                levels = [(peers.row_MP[user], peers.weight_MP[user]) for peers in peers_V]
                out[rows] = self._of_user(levels, columns_BC[rows], snapshot_B[rows], everyone_BC[rows])
        return out

    def _of_user(self, levels: Sequence[tuple[Ints, Floats]], columns_BC: Ints, time_B: Ints, everyone_BC: npt.NDArray[np.float64]) -> Floats:
        """PEER_STATS [B, ..] of one user's rows, with the peers of each level and their weights."""
        out = np.zeros((len(time_B), len(PEER_STATS)), np.float32)
        lenders, place_P = np.unique(np.concatenate([rows[rows > 0] for rows, _ in levels]), return_inverse=True)
        weight_VP, start = np.zeros((len(levels), len(lenders))), 0
        for level, (rows, weights) in enumerate(levels):
            count = int((rows > 0).sum())
            weight_VP[level, place_P.reshape(-1)[start : start + count]] = weights[rows > 0]
            start += count
        support_V = weight_VP.sum(axis=1)
        for place, meetings in enumerate(self.firsts.meetings_C):
            column_B = columns_BC[:, place]
            among = np.zeros(meetings.num_columns, bool)
            among[column_B] = True
            places, owner = meetings.of_users(lenders)
            hits = np.flatnonzero(among[meetings.column_F[places]])
            met = CountIndex.build(meetings.column_F[places[hits]], meetings.time_F[places[hits]])
            start_B, end_B = met.span(column_B, time_B)
            running_VF = np.concatenate([np.zeros((len(levels), 1)), np.cumsum(weight_VP[:, owner[hits[met.order_E]]], axis=1)], axis=1)
            share_B = everyone_BC[:, place]
            for level, support in enumerate(support_V):
                met_B = running_VF[level, end_B] - running_VF[level, start_B]
                share_B = (met_B + self.prior_users * share_B) / (support + self.prior_users)
            out[:, place] = np.where(column_B > 0, np.log(share_B / everyone_BC[:, place]), 0)
        out[:, -1] = np.log1p(support_V[-1])
        return out


def clusters(codes_NS: npt.NDArray[np.integer], depth: int) -> Ints:
    """Cluster numbers from 1 of items [N] by the first `depth` of their semantic codes."""
    _, number = np.unique(codes_NS[:, :depth], axis=0, return_inverse=True)
    numbers: Ints = number.reshape(-1).astype(np.int64) + 1
    return numbers
