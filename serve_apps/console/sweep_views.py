"""What the Sweeps page is told: sweeps, their trials, jobs, as the JSON that its script draws from.

Reads what longtail.sweep_watch and serve_apps.console.jobs found; asks nobody.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

from longtail.study_page import relative
from longtail.sweep_page import LABELS, finals_sentences, in_word
from longtail.sweep_results import Finals, SweepResults
from longtail.sweep_watch import WatchedSweep, WatchedTrial
from longtail.sweeping import Range
from serve_apps.console.jobs import Job, error_of, result_of

#: What an entrypoint has before its command: folder, address.
COMMAND = re.compile(r"^(cd .+? && )?exec env (RAY_ADDRESS=\S+ )?")
PHASES = {"base": "making what all trials share", "search": "searching", "finalists": "training the finalists again"}


def job_told(job: Job) -> dict[str, Any]:
    """A job without its log."""
    return {
        "job": job.job,
        "module": job.module,
        "command": COMMAND.sub("", job.command),
        "status": job.status,
        "alive": job.alive,
        "message": job.message,
        "began": job.began,
        "ended": job.ended,
    }


def log_told(job: Job, log: str) -> dict[str, Any]:
    """A job with the end of its log, what it printed as its result, and why it failed."""
    done = job.status == "succeeded"
    return {**job_told(job), "log": log, "result": result_of(log) if done else None, "error": error_of(log) if job.status == "failed" else None}


def status_of(sweep: WatchedSweep, job: Job | None) -> str:
    """A sweep's status; one whose job has ended does not run, however recent its last sign of life is."""
    return "interrupted" if sweep.status == "running" and job is not None and not job.alive else sweep.status


def listed(sweep: WatchedSweep, job: Job | None) -> dict[str, Any]:
    """A sweep as a row of the list."""
    plan, status = sweep.plan, status_of(sweep, job)
    start = next((one for one in sweep.trials if one.trial.number == 0), None)
    return {
        "key": sweep.key,
        "status": status,
        "phase": _phase(sweep) if status == "running" else None,
        "ranker": sweep.results.ranker if sweep.results is not None else plan.ranker if plan is not None else None,
        "run": None if plan is None else plan.run,
        "metric": sweep.metric,
        "num_trials": plan.num_trials if plan is not None else len(sweep.trials),
        "num_ended": sweep.num_ended,
        "num_failed": sum(one.status == "failed" for one in sweep.trials),
        "num_settings": len(sweep.settings),
        "best": None if sweep.best is None else {"number": sweep.best.number, "score": sweep.best.score},
        "start": None if start is None else start.trial.score,
        "verdict": None if sweep.results is None else verdict(sweep.results.finals),
        "changed": sweep.changed,
        "job": None if plan is None else plan.job,
    }


def told(sweep: WatchedSweep, job: Job | None) -> dict[str, Any]:
    """A sweep with all its trials."""
    plan, results, status = sweep.plan, sweep.results, status_of(sweep, job)
    shown = listed(sweep, job)
    start = next((one.trial for one in sweep.trials if one.trial.number == 0), None)
    epochs = plan.epochs if plan is not None else max((one.trial.epochs for one in sweep.trials), default=0)
    return shown | {
        "whole": sweep.whole,
        "floor": results.floor if results is not None else None if plan is None else plan.floor,
        "base": _base(sweep),
        "settings": [_setting(name, sweep) for name in sweep.settings],
        "epochs": epochs,
        "searcher": results.searcher if results is not None else None if plan is None else plan.searcher,
        "scheduler": results.scheduler if results is not None else None if plan is None else plan.scheduler,
        "max_concurrent": None if plan is None else plan.max_concurrent,
        "began": None if plan is None else plan.began,
        "seconds_left": _seconds_left(sweep) if status == "running" else None,
        "silent_s": sweep.silent_s,
        "unread": sweep.unread,
        "command": results.command if results is not None else None if plan is None else plan.command,
        "commit": results.commit if results is not None else None if plan is None else plan.commit,
        "machine": None if results is None else results.machine,
        "minutes": None if results is None else results.minutes,
        "trials": [_trial(one, place, sweep, None if start is None else start.score, status) for place, one in enumerate(sweep.trials, start=1)],
        "importance": {} if results is None else results.importance,
        "finals": None if results is None else _finals(results),
        "job_told": None if job is None else job_told(job),
    }


def _phase(sweep: WatchedSweep) -> str | None:
    return None if sweep.plan is None else PHASES[sweep.plan.phase]


def _base(sweep: WatchedSweep) -> dict[str, float] | None:
    """The base ranker's two scores, where it was trained and has both."""
    found = {} if sweep.plan is None else sweep.plan.base
    if sweep.metric in found and sweep.whole in found:
        return {"score": found[sweep.metric], "whole": found[sweep.whole]}
    return None


