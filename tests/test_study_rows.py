"""A study's rows: who is in which slice, by hand and against a slow recount, as known when the window opened."""

import numpy as np
import pyarrow as pa
import pytest

from longtail import schema
from longtail.behaviour import Behaviour
from longtail.entities import Entities
from longtail.hashing import stable_uint64
from longtail.study_rows import RULES, SHARES, WindowRows, item_rows, order_counts, window_rows
from tests import planted_artifacts, small_world

A, B, C, D = 1, 2, 3, 4


def window(users: list[str], opens: float, events: list[tuple[str, str, float, str]] | None = None, truncated: list[str] | None = None) -> WindowRows:
    samples = pa.table({"example_id": np.arange(len(users)) + 100, "user_id": users, "label": pa.array([row % 2 for row in range(len(users))], pa.int8())})
    given = None if truncated is None else pa.array(truncated, pa.string())
    return window_rows(samples, small_world.entities(), small_world.behaviour(events), small_world.us(opens), given)


def who(rows: WindowRows, name: str) -> set[int]:
    """The users of a slice, all of whose rows are in it."""
    found = set(rows.user_N[rows.slices[name]].tolist())
    assert (np.isin(rows.user_N, list(found)) == rows.slices[name]).all(), name
    return found


def test_orders_are_distinct_times_of_the_strongest_kind_before() -> None:
    # a bought tea on day 1, milk on day 2 (and clicked tea), soap on day 12; b on days 3 and 4; c on days 5 and 11
    behaviour = small_world.behaviour()
    assert order_counts(behaviour, 4, small_world.us(14)).tolist() == [0, 3, 2, 2, 0]
    assert order_counts(behaviour, 4, small_world.us(12)).tolist() == [0, 2, 2, 2, 0]
    basket = small_world.behaviour([("b", "tea", 3, "purchase"), ("b", "milk", 3, "purchase"), ("b", "soap", 3, "click"), ("b", "soap", 4, "purchase")])
    assert order_counts(basket, 4, small_world.us(14)).tolist() == [0, 0, 2, 0, 0]


def test_where_nothing_is_of_the_strongest_kind_any_event_is_an_order() -> None:
    clicks = small_world.behaviour([("b", "tea", 3, "click"), ("b", "milk", 3, "click"), ("b", "soap", 4, "click")])
    assert order_counts(clicks, 4, small_world.us(14)).tolist() == [0, 0, 2, 0, 0]


def test_slices_by_hand() -> None:
    rows = window([*"abcd", *"aabd"], opens=4, truncated=["b", "d"])
    assert rows.example_id_N.tolist() == list(range(100, 108))
    assert rows.user_N.tolist() == [A, B, C, D, A, A, B, D]
    assert rows.label_N.tolist() == [0, 1] * 4
    # strictly before day 4: a had three events in two orders, b one
    assert who(rows, "all") == {A, B, C, D}
    assert who(rows, "no_history") == {C, D}
    assert who(rows, "orders_1") == {B}
    assert who(rows, "orders_1_3") == {A, B}
    assert who(rows, "missing_attributes") == {D}
    assert who(rows, "truncated") == {B, D}
    assert who(rows, "low50") == {C, D}
    assert len(who(rows, "low20")) == 1
    assert who(rows, "low20") < {C, D}


def test_slices_are_of_those_who_are_in_the_window() -> None:
    rows = window(["a", "b", "b"], opens=14)
    assert who(rows, "low50") == {B}
    assert who(rows, "no_history") == set()
    assert "truncated" not in rows.slices


def test_later_events_and_labels_move_nobody() -> None:
    later = [*small_world.BEHAVIOUR, ("d", "tea", 14.0, "purchase"), ("b", "tea", 20, "purchase")]
    users = [*"abcd"]
    before, after = window(users, 14), window(users, 14, later)
    assert {name: which.tolist() for name, which in after.slices.items()} == {name: which.tolist() for name, which in before.slices.items()}
    assert who(window(users, 14.5, later), "no_history") == set()


def test_without_attributes_none_is_missing() -> None:
    entities = Entities.build(small_world.USERS.select(["user_id"]), small_world.ITEMS, planted_artifacts.INFO, 3)
    samples = pa.table({"example_id": [0], "user_id": ["a"], "label": pa.array([1], pa.int8())})
    rows = window_rows(samples, entities, small_world.behaviour(), small_world.us(14), None)
    assert "missing_attributes" not in rows.slices


def test_every_slice_has_its_rule_in_words() -> None:
    assert set(window(["a"], 14, truncated=["a"]).slices) == set(RULES["gauc"])


