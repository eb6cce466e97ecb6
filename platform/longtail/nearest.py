"""The nearest centroid of each row, and of what it leaves, stage by stage: most of the work in numbers of few bits, the answer that of exact arithmetic.

The rows meet the centroids of all stages in one product, int8 on a CPU and bfloat16 on a GPU; what earlier stages took off a row is taken off its scores, from
a table of centroids by centroids, so that no residual is written down. What rounding can have done to the difference of two scores is bounded
(longtail.nearest_bounds); centroids that lie within the bound of a row's best are compared by their distances, in float64 where float32 leaves a doubt.
So a row's codes hang neither on the number of threads nor on which rows are asked for together.
Reads and writes nothing; longtail.codes and longtail.kmeans assign rows with it.
Letters: B rows, S stages, K centroids, D vector width, R rows in question, P pairs of a row and a centroid that may be its nearest.
"""

import torch

from longtail.nearest_bounds import FLOAT32

NOT_FINITE = "some vectors have numbers that are not finite: codes are of finite vectors. Look for NaN and infinite values where the vectors were made."


class NearestCentroids:
    """A residual codebook float32 [S, K, D], made ready to be compared with many rows of its device."""

    def __init__(self, codebook_SKD: torch.Tensor) -> None:
        # What compiles loops and what serves a GPU are imported where they are used: to encode a few rows takes neither.
        if codebook_SKD.device.type == "cpu":
            from longtail.nearest_cpu import CpuCentroids

            self._cpu = CpuCentroids(codebook_SKD.numpy())
            self._find = self._by_loops
        else:
            from longtail.nearest_device import DeviceCentroids

            self._find = DeviceCentroids(codebook_SKD, torch.bfloat16)

    def __call__(self, rows_BD: torch.Tensor) -> torch.Tensor:
        """int64 [B, S]: the number of the centroid nearest to each row, then to what it leaves in float32; the lowest where several are as near.

        Raises:
            ValueError: on a CPU, where a row's numbers are not finite.
        """
        return self._find(rows_BD)

    def _by_loops(self, rows_BD: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._cpu(rows_BD.numpy()))


def among(rows_RD: torch.Tensor, centroids_KD: torch.Tensor, row_P: torch.Tensor, code_P: torch.Tensor) -> torch.Tensor:
    """int64 [R]: the nearest of each row's candidates, of which every row has one."""
    sum_ = 2 * centroids_KD.shape[1] * FLOAT32
    float32_P = _squared(rows_RD.index_select(0, row_P), centroids_KD.index_select(0, code_P)).sum(1)
    close_P = float32_P <= _least(float32_P, row_P, len(rows_RD)) * (1 + 2 * sum_)
    row_P, code_P = row_P[close_P], code_P[close_P]
    lowest_R = torch.full((len(rows_RD),), len(centroids_KD), device=rows_RD.device).scatter_(0, row_P, code_P)
    tied_P = (torch.bincount(row_P) > 1)[row_P]
    if tied_P.any():
        row_P, code_P = row_P[tied_P], code_P[tied_P]
        # On a CPU in the order of the columns, as nearest_cpu has it.
        float64_P = _squared(rows_RD[row_P].double(), centroids_KD[code_P].double()).cumsum(1)[:, -1]
        nearest_P = float64_P == _least(float64_P, row_P, len(rows_RD))
        lowest_R[row_P] = len(centroids_KD)
        lowest_R.scatter_reduce_(0, row_P[nearest_P], code_P[nearest_P], "amin")
    return lowest_R


def _squared(rows_PD: torch.Tensor, others_PD: torch.Tensor) -> torch.Tensor:
    return rows_PD.sub_(others_PD).square_()


def _least(values_P: torch.Tensor, row_P: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The least value of the pair's row, for each pair."""
    least_R = torch.full((num_rows,), torch.inf, dtype=values_P.dtype, device=values_P.device).scatter_reduce_(0, row_P, values_P, "amin")
    return least_R[row_P]
