"""Sweeps: the spaces, the points drawn, the ranked table; and a real Ray Tune search whose trials fit a TorchTrainer on two CPUs."""

import os
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import ray
import ray.train
from ray import tune
from ray.train.torch import TorchTrainer

from longtail.artifacts import Store
from longtail.config import load
from pipelines.tracking import tune_callbacks
from tests.test_tracking import read
from tuning.spaces import SPACES, Parameter, Point, current, draw, in_words, space_of, with_point
from tuning.sweep import SWEEP, ReportAndDrain, Trial, metric_of, outside_of_trial, ranked, search, show, table

SPACE = (Parameter("codes.user.codebook_size", (4, 8)), Parameter("rankers.choirrec.distill_teacher", ("individual", "group")))


@pytest.mark.parametrize("ranker", SPACES)
def test_default_spaces_fit_the_config(ranker: str) -> None:
    config = load(None, [f"sweep.ranker={ranker}"])
    space = space_of(config)  # refuses a value that the config does
    assert space == SPACES[ranker]
    assert len({one.setting for one in space}) == len(space)
    assert all(len(set(one.values)) == len(one.values) >= 2 for one in space)
    touched = {one.setting.split(".")[1] for one in space if one.setting.startswith("rankers.")}
    assert touched == {ranker}


def test_a_config_can_bring_its_own_space(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[sweep.space]\n"codes.user.codebook_size" = [4, 8]\n"train.learning_rate" = [0.01, 0.1]\n')
    config = load(path)
    assert space_of(config) == (Parameter("codes.user.codebook_size", (4, 8)), Parameter("train.learning_rate", (0.01, 0.1)))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ('{"codes.user.size"=[1]}', r"codes\.user\.size = 1: Extra inputs"),
        ('{"codes.user.codebook_size"=[4, 1]}', r"codes\.user\.codebook_size = 1: .*greater than or equal to 2"),
        ('{"codes.nobody.size"=[1]}', r"no setting 'codes\.nobody\.size'"),
        ('{"codes.user.codebook_size"=[]}', "no values to try"),
        ('{"cluster.num_cpus"=[1, 2]}', r"cluster\.num_cpus changes no result"),
    ],
)
def test_spaces_that_cannot_be_searched_are_refused(space: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space_of(load(None, [f"sweep.space={space}"]))


def test_point_changes_its_settings_and_nothing_else() -> None:
    config = load(None)
    point: Point = {"codes.user.codebook_size": 4, "rankers.choirrec.distill_teacher": "group"}
    changed = with_point(config, point)
    assert current(changed, SPACE) == point
    assert with_point(changed, current(config, SPACE)) == config


def test_points_are_different_start_with_the_config_and_follow_the_seed() -> None:
    start = current(load(None), SPACE)
    assert start == {"codes.user.codebook_size": 8, "rankers.choirrec.distill_teacher": "individual"}
    points = draw(SPACE, start, 3, seed=1)
    assert points[0] == start
    assert len({in_words(point) for point in points}) == 3
    assert points == draw(SPACE, start, 3, seed=1)
    assert len({str(draw(SPACE, start, 3, seed=seed)) for seed in range(8)}) > 1
    assert len(draw(SPACE, start, 99, seed=1)) == 4, "the space has no more"
    assert len(draw(SPACE, start | {"codes.user.codebook_size": 5}, 99, seed=1)) == 6, "the config's own value counts"


def trial(number: int, score: float | None, size: int = 8, refused: str | None = None) -> Trial:
    return Trial(number, {"codes.user.codebook_size": size}, score, {}, refused, 1.0)


def test_table_ranks_the_best_first_and_the_refused_last() -> None:
    trials = [trial(0, 0.5), trial(1, None, 64, "too few rows\nsecond line"), trial(2, 0.625, 4), trial(3, 0.25, 16)]
    assert [one.number for one in ranked(trials)] == [2, 0, 3, 1]
    lines = table(trials, "gauc_low").splitlines()
    assert lines[0].split()[:2] == ["rank", "gauc_low"]
    assert lines[1].split() == ["1", "0.6250", "+0.1250", "1.0", "codes.user.codebook_size=4"]
    assert lines[2].split() == ["2", "0.5000", "1.0", "the", "config", "as", "it", "stands"]
    assert lines[4].endswith("codes.user.codebook_size=64  [too few rows]")


def test_show_marks_the_config_s_own_value() -> None:
    text = show(SPACE, current(load(None), SPACE))
    assert "4, [8]" in text
    assert "group, [individual]" in text


def test_metric_of_another_head() -> None:
    assert metric_of(load(None)) == "gauc_low"
    assert metric_of(load(None, ["sweep.metric=auc", "sweep.head=conversion"])) == "conversion/auc"


def test_key_follows_results_and_not_where_they_were_made() -> None:
    def settings(*overrides: str) -> Any:
        return SWEEP.settings(load(None, overrides))

    for same in ("sweep.max_concurrent=2", "train.compute.num_actors=2", "run.name=other", "tracking.backend=none"):
        assert settings(same) == settings(), same
    for other in ("sweep.num_trials=9", "train.epochs=9", "codes.item.codebook_size=9", "sweep.metric=auc"):
        assert settings(other) != settings(), other


class Shard:
    """Stands for a stage's actor: it reserves more than the trial has."""

    def size(self) -> int:
        return len(ray.available_resources())


def stage(size: int) -> int:
    if size == 16:
        raise ValueError("16 codes need 64 rows, there are 32")
    if size == 32:
        raise RuntimeError("the disk is full")
    shards = [ray.remote(num_cpus=0.5)(Shard).remote() for _ in range(2)]
    assert all(ray.get([shard.size.remote() for shard in shards], timeout=60))
    return size


def auc_of(size: int, epoch: int) -> float:
    return 1 / size + epoch / 100


def two_epochs(loop_config: dict[str, Any]) -> None:
    for epoch in (1, 2):
        ray.train.report({"epoch": epoch, "auc": auc_of(loop_config["size"], epoch)})


def fit_one(point: dict[str, Any]) -> dict[str, Any]:
    """A trial as Search runs it: stages outside of its reservation, then a TorchTrainer whose reports reach Tune."""
    try:
        size = outside_of_trial(stage, point["codes.user.codebook_size"])
    except ValueError as error:
        return {"refused": str(error)}
    report = ReportAndDrain()
    TorchTrainer(
        two_epochs,
        train_loop_config={"size": size},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name=tune.get_context().get_trial_id(), storage_path=os.environ["SWEEP_TEST_FOLDER"], callbacks=[report]),
    ).fit()
    report.drain()
    return {"kept": {"auc": auc_of(size, 2)}}


