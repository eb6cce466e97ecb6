"""Behaviour pairs: hand-worked weights, an exact swing beside them, bounds, and what the window must keep out."""

import itertools
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from longtail import schema
from longtail.pairs import PairRules, Pairs, balanced, build_pairs, sample_pairs

START = datetime(2026, 1, 1, tzinfo=UTC)
Row = tuple[str, str, float, str, str | None]  # user, item, day, kind, request


def table(rows: list[Row]) -> pa.Table:
    return pa.table(
        {
            "user_id": [row[0] for row in rows],
            "item_id": [row[1] for row in rows],
            "ts": pa.array([START + timedelta(days=row[2]) for row in rows], schema.TIMESTAMP),
            "kind": [row[3] for row in rows],
            "request_id": pa.array([row[4] for row in rows], pa.string()),
        }
    )


def pairs_of(rows: list[Row], items: str = "abcdef", seed: int = 7, **rules: object) -> dict[str, float]:
    """Weights by pair, such as {"ab": 0.5}."""
    found = build_pairs(table(rows), pa.array(list(items)), PairRules(**rules), seed)  # type: ignore[arg-type]
    assert (found.left_P < found.right_P).all()
    return {items[left] + items[right]: float(weight) for left, right, weight in zip(found.left_P, found.right_P, found.weight_P, strict=True)}


def exact(rows: list[Row], window_days: float, alpha: float) -> dict[str, float]:
    """The slow, obvious version: all pairs of one user's events, all pairs of a pair's users."""
    owned, users = defaultdict(set), defaultdict(set)
    for user, item, *_ in rows:
        owned[user].add(item)
    for (user, item, day, *_), (other, item2, day2, *_) in itertools.combinations(rows, 2):
        if user == other and item != item2 and abs(day - day2) <= window_days:
            users["".join(sorted(item + item2))].add(user)
    pairs_of_users = {pair: itertools.combinations_with_replacement(sorted(members), 2) for pair, members in users.items()}
    return {pair: sum(1 / (alpha + len(owned[u] & owned[v])) for u, v in both) for pair, both in pairs_of_users.items()}


