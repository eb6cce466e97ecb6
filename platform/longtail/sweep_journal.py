"""A sweep's journal: what it set out to do and what becomes of its trials, in small files that are written while it runs.

It outlives an interrupted sweep, which goes on from it, and whoever watches a sweep reads it (longtail.sweep_watch).

    <uri>/sweeps/<key>/journal/plan.json              what is searched, where the sweep stands, what the base ranker has
    <uri>/sweeps/<key>/journal/<number>.json          a trial's record: its point, its state, its scores; a sweep that goes on reads these alone
    <uri>/sweeps/<key>/journal/<number>.course.json   its epochs so far, or why it failed
    <uri>/sweeps/<key>/journal/beat.json              the sweep's last sign of life
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pyarrow.fs import FileInfo, FileSelector, FileType
from pydantic import Field, ValidationError

from longtail.artifacts import Store
from longtail.config import Config
from longtail.hashing import digest
from longtail.settings import Settings
from longtail.storage import write_whole
from longtail.sweep_results import Point, Trial, finite
from longtail.sweeping import Values

logger = logging.getLogger(__name__)

BEAT_S = 5.0
#: After so long without a sign of life a sweep counts as interrupted: several beats, since a busy store may swallow one.
SILENT_S = 45.0

Phase = Literal["base", "search", "finalists"]


class Plan(Settings):
    """What a sweep set out to do, and where it stands."""

    phase: Phase  # base: the rival and what all trials share is being made
    ranker: str
    metric: str
    whole: str
    floor: float | None = None  # of `whole`; None: no constraint, or not known yet
    base: dict[str, float] = Field(default_factory=dict)  # the base ranker's metrics at its kept epoch; empty where none was needed, or not yet
    space: dict[str, Values]
    start: Point
    num_trials: int
    max_concurrent: int
    epochs: int
    searcher: str
    scheduler: str
    num_finalists: int
    seeds: tuple[int, ...]
    run: str
    settings: str  # longtail.sweep_journal.settings_digest of its config
    command: str
    commit: str
    job: str | None = None  # the Ray job that it is, where it is one
    began: float  # seconds since 1970, of this attempt


class Course(Settings):
    """A trial as it goes."""

    began: float  # seconds since 1970
    epochs: tuple[dict[str, float], ...] = ()  # metrics with a value, "epoch" among them
    failed: str | None = None


class Beat(Settings):
    """A sign of life, and whose."""

    at: float  # seconds since 1970
    host: str
    pid: int

    @property
    def silent(self) -> bool:
        """Whether it is so long ago that its process counts as gone."""
        return time.time() - self.at > SILENT_S


Told = TypeVar("Told", bound=Settings)


def settings_digest(config: Config) -> str:
    """The same for two configs that ask for the same sweep in one store: without what only says where and how fast it runs."""
    raw = config.model_dump(mode="json", exclude={"cluster", "serve", "study", "continual", "tracking"})
    sweep = {name: value for name, value in raw["sweep"].items() if name not in ("max_concurrent", "in_place")}
    return digest(raw | {"run": {"seed": config.run.seed}, "sweep": sweep})


@dataclass(frozen=True)
class Journal:
    """What is known of a sweep's trials, a file each, so that a sweep whose driver was killed goes on where it was."""

    store: Store
    folder: str

    @staticmethod
    def of(store: Store, key: str) -> "Journal":
        return Journal(store, f"{store.root}/sweeps/{key}/journal")

    def write(self, trial: Trial) -> None:
        """Record a trial's state in one step; the last one holds."""
        self._write(f"{trial.number:05d}.json", trial)

    def write_course(self, number: int, course: Course) -> None:
        self._write(f"{number:05d}.course.json", course)

    def write_plan(self, plan: Plan) -> None:
        self._write("plan.json", plan)

    def plan(self) -> Plan | None:
        return self._load("plan.json", Plan)

    def beat(self) -> Beat | None:
        return self._load("beat.json", Beat)

    def read(self) -> list[Trial]:
        """The trials by number."""
        found = []
        for entry in self.entries():
            if is_record(entry):
                with self.store.fs.open_input_stream(entry.path) as stream:
                    found.append(Trial.model_validate_json(stream.read()))
        return found

    def entries(self) -> list[FileInfo]:
        """Its files, by name."""
        return sorted(self.store.fs.get_file_info(FileSelector(self.folder, allow_not_found=True)), key=lambda one: one.path)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life for the length of a block, from a thread of its own; a block that fails takes the last one back.

        Raises:
            ValueError: another process runs this very sweep.
        """
        self._refuse_second()
        ended = threading.Event()

        def beat() -> None:
            while True:
                try:
                    self._write("beat.json", Beat(at=time.time(), host=socket.gethostname(), pid=os.getpid()))
                except OSError as error:
                    logger.warning("sweep: no sign of life could be written: %s", error)
                if ended.wait(BEAT_S):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            ended.set()
            thread.join()
            with suppress(OSError):
                self.store.fs.delete_file(f"{self.folder}/beat.json")
            raise
        ended.set()
        thread.join()

    def _refuse_second(self) -> None:
        last = self.beat()
        if last is None or last.silent:
            return
        if last.host == socket.gethostname():
            if last.pid == os.getpid() or not _runs(last.pid):
                return
        elif not self._beats_on(last):
            return
        raise ValueError(
            f"this sweep runs already: process {last.pid} on {last.host} gave a sign of life {max(0.0, time.time() - last.at):.0f} s ago. Wait for its end, or "
            "stop it first and start the sweep again: it goes on from its trials."
        )

    def _beats_on(self, last: Beat) -> bool:
        """Whether another machine, which may be gone, gives a further sign of life."""
        logger.info("sweep: process %d on %s ran this sweep; waiting up to %.0f s for another sign of life", last.pid, last.host, SILENT_S)
        while not last.silent:
            time.sleep(1)
            following = self.beat()
            if following is None or following.at != last.at:
                return following is not None
        return False

    def _write(self, name: str, value: Settings) -> None:
        self.store.fs.create_dir(self.folder, recursive=True)
        write_whole(self.store.fs, f"{self.folder}/{name}", json.dumps(value.model_dump(mode="json"), sort_keys=True).encode())

    def _load(self, name: str, kind: type[Told]) -> Told | None:
        """A file that only informs; None where there is none, or one that is cut short."""
        try:
            with self.store.fs.open_input_stream(f"{self.folder}/{name}") as stream:
                return kind.model_validate_json(stream.read())
        except (FileNotFoundError, ValidationError):
            return None


def is_record(entry: FileInfo) -> bool:
    """Whether a file of the journal is a trial's record."""
    name, _, ending = entry.base_name.partition(".")
    return bool(entry.type == FileType.File) and name.isdigit() and ending == "json"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@dataclass
