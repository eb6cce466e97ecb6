"""The nearest centroids on a CPU: int8 products, and loops compiled for the machine that read each product once.

Rows and centroids, each in steps of its own, meet as int8, whose products are exact. What rounding has lost is known for every row and every
pair of centroids, so that most codes are certain from the products alone; the centroids that are left are compared by their distances, in float32 and, where
that leaves a doubt, in float64. Loops are compiled when they first run, and kept beside this file or in the user's cache.
Reads and writes nothing; longtail.nearest calls it.
Letters: B rows of a block, S stages, K centroids, D vector width, C = S K columns of the product, P pairs of a stage and an earlier one, W words of 8 flags.
"""

import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longtail.int8_products import INT8_MAX, padded_rows, products, to_int8
from longtail.loops import compiled
from longtail.nearest import NOT_FINITE
from longtail.nearest_bounds import FLOAT32, StageBounds
from longtail.threads import by_parts

Floats = NDArray[np.float32]

_BLOCK_SCORES = 1 << 17  # of a block's product, which is to stay in the cache until it is read
_BLOCK_ROWS = (32, 2048)
_PART_BLOCKS = 16  # that a thread takes at a time
_LEAST_STEP = 1e-30
_LOST = 1 / 128  # of a row's length, by rounding to int8, more or less
_ALL_BUT_SIGN, _INFINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)  # of a float32's bits


