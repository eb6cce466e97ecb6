"""Tracking: a run per trained ranker, per evaluation, per sweep and trial, and per pipeline that built something; in W&B or MLflow, or nowhere.

Reads the config's `tracking` section. backend "wandb" (pipelines.tracking_wandb) writes run folders below <run.uri>/wandb, "mlflow" (pipelines.tracking_mlflow)
a database <run.uri>/mlflow.db. Both stay on this machine unless tracking.mode says "online".

    tracked = describe(config, store, name="choirrec", job_type="train", key=draft.key, inputs=context.inputs)
    fit(job, storage, callbacks=train_callbacks(tracked))    # a curve, epoch by epoch
    record_evaluation(tracked, metrics, report)              # scores, ranked slices, a plot, the report
    record_stages(config, store, outcomes)                   # the artifacts of a finished pipeline and what they were made from
    record_sweep(config, store, group, rows, artifact)       # the table of trials; the Tuner gets tune_callbacks(...)
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
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

Cell = str | float | int | bool | None


@dataclass(frozen=True)
class Table:
    """Rows under named columns, and the two that its plot shows."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    x: str
    y: str
    title: str

    def points(self) -> list[tuple[Cell, float]]:
        """The plot's points; rows without a finite y are not in it."""
        x, y = self.columns.index(self.x), self.columns.index(self.y)
        return [(row[x], float(row[y])) for row in self.rows if isinstance(row[y], int | float) and math.isfinite(row[y])]  # type: ignore[arg-type]


class Track:
    """A run that is being recorded; this one records nothing (backend "none")."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Record the numbers among `metrics` at `step`, which must not fall."""

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Record final values; nested mappings become names with slashes."""

    def table(self, table: Table) -> None:
        """Record a table and its plot."""

    def page(self, name: str, html: str) -> None:
        """Record an HTML page."""

    def used(self, artifact: Artifact) -> None:
        """The run read a finished artifact."""

    def made(self, artifact: Artifact) -> None:
        """The run made an artifact, which is finished."""


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
    inputs: tuple[Artifact, ...] = ()

    @contextmanager
    def open(self) -> Iterator[Track]:
        """Record for the length of a block, `inputs` as read by the run; with backend "none", do nothing.

        Raises:
            ValueError: tracking.mode is online and WANDB_API_KEY is not set.
        """
        with ExitStack() as opened:
            if self.settings.backend == "wandb":
                from pipelines.tracking_wandb import wandb_run

                track: Track = opened.enter_context(wandb_run(self))
            elif self.settings.backend == "mlflow":
                from pipelines.tracking_mlflow import mlflow_run

                track = opened.enter_context(mlflow_run(self))
            else:
                track = Track()
            for artifact in self.inputs:
                track.used(artifact)
            yield track


class TrackReports(ReportCallback, ControllerCallback):
    """Records what rank 0 reports to Ray Train, from Ray Train's controller and as long as that lives: workers that fail and come back stay one run.

    Not a UserCallback: its after_exception comes before Ray Train decides whether the workers start again, and not at all where they never started.
    """

    def __init__(self, tracked: TrackedRun) -> None:
        self._tracked = tracked
        self._opened = ExitStack()
        self._track = Track()

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


def describe(config: Config, store: Store, *, name: str, job_type: str, key: str, inputs: Mapping[str, Artifact], group: str | None = None) -> TrackedRun:
    """A run for the artifact `key`: the whole config, the seed, and the artifacts that it was made from.

    Raises:
        ValueError: tracking.mode is online and W&B's key is not set.
    """
    check_credentials(config.tracking)
    lineage = {stage: {"key": artifact.key, "content_hash": artifact.content_hash} for stage, artifact in inputs.items()}
    # An artifact may be built again after a failure or under another seed's group; the id stays its own, so that an online run is taken up, not doubled.
    recorded = {"settings": config.model_dump(mode="json", exclude={"cluster", "tracking"}), "artifact": {"stage": name, "key": key}, "inputs": lineage}
    group = group or config.tracking.group or config.run.name
    return TrackedRun(config.tracking, store, f"{job_type}-{name}-{key}", f"{name}-{key[:6]}", group, job_type, recorded, tuple(inputs.values()))


def record(tracked: TrackedRun, summary: Mapping[str, Any]) -> None:
    """Write a run that has a summary and no curve."""
    with tracked.open() as track:
        track.summarise(summary)


def record_evaluation(tracked: TrackedRun, metrics: Metrics, report: str) -> None:
    """Write an evaluation's run: every ranker's scores, the slices ranked by what was gained over the base, and the report's page."""
    if tracked.settings.backend == "none":
        return
    with tracked.open() as track:
        track.summarise({f"{name}/{key}": value for name in metrics.rankers for key, value in evaluation_summary(metrics, name).items()})
        track.table(slice_table(metrics))
        track.page("report", report)


