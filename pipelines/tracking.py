"""Weights & Biases through Ray's own integration: a run per trained ranker, per evaluated ranker and per trial of a sweep.

Reads the config's `tracking` section; writes run folders below <run.uri>/wandb, by default offline: no account, no network, and complete, so that
`wandb sync <run.uri>/wandb/offline-run-*` pushes them whenever someone wants to. tracking.mode = "online" streams them (key in WANDB_API_KEY).

    tracked = describe(config, store, name="choirrec", job_type="train", key=draft.key, inputs=context.inputs)
    fit(job, storage, callbacks=train_callbacks(tracked))    # a curve, epoch by epoch
    record(tracked, evaluation_summary(metrics, "choirrec"))    # a summary without a curve

A sweep hands `tune_callbacks(...)` to its Tuner.
"""

import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
from ray.train.v2._internal.execution.callback import ControllerCallback, ReportCallback
from ray.train.v2._internal.execution.context import TrainRunContext

from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.evaluation import Metrics
from longtail.tracking import TrackingSettings

logger = logging.getLogger(__name__)


class Track:
    """A run that is being recorded, or nothing at all."""

    def __init__(self, run: Any | None) -> None:
        self._run = run

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Record the numbers among `metrics` at `step`, which must not fall."""
        if self._run is not None:
            self._run.log(numbers(metrics), step=step)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Record final values; nested mappings become names with slashes."""
        if self._run is not None:
            self._run.summary.update(numbers(values))


@dataclass(frozen=True)
class TrackedRun:
    """What a run is called, where it belongs and where it is kept; plain values, so that it travels to a worker."""

    settings: TrackingSettings
    store: Store
    run_id: str
    name: str
    group: str
    job_type: str
    config: Mapping[str, Any]

    @contextmanager
    def open(self) -> Iterator[Track]:
        """Record for the length of a block; with backend "none", do nothing.

        Raises:
            ValueError: tracking.mode is online and WANDB_API_KEY is not set.
        """
        if self.settings.backend == "none":
            yield Track(None)
            return
        import wandb
        from ray.air.integrations.wandb import setup_wandb

        check_credentials(self.settings)
        with _folder(self.store) as folder:
            run = setup_wandb(dict(self.config), id=self.run_id, name=self.name, **_arguments(self.settings, self.group, self.job_type, folder))
            failed = True
            try:
                yield Track(run)
                failed = False
            finally:
                run.finish(exit_code=1 if failed else 0)
                wandb.teardown()  # ends W&B's service process now, not some time after this one


class TrackReports(ReportCallback, ControllerCallback):
    """Records what rank 0 reports to Ray Train, from Ray Train's controller and as long as that lives: workers that fail and come back stay one run.

    Not a UserCallback: its after_exception comes before Ray Train decides whether the workers start again, and not at all where they never started.
    """

    def __init__(self, tracked: TrackedRun) -> None:
        self._tracked = tracked
        self._opened = ExitStack()
        self._track = Track(None)

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        self._track = self._opened.enter_context(self._tracked.open())

    def after_report(self, training_report: Any, metrics: list[dict[str, Any]]) -> None:
        """Log the metrics of one epoch."""
        self._track.log(metrics[0], step=metrics[0]["epoch"])

    def after_controller_finish(self, result: Any) -> None:
        """Close the run: as failed after an error, and where the workers returned why they gave up."""
        self._close(result.error or (None if result.return_value is None else RuntimeError(result.return_value)))

    def before_controller_abort(self) -> None:
        self._close(KeyboardInterrupt())

    def _close(self, failure: BaseException | None) -> None:
        self._opened.__exit__(type(failure) if failure else None, failure, None)


def train_callbacks(tracked: TrackedRun) -> list[TrackReports]:
    """Ray Train callbacks that record a training run by epoch; empty with backend "none"."""
    return [] if tracked.settings.backend == "none" else [TrackReports(tracked)]


def describe(config: Config, store: Store, *, name: str, job_type: str, key: str, inputs: Mapping[str, Artifact]) -> TrackedRun:
    """A run for the artifact `key`: the whole config, the seed, and the artifacts that it was made from.

    Raises:
        ValueError: tracking.mode is online and WANDB_API_KEY is not set.
    """
    check_credentials(config.tracking)
    lineage = {stage: {"key": artifact.key, "content_hash": artifact.content_hash} for stage, artifact in inputs.items()}
    # An artifact may be built again after a failure or under another seed's group; the id stays its own, so that an online run is taken up, not doubled.
    recorded = {"settings": config.model_dump(mode="json", exclude={"cluster", "tracking"}), "artifact": {"stage": name, "key": key}, "inputs": lineage}
    group = config.tracking.group or config.run.name
    return TrackedRun(config.tracking, store, f"{job_type}-{name}-{key}", f"{name}-{key[:6]}", group, job_type, recorded)


