"""Capacity: formulas by hand, what grows with what, what does not fit, rates read and refused; beside measured runs in a slow test."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtail.capacity import GIB, Rate, RateName, Shape, Workload, n, plan, refreshed_users, warnings_of
from longtail.config import load
from pipelines.cluster import ROOT
from pipelines.plan import Seen, line_through, read_rates, shape_of

RATES = {name: Rate(value=100.0, origin="given") for name in get_args(RateName)}
WORK: dict[str, Any] = {"users": 36_000.0, "items": 7200.0, "events_per_day": 1e6}
SHAPE: dict[str, Any] = {
    "prompt_tokens": 800,
    "shared_prompt_tokens": 600,
    "answer_tokens": 100,
    "user_dim": 10,
    "item_dim": 20,
    "user_codes": (3, 8),
    "item_codes": (2, 4),
    "iterations": 5,
    "id_dim": 16,
    "optimizer_copies": 1,
    "epochs": 2,
    "batch_size": 1000,
    "dense_parameters": 1000,
    "shards": 2,
    "workers": 4,
}


def values(work: dict[str, Any] | None = None, shape: dict[str, Any] | None = None) -> dict[str, float]:
    lines = plan(Workload(**{**WORK, **(work or {})}), Shape(**{**SHAPE, **(shape or {})}), RATES)
    assert len({(one.part, one.what) for one in lines}) == len(lines)
    return {f"{one.part}: {one.what}": one.value for one in lines}


def test_formulas_by_hand() -> None:
    found = values({"daily_active_frac": 0.5, "refresh_days": 2, "train_days": 3, "deadline_h": 8})
    assert found["profiles: all users, once: device-hours"] == pytest.approx(36_000 * (200 / 100 + 100 / 100) / 3600) == 30
    assert found["profiles: all users, once: devices to be done in 8 h"] == 4
    assert found["profiles: users who acted since the last refresh"] == 27_000
    assert found["embedding: all items, once: device-hours"] == pytest.approx(7200 / 100 / 3600)
    assert found["codes: users, fit: device-hours"] == pytest.approx(2 * 36_000 * 3 * 8 * 10 * 5 / 100 / 3600)
    assert found["codes: items, encode: device-hours"] == pytest.approx(2 * 7200 * 2 * 4 * 20 / 100 / 3600)
    assert found["codes: users, fit: network"] == pytest.approx(2 * 3 * 5 * (8 * 10 * 8 + 8 * 8 + 8 * 10 * 4) / GIB)
    assert found["codes: users, fit: memory of a shard"] == pytest.approx(18_000 * 10 * 4 / GIB)
    assert found["training: rows"] == 3e6
    assert found["training: one ranker: device-hours"] == pytest.approx(3e6 * 2 / 100 / 3600)
    assert found["training: ID tables and their optimiser's state, on each worker"] == pytest.approx(43_200 * 16 * 4 * 2 / GIB)
    assert found["training: network, all workers"] == pytest.approx(6000 * 4 * 2 * 3 / 4 * 4000 / GIB)
    assert found["serving: replicas at the peak"] == math.ceil(1000 * 200 / (100 * 0.6))
    assert found["storage: logs"] == pytest.approx(1e6 * 365 * 100 / 2**40)


def test_a_text_of_the_facts_costs_no_device() -> None:
    lines = plan(Workload(**WORK), Shape(**{**SHAPE, "language_model": False}), {name: rate for name, rate in RATES.items() if "tokens" not in name})
    assert [line.what for line in lines if line.part == "profiles"] == ["users who acted since the last refresh"]
    assert "costs most" in warnings_of(Workload(**WORK), Shape(**{**SHAPE, "language_model": False}), lines, 80, 64)[-1]


def test_one_worker_sends_nothing_and_copies_of_what_is_stored_count() -> None:
    assert values(shape={"workers": 1})["training: network, all workers"] == 0
    assert values({"replication": 3})["storage: item vectors"] == pytest.approx(3 * values()["storage: item vectors"])


@given(st.sampled_from(["users", "items", "events_per_day"]), st.floats(1, 1e10), st.floats(1, 100))
def test_more_never_costs_less(name: str, size: float, times: float) -> None:
    small, large = values({name: size}), values({name: size * times})
    assert all(large[line] >= small[line] * (1 - 1e-12) for line in small)
    assert all(math.isfinite(value) and value >= 0 for value in large.values())


@given(st.floats(0.001, 1), st.floats(0.01, 400))
def test_those_who_acted_are_not_more_than_there_are(active: float, days: float) -> None:
    work = Workload(**{**WORK, "daily_active_frac": active, "refresh_days": days})
    assert 0 <= refreshed_users(work) <= work.users
    if days >= 1:
        assert refreshed_users(work) >= work.users * active * (1 - 1e-9)


def test_what_does_not_fit_is_said_with_what_to_do() -> None:
    work, shape = Workload(**{**WORK, "users": 1e9}), Shape(**SHAPE)
    said = warnings_of(work, shape, plan(work, shape, RATES), device_gib=80, node_gib=10)
    assert "ID tables take 119 GiB on every worker, a device has 80: rankers.*.id_dim = 10 would fit" in said[0]
    assert "a k-means shard of the users holds 19 GiB, a node has 10: 4 shards fit" in said[1]
    table = values({"users": 1e9}, {"id_dim": 10})["training: ID tables and their optimiser's state, on each worker"]
    assert table <= 80
    assert "costs most" in said[-1]


def test_a_missing_rate_is_named() -> None:
    with pytest.raises(ValueError, match=r"the rate candidates_per_s \(candidates/s of one replica\) is missing"):
        plan(Workload(**WORK), Shape(**SHAPE), {name: rate for name, rate in RATES.items() if name != "candidates_per_s"})


def test_a_start_is_told_from_a_rate() -> None:
    assert line_through([Seen(100, 3, 0), Seen(300, 5, 0)]) == pytest.approx((2, 0.01))
    assert line_through([Seen(100, 1, 0), Seen(300, 6, 0)]) == (0, 0.02), "no start is negative"
    assert line_through([Seen(100, 3, 0), Seen(300, 2, 0)]) == pytest.approx((0, 2 / 300)), "nor a rate"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train_rows_per_s = -1", "greater than 0"),
        ("train_rows_per_s = {value = 2}", "Field required"),
        ("trains_rows_per_s = 2", "there is no rate 'trains_rows_per_s'"),
        ("train_rows_per_s =", "cannot be read as TOML"),
    ],
)
def test_rates_that_are_none_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rates.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rates(str(tmp_path / "rates.toml"))


def test_the_shape_follows_the_config() -> None:
    shape = shape_of(load(None, ["profiles.generator=deterministic", "rankers.choirrec.id_dim=24", "train.optimizer=adam", "train.compute.num_actors=8"]), {})
    assert (shape.id_dim, shape.optimizer_copies, shape.workers) == (24, 2, 8)
    assert shape.user_dim == 384 + 384 + 64
    with pytest.raises(ValueError, match=r"--shape: 1 value\(s\) refused:\n  depth = 3"):
        shape_of(load(None, ["profiles.generator=deterministic"]), {"depth": 3})


def command(*flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}", "PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    return subprocess.run([sys.executable, "-m", "pipelines.plan", *flags], cwd=cwd, env=env, capture_output=True, text=True)


def test_the_command_plans_a_billion_users_from_given_rates_and_refuses_what_is_no_size(tmp_path: Path) -> None:
    rates = str(ROOT / "deploy" / "rates_gpu.toml")
    done = command("--users", "1e9", "--items", "1e8", "--events-per-day", "1e10", "--rates", rates, "--workload", "candidates=300", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    found = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert found["workload"]["candidates"] == 300
    assert found["warnings"] == told["warnings"]
    assert "| profiles | all users, once: device-hours |" in done.stdout
    assert read_rates(str(tmp_path / "plan" / "rates.toml")) == read_rates(rates)
    refused = command("--users", "-1", "--items", "1e8", "--events-per-day", "1e10", "--rates", rates, cwd=tmp_path)
    assert (refused.returncode, "users = -1.0: Input should be greater than 0" in refused.stderr) == (2, True)
    missing = command("--users", "5", cwd=tmp_path)
    assert "--items and --events-per-day: how many?" in missing.stderr


def test_numbers_are_short() -> None:
    assert [n(value) for value in (0.123456, 12.0, 1234.0, 1e9, 1.2e10)] == ["0.123", "12", "1.23e+03", "1e9", "1.2e10"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_predictions_hold_for_measured_runs_at_three_sizes(tmp_path: Path) -> None:
    done = command("--check", "--config", str(ROOT / "pipelines" / "configs" / "test.toml"), "--set", "profiles.generator=deterministic", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    off = json.loads(done.stdout.splitlines()[-1])["farthest_off"]
    assert off["bytes"] < 1.5
    assert off["seconds"] < 2.5
