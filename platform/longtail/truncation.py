"""Truncation: busy users made sparse, so that people who hardly act can be studied on logs whose users all act a lot.

Reads coded events and the examples made of them. Draws users, cuts what later stages may see of them to a few baskets before the history's end, and their
train labels to a few weeks; longtail.logs writes what is left. Set by [logs.truncate].

Letters: E events, K examples, U users, T truncated users, H behaviour events in the history window, G baskets, W user-weeks with a train label.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from longtail.examples import Labelled
from longtail.labels import CodedEvents, Examples, request_groups
from longtail.ranks import rank_within
from longtail.schema import SPLITS
from longtail.settings import Settings
from longtail.times import DAY_US, from_us
from longtail.windows import Windows

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

HIDDEN = "truncated user's other events"
OVER_WEEKS = "over logs.truncate.max_label_weeks of a truncated user"

TRAIN, TEST = SPLITS.index("train"), SPLITS.index("test")
WEEK_US = 7 * DAY_US


class TruncateSettings(Settings):
    """A truncated world: a share of the busy users keeps its last few baskets before history_end, and labels; a basket is what a user took at one request."""

    users_frac: float = Field(0, ge=0, lt=1, description="of the users with more than max_baskets baskets before history_end and train and test labels; 0: off")
    min_baskets: int = Field(1, ge=1, description="a truncated user keeps min_baskets to max_baskets baskets, drawn uniformly")
    max_baskets: int = 10
    max_label_weeks: int = Field(2, ge=1, description="weeks, counted from the first event, from which a truncated user has labels in the train split")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_baskets > self.max_baskets:
            raise ValueError(f"min_baskets = {self.min_baskets} must be at most max_baskets = {self.max_baskets}: raise the one or lower the other")
        return self


@dataclass(frozen=True)
class Truncated:
    """Who was truncated, and what is left."""

    user_T: Ints  # rows of the users table, ascending
    num_baskets_T: Ints
    hidden_E: Bools  # events that no later stage sees
    labelled: Labelled  # without the train examples of the weeks that were not drawn


@dataclass(frozen=True)
class _Baskets:
    """What users took before the history's end, by request; a basket's time is that of its first event.

    Of a user's baskets of one time, those with a request id count as later than one without, and among them the one whose id stands later in the events.
    """

    row_H: Ints  # of the events
    basket_H: Ints
    user_G: Ints
    time_G: Ints
    rank_G: Ints  # among the user's baskets, 0 the last

    @staticmethod
    def of(events: CodedEvents, kinds: tuple[str, ...], windows: Windows) -> "_Baskets":
        row_H = np.flatnonzero(events.is_kind(*kinds) & (events.time_E < windows.history_end))
        taken = events.take(row_H)
        by_time = np.argsort(taken.time_E, kind="stable")
        basket_H = request_groups(taken)
        _, first = np.unique(basket_H[by_time], return_index=True)
        user_G, time_G = taken.user_E[by_time[first]], taken.time_E[by_time[first]]
        return _Baskets(row_H, basket_H, user_G, time_G, rank_within(user_G, -time_G, -np.arange(len(user_G))))


def truncate(
    events: CodedEvents, labelled: Labelled, kinds: tuple[str, ...], windows: Windows, settings: TruncateSettings, num_users: int, seed: int
) -> Truncated:
    """The truncated users, the events that are hidden with them, and the examples that stay; nobody and everything where `users_frac` is 0.

    Args:
        events: the kept events, whole.
        labelled: the examples that `events` make; those of validation and test all stay.
        kinds: kinds whose events make a basket.

    Raises:
        ValueError: nobody can be truncated.
    """
    if settings.users_frac == 0:
        nobody = np.zeros(0, np.int64)
        return Truncated(nobody, nobody, np.zeros(len(events), bool), labelled)
    rng = np.random.default_rng([seed, 0x7C])
    baskets = _Baskets.of(events, kinds, windows)
    usable = np.flatnonzero(_usable(baskets, labelled.examples, windows, settings, num_users))
    user_T = np.sort(rng.choice(usable, max(round(settings.users_frac * len(usable)), 1), replace=False))
    num_baskets_T = rng.integers(settings.min_baskets, settings.max_baskets, len(user_T), endpoint=True)
    num_baskets_U = np.zeros(num_users, np.int64)  # 0: not truncated
    num_baskets_U[user_T] = num_baskets_T
    over = _over_weeks(labelled.examples, num_baskets_U > 0, windows, settings.max_label_weeks, rng)
    left_out = {**labelled.left_out, OVER_WEEKS: int(labelled.examples.outcome_K[over].sum())}
    rest = replace(labelled, examples=labelled.examples.take(~over), left_out=left_out)
    return Truncated(user_T, num_baskets_T, _hidden(events, baskets, num_baskets_U, kinds, windows), rest)


def _usable(baskets: _Baskets, examples: Examples, windows: Windows, settings: TruncateSettings, num_users: int) -> Bools:
    """Which users [U] lose something by the cut and have labels to learn from and to be measured on."""
    busy = np.bincount(baskets.user_G, minlength=num_users) > settings.max_baskets
    in_train, in_test = (np.bincount(examples.user_K[examples.split_K == place], minlength=num_users) > 0 for place in (TRAIN, TEST))
    usable: Bools = busy & in_train & in_test
    if not usable.any():
        raise ValueError(
            f"logs.truncate.users_frac = {settings.users_frac:g} finds nobody to truncate: a user needs more than logs.truncate.max_baskets = "
            f"{settings.max_baskets} baskets before {from_us(windows.history_end)}, an example in the train window and one in the test window. "
            f"Of {num_users} users, {busy.sum()} have the first, {in_train.sum()} the second, {in_test.sum()} the third. "
            "Lower max_baskets, move logs.split, or set users_frac = 0."
        )
    return usable


def _over_weeks(examples: Examples, truncated_U: Bools, windows: Windows, max_label_weeks: int, rng: np.random.Generator) -> Bools:
    """Which examples [K] are of the train split, of a truncated user, and of a week that was not drawn."""
    rows = np.flatnonzero((examples.split_K == TRAIN) & truncated_U[examples.user_K])
    num_weeks = (windows.end - windows.start) // WEEK_US + 1
    user_week_W, place = np.unique(examples.user_K[rows] * num_weeks + (examples.time_K[rows] - windows.start) // WEEK_US, return_inverse=True)
    over_W = rank_within(user_week_W // num_weeks, rng.random(len(user_week_W))) >= max_label_weeks
    over = np.zeros(len(examples), bool)
    over[rows] = over_W[place]
    return over


def _hidden(events: CodedEvents, baskets: _Baskets, num_baskets_U: Ints, kinds: tuple[str, ...], windows: Windows) -> Bools:
    """Which events [E] go: all of a truncated user's but those of the last baskets, and searches and the like between the first of these and history_end."""
    kept_G = baskets.rank_G < num_baskets_U[baskets.user_G]
    since_U = np.full(len(num_baskets_U), windows.history_end)
    np.minimum.at(since_U, baskets.user_G[kept_G], baskets.time_G[kept_G])
    stays_E = ~events.is_kind(*kinds) & (events.time_E >= since_U[events.user_E]) & (events.time_E < windows.history_end)
    stays_E[baskets.row_H] = kept_G[baskets.basket_H]
    hidden: Bools = (num_baskets_U > 0)[events.user_E] & ~stays_E
    return hidden