def random_rows(num_events: int, num_users: int, items: str = "abcdef", seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [(f"u{rng.integers(num_users)}", items[rng.integers(len(items))], float(rng.integers(60)), "purchase", None) for _ in range(num_events)]


def test_weights_by_hand() -> None:
    rows: list[Row] = [
        ("u", "a", 0, "purchase", None),
        ("u", "b", 5, "purchase", None),
        ("u", "c", 40, "purchase", None),  # too late for a pair
        ("v", "a", 1, "purchase", None),
        ("v", "b", 1, "purchase", None),
        ("v", "b", 2, "purchase", None),  # again: counts once
    ]
    # ab: u alone 1/(1+3), v alone 1/(1+2), u with v 1/(1+2).
    assert pairs_of(rows) == pytest.approx({"ab": 1 / 4 + 1 / 3 + 1 / 3})


@pytest.mark.parametrize("alpha", [0.5, 2.0])
@pytest.mark.parametrize("window_days", [3.0, 20.0, 100.0])
def test_equal_to_the_exact_swing_within_the_bounds(alpha: float, window_days: float) -> None:
    rows = random_rows(150, 7)
    wanted = exact(rows, window_days, alpha)
    assert pairs_of(rows, window_days=window_days, swing_alpha=alpha, max_partners=200, max_users_per_pair=50) == pytest.approx(wanted)


def test_capped_users_keep_the_weight_in_expectation() -> None:
    rows = random_rows(400, 25)
    wanted = exact(rows, 30.0, 1.0)
    draws = [pairs_of(rows, seed=seed, window_days=30.0, max_partners=1000, max_users_per_pair=4) for seed in range(60)]
    for pair, weight in wanted.items():
        assert np.mean([draw[pair] for draw in draws]) == pytest.approx(weight, rel=0.1)


def test_partners_are_bounded_and_spread_over_the_window() -> None:
    items = [f"i{number:03d}" for number in range(200)]
    rows: list[Row] = [("u", item, number / 100, "purchase", None) for number, item in enumerate(items)]
    found = build_pairs(table(rows), pa.array(items), PairRules(window_days=10, max_partners=5), 7)
    assert np.bincount(found.left_P).max() == 5
    gaps = found.right_P - found.left_P
    assert gaps.min() >= 1
    assert gaps[found.left_P < 100].mean() > 30


def test_a_basket_is_one_users_request() -> None:
    rows: list[Row] = [
        ("u", "a", 0, "purchase", "r1"),
        ("u", "b", 0, "purchase", "r1"),
        ("u", "c", 0, "purchase", "r2"),
        ("v", "d", 0, "purchase", "r1"),
        ("v", "e", 0, "impression", "r1"),
        ("v", "f", 0, "purchase", None),
    ]
    assert set(pairs_of(rows, kinds=("basket",))) == {"ab"}
    assert build_pairs(table(rows), pa.array(list("abcdef")), PairRules(kinds=("basket",)), 7).dropped == {"unknown_item": 0, "no_request_id": 1}


def test_each_kind_looks_at_its_own_events() -> None:
    rows: list[Row] = [
        ("u", "a", 0, "click", None),
        ("u", "b", 0, "click", None),
        ("u", "c", 0, "purchase", None),
        ("u", "d", 0, "purchase", None),
        ("u", "e", 0, "impression", None),
    ]
    assert set(pairs_of(rows, kinds=("co_click",))) == {"ab"}
    assert set(pairs_of(rows, kinds=("co_purchase",))) == {"cd"}
    assert set(pairs_of(rows, kinds=("co_click", "co_purchase"))) == {"ab", "cd"}


def test_unknown_items_are_dropped_and_counted_and_no_events_make_no_pairs() -> None:
    rows: list[Row] = [("u", "a", 0, "purchase", None), ("u", "z", 0, "purchase", None), ("u", "b", 0, "purchase", None)]
    found = build_pairs(table(rows), pa.array(list("ab")), PairRules(), 7)
    assert (len(found), found.dropped["unknown_item"]) == (1, 1)
    assert len(build_pairs(table(rows), pa.array(list("ab")), PairRules(kinds=("co_click",)), 7)) == 0
    assert len(build_pairs(table(rows[:1]), pa.array(list("ab")), PairRules(), 7)) == 0


def test_one_seed_gives_the_same_pairs() -> None:
    rows = random_rows(300, 20)
    bounds = {"max_partners": 2, "max_users_per_pair": 2}
    assert pairs_of(rows, seed=1, **bounds) == pairs_of(rows, seed=1, **bounds)
    assert pairs_of(rows, seed=1, **bounds) != pairs_of(rows, seed=2, **bounds)


def test_balanced_weights_by_hand() -> None:
    pairs = Pairs(np.array([0, 0]), np.array([1, 2]), np.array([3.0, 1.0]))  # sums: 4, 3, 1
    np.testing.assert_allclose(balanced(pairs, 4, 0.5).weight_P, [3 / 12**0.5, 1 / 4**0.5])
    np.testing.assert_allclose(balanced(pairs, 4, 1.0).weight_P, [1 / 4, 1 / 4])
    np.testing.assert_array_equal(balanced(pairs, 4, 0.0).weight_P, pairs.weight_P)


def test_balance_keeps_a_popular_item_from_filling_the_draws() -> None:
    rng = np.random.default_rng(0)
    left, right = np.triu_indices(60, 1)
    popular = np.exp(rng.normal(size=60))
    pairs = Pairs(left, right, popular[left] * popular[right])
    drawn = [balanced(pairs, 60, power).neighbours(60).sum(axis=1) for power in (0.0, 0.5, 1.0)]
    largest = [(share / share.sum()).max() for share in drawn]  # an even share is 1/60
    assert largest[0] > 1.5 * largest[1] > 1.5 * largest[2]


def test_sampled_pairs_stand_for_all_of_them() -> None:
    rng = np.random.default_rng(0)
    weight = rng.pareto(1.5, 3000) + 0.01
    pairs = Pairs(np.arange(3000), np.arange(3000) + 1, weight)
    draws = [sample_pairs(pairs, 300, seed) for seed in range(40)]
    assert all(len(draw) == 300 and (np.diff(draw.left_P) > 0).all() for draw in draws)
    assert np.mean([draw.weight_P.sum() for draw in draws]) == pytest.approx(weight.sum(), rel=0.03)
    heavy = np.argsort(-weight)[:20]
    assert np.mean([np.isin(heavy, draw.left_P).mean() for draw in draws]) > 0.95
    assert sample_pairs(pairs, 3000, 0) is pairs


def test_many_events_take_seconds() -> None:
    rng = np.random.default_rng(0)
    num_events, num_users, num_items = 100_000, 1_000, 5_000
    users = rng.integers(0, num_users, num_events)
    items = np.minimum(rng.pareto(1.0, num_events) * 200, num_items - 1).astype(int)
    events = pa.table(
        {
            "user_id": pa.array(users.astype(str)),
            "item_id": pa.array(items.astype(str)),
            "ts": pa.array(rng.integers(0, 180 * 86_400, num_events) * 1_000_000, schema.TIMESTAMP),
            "kind": pa.array(["purchase"] * num_events),
            "request_id": pa.nulls(num_events, pa.string()),
        }
    )
    started = time.process_time()
    found = build_pairs(events, pa.array(np.arange(num_items).astype(str)), PairRules(), 7)
    assert len(found) > 200_000
    assert time.process_time() - started < 15
