"""A k-means pass on a CPU: int8 products, read once by compiled loops, and the sums of the rows that moved.

Reads and writes nothing; longtail.kmeans calls it.
Letters: N rows, B rows of a block, K centroids, D vector width, T draws that are tried.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from longtail.int8_products import products
from longtail.loops import compiled
from longtail.threads import by_parts

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK_SCORES = 1 << 17  # of a block's product, which is to stay in the cache until it is read
_PART_ROWS = 8192  # that a thread takes at a time


def nearest(int8_ND: torch.Tensor, int8_KD: torch.Tensor, offset_K: torch.Tensor) -> Ints:
    """int64 [N]: the centroid of the largest product less offset, the lowest where several are as large; what int8_KD has beyond the offsets is padding."""
    codes_N = np.empty(len(int8_ND), np.int64)
    size = max(_BLOCK_SCORES // len(int8_KD), 32)

    def part(where: slice) -> None:
        product_BK = torch.empty(size, len(int8_KD), dtype=torch.int32)
        for start in range(where.start, where.stop, size):
            block = int8_ND[start : min(start + size, where.stop)]
            _best(products(block, int8_KD, out=product_BK[: len(block)]).numpy(), offset_K.numpy(), codes_N[start : start + len(block)])

    by_parts(part, len(int8_ND), max(_PART_ROWS, size))
    return codes_N


def moves(rows_ND: Floats, before_N: Ints, now_N: Ints, num_centroids: int) -> tuple[Doubles, Ints]:
    """What the centroids' sums float64 [K, D] and counts [K] gain by rows that change from one to another; before is -1 for rows that had none."""

    def part(where: slice) -> tuple[Doubles, Ints]:
        sums_KD, counts_K = np.zeros((num_centroids, rows_ND.shape[1])), np.zeros(num_centroids, np.int64)
        _moves(rows_ND[where], before_N[where], now_N[where], sums_KD, counts_K)
        return sums_KD, counts_K

    parts = by_parts(part, len(rows_ND), -(-len(rows_ND) // torch.get_num_threads()))
    sums, counts = zip(*parts, strict=True)
    return np.sum(sums, axis=0), np.sum(counts, axis=0)


@compiled()
def _best(product_BK: NDArray[np.int32], offset_K: NDArray[np.int32], codes_B: Ints) -> None:
    num_centroids = len(offset_K)
    none, score_K = np.int32(num_centroids), np.empty(num_centroids, np.int32)
    for b in range(len(codes_B)):
        product_K, most = product_BK[b], np.int32(-(2**31))
        for k in range(num_centroids):
            score_K[k] = product_K[k] - offset_K[k]
            most = max(most, score_K[k])
        first = none
        for k in range(num_centroids):
            first = min(first, np.int32(k) if score_K[k] == most else none)
        codes_B[b] = first


@compiled()
def _moves(rows_ND: Floats, before_N: Ints, now_N: Ints, sums_KD: Doubles, counts_K: Ints) -> None:
    for n in range(len(now_N)):
        before, now = before_N[n], now_N[n]
        if before != now:
            row_D, sum_D = rows_ND[n], sums_KD[now]
            counts_K[now] += 1
            for d in range(len(row_D)):
                sum_D[d] += np.float64(row_D[d])
            if before >= 0:
                sum_D = sums_KD[before]
                counts_K[before] -= 1
                for d in range(len(row_D)):
                    sum_D[d] -= np.float64(row_D[d])


@compiled()
def closer_by(closest_N: Doubles, squares_N: Doubles, product_NT: NDArray[np.int32], squares_T: Doubles, left_T: Doubles) -> None:
    """left_T: the sum of all rows' squared distances to the nearest centroid, if the row that is tried became one; whole numbers, so in any order."""
    left_T[:] = 0.0
    for n in range(len(closest_N)):
        for t in range(len(left_T)):
            squared = squares_N[n] - 2.0 * np.float64(product_NT[n, t]) + squares_T[t]
            left_T[t] += squared if squared < closest_N[n] else closest_N[n]
