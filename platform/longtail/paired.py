"""Paired differences between two rankers on the same rows, with bootstrap intervals over users.

Users are resampled, not rows: one user's rows share that user's taste, so rows drawn apart would make the interval too narrow. The interval says
nothing about another training seed; that takes several runs.
Letters: N rows, U users.
"""

from typing import Literal

import numpy as np

from longtail.metrics import Floats, Ints, PresortedAuc, log_losses, user_aucs, weighted_mean
from longtail.settings import Settings


class Interval(Settings):
    """A paired difference and its 95 % bootstrap interval over users."""

    difference: float | None
    low: float | None
    high: float | None

    @property
    def verdict(self) -> Literal["higher", "lower", "unclear"]:
        """On which side of zero the whole interval lies."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "unclear"
        return "higher" if self.low > 0 else "lower"


def paired_differences(label_N: Ints, user_N: Ints, base_N: Floats, other_N: Floats, rounds: int, rng: np.random.Generator) -> dict[str, Interval]:
    """`other` minus `base` in AUC, GAUC and log loss on the same rows, with 95 % intervals from `rounds` resamples of the users."""
    distinct, user_N = np.unique(user_N, return_inverse=True)
    base_auc, other_auc = PresortedAuc(label_N, base_N, user_N), PresortedAuc(label_N, other_N, user_N)
    base_users, other_users = user_aucs(label_N, base_N, user_N), user_aucs(label_N, other_N, user_N)
    rows_U = base_users.rows_U.astype(np.float64)
    loss_U = np.bincount(user_N, weights=log_losses(label_N, other_N) - log_losses(label_N, base_N), minlength=len(distinct))

    def differences(count_U: Floats) -> tuple[float, float, float]:
        total = float(count_U @ rows_U)
        return (
            other_auc(count_U) - base_auc(count_U),
            weighted_mean(other_users.auc_U, count_U * rows_U) - weighted_mean(base_users.auc_U, count_U * rows_U),
            float(count_U @ loss_U) / total if total else float("nan"),
        )

    point = differences(np.ones(len(distinct)))
    draws = np.full((rounds, 3), np.nan)
    if len(distinct) > 1:  # one user resampled is the same user: no interval
        for one in range(rounds):
            draws[one] = differences(resampled(len(distinct), rng))
    return {name: interval(point[place], draws[:, place]) for place, name in enumerate(("auc", "gauc", "log_loss"))}


def resampled(num: int, rng: np.random.Generator) -> Floats:
    """How often each of `num` users is drawn when as many are drawn with replacement [num]."""
    return np.bincount(rng.integers(0, num, num), minlength=num).astype(np.float64)


def interval(point: float, draws: Floats) -> Interval:
    """A difference and the 95 % interval of its resamples; NaN among them are those without a value."""
    known = draws[~np.isnan(draws)]
    if np.isnan(point) or len(known) < max(20, len(draws) // 2):  # where most resamples have one class, percentiles of the rest would mislead
        return Interval(difference=None if np.isnan(point) else point, low=None, high=None)
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(difference=point, low=float(low), high=float(high))
