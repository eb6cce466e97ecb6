"""The order of rows, the loop, resuming, refusing to go on from numbers that are not finite, validation."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from longtail.checkpoint import load_ranker
from longtail.evaluation import EvaluateSettings
from longtail.metrics import auc, gauc, log_loss
from longtail.rankers.batch import Batch
from longtail.rankers.factory import build_ranker
from longtail.rankers.ranker import Ranker, predict_rows
from longtail.rankers.settings import RankersSettings
from longtail.sample_files import SampleFiles, Workers
from longtail.training import TrainSettings, learning_rate
from longtail.training_loop import Metrics, NonFiniteLossError, TrainState, train_ranker
from longtail.validation import Validation
from tests.ranker_data import World, scan, spec_of, write_samples

WORLD = World.of(spec_of())
SETTINGS = TrainSettings(batch_size=64, epochs=3)


@pytest.fixture
def files(tmp_path: Path) -> SampleFiles:
    """Three files of training rows (150, 70, 129) with validation and test rows between them."""
    validation, test = WORLD.rows(90, seed=8, split="validation"), WORLD.rows(20, seed=9, split="test")
    first = pa.concat_tables([validation.slice(0, 40), WORLD.rows(150, seed=1), test])
    return scan(
        write_samples(tmp_path / "samples", [first, WORLD.rows(70, seed=2), pa.concat_tables([WORLD.rows(129, seed=3), validation.slice(40)])]), WORLD.spec
    )


def make(seed: int = 0, name: str = "base", **settings: Any) -> Ranker:
    torch.manual_seed(seed)
    return build_ranker(name, WORLD.spec, WORLD.catalogue(), RankersSettings.model_validate({name: {"heads": ("outcome",), "id_dim": 4, **settings}}))


def row_key(batch: Batch) -> list[tuple[float, ...]]:
    return [tuple(row) for row in torch.cat([batch.user_stats_BU, batch.item_stats_BI], 1).tolist()]


def test_scan_counts_labelled_rows_by_file_and_split(files: SampleFiles) -> None:
    assert files.labelled == {"train": (150, 70, 129), "validation": (40, 0, 50), "test": (20, 0, 0)}
    assert files.num_rows == 459
    assert files.steps_per_epoch(64) == 3 + 2 + 3


def test_cvr_trains_on_rows_with_an_outcome_only(tmp_path: Path) -> None:
    table = WORLD.rows(200)
    cvr = scan(write_samples(tmp_path, [table]), WORLD.spec, ("cvr",))
    assert cvr.labelled["train"] == (int(table.column("outcome").to_numpy().sum()),)
    assert (Batch.from_table(cvr.load(0, "train"), WORLD.spec).outcome_B == 1).all()
    users, items = cvr.trained_rows()
    kept = table.filter(pa.array(table.column("outcome").to_numpy() == 1))
    assert users.tolist() == [kept.column("user_row").to_pylist().count(row) for row in range(WORLD.spec.num_users + 1)]
    assert items.tolist() == [kept.column("item_row").to_pylist().count(row) for row in range(WORLD.spec.num_items + 1)]


def test_no_training_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of 20 rows"):
        scan(write_samples(tmp_path, [WORLD.rows(20, split="test")]), WORLD.spec)


def test_an_epoch_shows_every_training_row_once_and_each_epoch_in_another_order(files: SampleFiles) -> None:
    epochs = [[key for share in files.epoch(epoch, 64, 5, Workers()) for key in row_key(share.batch)] for epoch in (0, 1)]
    everything = [key for index in range(3) for key in row_key(Batch.from_table(files.load(index, "train"), WORLD.spec))]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(everything)
    assert epochs[0] != epochs[1]
    again = [key for share in files.epoch(0, 64, 5, Workers()) for key in row_key(share.batch)]
    assert again == epochs[0]


@pytest.mark.parametrize("size", [2, 3, 100])
def test_workers_shares_add_up_to_the_same_global_batches(files: SampleFiles, size: int) -> None:
    alone = list(files.epoch(0, 64, 5, Workers()))
    shares = [list(files.epoch(0, 64, 5, Workers(rank, size))) for rank in range(size)]
    assert {len(mine) for mine in shares} == {len(alone)}
    for step, whole in enumerate(alone):
        parts = [mine[step] for mine in shares]
        assert [key for part in parts for key in row_key(part.batch)] == row_key(whole.batch)
        assert {part.num_rows for part in parts} == {len(whole.batch)}
        assert [part.start for part in parts] == np.cumsum([0] + [len(part.batch) for part in parts[:-1]]).tolist()


def test_gradients_of_shares_average_to_one_workers_gradient(files: SampleFiles) -> None:
    """What DDP's mean over workers does with loss * workers / rows, on a batch that does not divide evenly; some workers have no row."""
    ranker = make()
    batch = WORLD.batch(5)
    ranker.fit_statistics(batch)

    def gradients(part: Batch, scale: float) -> list[torch.Tensor]:
        return list(torch.autograd.grad(ranker.loss(part, ranker(part))[0] * scale, list(ranker.parameters())))

    whole = gradients(batch, 1 / 5)
    size = 8
    parts = [gradients(batch.rows(slice(*Workers(rank, size).share(5))), size / 5) for rank in range(size)]
    for number, expected in enumerate(whole):
        torch.testing.assert_close(sum(part[number] for part in parts) / size, expected, rtol=1e-5, atol=1e-7)


