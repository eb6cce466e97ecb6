"""A sweep's results: its goal, what became of each trial, the ranking, the Pareto front; longtail.sweep_journal keeps them while the sweep runs.

Reads validation metrics by epoch; writes nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from longtail.settings import Settings
from longtail.study_results import Arms, Difference, Metric
from longtail.sweeping import Value

Point = dict[str, Value]

#: What a unit below the constraint costs a trial in the eyes of the searcher: a hundredth of AUC weighs like a tenth.
PENALTY = 10.0
#: What the searcher is told of a trial without a score; no AUC is as low.
NO_SCORE = -1.0


@dataclass(frozen=True)
class Goal:
    """What a sweep looks for: the best `metric` among trials whose `whole` is not below `floor`."""

    metric: str
    whole: str
    floor: float | None = None  # None: no constraint

    def score(self, metrics: Mapping[str, Any]) -> float | None:
        return finite(metrics.get(self.metric))

    def shortfall(self, metrics: Mapping[str, Any]) -> float:
        """How far the metrics lie below the floor; 0 where they don't."""
        whole = finite(metrics.get(self.whole))
        if self.floor is None:
            return 0.0
        return 1.0 if whole is None else max(0.0, self.floor - whole)

    def searched(self, metrics: Mapping[str, Any]) -> float:
        """The one number that searchers and schedulers see: the score, less a penalty for what lies below the floor."""
        score = self.score(metrics)
        return NO_SCORE if score is None else max(NO_SCORE, score - PENALTY * self.shortfall(metrics))


def finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


State = Literal["begun", "finished", "stopped", "refused"]


class Trial(Settings):
    """What became of one point."""

    number: int  # in the order begun; 0 is the config as it stood
    point: dict[str, Value]
    state: State  # stopped: by the scheduler, before its last epoch; refused: the same settings meet the refusal every time
    score: float | None = None  # the sweep's metric at the kept epoch, of a stopped trial at its last one
    whole: float | None = None  # the constraint's, likewise
    shortfall: float = 0.0  # how far `whole` lies below the constraint
    searched: float = NO_SCORE
    epochs: int = 0
    metrics: dict[str, Any] = Field(default_factory=dict)  # all of that epoch's
    refused: str | None = None
    seconds: float = 0.0

    @property
    def feasible(self) -> bool:
        """Whether it may win: trained to the end, with a score, within the constraint."""
        return self.state == "finished" and self.score is not None and self.shortfall == 0


def trial_of(number: int, point: Point, result: Mapping[str, Any], goal: Goal, seconds: float) -> Trial:
    """A trial from the last result that it reported."""
    refused, kept = result.get("refused"), result.get("kept")
    if refused is not None:
        return Trial(number=number, point=point, state="refused", refused=str(refused), seconds=seconds)
    metrics: Mapping[str, Any] = kept if kept is not None else result
    told = {name: finite(value) for name, value in metrics.items() if finite(value) is not None and not name.startswith("time_")}
    score = goal.score(metrics)
    return Trial(
        number=number,
        point=point,
        state="stopped" if kept is None else "finished",
        score=score,
        whole=finite(metrics.get(goal.whole)),
        shortfall=goal.shortfall(metrics),
        searched=goal.searched(metrics),
        epochs=int(result.get("epochs", metrics.get("epoch", 0))),
        metrics=told,
        refused=None if score is not None else f"{goal.metric} has no value on the validation window",
        seconds=seconds,
    )


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Best first: those that may win, those below the constraint, those that were stopped, those without a score; equals in the order begun."""

    def place(trial: Trial) -> tuple[int, float, int]:
        kind = 3 if trial.score is None else 2 if trial.state == "stopped" else 1 if trial.shortfall else 0
        return kind, -trial.searched, trial.number

    return sorted(trials, key=place)


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The finished trials that no other beats in the metric without losing over all rows; best metric first."""
    known = [one for one in trials if one.state == "finished" and one.score is not None and one.whole is not None]
    front: list[Trial] = []
    for trial in sorted(known, key=lambda one: (-one.score, -one.whole, one.number)):  # type: ignore[operator]  # neither is None here
        if not front or trial.whole > front[-1].whole:  # type: ignore[operator]
            front.append(trial)
    return front


class Finals(Settings):
    """What the finalists came to; labels are base, start (the config as it stood) and trial_<number>."""

    metric: Metric
    slice: str  # the study's slice that is nearest to the sweep's metric
    seeds: tuple[int, ...]
    validation: Arms
    winner: str
    test: Arms | None = None  # None: the config as it stood won, and the window stayed closed
    opened: str | None = None  # when
    earlier_openings: int = 0  # by other sweeps of the same store

    @property
    def gain(self) -> Difference | None:
        """The winner over the config as it stood on the test window's slice."""
        return None if self.test is None else self.test[self.winner][self.slice].vs["start"]


class SweepResults(Settings):
    """What results.json holds."""

    ranker: str
    metric: str
    whole: str
    floor: float | None  # of `whole`, on the validation window
    commit: str
    command: str
    machine: str
    searcher: str
    scheduler: str
    minutes: dict[str, float]  # search, finals; of the attempt that ended the sweep
    trials: tuple[Trial, ...]  # ranked
    importance: dict[str, float] = Field(default_factory=dict)  # by setting, shares of the score's variance
    finals: Finals | None = None
