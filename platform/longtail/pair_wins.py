"""Pair wins: in each of many groups, how many (positive, negative) pairs the scores order rightly, ties counting one half.

AUC asks no more of scores than their order, so score and label are packed into one integer and whole matrices of equally large groups are sorted at once:
rows of up to some hundred values go through sorting networks, which take a tenth of the time that one sort of all rows by (group, score) takes.
Letters: N rows, G groups, B groups of one size n.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.unsignedinteger]

SHARE_ROWS = 1 << 16  # of groups that are sorted at once: keys and their floats stay in a core's cache
FEW_GROUPS = 1 << 12  # each is a share of its own
MANY_ROWS = 4096  # of a group: the sum of so many ranks is exact in float32


@dataclass(frozen=True)
class PairWins:
    """Of each group."""

    rows_G: Ints
    positives_G: Ints
    wins_G: Floats

    def shares(self) -> Floats:
        """Wins by pair [G], nan where a group has one class only: each group's AUC."""
        pairs_G = self.positives_G * (self.rows_G - self.positives_G)
        shares_G: Floats = np.divide(self.wins_G, pairs_G, out=np.full(len(pairs_G), np.nan), where=pairs_G > 0)
        return shares_G


def ordinals(scores_N: npt.NDArray[np.number]) -> npt.NDArray[np.uint32]:
    """Numbers [N] in the order of finite scores, equal where these are; 0 for the least."""
    if scores_N.dtype != np.float32:
        scores_N = scores_N.astype(np.float64)
        single_N = scores_N.astype(np.float32) if np.abs(scores_N).max(initial=0) < np.finfo(np.float32).max else None
        if single_N is None or not np.array_equal(single_N, scores_N):
            numbers_N: npt.NDArray[np.uint32] = np.unique(scores_N, return_inverse=True)[1].astype(np.uint32)
            return numbers_N
        scores_N = single_N
    bits_N = (scores_N + np.float32(0)).view(np.int32)  # +0: -0.0 equals 0.0 and has other bits
    if bits_N.min(initial=0) < 0:  # the larger a negative float's bits, the less it is
        bits_N ^= (bits_N >> 31) & np.int32(0x7FFFFFFF)
        bits_N ^= np.int32(-(2**31))
    ordinal_N = bits_N.view(np.uint32)
    ordinal_N -= ordinal_N.min() if len(ordinal_N) else np.uint32(0)
    return ordinal_N


def keys(ordinal_N: npt.NDArray[np.uint32], labels_N: npt.NDArray[np.generic]) -> Keys:
    """Ordinal and label (0 or 1) in one integer [N], the label in the lowest bit; of 32 bits where that is enough."""
    wide = int(ordinal_N.max(initial=0)) >= 2**31
    key_N: Keys = ordinal_N.astype(np.uint64) if wide else ordinal_N.copy()
    key_N <<= key_N.dtype.type(1)
    key_N |= labels_N.astype(np.uint8, copy=False)
    return key_N


