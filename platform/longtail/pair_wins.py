"""Pair wins: in each of many groups, how many (positive, negative) pairs the scores order rightly, ties counting one half.

AUC asks no more of scores than their order, so score and label are packed into one integer and whole matrices of equally large groups are sorted at once:
rows of up to some hundred values go through sorting networks, which take a tenth of the time that one sort of all rows by (group, score) takes.
Letters: N rows, G groups, B groups of one size n.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.unsignedinteger]

SHARE_ROWS = 1 << 17  # of groups that are sorted at once: keys and their floats stay in a core's cache
PART_ROWS = 1 << 20  # that are dealt out at once: what is made for them is made in memory that the last part has left
ROWS_PER_RANGE = 1 << 17  # of scores that are sorted at once
CELL_BITS = 16  # of a number that say its range
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


class Order:
    """Finite scores [N] by nothing but their order: numbers from 0 that ascend as the scores do and are equal where these are."""

    def __init__(self, scores_N: npt.NDArray[np.number]) -> None:
        self._value_N = _single_or_rank(scores_N)
        ends = np.array([self._value_N.min(), self._value_N.max()]) if len(scores_N) else np.zeros(2, np.uint32)
        self._negative = bool(ends[0] < 0)
        self._least = np.uint32(0)
        self._least, last = self._numbers(ends)
        self.most = int(last - self._least)

    def numbers(self, part: slice = slice(None)) -> npt.NDArray[np.uint32]:
        """Of the scores of a part [P]."""
        return self._numbers(self._value_N[part])

    def _numbers(self, value_P: npt.NDArray[np.float32] | npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        if value_P.dtype == np.uint32:
            rank_P: npt.NDArray[np.uint32] = (value_P - self._least).astype(np.uint32, copy=False)
            return rank_P
        bits_P = (value_P + np.float32(0)).view(np.int32)  # +0: -0.0 equals 0.0 and has other bits
        if self._negative:  # the larger a negative float's bits, the less it is
            bits_P ^= (bits_P >> 31) & np.int32(0x7FFFFFFF)
            bits_P ^= np.int32(-(2**31))
        number_P = bits_P.view(np.uint32)
        number_P -= self._least
        return number_P

    def keys(self, number_P: npt.NDArray[np.uint32], labels_P: npt.NDArray[np.generic]) -> Keys:
        """Number and label (0 or 1) in one integer [P], the label in the lowest bit; of 32 bits where that is enough."""
        key_P: Keys = number_P.astype(np.uint64 if self.most >= 2**31 else np.uint32)
        key_P <<= key_P.dtype.type(1)
        key_P |= labels_P.astype(np.uint8, copy=False)
        return key_P


def _single_or_rank(scores_N: npt.NDArray[np.number]) -> npt.NDArray[np.float32] | npt.NDArray[np.uint32]:
    """The scores in float32 where that loses nothing, their ranks elsewhere."""
    if scores_N.dtype == np.float32:
        return scores_N.astype(np.float32, copy=False)
    scores_N = scores_N.astype(np.float64)
    if np.abs(scores_N).max(initial=0) < np.finfo(np.float32).max:
        single_N = scores_N.astype(np.float32)
        if np.array_equal(single_N, scores_N):
            return single_N
    rank_N: npt.NDArray[np.uint32] = np.unique(scores_N, return_inverse=True)[1].astype(np.uint32)
    return rank_N


class Ranges:
    """Ranges of ascending numbers, of about so many rows each; equal numbers are in one."""

    def __init__(self, order: Order, num_rows: int, rows_per_range: int) -> None:
        self._shift = np.uint32(max(order.most.bit_length() - CELL_BITS, 0))
        cell_S = order.numbers(slice(None, None, max(num_rows >> 20, 1))) >> self._shift  # sizes need be about right only
        ends_C = np.cumsum(np.bincount(cell_S, minlength=(order.most >> int(self._shift)) + 1))
        _, range_C = np.unique((ends_C - 1) * num_rows // (max(len(cell_S), 1) * rows_per_range), return_inverse=True)
        self._range_C = range_C.astype(np.int32)
        self.num = int(self._range_C[-1]) + 1

    def of(self, number_P: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
        """The range [P] of each number."""
        range_P: npt.NDArray[np.int32] = self._range_C[number_P >> self._shift]
        return range_P


def pair_wins_overall(order: Order, labels_N: npt.NDArray[np.generic], threads: int = 1) -> tuple[float, int, int]:
    """(wins, positives, negatives) of all rows: rows are dealt out to ranges of scores, which are sorted one by one.

    What is made for a part of the rows is small, so it lies in memory that the part before has left: new memory costs more than the sort.
    """
    ranges = Ranges(order, len(labels_N), ROWS_PER_RANGE)

    def deal(part: slice) -> sparse.csr_matrix:
        number_P = order.numbers(part)
        return _dealt(order.keys(number_P, labels_N[part]), ranges.of(number_P), ranges.num)

    parts = _parts(len(labels_N))
    with _each(threads, len(parts)) as each:
        dealt = list(each(deal, parts))

        def count(number: int) -> tuple[int, int, float]:
            key_P = np.concatenate([one.data[slice(*one.indptr[number : number + 2])] for one in dealt])
            positives, wins = _wins(key_P[None])
            return len(key_P), int(positives[0]), float(wins[0])

        rows_R, positives_R, wins_R = (np.array(column) for column in zip(*each(count, range(ranges.num)), strict=True))
    negatives_R = rows_R - positives_R
    below_R = np.cumsum(negatives_R) - negatives_R
    return float(wins_R.sum()) + float(positives_R.astype(np.float64) @ below_R), int(positives_R.sum()), int(negatives_R.sum())


def pair_wins(order: Order, labels_N: npt.NDArray[np.generic], group_N: npt.NDArray[np.integer], threads: int = 1) -> PairWins:
    """Wins in each group from 0; groups without rows among the others have none.

    Groups are numbered anew by size, and rows dealt out to shares of groups that fit into a core's cache, then to the groups: one counting sort by a million
    groups would miss the cache with every row.
    """
    parts = _parts(len(labels_N))
    with _each(threads, len(parts)) as each:
        num_groups = int(group_N.max()) + 1
        rows_G = sum(each(lambda thread: np.bincount(group_N[thread::threads], minlength=num_groups), range(threads)), np.zeros(num_groups, np.int64))
        by_size_G = np.argsort(rows_G, kind="stable")
        place_G = np.empty(num_groups, np.int32)
        place_G[by_size_G] = np.arange(num_groups)
        sizes_G = rows_G[by_size_G]
        _, first_S, share_G = np.unique((np.cumsum(sizes_G) - 1) // SHARE_ROWS, return_index=True, return_inverse=True)
        share_of_G = share_G.astype(np.int32)[place_G]

        def deal(part: slice) -> sparse.csr_matrix:
            group_P = group_N[part]
            return _dealt(order.keys(order.numbers(part), labels_N[part]), share_of_G[group_P], len(first_S), place_G[group_P])

        dealt = list(each(deal, parts))
        positives_G, wins_G = np.zeros(num_groups, np.int64), np.zeros(num_groups)

        def count(share: int) -> None:
            groups = slice(first_S[share], first_S[share + 1] if share + 1 < len(first_S) else num_groups)
            spans = [slice(*one.indptr[share : share + 2]) for one in dealt]
            key_P = np.concatenate([one.data[span] for one, span in zip(dealt, spans, strict=True)])
            place_P = np.concatenate([one.indices[span] for one, span in zip(dealt, spans, strict=True)]) - np.int32(groups.start)
            key_P = _dealt(key_P, place_P, groups.stop - groups.start).data
            positives_G[by_size_G[groups]], wins_G[by_size_G[groups]] = _by_size(key_P, sizes_G[groups])

        list(each(count, range(len(first_S))))
    return PairWins(rows_G, positives_G, wins_G)


def _parts(num_rows: int) -> list[slice]:
    return [slice(start, start + PART_ROWS) for start in range(0, num_rows, PART_ROWS)]


@contextmanager
def _each(threads: int, num_parts: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map` on so many threads; rows of one part are done before a thread has started."""
    if threads == 1 or num_parts == 1:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map


def _dealt(values_N: Keys, place_N: npt.NDArray[np.int32], num_places: int, beside_N: npt.NDArray[np.int32] | None = None) -> sparse.csr_matrix:
    """The values by place as `data`, what stands beside them as `indices`: a counting sort, as scipy brings entries into rows (and lets other threads run)."""
    columns_N = np.zeros(len(values_N), np.int32) if beside_N is None else beside_N
    entries = sparse.coo_matrix((values_N, (place_N, columns_N)), shape=(num_places, int(columns_N.max(initial=0)) + 1))
    entries.has_canonical_format = True  # or it would sum entries of one place
    return entries.tocsr()


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
    positive_n = (keys_n & 1).astype(np.float64)
    positives = int(positive_n.sum())
    wins = float(np.einsum("n,n->", positive_n, np.arange(len(keys_n), dtype=np.float64))) - positives * (positives - 1) / 2
    meet = np.flatnonzero((keys_n[1:] ^ keys_n[:-1]) == 1)
    below = meet + 1 - np.searchsorted(keys_n, keys_n[meet])
    above = np.searchsorted(keys_n, keys_n[meet + 1], side="right") - (meet + 1)
    return positives, wins - float(below @ above) / 2


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
