"""Recording: what Ray Tune does with a sweep's trials, written to the sweep's journal while it does.

Reads Tune's trials; writes <uri>/sweeps/<key>/journal (longtail.sweep_journal).
"""

import logging
import textwrap
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.exceptions import RayTaskError

from longtail.sweep_journal import Courses, Journal, Numbers
from longtail.sweep_results import Goal, Trial, trial_of
from tuning.spaces import in_words

logger = logging.getLogger(__name__)


class Recorded(tune.Callback):
    """Writes every trial to the journal when it begins, at every epoch and when it ends, and logs a line about each."""

    def __init__(self, journal: Journal, goal: Goal, numbers: Numbers, num_trials: int) -> None:
        self._journal, self._goal, self._numbers, self._num_trials = journal, goal, numbers, num_trials
        self._courses = Courses(journal)
        self.failed: dict[int, Any] = {}  # by number: their records say begun, and so they are run again
        self._unexplained: dict[int, Any] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = self._number(trial)
        self._courses.begin(number)
        self._journal.write(Trial(number=number, point=dict(trial.config), state="begun"))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        self._courses.epoch(self._number(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        last: Mapping[str, Any] = trial.last_result
        self._courses.epoch(self._number(trial), last)
        found = trial_of(self._number(trial), dict(trial.config), last, self._goal, round(last.get("time_total_s", 0.0), 1))
        self._journal.write(found)
        said = "no score" if found.score is None else f"{self._goal.metric} {found.score:.4f}"
        logger.info("sweep: trial %d of %d %s, %s: %s", found.number, self._num_trials, found.state, said, in_words(found.point))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = self._number(trial)
        self.failed[number] = trial  # why it failed is known a step later
        self._unexplained[number] = trial
        self._courses.failed(number, "failed")
        logger.info("sweep: trial %d failed: %s", number, in_words(trial.config))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.explain()

    def explain(self) -> None:
        """Write why trials failed, of those of which it is known by now."""
        for number in [number for number, trial in self._unexplained.items() if trial.get_error() is not None]:
            self._courses.failed(number, why(self._unexplained.pop(number)))

    def _number(self, trial: Any) -> int:
        return self._numbers.number(trial.trial_id, dict(trial.config))


def why(failed: Any) -> str:
    """What ended a trial, in a line."""
    error = failed.get_pickled_error() or failed.get_error()
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause  # what was raised, without the accounts of the workers that it passed through
    name = f"{type(error).__name__}: " if isinstance(error, BaseException) else ""
    return name + textwrap.shorten(str(error), 400)