def coarse(ordinal_N: npt.NDArray[np.uint32], rows_per_group: int) -> npt.NDArray[np.int32]:
    """Groups [N] from 0 in the order of the ordinals, of about so many rows each, but with all rows of equal ordinals in one."""
    shift = max(int(ordinal_N.max(initial=0)).bit_length() - 16, 0)
    cell_N = (ordinal_N >> np.uint32(shift)).view(np.int32)
    sampled_N = cell_N[:: max(len(cell_N) >> 20, 1)]  # sizes need be about right only
    ends_C = np.cumsum(np.bincount(sampled_N, minlength=int(cell_N.max(initial=0)) + 1))
    _, group_C = np.unique((ends_C - 1) * len(cell_N) // (len(sampled_N) * rows_per_group), return_inverse=True)
    groups_N: npt.NDArray[np.int32] = group_C.astype(np.int32)[cell_N]
    return groups_N


def pair_wins(key_N: Keys, group_N: npt.NDArray[np.integer], threads: int = 1) -> PairWins:
    """Wins in each group from 0 of rows with `keys` [N]; groups without rows among the others have none.

    Groups are numbered anew by size, and rows dealt out to shares of groups that fit into a core's cache, then to the groups: one counting sort by a million
    groups would miss the cache with every row.
    """
    ends = np.linspace(0, len(key_N), (threads if len(key_N) > SHARE_ROWS else 1) + 1).astype(np.int64)
    parts = [slice(start, end) for start, end in pairwise(ends)]
    with ThreadPoolExecutor(threads) as pool:
        each: Callable[..., Iterator[Any]] = pool.map if len(parts) > 1 else map  # few rows are done before a thread has started
        num_groups = int(group_N.max()) + 1
        rows_G = sum(each(lambda part: np.bincount(group_N[part], minlength=num_groups), parts), np.zeros(num_groups, np.int64))
        by_size_G = np.argsort(rows_G, kind="stable")
        place_G = np.empty(num_groups, np.int32)
        place_G[by_size_G] = np.arange(num_groups)
        sizes_G = rows_G[by_size_G]
        shares = np.arange(num_groups) if num_groups <= FEW_GROUPS else (np.cumsum(sizes_G) - 1) // SHARE_ROWS
        _, first_S, share_G = np.unique(shares, return_index=True, return_inverse=True)
        share_of_G = share_G.astype(np.int32)[place_G]

        def deal(part: slice) -> list[sparse.csc_matrix]:
            share_P = share_of_G[group_N[part]]
            values = [key_N[part]] if num_groups <= FEW_GROUPS else [key_N[part], place_G[group_N[part]]]
            return [_dealt(value, share_P, len(first_S)) for value in values]

        dealt = list(each(deal, parts))
        positives_G, wins_G = np.zeros(num_groups, np.int64), np.zeros(num_groups)

        def count(share: int) -> None:
            groups = slice(first_S[share], first_S[share + 1] if share + 1 < len(first_S) else num_groups)
            sorted_P, *place_P = (
                np.concatenate([one.data[slice(*one.indptr[share : share + 2])] for one in of_parts]) for of_parts in zip(*dealt, strict=True)
            )
            if place_P:
                sorted_P = _dealt(sorted_P, place_P[0] - np.int32(groups.start), groups.stop - groups.start).data
            positives_G[by_size_G[groups]], wins_G[by_size_G[groups]] = _by_size(sorted_P, sizes_G[groups])

        list(each(count, range(len(first_S))))
    return PairWins(rows_G, positives_G, wins_G)


def _dealt(values_N: npt.NDArray[np.generic], place_N: npt.NDArray[np.int32], num_places: int) -> sparse.csc_matrix:
    """The values by place: a counting sort, as scipy turns a matrix of one row from rows to columns (and lets other threads run)."""
    return sparse.csr_matrix((values_N, place_N, np.array([0, len(values_N)])), shape=(1, num_places)).tocsc()


def _by_size(key_P: Keys, sizes_G: Ints) -> tuple[Ints, Floats]:
    """Positives and wins of groups of ascending sizes, whose keys follow each other."""
    positives_G, wins_G = np.zeros(len(sizes_G), np.int64), np.zeros(len(sizes_G))
    sizes, firsts = np.unique(sizes_G, return_index=True)
    start = 0
    for size, first, end in zip(sizes.tolist(), firsts.tolist(), [*firsts[1:].tolist(), len(sizes_G)], strict=True):
        stop = start + size * (end - first)
        if size > 0:
            positives_G[first:end], wins_G[first:end] = _wins(key_P[start:stop].reshape(end - first, size))
        start = stop
    return positives_G, wins_G


def _wins(keys_Bn: Keys) -> tuple[Ints, Floats]:
    """Positives and wins [B] of groups of one size; sorts the keys in place.

    Among equal scores negatives come first, which counts a tie as a whole win; they meet where two neighbours differ in the label's bit alone.
    """
    keys_Bn.sort(axis=1)
    num = keys_Bn.shape[1]
    if num > MANY_ROWS:
        positives, wins = zip(*(_wins_of_many(keys_n) for keys_n in keys_Bn), strict=True)
        return np.array(positives, np.int64), np.array(wins, np.float64)
    positive_Bn = (keys_Bn & 1).astype(np.float32)
    positives_B = positive_Bn.sum(1).astype(np.int64)
    ranks_B = np.einsum("bn,n->b", positive_Bn, np.arange(1, num + 1, dtype=np.float32))  # BLAS would start threads of its own in each of ours
    wins_B = ranks_B.astype(np.float64) - positives_B * (positives_B + 1) / 2
    tied_B = np.flatnonzero(((keys_Bn[:, 1:] ^ keys_Bn[:, :-1]) == 1).any(1))
    if len(tied_B):
        wins_B[tied_B] -= _tied_pairs(keys_Bn[tied_B]) / 2
    return positives_B, wins_B


def _wins_of_many(keys_n: Keys) -> tuple[int, float]:
    """`_wins` of one group of many sorted keys, few of which meet."""
    places = np.flatnonzero(keys_n & 1)
    meet = np.flatnonzero((keys_n[1:] ^ keys_n[:-1]) == 1)
    negatives = meet + 1 - np.searchsorted(keys_n, keys_n[meet])
    positives = np.searchsorted(keys_n, keys_n[meet + 1], side="right") - (meet + 1)
    return len(places), float(places.sum()) - len(places) * (len(places) - 1) / 2 - float(negatives @ positives) / 2


def _tied_pairs(keys_Bn: Keys) -> Floats:
    """Pairs [B] of one score in sorted keys, by the runs of equal keys."""
    flat = keys_Bn.reshape(-1)
    new = np.concatenate([[True], flat[1:] != flat[:-1]])
    new[:: keys_Bn.shape[1]] = True
    starts = np.flatnonzero(new)
    key, length, row = flat[starts], np.diff(starts, append=len(flat)), starts // keys_Bn.shape[1]
    meet = np.flatnonzero(((key[1:] ^ key[:-1]) == 1) & (row[1:] == row[:-1]))
    pairs_B: Floats = np.bincount(row[meet], length[meet] * length[meet + 1], len(keys_Bn)).astype(np.float64)
    return pairs_B
