"""Behaviour factors of items, and how they are told from what the encoder sees: a regression that stands beside the contrastive projection (ours).

Contrastive training on few steps learns what is common to whole regions of the frozen space, and more steps teach it the trained items by heart. What
near-duplicates and small product families share is local, and a kernel regression has that for the price of one linear system:

    factors     truncated SVD of log(1 + how much oftener two contents meet than chance), chance by the square root of their weights (Levy et al. 2015)
    regression  Gaussian kernel, ridge, on at most `max_landmarks` contents; those with few pairs count less

Contents without pairs get what their neighbours in the frozen space have, or, far from all, the mean.
Letters: U contents, I input width, L landmarks, F factors.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import solve

from longtail.pairs import Pairs

Floats = NDArray[np.float32]
_ROWS = 4096


@dataclass(frozen=True)
class FactorMap:
    """Inputs [N, I] to factors [N, F] = mean + sum over landmarks of exp(-|x - landmark|² / width) times its coefficients."""

    landmarks_LI: Floats
    coefficients_LF: Floats
    mean_F: Floats
    width: float


def item_factors(pairs: Pairs, num_contents: int, dim: int, seed: int) -> tuple[Floats, NDArray[np.float64]]:
    """Unit factors [U, dim], zeros for contents without pairs, and each content's weight over all pairs [U]."""
    from sklearn.utils.extmath import randomized_svd

    tied = pairs.neighbours(num_contents)
    mass_U = np.asarray(tied.sum(axis=1)).ravel()
    smooth_U = np.sqrt(mass_U)
    entries = tied.tocoo()
    oftener = entries.data * smooth_U.sum() ** 2 / mass_U.sum() / (smooth_U[entries.row] * smooth_U[entries.col])
    size = min(dim, num_contents - 1)
    left, values, _ = randomized_svd(sparse.csr_array((np.log1p(oftener), (entries.row, entries.col)), shape=tied.shape), size, random_state=seed)
    factors_UF = np.zeros((num_contents, dim), np.float32)
    factors_UF[:, :size] = left * np.sqrt(values)
    factors_UF[mass_U == 0] = 0  # rounding leaves 1e-20 there, of which a length of one would make a direction
    return factors_UF / np.maximum(np.linalg.norm(factors_UF, axis=1, keepdims=True), 1e-12), mass_U


def fit_factors(inputs_UI: Floats, factors_UF: Floats, mass_U: NDArray[np.float64], width: float, ridge: float, max_landmarks: int, seed: int) -> FactorMap:
    """The ridge regression of factors on inputs over the contents that have pairs; the landmarks are a random choice of these."""
    taught = np.flatnonzero(mass_U > 0)
    landmarks_LI = inputs_UI[np.sort(np.random.default_rng([seed, 6]).permutation(taught)[:max_landmarks])]
    sure_U = np.sqrt(mass_U / np.median(mass_U[taught])).clip(0.2, 5.0)
    mean_F = factors_UF[taught].mean(axis=0)
    square = ridge * kernel(landmarks_LI, landmarks_LI, width).astype(np.float64)
    right = np.zeros((len(landmarks_LI), factors_UF.shape[1]))
    for start in range(0, len(taught), _ROWS):
        rows = taught[start : start + _ROWS]
        near_RL = kernel(inputs_UI[rows], landmarks_LI, width).astype(np.float64)
        weighted = near_RL.T * sure_U[rows]
        square += weighted @ near_RL
        right += weighted @ (factors_UF[rows] - mean_F)
    square[np.diag_indices_from(square)] += 1e-6 * np.trace(square) / len(square)  # near-duplicates make rows that are all but equal
    return FactorMap(landmarks_LI, solve(square, right, assume_a="pos").astype(np.float32), mean_F, width)


def kernel(left_RI: Floats, right_LI: Floats, width: float) -> Floats:
    """exp(-|left - right|² / width) [R, L]."""
    squares = (left_RI**2).sum(axis=1)[:, None] + (right_LI**2).sum(axis=1) - 2 * left_RI @ right_LI.T
    near: Floats = np.exp(-np.maximum(squares, 0) / width)
    return near