@pytest.mark.parametrize("seed", range(3))
def test_shares_and_deciles_agree_with_a_slow_ranking(seed: int) -> None:
    """By events, and among equals by a hash of the id, which no label and no order of rows can touch."""
    rng = np.random.default_rng(seed)
    names = [f"user {row:02d}" for row in range(53)]
    counts = dict(zip(names, (rng.integers(0, 8, 53) ** 2).tolist(), strict=True))
    events = [(user, str(rng.choice(["tea", "milk"])), float(rng.uniform(0, 14)), "purchase") for user, count in counts.items() for _ in range(count)]
    entities = Entities.build(pa.table({"user_id": names}), small_world.ITEMS, planted_artifacts.INFO, 3)
    behaviour = Behaviour.build(small_world.events(events), entities, ("click", "purchase"))
    users = [str(user) for user in rng.choice(names, 200)]
    samples = pa.table({"example_id": np.arange(200), "user_id": users, "label": pa.array(rng.integers(0, 2, 200).astype(np.int8))})
    rows = window_rows(samples, entities, behaviour, small_world.us(14), pa.array(names[:5], schema.USERS.field("user_id").type))
    present = sorted(set(users), key=lambda user: (counts[user], stable_uint64(user)))
    for name, (low, high) in SHARES.items():
        chosen = {user for rank, user in enumerate(present) if low <= rank / len(present) < high}
        assert {names[row - 1] for row in who(rows, name)} == chosen
    tenths = [who(rows, f"decile_{number}") for number in range(1, 11)]
    assert set.union(*tenths) == who(rows, "all")
    assert sum(map(len, tenths)) == len(present)
    assert tenths[0] | tenths[1] == who(rows, "low20")
    assert tenths[8] | tenths[9] == who(rows, "high20")
    order = rng.permutation(200)
    again = window_rows(samples.take(pa.array(order)), entities, behaviour, small_world.us(14), None)
    assert all(np.array_equal(again.slices[name], which[order]) for name, which in rows.slices.items() if name != "truncated")


def test_some_of_the_rows_leave_everybody_in_their_slices() -> None:
    """Rows with a label for a head: who is quiet is decided by the whole window."""
    rows = window([*"abcd", *"aabd"], opens=4)
    kept = np.array([False, True, False, True, True, False, False, False])
    some = rows.where(kept)
    assert some.example_id_N.tolist() == [101, 103, 104]
    assert (some.user_N.tolist(), some.label_N.tolist()) == ([B, D, A], [1, 1, 0])
    assert {name: which.tolist() for name, which in some.slices.items()} == {name: which[kept].tolist() for name, which in rows.slices.items()}
    assert who(some, "low50") == {D}


def items_window(pairs: list[tuple[str, str]], opens: float, ages: list[float | None], made_cold: list[str] | None = None) -> WindowRows:
    columns = {
        "user_id": [user for user, _ in pairs],
        "item_id": [item for _, item in pairs],
        "label": pa.array([row % 2 for row in range(len(pairs))], pa.int8()),
    }
    samples = pa.table({"example_id": np.arange(len(pairs)), **columns, "item_age_days": pa.array(ages, pa.float32())})
    given = None if made_cold is None else pa.array(made_cold, pa.string())
    return item_rows(samples, small_world.entities(), small_world.behaviour(), small_world.us(opens), given)


def test_slices_of_items_by_hand() -> None:
    pairs = [("a", "tea"), ("b", "odd"), ("c", "soap"), ("a", "never seen")]
    rows = items_window(pairs, 14, [19.9, 20, 300.5, None], made_cold=["tea"])
    assert set(rows.slices) == set(RULES["auc"])
    found = {name: np.flatnonzero(which).tolist() for name, which in rows.slices.items()}
    met = [name for name, place in (("tea", 0), ("odd", 1), ("soap", 2)) if any(item == name and day < 14 for _, item, day, _ in small_world.BEHAVIOUR)]
    assert "tea" in met
    assert "odd" not in met
    assert found["zero_shot"] == [1, 3]
    assert found["cold_1_5"] == [0, 2]
    assert (found["cold_6_20"], found["warm"], found["cold_lt100"], found["all"]) == ([], [], [0, 1, 2, 3], [0, 1, 2, 3])
    assert found["natural_cold"] == [1, 2, 3]
    assert (found["new_items"], found["popular_items"]) == ([0], [2])
    assert rows.user_N.tolist() == [A, B, C, A]
    # a had four events, b and c two: with ranks 0, 1/3 and 2/3 the latter are the lower half
    assert (found["quiet_cold"], found["busy_cold"], found["quiet_warm"], found["busy_warm"]) == ([1, 2], [0, 3], [], [])
    early = items_window(pairs, 0.5, [None] * 4)
    assert early.slices["zero_shot"].all(), "what comes later is not known"
    assert early.slices["natural_cold"].all()
    assert not early.slices["new_items"].any()
