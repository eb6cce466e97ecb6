"""What is known of a stage's centroids before any row is: their scores' terms, and what rounding can have done to the difference of two scores.

A row's score for a centroid of a stage is x·(c - m) - |c|² / 2 - (what the codes so far took off), whose order is that of the distances of the residual: m, the
stage's mean, tells no centroids apart. So the rows' products with the centroids of all stages need no residual. With rounded rows and centroids, the difference
of two scores is wrong by at most |lost of x| |c_j - c_k| + |x| |lost of c_j - lost of c_k| (Cauchy-Schwarz), beside the rounding of sums.
Reads and writes nothing; longtail.nearest_cpu and longtail.nearest_device decide with it.
Letters: S stages, T stages before this one, K centroids, D vector width.
"""

import torch

FLOAT32 = 2.0**-24  # of a number, lost at most by rounding


class StageBounds:
    """One stage of a residual codebook float64 [S, K, D]; `rounded_KD`, float64, is what stands for the stage's centroids less their mean."""

    def __init__(self, exact_SKD: torch.Tensor, number: int, rounded_KD: torch.Tensor) -> None:
        exact_KD, before_TKD = exact_SKD[number], exact_SKD[:number]
        apart_KD = exact_KD - exact_KD.mean(0)
        half_square_K = (exact_KD**2).sum(1) / 2
        taken_TKK = before_TKD @ apart_KD.t()
        self.offset_K = -half_square_K - taken_TKK.mean(1).sum(0)
        self.taken_TKK = (taken_TKK - taken_TKK.mean(1, keepdim=True)).float()
        self.most_taken_TK = self.taken_TKK.abs().amax(2)
        lost_KD = apart_KD - rounded_KD
        self.longest = float(torch.maximum(apart_KD.norm(dim=1), rounded_KD.norm(dim=1)).max())
        # That residuals are rounded to float32 from stage to stage is as if the sums were a little longer.
        summing = 4 * (exact_KD.shape[1] + number) * FLOAT32 * self.longest
        self.per_lost_KK = _distances(exact_KD).float()
        self.per_length_KK = (_distances(lost_KD) + summing).float()
        self.most_residual = number * self.longest * float(before_TKD.norm(dim=2).amax(1).sum()) if number else 0.0
        most_taken = float(self.most_taken_TK.amax(1).sum()) if number else 0.0
        self.constant = 8 * FLOAT32 * ((number + 1) * (float(self.offset_K.abs().max()) + most_taken) + self.most_residual)


def _distances(rows_KD: torch.Tensor) -> torch.Tensor:
    """float64 [K, K], never too small: what a product may lose of a square is added."""
    squares_K = (rows_KD**2).sum(1)
    squares_KK = squares_K[:, None] + squares_K[None]
    return (squares_KK - 2 * (rows_KD @ rows_KD.t()) + (1e-13 + 4 * rows_KD.shape[1] * 2.0**-53) * squares_KK).clamp_(min=0).sqrt_()
