"""Sweep: a Ray Tune search over codebooks and gates, judged on the validation window.

What trials share is built first and once. Then each trial sets its point's values, builds the stages that are its own and fits the ranker with Ray
Train, as the artifact that pipelines.train would make of these values; the test window is never looked at. A point that our own rules refuse has its
reason in the table. A trial that fails otherwise ends the sweep when the others are done, and the next attempt finds what they finished.
Reads what pipelines.full reads; writes the artifact `sweeps`: results.json, the ranked trials.

Run: python -m tuning.sweep --config pipelines/configs/demo.toml [--show]
     ray job submit --working-dir . --runtime-env platform/runtime_env.yaml -- python -m tuning.sweep --config pipelines/configs/demo.toml
Last stdout line: one JSON object.
"""

import argparse
import contextlib
import json
import logging
import os
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import pyarrow.fs as pafs
import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.basic_variant import BasicVariantGenerator

from longtail.artifacts import Artifact, Draft, Store
from longtail.config import Config
from longtail.hashing import digest
from pipelines.cluster import ray_session
from pipelines.stage import Context, Result, Stage, arguments, clear_errors, config_from, ensure, line, open_store, provenance, summary
from pipelines.tracking import tune_callbacks
from pipelines.train import RANKER_STAGES, build
from pipelines.work import started_in
from tuning.spaces import Parameter, Point, current, draw, in_words, space_of, with_point
from tuning.stages import REFUSALS, ensure_shared

logger = logging.getLogger(__name__)

# A trial only waits: stages and training workers reserve their own CPUs. Tune wants something to reserve for it: a byte.
TRIAL_RESOURCES = {"CPU": 0.0, "memory": 1.0}

T = TypeVar("T")
Trainable = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Trial:
    """What became of one point."""

    number: int  # in the order drawn; 0 is the config as it stood
    point: Point
    score: float | None  # the sweep's metric at the kept epoch
    metrics: Mapping[str, Any]  # all of the kept epoch's
    refused: str | None  # why there is no score; the same settings meet it every time
    seconds: float


@dataclass(frozen=True)
class Search:
    """All that a trial needs beside its point."""

    config: Config
    store: Store
    cwd: str  # the driver's: relative paths of the config start there

    def __call__(self, point: dict[str, Any]) -> dict[str, Any]:
        """One trial: stages, then training; returns the kept epoch's metrics, or why the point was refused."""
        try:
            config = with_point(self.config, point)
        except ValueError as error:
            return {"refused": str(error)}
        try:
            outside_of_trial(_ensure_inputs, config, self.store, self.cwd)
            return {"kept": self._fit(config)}
        except REFUSALS as error:
            return {"refused": str(error)}

    def _fit(self, config: Config) -> dict[str, Any]:
        """The ranker's artifact, its curve reported to Tune; returns the kept epoch's metrics."""
        report, name = ReportAndDrain(), config.sweep.ranker
        stage = replace(RANKER_STAGES[name], build=partial(build, name=name, callbacks=[report]))
        try:
            with started_in(self.cwd):
                outcome = ensure(stage, config, self.store)
        finally:
            report.drain()
        epochs: list[dict[str, Any]] = outcome.artifact.info["epochs"]
        if outcome.skipped:
            for metrics in epochs:
                tune.report(metrics)
        best: int = outcome.artifact.info["best_epoch"]
        return epochs[best - 1]