def run_sweep(tmp_path: Path, sizes: tuple[int, ...], max_concurrent: int, callbacks: list[Any]) -> list[Trial]:
    folder, space = str(tmp_path / "train"), (Parameter("codes.user.codebook_size", (4, 8, 16, 32)),)
    points: list[Point] = [{"codes.user.codebook_size": size} for size in sizes]

    def trainable(point: dict[str, Any]) -> dict[str, Any]:
        os.environ["SWEEP_TEST_FOLDER"] = folder
        return fit_one(point)

    config = load(None, ["sweep.metric=auc", f"sweep.max_concurrent={max_concurrent}"])
    trials = search(trainable, space, points, config, (pafs.LocalFileSystem(), str(tmp_path / "tune")), callbacks)
    assert [one.point for one in trials] == points
    return trials


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_trains_and_one_that_dies_is_in_the_table(tmp_path: Path) -> None:
    trained, died = run_sweep(tmp_path, (8, 32), max_concurrent=1, callbacks=[])
    assert trained.score == pytest.approx(1 / 8 + 0.02)
    assert trained.refused is None
    assert died.score is None
    assert "the disk is full" in (died.refused or "")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_two_trials_at_a_time_on_two_cpus_leave_a_run_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    callbacks = tune_callbacks(load(None), Store.open(str(tmp_path / "run")), "spring-sweep")
    trials = run_sweep(tmp_path, (8, 4, 16), max_concurrent=2, callbacks=callbacks)
    assert [one.score for one in trials] == [pytest.approx(1 / 8 + 0.02), pytest.approx(1 / 4 + 0.02), None]
    assert trials[2].refused == "16 codes need 64 rows, there are 32"
    runs = read(tmp_path / "run")
    assert len(runs) == 3
    assert {run["group"] for run in runs} == {"spring-sweep"}
    curves = sorted([row["auc"] for row in run["history"] if "auc" in row] for run in runs)
    assert curves == [[], pytest.approx([0.135, 0.145]), pytest.approx([0.26, 0.27])]
