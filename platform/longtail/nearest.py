"""The nearest centroid of each row, and of what it leaves, stage by stage: most of the work in bfloat16, the answer that of exact arithmetic.

Where the machine multiplies bfloat16 faster than float32, rows and centroids are rounded to it, and the rows meet the centroids of all stages in one product:
what earlier stages took off a row is taken off its scores, from a table of centroids by centroids, so that no residual is ever written down.
What rounding can have done to the difference of two scores is bounded by Cauchy-Schwarz, for each pair of centroids by itself; centroids that lie within the
bound of a row's best are compared by their distances, in float64 where float32 leaves a doubt. So a row's codes hang neither on the machine, nor on its number
of threads, nor on which rows are asked for together.
Reads and writes nothing; longtail.codes and longtail.kmeans assign rows with it.
Letters: B rows, S stages, K centroids, D vector width, R rows in doubt, P pairs of a row in doubt and a centroid that may be its nearest.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

_BLOCK_ROWS = 2048
_PART_ROWS = 4 * _BLOCK_ROWS
_LEVEL_ROWS = 64
_BFLOAT16 = 2.0**-8  # of a number, lost at most by rounding
_FLOAT32 = 2.0**-24


def _unit(dtype: torch.dtype) -> float:
    return _BFLOAT16 if dtype == torch.bfloat16 else _FLOAT32


@lru_cache
def has_bfloat16_units() -> bool:
    """Whether this machine's CPU multiplies bfloat16 faster than float32."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16", False) or has.get("amx_bf16", False))


class NearestCentroids:
    """A residual codebook float32 [S, K, D], made ready to be compared with many rows; each thread has memory of its own.

    A row's score for a centroid of a stage is x·(c - m) - |c|² / 2 - level - (what the codes so far took off), whose order is that of the distances of the
    residual: m, the stage's mean, tells no centroids apart, and the level keeps scores near the best about zero, where bfloat16 is finest. The terms that hang
    on the centroid alone are further columns of the product.
    """

    def __init__(self, codebook_SKD: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        """`dtype` of the product, bfloat16 or float32; None: what is faster here."""
        self._dtype = dtype or (torch.bfloat16 if codebook_SKD.is_cuda or has_bfloat16_units() else torch.float32)
        self._codebook_SKD = codebook_SKD
        exact_SKD = codebook_SKD.double()
        self._stages = [_Stage(exact_SKD, stage, self._dtype) for stage in range(len(exact_SKD))]
        self._of_thread = threading.local()

    def __call__(self, rows_BD: torch.Tensor) -> torch.Tensor:
        """int64 [B, S]: the number of the centroid nearest to each row, then to what it leaves in float32; the lowest where several are as near."""
        codes_BS = torch.empty(len(rows_BD), len(self._stages), dtype=torch.int64, device=rows_BD.device)
        parts = list(zip(torch.split(rows_BD, _PART_ROWS), torch.split(codes_BS, _PART_ROWS), strict=True)) if len(rows_BD) else []
        threads = torch.get_num_threads()
        if len(parts) < 2 or threads == 1 or rows_BD.is_cuda:
            for rows, codes in parts:
                self._part(rows, codes)
            return codes_BS
        # A block's products are small: two threads do two blocks in half of the time that they need for one after the other.
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(self._part, *zip(*parts, strict=True)))
        finally:
            torch.set_num_threads(threads)
        return codes_BS

    def _part(self, rows_BD: torch.Tensor, codes_BS: torch.Tensor) -> None:
        work: _Workspace | None = getattr(self._of_thread, "work", None)
        if work is None:
            work = self._of_thread.work = _Workspace(min(len(rows_BD), _BLOCK_ROWS), self._stages, rows_BD)
        for rows, codes in zip(torch.split(rows_BD, work.size), torch.split(codes_BS, work.size), strict=True):
            self._block(rows, codes, work)

    def _block(self, rows_BD: torch.Tensor, codes_BS: torch.Tensor, work: "_Workspace") -> None:
        """Fill in the codes of a block's rows."""
        work.multiply(rows_BD)
        margin = 1 + 4 * _unit(self._dtype)  # terms of second order
        length_B, lost_B = margin * torch.linalg.vector_norm(rows_BD, dim=1), margin * work.lost(rows_BD)
        for number, stage in enumerate(self._stages):
            before_BS, codes_B = codes_BS[:, :number], codes_BS[:, number]
            scores_BK = work.scores(number, before_BS)
            codes_B.copy_(argmax(scores_BK))
            best_B = scores_BK.gather(1, codes_B[:, None]).flatten()
            rounding_B = margin * work.rounding(number, best_B, stage.most_taken(before_BS))
            most_B = torch.addcmul(rounding_B, stage.most_per_lost_K[codes_B], lost_B).addcmul_(stage.most_per_length_K[codes_B], length_B)
            second_B = scores_BK.scatter_(1, codes_B[:, None], -torch.inf).amax(1)
            doubt_R = (second_B + most_B >= best_B).nonzero().flatten()
            if not len(doubt_R):
                continue
            # Those within the row's own bound, then within the bound of the two centroids.
            row_P, code_P = (scores_BK.index_select(0, doubt_R) >= (best_B - most_B)[doubt_R, None]).nonzero(as_tuple=True)
            place_P = doubt_R[row_P]
            first_P = codes_B[place_P]
            bound_P = torch.addcmul(rounding_B[place_P], stage.per_lost_KK[first_P, code_P], lost_B[place_P])
            bound_P.addcmul_(stage.per_length_KK[first_P, code_P], length_B[place_P])
            within_P = scores_BK[place_P, code_P] + bound_P >= best_B[place_P]
            place_P, code_P = place_P[within_P], code_P[within_P]
            doubt_R, row_P = torch.unique_consecutive(place_P, return_inverse=True)
            if not len(doubt_R):
                continue
            left_RD = rows_BD.index_select(0, doubt_R)
            for before, code_R in enumerate(before_BS[doubt_R].unbind(1)):
                left_RD -= self._codebook_SKD[before].index_select(0, code_R)
            row_P, code_P = torch.cat([torch.arange(len(doubt_R), device=row_P.device), row_P]), torch.cat([codes_B[doubt_R], code_P])
            codes_B[doubt_R] = among(left_RD, self._codebook_SKD[number], row_P, code_P)


