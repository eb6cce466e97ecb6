"""The glue of the stages: what is skipped, what is redone, and what a key depends on."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from longtail.artifacts import Draft
from longtail.config import Config, load
from pipelines.stage import Context, Result, Stage, ensure, find, main_for, open_store, stage_key


def numbers(context: Context, draft: Draft) -> Result:
    """As many rows as codes.user.codebook_size says, starting at the seed."""
    size = context.config.codes.user.codebook_size
    draft.write("numbers", pa.table({"number": pa.array(range(context.seed, context.seed + size), pa.int64())}))
    return Result(rows_in=size, rows_out=size)


def even(context: Context, draft: Draft) -> Result:
    values = context.inputs["numbers"].read("numbers").column("number").to_pylist()
    kept = [value for value in values if value % 2 == 0]
    draft.write("even", pa.table({"number": kept}))
    return Result(rows_in=len(values), rows_out=len(kept), dropped={"odd": len(values) - len(kept)})


NUMBERS = Stage("numbers", 1, (), lambda config: config.codes.user.key_fields(), numbers, "pipelines.numbers")
EVEN = Stage("even", 1, (NUMBERS,), lambda config: config.groups.key_fields(), even, "pipelines.even")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Config]:
    def config(*overrides: str) -> Config:
        return load(None, [f"run.uri={json.dumps(str(tmp_path / 'run'))}", *overrides])

    return config


def test_finished_stage_is_skipped(run: Callable[..., Config]) -> None:
    config = run()
    store = open_store(config)
    first = ensure(NUMBERS, config, store)
    second = ensure(NUMBERS, config, store)
    assert (first.skipped, second.skipped) == (False, True)
    assert first.artifact.manifest == second.artifact.manifest


def test_key_follows_settings_seed_version_and_fingerprint(run: Callable[..., Config]) -> None:
    keys = {
        "as it was": stage_key(NUMBERS, run(), {}),
        "settings": stage_key(NUMBERS, run("codes.user.codebook_size=9"), {}),
        "seed": stage_key(NUMBERS, run("run.seed=8"), {}),
        "version": stage_key(replace(NUMBERS, version=2), run(), {}),
        "fingerprint": stage_key(replace(NUMBERS, fingerprint=lambda config: "other rows"), run(), {}),
        "name": stage_key(replace(NUMBERS, name="others"), run(), {}),
    }
    assert len(set(keys.values())) == len(keys), keys


@pytest.mark.parametrize("override", ["codes.user.compute.num_actors=7", "cluster.num_cpus=3", "run.name=other", "codes.item.codebook_size=4"])
def test_key_ignores_where_it_runs_and_what_others_read(run: Callable[..., Config], override: str) -> None:
    assert stage_key(NUMBERS, run(override), {}) == stage_key(NUMBERS, run(), {})


def test_key_follows_the_inputs_contents(run: Callable[..., Config]) -> None:
    config = run()
    store = open_store(config)
    one = ensure(EVEN, config, store, build_inputs=True)
    other = ensure(EVEN, run("codes.user.codebook_size=9"), store, build_inputs=True)
    assert other.artifact.key != one.artifact.key
    # The same rows from another version of the upstream stage: built anew there, found finished here.
    rebuilt = replace(NUMBERS, version=2)
    downstream = ensure(replace(EVEN, inputs=(rebuilt,)), config, store, build_inputs=True)
    assert downstream.skipped
    assert downstream.artifact.key == one.artifact.key


def test_rows_and_lineage_are_in_the_manifest(run: Callable[..., Config]) -> None:
    config = run("codes.user.codebook_size=5", "run.seed=7")
    store = open_store(config)
    manifest = ensure(EVEN, config, store, build_inputs=True).artifact.manifest
    assert manifest["rows"] == {"in": 5, "out": 2, "dropped": {"odd": 3}}  # 7 … 11
    upstream = find(NUMBERS, config, store)
    assert upstream is not None
    assert manifest["inputs"]["numbers"]["key"] == upstream.key


def test_missing_input_names_its_command(run: Callable[..., Config]) -> None:
    config = run()
    with pytest.raises(ValueError, match=r"'even' reads 'numbers', which is not finished .*python -m pipelines\.numbers"):
        ensure(EVEN, config, open_store(config))


def test_find_needs_the_whole_line(run: Callable[..., Config]) -> None:
    config = run()
    store = open_store(config)
    assert find(EVEN, config, store) is None
    ensure(NUMBERS, config, store)
    assert find(EVEN, config, store) is None
    ensure(EVEN, config, store)
    assert find(EVEN, config, store) is not None


def test_failed_build_leaves_nothing_and_is_redone(run: Callable[..., Config], tmp_path: Path) -> None:
    def broken(context: Context, draft: Draft) -> Result:
        draft.write("numbers", pa.table({"number": [1]}))
        raise RuntimeError("the disk is full")

    config = run()
    store = open_store(config)
    with pytest.raises(RuntimeError, match="disk is full"):
        ensure(replace(NUMBERS, build=broken), config, store)
    assert not list((tmp_path / "run").rglob("*.parquet"))
    assert not ensure(NUMBERS, config, store).skipped


def test_drops_without_a_reason_are_refused(run: Callable[..., Config], tmp_path: Path) -> None:
    config = run()
    with pytest.raises(ValueError, match="must add up"):
        ensure(replace(NUMBERS, build=lambda context, draft: Result(rows_in=3, rows_out=2)), config, open_store(config))
    assert not list((tmp_path / "run").rglob("manifest.json"))


def test_a_job_keeps_a_relative_uri_out_of_its_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = load(None, ["run.uri=runs/mine"])
    monkeypatch.setenv("LONGTAIL_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert open_store(config).uri == str(Path.cwd() / "runs" / "mine")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert open_store(config).uri == str(tmp_path / "runs" / "mine")
    assert open_store(load(None, [f"run.uri={tmp_path}/absolute"])).uri == str(tmp_path / "absolute")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_command_prints_one_json_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["numbers", "--out", str(tmp_path), "--set", "codes.user.codebook_size=3"])
    for skipped in (False, True):
        main_for("Numbers.", lambda config: [NUMBERS])
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert last["numbers"]["skipped"] is skipped
        assert last["numbers"]["rows"] == {"in": 3, "out": 3, "dropped": {}}
        assert Path(last["numbers"]["path"]).parent.parent == tmp_path / "numbers"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_command_says_in_a_line_what_a_user_can_mend(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["even", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main_for("Even numbers.", lambda config: [EVEN])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: stage 'even' reads 'numbers'")