def _setting(name: str, sweep: WatchedSweep) -> dict[str, Any]:
    """An axis of the comparison: a range, or values in their order."""
    values = None if sweep.plan is None else sweep.plan.space.get(name)
    if isinstance(values, Range):
        return {"name": name, "low": values.low, "high": values.high, "log": values.log, "values": None}
    known = {one.trial.point[name] for one in sweep.trials if name in one.trial.point}
    numbers = sorted(value for value in known if isinstance(value, int | float) and not isinstance(value, bool))
    if values is None and len(numbers) == len(known) > 8:  # of a sweep that kept no plan: drawn from a range
        return {"name": name, "low": numbers[0], "high": numbers[-1], "log": False, "values": None}
    listed_values = list(values) if values is not None else [*numbers, *sorted((one for one in known if one not in numbers), key=str)]
    return {"name": name, "low": None, "high": None, "log": False, "values": [in_word(value) for value in listed_values]}


def _trial(one: WatchedTrial, place: int, sweep: WatchedSweep, start: float | None, status: str) -> dict[str, Any]:
    trial, course = one.trial, one.course
    score, whole = (trial.score, trial.whole) if trial.state != "begun" else (one.last(sweep.metric), one.last(sweep.whole))
    epochs = () if course is None else course.epochs
    curve = [{"epoch": epoch["epoch"], "score": epoch.get(sweep.metric), "whole": epoch.get(sweep.whole)} for epoch in epochs]
    return {
        "number": trial.number,
        "status": "interrupted" if one.status == "running" and status == "interrupted" else one.status,
        "rank": place if trial.state != "begun" else None,
        "score": score,
        "whole": whole,
        "against_start": score - start if score is not None and start is not None and trial.number != 0 and trial.state != "begun" else None,
        "feasible": one.trial.feasible,
        "on_front": one.on_front,
        "epochs": trial.epochs if trial.state != "begun" else len(curve),
        "seconds": trial.seconds if trial.state != "begun" else None,
        "began": None if course is None else course.began,
        "changes": one.changes,
        "point": {name: in_word(value) for name, value in trial.point.items()},
        "numbers": {name: value for name, value in trial.point.items() if isinstance(value, int | float) and not isinstance(value, bool)},
        "curve": curve,
        "why": trial.refused or (course.failed if course is not None else None) or (f"{trial.shortfall:.4f} below the constraint" if trial.shortfall else None),
        "metrics": trial.metrics,
    }


def _seconds_left(sweep: WatchedSweep) -> float | None:
    """How long what is left of the search takes at the pace of the trials that ended; None where none did, or in another phase."""
    plan = sweep.plan
    took = [one.trial.seconds for one in sweep.trials if one.trial.state in ("finished", "stopped")]
    if plan is None or plan.phase != "search" or not took:
        return None
    left = max(0, plan.num_trials - sweep.num_ended)
    return left * sum(took) / len(took) / plan.max_concurrent


Verdict = Literal["unproven", "start", "better", "worse", "unclear"]


def verdict(finals: Finals | None) -> Verdict:
    """Whether the finalists' winner beats the config as it stood: by the interval of its gain, never by the gain alone."""
    gain = None if finals is None else finals.gain
    if gain is None:
        return "unproven" if finals is None else "start"
    return "better" if gain.lo > 0 else "worse" if gain.hi < 0 else "unclear"


def _finals(results: SweepResults) -> dict[str, Any]:
    """What became of the finalists: the verdict, sentences, the table of both windows."""
    finals = results.finals
    sentences = [line.replace("`", "") for line in finals_sentences(finals)]
    return {"sentences": sentences, "verdict": verdict(finals), "rows": [] if finals is None else _arms(finals)}


def _arms(finals: Finals) -> list[dict[str, Any]]:
    rows = []
    for window, arms in (("validation", finals.validation), ("test", finals.test)):
        for label, slices in (arms or {}).items():
            on = slices[finals.slice]
            against = on.vs.get("start")
            rows.append(
                {
                    "window": window,
                    "arm": LABELS.get(label, label.replace("_", " ")),
                    "winner": label == finals.winner,
                    "mean": on.mean,
                    "all": slices["all"].mean,
                    "gain": None if against is None else relative(against, slices_of(finals, window)),
                }
            )
    return rows


def slices_of(finals: Finals, window: str) -> Any:
    """The config as it stood, on the finals' slice of a window."""
    arms = finals.validation if window == "validation" else finals.test
    assert arms is not None
    return arms["start"][finals.slice]


def jobs_told(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    return [job_told(one) for one in jobs]
