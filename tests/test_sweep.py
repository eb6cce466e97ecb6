"""Sweeps: spaces, points, keys; and real Ray Tune searches whose trials fit a TorchTrainer on two CPUs, interrupted and gone on with."""

import os
import re
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

from longtail.artifacts import Store
from longtail.config import load
from longtail.sweep_journal import Journal
from longtail.sweep_results import Goal, Trial
from longtail.sweep_watch import SweepWatch
from longtail.sweeping import Range
from pipelines.samples import SAMPLES
from pipelines.stage import provenance, stage_key
from pipelines.tracking import tune_callbacks
from pipelines.train import RANKER_STAGES
from tests.test_tracking import read
from tuning.importance import importance
from tuning.searchers import SEARCHED, check_pbt, distributions, tpe_searcher
from tuning.spaces import SPACES, Parameter, Point, current, draw, in_words, show, space_of, with_point
from tuning.sweep import SWEEP, metric_of, search
from tuning.trial import EpochReports, Search

SPACE = (Parameter("codes.user.codebook_size", (4, 8)), Parameter("rankers.choirrec.distill_teacher", ("individual", "group")))
RATE = Parameter("train.learning_rate", Range(low=0.01, high=0.2, log=True))


@pytest.mark.parametrize("ranker", SPACES)
def test_default_spaces_fit_the_config(ranker: str) -> None:
    config = load(None, [f"sweep.ranker={ranker}"])
    space = space_of(config)  # refuses a value that the config does
    assert space == SPACES[ranker]
    assert len({one.setting for one in space}) == len(space)
    assert all(isinstance(one.values, Range) or len(set(one.values)) == len(one.values) >= 2 for one in space)
    touched = {one.setting.split(".")[1] for one in space if one.setting.startswith("rankers.")}
    assert touched == {ranker}


def test_spaces_cover_codebooks_gates_encoder_mba_widths_and_rates() -> None:
    both = {one.setting for one in (*SPACES["choirrec"], *SPACES["saviorrec"])}
    for wanted in (
        *("codes.user.num_stages", "codes.user.codebook_size", "codes.item.num_stages", "codes.item.codebook_size", "train.learning_rate"),
        *(f"rankers.choirrec.{name}" for name in ("min_purchases", "min_confidence", "distill_weight", "distill_margin", "distill_teacher", "group_dim")),
        *("item_encoder.factor_dim", "item_encoder.temperature", "rankers.saviorrec.alignment", "rankers.saviorrec.alignment_shrinkage"),
    ):
        assert wanted in both
    assert {one.setting.replace("duet", "x") for one in SPACES["duet"]} == {re.sub("choirrec|saviorrec", "x", name) for name in both}