class ReportAndDrain(TuneReportCallback):
    """Tune's own callback, and a way to wait until Tune has read what it sent.

    Tune reads such reports and a trial's return value in one thread through queues of length one: a value returned while a report is on its way blocks both.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's has no annotation

    def drain(self, poll_s: float = 0.05, settle_s: float = 1.0) -> None:
        while not self._training_actor_item_queue.empty():
            time.sleep(poll_s)
        time.sleep(settle_s)


def outside_of_trial(function: Callable[..., T], *args: Any) -> T:
    """Call `function` in a task of its own, whose tasks and actors are not confined to the trial's reservation as the trial's own would be.

    Raises:
        ValueError: one of REFUSALS, as the function raised it; anything else comes with Ray's account of it.
    """
    # Any explicit strategy leaves the trial's placement group.
    task = ray.remote(function).options(num_cpus=0, scheduling_strategy="SPREAD")
    try:
        result: T = ray.get(task.remote(*args))
    except RayTaskError as error:
        if isinstance(error.cause, REFUSALS):
            raise error.cause from None
        raise
    return result


def _ensure_inputs(config: Config, store: Store, cwd: str) -> None:
    """Build the artifacts that the ranker is trained on where they are missing."""
    with started_in(cwd):
        for stage in RANKER_STAGES[config.sweep.ranker].inputs:
            ensure(stage, config, store, build_inputs=True)


def search(
    trainable: Trainable,
    space: Sequence[Parameter],
    points: Sequence[Point],
    config: Config,
    storage: tuple[pafs.FileSystem, str],
    callbacks: Sequence[Any] = (),
) -> list[Trial]:
    """Run a trial for each point, `sweep.max_concurrent` at a time; needs a running Ray.

    Raises:
        ValueError: trials failed, or died with a worker or a node; after the others are done.
    """
    fs, folder = storage

    def trial(point: dict[str, Any]) -> dict[str, Any]:  # Tune takes functions only
        return trainable(point)

    finished = Finished(len(points))
    tuner = tune.Tuner(
        tune.with_resources(trial, TRIAL_RESOURCES),
        param_space={one.setting: tune.choice(sorted({*one.values, points[0][one.setting]}, key=repr)) for one in space},
        tune_config=tune.TuneConfig(
            num_samples=len(points),
            # TuneConfig's own max_concurrent_trials is ignored beside this generator.
            search_alg=BasicVariantGenerator(points_to_evaluate=[dict(point) for point in points], max_concurrent=config.sweep.max_concurrent),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=folder, storage_filesystem=fs, callbacks=[finished, *callbacks], verbose=0),
    )
    tuner.fit()
    done = {points.index(dict(one.config)): one for one in finished.done}
    why = {points.index(dict(one.config)): _why(one) for one in finished.failed}
    failures = [f"trial {number} ({in_words(point)}): {why.get(number, 'never ended')}" for number, point in enumerate(points) if number not in done]
    if failures:
        raise ValueError(
            f"{len(failures)} of {len(points)} trials failed, and a sweep is finished when all have a result:\n  " + "\n  ".join(failures) + "\n"
            "The log above has their tracebacks. Mend the cause, or take the value out of sweep.space, and run the sweep again: stages and trials that are "
            "finished are found, and only the others are run."
        )
    return [_trial(number, done[number], config) for number in range(len(points))]


class Finished(tune.Callback):
    """Collects the trials, those too that died before their first report and that Tune's results say nothing of, and logs a line about each."""

    def __init__(self, num_trials: int) -> None:
        self._num_trials = num_trials
        self.done: list[Any] = []
        self.failed: list[Any] = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done.append(trial)
        self._log(trial, "done")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.failed.append(trial)
        self._log(trial, "failed")

    def _log(self, trial: Any, state: str) -> None:
        logger.info("sweep: trial %d/%d %s: %s", len(self.done) + len(self.failed), self._num_trials, state, in_words(trial.config))


def _why(failed: Any) -> str:
    """What ended a trial, in a line."""
    error = failed.get_pickled_error() or failed.get_error()
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause  # what was raised, without the accounts of the workers that it passed through
    name = f"{type(error).__name__}: " if isinstance(error, BaseException) else ""
    return name + textwrap.shorten(str(error), 400)


def _trial(number: int, finished: Any, config: Config) -> Trial:
    last: Mapping[str, Any] = finished.last_result
    kept: Mapping[str, Any] = last.get("kept") or {}
    refused = last.get("refused")
    score = None if refused else kept.get(metric_of(config))
    if score is None and refused is None:
        refused = f"{metric_of(config)} has no value on the validation window"
    return Trial(number, dict(finished.config), score, kept, refused, round(last.get("time_total_s", 0.0), 1))


