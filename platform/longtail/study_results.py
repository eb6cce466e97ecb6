"""A study's results: GAUC of every arm by slice, and paired differences with intervals over seeds and users together.

Every arm is measured on the same rows, so a difference is taken user by user and seed by seed. An interval comes from resampling both: users, because one
user's rows share that user's taste, and seeds, because training again gives another ranker. With three to five seeds the latter is coarse; the
differences by seed are reported beside it.

Letters: N rows, U users, S seeds, R rounds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import PlainSerializer

from longtail.hashing import stable_uint64
from longtail.metrics import Floats, Ints, user_aucs
from longtail.paired import resampled
from longtail.settings import Settings
from longtail.study_rows import Bools, WindowRows

# A millionth of GAUC is a thousandth of what training again changes; more digits would only make the files larger.
Rounded = Annotated[float, PlainSerializer(lambda value: round(value, 6), return_type=float)]


class Difference(Settings):
    """One arm minus another in GAUC, absolute, with a 95 % interval over seeds and users."""

    mean: Rounded
    lo: Rounded
    hi: Rounded
    per_seed: tuple[Rounded, ...]

    @property
    def positive_seeds(self) -> int:
        return sum(one > 0 for one in self.per_seed)


class ArmOnSlice(Settings):
    """One arm on one slice; `users` have both classes, the only ones that GAUC sees."""

    gauc: Rounded
    sd: Rounded  # over seeds
    rows: int  # of all the slice's users
    users: int
    vs: dict[str, Difference]


class StudyResults(Settings):
    """What results/<study>_<data set>.json holds."""

    dataset: str
    config: str
    commit: str
    seeds: tuple[int, ...]
    headline: dict[str, str]
    window: str
    arms: dict[str, dict[str, ArmOnSlice]]
    validation: dict[str, dict[str, ArmOnSlice]]
    notes: dict[str, object]


@dataclass(frozen=True)
class Window:
    """Users of one window: what each weighs, and which slices each is in."""

    weight_U: Floats  # rows, 0 for a user with one class
    rows_U: Ints
    slices: Mapping[str, Bools]

    @staticmethod
    def of(rows: WindowRows) -> "Window":
        _, first_U = np.unique(rows.user_N, return_index=True)
        found = user_aucs(rows.label_N, np.zeros(len(rows.label_N)), rows.user_N)
        weight = np.where(np.isnan(found.auc_U), 0, found.rows_U).astype(np.float64)
        return Window(weight, found.rows_U, {name: which[first_U] for name, which in rows.slices.items()})


def by_user(rows: WindowRows, score_N: np.ndarray) -> Floats:
    """AUC of each user of the window [U], 0 where there is none (such a user weighs nothing)."""
    return np.nan_to_num(user_aucs(rows.label_N, score_N, rows.user_N).auc_U)


def compare(window: Window, arms: Mapping[str, Mapping[int, Floats]], against: Callable[[str], Sequence[str]], rounds: int) -> dict[str, dict[str, ArmOnSlice]]:
    """Every arm on every slice that has a user with both classes.

    Args:
        window: users, weights and slices.
        arms: by arm and seed, AUC of each user [U].
        against: the arms that an arm is compared with, on the seeds that both have.
        rounds: of the bootstrap.
    """
    found: dict[str, dict[str, ArmOnSlice]] = {arm: {} for arm in arms}
    for name, which_U in window.slices.items():
        weight_U = np.where(which_U, window.weight_U, 0)
        kept = np.flatnonzero(weight_U)
        if len(kept) == 0:
            continue
        counts_RU = _resampled(name, len(kept), rounds)
        means = {arm: {seed: float(weight_U @ auc_U / weight_U.sum()) for seed, auc_U in of_arm.items()} for arm, of_arm in arms.items()}
        for arm, of_arm in arms.items():
            gauc = np.array(list(means[arm].values()))
            differences = {}
            for other in against(arm):
                common = [seed for seed in of_arm if other != arm and seed in arms.get(other, {})]
                if common:
                    gap_SU = np.stack([(of_arm[seed] - arms[other][seed])[kept] for seed in common])
                    differences[other] = _difference(name, gap_SU, weight_U[kept], counts_RU)
            found[arm][name] = ArmOnSlice(
                gauc=float(gauc.mean()),
                sd=float(gauc.std(ddof=1)) if len(gauc) > 1 else 0.0,
                rows=int(window.rows_U[which_U].sum()),
                users=len(kept),
                vs=differences,
            )
    return found


def _resampled(name: str, num: int, rounds: int) -> Floats:
    """How often each user is drawn in each round [R, U]; the same for all arms of a slice."""
    rng = np.random.default_rng([stable_uint64(name) % 2**32, num])
    return np.stack([resampled(num, rng) for _ in range(rounds)])


def _difference(name: str, gap_SU: Floats, weight_U: Floats, counts_RU: Floats) -> Difference:
    """The paired difference of AUCs by seed and user, users weighing what they weigh in GAUC."""
    per_seed = gap_SU @ weight_U / weight_U.sum()
    draws_RS = (counts_RU @ (gap_SU * weight_U).T) / np.maximum(counts_RU @ weight_U, 1e-12)[:, None]
    rng = np.random.default_rng([stable_uint64(name) % 2**32, len(gap_SU)])
    seeds_RS = rng.integers(0, len(gap_SU), draws_RS.shape)
    low, high = np.percentile(np.take_along_axis(draws_RS, seeds_RS, axis=1).mean(axis=1), [2.5, 97.5])
    return Difference(mean=float(per_seed.mean()), lo=float(low), hi=float(high), per_seed=tuple(float(one) for one in per_seed))