def test_learning_rate_falls_linearly_to_its_end() -> None:
    settings = TrainSettings(learning_rate=0.01, final_learning_rate=0.001)
    assert [learning_rate(settings, step, 10) for step in (0, 3, 9)] == pytest.approx([0.01, 0.007, 0.001])
    assert learning_rate(settings, 0, 1) == 0.01


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(files: SampleFiles, tmp_path: Path, optimizer: str) -> None:
    settings = TrainSettings(batch_size=64, epochs=3, optimizer=optimizer, learning_rate=0.02)  # type: ignore[arg-type]
    losses: list[tuple[int, float]] = []
    validate = Validation(files, EvaluateSettings())
    saved = tmp_path / "state"

    def save_second(metrics: Metrics, state: TrainState) -> None:
        if metrics["epoch"] == 2:
            state.save(saved)

    def run(seed: int, **arguments: Any) -> TrainState:
        return train_ranker(make(seed, "choirrec", dropout=0.2), files, settings, seed=3, validate=validate, **arguments)

    whole = run(0, on_epoch=save_second, on_step=lambda step, loss: losses.append((step, loss)))
    resumed_losses: list[tuple[int, float]] = []
    resumed = run(99, resume=saved, on_step=lambda step, loss: resumed_losses.append((step, loss)))
    assert resumed_losses == losses[16:]
    assert resumed.metrics == whole.metrics
    assert (resumed.best_epoch, resumed.step) == (whole.best_epoch, whole.step)
    for name, value in whole.ranker.state_dict().items():
        assert torch.equal(value, resumed.ranker.state_dict()[name]), name
        assert torch.equal(whole.best_weights[name], resumed.best_weights[name]), name


def test_training_learns_and_keeps_the_best_epoch(files: SampleFiles, tmp_path: Path) -> None:
    scores = iter([0.6, 0.9, 0.7])
    kept: dict[int, dict[str, torch.Tensor]] = {}
    state = train_ranker(
        make(),
        files,
        SETTINGS,
        seed=0,
        validate=lambda ranker: {"auc": next(scores)},
        on_epoch=lambda metrics, state: kept.update({metrics["epoch"]: {name: value.clone() for name, value in state.ranker.state_dict().items()}}),
    )
    assert state.metrics[-1]["train/loss"] < state.metrics[0]["train/loss"] < math.log(2) + 0.1
    assert state.best_epoch == 2
    state.save_best(tmp_path / "best")
    loaded = load_ranker(tmp_path / "best").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in kept[2].items())
    assert any(not torch.equal(loaded[name], value) for name, value in kept[3].items())


