"""Sweeps as their files lie in a store: one that is finished, one that runs, one that was interrupted; scores are made up, all else is as tuning writes it."""

import math
import os
import random
import socket
import time
from typing import Any

from fastapi import FastAPI

from longtail.artifacts import Store
from longtail.config import Config, load
from longtail.study_results import ArmOnSlice, Difference
from longtail.sweep_journal import Beat, Course, Courses, Journal, Phase, Plan, settings_digest
from longtail.sweep_page import best_of, best_toml, markdown, page
from longtail.sweep_results import Finals, Goal, SweepResults, Trial, ranked, trial_of
from serve_apps.access import Access
from serve_apps.console.app import make_console
from serve_apps.console.context import Console
from serve_apps.console.nav import PAGES
from serve_apps.console.templating import Templates
from tuning.spaces import current, draw, space_of, with_point
from tuning.sweep import plan_of

GOAL = Goal("outcome/gauc_low", "outcome/gauc", 0.68)
BASE = {"outcome/gauc_low": 0.6790, "outcome/gauc": 0.6820}


def config(uri: str, *overrides: str) -> Config:
    return load("pipelines/configs/complete_journey_sweep.toml", [f"run.uri={uri}", "sweep.num_trials=36", "train.epochs=3", *overrides])


def journal_of(store: Store, key: str, settings: Config, phase: Phase, num: int, running: int = 0, failed: int = 0) -> list[Trial]:
    """A journal with `num` trials that ended, some stopped and one refused, and after them those that run or failed."""
    rng, space = random.Random(3), space_of(settings)
    points = draw(space, current(settings, space), num + running + failed, 11)
    journal, trials = Journal.of(store, key), []
    courses = Courses(journal)
    known = {"metric": GOAL.metric, "whole": GOAL.whole, "floor": GOAL.floor, "base": BASE} if phase != "base" else {}
    journal.write_plan(plan_of(settings, space, "c0ffee123456").model_copy(update={"phase": phase, "began": time.time() - 700, **known}))
    for number, point in enumerate(points):
        rate = float(point["train.learning_rate"])
        good = 0.694 - 0.006 * abs(math.log(rate / 0.012)) + rng.gauss(0, 0.004)
        whole = 0.688 - 0.004 * abs(math.log(rate / 0.01)) + rng.gauss(0, 0.003)
        ends, state = (1, "stopped") if number % 3 == 2 else (3, "finished")
        courses.begin(number)
        journal.write(Trial(number=number, point=point, state="begun"))
        if number >= num + running:
            courses.failed(number, "OutOfMemoryError: a worker was killed by the operating system")
            continue
        if number == 7:
            journal.write(found := trial_of(number, point, {"refused": "codes.user.codebook_size = 32 makes 1,024 codes of 801 users"}, GOAL, 0.4))
            trials.append(found)
            continue
        for epoch in range(1, (2 if number >= num else ends) + 1):
            lack = 0.012 / epoch - 0.004
            courses.epoch(number, {"epoch": epoch, GOAL.metric: good - lack, GOAL.whole: whole - lack / 2, "outcome/auc": whole - 0.01})
        if number < num:
            last = {"epoch": ends, GOAL.metric: good - 0.012 / ends + 0.004, GOAL.whole: whole - 0.006 / ends + 0.002, "outcome/auc": whole - 0.01}
            told = {"kept": last, "epochs": ends} if state == "finished" else last
            journal.write(found := trial_of(number, point, told, GOAL, round(20 + 15 * ends + rng.random(), 1)))
            trials.append(found)
    return trials


def alive(store: Store, key: str, age_s: float = 0.0) -> None:
    """A sign of life of this process."""
    beat = Beat(at=time.time() - age_s, host=socket.gethostname(), pid=os.getpid())
    Journal.of(store, key)._write("beat.json", beat)


def finals_of(winner: int, gain: tuple[float, float, float]) -> Finals:
    def arm(mean: float, whole: float, **vs: Difference) -> dict[str, ArmOnSlice]:
        return {name: ArmOnSlice(gauc=value, sd=0.002, rows=2000, users=150, vs=vs) for name, value in (("low20", mean), ("all", whole))}

    def differs(mean: float, lo: float, hi: float) -> Difference:
        return Difference(mean=mean, lo=lo, hi=hi, per_seed=(mean, mean + 0.001, lo))

    arms = {
        "base": arm(0.679, 0.682),
        "start": arm(0.6871, 0.686, base=differs(0.008, 0.001, 0.015)),
        f"trial_{winner}": arm(0.6871 + gain[0], 0.6875, start=differs(*gain), base=differs(0.01, 0.003, 0.017)),
    }
    validation = arms | {"trial_12": arm(0.685, 0.6855, start=differs(-0.002, -0.009, 0.004), base=differs(0.006, -0.001, 0.013))}
    return Finals(metric="gauc", slice="low20", seeds=(1, 2, 3), validation=validation, winner=f"trial_{winner}", test=arms, opened="2026-11-02T08:00:00Z")


def finished(store: Store, key: str, gain: tuple[float, float, float] = (0.0014, -0.0049, 0.0081)) -> SweepResults:
    """A finished sweep of 36 trials whose winner has the `gain` over the config as it stood."""
    settings = config(store.uri)
    trials = ranked(journal_of(store, key, settings, "finalists", 36))
    winner = next(one.number for one in trials if one.feasible and one.number not in (0, 12))
    shares = {"train.learning_rate": 0.61, "rankers.choirrec.distill_weight": 0.17, "codes.user.codebook_size": 0.08}
    given: dict[str, Any] = {
        **{"ranker": "choirrec", "metric": GOAL.metric, "whole": GOAL.whole, "floor": GOAL.floor, "commit": "c0ffee123456", "machine": "2 CPUs"},
        **{"command": "python -m tuning.sweep --config my.toml", "searcher": "tpe", "scheduler": "asha", "minutes": {"search": 18.2, "finals": 6.1}},
    }
    found = SweepResults(**given, trials=tuple(trials), importance=shares, finals=finals_of(winner, gain))
    draft = store.create("sweeps", key)
    draft.write_json("results.json", found.model_dump(mode="json"))
    best = best_of(found)
    assert best is not None
    for name, text in {"sweep.md": markdown(found), "sweep.html": page(found), "best.toml": best_toml(found, with_point(settings, best.point))}.items():
        with draft.fs.open_output_stream(draft.path(name)) as stream:
            stream.write(text.encode())
    draft.commit(config={}, inputs={}, seed=settings.run.seed, rows_in=36, rows_out=36, dropped={}, info={})
    return found


def running(store: Store, key: str, *overrides: str) -> Plan:
    """A sweep that this process gives signs of life for: ten trials have ended, two run, one failed."""
    settings = config(store.uri, "sweep.max_concurrent=2", "sweep.num_trials=24", *overrides)
    journal_of(store, key, settings, "search", 10, running=2, failed=1)
    alive(store, key)
    found = Journal.of(store, key).plan()
    assert found is not None
    assert found.settings == settings_digest(settings)
    return found


def interrupted(store: Store, key: str) -> None:
    """A sweep whose process is gone."""
    journal_of(store, key, config(store.uri, "sweep.num_trials=5"), "search", 2, running=1)
    alive(store, key, age_s=3600)
    Journal.of(store, key).write_course(2, Course(began=time.time() - 3600))


def console_over(store: Store, token: str, dashboard: str | None = None) -> FastAPI:
    """A console over a store in which no run is finished."""
    pages = Console(Config(), store, (), Access(token, viewing_needs_token=False), Templates(PAGES), None, dashboard)
    return make_console(pages)
