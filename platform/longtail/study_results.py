"""A study's results: GAUC or AUC of every arm by slice, and paired differences with intervals over seeds and users together.

Every arm is measured on the same rows, so a difference is taken user by user and seed by seed. An interval comes from resampling both: users, because one
user's rows share that user's taste, and seeds, because training again gives another ranker. With three to five seeds the latter is coarse; the
differences by seed are reported beside it.

Letters: N rows, U users, S seeds, R rounds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import PlainSerializer, model_validator

from longtail.hashing import stable_uint64
from longtail.metrics import Floats, Ints, calibration, log_loss, user_aucs
from longtail.paired import resampled
from longtail.settings import Settings
from longtail.study_rows import Bools, Labels, WindowRows

Metric = Literal["gauc", "auc"]

# A millionth of GAUC is a thousandth of what training again changes; more digits would only make the files larger.
Rounded = Annotated[float, PlainSerializer(lambda value: round(value, 6), return_type=float)]


class Difference(Settings):
    """One arm minus another in the metric, absolute, with a 95 % interval over seeds and users."""

    mean: Rounded
    lo: Rounded
    hi: Rounded
    per_seed: tuple[Rounded, ...]

    @property
    def positive_seeds(self) -> int:
        return sum(one > 0 for one in self.per_seed)


class ArmOnSlice(Settings):
    """One arm on one slice, compared in one metric; `users` are those whom it sees: for GAUC, users with both classes."""

    gauc: Rounded | None = None
    auc: Rounded | None = None
    sd: Rounded  # over seeds
    rows: int  # of all the slice's users
    users: int
    vs: dict[str, Difference]
    beside: dict[str, Rounded] | None = None  # further measures, means over seeds: gauc, log_loss, calibration_ratio, calibration_error

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.gauc is None) == (self.auc is None):
            raise ValueError("an arm is measured in one metric: gauc or auc")
        return self

    @property
    def metric(self) -> Metric:
        return "auc" if self.gauc is None else "gauc"

    @property
    def mean(self) -> float:
        """The metric, over seeds."""
        return self.auc if self.gauc is None else self.gauc  # type: ignore[return-value]  # one of them is there


Arms = dict[str, dict[str, ArmOnSlice]]


class StudyResults(Settings):
    """What results/<study>_<data set>.json holds."""

    dataset: str
    config: str
    commit: str
    seeds: tuple[int, ...]
    headline: dict[str, str]
    window: str
    metric: Metric = "gauc"
    arms: Arms
    validation: Arms
    heads: dict[str, Arms] | None = None  # what else the rankers predict, on the test window
    notes: dict[str, object]


@dataclass(frozen=True)
class Measured:
    """What one trial's scores come to on one slice: a mean over users, which a resample of the users weighs anew."""

    value_U: Floats
    weight_U: Floats  # 0 for a user who is not seen
    rows: int
    beside: Mapping[str, float] = field(default_factory=dict)  # further measures of the slice; nan where one has no value

    @property
    def mean(self) -> float:
        return float(self.value_U @ self.weight_U / self.weight_U.sum())


def measured(rows: WindowRows, score_N: Floats, metric: Metric) -> dict[str, Measured]:
    """The metric of one trial's scores on every slice on which it has a value."""
    if metric == "gauc":
        return _gauc(rows, score_N)
    users, user_N = np.unique(rows.user_N, return_inverse=True)
    order_N = np.argsort(score_N, kind="stable")  # once: what is picked of sorted rows is sorted
    label_N, user_N, score_N = rows.label_N[order_N], user_N.reshape(-1)[order_N], score_N[order_N]
    found = {name: _auc(label_N, score_N, user_N, which_N[order_N], len(users)) for name, which_N in rows.slices.items()}
    return {name: one for name, one in found.items() if one is not None}


def _gauc(rows: WindowRows, score_N: Floats) -> dict[str, Measured]:
    """Each user's own AUC, weighing that user's rows; users with one class weigh nothing. All of a user's rows are in a slice, or none."""
    found, (_, first_U) = user_aucs(rows.label_N, score_N, rows.user_N), np.unique(rows.user_N, return_index=True)
    weight_U = np.where(np.isnan(found.auc_U), 0, found.rows_U).astype(np.float64)
    weights = {name: np.where(which_N[first_U], weight_U, 0) for name, which_N in rows.slices.items()}
    value_U = np.nan_to_num(found.auc_U)
    return {name: Measured(value_U, of_slice_U, int(rows.slices[name].sum())) for name, of_slice_U in weights.items() if of_slice_U.any()}


