"""Capacity: formulas by hand, every printed formula worked out anew, units, what grows with what, what does not fit, the wait at replicas, costs."""

import math
import re
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.capacity import GIB, TIB, Prices, Rate, RateName, Room, Shape, Workload, n, refreshed_users
from longtail.capacity_limits import costs, dominant, limits
from longtail.capacity_plan import erlang_c, fewest_replicas, passes, plan, wait_p99_s

RATES: dict[RateName, Rate] = {name: Rate(value=100.0, origin="given") for name in get_args(RateName)}
WORK: dict[str, Any] = {"users": 36_000.0, "items": 7200.0, "events_per_day": 1e6}
SHAPE: dict[str, Any] = {
    "prompt_tokens": 800,
    "shared_prompt_tokens": 600,
    "answer_tokens": 100,
    "user_dim": 10,
    "profile_dim": 6,
    "text_dim": 6,
    "item_dim": 20,
    "user_codes": (3, 8),
    "item_codes": (2, 4),
    "user_iterations": 5,
    "item_iterations": 5,
    "id_dim": 16,
    "optimizer_copies": 1,
    "epochs": 2,
    "batch_size": 1000,
    "dense_parameters": 1000,
    "user_shards": 2,
    "item_shards": 2,
    "workers": 4,
}
LARGE = {"users": 1e9, "items": 1e8, "events_per_day": 1e10}
FAST: dict[RateName, Rate] = {name: rate if name.endswith("bytes") else Rate(value=1e5, origin="given") for name, rate in RATES.items()}


def lines_of(work: dict[str, Any] | None = None, shape: dict[str, Any] | None = None, rates: dict[RateName, Rate] = RATES) -> list[Any]:
    return plan(Workload(**{**WORK, **(work or {})}), Shape(**{**SHAPE, **(shape or {})}), rates)


def values(work: dict[str, Any] | None = None, shape: dict[str, Any] | None = None, rates: dict[RateName, Rate] = RATES) -> dict[str, float]:
    lines = lines_of(work, shape, rates)
    assert len({one.name for one in lines}) == len(lines)
    return {one.name: one.value for one in lines}


def test_formulas_by_hand() -> None:
    found = values({"daily_active_frac": 0.5, "refresh_days": 2, "train_days": 3, "log_days": 10, "deadline_h": 8, "snapshots_kept": 2})
    assert found["profiles: all users, once: device-hours"] == pytest.approx(36_000 * (200 / 100 + 100 / 100) / 3600) == 30
    assert found["profiles: all users, once: devices to be done in 8 h"] == 4
    assert found["profiles: users who acted since the last refresh"] == 27_000
    assert found["embedding: all items, once: device-hours"] == pytest.approx(7200 / 100 / 3600)
    assert found["codes: users, fit: CPU-hours"] == pytest.approx(2 * 36_000 * 8 * 10 * 3 * 6 / 100 / 3600)
    assert found["codes: items, encode: CPU-hours"] == pytest.approx(2 * 7200 * 4 * 20 * 2 / 100 / 3600)
    assert found["codes: users, fit: answers to one pass, in the object store"] == pytest.approx(2 * (8 * 10 * 8 + 8 * 8) / GIB)
    assert found["codes: users, fit: through the driver"] == pytest.approx(18 * 2 * (8 * 10 * 8 + 8 * 8 + 8 * 10 * 4) / GIB)
    assert found["peers: a snapshot's neighbours: CPU-hours"] == pytest.approx(2 * 36_000**2 * 10 / 100 / 3600)
    assert found["training: rows"] == 3e6
    assert found["training: what a step moves in the ID tables of each worker"] == pytest.approx(2 * 3 * 43_200 * 16 * 4 / GIB)
    table_s = 6000 * 4 * (2 * 3 * 43_200 * 16 * 4) / 100
    assert found["training: one ranker: device-hours"] == pytest.approx((3e6 * 2 / 100 + table_s) / 3600)
    assert found["training: ID tables, gradients and optimiser's state, on each worker"] == pytest.approx(3 * 43_200 * 16 * 4 / GIB)
    assert found["training: network of each worker, a step"] == pytest.approx(2 * 3 / 4 * (1000 * 4 + 43_200 * 16 * 4) / GIB)
    assert found["serving: a request, without waiting"] == pytest.approx(1000 * (1 / 100 + 200 / 100))
    assert found["serving: replicas by utilisation"] == math.ceil(1000 * 2.01 / 0.6)
    assert found["memory: a k-means shard of the users"] == pytest.approx(2 * 18_000 * 10 * 4 / GIB)
    assert found["memory: the logs stage, one process"] == pytest.approx(1e7 * 100 / GIB)
    assert found["storage: logs"] == pytest.approx(1e6 * 365 * 100 / TIB)
    assert found["storage: user vectors, of profiles and of all spaces"] == pytest.approx(2 * 36_000 * 16 * 4 / TIB)