class _Stage:
    """What is known of one stage's centroids before any row is."""

    def __init__(self, exact_SKD: torch.Tensor, number: int, dtype: torch.dtype) -> None:
        self.exact_KD, before_TKD = exact_SKD[number], exact_SKD[:number]
        self.apart_KD = self.exact_KD - self.exact_KD.mean(0)
        self.rounded_KD = self.apart_KD.to(dtype)
        self.half_square_K = (self.exact_KD**2).sum(1) / 2
        taken_TKK = before_TKD @ self.apart_KD.t()
        self.offset_K = -self.half_square_K - taken_TKK.mean(1).sum(0)
        self.taken_TKK = (taken_TKK - taken_TKK.mean(1, keepdim=True)).float()
        self._most_taken_TK = self.taken_TKK.abs().amax(2)
        lost_KD = self.apart_KD - self.rounded_KD.double()
        longest = float(self.apart_KD.norm(dim=1).max())
        # What may be wrong about s_j - s_k: what the row lost, times the distance of c_j and c_k; and its length, times what the two lost against each other.
        # That residuals are rounded to float32 from stage to stage is as if the sums were a little longer.
        summing = 4 * (self.exact_KD.shape[1] + number) * _FLOAT32 * longest
        self.per_lost_KK = _distances(self.exact_KD).float()
        self.per_length_KK = (_distances(lost_KD) + summing).float()
        self.most_per_lost_K, self.most_per_length_K = self.per_lost_KK.amax(1), self.per_length_KK.amax(1)
        self.most_residual = number * longest * float(before_TKD.norm(dim=2).amax(1).sum()) if number else 0.0

    def most_taken(self, before_BT: torch.Tensor) -> torch.Tensor:
        """float32 [B]: the most that the codes so far can take off a score."""
        most_B = torch.zeros(len(before_BT), device=before_BT.device)
        for most_K, code_B in zip(self._most_taken_TK, before_BT.unbind(1), strict=True):
            most_B += most_K[code_B]
        return most_B


