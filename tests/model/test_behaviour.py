"""What a ranker does, whatever it is made of: a row's score is its own, and each method gains where its paper says that it does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longtail.metrics import auc
from longtail.rankers.batch import Batch
from longtail.rankers.factory import build_ranker
from longtail.rankers.ranker import predict_rows
from longtail.rankers.settings import RankersSettings
from longtail.training import TrainSettings
from longtail.training_loop import train_ranker
from tests.ranker_data import World, scan, spec_of, write_samples


@pytest.mark.parametrize("name", ["base", "choirrec", "saviorrec", "duet"])
def test_shuffled_candidates_keep_their_scores(name: str) -> None:
    world = World.of(spec_of())
    torch.manual_seed(0)
    ranker = build_ranker(name, world.spec, world.catalogue(), RankersSettings())
    batch = world.batch(64)
    ranker.fit_statistics(batch)
    scores = predict_rows(ranker, batch).logits_BH
    order = torch.randperm(64)
    torch.testing.assert_close(predict_rows(ranker, batch.rows(order)).logits_BH, scores[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(predict_rows(ranker, batch.rows(slice(7, 8))).logits_BH, scores[7:8], rtol=1e-5, atol=1e-6)


def _auc_after_training(name: str, world: World, folder: Path, test: Batch, cold_from: int | None, **settings: Any) -> float:
    torch.manual_seed(0)
    ranker = build_ranker(name, world.spec, world.catalogue(cold_from), RankersSettings.model_validate({name: {"heads": ("outcome",), **settings}}))
    train_ranker(ranker, scan(folder, world.spec), TrainSettings(epochs=2, batch_size=256), seed=0)
    return auc(test.outcome_B.numpy().astype(int), predict_rows(ranker, test).logits_BH[:, 0].numpy())


def test_saviorrec_ranks_cold_items_that_only_their_vectors_describe(tmp_path: Path) -> None:
    world = World.of(spec_of(num_users=300, num_items=300))
    cold_from = 201
    write_samples(tmp_path, [world.rows(12_000, items=(1, cold_from), history_items=(1, cold_from))])
    test = Batch.from_table(world.rows(3_000, seed=2, items=(cold_from, 301), history_items=(1, cold_from)), world.spec)
    base = _auc_after_training("base", world, tmp_path, test, cold_from)
    saviorrec = _auc_after_training("saviorrec", world, tmp_path, test, cold_from)
    blind = World(world.spec, world.topic_K, np.random.default_rng(0).permutation(world.vector_KD), world.taste_M, world.group_M)
    blind.topic_K[:] = np.random.default_rng(1).permutation(blind.topic_K)  # the codes of catalogue() follow it: both are shuffled
    shuffled = _auc_after_training("saviorrec", blind, tmp_path, test, cold_from)
    assert abs(base - 0.5) < 0.06
    assert saviorrec > 0.75
    assert abs(shuffled - 0.5) < 0.06


def test_choirrec_ranks_for_users_whose_group_is_all_that_is_known(tmp_path: Path) -> None:
    world = World.of(spec_of(num_users=6_000, num_items=30))
    write_samples(tmp_path, [world.rows(12_000, truth="group")])  # two rows a user, no history
    test = world.batch(3_000, seed=2, truth="group")
    base = _auc_after_training("base", world, tmp_path, test, None)
    choirrec = _auc_after_training("choirrec", world, tmp_path, test, None)
    assert choirrec > base + 0.1
    assert choirrec > 0.8
    without = _auc_after_training("choirrec", world, tmp_path, test, None, group_id_fusion=False)
    assert without < base + 0.05