def worked_out(formula: str) -> float:
    """What a printed formula gives."""
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", formula).replace(" x ", " * ")
    assert re.fullmatch(r"[\d.e+\-*/() ]*((ceil|log)[\d.e+\-*/() ]*)*", plain), formula
    return float(eval(plain, {"ceil": math.ceil, "log": math.log, "__builtins__": {}}))


@pytest.mark.parametrize("work", [{}, LARGE, {**LARGE, "runs": 1600.0, "replication": 3.0, "peak_requests_per_s": 5e4}])
def test_every_printed_formula_gives_its_result(work: dict[str, Any]) -> None:
    lines = lines_of(work, rates=FAST)
    lines += costs(lines, Prices(device_hour=2, cpu_hour=0.05, replica_hour=0.2, gb_month=0.02))
    for line in lines:
        assert worked_out(line.formula) == pytest.approx(
            line.value, rel=0.04, abs=1.01 if "ceil" in line.formula else 0.15 if "log" in line.formula else 1e-12
        ), line.name


@settings(deadline=None)
@given(st.floats(0.01, 100))
def test_units_hold(times: float) -> None:
    """With all rates faster, hours fall and bytes stay; with all sizes larger, measured bytes grow and hours stay: a unit mixed up would show."""
    lines = {line.name: line for line in lines_of(rates=FAST)}
    faster = values(rates={name: Rate(value=rate.value * (times if name.endswith("per_s") else 1), origin="x") for name, rate in FAST.items()})
    larger = values(rates={name: Rate(value=rate.value * (1 if name.endswith("per_s") else times), origin="x") for name, rate in FAST.items()})
    measured = ("logs", "profiles", "training rows", "the logs stage, one process", "a process that computes features")
    measured += ("facts of all users, in the object store",)
    for name, line in lines.items():
        if line.unit == "h":
            assert faster[name] == pytest.approx(line.value / times)
        if line.unit in ("h", "users", "rows", "events", "replicas", "ms"):
            assert larger[name] == line.value
        if line.unit in ("GiB", "TiB"):
            assert faster[name] == line.value
            if line.part != "totals":
                assert larger[name] == pytest.approx(line.value * (times if line.what in measured else 1)), name
    assert faster["serving: a request, without waiting"] == pytest.approx(lines["serving: a request, without waiting"].value / times)


def test_passes_are_those_of_a_fit() -> None:
    from longtail.codes import CodebookSettings, LocalShards, fit_codebook

    class Counting(LocalShards):
        asked = 0

        def step(self, space: Any, centroids_KD: Any) -> Any:
            Counting.asked += 1
            return super().step(space, centroids_KD)

        def assign(self, space: Any, centroids_KD: Any) -> Any:
            Counting.asked += len(centroids_KD) > 1
            return super().assign(space, centroids_KD)

    vectors = np.random.default_rng(0).standard_normal((3000, 6), dtype=np.float32)
    whole = LocalShards.split(vectors, 100, 2)
    shards = Counting(whole._shards, whole._owners, 100)
    fit = fit_codebook(shards, 3000, 6, CodebookSettings(num_stages=3, codebook_size=16, iterations=4), 0)
    assert fit.iterations_S == [4, 4, 4]
    assert Counting.asked == 3 * (4 + 1)
    assert passes(3, 4) == Counting.asked


def test_a_shard_answers_with_the_bytes_that_the_plan_counts() -> None:
    from longtail.codes import LocalShards
    from longtail.kmeans import Space

    vectors = np.random.default_rng(0).standard_normal((5000, 10), dtype=np.float32)
    for num_shards in (1, 4):
        answers = LocalShards.split(vectors, 1000, num_shards).step(Space(2.0**-20, np.zeros((0, 8, 10), np.float32), 0.03), vectors[:8])
        assert sum(one.sums_KD.nbytes + one.counts_K.nbytes for one in answers) == num_shards * (8 * 10 * 8 + 8 * 8)


def test_gradients_of_id_tables_are_dense_as_the_plan_says() -> None:
    import torch

    from longtail.rankers.layers import IdTable

    table = IdTable(1000, 4)
    table(torch.tensor([3, 5])).sum().backward()
    assert table.weight.grad is not None
    assert not table.weight.grad.is_sparse
    assert table.weight.grad.numel() == 4000


def test_one_worker_sends_nothing_and_copies_of_what_is_stored_count() -> None:
    assert values(shape={"workers": 1})["training: network of each worker, a step"] == 0
    assert values({"replication": 3})["storage: item vectors, of texts and z"] == pytest.approx(3 * values()["storage: item vectors, of texts and z"])


