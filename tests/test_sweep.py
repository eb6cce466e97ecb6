"""Sweeps: spaces, points, the ranked table, what trials share, what ends a sweep; and real Ray Tune searches whose trials fit a TorchTrainer on two CPUs."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest
import ray
import ray.train
from ray import tune
from ray.train.torch import TorchTrainer

from longtail.artifacts import Draft, Store
from longtail.codes import TooFewRowsError
from longtail.config import Config, load, parse
from pipelines.samples import SAMPLES
from pipelines.stage import Context, Result, Stage, ensure, find, provenance, stage_key
from pipelines.tracking import tune_callbacks
from pipelines.train import RANKER_STAGES
from tests import small_run
from tests.test_tracking import read
from tuning.spaces import SPACES, Parameter, Point, current, draw, in_words, space_of, with_point
from tuning.stages import REFUSALS, ensure_shared
from tuning.sweep import SWEEP, ReportAndDrain, Search, Trial, metric_of, outside_of_trial, ranked, search, show, table, trials_of

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
        ('{"codes.user.size"=[1]}', r"codes\.user\.size = 1: .*no such key"),
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


PLAIN = ("logs.source=synthetic", "profiles.generator=deterministic")  # no model of the profiles to look for


def key(*overrides: str) -> str:
    return stage_key(SWEEP, load(None, [*PLAIN, *overrides]), {})


def test_key_follows_results_and_not_where_they_were_made() -> None:
    for same in ("sweep.max_concurrent=2", "train.compute.num_actors=2", "run.name=other", "tracking.backend=none", "serve.max_items=9"):
        assert key(same) == key(), same
    for other in ("sweep.num_trials=9", "train.epochs=9", "codes.item.codebook_size=9", "sweep.metric=auc", "samples.numeric_bins=9", "run.seed=9"):
        assert key(other) != key(), other


def test_key_follows_the_versions_of_the_stages_before(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    ranker = RANKER_STAGES["choirrec"]
    inputs = tuple(replace(one, version=one.version + 1) if one is SAMPLES else one for one in ranker.inputs)
    monkeypatch.setitem(RANKER_STAGES, "choirrec", replace(ranker, inputs=inputs))
    assert key() != before


def test_key_follows_the_weights_of_a_model_that_only_a_later_trial_uses(tmp_path: Path) -> None:
    own = load(None).embeddings.user.model
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    space = f'sweep.space={{"embeddings.user.model"=["{own}", "{tmp_path}"]}}'
    before = key(space, "sweep.num_trials=2")
    assert key(space, "sweep.num_trials=2") == before
    (tmp_path / "model.safetensors").write_bytes(b"others!")
    assert key(space, "sweep.num_trials=2") != before


def planted_line(built: list[str]) -> Stage:
    """logs → codes → samples → ranker; each notes that it was built, and codes refuses 64."""

    def stage(name: str, settings: Callable[[Config], dict[str, Any]], *inputs: Stage) -> Stage:
        def build(context: Context, draft: Draft) -> Result:
            size = context.config.codes.user.codebook_size
            if name == "codes" and size == 64:
                raise TooFewRowsError("64 codes need 256 rows")
            built.append(f"{name} {size}")
            draft.write_json("made.json", {name: size if inputs else "the same for every size"})
            return Result(0, 0)

        return Stage(name, 1, inputs, settings, build, "nowhere")

    logs = stage("logs", lambda config: {})
    codes = stage("codes", lambda config: config.codes.user.key_fields(), logs)
    samples = stage("samples", lambda config: {}, logs, codes)
    return stage("ranker", lambda config: config.rankers.choirrec.key_fields(), logs, samples)


def test_what_trials_share_is_built_once_up_to_where_they_part(tmp_path: Path) -> None:
    built: list[str] = []
    ranker, store = planted_line(built), Store.open(str(tmp_path))
    points: list[Point] = [
        {"codes.user.codebook_size": size, "rankers.choirrec.distill_teacher": teacher}
        for size, teacher in ((8, "individual"), (64, "group"), (64, "individual"), (4, "individual"), (4, "group"), (5, "group"))
    ]
    configs = [with_point(load(None), point) for point in points]
    ensure_shared(ranker, configs, store)
    assert built == ["logs 8", "codes 4", "samples 4"], "neither what one trial alone needs, nor what refuses"
    for config in configs:
        if config.codes.user.codebook_size != 64:
            ensure(ranker, config, store, build_inputs=True)
    assert sorted(built[3:]) == ["codes 5", "codes 8", "ranker 4", "ranker 4", "ranker 5", "ranker 8", "samples 5", "samples 8"]


def test_provenance_says_where_two_configs_part() -> None:
    one, other = (provenance(RANKER_STAGES["choirrec"], load(None, [*PLAIN, f"codes.user.codebook_size={size}"])) for size in (4, 8))
    shared = [
        "logs",
        "item_texts",
        "item_vectors",
        "item_encoder",
        "item_z",
        "item_codes",
        "collaborative",
        "samples",
        "matches",
        "profiles",
        "user_vectors",
        "user_spaces",
    ]
    assert [name for name in one if one[name] == other[name]] == shared
    assert [name for name in one if one[name] != other[name]] == ["user_codes", "groups", "peers", "lifts", "lent", "choirrec"]


def test_a_point_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    one = Search(load(None), Store.open(str(tmp_path)), str(tmp_path))
    refused = one({"codes.user.codebook_size": 32, "codes.user.init_rows": 16})["refused"]
    assert "codebook_size = 32 must not exceed init_rows = 16" in refused


class Shard:
    """Stands for a stage's actor: it reserves more than the trial has."""

    def size(self) -> int:
        return len(ray.available_resources())