def record_stages(config: Config, store: Store, done: Sequence[tuple[Artifact, bool, float]]) -> None:
    """Write the run of a pipeline over its stages (artifact, found finished, seconds): what was found is read by the run, the others are made by it.

    Nothing is written where nothing was built.
    """
    if config.tracking.backend == "none" or all(skipped for _, skipped, _ in done):
        return
    with describe(config, store, name="pipeline", job_type="pipeline", key=done[-1][0].key, inputs={}).open() as track:
        rows = []
        for artifact, skipped, seconds in done:
            (track.used if skipped else track.made)(artifact)
            counts = artifact.manifest["rows"]
            rows.append((artifact.stage, artifact.key, skipped, round(seconds, 3), counts["in"], counts["out"], sum(counts["dropped"].values())))
        columns = ("stage", "key", "found finished", "seconds", "rows in", "rows out", "dropped")
        track.table(Table("stages", columns, tuple(rows), "stage", "seconds", "Seconds by stage"))
        track.summarise({"seconds": {artifact.stage: seconds for artifact, skipped, seconds in done if not skipped}})


def record_sweep(config: Config, store: Store, group: str, rows: Sequence[Mapping[str, Any]], artifact: Artifact) -> None:
    """Write a sweep's run beside those of its trials: the table of trials as `rows` give them, and a plot of the score by trial.

    Args:
        config: the sweep's.
        store: where it is kept.
        group: that its trials' runs have, as tune_callbacks got it.
        rows: one for each trial, with "number" (in the order drawn) and "score" (None: it has none), and whatever else is known of it.
        artifact: the finished sweep.

    Raises:
        ValueError: a row has no "number" or "score".
    """
    if config.tracking.backend == "none":
        return
    flat = [_flat(row) for row in rows]
    for row in flat:
        if not {"number", "score"} <= row.keys():
            raise ValueError(f'a trial\'s row has {sorted(row)} and must have "number" and "score". Name them in the rows that are recorded.')
    columns = tuple(dict.fromkeys(name for row in flat for name in row))
    table = Table("trials", columns, tuple(tuple(row.get(name) for name in columns) for row in flat), "number", "score", "Score by trial")
    scores = [score for _, score in table.points()]
    with describe(config, store, name=artifact.stage, job_type="sweep", key=artifact.key, inputs={}, group=group).open() as track:
        track.table(table)
        track.summarise({"trials": len(rows), "without_score": len(rows) - len(scores), "best_score": max(scores, default=None)})
        track.made(artifact)


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


def slice_table(metrics: Metrics, metric: str = "gauc") -> Table:
    """Every ranker on every slice, most gained over the base first; those without a difference last, by their score."""
    columns = ("slice", "head", "ranker", "rule", "rows", "users", "auc", "gauc", "log_loss", "difference", "low", "high", "verdict")
    rows: list[tuple[Cell, ...]] = []
    for head in metrics.heads:
        for part in head.slices:
            for ranker, scores in part.scores.items():
                found = part.differences.get(ranker, {}).get(metric)
                interval = (None, None, None, None) if found is None else (found.difference, found.low, found.high, found.verdict)
                rows.append((part.name, head.head, ranker, part.rule, part.rows, part.users, scores.auc, scores.gauc, scores.log_loss, *interval))
    place = columns.index("difference")

    def order(row: tuple[Cell, ...]) -> tuple[bool, float]:
        score = row[place] if row[place] is not None else row[columns.index(metric)]
        return row[place] is None, -float(score or 0.0)

    return Table("slices", columns, tuple(sorted(rows, key=order)), "slice", "difference", f"{metric.upper()}: difference from the base by slice")


def tune_callbacks(config: Config, store: Store, group: str) -> list[Any]:
    """Ray Tune's own W&B or MLflow callback: one run per trial, curves as reported to Tune; empty with backend "none".

    Where the store is not local, trials are recorded below $LONGTAIL_HOME (~/.longtail) of the machine that runs the sweep.

    Raises:
        ValueError: tracking.mode is online and W&B's key is not set.
    """
    check_credentials(config.tracking)
    if config.tracking.backend == "none":
        return []
    if config.tracking.backend == "mlflow":
        from pipelines.tracking_mlflow import mlflow_tune_callback

        return [mlflow_tune_callback(config.tracking, made_folder(store, config.run.name), group)]
    from pipelines.tracking_wandb import wandb_tune_callback

    return [wandb_tune_callback(config.tracking, made_folder(store, config.run.name), group)]


def check_credentials(settings: TrackingSettings) -> None:
    """Tell Ray's W&B integration not to look for an account, or see that there is one.

    Raises:
        ValueError: tracking.mode is online and WANDB_API_KEY is not set.
    """
    if settings.backend != "wandb":
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


def lineage_of(artifact: Artifact) -> dict[str, Any]:
    """What is told of a finished artifact: its manifest without `info`, which readers of its tables want."""
    return {name: value for name, value in artifact.manifest.items() if name != "info"}


def disk_folder(store: Store, run: str) -> Path:
    """Where files of a backend lie that must be on a disk: the store, or a folder of this machine where that is none."""
    if isinstance(store.fs, pafs.LocalFileSystem):
        return Path(store.root)
    return Path(os.environ.get("LONGTAIL_HOME", "~/.longtail")).expanduser() / run


def made_folder(store: Store, run: str) -> Path:
    """`disk_folder`, made where it is missing."""
    folder = disk_folder(store, run)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Cell]:
    """A nested row as cells by dotted name; what is no number or text is written out."""
    found: dict[str, Cell] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            plain = value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
            found[f"{prefix}{name}"] = value if plain else str(value)
    return found
