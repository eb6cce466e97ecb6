"""The plan command: rates read, written and refused, the config's shape, a billion users, and predictions beside measured runs (slow)."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from longtail.capacity import OPTIONAL, RateName
from longtail.config import load
from pipelines.cluster import ROOT
from pipelines.parts_alone import Seen, held_bytes, kmeans, line_through, neighbours, table_bytes_per_s
from pipelines.plan import main, rates_text, read_rates, shape_of
from pipelines.plan_check import fastest, page, predictions

GPU_RATES = ROOT / "deploy" / "rates_gpu.toml"
BILLION = ("--users", "1e9", "--items", "1e8", "--events-per-day", "1e10")


def test_a_start_is_told_from_a_rate() -> None:
    assert line_through([Seen(100, 3), Seen(300, 5)]) == pytest.approx((2, 0.01))
    assert line_through([Seen(100, 1), Seen(300, 6)]) == (0, 0.02), "no start is negative"
    assert line_through([Seen(100, 3), Seen(300, 2)]) == pytest.approx((0, 2 / 300)), "nor a rate"


def test_predictions_are_held_against_the_fastest_run() -> None:
    runs = {
        100: [{"a": Seen(100, 3, 10)}, {"a": Seen(100, 2.5, 10)}],
        300: [{"a": Seen(300, 4.5, 30)}],
        600: [{"a": Seen(600, 9, 66)}, {"a": Seen(600, 7, 66)}],
    }
    seen = {size: fastest(of_size) for size, of_size in runs.items()}
    of_bytes, of_seconds = predictions([seen[100], seen[300]], {"600 users": seen[600]}, ("a",), ("a",))
    assert (of_seconds.predicted, of_seconds.measured, of_seconds.ratio) == pytest.approx((7.5, 7, 7.5 / 7))
    assert (of_bytes.predicted, of_bytes.measured) == (60, 66)


def test_held_bytes_counts_each_array_once() -> None:
    numbers = np.zeros(100)
    assert held_bytes({"a": numbers, "b": [numbers, (np.zeros(10, np.int8), "text")]}) == 810
    assert held_bytes(Seen(1, 2)) == 0


def test_parts_alone_count_the_operations_of_the_plan() -> None:
    small, large = kmeans(1000, 8, 4, stages=2, iterations=2), kmeans(2000, 8, 4, stages=2, iterations=2)
    assert large.units == 2 * small.units == 2.0 * 2000 * 4 * 8 * (2 * 3)
    assert neighbours(100, 8).units == 2.0 * 100 * 100 * 8
    assert table_bytes_per_s(load(None).train, rows=10_000) > 0


def test_rates_are_read_as_they_are_written(tmp_path: Path) -> None:
    rates = read_rates(str(GPU_RATES))
    assert set(rates) == set(get_args(RateName)), "the example gives every rate"
    assert all(rate.origin.startswith("assumed") for rate in rates.values()), "nothing in it was measured"
    (tmp_path / "rates.toml").write_text(rates_text(rates))
    assert read_rates(str(tmp_path / "rates.toml")) == rates


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train_rows_per_s = -1", "greater than 0"),
        ("train_rows_per_s = 0", "greater than 0"),
        ("train_rows_per_s = {value = 2}", "origin is missing"),
        ("trains_rows_per_s = 2", "there is no rate 'trains_rows_per_s'"),
        ("train_rows_per_s =", "cannot be read as TOML"),
    ],
)
def test_rates_that_are_none_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rates.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rates(str(tmp_path / "rates.toml"))


def test_the_shape_follows_the_config() -> None:
    overrides = ["profiles.generator=deterministic", "rankers.choirrec.id_dim=24", "train.optimizer=adam", "train.compute.num_actors=8"]
    shape = shape_of(load(None, [*overrides, "peers.form=groups", "codes.user.compute.num_actors=5"]), {})
    assert (shape.id_dim, shape.optimizer_copies, shape.workers, shape.peers, shape.user_shards) == (24, 2, 8, "groups", 5)
    assert (shape.user_dim, shape.profile_dim) == (384 + 384 + 64, 384)
    assert not shape.language_model
    with pytest.raises(ValueError, match=r"--shape depth = 3"):
        shape_of(load(None, ["profiles.generator=deterministic"]), {"depth": 3})


def test_only_whole_blocks_of_the_shared_prompt_are_cached() -> None:
    small, large = (shape_of(load(None, [f"profiles.compute.kv_block_size={size}"]), {}) for size in (32, 128))
    assert small.shared_prompt_tokens % 32 == large.shared_prompt_tokens % 128 == 0
    assert large.shared_prompt_tokens < small.shared_prompt_tokens < small.prompt_tokens


def command(*flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run([sys.executable, "-m", "pipelines.plan", *flags], cwd=cwd, env=env, capture_output=True, text=True)


def test_the_command_plans_a_billion_users_from_given_rates(tmp_path: Path) -> None:
    flags = (*BILLION, "--rates", str(GPU_RATES), "--workload", "candidates=300", "--price", "device_hour=2", "--room", "node_gib=512")
    done = command(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told, found = json.loads(done.stdout.splitlines()[-1]), json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert found["workload"]["candidates"] == 300
    assert found["said"] == told["said"]
    assert any("are not part of this project" in one for one in told["said"]), "ID tables of a billion users do not fit a device"
    assert all(np.isfinite(line["value"]) for line in found["lines"])
    text = (tmp_path / "plan" / "plan.md").read_text()
    for line in found["lines"]:
        assert f"| {line['part']} | {line['what']} | {line['formula']} | " in text
    assert "| `decode_tokens_per_s` | 2,500 | answer tokens/s of one device, all requests together | assumed: " in text
    assert any(line["part"] == "cost" for line in found["lines"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--users", "-1", *BILLION[2:]), "--users = -1.0: Input should be greater than or equal to 1"),
        (("--users", "0", *BILLION[2:]), "--users = 0.0: Input should be greater than or equal to 1"),
        (("--users", "5"), "--items and --events-per-day: how many?"),
        ((*BILLION, "--workload", "utilisation=1"), "--workload utilisation = 1.0: Input should be less than 1"),
        ((*BILLION, "--workload", "train_days=100"), "train_days = 100 must not exceed log_days = 90"),
        ((*BILLION, "--room", "nodes"), "--room nodes: expected name=number"),
        ((*BILLION, "--price", "gpu=2"), "--price gpu = 2.0: there is no such key"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    tmp_path: Path, flags: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(flags, tmp_path, monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []


def refused(flags: tuple[str, ...], cwd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it ends with code 2."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["plan", *flags])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_file_without_a_rate_says_how_to_give_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rates.toml").write_text(GPU_RATES.read_text().split("[train_rows_per_s]")[0])
    said = refused((*BILLION, "--rates", "rates.toml"), tmp_path, monkeypatch, capsys)
    assert "the rate train_rows_per_s (rows/s of one worker, whose ID tables are small) is missing. Write [train_rows_per_s]" in said


def test_the_page_names_losses() -> None:
    from pipelines.plan_check import Row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.plan_check.machine", lambda: {"machine": "2 CPUs."})
        text = page(
            [Row("samples", "600 users", 9000, "seconds", 3.0, 1.0, 1.5)], {"seconds": 3.0, "bytes": 1.0}, "python -m pipelines.plan --check --config x.toml"
        )
    assert "- command: `python -m pipelines.plan --check --config x.toml`" in text
    assert "| samples | 600 users | 9e+03 | seconds | 3 | 1 | 3.00 | 1.5 |" in text
    assert "farthest off: seconds 3.00 times" in text


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_calibration_gives_rates_that_plan(tmp_path: Path) -> None:
    """With the packaged language model on vLLM's CPU build, the packaged encoder, and all the rest as the demo has it."""
    pytest.importorskip("vllm")
    flags = ("--users", "1e5", "--items", "1e4", "--events-per-day", "1e6", "--config", str(ROOT / "pipelines" / "configs" / "demo.toml"))
    done = command(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    rates = read_rates(str(tmp_path / "plan" / "rates.toml"))
    assert set(rates) == set(get_args(RateName)) - OPTIONAL
    assert all(rate.origin.startswith("measured here (") for rate in rates.values())
    assert rates["prefill_tokens_per_s"].value > rates["decode_tokens_per_s"].value / 10
    again = command(*flags, "--rates", "plan/rates.toml", "--out", "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    first, second = (json.loads((tmp_path / folder / "plan.json").read_text()) for folder in ("plan", "again"))
    assert first == second
    assert tomllib.loads((tmp_path / "again" / "rates.toml").read_text()) == {name: rate.model_dump() for name, rate in rates.items()}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_predictions_hold_for_measured_runs_at_three_sizes(tmp_path: Path) -> None:
    config = str(ROOT / "pipelines" / "configs" / "test.toml")
    done = command("--check", "--config", config, "--set", "profiles.generator=deterministic", "--out", "found", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    off = json.loads(done.stdout.splitlines()[-1])["farthest_off"]
    assert off["bytes"] < 1.15
    assert off["seconds"] < 1.5
    assert "| item texts | 2,400 users |" in (tmp_path / "found" / "plan_check.md").read_text()