def metric_of(config: Config) -> str:
    """The sweep's metric under the name that validation gives it."""
    return config.sweep.metric if config.sweep.head is None else f"{config.sweep.head}/{config.sweep.metric}"


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Best first; trials without a score last, in the order drawn."""
    return sorted(trials, key=lambda trial: (trial.score is None, -(trial.score or 0.0), trial.number))


def table(trials: Sequence[Trial], metric: str) -> str:
    """The ranked trials as text: what each changed from the config as it stood, its score, and its difference from it."""
    start = next((trial for trial in trials if trial.number == 0), None)
    lines = [f"{'rank':>4}  {metric:>10}  {'vs config':>9}  {'seconds':>7}  changes"]
    for place, trial in enumerate(ranked(trials), start=1):
        changed = {name: value for name, value in trial.point.items() if start is None or value != start.point[name]}
        score = "-" if trial.score is None else f"{trial.score:.4f}"
        known = trial.score is not None and start is not None and start.score is not None and trial.number != 0
        against = f"{trial.score - start.score:+.4f}" if known else ""  # type: ignore[operator, union-attr]
        words = in_words(changed) if trial.number != 0 else "the config as it stands"
        lines.append(
            f"{place:>4}  {score:>10}  {against:>9}  {trial.seconds:>7.1f}  {words}" + (f"  [{trial.refused.splitlines()[0]}]" if trial.refused else "")
        )
    return "\n".join(lines)


def show(space: Sequence[Parameter], start: Point) -> str:
    """The space as text, with the config's own value marked."""
    lines = []
    for one in space:
        values = ", ".join(f"[{value}]" if value == start[one.setting] else str(value) for value in sorted({*one.values, start[one.setting]}, key=_in_order))
        lines.append(f"{one.setting:<42} {values:<28} {one.meaning}".rstrip())
    return "\n".join(lines)


def _in_order(value: Any) -> tuple[str, Any]:
    return ("text" if isinstance(value, str) else "number", value)


def _build(context: Context, draft: Draft) -> Result:
    config, store = context.config, context.store
    space, points = space_of(config), points_of(config)
    ensure_shared(RANKER_STAGES[config.sweep.ranker], _accepted(config, points), store)
    scratch = draft.path("scratch/tune").rsplit("/", 1)[0]
    callbacks = tune_callbacks(config, store, f"{config.tracking.group or config.run.name}-sweep-{draft.key[:6]}")
    trials = search(Search(config, store, os.getcwd()), space, points, config, (draft.fs, scratch), callbacks)
    draft.fs.delete_dir(scratch)
    draft.write_json("results.json", [asdict(trial) for trial in ranked(trials)])
    without = sum(trial.score is None for trial in trials)
    return Result(len(trials), len(trials) - without, {"refused or without a score": without} if without else {}, {"metric": metric_of(config)})


def points_of(config: Config) -> list[Point]:
    """The sweep's points, the config as it stands first."""
    space = space_of(config)
    return draw(space, current(config, space), config.sweep.num_trials, config.run.seed)


def _accepted(config: Config, points: Sequence[Point]) -> list[Config]:
    """The configs of the points; those that contradict themselves have none, and their trials say so."""
    configs = []
    for point in points:
        with contextlib.suppress(ValueError):
            configs.append(with_point(config, point))
    return configs


def _settings(config: Config) -> Mapping[str, Any]:
    """The sweep's own, and those of every stage of a trial as the config stands."""
    sweep = config.sweep.model_dump(mode="json", exclude={"max_concurrent"})
    return {"sweep": sweep, "stages": {stage.name: stage.settings(config) for stage in line(RANKER_STAGES[config.sweep.ranker])}}


def _fingerprint(config: Config) -> str:
    """Everything that the trials' results can depend on: of each trial, its stages' versions and settings and the fingerprints of models and logs."""
    ranker = RANKER_STAGES[config.sweep.ranker]
    return digest([provenance(ranker, one)[ranker.name] for one in _accepted(config, points_of(config))])


SWEEP = Stage("sweeps", 1, (), _settings, _build, "tuning.sweep", _fingerprint)


def trials_of(artifact: Artifact) -> list[Trial]:
    """The ranked trials of a finished sweep."""
    return [Trial(**row) for row in artifact.read_json("results.json")]


def main() -> None:
    with clear_errors():
        args = arguments(__doc__ or "", _add_show)
        config = config_from(args)
        space = space_of(config)
        if args.show:
            print(show(space, current(config, space)))
            return
        store = open_store(config)
        with ray_session(config.cluster):
            outcome = ensure(SWEEP, config, store)
        trials = trials_of(outcome.artifact)
        print(table(trials, metric_of(config)))
        best = trials[0]
        print(json.dumps({"sweeps": summary(outcome), "metric": metric_of(config), "best": {"score": best.score, "set": best.point}}))


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--show", action="store_true", help="print the search space and stop")


if __name__ == "__main__":
    main()
