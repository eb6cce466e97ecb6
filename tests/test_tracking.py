"""Tracking: offline run folders that hold the curve, the config, the lineage and the group; and nothing at all where it is off."""

import json
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
import ray.train
from ray.train.torch import TorchTrainer
from wandb.proto import wandb_internal_pb2

from longtail.artifacts import Artifact, Store
from longtail.config import Config, load
from longtail.evaluation import HeadMetrics, Metrics, Scores, SliceMetrics
from longtail.paired import Interval
from pipelines.tracked_run import check_credentials, numbers
from pipelines.tracking import (
    TrackReports,
    describe,
    opened,
    record,
    record_evaluation,
    record_stages,
    record_sweep,
    train_callbacks,
    tune_callbacks,
)


def config_at(folder: Path, *overrides: str) -> Config:
    return load(None, [f"run.uri={json.dumps(str(folder))}", "run.name=spring", *overrides])


def an_input(store: Store) -> Artifact:
    draft = store.create("samples", "k0")
    draft.write("samples", pa.table({"row": [1]}))
    return draft.commit(config={}, inputs={}, seed=1, rows_in=1, rows_out=1, dropped={}, info={})


def entries(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB; checksum, length, part of a record) behind seven bytes of its own."""
    data, place, parts = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        left_in_block = 2**15 - place % 2**15
        if left_in_block < 7:
            place += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def read(folder: Path) -> list[dict[str, Any]]:
    """Each offline run below `folder`: what `wandb sync` would push."""
    runs = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        run: dict[str, Any] = {"history": [], "summary": {}, "config": {}, "artifacts": [], "exit_code": None}
        for data in entries(file):
            entry = wandb_internal_pb2.Record()
            entry.ParseFromString(data)
            kind = entry.WhichOneof("record_type")
            if kind == "run":
                run |= {"id": entry.run.run_id, "name": entry.run.display_name, "group": entry.run.run_group, "job_type": entry.run.job_type}
                run |= {"project": entry.run.project}
                run["config"] |= {item.key: json.loads(item.value_json) for item in entry.run.config.update}
            elif kind == "history":
                run["history"].append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in entry.history.item})
            elif kind == "summary":
                run["summary"] |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in entry.summary.update}
            elif kind == "artifact":
                about = entry.artifact
                run["artifacts"].append(
                    {
                        "name": about.name,
                        "type": about.type,
                        "used": about.use_after_commit,
                        "aliases": list(about.aliases),
                        "metadata": json.loads(about.metadata or "{}"),
                        "contents": {item.path: (item.ref or item.local_path, item.digest) for item in about.manifest.contents},
                    }
                )
            elif kind == "exit":
                run["exit_code"] = entry.exit.exit_code
        runs.append(run)
    return runs


def test_numbers_are_what_can_be_drawn() -> None:
    values = {"auc": 0.5, "rows": 3, "nan": float("nan"), "none": None, "text": "x", "on": True, "all": {"warm": {"gauc": 0.25}, "cold": {"gauc": None}}}
    assert numbers(values) == {"auc": 0.5, "rows": 3, "on": 1, "all/warm/gauc": 0.25}


def test_off_means_off(tmp_path: Path) -> None:
    config, store = config_at(tmp_path, "tracking.backend=none"), Store.open(str(tmp_path))
    tracked = describe(config, store, name="base", job_type="train", key="k1", inputs={})
    with opened(tracked) as track:
        track.log({"auc": 0.5}, step=1)
        track.summarise({"auc": 0.5})
    assert train_callbacks(tracked) == []
    assert tune_callbacks(config, store, "g") == []
    record_sweep(config, store, "g", [], Artifact("sweeps", "k", {}, store.fs, store.root))
    record_stages(config, store, [(Artifact("logs", "k", {}, store.fs, store.root), False, 1.0)])
    assert not list(tmp_path.iterdir())


def test_online_without_a_key_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # restored afterwards: the check sets it
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    config, store = config_at(tmp_path, "tracking.mode=online"), Store.open(str(tmp_path))
    with pytest.raises(ValueError, match=r"tracking\.mode = 'online' needs .* WANDB_API_KEY, .*offline"):
        describe(config, store, name="base", job_type="train", key="k1", inputs={})
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    check_credentials(config.tracking)


def test_a_recorded_summary_is_complete_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "a run"
    config, store = config_at(folder, "run.seed=11"), Store.open(str(folder))
    samples = an_input(store)
    tracked = describe(config, store, name="choirrec", job_type="evaluate", key="0123456789abcdef", inputs={"samples": samples})
    record(tracked, {"outcome": {"all": {"auc": 0.75, "gauc": None}}})
    (run,) = read(folder)
    assert (run["id"], run["name"], run["group"]) == ("evaluate-choirrec-0123456789abcdef", "choirrec-012345", "spring")
    assert (run["project"], run["job_type"], run["exit_code"]) == ("longtail", "evaluate", 0)
    assert run["config"]["settings"]["run"]["seed"] == 11
    assert run["config"]["inputs"] == {"samples": {"key": "k0", "content_hash": samples.content_hash}}
    assert run["summary"]["outcome/all/auc"] == 0.75
    assert "outcome/all/gauc" not in run["summary"]


def media(folder: Path, pattern: str) -> Path:
    """The one file of the only offline run whose path fits."""
    (found,) = folder.glob(f"wandb/offline-run-*/files/media/{pattern}")
    return found


def test_artifacts_are_named_with_their_lineage_by_whoever_makes_or_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config, store = config_at(tmp_path / "a run"), Store.open(str(tmp_path / "a run"))
    samples = an_input(store)
    draft = store.create("evaluation", "e" * 24)
    draft.write_json("metrics.json", {"auc": 0.5})
    evaluation = draft.commit(config={}, inputs={"samples": samples}, seed=1, rows_in=5, rows_out=3, dropped={"why": 2}, info={"large": 1})
    record_stages(config, store, [(samples, True, 0.0), (evaluation, False, 2.5)])
    (run,) = read(tmp_path / "a run")
    assert (run["job_type"], run["group"], run["summary"]["seconds/evaluation"]) == ("pipeline", "spring", 2.5)
    read_by, made = run["artifacts"][:2]
    assert (read_by["name"], read_by["type"], read_by["used"], made["name"], made["type"], made["used"]) == (
        *("samples", "table", True),
        *("evaluation", "results", False),
    )
    reference, digest = made["contents"]["manifest.json"]
    assert json.loads(Path(unquote(urlparse(reference).path)).read_text())["key"] == evaluation.key
    assert digest == evaluation.content_hash
    assert made["contents"]["metrics.json"][0] == evaluation.path("metrics.json"), "in place: no copy that an offline run would leave elsewhere"
    assert set(made["aliases"]) == {"latest", "e" * 12}
    assert made["metadata"]["inputs"]["samples"]["content_hash"] == samples.content_hash
    assert made["metadata"]["rows"] == {"in": 5, "out": 3, "dropped": {"why": 2}}
    assert "info" not in made["metadata"]
    told = json.loads(media(tmp_path / "a run", "table/stages_[0-9]*.table.json").read_text())
    assert [row[:3] for row in told["data"]] == [["samples", "k0", True], ["evaluation", "e" * 24, False]]


def test_a_pipeline_that_built_nothing_leaves_no_run(tmp_path: Path) -> None:
    config, store = config_at(tmp_path), Store.open(str(tmp_path))
    record_stages(config, store, [(an_input(store), True, 0.0)])
    assert not (tmp_path / "wandb").exists()


def scores(gauc: float) -> Scores:
    return Scores(auc=gauc + 0.1, gauc=gauc, gauc_users=3, log_loss=0.5, calibration_ratio=1.0, calibration_error=0.01)


def an_evaluation() -> Metrics:
    """Two slices: duet gains more on cold items than over all rows."""
    parts = []
    for name, gain in (("all", 0.01), ("cold", 0.05)):
        found = {"base": scores(0.6), "duet": scores(0.6 + gain)}
        gained = {"duet": {"gauc": Interval(difference=gain, low=gain / 2, high=gain * 2)}}
        counts = {"rows": 9, "users": 3, "positives": 4, "reason": None}
        parts.append(SliceMetrics(name=name, family="main", title=name, rule=f"rows that are {name}", scores=found, differences=gained, **counts))
    head = HeadMetrics(head="outcome", definition="", rankers=("base", "duet"), slices=tuple(parts), calibration={})
    whole = {"test_users": 3, "low_activity_max": 1, "high_activity_min": 2, "alpha_fusion": {}}
    return Metrics(baseline="base", rankers=("base", "duet"), heads=(head,), **whole)


def test_an_evaluation_has_ranked_slices_a_plot_and_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config, store = config_at(tmp_path), Store.open(str(tmp_path))
    tracked = describe(config, store, name="evaluation", job_type="evaluate", key="k1", inputs={"samples": an_input(store)})
    record_evaluation(tracked, an_evaluation(), "<p>the report</p>")
    (run,) = read(tmp_path)
    assert run["summary"]["duet/outcome/cold/difference/gauc/difference"] == 0.05
    assert [(artifact["name"], artifact["used"]) for artifact in run["artifacts"][:1]] == [("samples", True)]
    table = json.loads(media(tmp_path, "table/slices_[0-9]*.table.json").read_text())
    place = table["columns"].index
    ranked = [(row[place("slice")], row[place("ranker")], row[place("difference")]) for row in table["data"]]
    assert ranked == [("cold", "duet", 0.05), ("all", "duet", 0.01), ("all", "base", None), ("cold", "base", None)]
    plotted = json.loads(media(tmp_path, "table/slices_plot_table_*.table.json").read_text())
    assert (plotted["columns"], plotted["data"]) == (["slice", "difference"], [["cold", 0.05], ["all", 0.01]])
    assert media(tmp_path, "html/report_*.html").read_text() == "<p>the report</p>"


def a_sweep(store: Store) -> Artifact:
    draft = store.create("sweeps", "s" * 24)
    draft.write_json("results.json", [])
    return draft.commit(config={}, inputs={}, seed=1, rows_in=3, rows_out=3, dropped={}, info={})


TRIALS = (
    {"number": 0, "score": 0.5, "point": {"train.epochs": 2}, "refused": None},
    {"number": 1, "score": 0.75, "point": {"train.epochs": 3}, "refused": None},
    {"number": 2, "score": None, "point": {"train.epochs": 9}, "refused": "too many"},
)


def test_a_sweep_has_its_table_of_trials_and_the_score_by_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config, store = config_at(tmp_path), Store.open(str(tmp_path))
    record_sweep(config, store, "spring-sweep", TRIALS, a_sweep(store))
    (run,) = read(tmp_path)
    assert (run["job_type"], run["group"], run["summary"]["best_score"], run["summary"]["without_score"]) == ("sweep", "spring-sweep", 0.75, 1)
    table = json.loads(media(tmp_path, "table/trials_[0-9]*.table.json").read_text())
    assert table["columns"] == ["number", "score", "point.train.epochs", "refused"]
    assert table["data"][2] == [2, None, 9, "too many"]
    plotted = json.loads(media(tmp_path, "table/trials_plot_table_*.table.json").read_text())
    assert plotted["data"] == [[0, 0.5], [1, 0.75]]
    made = [artifact for artifact in run["artifacts"] if artifact["name"] == "sweeps"]
    assert list(made[0]["contents"]) == ["manifest.json", "results.json"]
    files = [Path(place) for artifact in run["artifacts"] for place, _ in artifact["contents"].values() if "://" not in place]
    assert len(files) == 3
    assert all(file.is_file() and file.is_relative_to(tmp_path) for file in files), "wandb sync finds all of it below run.uri"


def test_a_trial_without_a_number_is_refused(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    with pytest.raises(ValueError, match=r"has \['score'\] and must have \"number\" and \"score\""):
        record_sweep(config_at(tmp_path), store, "g", [{"score": 1.0}], a_sweep(store))


def not_local(folder: Path) -> Store:
    """A store whose runs are recorded in a temporary folder and copied when they end, to `folder`/bucket/prefix."""
    (folder / "bucket").mkdir()
    return Store("memory://run", pafs.SubTreeFileSystem(str(folder / "bucket"), pafs.LocalFileSystem()), "prefix")


def test_a_failed_block_is_a_failed_run_on_a_store_that_is_not_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    store = not_local(tmp_path)
    tracked = describe(config_at(tmp_path / "elsewhere"), store, name="base", job_type="train", key="k1", inputs={})

    def fail() -> None:
        with opened(tracked) as track:
            track.log({"auc": 0.5}, step=1)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    (run,) = read(tmp_path / "bucket" / "prefix")
    assert run["exit_code"] == 1
    assert [row["auc"] for row in run["history"]] == [0.5]
    assert not (tmp_path / "elsewhere").exists()


def two_epochs(loop_config: dict[str, Any]) -> None:
    rank = ray.train.get_context().get_world_rank()
    for epoch in (1, 2):
        ray.train.report({"epoch": epoch, "auc": 0.5 + epoch / 10 + rank, "gauc": float("nan")})


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_a_training_run_leaves_one_curve_whatever_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config, store = config_at(tmp_path / "run"), Store.open(str(tmp_path / "run"))
    tracked = describe(config, store, name="base", job_type="train", key="k1", inputs={})
    callbacks = train_callbacks(tracked)
    assert [type(callback) for callback in callbacks] == [TrackReports]
    TorchTrainer(
        two_epochs,
        train_loop_config={},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(name="base", storage_path=str(tmp_path / "train"), callbacks=callbacks),
    ).fit()
    (run,) = read(tmp_path / "run")
    assert [(row["_step"], row["epoch"], row["auc"]) for row in run["history"]] == [(1, 1, 0.6), (2, 2, 0.7)]
    assert run["exit_code"] == 0


def dies(loop_config: dict[str, Any]) -> None:
    """Reports an epoch and fails in the next, the first time or every time."""
    mark = Path(loop_config["folder"]) / "died"
    ray.train.report({"epoch": 1, "auc": 0.6})
    if loop_config["always"] or not mark.exists():
        mark.touch()
        raise RuntimeError("boom")
    ray.train.report({"epoch": 2, "auc": 0.7})


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("always", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["fails", "comes back"])
def test_a_training_run_with_a_failure_is_one_run_closed_and_copied(always: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked = describe(config_at(tmp_path / "elsewhere"), not_local(tmp_path), name="base", job_type="train", key="k1", inputs={})
    trainer = TorchTrainer(
        dies,
        train_loop_config={"folder": str(tmp_path), "always": always},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(
            name="base",
            storage_path=str(tmp_path / "train"),
            failure_config=ray.train.FailureConfig(max_failures=0 if always else 1),
            callbacks=train_callbacks(tracked),
        ),
    )
    with pytest.raises(ray.train.TrainingFailedError, match="boom") if always else nullcontext():
        trainer.fit()
    (run,) = read(tmp_path / "bucket" / "prefix")
    assert run["exit_code"] == (1 if always else 0)
    assert [row["auc"] for row in run["history"]] == ([0.6] if always else [0.6, 0.7])