@pytest.mark.parametrize(("keep", "scores", "best"), [("log_loss", [0.5, 0.4, 0.6], 2), ("auc", [math.nan, 0.4, math.nan], 2), ("auc", [math.nan] * 3, 3)])
def test_what_is_kept(keep: str, scores: list[float], best: int) -> None:
    ranker = make()
    state = TrainState(ranker, torch.optim.Adagrad(ranker.parameters()))
    for epoch, score in enumerate(scores, start=1):
        state.epoch = epoch
        state.metrics.append({keep: score})
        state.keep_best(keep)
    assert state.best_epoch == best


def test_a_loss_that_is_not_finite_stops_before_the_update(files: SampleFiles) -> None:
    ranker = make()
    steps: list[int] = []

    def poison(step: int, loss: float) -> None:
        steps.append(step)
        if step == 2:
            with torch.no_grad():
                ranker.get_parameter("out.weight")[0, 0] = math.inf
            before.update({name: value.clone() for name, value in ranker.state_dict().items()})

    before: dict[str, torch.Tensor] = {}
    with pytest.raises(NonFiniteLossError, match=r"step 3 of epoch 1 .* the update was not made.*train\.learning_rate"):
        train_ranker(ranker, files, SETTINGS, seed=0, on_step=poison)
    assert steps == [1, 2]
    assert all(torch.equal(value, before[name]) for name, value in ranker.state_dict().items())


def test_id_dropout_trains_the_out_of_vocabulary_embeddings(files: SampleFiles) -> None:
    for rate, moved in ((0.0, False), (0.3, True)):
        ranker = make()
        world_users = ranker.get_parameter("individual.users.weight")
        ranker.catalogue.user_id_M[ranker.catalogue.user_id_M == 1] = 2  # nobody is out of vocabulary by the catalogue
        train_ranker(ranker, files, TrainSettings(batch_size=64, epochs=1, id_dropout=rate), seed=0)
        assert bool((world_users[1] != 0).any()) is moved
        assert (world_users[0] == 0).all()


def test_validation_equals_the_metrics_of_all_rows(files: SampleFiles) -> None:
    ranker = make()
    ranker.fit_statistics(files.first_batch())
    found = Validation(files, EvaluateSettings(cold_item_events=150))(ranker)
    table = pa.concat_tables([files.load(index, "validation", ("num_purchases", "item_events")) for index in (0, 2)])
    batch = Batch.from_table(table, WORLD.spec)
    label, score = batch.outcome_B.numpy().astype(int), predict_rows(ranker, batch).probabilities_BH[:, 0].numpy()
    assert found["validation_rows"] == 90
    assert found["auc"] == found["outcome/auc"] == pytest.approx(auc(label, score))
    assert found["gauc"] == pytest.approx(gauc(label, score, batch.user_row_B.numpy()))
    assert found["log_loss"] == pytest.approx(log_loss(label, score))
    cold = table.column("item_events").to_numpy() < 150
    assert found["auc_cold"] == pytest.approx(auc(label[cold], score[cold]))
    users, purchases = batch.user_row_B.numpy(), table.column("num_purchases").to_numpy()
    fewest = {user: purchases[users == user].min() for user in set(users.tolist())}
    bar = sorted(fewest.values())[int(0.2 * (len(fewest) - 1))]
    low = np.array([fewest[user] <= bar for user in users.tolist()])
    assert found["gauc_low"] == pytest.approx(gauc(label[low], score[low], users[low]))


def test_a_run_of_few_steps_says_so(files: SampleFiles, caplog: pytest.LogCaptureFixture) -> None:
    rows = sum(files.labelled["train"])
    train_ranker(make(), files, TrainSettings(batch_size=rows, epochs=1), seed=1)
    assert "optimiser steps in all" in caplog.text
    assert f"({rows} rows, train.batch_size = {rows}, train.epochs = 1) hardly train it. Lower train.batch_size or raise train.epochs." in caplog.text
    caplog.clear()
    train_ranker(make(), files, TrainSettings(batch_size=1, epochs=1), seed=1)
    assert rows >= 100
    assert "optimiser steps" not in caplog.text