def test_a_text_of_the_facts_costs_no_device() -> None:
    rates = {name: rate for name, rate in RATES.items() if "tokens" not in name}
    lines = lines_of(shape={"language_model": False}, rates=rates)
    assert [line.what for line in lines if line.part == "profiles"] == ["users who acted since the last refresh"]
    assert "training of one ranker takes" in dominant(Workload(**WORK), lines)[0]


@settings(deadline=None)
@given(st.sampled_from(["users", "items", "events_per_day"]), st.floats(1, 1e10), st.floats(1, 100))
def test_more_never_costs_less(name: str, size: float, times: float) -> None:
    small, large = values({name: size}, rates=FAST), values({name: size * times}, rates=FAST)
    assert all(large[line] >= small[line] * (1 - 1e-12) for line in small)
    assert all(math.isfinite(value) and value >= 0 for value in large.values())


@settings(deadline=None)
@given(st.floats(1, 1e6), st.floats(1, 50))
def test_more_requests_or_candidates_never_need_fewer_replicas(requests: float, times: float) -> None:
    replicas = "serving: replicas at the peak, by the wait too"
    base = {"peak_requests_per_s": requests, "candidates": 10.0}
    small = values(base, rates=FAST)[replicas]
    assert values({**base, "peak_requests_per_s": requests * times}, rates=FAST)[replicas] >= small
    assert values({**base, "candidates": 10 * times}, rates=FAST)[replicas] >= small


@settings(deadline=None)
@given(st.floats(0.001, 1), st.floats(0.01, 400))
def test_those_who_acted_are_not_more_than_there_are(active: float, days: float) -> None:
    work = Workload(**{**WORK, "daily_active_frac": active, "refresh_days": days})
    assert 0 <= refreshed_users(work) <= work.users
    if days >= 1:
        assert refreshed_users(work) >= work.users * active * (1 - 1e-9)


def test_the_wait_at_replicas() -> None:
    assert erlang_c(1, 0.6) == pytest.approx(0.6), "M/M/1: whoever comes while it is busy waits"
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3), "a**2 / 2 x 2 / (2 - a) over 1 + a + that"
    assert wait_p99_s(1, 0.6, 0.1) == pytest.approx(math.log(60) * 0.1 / 0.4)
    assert wait_p99_s(100_000, 60_000, 0.1) == 0
    assert fewest_replicas(0.6, 0.1, 0.6, 10) == 1
    tight = fewest_replicas(0.6, 0.1, 0.6, 0.05)
    assert wait_p99_s(tight, 0.6, 0.1) <= 0.05 < wait_p99_s(tight - 1, 0.6, 0.1)


def test_the_wait_is_that_of_a_simulated_queue() -> None:
    rng, arrivals, service_s, replicas = np.random.default_rng(3), 25.0, 0.1, 4
    free, waits = np.zeros(replicas), np.empty(200_000)
    now = np.cumsum(rng.exponential(1 / arrivals, len(waits)))
    taken = rng.exponential(service_s, len(waits))
    for number, (at, needs) in enumerate(zip(now, taken, strict=True)):
        first = free.argmin()
        begins = max(at, free[first])
        free[first], waits[number] = begins + needs, begins - at
    assert np.mean(waits > 0) == pytest.approx(erlang_c(replicas, arrivals * service_s), rel=0.05)
    assert np.quantile(waits, 0.99) == pytest.approx(wait_p99_s(replicas, arrivals * service_s, service_s), rel=0.1)


def said_of(work: dict[str, Any], shape: dict[str, Any], room: dict[str, Any], rates: dict[RateName, Rate] = FAST) -> list[str]:
    workload, of_shape = Workload(**{**WORK, **work}), Shape(**{**SHAPE, **shape})
    return limits(workload, of_shape, plan(workload, of_shape, rates), Room(**room))


def test_what_does_not_fit_is_said_with_what_helps_and_that_helps() -> None:
    roomy = {"device_gib": 1e6, "node_gib": 1e9, "nodes": 1}
    slow_is_fine = {"deadline_h": 1e12}
    assert said_of({**LARGE, **slow_is_fine}, {}, roomy) == []
    # A device's memory: the width that is named fits, the next one does not.
    (said,) = said_of({**LARGE, **slow_is_fine}, {}, {**roomy, "device_gib": 80})
    width = int(re.search(r"id_dim = (\d+) would fit", said)[1])  # type: ignore[index]
    assert said_of({**LARGE, **slow_is_fine}, {"id_dim": width}, {**roomy, "device_gib": 80}) == []
    assert said_of({**LARGE, **slow_is_fine}, {"id_dim": width + 1}, {**roomy, "device_gib": 80}) != []
    # A k-means shard.
    work, room = {"users": 1e9, "events_per_day": 1.0, **slow_is_fine}, {**roomy, "node_gib": 12, "nodes": 1e9}
    (said,) = said_of(work, {}, room)
    shards = int(re.search(r"codes.user.compute.num_actors = (\d+)", said)[1])  # type: ignore[index]
    assert said_of(work, {"user_shards": shards}, room) == []
    assert said_of(work, {"user_shards": shards - 1}, room) != []
    # The object store.
    room = {**roomy, "node_gib": 4, "nodes": 30}
    shape = {"user_shards": 1_000_000_000, "user_codes": (3, 512)}
    (said,) = [one for one in said_of(work, shape, room) if "answer each pass" in one]
    shards = int(re.search(r"codes.user.compute.num_actors = (\d+)", said)[1])  # type: ignore[index]
    assert not any("answer each pass" in one for one in said_of(work, {**shape, "user_shards": shards}, room))
    assert any("answer each pass" in one for one in said_of(work, {**shape, "user_shards": shards + 1}, room))