def test_a_config_can_bring_its_own_space(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[sweep.space]\n"codes.user.codebook_size" = [4, 8]\n"train.learning_rate" = { low = 0.01, high = 0.2, log = true }\n')
    assert space_of(load(path)) == (Parameter("codes.user.codebook_size", (4, 8)), RATE)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ('{"codes.user.size"=[1]}', r"codes\.user\.size = 1: .*no such key"),
        ('{"codes.user.codebook_size"=[4, 1]}', r"codes\.user\.codebook_size = 1: .*greater than or equal to 2"),
        ('{"codes.user.codebook_size"={low=1, high=9}}', r"codes\.user\.codebook_size = 1: .*greater than or equal to 2"),
        ('{"codes.nobody.size"=[1]}', r"no setting 'codes\.nobody\.size'"),
        ('{"codes.user.codebook_size"=[]}', "no values to try"),
        ('{"cluster.num_cpus"=[1, 2]}', r"cluster\.num_cpus changes no result"),
        ('{"logs.labels.window_days"=[1, 2]}', r"logs\.labels\.window_days changes what trials are measured on"),
        ('{"train.learning_rate"={low=0.2, high=0.1}}', r"low = 0\.2 must lie below high = 0\.1"),
        ('{"train.learning_rate"={low=0, high=0.1, log=true}}', "log = true needs low > 0"),
        ('{"train.learning_rate"={low=0.1, high=0.2}}', r"searched from 0\.1 to 0\.2, and the config as it stands, the first trial, has 0\.05"),
    ],
)
def test_spaces_that_cannot_be_searched_are_refused(space: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space_of(load(None, [f"sweep.space={space}"]))


def test_a_ranker_without_a_space_needs_one_in_the_config() -> None:
    with pytest.raises(ValueError, match=r"sweep\.ranker = 'base' has no space of its own"):
        space_of(load(None, ["sweep.ranker=base"]))
    assert space_of(load(None, ["sweep.ranker=base", 'sweep.space={"rankers.base.id_dim"=[8, 16]}'])) == (Parameter("rankers.base.id_dim", (8, 16)),)


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


def test_ranges_are_drawn_within_their_ends_and_log_ones_evenly_by_magnitude() -> None:
    config = load(None)
    whole = Parameter("codes.user.codebook_size", Range(low=4, high=64, log=True))
    space = (RATE, whole)
    points = draw(space, current(config, space), 400, seed=1)[1:]
    rates, sizes = [float(one["train.learning_rate"]) for one in points], [one["codes.user.codebook_size"] for one in points]
    assert min(rates) >= 0.01
    assert max(rates) <= 0.2
    assert 0.4 < np.mean(np.array(rates) < (0.01 * 0.2) ** 0.5) < 0.6, "half of them below the geometric middle"
    assert {type(one) for one in sizes} == {int}
    assert min(sizes) == 4  # type: ignore[type-var]
    assert max(sizes) > 50  # type: ignore[type-var, operator]
    assert 0.4 < np.mean(np.array(sizes) <= 16) < 0.6


def test_show_names_the_type_and_marks_the_configs_own_value() -> None:
    space = (*SPACE, RATE)
    lines = show(space, current(load(None), space)).splitlines()
    assert "int: 4, [8]" in lines[0]
    assert "str: group, [individual]" in lines[1]
    assert "float 0.01 … 0.2, log  [0.05]" in lines[2]


def test_metric_of_another_head() -> None:
    assert metric_of(load(None)) == "gauc_low"
    assert metric_of(load(None, ["sweep.metric=auc", "sweep.head=conversion"])) == "conversion/auc"


PLAIN = ("logs.source=synthetic", "profiles.generator=deterministic")  # no model of the profiles to look for


def key(*overrides: str) -> str:
    return stage_key(SWEEP, load(None, [*PLAIN, *overrides]), {})


def test_key_follows_results_and_not_where_they_were_made() -> None:
    for same in (
        "sweep.max_concurrent=2",
        "train.compute.num_actors=2",
        "sweep.in_place=false",
        "run.name=other",
        "tracking.backend=none",
        "serve.max_items=9",
    ):
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
    one = Search(load(None), Store.open(str(tmp_path)), str(tmp_path), None, Goal("auc", "auc"))  # type: ignore[arg-type]  # it comes to no build
    refused = one({"codes.user.codebook_size": 32, "codes.user.init_rows": 16})
    assert "codebook_size = 32 must not exceed init_rows = 16" in refused["refused"]
    assert refused[SEARCHED] == -1


def test_population_based_training_searches_only_what_can_change_between_epochs() -> None:
    config = load(None, ["sweep.scheduler=pbt", "train.epochs=4"])
    check_pbt(config, (RATE, Parameter("rankers.choirrec.distill_weight", (0.0, 0.5))))
    with pytest.raises(ValueError, match=r"codes\.user\.codebook_size, rankers\.choirrec\.group_dim cannot be"):
        check_pbt(config, (RATE, SPACE[0], Parameter("rankers.choirrec.group_dim", (8, 16))))
    with pytest.raises(ValueError, match=r"raise train\.epochs"):
        check_pbt(load(None, ["sweep.scheduler=pbt", "train.epochs=1"]), (RATE,))


def finished(number: int, point: Point, score: float) -> Trial:
    return Trial(number=number, point=point, state="finished", score=score, whole=0.5, searched=score, epochs=1)


def test_tpe_goes_where_scores_are_high_and_knows_what_an_earlier_attempt_found() -> None:
    """A planted optimum: 0.1, group. Told of twenty trials, TPE's next ones lie nearer to it than random ones do."""
    config, space = load(None, ["sweep.num_startup=5"]), (RATE, SPACE[1])
    start = current(config, space)

    def score(point: Point) -> float:
        return 0.6 - 0.1 * abs(np.log(float(point["train.learning_rate"]) / 0.1)) + 0.05 * (point["rankers.choirrec.distill_teacher"] == "group")

    known = [finished(number, point, score(point)) for number, point in enumerate(draw(space, start, 20, seed=3))]
    searcher = tpe_searcher(space, start, [], known, config)
    found = []
    for number in range(20):
        suggested = searcher.suggest(f"trial{number}")
        assert isinstance(suggested, dict)
        found.append(score(suggested))
        searcher.on_trial_complete(f"trial{number}", {SEARCHED: found[-1]})
    blind = [score(point) for point in draw(space, start, 200, seed=4)]
    assert np.mean(found) > np.mean(blind) + 0.03
    assert set(distributions(space, start)) == {one.setting for one in space}


def test_importance_finds_the_setting_that_the_score_hangs_on() -> None:
    config, space = load(None), (RATE, SPACE[1])
    start = current(config, space)
    points = draw(space, start, 40, seed=5)
    trials = [finished(number, point, float(point["rankers.choirrec.distill_teacher"] == "group")) for number, point in enumerate(points)]
    shares = importance(space, start, trials, seed=1)
    assert next(iter(shares)) == "rankers.choirrec.distill_teacher"
    assert shares["rankers.choirrec.distill_teacher"] > 0.9
    assert importance(space, start, trials[:9], seed=1) == {}, "too few to say"
    assert importance(space, start, [finished(n, p, 0.5) for n, p in enumerate(points)], seed=1) == {}, "nothing to explain"


def auc_of(size: int, epoch: int) -> float:
    return 1 / size + epoch / 100


def epochs_of(loop_config: dict[str, Any]) -> None:
    for epoch in range(1, loop_config["epochs"] + 1):
        ray.train.report({"epoch": epoch, "auc": auc_of(loop_config["size"], epoch)})


def fit_one(point: dict[str, Any], folder: str, epochs: int) -> dict[str, Any]:
    """A trial as Search runs it: a TorchTrainer whose reports reach Tune from the trial's own thread."""
    size = point["codes.user.codebook_size"]
    Path(folder, f"begun-{size}-{os.getpid()}").touch()
    if size == 16:
        return {"refused": "16 codes need 64 rows, there are 32", SEARCHED: -1.0}
    if size == 32 and not Path(folder, "mended").exists():
        raise RuntimeError("the disk is full\nand a second line")
    if size == 128 and not Path(folder, "mended").exists():
        os._exit(1)
    callback = EpochReports()

    def train() -> None:
        TorchTrainer(
            epochs_of,
            train_loop_config={"size": size, "epochs": epochs},
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
            run_config=ray.train.RunConfig(name=tune.get_context().get_trial_id(), storage_path=folder, callbacks=[callback]),
        ).fit()

    def report(metrics: Any, checkpoint: Any) -> None:
        if metrics["epoch"] < epochs:
            tune.report({**metrics, SEARCHED: metrics["auc"]})

    callback.while_running(train, report)
    kept = {"auc": auc_of(size, epochs), "epoch": epochs}
    return {**kept, "kept": kept, "epochs": epochs, SEARCHED: kept["auc"]}


VALUES = (4, 8, 16, 32, 64, 128)


def run_search(tmp_path: Path, sizes: tuple[int, ...], *overrides: str, callbacks: Any = (), epochs: int = 2) -> list[Trial]:
    """Search `sizes`, of which the first is the config's own."""
    folder = tmp_path / "train"
    folder.mkdir(exist_ok=True)
    config = load(None, [f"codes.user.codebook_size={sizes[0]}", "sweep.metric=auc", f"sweep.num_trials={len(sizes)}", f"train.epochs={epochs}", *overrides])
    space = (Parameter("codes.user.codebook_size", sizes),)
    journal = Journal.of(Store.open(str(tmp_path / "store")), "key")
    goal = Goal("auc", "auc")
    storage = (pafs.LocalFileSystem(), str(tmp_path / "tune"))
    return search(lambda point: fit_one(point, str(folder), epochs), space, current(config, space), config, goal, journal, storage, callbacks)


def by_size(trials: list[Trial]) -> dict[Any, Trial]:
    return {one.point["codes.user.codebook_size"]: one for one in trials}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_trials_train_one_is_refused_and_a_second_attempt_runs_only_what_failed(tmp_path: Path) -> None:
    """Half a CPU for each trial's worker: two of them at a time leave one for what else runs."""
    with pytest.raises(ValueError, match=r"1 of 3 trials failed") as raised:
        run_search(tmp_path, (8, 16, 32), "sweep.searcher=random", "sweep.max_concurrent=2")
    assert "codes.user.codebook_size=32): RuntimeError: the disk is full" in str(raised.value)
    assert "run the sweep again" in str(raised.value)
    (tmp_path / "train" / "mended").touch()
    trials = by_size(run_search(tmp_path, (8, 16, 32), "sweep.searcher=random", "sweep.max_concurrent=2"))
    assert trials[8].score == pytest.approx(1 / 8 + 0.02)
    assert (trials[8].number, trials[8].state, trials[8].epochs) == (0, "finished", 2)
    assert (trials[16].score, trials[16].refused) == (None, "16 codes need 64 rows, there are 32")
    assert trials[32].score == pytest.approx(1 / 32 + 0.02)
    assert {one.number for one in trials.values()} == {0, 1, 2}
    begun = sorted(path.name.split("-")[1] for path in (tmp_path / "train").glob("begun-*"))
    assert begun == ["16", "32", "32", "8"], "what had ended was not run again"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_watcher_finds_every_epoch_and_why_a_trial_failed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 of 2 trials failed"):
        run_search(tmp_path, (8, 32), "sweep.searcher=random", epochs=3)
    sweep = SweepWatch(Store.open(str(tmp_path / "store"))).sweep("key")
    assert sweep is not None
    good, failed = sweep.trials
    assert (good.status, failed.status) == ("finished", "failed")
    assert good.course is not None
    assert [(one["epoch"], one["auc"]) for one in good.course.epochs] == [(epoch, pytest.approx(auc_of(8, epoch))) for epoch in (1, 2, 3)]
    assert failed.course is not None
    assert failed.course.failed == "RuntimeError: the disk is full and a second line"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_whose_process_dies_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trial \d \(codes\.user\.codebook_size=128\): Actor(Died|Unavailable)Error: "):
        run_search(tmp_path, (128, 8), "sweep.searcher=random")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_asha_stops_what_lags_behind_and_the_best_is_trained_to_the_end(tmp_path: Path) -> None:
    trials = by_size(run_search(tmp_path, (*VALUES[:2], 64), "sweep.searcher=random", "sweep.scheduler=asha", "sweep.reduction_factor=2", epochs=4))
    assert trials[4].state == "finished"
    assert trials[4].epochs == 4
    stopped = [one for one in trials.values() if one.state == "stopped"]
    assert stopped
    assert all(1 <= one.epochs < 4 and one.score == pytest.approx(auc_of(int(one.point["codes.user.codebook_size"]), one.epochs)) for one in stopped)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_tpe_begins_with_the_config_and_leaves_a_tracked_run_for_every_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    callbacks = tune_callbacks(load(None), Store.open(str(tmp_path / "run")), "spring-sweep")
    trials = run_search(tmp_path, (8, 4, 16), "sweep.searcher=tpe", "sweep.num_startup=2", callbacks=callbacks)
    assert [one.number for one in trials] == [0, 1, 2]
    assert trials[0].point == {"codes.user.codebook_size": 8}
    runs = read(tmp_path / "run")
    assert len(runs) == 3
    assert {run["group"] for run in runs} == {"spring-sweep"}
