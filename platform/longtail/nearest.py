"""The nearest centroid of each row: most of the work in bfloat16, the answer that of exact arithmetic.

Where the machine multiplies bfloat16 faster than float32, rows and centroids are rounded to it. What that can have done to the difference of two scores is
bounded by Cauchy-Schwarz, for each pair of centroids by itself; centroids that lie within the bound of a row's best are compared by their distances, in
float64 where float32 leaves a doubt. So a row's code hangs neither on the machine, nor on its number of threads, nor on which rows are asked for together.
Reads and writes nothing; longtail.codes and longtail.kmeans assign rows with it.
Letters: B rows, K centroids, D vector width, R rows in doubt, P pairs of a row in doubt and a centroid that may be its nearest.
"""

from functools import lru_cache

import torch

_BLOCK_ROWS = 2048
_LEVEL_ROWS = 64
_BFLOAT16 = 2.0**-8  # of a number, lost at most by rounding
_FLOAT32 = 2.0**-24


@lru_cache
def has_bfloat16_units() -> bool:
    """Whether this machine's CPU multiplies bfloat16 faster than float32."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16", False) or has.get("amx_bf16", False))


def nearest(rows_BD: torch.Tensor, centroids_KD: torch.Tensor) -> torch.Tensor:
    """`NearestCentroid` for once."""
    return NearestCentroid(centroids_KD)(rows_BD)


class NearestCentroid:
    """Centroids float32 [K, D], made ready to be compared with many rows, in one thread at a time.

    A row's score for a centroid is x·(c - m) - |c|² / 2 - level, whose order is that of the distances: m, the centroids' mean, tells none of them apart, and
    the level keeps scores near the best about zero, where bfloat16 is finest. The last two terms are further columns of the one product.
    """

    def __init__(self, centroids_KD: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        """`dtype` of the product, bfloat16 or float32; None: what is faster here."""
        self._dtype = dtype or (torch.bfloat16 if centroids_KD.is_cuda or has_bfloat16_units() else torch.float32)
        self.centroids_KD = centroids_KD
        exact_KD = centroids_KD.double()
        self._mean_D = exact_KD.mean(0)
        apart_KD = exact_KD - self._mean_D
        self._offset_K = -(exact_KD**2).sum(1) / 2
        self._rounded_KD = apart_KD.to(self._dtype)
        lost_KD = apart_KD - self._rounded_KD.double()
        # What may be wrong about s_j - s_k: what the row lost, times the distance of c_j and c_k; and its length, times what the two lost against each other.
        self._unit = _BFLOAT16 if self._dtype == torch.bfloat16 else _FLOAT32
        self._sum = 2 * centroids_KD.shape[1] * _FLOAT32
        summing = 2 * self._sum * float(apart_KD.norm(dim=1).max())
        self._per_lost_KK = _distances(exact_KD).float()
        self._per_length_KK = (_distances(lost_KD) + summing).float()
        self._most_per_length_K = self._unit * self._per_lost_KK.amax(1) + self._per_length_KK.amax(1)
        self._workspace: _Workspace | None = None

    def __call__(self, rows_BD: torch.Tensor) -> torch.Tensor:
        """int64 [B]: the number of each row's nearest centroid, the lowest where several are as near."""
        if not len(rows_BD):
            return torch.zeros(0, dtype=torch.int64, device=rows_BD.device)
        if self._workspace is None:
            # The level only keeps doubts few: that of the first rows will do for all.
            few_RD = rows_BD[:: max(len(rows_BD) // _LEVEL_ROWS, 1)].double()
            level = float((few_RD @ (self.centroids_KD.double() - self._mean_D).t() + self._offset_K).amax(1).mean())
            self._workspace = _Workspace(min(len(rows_BD), _BLOCK_ROWS), self._rounded_KD, self._offset_K - level)
        return torch.cat([self._block(rows, self._workspace) for rows in torch.split(rows_BD, self._workspace.size)])

    def _block(self, rows_BD: torch.Tensor, work: "_Workspace") -> torch.Tensor:
        scores_BK = work.scores(rows_BD)
        codes_B = argmax(scores_BK)
        best_B = scores_BK.gather(1, codes_B[:, None]).flatten()
        margin = 1 + 4 * self._unit  # terms of second order
        length_B = margin * torch.linalg.vector_norm(rows_BD, dim=1)
        rounding_B = margin * (2 * self._unit * best_B.abs() + _FLOAT32 * work.largest_offset)
        second_B = scores_BK.scatter_(1, codes_B[:, None], -torch.inf).amax(1)
        doubt_R = (second_B + torch.addcmul(rounding_B, self._most_per_length_K[codes_B], length_B) >= best_B).nonzero().flatten()
        if len(doubt_R):
            first_R, rows_RD = codes_B[doubt_R], rows_BD.index_select(0, doubt_R)
            lost_R = margin * work.lost(rows_RD, doubt_R)
            bound_RK = self._per_lost_KK[first_R].mul_(lost_R[:, None]).addcmul_(self._per_length_KK[first_R], length_B[doubt_R, None])
            within_RK = scores_BK[doubt_R].add_(bound_RK) >= (best_B - rounding_B)[doubt_R, None]
            codes_B[doubt_R] = self._among(rows_RD, within_RK.scatter_(1, first_R[:, None], True))
        return codes_B

    def _among(self, rows_RD: torch.Tensor, within_RK: torch.Tensor) -> torch.Tensor:
        """int64 [R]: the nearest of each row's candidates."""
        row_P, code_P = within_RK.nonzero(as_tuple=True)
        float32_P = _squared(rows_RD.index_select(0, row_P), self.centroids_KD.index_select(0, code_P))
        close_P = float32_P <= _least(float32_P, row_P, len(rows_RD)) * (1 + 2 * self._sum)
        row_P, code_P = row_P[close_P], code_P[close_P]
        lowest_R = torch.full((len(rows_RD),), len(self.centroids_KD), device=rows_RD.device).scatter_(0, row_P, code_P)
        tied_P = (torch.bincount(row_P) > 1)[row_P]
        if tied_P.any():
            row_P, code_P = row_P[tied_P], code_P[tied_P]
            float64_P = _squared(rows_RD[row_P].double(), self.centroids_KD[code_P].double())
            nearest_P = float64_P == _least(float64_P, row_P, len(rows_RD))
            lowest_R[row_P] = len(self.centroids_KD)
            lowest_R.scatter_reduce_(0, row_P[nearest_P], code_P[nearest_P], "amin")
        return lowest_R


class _Workspace:
    """Memory for one block's product, used again for every block: fresh memory would cost more than the product."""

    def __init__(self, size: int, rounded_KD: torch.Tensor, offset_K: torch.Tensor) -> None:
        device, (num_centroids, self._dim) = rounded_KD.device, rounded_KD.shape
        self.size = size
        columns_KC = _in_parts(offset_K, rounded_KD.dtype)
        self._matrix_CK = torch.cat([rounded_KD, columns_KC], 1).t().contiguous()
        self._rows_BC = torch.ones(size, len(self._matrix_CK), dtype=rounded_KD.dtype, device=device)
        self._product_BK = torch.empty(size, num_centroids, dtype=rounded_KD.dtype, device=device)
        self._float_BK = torch.empty(size, num_centroids, device=device)
        self.largest_offset = float(offset_K.abs().max())

    def scores(self, rows_BD: torch.Tensor) -> torch.Tensor:
        """float32 [B, K], to be used before the next block's."""
        size = len(rows_BD)
        self._rows_BC[:size, : self._dim] = rows_BD
        torch.mm(self._rows_BC[:size], self._matrix_CK, out=self._product_BK[:size])
        return self._float_BK[:size].copy_(self._product_BK[:size])

    def lost(self, rows_RD: torch.Tensor, place_R: torch.Tensor) -> torch.Tensor:
        """float32 [R]: the length of what rows lost by rounding, which stood at `place_R` when the last scores were made."""
        lost_R: torch.Tensor = torch.linalg.vector_norm(self._rows_BC[place_R, : self._dim].float().sub_(rows_RD), dim=1)
        return lost_R


def _in_parts(offset_K: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Columns [K, 8] of `dtype` whose sum is the offset to 24 bits; zeros fill up what a kernel likes as a width."""
    columns, left_K = torch.zeros(len(offset_K), 8, dtype=dtype, device=offset_K.device), offset_K.clone()
    for number in range(3):
        columns[:, number] = left_K.to(dtype)
        left_K -= columns[:, number].double()
    return columns


def argmax(scores_BK: torch.Tensor) -> torch.Tensor:
    """int64 [B]: numpy finds it several times quicker than torch on a CPU."""
    return torch.from_numpy(scores_BK.numpy().argmax(axis=1)) if scores_BK.device.type == "cpu" else scores_BK.argmax(1)


def _squared(rows_PD: torch.Tensor, others_PD: torch.Tensor) -> torch.Tensor:
    return rows_PD.sub_(others_PD).square_().sum(1)


def _least(values_P: torch.Tensor, row_P: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The least value of the pair's row, for each pair."""
    least_R = torch.full((num_rows,), torch.inf, dtype=values_P.dtype, device=values_P.device).scatter_reduce_(0, row_P, values_P, "amin")
    return least_R[row_P]


def _distances(rows_KD: torch.Tensor) -> torch.Tensor:
    """float64 [K, K], never too small: what a product may lose of a square is added."""
    squares_K = (rows_KD**2).sum(1)
    squares_KK = squares_K[:, None] + squares_K[None]
    return (squares_KK - 2 * (rows_KD @ rows_KD.t()) + 1e-13 * squares_KK).clamp_(min=0).sqrt_()