def stage(size: int) -> int:
    if size == 16:
        raise TooFewRowsError("16 codes need 64 rows, there are 32")
    if size == 32:
        raise RuntimeError("the disk is full\nand a second line")
    if size == 64:
        np.zeros(2).reshape(3)  # a ValueError, and none of ours
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
    if point["codes.user.codebook_size"] == 128:
        os._exit(1)
    try:
        size = outside_of_trial(stage, point["codes.user.codebook_size"])
    except REFUSALS as error:
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
    folder, space = str(tmp_path / "train"), (Parameter("codes.user.codebook_size", (4, 8, 16, 32, 64, 128)),)
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
def test_a_trial_trains_and_one_that_is_refused_is_in_the_table(tmp_path: Path) -> None:
    trained, refused = run_sweep(tmp_path, (8, 16), max_concurrent=1, callbacks=[])
    assert trained.score == pytest.approx(1 / 8 + 0.02)
    assert trained.refused is None
    assert (refused.score, refused.refused) == (None, "16 codes need 64 rows, there are 32")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_trials_that_fail_end_the_sweep_when_the_others_are_done(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 of 4 trials failed") as raised:
        run_sweep(tmp_path, (32, 64, 128, 8), max_concurrent=1, callbacks=[])
    lines = str(raised.value).splitlines()
    assert lines[1].startswith("  trial 0 (codes.user.codebook_size=32): RuntimeError: the disk is full")
    assert lines[2].startswith("  trial 1 (codes.user.codebook_size=64): ValueError: cannot reshape array")
    assert re.match(r"  trial 2 \(codes\.user\.codebook_size=128\): Actor(Died|Unavailable)Error: ", lines[3])
    assert "run the sweep again" in lines[4]
    assert len(list((tmp_path / "train").iterdir())) == 1, "the last trial trained"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_a_sweep_that_failed_leaves_nothing_and_finds_what_its_trials_finished(tmp_path: Path) -> None:
    """The run is finished but for its samples, which nothing can be trained on: a trial has a result only where its ranker is found."""
    settings = small_run.publish(tmp_path / "run")
    store = Store.open(settings.run.uri)
    found = find(RANKER_STAGES["choirrec"], settings, store)
    assert found is not None
    curve = {"epochs": [{"epoch": 1, "gauc_low": 0.5}, {"epoch": 2, "gauc_low": 0.25}], "best_epoch": 1}
    Path(found.root).with_name("manifest.json").write_text(json.dumps({**found.manifest, "info": curve}))

    def sweep(num_trials: int) -> Config:
        section = {"num_trials": num_trials, "space": {"rankers.choirrec.distill_weight": [0.5]}}
        return parse({**settings.model_dump(), "sweep": section}, "test")

    with pytest.raises(ValueError, match=r"1 of 2 trials failed.*\n  trial 1 \(rankers\.choirrec\.distill_weight=0\.5\): KeyError: 'spec'"):
        ensure(SWEEP, sweep(2), store)
    assert not list((tmp_path / "run" / "sweeps").glob("*/*"))
    (kept,) = trials_of(ensure(SWEEP, sweep(1), store).artifact)
    assert (kept.score, kept.metrics, kept.refused) == (0.5, curve["epochs"][0], None)


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
