"""Scoring: a checkpoint loaded once scores the test rows of sample files, with real rankers and real checkpoints."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
import torch

from actors.score import Scorer
from longtail import schema
from longtail.artifacts import Artifact, Store
from longtail.checkpoint import save_ranker
from longtail.rankers.batch import Batch
from longtail.rankers.factory import RANKERS, build_ranker
from longtail.rankers.ranker import Ranker
from longtail.rankers.settings import RankersSettings
from longtail.sample_files import Part
from longtail.samples import FeatureSpec
from longtail.scoring import label_of, predict
from tests.ranker_data import STAGES, World, by_stage, spec_of, write_parts


def ranker_of(name: str, world: World) -> Ranker:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        ranker = build_ranker(name, world.spec, world.catalogue(), RankersSettings())
    ranker.fit_statistics(world.batch(300))
    return ranker.eval()


def artifacts(folder: Path, world: World, names: tuple[str, ...] = RANKERS) -> dict[str, Artifact]:
    """Two parts of train and test rows with what is lent to them, and a checkpoint of each ranker, as finished artifacts."""
    store, found = Store.open(str(folder)), {}
    tables = [pa.concat_tables([world.rows(150, 10 * part, split="test"), world.rows(100, 10 * part + 1, split="train")]) for part in (1, 2)]
    none = {"config": {}, "inputs": {}, "seed": 7, "dropped": {}}
    for name, columns in zip(STAGES, zip(*map(by_stage, tables), strict=True), strict=True):
        draft = store.create(name, "k")
        write_parts(Path(draft.path(f"{name}.parquet")), list(columns))
        info = {"spec": world.spec.model_dump(mode="json")} if name == "lent" else {}
        found[name] = draft.commit(**none, rows_in=500, rows_out=500, info=info)
    for name in names:
        draft = store.create(name, "k")
        ranker = ranker_of(name, world)
        found_by_epoch = {f"{head}/{metric}": value for head in ranker.heads for metric, value in (("auc", 0.5), ("gauc", 0.5), ("log_loss", float("nan")))}
        epochs = [{"epoch": epoch, "train/loss": 0.7 / epoch, **found_by_epoch} for epoch in (1, 2)]
        save_ranker(Path(draft.path("checkpoint")), ranker, metrics=epochs)
        found[name] = draft.commit(**none, rows_in=0, rows_out=0, info={})
    return found


def scorer_of(found: dict[str, Artifact], spec: FeatureSpec, batch_size: int = 64) -> Scorer:
    return Scorer(found, found["samples"].fs, spec, batch_size)


def part_of(found: dict[str, Artifact], number: int = 0) -> Part:
    """A part's files: the samples' own columns, and what is lent to the same rows."""
    return tuple(found[name].path(f"{name}.parquet/part-{number:05d}.parquet") for name in STAGES)


@pytest.fixture(scope="module")
def world() -> World:
    return World.of(spec_of())


@pytest.mark.parametrize("name", RANKERS)
def test_predictions_are_the_rankers_own(name: str, world: World, tmp_path: Path) -> None:
    found = artifacts(tmp_path, world, (name,))
    scorer, source = scorer_of(found, world.spec), part_of(found)
    target = str(tmp_path / "part.parquet")
    assert scorer.score(name, source, target, "test") == ((150, 150) if name != "choirrec" else (150, int(pc.sum(world.rows(150, 10)["outcome"]).as_py())))
    predictions = schema.check(pq.read_table(target), schema.PREDICTIONS, "predictions")
    rows = world.rows(150, 10, split="test")
    ranker = ranker_of(name, world)
    with torch.no_grad():
        output = ranker(Batch.from_table(rows, world.spec))
    assert set(predictions["split"].to_pylist()) == {"test"}
    assert predictions["head"].unique().to_pylist() == list(ranker.heads)
    for place, head in enumerate(ranker.heads):
        mine = predictions.filter(pc.equal(predictions["head"], head))
        kept = np.asarray(rows["outcome"]) == 1 if head == "cvr" else np.ones(150, dtype=bool)
        np.testing.assert_allclose(np.asarray(mine["probability"]), torch.sigmoid(output.logits_BH[:, place]).numpy()[kept], rtol=1e-5)
        assert mine["label"].to_pylist() == rows["outcome" if head == "outcome" else "conversion"].filter(pa.array(kept)).to_pylist()
        assert mine["example_id"].to_pylist() == rows["example_id"].filter(pa.array(kept)).to_pylist()
        for column in ("num_purchases", "item_events", "item_age_days"):
            assert mine[column].to_pylist() == rows[column].filter(pa.array(kept)).to_pylist()
    assert (predictions["alpha_fusion"].null_count == 0) == (name in ("choirrec", "duet"))


def test_a_file_scored_again_gives_the_same_part(world: World, tmp_path: Path) -> None:
    found = artifacts(tmp_path, world, ("choirrec",))
    source = part_of(found, 1)
    parts = []
    for attempt, batch_size in enumerate((64, 64, 7)):
        scorer_of(found, world.spec, batch_size).score("choirrec", source, str(tmp_path / f"{attempt}.parquet"), "test")
        parts.append(pq.read_table(tmp_path / f"{attempt}.parquet"))
    assert parts[0].equals(parts[1])
    np.testing.assert_allclose(np.asarray(parts[2]["probability"]), np.asarray(parts[0]["probability"]), rtol=1e-5)


def test_a_file_without_test_rows_writes_nothing(world: World, tmp_path: Path) -> None:
    found = artifacts(tmp_path, world, ("base",))
    target = tmp_path / "none.parquet"
    source = part_of(found)
    assert scorer_of(found, world.spec).score("base", source, str(target), "validation") == (0, 0)
    assert not target.exists()


def test_one_scorer_goes_from_ranker_to_ranker(world: World, tmp_path: Path) -> None:
    found = artifacts(tmp_path, world)
    source = part_of(found)
    shared = scorer_of(found, world.spec)
    for name in (*RANKERS, "base"):
        shared.score(name, source, str(tmp_path / "shared.parquet"), "test")
        scorer_of(found, world.spec).score(name, source, str(tmp_path / "alone.parquet"), "test")
        assert pq.read_table(tmp_path / "shared.parquet").equals(pq.read_table(tmp_path / "alone.parquet"))


def test_one_outcome_and_no_attributes(tmp_path: Path) -> None:
    world = World.of(spec_of(attributes=0, has_conversion=False))
    found = artifacts(tmp_path, world, ("choirrec",))
    scorer = scorer_of(found, world.spec)
    assert scorer.score("choirrec", part_of(found), str(tmp_path / "part.parquet"), "test") == (150, 150)
    assert pq.read_table(tmp_path / "part.parquet")["head"].unique().to_pylist() == ["outcome"]


def test_the_device_is_what_ray_gave_and_not_what_is_there(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = artifacts(tmp_path, world, ("base",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    for given, device in (([], "cpu"), (["0"], "cuda")):
        monkeypatch.setattr(ray, "get_gpu_ids", lambda given=given: given)
        assert scorer_of(found, world.spec).device == device


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_without_a_gpu_scores_on_the_cpu(world: World, tmp_path: Path) -> None:
    found = artifacts(tmp_path, world, ("base",))

    class Asked(Scorer):
        def device_of_a_machine_with_a_gpu(self) -> str:
            torch.cuda.is_available = lambda: True  # in this actor's process
            self.__init__(self.checkpoints, self.fs, self.spec, self.batch_size)  # type: ignore[misc]
            return self.device

    actor = ray.remote(num_cpus=0.5)(Asked).remote(found, found["samples"].fs, world.spec, 64)
    assert ray.get(actor.device_of_a_machine_with_a_gpu.remote()) == "cpu"


def test_labels_by_hand() -> None:
    samples = pa.table({"outcome": pa.array([0, 1, 1, 1], pa.int8()), "conversion": pa.array([0, 0, 1, None], pa.int8())})
    assert label_of(samples, "outcome").to_pylist() == [0, 1, 1, 1]
    assert label_of(samples, "cvr").to_pylist() == [None, 0, 1, None]
    assert label_of(samples, "conversion").to_pylist() == [0, 0, 1, None]
    with pytest.raises(ValueError, match="no label"):
        label_of(samples, "dwell")


def test_a_ranker_that_diverged_is_named(world: World) -> None:
    ranker = ranker_of("base", world)
    torch.nn.init.constant_(next(ranker.parameters()), float("nan"))
    with pytest.raises(ValueError, match=r"ranker 'base': 20 of 20 rows .* not finite"):
        predict(ranker, "base", world.rows(20), world.spec, 8)
