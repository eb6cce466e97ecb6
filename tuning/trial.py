"""A trial of a sweep: a function of a point that builds what is the point's own, fits the ranker with Ray Train, and reports every epoch to Tune.

Reads what pipelines.full reads; writes the artifacts that pipelines.full would make of the same settings, the ranker among them (population based
training's rankers excepted: their settings change while they train).
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray.train
from ray import tune
from ray.actor import ActorHandle
from ray.train.v2.api.callback import UserCallback
from ray.util.queue import Empty, Queue

from longtail.artifacts import Store
from longtail.config import Config
from longtail.settings import own_seed
from longtail.sweep_results import NO_SCORE, Goal
from pipelines.stage import Stage, ensure, find
from pipelines.train import RANKER_STAGES, TrainJob, build, fit
from pipelines.work import started_in
from tuning.searchers import SEARCHED
from tuning.sharing import REFUSALS, RefusedError, ensure_inputs
from tuning.spaces import with_point

Report = Callable[[Mapping[str, Any], "ray.train.Checkpoint | None"], None]


@dataclass(frozen=True)
class Search:
    """All that a trial needs beside its point."""

    config: Config
    store: Store
    cwd: str  # the driver's: relative paths of the config start there
    builders: ActorHandle[Any]
    goal: Goal

    def __call__(self, point: dict[str, Any]) -> dict[str, Any]:
        """One trial: stages, then training; returns the kept epoch's metrics, or why the point was refused."""
        try:
            config = with_point(self.config, point)
        except ValueError as error:
            return refusal(error)
        try:
            ensure_inputs(self.stage(config), config, self.store, self.builders, self.cwd)
            epochs, best = self._fit(config)
        except (*REFUSALS, RefusedError) as error:
            return refusal(error)
        kept = epochs[best - 1]
        return {**epochs[-1], "kept": kept, "epochs": len(epochs), SEARCHED: self.goal.searched(kept)}

    def stage(self, config: Config) -> Stage:
        return RANKER_STAGES[config.sweep.ranker]

    def _fit(self, config: Config) -> tuple[list[dict[str, Any]], int]:
        """The ranker's metrics by epoch and the best epoch's number; each epoch is reported to Tune but the last, which the trial's result is.

        A scheduler that stopped a trial after its last epoch would throw away what is finished.
        """
        callback = EpochReports()
        report = partial(self._report, config)
        with started_in(self.cwd):
            epochs, best, found = callback.while_running(partial(self._train, config, callback, tune.get_checkpoint()), report)
        if found:
            for metrics in epochs:
                report(metrics, None)
        return epochs, best

    def _report(self, config: Config, metrics: Mapping[str, Any], checkpoint: "ray.train.Checkpoint | None") -> None:
        if metrics["epoch"] == config.train.epochs:
            return
        told = {**metrics, SEARCHED: self.goal.searched(metrics)}
        if checkpoint is None or not config.sweep.pauses:
            tune.report(told)
        else:
            tune.report(told, checkpoint=tune.Checkpoint(checkpoint.path, checkpoint.filesystem))

    def _train(self, config: Config, callback: "EpochReports", start: Any) -> tuple[list[dict[str, Any]], int, bool]:
        """Train, or find what these settings gave before."""
        stage = self.stage(config)
        if config.sweep.scheduler == "pbt":
            return (*self._train_aside(stage, config, callback, start), False)
        made = replace(stage, build=partial(build, name=stage.name, callbacks=[callback], start=start, keep_all=config.sweep.pauses))
        outcome = ensure(made, config, self.store)
        return outcome.artifact.info["epochs"], outcome.artifact.info["best_epoch"], outcome.skipped

    def _train_aside(self, stage: Stage, config: Config, callback: "EpochReports", start: Any) -> tuple[list[dict[str, Any]], int]:
        """Train without an artifact: no one config makes this ranker."""
        inputs = {upstream.name: found for upstream in stage.inputs if (found := find(upstream, config, self.store)) is not None}
        job = TrainJob.of(config, inputs, stage.name, own_seed(config.train.seed, config.run.seed))
        draft = self.store.create(stage.name, f"trial-{tune.get_context().get_trial_id()}")
        try:
            fitted = fit(job, (draft.fs, draft.path("ray_train/run").rsplit("/", 1)[0]), callbacks=[callback], start=start, keep_all=True)
            return list(fitted.metrics), fitted.best_epoch
        finally:
            draft.discard()
            with suppress(FileNotFoundError):  # nobody else's: it is the trial's
                self.store.fs.delete_dir(f"{self.store.root}/{draft.stage}/{draft.key}")


def refusal(error: ValueError) -> dict[str, Any]:
    """The last result of a trial whose point our own rules refuse."""
    return {"refused": str(error), SEARCHED: NO_SCORE}


class EpochReports(UserCallback):
    """Brings what rank 0 reports to Ray Train into the trial's own thread, which alone may report to Tune.

    Ray's TuneReportCallback reads such reports and a trial's return value through queues of length one in one thread: a value returned while a report is on
    its way blocks both. It also knows no checkpoints, which a trial that can be paused needs.
    """

    def __init__(self) -> None:
        self._queue = Queue(actor_options={"num_cpus": 0})

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: "ray.train.Checkpoint | None") -> None:
        """Called in Ray Train's controller."""
        self._queue.put((metrics[0], checkpoint))

    def while_running(self, work: Callable[[], Any], report: Report) -> Any:
        """Run `work` in a thread of its own, hand on what is reported meanwhile, and return what it returns."""
        ended: dict[str, Any] = {}

        def run() -> None:
            try:
                ended["value"] = work()
            except BaseException as error:  # raised again below, in the thread that waits
                ended["error"] = error

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                with suppress(Empty):
                    report(*self._queue.get(timeout=0.5))
            while not self._queue.empty():
                report(*self._queue.get())
        finally:
            self._queue.shutdown(force=True)
        if "error" in ended:
            raise ended["error"]
        return ended["value"]
