"""MLflow: runs in a database <run.uri>/mlflow.db with files below <run.uri>/mlartifacts, or on the server that tracking.uri names.

`mlflow ui --backend-store-uri sqlite:///<run.uri>/mlflow.db` (of the full mlflow package) shows them. Every run has the config as parameters, its group, kind
and key as tags, and what it read as inputs. Trials of a sweep go through Ray Tune's own callback. The database is one file: runs that several nodes write want
a server. Called by pipelines.tracking.
"""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longtail.artifacts import Artifact
from longtail.report_plots import Canvas, Scale, colour, span
from longtail.tracking import LOCAL_DATABASE, TrackingSettings
from pipelines.tracked_run import Table, Track, TrackedRun, lineage_of, made_folder, numbers

_PER_CALL = 100  # parameters that MLflow takes at a time
_MAX_TEXT = 500  # of a parameter; the rest of a longer one says nothing to who compares runs


class MlflowTrack(Track):
    """An MLflow run that is being recorded."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self._run_id = run_id

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(_name(name), float(value), now, step) for name, value in numbers(metrics).items()]
        for start in range(0, len(found), 500):
            self._client.log_batch(self._run_id, metrics=found[start : start + 500])

    def summarise(self, values: Mapping[str, Any]) -> None:
        self.log(values, step=0)

    def table(self, table: Table) -> None:
        import pandas as pd

        self._client.log_table(self._run_id, pd.DataFrame(list(table.rows), columns=list(table.columns), dtype=object), f"{table.name}.json")
        self._client.log_text(self._run_id, plot(table), f"{table.name}.svg")

    def page(self, name: str, html: str) -> None:
        self._client.log_text(self._run_id, html, f"{name}.html")

    def used(self, artifact: Artifact) -> None:
        from mlflow.entities import Dataset, DatasetInput

        read = Dataset(artifact.stage, artifact.key[:36], "longtail", artifact.root)  # MLflow's digests have at most 36 characters
        self._client.log_inputs(self._run_id, datasets=[DatasetInput(read)])

    def made(self, artifact: Artifact) -> None:
        self._client.log_dict(self._run_id, lineage_of(artifact) | {"path": artifact.root}, f"artifacts/{artifact.stage}.json")


@contextmanager
def mlflow_run(tracked: TrackedRun) -> Iterator[MlflowTrack]:
    """Record a run for the length of a block, as failed if that raises."""
    from mlflow.entities import Param, RunStatus

    folder = made_folder(tracked.store, str(tracked.config["settings"]["run"]["name"]))
    client, experiment = opened(tracked.settings, folder)
    tags = {"longtail.run_id": tracked.run_id, "longtail.group": tracked.group, "longtail.job_type": tracked.job_type}
    run_id = client.create_run(experiment, run_name=tracked.name, tags=tags).info.run_id
    parameters = [Param(_name(name), str(value)[:_MAX_TEXT]) for name, value in _flat(tracked.config["settings"]).items()]
    for start in range(0, len(parameters), _PER_CALL):
        client.log_batch(run_id, params=parameters[start : start + _PER_CALL])
    client.log_dict(run_id, dict(tracked.config), "config.json")
    status = RunStatus.FAILED
    try:
        yield MlflowTrack(client, run_id)
        status = RunStatus.FINISHED
    finally:
        client.set_terminated(run_id, RunStatus.to_string(status))


def mlflow_tune_callback(settings: TrackingSettings, folder: Path, group: str) -> Any:
    """Ray Tune's own callback: a run per trial."""
    opened(settings, folder)  # the experiment, with a place for its files
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    uri = tracking_uri(settings, folder)
    return MLflowLoggerCallback(uri, registry_uri=uri, experiment_name=settings.project, tags={"longtail.group": group, "longtail.job_type": "trial"})


def tracking_uri(settings: TrackingSettings, folder: Path) -> str:
    """MLflow's own name of the database or the server."""
    return settings.uri or f"{LOCAL_DATABASE}{folder.resolve()}/mlflow.db"


def opened(settings: TrackingSettings, folder: Path) -> tuple[Any, str]:
    """A client and the experiment's id; both are made where they are missing."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.telemetry import set_telemetry_client

    set_telemetry_client()  # type: ignore[no-untyped-call]  # ends what it starts when it is imported without that variable
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a new database is told of in two lines of every table
    uri = tracking_uri(settings, folder)
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    found = client.get_experiment_by_name(settings.project)
    if found is None:
        try:
            place = (folder / "mlartifacts").resolve().as_uri() if uri.startswith(LOCAL_DATABASE) else None  # a server has its own
            return client, str(client.create_experiment(settings.project, artifact_location=place))
        except MlflowException:  # another process was first
            found = client.get_experiment_by_name(settings.project)
            if found is None:
                raise
    return client, str(found.experiment_id)


def plot(table: Table) -> str:
    """A table's plot as SVG: its points in their order, from left to right."""
    width, height, left, bottom, top = 640, 320, 60, 40, 34
    canvas, points = Canvas(width, height, table.title), table.points()
    y = Scale(*span([value for _, value in points]), height - bottom, top)
    for tick in y.ticks():
        canvas.line(left, y(tick), width - 12, y(tick))
        canvas.text(left - 7, y(tick) + 4, f"{tick:g}", "end")
    for place, (x, value) in enumerate(points):
        canvas.dot(left + (width - left - 24) * (place + 0.5) / len(points), y(value), colour("choirrec"), f"{x}: {value:.5g}")
    canvas.text(left, 16, table.title)
    canvas.text(width - 12, height - 10, f"{table.x}, in the table's order", "end")
    return canvas.svg()


def _name(name: str) -> str:
    """A name that MLflow takes: letters, digits and _ - . / : and spaces."""
    return re.sub(r"[^/\w.\- :]", "_", name.replace("\u2013", "-").replace("\u2265", "from"))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
