"""A sweep's journal: what a sweep that goes on reads, what a watcher sees of one that runs, failed, was cut short, is finished; and that none runs twice."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longtail import sweep_watch
from longtail.artifacts import Store
from longtail.config import load
from longtail.sweep_journal import SILENT_S, Beat, Courses, Journal, Numbers, Plan, numbers_of, settings_digest
from longtail.sweep_results import Trial
from longtail.sweep_watch import SweepWatch
from longtail.sweeping import Range
from tests.s3_server import BUCKET, s3_server
from tests.test_sweep_results import results, trial
from tests.test_sweep_resume import environment

METRIC, WHOLE = "outcome/gauc_low", "outcome/gauc"


def plan(**changes: Any) -> Plan:
    given: dict[str, Any] = {
        **{"phase": "search", "ranker": "choirrec", "metric": METRIC, "whole": WHOLE, "floor": 0.6, "base": {METRIC: 0.58, WHOLE: 0.602}},
        **{"space": {"codes.user.codebook_size": [4, 5, 6], "train.learning_rate": {"low": 0.01, "high": 0.1, "log": True}}},
        **{"start": {"codes.user.codebook_size": 4, "train.learning_rate": 0.02}, "num_trials": 4, "max_concurrent": 1, "epochs": 3},
        **{"searcher": "tpe", "scheduler": "asha", "num_finalists": 1, "seeds": (1, 2), "run": "small", "settings": "d1", "command": "python -m tuning.sweep"},
        **{"commit": "c0ffee", "began": 1000.0},
    }
    return Plan.model_validate({**given, **changes})


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield Store.open(str(tmp_path))
        return
    with s3_server() as end:
        yield Store.open(f"s3://{BUCKET}/run?{end}")


def beat(store: Store, age_s: float = 0.0, **changes: Any) -> None:
    Journal.of(store, "key")._write("beat.json", Beat(at=time.time() - age_s, **{"host": socket.gethostname(), "pid": os.getpid(), **changes}))


def test_journal_keeps_the_last_state_and_gives_an_interrupted_trial_its_number_again(tmp_path: Path) -> None:
    journal = Journal.of(Store.open(str(tmp_path)), "key")
    assert journal.read() == []
    journal.write(trial(0, None, None, state="begun"))
    journal.write(trial(1, None, None, state="begun"))
    journal.write(trial(0, 0.5))
    (tmp_path / "sweeps" / "key" / "journal" / "00002.json.part").write_text("{cut sho")
    records = journal.read()
    assert [(one.number, one.state) for one in records] == [(0, "finished"), (1, "begun")]
    numbers = Numbers.after(records, {})
    assert numbers.number("a", {"codes.user.codebook_size": 99}) == 2
    assert numbers.number("b", {"codes.user.codebook_size": 5}) == 1, "it had begun"
    assert numbers.number("b", {"codes.user.codebook_size": 5}) == 1
    assert numbers.number("c", {"codes.user.codebook_size": 5}) == 3, "the same point once more is another trial"


def test_the_config_as_it_stood_is_number_0_whenever_it_begins() -> None:
    numbers = Numbers.after([], {"train.epochs": 2})
    assert [numbers.number(name, {"train.epochs": epochs}) for name, epochs in (("a", 5), ("b", 2), ("c", 7))] == [1, 0, 2]


def test_a_journal_is_none_of_the_attempts_that_are_cleared_away(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    Journal.of(store, "key").write(trial(0, 0.5))
    os.makedirs(tmp_path / "sweeps" / "key" / "20200101T000000-deadbeef")
    assert store.clear_interrupted("sweeps", "key") == 1
    assert len(Journal.of(store, "key").read()) == 1


def test_a_watcher_sees_a_sweep_as_it_goes(store: Store) -> None:
    watch = SweepWatch(store)
    assert watch.sweeps() == []
    assert watch.sweep("key") is None
    journal = Journal.of(store, "key")
    courses = Courses(journal)
    journal.write_plan(plan())
    beat(store)
    for number in (0, 1, 2):
        courses.begin(number)
        journal.write(trial(number, None, None, state="begun"))
    for epoch, score in ((1, 0.5), (2, 0.61)):
        courses.epoch(0, {"epoch": epoch, METRIC: score, "time_total_s": 3.0, "pid": 7, "done": False, "outcome/auc": float("nan")})
        courses.epoch(1, {"epoch": epoch, METRIC: score + 0.05})
    courses.failed(2, "the disk is full")
    sweep = watch.sweep("key")
    assert sweep is not None
    assert (sweep.status, sweep.metric, sweep.settings, sweep.num_ended, sweep.best) == (
        "running",
        METRIC,
        ("codes.user.codebook_size", "train.learning_rate"),
        0,
        None,
    )
    assert isinstance(sweep.plan.space["train.learning_rate"], Range)  # type: ignore[union-attr]
    at = {one.trial.number: one for one in sweep.trials}
    assert {number: one.status for number, one in at.items()} == {0: "running", 1: "running", 2: "failed"}
    assert at[0].course is not None
    assert at[0].course.epochs == ({"epoch": 1.0, METRIC: 0.5}, {"epoch": 2.0, METRIC: 0.61})
    assert at[1].last(METRIC) == pytest.approx(0.66)
    assert (at[2].course.failed, at[2].last(METRIC)) == ("the disk is full", None)  # type: ignore[union-attr]

    journal.write(trial(0, 0.61, 0.62, metrics={METRIC: 0.61}))
    journal.write(trial(1, 0.7, 0.59))
    sweep = watch.sweep("key")
    assert sweep is not None
    assert (sweep.num_ended, sweep.best and sweep.best.number) == (2, 0), "1 is below the constraint"
    assert [one.trial.number for one in sweep.trials if one.on_front] == [0, 1]
    assert [one.changes for one in sweep.trials] == ["the config as it stands", "codes.user.codebook_size=5", "codes.user.codebook_size=6"]
    (listed,) = watch.sweeps()
    assert (listed.num_ended, listed.trials[0].course) == (2, None), "the list does without epochs"
    assert [one.status for one in listed.trials] == ["finished", "finished", "failed"]

    beat(store, age_s=SILENT_S + 1)
    sweep = watch.sweep("key")
    assert sweep is not None
    assert (sweep.status, sweep.silent_s and round(sweep.silent_s)) == ("interrupted", round(SILENT_S) + 1)


def test_what_is_half_written_is_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    journal = Journal.of(store, "key")
    for number in (0, 1):
        journal.write(trial(number, 0.6 + number / 100))
    journal.write_plan(plan())
    folder = tmp_path / "sweeps" / "key" / "journal"
    whole = (folder / "00001.json").read_text()
    (folder / "00001.json").write_text(whole[:40])
    (folder / "00000.course.json").write_text('{"began": 1')
    (folder / "beat.json").write_text("")
    (folder / "00007.json.1234abcd").write_text("{")
    watch = SweepWatch(store)
    sweep = watch.sweep("key")
    assert sweep is not None
    assert ([one.trial.number for one in sweep.trials], sweep.unread, sweep.status) == ([0], 3, "interrupted")
    (folder / "00001.json").write_text(whole)
    sweep = watch.sweep("key")
    assert sweep is not None
    assert ([one.trial.number for one in sweep.trials], sweep.unread) == ([1, 0], 2)
    assert journal.beat() is None
    (folder / "plan.json").write_text("{")
    assert journal.plan() is None


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(str(tmp_path))
    journal = Journal.of(store, "key")
    for number in range(3):
        journal.write(trial(number, 0.6))
    watch = SweepWatch(store)
    first = watch.sweep("key")
    monkeypatch.setattr(sweep_watch, "CLOCK_S", 0.0)  # as if the files were older than a store's clock is coarse
    changed = trial(1, 0.7)
    asked: list[int] = []
    validate = Trial.model_validate

    def counted(raw: Any) -> Trial:
        asked.append(raw["number"])
        return validate(raw)

    monkeypatch.setattr(Trial, "model_validate", counted)
    again = watch.sweep("key")
    assert again is not None
    assert first is not None
    assert (asked, again.trials) == ([], first.trials)
    journal.write(changed)
    again = watch.sweep("key")
    assert again is not None
    assert (asked, again.trials[0].trial.score) == ([1], 0.7)


def test_a_finished_sweep_is_told_by_its_results(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    journal = Journal.of(store, "key")
    journal.write(trial(3, 0.5))
    found = results(finals=True)
    draft = store.create("sweeps", "key")
    draft.write_json("results.json", found.model_dump(mode="json"))
    draft.commit(config={}, inputs={}, seed=1, rows_in=0, rows_out=0, dropped={}, info={})
    beat(store)
    (sweep,) = SweepWatch(store).sweeps()
    assert (sweep.status, sweep.plan, sweep.settings) == ("finished", None, ("codes.user.codebook_size",))
    assert [one.trial for one in sweep.trials] == list(found.trials)
    assert sweep.best is not None
    assert sweep.best.number == 2, "the finalists' winner, not the first of the table"
    assert sweep.artifact is not None


def test_courses_begin_anew_when_a_trial_is_run_again_and_go_on_when_it_was_paused(tmp_path: Path) -> None:
    journal = Journal.of(Store.open(str(tmp_path)), "key")

    def epochs() -> list[float]:
        return [one["epoch"] for one in json.loads((tmp_path / "sweeps" / "key" / "journal" / "00000.course.json").read_text())["epochs"]]

    courses = Courses(journal)
    courses.begin(0)
    for epoch in (1, 2, 2):
        courses.epoch(0, {"epoch": epoch, "auc": 0.5})
    courses.begin(0)
    courses.epoch(0, {"auc": 0.5})
    assert epochs() == [1, 2]
    courses.epoch(0, {"epoch": 1, "auc": 0.6})
    assert epochs() == [1], "it was taken back to an earlier checkpoint"
    Courses(journal).begin(0)
    assert epochs() == []
    assert numbers_of({"auc": True, "gauc": 0.5, "note": "x", "low": None, "searched": 0.1}) == {"gauc": 0.5}


SECOND = """
import sys, time
from longtail.artifacts import Store
from longtail.sweep_journal import Journal
with Journal.of(Store.open(sys.argv[1]), "key").alive():
    print("alive", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_sweep_that_runs_is_not_run_twice_and_one_that_was_killed_is_taken_up_at_once(tmp_path: Path) -> None:
    journal = Journal.of(Store.open(str(tmp_path)), "key")
    with subprocess.Popen([sys.executable, "-c", SECOND, str(tmp_path), "60"], env=environment(), stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "alive\n"
        deadline = time.monotonic() + 10
        while journal.beat() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(ValueError, match=rf"process {first.pid} on .* gave a sign of life .* stop it first"), journal.alive():
            pass
        first.kill()
    with journal.alive():
        pass
    left = journal.beat()
    assert left is not None, "of a sweep that ended well it stays until the results are there"
    with pytest.raises(RuntimeError, match="it broke"), journal.alive():
        raise RuntimeError("it broke")
    assert journal.beat() is None, "one that failed is known to be gone"


def test_a_machine_that_is_gone_is_waited_for_and_one_that_lives_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtail.sweep_journal.SILENT_S", 2.0)
    store = Store.open(str(tmp_path))
    journal = Journal.of(store, "key")
    beat(store, host="elsewhere", pid=1)
    began = time.monotonic()
    with journal.alive():
        assert time.monotonic() - began >= 1
    beat(store, host="elsewhere", pid=1)
    monkeypatch.setattr(time, "sleep", lambda seconds: beat(store, age_s=-0.5, host="elsewhere", pid=1))
    with pytest.raises(ValueError, match="process 1 on elsewhere"), journal.alive():
        pass


def test_the_digest_tells_sweeps_apart_and_not_where_they_run() -> None:
    def of(*overrides: str) -> str:
        return settings_digest(load(None, overrides))

    for same in ("sweep.max_concurrent=2", "run.uri=/elsewhere", "serve.max_items=9", "cluster.num_cpus=2", "tracking.backend=none", "run.name=other"):
        assert of(same) == of(), same
    for other in ("sweep.num_trials=9", "run.seed=8", "train.epochs=9", 'sweep.space={"train.learning_rate"=[0.1, 0.2]}'):
        assert of(other) != of(), other