class Numbers:
    """Gives every trial its number: that of an interrupted one with the same point, else the next."""

    begun: list[Trial]
    following: int
    of_trial: dict[str, int] = field(default_factory=dict)  # by Tune's id

    @staticmethod
    def after(records: Sequence[Trial], start: Point) -> "Numbers":
        """The numbers after those of the records; without any the first is that of `start`, whenever Tune begins it."""
        known = records or [Trial(number=0, point=start, state="begun")]
        return Numbers([one for one in known if one.state == "begun"], max(one.number for one in known) + 1)

    def number(self, trial_id: str, point: Point) -> int:
        if trial_id not in self.of_trial:
            again = next((one for one in self.begun if one.point == point), None)
            if again is not None:
                self.begun.remove(again)
                self.of_trial[trial_id] = again.number
            else:
                self.of_trial[trial_id] = self.following
                self.following += 1
        return self.of_trial[trial_id]


#: What Ray Tune adds to every report, beside what begins with time_.
_OF_TUNE = {"done", "pid", "timestamp", "training_iteration", "iterations_since_restore", "should_checkpoint", "searched"}


def numbers_of(told: Mapping[str, Any]) -> dict[str, float]:
    """A report's own metrics that have a value."""
    known = {name: finite(value) for name, value in told.items() if name not in _OF_TUNE and not name.startswith("time_") and not isinstance(value, bool)}
    return {name: value for name, value in known.items() if value is not None}


class Courses:
    """Writes the courses of the trials that one process runs; a trial that is run again begins anew, one that was paused goes on."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._of: dict[int, Course] = {}

    def begin(self, number: int) -> None:
        if number not in self._of:
            self._put(number, Course(began=time.time()))

    def epoch(self, number: int, told: Mapping[str, Any]) -> None:
        """Add an epoch's metrics, in place of what the same epoch had before; without an epoch's number nothing is added."""
        metrics = numbers_of(told)
        course = self._of.get(number)
        if course is None or "epoch" not in metrics or (course.epochs and course.epochs[-1] == metrics):
            return
        before = tuple(one for one in course.epochs if one["epoch"] < metrics["epoch"])
        self._put(number, course.model_copy(update={"epochs": (*before, metrics)}))

    def failed(self, number: int, why: str) -> None:
        self._put(number, self._of.get(number, Course(began=time.time())).model_copy(update={"failed": why}))

    def _put(self, number: int, course: Course) -> None:
        self._of[number] = course
        self._journal.write_course(number, course)
