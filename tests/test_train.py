"""The stage on Ray: two workers train what one trains, a failed worker group resumes, a loss that is not finite ends the stage with its reason."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from longtail import schema
from longtail.artifacts import Artifact, Store
from longtail.checkpoint import load_ranker, load_vocabulary
from longtail.config import Config, parse
from longtail.rankers.ranker import predict_rows
from longtail.sample_files import GlobalBatch, SampleFiles
from longtail.tracking import TrackingSettings
from longtail.training_loop import NonFiniteLossError, train_ranker
from longtail.validation import Validation
from pipelines.stage import Context
from pipelines.train import RANKER_STAGES, ContradictionError, TrainJob, fit
from tests.ranker_data import DIM, World, by_stage, fixed, spec_of
from tests.test_tracking import read

pytestmark = pytest.mark.ray

WORLD = World.of(spec_of())


def config_of(folder: Path, **train: Any) -> Config:
    settings = {"batch_size": 64, "epochs": 2, "compute": {"num_cpus": 0.5, "num_actors": train.pop("num_actors", 1)}, **train}
    small = {name: {"id_dim": 4, "hidden_dims": [16, 8], "attention_dims": [8]} for name in RANKER_STAGES}
    return parse({"run": {"uri": str(folder)}, "train": settings, "rankers": small, "tracking": {"backend": "none"}}, "test")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The five upstream artifacts, as their stages write them."""
    store = Store.open(str(tmp_path_factory.mktemp("upstream")))
    users = [f"u{row:04d}" for row in range(1, WORLD.spec.num_users + 1)]
    items = [f"i{row:04d}" for row in range(1, WORLD.spec.num_items + 1)]
    logs_info = {
        "source": "tables",
        **dict.fromkeys(("start", "history_end", "validation_start", "train_end", "end"), "2026-01-01T00:00:00Z"),
        "categorical_attributes": [],
        "numeric_attributes": [],
        "has_conversion": True,
        "behaviour_kinds": ["click", "purchase"],
        "exposure": "logged impressions",
        "num_users": len(users),
        "num_items": len(items),
        "num_events": 0,
        "num_examples": {},
    }
    unknown = {field.name: pa.nulls(len(items), field.type) for field in list(schema.ITEMS)[2:]}
    item_table = pa.table({"item_id": items, "title": items, **unknown}, schema=schema.ITEMS)
    codes = WORLD.catalogue().codes_NS[1:].numpy() - 1
    parts = {
        f"part-{number:05d}": by_stage(
            pa.concat_tables(
                [WORLD.rows(rows, seed=number), WORLD.rows(50, seed=number + 100, split="validation"), WORLD.rows(10, seed=number + 200, split="test")]
            )
        )
        for number, rows in ((1, 150), (2, 101))
    }
    z = pa.table({"item_id": items, "vector": fixed(WORLD.vector_KD[1:], pa.float32())})
    return {
        "logs": _artifact(store, "logs", {"users": pa.table({"user_id": users}), "items": item_table}, logs_info),
        "item_z": _artifact(store, "item_z", {"z": z}, {}),
        "item_codes": _artifact(store, "item_codes", {"codes": pa.table({"item_id": items, "codes": fixed(codes, pa.int32())})}, {"shape": [2, 6, DIM]}),
        "samples": _artifact(store, "samples", {f"samples.parquet/{name}": own for name, (own, _, _) in parts.items()}, {}),
        "matches": _artifact(store, "matches", {f"matches.parquet/{name}": matches for name, (_, matches, _) in parts.items()}, {}),
        "lent": _artifact(store, "lent", {f"lent.parquet/{name}": lent for name, (_, _, lent) in parts.items()}, {"spec": WORLD.spec.model_dump(mode="json")}),
    }


def _artifact(store: Store, stage: str, tables: dict[str, pa.Table], info: dict[str, Any]) -> Artifact:
    draft = store.create(stage, "key")
    for name, table in tables.items():
        draft.write(name, table)
    return draft.commit(config={}, inputs={}, seed=0, rows_in=0, rows_out=0, dropped={}, info=info)


@dataclass(frozen=True)
class FilesThatKillOnce(SampleFiles):
    """Ends the worker's process at the start of the second epoch, the first time."""

    mark: str = ""

    def epoch(self, epoch: int, *args: Any) -> Iterator[GlobalBatch]:
        if epoch == 1 and not Path(self.mark).exists():
            Path(self.mark).touch()
            os._exit(1)
        return super().epoch(epoch, *args)


