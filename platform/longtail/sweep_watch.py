"""Watching sweeps: what runs, what ended, what is best so far, read from the journals and results below one store, also while they are written.

    watch = SweepWatch(store)
    for sweep in watch.sweeps(): ...         # newest first
    sweep = watch.sweep(key)                 # with every trial's epochs

Reads <uri>/sweeps; writes nothing. A file that has not changed since it was last read is not read again: asking every two seconds costs a listing.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from pyarrow.fs import FileInfo, FileSelector, FileType
from pydantic import ValidationError

from longtail.artifacts import Artifact, Store
from longtail.settings import Settings
from longtail.sweep_journal import Beat, Course, Journal, Plan, is_record
from longtail.sweep_page import best_of, changes
from longtail.sweep_results import SweepResults, Trial, pareto, ranked

logger = logging.getLogger(__name__)

CLOCK_S = 3.0  # object stores tell times in whole seconds

SweepStatus = Literal["running", "interrupted", "finished"]
TrialStatus = Literal["running", "interrupted", "failed", "finished", "stopped", "refused"]
Told = TypeVar("Told", bound=Settings)


@dataclass(frozen=True)
class WatchedTrial:
    """A trial as it stands."""

    trial: Trial
    status: TrialStatus
    course: Course | None  # None: not asked for, or of a sweep that kept none
    changes: str  # what it has that the config as it stood has not
    on_front: bool

    def last(self, metric: str) -> float | None:
        """The metric at the kept epoch, or, while it runs, at the last one."""
        if self.trial.state != "begun":
            return self.trial.metrics.get(metric)
        return self.course.epochs[-1].get(metric) if self.course is not None and self.course.epochs else None


@dataclass(frozen=True)
class WatchedSweep:
    """A sweep as it stands."""

    key: str
    status: SweepStatus
    plan: Plan | None  # None: of a sweep that kept none
    trials: tuple[WatchedTrial, ...]  # ranked, those without a result last
    best: Trial | None  # that may win, so far; of a finished sweep the one that it recommends
    results: SweepResults | None
    artifact: Artifact | None
    silent_s: float | None  # since the last sign of life; None: there is none
    unread: int  # files that are cut short or of another version
    changed: float  # seconds since 1970, of its newest file

    @property
    def settings(self) -> tuple[str, ...]:
        """What is searched."""
        if self.plan is not None:
            return tuple(self.plan.space)
        return tuple(dict.fromkeys(name for one in self.trials for name in one.trial.point))

    @property
    def metric(self) -> str:
        return self.results.metric if self.results is not None else self.plan.metric if self.plan is not None else "score"

    @property
    def whole(self) -> str:
        return self.results.whole if self.results is not None else self.plan.whole if self.plan is not None else "whole"

    @property
    def num_ended(self) -> int:
        return sum(one.trial.state != "begun" for one in self.trials)


@dataclass
class SweepWatch:
    """Reads the sweeps of one store again and again."""

    store: Store
    _read: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # by path: what the file looked like, what it held
    _finished: dict[str, tuple[Artifact, SweepResults]] = field(default_factory=dict)  # by key

    def keys(self) -> list[str]:
        """Of every sweep that has begun."""
        folders = self.store.fs.get_file_info(FileSelector(f"{self.store.root}/sweeps", allow_not_found=True))
        return sorted(entry.base_name for entry in folders if entry.type == FileType.Directory)

    def sweeps(self) -> list[WatchedSweep]:
        """All of them, without their trials' epochs, the newest first."""
        found = [sweep for key in self.keys() if (sweep := self.sweep(key, courses=False)) is not None]
        return sorted(found, key=lambda one: (one.status == "running", one.changed), reverse=True)

    def sweep(self, key: str, *, courses: bool = True) -> WatchedSweep | None:
        """One of them; None where there is none by that key."""
        files = {entry.base_name: entry for entry in Journal.of(self.store, key).entries() if entry.type == FileType.File}
        finished = self._results(key)
        if not files and finished is None:
            return None
        unread: list[str] = []

        def load(name: str, kind: type[Told]) -> Told | None:
            return self._load(files[name], kind, unread) if name in files else None

        beat = load("beat.json", Beat)
        status: SweepStatus = "finished" if finished else "running" if beat is not None and not beat.silent else "interrupted"
        if finished is not None:
            trials: Sequence[Trial] = finished[1].trials
        else:
            read = [load(name, Trial) for name, entry in files.items() if is_record(entry)]
            trials = [one for one in read if one is not None]
        of_number = {one.number: load(f"{one.number:05d}.course.json", Course) for one in trials} if courses else {}
        failed = of_number if courses else {one.number: load(f"{one.number:05d}.course.json", Course) for one in trials if one.state == "begun"}
        start = next((one for one in trials if one.number == 0), None)
        front = {one.number for one in pareto(trials)}
        watched = [
            WatchedTrial(one, _status(one, failed.get(one.number), status), of_number.get(one.number), changes(one, start), one.number in front)
            for one in ranked(trials)
        ]
        return WatchedSweep(
            key=key,
            status=status,
            plan=load("plan.json", Plan),
            trials=tuple(watched),
            best=best_of(finished[1]) if finished else next((one for one in ranked(trials) if one.feasible), None),
            results=finished[1] if finished else None,
            artifact=finished[0] if finished else None,
            silent_s=None if beat is None else max(0.0, datetime.now(UTC).timestamp() - beat.at),
            unread=len(unread),
            changed=max([_changed(entry) for entry in files.values()], default=0.0) or _finished_at(finished),
        )

    def _results(self, key: str) -> tuple[Artifact, SweepResults] | None:
        if key not in self._finished:
            artifact = self.store.find("sweeps", key)
            if artifact is None:
                return None
            self._finished[key] = artifact, SweepResults.model_validate(artifact.read_json("results.json"))
        return self._finished[key]

    def _load(self, entry: FileInfo, kind: type[Told], unread: list[str]) -> Told | None:
        """A file's content; None, and counted, where it cannot be read now."""
        looks = entry.mtime_ns, entry.size
        known = self._read.get(entry.path)
        just_now = time.time() - _changed(entry) < CLOCK_S  # it may be written again and look the same
        if known is not None and known[0] == looks and not just_now:
            value: Told = known[1]
            return value
        try:
            with self.store.fs.open_input_stream(entry.path) as stream:
                found = kind.model_validate(json.loads(stream.read()))
        except FileNotFoundError:  # taken away since it was listed
            return None
        except (ValueError, ValidationError) as error:
            logger.info("%s cannot be read yet: %s", entry.path, str(error).splitlines()[0])
            unread.append(entry.path)
            return None
        self._read[entry.path] = looks, found
        return found


def _status(trial: Trial, course: Course | None, sweep: SweepStatus) -> TrialStatus:
    if trial.state != "begun":
        return trial.state
    if course is not None and course.failed is not None:
        return "failed"
    return "running" if sweep == "running" else "interrupted"


def _changed(entry: FileInfo) -> float:
    return 0.0 if entry.mtime is None else float(entry.mtime.timestamp())


def _finished_at(finished: tuple[Artifact, SweepResults] | None) -> float:
    if finished is None:
        return 0.0
    return datetime.fromisoformat(str(finished[0].manifest["finished"]).replace("Z", "+00:00")).timestamp()
