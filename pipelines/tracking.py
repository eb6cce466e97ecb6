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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback, ReportCallback
from ray.train.v2._internal.execution.context import TrainRunContext

from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.evaluation import Metrics
from pipelines.tracked_run import Cell, Table, Track, TrackedRun, check_credentials, made_folder


@contextmanager
def opened(tracked: TrackedRun) -> Iterator[Track]:
    """Record for the length of a block, `inputs` as read by the run; with backend "none", do nothing.

    Raises:
        ValueError: tracking.mode is online and WANDB_API_KEY is not set.
    """
    with ExitStack() as entered:
        if tracked.settings.backend == "wandb":
            from pipelines.tracking_wandb import wandb_run

            track: Track = entered.enter_context(wandb_run(tracked))
        elif tracked.settings.backend == "mlflow":
            from pipelines.tracking_mlflow import mlflow_run

            track = entered.enter_context(mlflow_run(tracked))
        else:
            track = Track()
        for artifact in tracked.inputs:
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
        self._track = self._opened.enter_context(opened(self._tracked))

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
    with opened(tracked) as track:
        track.summarise(summary)


def record_evaluation(tracked: TrackedRun, metrics: Metrics, report: str) -> None:
    """Write an evaluation's run: every ranker's scores, the slices ranked by what was gained over the base, and the report's page."""
    if tracked.settings.backend == "none":
        return
    with opened(tracked) as track:
        track.summarise({f"{name}/{key}": value for name in metrics.rankers for key, value in evaluation_summary(metrics, name).items()})
        track.table(slice_table(metrics))
        track.page("report", report)


def record_stages(config: Config, store: Store, done: Sequence[tuple[Artifact, bool, float]]) -> None:
    """Write the run of a pipeline over its stages (artifact, found finished, seconds): what was found is read by the run, the others are made by it.

    Nothing is written where nothing was built.
    """
    if config.tracking.backend == "none" or all(skipped for _, skipped, _ in done):
        return
    with opened(describe(config, store, name="pipeline", job_type="pipeline", key=done[-1][0].key, inputs={})) as track:
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
    with opened(describe(config, store, name=artifact.stage, job_type="sweep", key=artifact.key, inputs={}, group=group)) as track:
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
