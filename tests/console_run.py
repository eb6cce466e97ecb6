"""The small run with evaluations beside it, for the console: of its own rankers, of another run on the same logs, and of other logs."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.evaluation import Metrics, evaluate
from pipelines.evaluate import evaluation_stage
from pipelines.stage import find, stage_key
from tests import small_run
from tests.simulated_predictions import simulate

RANKERS = ("base", "choirrec", "saviorrec")


def publish(folder: Path) -> Config:
    """The small run, evaluated."""
    config = small_run.publish(folder)
    add_evaluation(config, "small", seed=0)
    return config


def add_evaluation(config: Config, name: str, seed: int, **inputs: Artifact) -> Artifact:
    """An evaluation in the run's store, of simulated predictions; `inputs` stand in for the run's own."""
    named = config.model_copy(update={"run": config.run.model_copy(update={"name": name, "seed": seed})})
    store, stage = Store.open(config.run.uri), evaluation_stage(config)
    read = {upstream.name: find(upstream, config, store) for upstream in stage.inputs} | inputs
    given: Mapping[str, Artifact] = {upstream: artifact for upstream, artifact in read.items() if artifact is not None}
    predictions = simulate(seed=seed, rows=1500)
    metrics: Metrics = evaluate(predictions, config.evaluate.model_copy(update={"bootstrap_rounds": 30}), seed=1, rankers=RANKERS)
    draft = store.create(stage.name, stage_key(stage, named, given))
    draft.write("predictions", predictions)
    draft.write_json("metrics.json", metrics.model_dump(mode="json"))
    with draft.fs.open_output_stream(draft.path("report.html")) as stream:
        stream.write(f"<!doctype html><title>the report of {name}</title>".encode())
    settings = dict(stage.settings(named))
    return draft.commit(config=settings, inputs=given, seed=seed, rows_in=1, rows_out=1, dropped={}, info={})


def other_logs(config: Config) -> Artifact:
    """Logs of the same store that have other content."""
    draft = Store.open(config.run.uri).create("logs", "other")
    draft.write("users", pa.table({"user_id": ["x"]}))
    return draft.commit(config={}, inputs={}, seed=1, rows_in=1, rows_out=1, dropped={}, info={})
