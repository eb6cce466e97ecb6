"""The nearest centroids on a device whose kernels torch launches: products in bfloat16, and the rows in doubt gathered.

A row's score carries a level that keeps scores near the best about zero, where bfloat16 is finest, and the terms that hang on the centroid alone are further
columns of the product. Rows whose best score stands clear of the second by the bound are done; the others' candidates are compared by their distances.
Reads and writes nothing; longtail.nearest calls it.
Letters: B rows, S stages, K centroids, D vector width, R rows in doubt, P pairs of a row in doubt and a centroid that may be its nearest.
"""

import torch

from longtail.nearest import among
from longtail.nearest_bounds import FLOAT32, StageBounds

_BLOCK_ROWS = 2048
_LEVEL_ROWS = 64
_BFLOAT16 = 2.0**-8  # of a number, lost at most by rounding


def _unit(dtype: torch.dtype) -> float:
    return _BFLOAT16 if dtype == torch.bfloat16 else FLOAT32


class DeviceCentroids:
    """A residual codebook float32 [S, K, D], made ready to be compared with many rows; not for several threads at once."""

    def __init__(self, codebook_SKD: torch.Tensor, dtype: torch.dtype) -> None:
        """`dtype` of the product, bfloat16 or float32."""
        self._codebook_SKD, self._dtype = codebook_SKD, dtype
        exact_SKD = codebook_SKD.double()
        self._stages = [_Stage(exact_SKD, stage, dtype) for stage in range(len(exact_SKD))]
        self._work: _Workspace | None = None
        if codebook_SKD.is_cuda:
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # the bounds are of sums in float32

    def __call__(self, rows_BD: torch.Tensor) -> torch.Tensor:
        """int64 [B, S]."""
        codes_BS = torch.empty(len(rows_BD), len(self._stages), dtype=torch.int64, device=rows_BD.device)
        if self._work is None and len(rows_BD):
            self._work = _Workspace(_BLOCK_ROWS, self._stages, rows_BD)
        for rows, codes in zip(torch.split(rows_BD, _BLOCK_ROWS), torch.split(codes_BS, _BLOCK_ROWS), strict=True):
            if self._work is not None:
                self._block(rows, codes, self._work)
        return codes_BS

    def _block(self, rows_BD: torch.Tensor, codes_BS: torch.Tensor, work: "_Workspace") -> None:
        """Fill in the codes of a block's rows."""
        work.multiply(rows_BD)
        margin = 1 + 4 * _unit(self._dtype)  # terms of second order
        length_B, lost_B = margin * torch.linalg.vector_norm(rows_BD, dim=1), margin * work.lost(rows_BD)
        for number, stage in enumerate(self._stages):
            before_BS, codes_B = codes_BS[:, :number], codes_BS[:, number]
            scores_BK = work.scores(number, before_BS)
            codes_B.copy_(scores_BK.argmax(1))
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


class _Stage(StageBounds):
    """With the centroids as the product takes them."""

    def __init__(self, exact_SKD: torch.Tensor, number: int, dtype: torch.dtype) -> None:
        self.exact_KD = exact_SKD[number]
        self.apart_KD = self.exact_KD - self.exact_KD.mean(0)
        self.rounded_KD = self.apart_KD.to(dtype)
        super().__init__(exact_SKD, number, self.rounded_KD.double())
        self.half_square_K = (self.exact_KD**2).sum(1) / 2
        self.most_per_lost_K, self.most_per_length_K = self.per_lost_KK.amax(1), self.per_length_KK.amax(1)

    def most_taken(self, before_BT: torch.Tensor) -> torch.Tensor:
        """float32 [B]: the most that the codes so far can take off a score."""
        most_B = torch.zeros(len(before_BT), device=before_BT.device)
        for most_K, code_B in zip(self.most_taken_TK, before_BT.unbind(1), strict=True):
            most_B += most_K[code_B]
        return most_B


class _Workspace:
    """Memory for one block's product, used again for every block: fresh memory would cost more than the product."""

    def __init__(self, size: int, stages: list[_Stage], rows_BD: torch.Tensor) -> None:
        device, dtype, (num_centroids, self._dim) = rows_BD.device, stages[0].rounded_KD.dtype, stages[0].rounded_KD.shape
        self._stages, self._num_centroids = stages, num_centroids
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
        constant = 8 * FLOAT32 * (self._largest_offsets[number] + stage.most_residual)
        return torch.add(2 * unit * best_B.abs() + constant, taken_B, alpha=2 * unit + 8 * FLOAT32)

    def lost(self, rows_BD: torch.Tensor) -> torch.Tensor:
        """float32 [B]: the length of what the rows of the last product lost by rounding."""
        lost_B: torch.Tensor = torch.linalg.vector_norm(
            torch.sub(rows_BD, self._rows_BC[: len(rows_BD), : self._dim], out=self._lost_BD[: len(rows_BD)]), dim=1
        )
        return lost_B


def _in_parts(offset_K: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Columns [K, 8] of `dtype` whose sum is the offset to 24 bits; zeros fill up what a kernel likes as a width."""
    columns, left_K = torch.zeros(len(offset_K), 8, dtype=dtype, device=offset_K.device), offset_K.clone()
    for number in range(3):
        columns[:, number] = left_K.to(dtype)
        left_K -= columns[:, number].double()
    return columns
