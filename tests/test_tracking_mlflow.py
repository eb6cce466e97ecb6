"""MLflow as the tracking backend: what was written is read back through MLflow's own client; nothing leaves the machine unless asked."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray.train
from mlflow import MlflowClient
from mlflow.entities import Run
from ray import tune
from ray.train.torch import TorchTrainer

from longtail.artifacts import Store
from longtail.config import Config
from longtail.tracking import TrackingSettings
from pipelines.cluster import ROOT
from pipelines.tracking import describe, opened, record_evaluation, record_stages, record_sweep, train_callbacks, tune_callbacks
from tests.test_tracking import TRIALS, a_sweep, an_evaluation, an_input, config_at, dies, two_epochs

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # MLflow's, of SQLAlchemy 2.1


def mlflow_config(folder: Path, *overrides: str) -> Config:
    return config_at(folder, "tracking.backend=mlflow", *overrides)


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db", registry_uri=f"sqlite:///{folder}/mlflow.db")


def runs(folder: Path, project: str = "longtail") -> list[Run]:
    """The experiment's runs, oldest first."""
    client = client_of(folder)
    experiment = client.get_experiment_by_name(project)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


@pytest.mark.parametrize("uri", ["http://mlflow:5000", "https://mlflow.example.org", "postgresql://db/mlflow", "databricks"])
def test_a_server_is_refused_unless_online(uri: str) -> None:
    with pytest.raises(ValueError, match=r'is not a database on this machine, and mode = "offline" keeps everything here. Set mode = "online"'):
        TrackingSettings(backend="mlflow", uri=uri)
    assert TrackingSettings(backend="mlflow", uri=uri, mode="online").uri == uri


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r'mode = "online" with backend = "mlflow" needs a server. Set uri'):
        TrackingSettings(backend="mlflow", mode="online")
    with pytest.raises(ValueError, match=r"uri = 'http://mlflow:5000' is MLflow's alone, and backend = 'wandb'"):
        TrackingSettings(uri="http://mlflow:5000")
    assert TrackingSettings(backend="mlflow", uri="sqlite:////var/mlflow.db").mode == "offline"