class CpuCentroids:
    """A residual codebook float32 [S, K, D], made ready to be compared with many rows; each thread has memory of its own."""

    def __init__(self, codebook_SKD: Floats) -> None:
        assert codebook_SKD.dtype == np.float32, codebook_SKD.dtype  # compiled loops check nothing
        exact_SKD = torch.from_numpy(codebook_SKD).double()
        num_stages, _, self._dim = codebook_SKD.shape
        int8_SKD, bounds = [], []
        for number in range(num_stages):
            apart_KD = exact_SKD[number] - exact_SKD[number].mean(0)
            step_K = (apart_KD.abs().amax(1) / INT8_MAX).clamp_(min=_LEAST_STEP).float()
            int8_SKD.append(to_int8(apart_KD / step_K[:, None]))
            bounds.append((step_K, StageBounds(exact_SKD, number, int8_SKD[-1][:, : self._dim].double() * step_K[:, None])))
        self._int8_CD = padded_rows(torch.cat(int8_SKD))
        self._tables = (
            _stacked([step_K for step_K, _ in bounds]),
            _stacked([stage.offset_K for _, stage in bounds]),
            np.concatenate([stage.taken_TKK.numpy() for _, stage in bounds]),
            _stacked([stage.per_lost_KK * _LOST + stage.per_length_KK for _, stage in bounds]),
            np.array([stage.constant for _, stage in bounds], np.float32),
            np.array([stage.longest for _, stage in bounds], np.float32),
            np.ascontiguousarray(codebook_SKD),
        )
        self._size = int(np.clip(_BLOCK_SCORES // len(self._int8_CD), *_BLOCK_ROWS))
        self._of_thread = threading.local()

    def __call__(self, rows_BD: Floats) -> NDArray[np.int64]:
        """int64 [B, S].

        Raises:
            ValueError: a row's numbers are not finite.
        """
        assert rows_BD.dtype == np.float32 and rows_BD.shape[1] == self._dim, (rows_BD.dtype, rows_BD.shape)  # noqa: PT018
        rows_BD, codes_BS = np.ascontiguousarray(rows_BD), np.empty((len(rows_BD), len(self._tables[0])), np.int64)

        def part(where: slice) -> None:
            self._part(rows_BD[where], codes_BS[where])

        by_parts(part, len(rows_BD), self._size * _PART_BLOCKS)
        return codes_BS

    def _part(self, rows_BD: Floats, codes_BS: NDArray[np.int64]) -> None:
        work: _Block | None = getattr(self._of_thread, "work", None)
        if work is None:
            work = self._of_thread.work = _Block(self._size, self._int8_CD)
        for start in range(0, len(rows_BD), self._size):
            rows = rows_BD[start : start + self._size]
            _decide(work.multiply(rows), rows, work.step_B, work.length_B, work.lost_B, *self._tables, codes_BS[start : start + self._size])


class _Block:
    """Memory for one block's product, used again for every block."""

    def __init__(self, size: int, int8_CD: torch.Tensor) -> None:
        self._int8_CD = int8_CD
        self._int8_BD = torch.zeros(size, int8_CD.shape[1], dtype=torch.int8)
        self._product_BC = torch.empty(size, len(int8_CD), dtype=torch.int32)
        self.step_B, self.length_B, self.lost_B = np.empty((3, size), np.float32)

    def multiply(self, rows_BD: Floats) -> NDArray[np.int32]:
        """int32 [B, C], and what is known of each row."""
        if not _to_steps(rows_BD, self._int8_BD.numpy(), self.step_B, self.length_B, self.lost_B):
            raise ValueError(NOT_FINITE)
        found: NDArray[np.int32] = products(self._int8_BD, self._int8_CD, out=self._product_BC).numpy()[: len(rows_BD)]
        return found


def _stacked(tables: list[torch.Tensor]) -> Floats:
    found: Floats = torch.stack(tables).float().numpy()
    return found


@compiled(any_order=True)
def _to_steps(rows_BD: Floats, int8_BD: NDArray[np.int8], step_B: Floats, length_B: Floats, lost_B: Floats) -> bool:
    """Rows as int8 in steps of their own, their lengths and the lengths of what rounding took, neither length too small; False at a row that is not finite."""
    dim = rows_BD.shape[1]
    most_bits = np.empty(1, np.int32)
    margin, half_up = np.float32(1 + (dim + 8) * FLOAT32), np.float32(INT8_MAX + 1.5)
    for b in range(rows_BD.shape[0]):
        row_D, int8_D, bits_D = rows_BD[b], int8_BD[b], rows_BD[b].view(np.int32)
        most = np.int32(0)
        for d in range(dim):
            most = max(most, bits_D[d] & _ALL_BUT_SIGN)
        if most >= _INFINITE:
            return False
        most_bits[0] = most
        step = max(most_bits.view(np.float32)[0] / np.float32(INT8_MAX), np.float32(_LEAST_STEP))
        per_step = np.float32(1) / step
        squared, lost = np.float32(0), np.float32(0)
        for d in range(dim):
            steps = np.int32(row_D[d] * per_step + half_up) - np.int32(INT8_MAX + 1)
            int8_D[d] = np.int8(steps)
            left = row_D[d] - np.float32(steps) * step
            squared += row_D[d] * row_D[d]
            lost += left * left
        step_B[b] = step
        length_B[b] = np.sqrt(squared) * margin
        lost_B[b] = np.sqrt(lost) * margin + np.float32(2 * FLOAT32) * length_B[b]
    return True


@compiled(any_order=True)
def _decide(
    product_BC: NDArray[np.int32],
    rows_BD: Floats,
    step_B: Floats,
    length_B: Floats,
    lost_B: Floats,
    step_SK: Floats,
    offset_SK: Floats,
    taken_PKK: Floats,
    wrong_SKK: Floats,
    constant_S: Floats,
    longest_S: Floats,
    codebook_SKD: Floats,
    codes_BS: NDArray[np.int64],
) -> None:
    """A block's codes; the tables are longtail.nearest_bounds.StageBounds', stage by stage."""
    num_stages, num_centroids, dim = codebook_SKD.shape
    none = np.int32(num_centroids)
    score_K, candidates_K, left_D = np.empty(num_centroids, np.float32), np.empty(num_centroids + 1, np.int64), np.empty(dim, np.float32)
    bits_K = score_K.view(
        np.int32
    )  # whose order, but for the sign, is that of the numbers; LLVM finds the largest of whole numbers in vectors, not that of floats
    word_W = np.zeros(-(-num_centroids // 8), np.uint64)
    near_K = word_W.view(np.uint8)
    for b in range(product_BC.shape[0]):
        length = length_B[b] + lost_B[b]
        reach = max(length, lost_B[b] * np.float32(1 / _LOST))
        table, num_left = 0, -1
        for s in range(num_stages):
            product_K, offset_K, step_K, step = product_BC[b, s * num_centroids : (s + 1) * num_centroids], offset_SK[s], step_SK[s], step_B[b]
            if s == 0:
                for k in range(num_centroids):
                    score_K[k] = np.float32(product_K[k]) * (step * step_K[k]) + offset_K[k]
            else:
                if s > 1:
                    taken_K = taken_PKK[table, codes_BS[b, 0]]
                    for k in range(num_centroids):
                        score_K[k] = offset_K[k] - taken_K[k]
                    for t in range(1, s - 1):
                        taken_K = taken_PKK[table + t, codes_BS[b, t]]
                        for k in range(num_centroids):
                            score_K[k] -= taken_K[k]
                    offset_K = score_K
                taken_K = taken_PKK[table + s - 1, codes_BS[b, s - 1]]
                for k in range(num_centroids):
                    score_K[k] = np.float32(product_K[k]) * (step * step_K[k]) + (offset_K[k] - taken_K[k])
                table += s
            most = np.int32(-(2**31))
            for k in range(num_centroids):
                most = max(most, bits_K[k] ^ ((bits_K[k] >> np.int32(31)) & _ALL_BUT_SIGN))
            first, bits = none, most ^ ((most >> np.int32(31)) & _ALL_BUT_SIGN)
            for k in range(num_centroids):
                first = min(first, np.int32(k) if bits_K[k] == bits else none)
            best = score_K[first]
            least = best - constant_S[s] - np.float32(12 * FLOAT32) * longest_S[s] * length
            num, wrong_K = np.int32(0), wrong_SKK[s, first]
            for k in range(num_centroids):
                near = score_K[k] + wrong_K[k] * reach >= least
                near_K[k] = near
                num += np.int32(near)
            if num > 1:
                found = 0
                for word in range(len(word_W)):
                    if word_W[word] != 0:
                        for k in range(8 * word, min(8 * word + 8, num_centroids)):
                            candidates_K[found] = k
                            found += int(near_K[k])
                if num_left < 0:
                    left_D[:] = rows_BD[b]
                    num_left = 0
                for t in range(num_left, s):
                    _take_off(left_D, codebook_SKD[t, codes_BS[b, t]])
                num_left = s
                first = np.int32(_nearest_of(left_D, codebook_SKD[s], candidates_K[:found], score_K))
            codes_BS[b, s] = first


@compiled()
def _take_off(left_D: Floats, centroid_D: Floats) -> None:
    """In float32: what a stage leaves is rounded before the next one's is taken off."""
    for d in range(len(left_D)):
        left_D[d] -= centroid_D[d]


@compiled(any_order=True)
def _nearest_of(left_D: Floats, centroids_KD: Floats, candidates_K: NDArray[np.int64], squared_K: Floats) -> Any:
    """The nearest of the candidates, the lowest of those that are as near; `squared_K` is memory to work in."""
    least, dim = np.float32(np.inf), len(left_D)
    for place in range(len(candidates_K)):
        centroid_D = centroids_KD[candidates_K[place]]
        squared = np.float32(0)
        for d in range(dim):
            apart = left_D[d] - centroid_D[d]
            squared += apart * apart
        squared_K[place] = squared
        least = min(least, squared)
    close = least * np.float32(1 + 4 * dim * FLOAT32)
    num = 0
    for place in range(len(candidates_K)):
        if squared_K[place] <= close:
            candidates_K[num] = candidates_K[place]
            num += 1
    return candidates_K[0] if num < 2 else _nearest_exactly(left_D, centroids_KD, candidates_K[:num])


@compiled()
def _nearest_exactly(left_D: Floats, centroids_KD: Floats, candidates_K: NDArray[np.int64]) -> Any:
    """By float64 sums in the order of the columns, as longtail.nearest.among has them."""
    least, nearest = np.inf, candidates_K[0]
    for k in candidates_K:
        squared = 0.0
        for d in range(len(left_D)):
            apart = np.float64(left_D[d]) - np.float64(centroids_KD[k, d])
            squared += apart * apart
        if squared < least:
            least, nearest = squared, k
    return nearest