class _Workspace:
    """Memory for one block's product, used again for every block: fresh memory would cost more than the product."""

    def __init__(self, size: int, stages: list[_Stage], rows_BD: torch.Tensor) -> None:
        device, dtype, (num_centroids, self._dim) = rows_BD.device, stages[0].rounded_KD.dtype, stages[0].rounded_KD.shape
        self.size, self._stages, self._num_centroids = size, stages, num_centroids
        left_RD, columns, self._largest_offsets = rows_BD[:: max(len(rows_BD) // _LEVEL_ROWS, 1)].double(), [], []
        for stage in stages:
            best_R, code_R = (left_RD @ stage.apart_KD.t() - stage.half_square_K).max(1)
            left_RD = left_RD - stage.exact_KD[code_R]
            offset_K = stage.offset_K - best_R.mean()  # the level only keeps doubts few: that of some rows will do for all
            columns.append(torch.cat([stage.rounded_KD, _in_parts(offset_K, dtype)], 1))
            self._largest_offsets.append(float(offset_K.abs().max()))
        self._matrix_CK = torch.cat(columns).t().contiguous()
        self._rows_BC = torch.ones(size, len(self._matrix_CK), dtype=dtype, device=device)
        self._product_BK = torch.empty(size, len(stages) * num_centroids, dtype=dtype, device=device)
        self._lost_BD = torch.empty(size, self._dim, device=device)
        self._float_BK, self._taken_BK = torch.empty(2, size, num_centroids, device=device)

    def multiply(self, rows_BD: torch.Tensor) -> None:
        """All products of a block's rows."""
        size = len(rows_BD)
        self._rows_BC[:size, : self._dim] = rows_BD
        torch.mm(self._rows_BC[:size], self._matrix_CK, out=self._product_BK[:size])

    def scores(self, number: int, before_BT: torch.Tensor) -> torch.Tensor:
        """float32 [B, K] of one stage, to be used before the next one's."""
        size, start = len(before_BT), number * self._num_centroids
        scores_BK: torch.Tensor = self._float_BK[:size].copy_(self._product_BK[:size, start : start + self._num_centroids])
        for taken_KK, code_B in zip(self._stages[number].taken_TKK, before_BT.unbind(1), strict=True):
            scores_BK -= torch.index_select(taken_KK, 0, code_B, out=self._taken_BK[:size])
        return scores_BK

    def rounding(self, number: int, best_B: torch.Tensor, taken_B: torch.Tensor) -> torch.Tensor:
        """float32 [B]: what a stage's scores may be wrong by beside what hangs on the rows' lengths: rounding to the product's type, and sums of float32."""
        stage, unit = self._stages[number], _unit(self._rows_BC.dtype)
        constant = 8 * _FLOAT32 * (self._largest_offsets[number] + stage.most_residual)
        return torch.add(2 * unit * best_B.abs() + constant, taken_B, alpha=2 * unit + 8 * _FLOAT32)

    def lost(self, rows_BD: torch.Tensor) -> torch.Tensor:
        """float32 [B]: the length of what the rows of the last product lost by rounding."""
        lost_B: torch.Tensor = torch.linalg.vector_norm(
            torch.sub(rows_BD, self._rows_BC[: len(rows_BD), : self._dim], out=self._lost_BD[: len(rows_BD)]), dim=1
        )
        return lost_B


def among(rows_RD: torch.Tensor, centroids_KD: torch.Tensor, row_P: torch.Tensor, code_P: torch.Tensor) -> torch.Tensor:
    """int64 [R]: the nearest of each row's candidates, of which every row has one."""
    sum_ = 2 * centroids_KD.shape[1] * _FLOAT32
    float32_P = _squared(rows_RD.index_select(0, row_P), centroids_KD.index_select(0, code_P))
    close_P = float32_P <= _least(float32_P, row_P, len(rows_RD)) * (1 + 2 * sum_)
    row_P, code_P = row_P[close_P], code_P[close_P]
    lowest_R = torch.full((len(rows_RD),), len(centroids_KD), device=rows_RD.device).scatter_(0, row_P, code_P)
    tied_P = (torch.bincount(row_P) > 1)[row_P]
    if tied_P.any():
        row_P, code_P = row_P[tied_P], code_P[tied_P]
        float64_P = _squared(rows_RD[row_P].double(), centroids_KD[code_P].double())
        nearest_P = float64_P == _least(float64_P, row_P, len(rows_RD))
        lowest_R[row_P] = len(centroids_KD)
        lowest_R.scatter_reduce_(0, row_P[nearest_P], code_P[nearest_P], "amin")
    return lowest_R


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