def test_two_workers_and_one_process_reach_the_same_loss(ray_cluster: None, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    """On the same global batches, the last of each file uneven (22 and 37 rows), with ID dropout on."""
    job = TrainJob.of(config_of(tmp_path, num_actors=2), inputs, "choirrec", 3)
    store = Store.open(str(tmp_path / "two_workers"))
    fitted = fit(job, (store.fs, store.root))
    fitted.copy_to(store.fs, f"{store.root}/checkpoint")
    alone = train_ranker(job.ranker(), job.files, job.config.train, seed=job.seed, validate=Validation(job.files, job.config.evaluate))
    for one, two in zip(alone.metrics, fitted.metrics, strict=True):
        assert one["validation_rows"] == two["validation_rows"] > 0
        for name in ("train/loss", "train/cvr", "train/distillation", "log_loss", "auc", "alpha_fusion"):
            assert one[name] == pytest.approx(two[name], rel=1e-4), name
    trained = load_ranker(tmp_path / "two_workers" / "checkpoint").state_dict()
    assert trained.keys() == alone.best_weights.keys()
    for name, value in alone.best_weights.items():
        torch.testing.assert_close(value, trained[name], rtol=1e-3, atol=1e-5)


def test_the_stage_writes_a_checkpoint_that_stands_alone(ray_cluster: None, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    config = config_of(tmp_path)
    store = Store.open(str(tmp_path))
    stage = RANKER_STAGES["saviorrec"]
    draft = store.create(stage.name, "key")
    result = stage.build(Context(config, store, inputs), draft)
    assert (result.rows_in, result.rows_out) == (371, 251)
    assert result.dropped == {"held out for validation": 100, "held out for test": 20}
    artifact = draft.commit(
        config={}, inputs=inputs, seed=0, rows_in=result.rows_in, rows_out=result.rows_out, dropped=result.dropped, info=json.loads(json.dumps(result.info))
    )
    assert [entry.name for entry in Path(artifact.root).iterdir()] == ["checkpoint"]
    folder = artifact.local_path("checkpoint", tmp_path)
    assert sorted(entry.name for entry in folder.iterdir()) == ["ranker.json", "vocabulary.json", "weights.safetensors"]
    ranker = load_ranker(folder)
    assert ranker.heads == ("outcome", "conversion")
    assert artifact.info["parameters"] == ranker.num_parameters()
    assert len(artifact.info["epochs"]) == 2
    assert load_vocabulary(folder)[0][0] == "u0001"
    trained = pc.unique(inputs["samples"].read("samples").filter(pc.field("split") == "train").column("item_row")).to_pylist()
    assert np.flatnonzero(ranker.catalogue.item_id_N.numpy() > 1).tolist() == sorted(trained)
    scores = predict_rows(ranker, WORLD.batch(20)).probabilities_BH
    assert bool(torch.isfinite(scores).all())
    assert scores.std() > 0


def test_a_worker_group_that_dies_resumes_from_its_checkpoint(ray_cluster: None, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    config = config_of(tmp_path, max_failures=1)
    job = TrainJob.of(config, inputs, "base", 3)
    untouched, broken = Store.open(str(tmp_path / "untouched")), Store.open(str(tmp_path / "broken"))
    expected = fit(job, (untouched.fs, untouched.root))
    mark = tmp_path / "died"
    fitted = fit(replace(job, files=FilesThatKillOnce(**vars(job.files), mark=str(mark))), (broken.fs, broken.root))
    assert mark.exists()
    assert fitted.metrics == expected.metrics


def test_a_loss_that_is_not_finite_ends_the_stage_with_its_reason_and_its_run_as_failed(
    ray_cluster: None, inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    store = Store.open(str(tmp_path / "storage"))
    config = config_of(tmp_path, learning_rate=1e30, optimizer="adam", num_actors=2).model_copy(update={"tracking": TrackingSettings()})
    with pytest.raises(NonFiniteLossError, match="the update was not made"):
        RANKER_STAGES["base"].build(Context(config, store, inputs), store.create("base", "key"))
    (run,) = read(tmp_path / "storage")
    assert (run["id"], run["exit_code"]) == ("train-base-key", 1)


def test_settings_that_contradict_each_other_are_told_from_other_errors(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    config = parse({"rankers": {"saviorrec": {"semantic_vector": False, "alignment": False, "similarity": "none"}}}, "test")
    with pytest.raises(ContradictionError, match=r"rankers\.saviorrec: semantic_vector = false and alignment = false"):
        TrainJob.of(config, inputs, "saviorrec", 3).ranker()


def test_heads_that_the_source_lacks_are_refused_before_ray_starts_a_worker(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    config = parse({"rankers": {"base": {"heads": ["cvr", "cvr"]}}}, "test")
    with pytest.raises(ValueError, match=r"rankers\.base\.heads"):
        TrainJob.of(config, inputs, "base", 3)