def test_an_evaluation_is_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    config, store = mlflow_config(folder, "run.seed=11"), Store.open(str(folder))
    samples = an_input(store)
    tracked = describe(config, store, name="evaluation", job_type="evaluate", key="0123456789abcdef", inputs={"samples": samples})
    record_evaluation(tracked, an_evaluation(), "<p>the report</p>")
    (run,) = runs(folder)
    assert (run.info.run_name, run.info.status) == ("evaluation-012345", "FINISHED")
    assert run.data.tags["longtail.group"] == "spring"
    assert run.data.tags["longtail.job_type"] == "evaluate"
    assert run.data.params["run.seed"] == "11"
    assert run.data.metrics["duet/outcome/cold/difference/gauc/difference"] == 0.05
    ((name, digest),) = [(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs]
    assert (name, digest) == ("samples", samples.key)
    client = client_of(folder)
    files = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert files == {"config.json", "report.html", "slices.json", "slices.svg"}
    text = Path(client.download_artifacts(run.info.run_id, "slices.json", str(tmp_path))).read_text()
    assert [row[0] for row in json.loads(text)["data"]] == ["cold", "all", "all", "cold"]
    assert (folder / "mlartifacts").is_dir(), "files lie beside the database, not in the folder that the command was started in"


def test_pipelines_and_sweeps_are_read_back(tmp_path: Path) -> None:
    config, store = mlflow_config(tmp_path, "tracking.project=ours"), Store.open(str(tmp_path))
    samples, sweep = an_input(store), a_sweep(store)
    record_stages(config, store, [(samples, True, 0.0), (sweep, False, 2.5)])
    record_sweep(config, store, "spring-sweep", TRIALS, sweep)
    pipeline, trials = runs(tmp_path, "ours")
    assert pipeline.data.metrics == {"seconds/sweeps": 2.5}
    assert [one.dataset.digest for one in pipeline.inputs.dataset_inputs] == [samples.key]
    client = client_of(tmp_path)
    made = json.loads(Path(client.download_artifacts(pipeline.info.run_id, "artifacts/sweeps.json", str(tmp_path))).read_text())
    assert (made["key"], made["content_hash"], made["path"]) == (sweep.key, sweep.content_hash, sweep.root)
    assert trials.data.tags["longtail.group"] == "spring-sweep"
    assert trials.data.metrics["best_score"] == 0.75
    svg = Path(client.download_artifacts(trials.info.run_id, "trials.svg", str(tmp_path))).read_text()
    assert svg.count("<circle") == 2
    assert "<title>1: 0.75</title>" in svg


def test_a_failed_block_is_a_failed_run(tmp_path: Path) -> None:
    tracked = describe(mlflow_config(tmp_path), Store.open(str(tmp_path)), name="base", job_type="train", key="k1", inputs={})

    def fail() -> None:
        with opened(tracked) as track:
            track.log({"auc": 0.5, "purchases_4\u20139": 0.25, "gauc": float("nan")}, step=1)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    (run,) = runs(tmp_path)
    assert run.info.status == "FAILED"
    assert run.data.metrics == {"auc": 0.5, "purchases_4-9": 0.25}


CONNECTIONS = """
import sys
calls = []
sys.addaudithook(lambda event, arguments: calls.append(arguments) if event in ("socket.connect", "socket.getaddrinfo") else None)
from longtail.artifacts import Store
from longtail.config import load
from pipelines.tracking import describe, record
config = load(None, [f'run.uri="{sys.argv[1]}"', "tracking.backend=mlflow"])
record(describe(config, Store.open(sys.argv[1]), name="base", job_type="train", key="k1", inputs={}), {"auc": 0.5})
import time
time.sleep(1)
from mlflow.telemetry.client import get_telemetry_client
assert get_telemetry_client() is None
assert not calls, calls
"""


def test_nothing_is_sent(tmp_path: Path) -> None:
    """Outside of pytest, under which MLflow itself sends nothing."""
    quiet = {name: value for name, value in os.environ.items() if name not in ("PYTEST_CURRENT_TEST", "CI", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")}
    environment = quiet | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")])}
    done = subprocess.run([sys.executable, "-c", CONNECTIONS, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(runs(tmp_path)) == 1
    assert {entry.name for entry in tmp_path.iterdir()} == {"mlflow.db", "mlartifacts"}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_a_training_run_is_one_curve(fails: bool, tmp_path: Path) -> None:
    tracked = describe(mlflow_config(tmp_path), Store.open(str(tmp_path)), name="base", job_type="train", key="k1", inputs={})
    trainer = TorchTrainer(
        dies if fails else two_epochs,
        train_loop_config={"folder": str(tmp_path), "always": True},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(name="base", storage_path=str(tmp_path / "train"), callbacks=train_callbacks(tracked)),
    )
    if fails:
        with pytest.raises(ray.train.TrainingFailedError, match="boom"):
            trainer.fit()
    else:
        trainer.fit()
    (run,) = runs(tmp_path)
    assert run.info.status == ("FAILED" if fails else "FINISHED")
    curve = client_of(tmp_path).get_metric_history(run.info.run_id, "auc")
    assert [(point.step, point.value) for point in curve] == ([(1, 0.6)] if fails else [(1, 0.6), (2, 0.7)])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_ray_tunes_own_callback_records_trials(tmp_path: Path) -> None:
    config, store = mlflow_config(tmp_path / "a run"), Store.open(str(tmp_path / "a run"))

    def trial(point: dict[str, Any]) -> None:
        for epoch in (1, 2):
            tune.report({"outcome/auc": point["train.epochs"] / 10 + epoch / 100, "gauc": float("nan")})

    tune.Tuner(
        tune.with_resources(trial, {"CPU": 0.1}),
        param_space={"train.epochs": tune.grid_search([1, 2])},
        run_config=tune.RunConfig(name="tune", storage_path=str(tmp_path / "tune"), callbacks=tune_callbacks(config, store, "spring-sweep"), verbose=0),
    ).fit()
    found = runs(tmp_path / "a run")
    assert {run.data.params["train.epochs"]: round(run.data.metrics["outcome/auc"], 6) for run in found} == {"1": 0.12, "2": 0.22}
    assert {(run.info.status, run.data.tags["longtail.group"], run.data.tags["longtail.job_type"]) for run in found} == {("FINISHED", "spring-sweep", "trial")}
    history = client_of(tmp_path / "a run").get_metric_history(found[0].info.run_id, "outcome/auc")
    assert [point.step for point in history] == [1, 2]