def record(tracked: TrackedRun, summary: Mapping[str, Any]) -> None:
    """Write a run that has a summary and no curve."""
    with tracked.open() as track:
        track.summarise(summary)


def evaluation_summary(metrics: Metrics, ranker: str) -> dict[str, Any]:
    """A ranker's share of an evaluation as <head>/<slice>/<metric>, and its paired differences from the baseline beside them."""
    summary: dict[str, Any] = {}
    for head in metrics.heads:
        for part in head.slices:
            if ranker in part.scores:
                summary[f"{head.head}/{part.name}"] = part.scores[ranker].model_dump()
            for metric, interval in part.differences.get(ranker, {}).items():
                summary[f"{head.head}/{part.name}/difference/{metric}"] = interval.model_dump()
    return summary


def tune_callbacks(config: Config, store: Store, group: str) -> list[Any]:
    """Ray Tune's own W&B callback: one run per trial, curves as reported to Tune; empty with backend "none".

    Where the store is not local, trials are recorded below $LONGTAIL_HOME (~/.longtail) of the machine that runs the sweep.

    Raises:
        ValueError: tracking.mode is online and WANDB_API_KEY is not set.
    """
    if config.tracking.backend == "none":
        return []
    from ray.air.integrations.wandb import WandbLoggerCallback

    check_credentials(config.tracking)
    folder = Path(store.root) if isinstance(store.fs, pafs.LocalFileSystem) else _home() / config.run.name
    folder.mkdir(parents=True, exist_ok=True)
    return [WandbLoggerCallback(upload_timeout=60, **_arguments(config.tracking, group, "trial", folder))]


def check_credentials(settings: TrackingSettings) -> None:
    """Tell Ray's integration not to look for an account, or see that there is one.

    Raises:
        ValueError: tracking.mode is online and WANDB_API_KEY is not set.
    """
    if settings.backend == "none":
        return
    os.environ["WANDB_MODE"] = settings.mode  # Ray asks for an API key unless this says offline
    if settings.mode == "online" and not os.environ.get("WANDB_API_KEY"):
        raise ValueError(
            "tracking.mode = 'online' needs an account's key in WANDB_API_KEY, here and on every node (for a submitted job: --runtime-env-json). "
            'Set it, or leave tracking.mode = "offline" and push later with wandb sync.'
        )


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float | int]:
    """The finite numbers of a nested mapping by path ("all/choirrec/auc"); what is no number is left out."""
    found: dict[str, float | int] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= numbers(value, f"{path}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            found[path] = int(value) if isinstance(value, bool | int) else float(value)
    return found


def _arguments(settings: TrackingSettings, group: str, job_type: str, folder: Path) -> dict[str, Any]:
    import wandb

    # Ray collects the output and its dashboard shows the machines; W&B shall neither redirect nor sample.
    quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True, disable_code=True, init_timeout=120)
    return {
        "project": settings.project,
        "entity": settings.entity,
        "group": group,
        "job_type": job_type,
        "dir": str(folder),
        "mode": settings.mode,
        "reinit": "finish_previous",  # Ray passes a boolean, which W&B warns about
        "resume": "allow" if settings.mode == "online" else None,
        "settings": quiet,
    }


@contextmanager
def _folder(store: Store) -> Iterator[Path]:
    """Where W&B writes its `wandb` folder: the store itself, or a folder of this machine that is copied to <run.uri>/wandb at the end."""
    if isinstance(store.fs, pafs.LocalFileSystem):
        Path(store.root).mkdir(parents=True, exist_ok=True)
        yield Path(store.root)
        return
    with tempfile.TemporaryDirectory(prefix="longtail-wandb-") as folder:
        try:
            yield Path(folder)
        finally:  # a run that failed is the one to look at
            for run in sorted((Path(folder) / "wandb").glob("*run-*")):
                if run.is_dir() and not run.is_symlink():
                    target = f"{store.root}/wandb/{run.name}"
                    store.fs.create_dir(target, recursive=True)
                    pafs.copy_files(str(run), target, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=store.fs)


def _home() -> Path:
    return Path(os.environ.get("LONGTAIL_HOME", "~/.longtail")).expanduser()
