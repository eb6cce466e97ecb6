"""Ranking metrics on numpy arrays: AUC, GAUC (ChoirRec, training and metric), log loss, calibration.

Pure functions; each sorts once. Where a metric has no value (one class only, no rows) it is nan, never a made-up number.
Letters: N rows, U users, K score values, Q bins.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longtail.pair_wins import Order, pair_wins, pair_wins_overall

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PROBABILITY_FLOOR = 1e-7  # float32 rounds 1 - 1e-8 to 1, so a log loss without a floor is infinite on a saturated ranker


def auc(labels: ArrayLike, scores: ArrayLike, threads: int = 1) -> float:
    """Share of (positive, negative) pairs that [N] `scores` order rightly, ties counting one half; nan unless both classes are there.

    Raises:
        ValueError: shapes differ, a label is not 0 or 1, or a score is not finite.
    """
    labels_N, scores_N = _refused(labels, scores)
    if len(labels_N) == 0:
        return float("nan")
    wins, positives, negatives = pair_wins_overall(Order(scores_N), labels_N, threads)
    return wins / (positives * negatives) if positives and negatives else float("nan")


class PresortedAuc:
    """AUC of the same rows under many weights of their groups: the sort is paid once (a bootstrap over users asks hundreds of times)."""

    def __init__(self, labels: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None) -> None:
        """Rows [N] with the number of their group from 0; without `groups` every row is its own."""
        labels_N, scores_N = _checked(labels, scores)
        order_N = np.argsort(scores_N, kind="stable")
        sorted_N = scores_N[order_N]
        self.group_N = order_N if groups is None else np.asarray(groups)[order_N]
        self.positive_N = labels_N[order_N].astype(np.float64)
        self.starts_K = np.flatnonzero(np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]])) if len(sorted_N) else np.zeros(0, dtype=np.int64)

    def __call__(self, weights_G: Floats) -> float:
        """AUC with each group's rows counted `weights_G` times; nan where a class has no weight."""
        if len(self.starts_K) == 0:
            return float("nan")
        weights_K = weights_G[self.group_N]
        positives_K = weights_K * self.positive_N
        if len(self.starts_K) < len(weights_K):  # tied scores count together
            positives_K = np.add.reduceat(positives_K, self.starts_K)
            weights_K = np.add.reduceat(weights_K, self.starts_K)
        negatives_K = weights_K - positives_K
        below_K = np.cumsum(negatives_K)
        pairs = positives_K.sum() * below_K[-1]
        if pairs <= 0:
            return float("nan")
        return float((positives_K @ below_K - 0.5 * (positives_K @ negatives_K)) / pairs)


@dataclass(frozen=True)
class UserAucs:
    """AUC of each user's own rows, in ascending order of the user numbers; nan where a user has one class only."""

    users_U: Ints
    auc_U: Floats
    rows_U: Ints
    positives_U: Ints

    @property
    def gauc(self) -> float:
        """The users' AUCs averaged with weight = that user's rows, users with one class left out; nan where none is left."""
        return weighted_mean(self.auc_U, self.rows_U.astype(np.float64))