def _auc(label_N: Labels, score_N: Floats, user_N: Ints, which_N: Bools, num_users: int) -> Measured | None:
    """AUC over all of the slice's rows as the mean of the users' pseudo-values: AUC + U * what the user's rows add to it or take from it.

    The sum over users of a row's placement among the other class, less AUC, is AUC's influence function (Obuchowski 1997, section 2, for clustered rows):
    resampling its mean is resampling AUC, up to terms of the order 1 / users.

    Rows come in the order of their scores, of which equal ones are a tie.
    """
    label, score, user = label_N[which_N] == 1, score_N[which_N], user_N[which_N]
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        return None
    ties = np.cumsum(np.concatenate([[False], score[1:] != score[:-1]]))
    of_tie = {mine: np.bincount(ties[label == mine], minlength=ties[-1] + 1) for mine in (True, False)}
    below = {mine: np.cumsum(counts) - counts / 2 for mine, counts in of_tie.items()}  # of a tie, the half
    placement = np.where(label, below[False][ties] / negatives, 1 - below[True][ties] / positives)
    auc = float(placement[label].mean())
    influence_U = np.bincount(user, (placement - auc) / np.where(label, positives, negatives), num_users)
    weight_U = (np.bincount(user, minlength=num_users) > 0).astype(np.float64)
    value_U = np.where(weight_U > 0, auc + weight_U.sum() * influence_U, 0)
    return Measured(value_U, weight_U, len(label), _beside(label, score, user))


def _beside(label: Bools, score: Floats, user: Ints) -> dict[str, float]:
    """What AUC does not see: the order within each user's rows, and whether probabilities are as large as what happens."""
    probability = 1 / (1 + np.exp(-score.astype(np.float64)))
    calibrated = calibration(label, probability)
    return {
        "gauc": user_aucs(label, score, user).gauc,
        "log_loss": log_loss(label, probability),
        "calibration_ratio": calibrated.ratio,
        "calibration_error": calibrated.error,
    }


def compare(arms: Mapping[str, Mapping[int, Mapping[str, Measured]]], against: Callable[[str], Sequence[str]], metric: Metric, rounds: int) -> Arms:
    """Every arm on every slice that has a value.

    Args:
        arms: by arm, seed and slice; users are the same for all of them, slices may differ from seed to seed.
        against: the arms that an arm is compared with, on the seeds that both have.
        metric: what was measured.
        rounds: of the bootstrap.
    """
    found: dict[str, dict[str, ArmOnSlice]] = {arm: {} for arm in arms}
    for name in dict.fromkeys(name for of_arm in arms.values() for of_seed in of_arm.values() for name in of_seed):
        here = {arm: {seed: of_seed[name] for seed, of_seed in of_arm.items() if name in of_seed} for arm, of_arm in arms.items()}
        seen = np.logical_or.reduce([one.weight_U > 0 for of_arm in here.values() for one in of_arm.values()])
        counts_RU = _resampled(name, int(seen.sum()), rounds)
        for arm, of_arm in here.items():
            if not of_arm:
                continue
            values = np.array([one.mean for one in of_arm.values()])
            differences = {}
            for other in against(arm):
                common = [seed for seed in of_arm if other != arm and seed in here.get(other, {})]
                if common:
                    pairs = [(of_arm[seed], here[other][seed]) for seed in common]
                    gap_SU = np.stack([(one.value_U - base.value_U)[seen] for one, base in pairs])
                    differences[other] = _difference(name, gap_SU, np.stack([one.weight_U[seen] for one, _ in pairs]), counts_RU)
            found[arm][name] = ArmOnSlice(
                **{metric: float(values.mean())},
                sd=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
                rows=round(np.mean([one.rows for one in of_arm.values()])),
                users=round(np.mean([np.count_nonzero(one.weight_U) for one in of_arm.values()])),
                vs=differences,
                beside=_means([one.beside for one in of_arm.values()]),
            )
    return found


def _means(of_seeds: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """Means over seeds of the measures that have a value; None where there is none."""
    values = {name: [one[name] for one in of_seeds if not np.isnan(one[name])] for name in of_seeds[0]}
    return {name: float(np.mean(known)) for name, known in values.items() if known} or None


def _resampled(name: str, num: int, rounds: int) -> Floats:
    """How often each user is drawn in each round [R, U]; the same for all arms of a slice."""
    rng = np.random.default_rng([stable_uint64(name) % 2**32, num])
    return np.stack([resampled(num, rng) for _ in range(rounds)])


def _difference(name: str, gap_SU: Floats, weight_SU: Floats, counts_RU: Floats) -> Difference:
    """The paired difference by seed and user, users weighing what they weigh in the metric."""
    per_seed = (gap_SU * weight_SU).sum(axis=1) / weight_SU.sum(axis=1)
    draws_RS = (counts_RU @ (gap_SU * weight_SU).T) / np.maximum(counts_RU @ weight_SU.T, 1e-12)
    rng = np.random.default_rng([stable_uint64(name) % 2**32, len(gap_SU)])
    seeds_RS = rng.integers(0, len(gap_SU), draws_RS.shape)
    low, high = np.percentile(np.take_along_axis(draws_RS, seeds_RS, axis=1).mean(axis=1), [2.5, 97.5])
    return Difference(mean=float(per_seed.mean()), lo=float(low), hi=float(high), per_seed=tuple(float(one) for one in per_seed))
