"""The evaluate stage on Ray: real checkpoints over sample files, from predictions to the report."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from longtail import lineage, schema
from longtail.artifacts import Artifact, Draft, Store
from longtail.config import Config, parse
from longtail.evaluation import Metrics
from longtail.metrics import auc
from longtail.report import StageRecord, text_table
from pipelines.evaluate import evaluation_stage
from pipelines.stage import Context
from tests.ranker_data import World, spec_of
from tests.test_report import EXPOSURE
from tests.test_score import artifacts

RANKERS = ("base", "choirrec", "saviorrec")
AS_OF = pa.scalar(datetime(2024, 7, 1, tzinfo=UTC), schema.TIMESTAMP)


def commit(draft: Draft, info: dict[str, object], inputs: dict[str, Artifact] | None = None, rows: int = 0) -> Artifact:
    draft.write_json("stage.json", draft.stage)  # a stage without a table here still has its folder
    return draft.commit(config={}, inputs=inputs or {}, seed=7, rows_in=rows, rows_out=rows, dropped={}, info=info)


def upstream(folder: Path, world: World) -> tuple[Store, dict[str, Artifact]]:
    """Small artifacts in the form that each stage before the rankers writes, beside real samples and checkpoints."""
    found, store = artifacts(folder, world, RANKERS), Store.open(str(folder))
    times = {name: f"2024-{month:02d}-01T00:00:00Z" for month, name in enumerate(("start", "history_end", "validation_start", "train_end", "end"), start=1)}
    counts = {"num_users": 40, "num_items": 60, "num_events": 900, "num_examples": {"train": 200, "test": 300}}
    columns = {"categorical_attributes": ["age"], "numeric_attributes": [], "has_conversion": True, "behaviour_kinds": ["click", "purchase"]}
    found["logs"] = commit(store.create("logs", "l"), {"source": "synthetic", "exposure": EXPOSURE, **times, **columns, **counts}, rows=900)
    draft = store.create("profiles", "p")
    draft.write("profiles", pa.table({"outcome": ["llm"] * 30 + ["fallback:invented"] * 10}))
    found["profiles"] = commit(draft, {}, {"logs": found["logs"]}, rows=40)
    rng = np.random.default_rng(0)
    for name, key, num in (("user_codes", "user_id", 40), ("item_codes", "item_id", 60)):
        draft = store.create(name, "c")
        codes = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 4, 2 * num).astype(np.int32)), 2)
        keys = {key: [str(number) for number in range(num)]} | ({"as_of": pa.repeat(AS_OF, num)} if name == "user_codes" else {})
        draft.write("codes", pa.table({**keys, "codes": codes}))
        found[name] = commit(draft, {"shape": [2, 4, 8]}, {"profiles": found["profiles"]} if name == "user_codes" else {}, rows=num)
    draft = store.create("groups", "g")
    draft.write("groups", pa.table({"as_of": pa.repeat(AS_OF, 4), "depth": pa.array([0, 1, 1, 2], pa.int8()), "size": pa.array([40, 25, 15, 25], pa.int32())}))
    found["groups"] = commit(draft, {}, {"user_codes": found["user_codes"]}, rows=4)
    hits = {name: {"queries": 50, "trained": 0.4, "frozen": 0.3, "start": 0.3, "popularity": 0.1} for name in ("all", "hidden_target", "hidden_query")}
    found["item_encoder"] = commit(store.create("item_encoder", "z"), {"hits": {"k": 30, **hits}})
    return store, found


@pytest.mark.ray
def test_the_stage_scores_measures_and_reports(ray_cluster: None, tmp_path: Path) -> None:
    world = World.of(spec_of())
    store, found = upstream(tmp_path, world)
    config: Config = parse({"evaluate": {"bootstrap_rounds": 20, "compute": {"num_actors": 2, "num_cpus": 0.4}}, "run": {"name": "a run"}}, "test")
    stage = evaluation_stage(config)
    assert [one.name for one in stage.inputs] == [
        "logs",
        "profiles",
        "user_codes",
        "item_codes",
        "groups",
        "item_encoder",
        "samples",
        "matches",
        "lent",
        *RANKERS,
    ]
    draft = store.create("evaluation", "e")
    result = stage.build(Context(config, store, found), draft)
    evaluation = commit(draft, dict(result.info))

    test_rows = pc.sum(pc.equal(found["samples"].read("samples")["split"], "test")).as_py()
    assert test_rows == 300
    assert result.rows_in == 3 * test_rows
    assert result.rows_in == result.rows_out + sum(result.dropped.values())
    predictions = schema.check(evaluation.read("predictions"), schema.PREDICTIONS, "predictions")
    outcomes = int(pc.sum(found["samples"].read("samples").filter(pc.equal(found["samples"].read("samples")["split"], "test"))["outcome"]).as_py())
    by_head = {(ranker, head): 0 for ranker in RANKERS for head in ("outcome", "cvr", "conversion")}
    for ranker, head in zip(predictions["ranker"].to_pylist(), predictions["head"].to_pylist(), strict=True):
        by_head[ranker, head] += 1
    assert by_head == {
        **{("base", "outcome"): test_rows, ("base", "cvr"): outcomes, ("base", "conversion"): test_rows},
        **{("choirrec", "outcome"): 0, ("choirrec", "cvr"): outcomes, ("choirrec", "conversion"): 0},
        **{("saviorrec", "outcome"): test_rows, ("saviorrec", "cvr"): 0, ("saviorrec", "conversion"): test_rows},
    }

    metrics = Metrics.model_validate(evaluation.read_json("metrics.json"))
    outcome, cvr, conversion = metrics.heads
    assert (outcome.rankers, cvr.rankers, conversion.rankers) == (("base", "saviorrec"), ("base", "choirrec"), ("base", "saviorrec"))
    mine = predictions.filter(pc.and_(pc.equal(predictions["ranker"], "choirrec"), pc.equal(predictions["head"], "cvr")))
    assert cvr.slice("all").scores["choirrec"].auc == pytest.approx(auc(np.asarray(mine["label"]), np.asarray(mine["probability"])))
    assert "cvr: conversion given outcome" in text_table(metrics)

    html = Path(evaluation.path("report.html")).read_text(encoding="utf-8")
    for words in ("a run", "fallback:invented", "Hit@30", "validation AUC, cvr", "user codes, stage 2", "none of them is an impression"):
        assert words in html
    assert "validation log loss" not in html  # these checkpoints recorded none


def test_lineage_lists_every_artifact_once_after_what_it_reads(tmp_path: Path) -> None:
    store, found = upstream(tmp_path, World.of(spec_of()))
    records = [StageRecord.of(artifact.manifest) for artifact in lineage.upstream(store, [found["groups"], found["profiles"]])]
    assert [one.stage for one in records] == ["logs", "profiles", "user_codes", "groups"]
    assert records[1].inputs == {"logs": found["logs"].key}


def test_the_stage_reads_the_rankers_of_its_config() -> None:
    stage = evaluation_stage(parse({"train": {"rankers": ["base", "saviorrec"]}}, "test"))
    assert [one.name for one in stage.inputs][-2:] == ["base", "saviorrec"]