def user_aucs(labels: ArrayLike, scores: ArrayLike, users: ArrayLike, threads: int = 1) -> UserAucs:
    """AUC per user from [N] labels, scores and integer user numbers.

    Raises:
        ValueError: shapes differ, a label is not 0 or 1, or a score is not finite.
    """
    labels_N, scores_N = _refused(labels, scores)
    users_N = np.asarray(users)
    if users_N.shape != labels_N.shape:
        raise ValueError(f"users has shape {users_N.shape}, labels {labels_N.shape}: give one user per row.")
    if len(users_N) == 0:
        return UserAucs(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    users_U, number_N = _numbered(users_N)
    found = pair_wins(Order(scores_N), labels_N, number_N, threads)
    there = found.rows_G > 0
    return UserAucs(users_U[there], found.shares()[there], found.rows_G[there], found.positives_G[there])


def _numbered(users_N: NDArray[np.integer]) -> tuple[Ints, NDArray[np.integer]]:
    """Ascending users, and the place of each row's [N] among them; users without rows are among them where the numbers lie close together."""
    first, last = int(users_N.min()), int(users_N.max())
    if last - first < 4 * len(users_N):
        return np.arange(first, last + 1), users_N - first if first else users_N
    distinct_U, number_N = np.unique(users_N, return_inverse=True)
    return distinct_U.astype(np.int64), number_N


def gauc(labels: ArrayLike, scores: ArrayLike, users: ArrayLike, threads: int = 1) -> float:
    """AUC per user, averaged with weight = that user's samples, users with one class left out (ChoirRec's metric); nan where none is left."""
    return user_aucs(labels, scores, users, threads).gauc


def weighted_mean(values: Floats, weights: Floats) -> float:
    """Mean of the values that are not nan; nan where they weigh nothing."""
    known = ~np.isnan(values)
    total = float(weights[known].sum())
    return float((values[known] @ weights[known]) / total) if total > 0 else float("nan")


def log_losses(labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """-ln p(label) of each of [N] rows, p clipped to [1e-7, 1 - 1e-7].

    Raises:
        ValueError: shapes differ, a label is not 0 or 1, or a probability is not within [0, 1].
    """
    labels_N, p_N = _checked(labels, probabilities, probability=True)
    p_N = np.clip(p_N, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return np.asarray(-np.where(labels_N == 1, np.log(p_N), np.log1p(-p_N)), dtype=np.float64)


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean of `log_losses`; nan for no rows."""
    losses_N = log_losses(labels, probabilities)
    return float(losses_N.mean()) if len(losses_N) else float("nan")


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from what happened."""

    ratio: float  # sum of predictions / number of positives; nan without a positive
    error: float  # expected calibration error: mean over rows of |predicted - actual| of the row's bin
    predicted_Q: Floats
    actual_Q: Floats
    rows_Q: Ints


def calibration(labels: ArrayLike, probabilities: ArrayLike, num_bins: int = 10) -> Calibration:
    """Calibration over up to `num_bins` bins of about equally many rows; rows of one probability share a bin, and empty bins are left out.

    Raises:
        ValueError: as `log_loss`, or num_bins < 1.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins = {num_bins}: must be at least 1. Raise evaluate.num_bins.")
    labels_N, p_N = _checked(labels, probabilities, probability=True)
    if len(labels_N) == 0:
        return Calibration(float("nan"), float("nan"), np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64))
    inner_edges = np.quantile(p_N, np.linspace(0, 1, num_bins + 1)[1:-1])
    bin_N = np.searchsorted(inner_edges, p_N, side="left")
    rows_Q = np.bincount(bin_N, minlength=num_bins)
    filled = rows_Q > 0
    rows_Q = rows_Q[filled]
    predicted_Q = np.bincount(bin_N, weights=p_N, minlength=num_bins)[filled] / rows_Q
    actual_Q = np.bincount(bin_N, weights=labels_N, minlength=num_bins)[filled] / rows_Q
    positives = int(labels_N.sum())
    return Calibration(
        ratio=float(p_N.sum() / positives) if positives else float("nan"),
        error=float(np.abs(predicted_Q - actual_Q) @ rows_Q / len(p_N)),
        predicted_Q=predicted_Q,
        actual_Q=actual_Q,
        rows_Q=rows_Q.astype(np.int64),
    )


def _refused(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.generic], NDArray[np.number]]:
    """Labels and scores as arrays of the types that they came in, or why they are none."""
    labels_N, scores_N = np.asarray(labels), np.asarray(scores)
    if labels_N.ndim != 1 or labels_N.shape != scores_N.shape:
        raise ValueError(f"labels have shape {labels_N.shape}, scores {scores_N.shape}: both must be [N].")
    if len(labels_N) == 0:
        return labels_N, scores_N
    whole = labels_N.dtype.kind in "biu"  # then least and greatest say it, at a tenth of the time
    if not (labels_N.min() >= 0 and labels_N.max() <= 1 if whole else np.isin(labels_N, (0, 1)).all()):
        raise ValueError(f"labels hold {np.unique(labels_N)[:5].tolist()}: only 0 and 1 are labels. Drop rows without a label first.")
    if not (np.isfinite(scores_N.min()) and np.isfinite(scores_N.max())):  # nan is the least and the greatest
        raise ValueError(f"{int((~np.isfinite(scores_N)).sum())} of {len(scores_N)} scores are not finite: the ranker diverged. Look at its training curve.")
    return labels_N, scores_N


def _checked(labels: ArrayLike, scores: ArrayLike, *, probability: bool = False) -> tuple[Ints, Floats]:
    labels_N, scores_N = _refused(labels, scores)
    if probability and len(scores_N) and (scores_N.min() < 0 or scores_N.max() > 1):
        raise ValueError(f"probabilities run from {scores_N.min():.4g} to {scores_N.max():.4g}: they must lie in [0, 1]. Pass sigmoid(logits).")
    return labels_N.astype(np.int64), scores_N.astype(np.float64)
