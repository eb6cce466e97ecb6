"""Pair wins: in each of many groups, how many (positive, negative) pairs the scores order rightly, ties counting one half.

AUC asks no more of scores than their order, so score and label are packed into one integer and whole matrices of equally large groups are sorted at once:
rows of up to some hundred values go through sorting networks, which take a tenth of the time that one sort of all rows by (group, score) takes.
Letters: N rows, G groups, B groups of one size n.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.unsignedinteger]

BLOCK_ROWS = 1 << 16  # sorted at once: keys and their floats stay in a core's cache


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
    ends_C = np.cumsum(np.bincount(cell_N, minlength=1))
    _, group_C = np.unique((ends_C - 1) // rows_per_group, return_inverse=True)
    groups_N: npt.NDArray[np.int32] = group_C.astype(np.int32)[cell_N]
    return groups_N


def pair_wins(key_N: Keys, group_N: npt.NDArray[np.integer], threads: int = 1) -> PairWins:
    """Wins in each group from 0 of rows with `keys` [N]; groups without rows among the others have none."""
    rows_G = np.bincount(group_N, minlength=1)
    by_size_G = np.argsort(rows_G, kind="stable")
    place_G = np.empty(len(rows_G), np.int32)
    place_G[by_size_G] = np.arange(len(rows_G))
    sorted_N = _in_order(key_N, place_G[group_N], len(rows_G))
    sizes_G = rows_G[by_size_G]
    starts_G = np.concatenate([[0], np.cumsum(sizes_G)])
    positives_G, wins_G = np.zeros(len(rows_G), np.int64), np.zeros(len(rows_G))

    def count(block: tuple[int, int, int]) -> None:
        size, first, last = block
        keys_Bn = sorted_N[starts_G[first] : starts_G[last]].reshape(last - first, size)
        positives_G[by_size_G[first:last]], wins_G[by_size_G[first:last]] = _wins(keys_Bn)

    blocks = list(_blocks(sizes_G))
    if threads == 1 or len(blocks) == 1:
        for block in blocks:
            count(block)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(count, blocks))
    return PairWins(rows_G, positives_G, wins_G)


def _in_order(key_N: Keys, place_N: npt.NDArray[np.int32], num_places: int) -> Keys:
    """The keys by place: a counting sort, as scipy turns a matrix of one row from rows to columns."""
    one_row = sparse.csr_matrix((key_N, place_N, np.array([0, len(key_N)])), shape=(1, num_places))
    by_place: Keys = one_row.tocsc().data
    return by_place


def _blocks(sizes_G: Ints) -> Iterator[tuple[int, int, int]]:
    """(size, first, last + 1) of groups of one size, largest blocks last; `sizes_G` ascend."""
    sizes, firsts = np.unique(sizes_G, return_index=True)
    for size, first, end in zip(sizes.tolist(), firsts.tolist(), [*firsts[1:].tolist(), len(sizes_G)], strict=True):
        step = max(BLOCK_ROWS // max(size, 1), 1)
        if size > 0:
            yield from ((size, start, min(start + step, end)) for start in range(first, end, step))


def _wins(keys_Bn: Keys) -> tuple[Ints, Floats]:
    """Positives and wins [B] of groups of one size; sorts the keys in place.

    Among equal scores negatives come first, which counts a tie as one win; with the label's bit turned around it counts as none: half of both is one half.
    """
    keys_Bn.sort(axis=1)
    one = keys_Bn.dtype.type(1)
    rank_n = np.arange(1, keys_Bn.shape[1] + 1, dtype=np.float64)
    positive_Bn = (keys_Bn & one).astype(np.float64)
    positives_B = positive_Bn.sum(1)
    ranks_B = positive_Bn @ rank_n
    tied_B = ((keys_Bn[:, 1:] ^ keys_Bn[:, :-1]) == one).any(1)
    if tied_B.any():
        turned_Bn = np.sort(keys_Bn[tied_B] ^ one, axis=1)
        ranks_B[tied_B] = (ranks_B[tied_B] + (one - (turned_Bn & one)).astype(np.float64) @ rank_n) / 2
    return positives_B.astype(np.int64), ranks_B - positives_B * (positives_B + 1) / 2