def test_the_runs_that_are_named_fit() -> None:
    room = {"device_gib": 1e6, "node_gib": 100, "nodes": 1e9}
    work = {**LARGE, "deadline_h": 1e12}
    (said,) = [one for one in said_of(work, {"user_shards": 10_000, "item_shards": 10_000}, room) if "runs" in one]
    runs = int(re.search(r"--workload runs=(\d+)", said)[1])  # type: ignore[index]
    assert said_of({**work, "runs": runs}, {"user_shards": 10_000, "item_shards": 10_000}, room) == []
    assert said_of({**work, "runs": runs - 1}, {"user_shards": 10_000, "item_shards": 10_000}, room) != []


def test_a_run_is_a_share_of_the_users_and_the_totals_are_of_all() -> None:
    whole, split = values(LARGE, rates=FAST), values({**LARGE, "runs": 10}, rates=FAST)
    assert split["run: users of a run"] == 1e8
    assert split["profiles: a refresh: device-hours"] == pytest.approx(whole["profiles: a refresh: device-hours"] / 10)
    assert split["totals: device-hours once, at the start"] == pytest.approx(whole["totals: device-hours once, at the start"])
    assert split["peers: a snapshot's neighbours: CPU-hours"] == pytest.approx(whole["peers: a snapshot's neighbours: CPU-hours"] / 100)
    assert split["totals: storage"] > whole["totals: storage"], "each run has vectors of all the items"


def test_slow_training_names_its_batch_and_its_workers() -> None:
    work, shape, roomy = {**LARGE, "deadline_h": 8}, {"workers": 1, "peers": "none"}, {"device_gib": 1e6, "node_gib": 1e9, "nodes": 1}
    rates = {**FAST, "table_bytes_per_s": Rate(value=1e11, origin="x")}
    (said,) = [one for one in said_of(work, shape, roomy, rates) if "one ranker trains" in one]
    batch = float(re.search(r"from ([\d.e,]+) on the tables", said)[1].replace(",", ""))  # type: ignore[index]
    found = values(work, {**shape, "batch_size": int(batch)}, rates)
    hours, least = found["training: one ranker: hours, but for the network"], found["training: one ranker: hours, with tables that cost nothing"]
    assert hours == pytest.approx(2 * least, rel=0.01)


def test_costs_are_prices_times_what_is_needed() -> None:
    lines = lines_of(rates=FAST)
    found, total = {line.name: line.value for line in lines}, {line.what: line.value for line in costs(lines, Prices(device_hour=3, gb_month=2))}
    assert total["devices"] == pytest.approx(3 * found["totals: device-hours a day"])
    assert total["storage"] == pytest.approx(2 * found["totals: storage"] * 2**40 / 1e9)
    assert total["all of it, 30 days"] == pytest.approx(30 * total["devices"] + total["storage"])
    assert costs(lines, Prices()) == []


def test_a_missing_rate_is_named_with_where_to_give_it() -> None:
    with pytest.raises(ValueError, match=r"the rate candidates_per_s \(candidates/s of one replica\) is missing. Write \[candidates_per_s\].*--calibrate"):
        lines_of(rates={name: rate for name, rate in RATES.items() if name != "candidates_per_s"})


def test_without_the_network_s_rate_there_are_bytes_and_no_hours() -> None:
    without = values(rates={name: rate for name, rate in RATES.items() if name != "network_bytes_per_s"})
    assert set(values()) - set(without) == {f"{name}: hours on the network" for name in ("codes: users, fit", "codes: items, fit", "training: one ranker")}


def test_a_window_of_training_longer_than_the_logs_is_refused() -> None:
    with pytest.raises(ValueError, match="train_days = 100 must not exceed log_days = 90"):
        Workload(**{**WORK, "train_days": 100})


def test_numbers_are_short() -> None:
    assert [n(value) for value in (0.123456, 12.0, 1234.5, 123_456.0, 1e9, 1.2e10, 2.5e-7)] == ["0.123", "12", "1,234", "123,500", "1e9", "1.2e10", "2.5e-7"]
