"""The truncated world: whose events and labels stay, by hand, by property, on the real logs, and what it refuses."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from longtail import schema
from longtail.config import load
from longtail.logs import Logs, LogsSettings, build_logs, logs_from, read_source
from longtail.negatives import Negatives
from longtail.sources import tables
from longtail.sources.raw import Pools, RawLogs
from longtail.truncation import HIDDEN, OVER_WEEKS
from tests.tables_world import at, events_table, shop
from tests.test_logs import encoded, popularity_auc

CONFIGS = Path(__file__).parents[1] / "pipelines" / "configs"
STAGE_TABLES = ("users", "items", "events", "examples")


def row(name: str, user: str, day: float, kind: str, item: str | None = None, request: str | None = None, price: float | None = None) -> dict[str, Any]:
    """An event; `name` is its id."""
    return {"name": name, "user": user, "hour": 24 * day, "kind": kind, "item": item, "request": request, "price": price}


#: History before day 40, train to 70, validation to 80, test after; weeks turn at days 42, 49, 56, 63. Only `a` has three baskets and labels at both ends.
BY_HAND = [
    row("b first", "b", 0, "purchase", "x", "s1", price=2.0),
    row("a basket 1", "a", 1, "purchase", "x", "r1", price=100.0),
    row("a basket 2, one", "a", 5, "click", "y"),
    row("a basket 2, two", "a", 5, "click", "w"),
    row("a early search", "a", 9, "search"),
    row("a seen before basket 3", "a", 20, "impression", "x", "r3"),
    row("a basket 3, one", "a", 20.1, "click", "x", "r3"),
    row("a search between", "a", 21, "search"),
    row("a basket 1, late", "a", 22, "purchase", "z", "r1", price=100.0),
    row("a basket 3, late", "a", 23, "purchase", "x", "r3", price=4.0),
    row("a seen between", "a", 25, "impression", "y", "r4"),
    row("a basket 4", "a", 30, "click", "y"),
    row("a basket 4 goes on in train", "a", 30, "purchase", "y", "r5"),
    row("a basket 5, in train", "a", 40, "click", "z", "r5"),
    row("a seen in week 6", "a", 42, "impression", "x", "t1"),
    row("a took in week 6", "a", 42.1, "click", "x", "t1"),
    row("a seen late in week 6", "a", 48.9, "impression", "y", "t2"),
    row("a seen in week 7", "a", 49, "impression", "x", "t3"),
    row("a took in week 7", "a", 49.1, "click", "x", "t3"),
    row("a seen in week 8", "a", 56, "impression", "x", "t4"),
    row("a took in week 8", "a", 56.1, "click", "x", "t4"),
    row("a seen in week 9", "a", 63, "impression", "y", "t5"),
    row("a seen in validation", "a", 71, "impression", "x", "t6"),
    row("a took in validation", "a", 71.1, "click", "x", "t6"),
    row("a seen late in validation", "a", 79, "impression", "y", "t7"),
    row("a seen in test", "a", 81, "impression", "w", "t8"),
    row("a took in test", "a", 81.1, "click", "w", "t8"),
    row("a searched in test", "a", 82, "search"),
    # b: as much as a in train and test, and too few baskets
    row("b second", "b", 30, "click", "y", "s2"),
    row("b seen in week 6", "b", 42, "impression", "y", "s3"),
    row("b seen in week 7", "b", 50, "impression", "y", "s4"),
    row("b seen in week 8", "b", 57, "impression", "y", "s5"),
    row("b took in week 8", "b", 57.1, "click", "y", "s5"),
    row("b seen in test", "b", 90, "impression", "w", "s6"),
    # c: baskets enough, and no example in the test window
    row("c first", "c", 2, "click", "x", "u1"),
    row("c second", "c", 3, "click", "x", "u2"),
    row("c third", "c", 4, "click", "x", "u3"),
    row("c fourth", "c", 5, "click", "x", "u4"),
    row("c seen in week 6", "c", 43, "impression", "x", "u5"),
]
KEPT_OF_A = {"a basket 3, one", "a search between", "a basket 3, late", "a seen between", "a basket 4"}
TRUNCATE = {"users_frac": 0.9, "min_baskets": 2, "max_baskets": 2, "max_label_weeks": 2}


def world(rows: Sequence[Mapping[str, Any]]) -> RawLogs:
    events = events_table(rows)
    return RawLogs(
        users=pa.table({"user_id": ["c", "b", "a"]}),
        items=pa.table({"item_id": ["x", "y", "z", "w"], "title": ["one", "two", "three", "four"]}),
        events=events.set_column(0, schema.EVENTS.field("event_id"), pa.array([row["name"] for row in rows])),
        labels=replace(tables.own_labels({"impression", "click"}), outcome_window_h=24.0),
        negatives=Negatives(),
        rows_in=len(rows),
        price_from_history=True,
    )


def settings(**sections: object) -> LogsSettings:
    split = {"history_end": at(24 * 40), "train_end": at(24 * 80), "validation_frac": 0.25}
    return LogsSettings.model_validate({"source": "synthetic", "split": split, "censored_days": 0} | sections)


def column(logs: Logs, table: str, name: str) -> list[Any]:
    values: list[Any] = logs.tables[table].column(name).to_pylist()
    return values


def week(ts: datetime, logs: Logs) -> int:
    return (ts - logs.info.start).days // 7


def test_events_and_examples_that_stay_by_hand() -> None:
    rows = [row for row in BY_HAND if row["name"] != "a basket 4 goes on in train"]
    whole, logs = logs_from(world(rows), settings(), seed=1), logs_from(world(rows), settings(truncate=TRUNCATE), seed=1)
    assert encoded(logs.tables["truncated"], "user_id", "num_baskets") == [("a", 2)]
    assert logs.tables["truncated"].schema.equals(schema.TRUNCATED)
    assert logs.info.num_truncated == 1
    names = [row["name"] for row in rows]
    assert column(logs, "events", "event_id") == [name for name in names if not name.startswith("a ") or name in KEPT_OF_A]
    assert logs.dropped == {HIDDEN: sum(name.startswith("a ") for name in names) - len(KEPT_OF_A)}
    assert logs.rows_in == logs.info.num_events + sum(logs.dropped.values())
    # the windows are those of all events
    assert (logs.info.start, logs.info.history_end, logs.info.end) == (whole.info.start, whole.info.history_end, whole.info.end)

    fields = ("user_id", "item_id", "ts", "split", "request_id", "outcome")
    before, after = set(encoded(whole.tables["examples"], *fields)), set(encoded(logs.tables["examples"], *fields))
    weeks = {week(example[2], logs) for example in after if example[0] == "a" and example[3] == "train"}
    assert len(weeks) == 2
    gone = {example for example in before if example[0] == "a" and example[3] == "train" and week(example[2], logs) not in weeks}
    assert after == before - gone
    assert {week(example[2], logs) for example in before if example[0] == "a" and example[3] == "train"} == {6, 7, 8, 9}
    assert logs.info.positives_left_out == {OVER_WEEKS: sum(example[5] for example in gone)}
    assert sum(logs.info.num_examples.values()) == len(after)

    # z is nobody's now; w is b's, at day 90; what a paid in basket 1 is no price
    assert dict(encoded(whole.tables["items"], "item_id", "first_seen")) == {"x": at(0), "y": at(24 * 5), "z": at(24 * 22), "w": at(24 * 5)}
    assert dict(encoded(logs.tables["items"], "item_id", "first_seen")) == {"x": at(0), "y": at(24 * 25), "z": None, "w": at(24 * 90)}
    assert dict(encoded(whole.tables["items"], "item_id", "price")) == {"x": 4.0, "y": None, "z": 100.0, "w": None}
    assert dict(encoded(logs.tables["items"], "item_id", "price")) == {"x": 3.0, "y": None, "z": None, "w": None}


def test_a_basket_that_goes_on_after_the_history_keeps_what_was_before() -> None:
    logs = logs_from(world(BY_HAND), settings(truncate=TRUNCATE | {"min_baskets": 1, "max_baskets": 1}), seed=1)
    of_a = [name for name in column(logs, "events", "event_id") if name.startswith("a ")]
    assert of_a == ["a basket 4 goes on in train"]  # of the two baskets of day 30 the one with a request id


def test_a_first_sight_read_off_a_hidden_event_is_still_taken_for_one() -> None:
    raw = world(BY_HAND)
    given_time = [None, None, None, at(24 * 5)]  # of w, on the day of a's basket 2
    raw = replace(raw, items=raw.items.append_column("first_seen", pa.array(given_time, schema.TIMESTAMP)))
    first_seen = [column(logs_from(raw, settings(truncate=TRUNCATE, censored_days=days), seed=1), "items", "first_seen")[3] for days in (0, 20)]
    assert first_seen == [at(24 * 5), None]


def test_off_is_as_without_the_section() -> None:
    plain, off = settings(), settings(truncate={"users_frac": 0, "max_baskets": 3})
    first, second = (logs_from(world(BY_HAND), given, seed=1) for given in (plain, off))
    assert set(first.tables) == set(second.tables) == set(STAGE_TABLES)
    assert all(first.tables[name].equals(second.tables[name]) for name in STAGE_TABLES)
    assert (first.info, dict(first.dropped)) == (second.info, dict(second.dropped))
    assert second.info.num_truncated == 0
    assert plain.key_fields() == off.key_fields()
    assert "truncate" not in plain.key_fields()
    assert settings(truncate=TRUNCATE).key_fields()["truncate"] == TRUNCATE


@cache
def busy_shop() -> RawLogs:
    """Purchases only, some of them without a request id."""
    made = shop(num_users=40)
    requests = made["events"].column("request_id")
    requests = pc.if_else(pc.ends_with(requests, "7"), None, requests)
    events = made["events"].set_column(made["events"].column_names.index("request_id"), schema.EVENTS.field("request_id"), requests)
    return tables.raw_logs(made["users"], made["items"], events, (), ())


@cache
def sessions() -> RawLogs:
    """Impressions, clicks, later purchases and searches."""
    return read_source(LogsSettings.model_validate({"source": "synthetic", "synthetic": {"num_users": 60, "num_items": 60, "sessions_per_user": 30}}), seed=3)


def last_baskets(raw: RawLogs, logs: Logs, user: str, count: int) -> set[str]:
    """Ids of the events that `user` keeps, the slow way."""
    mine = [event for event in raw.events.filter(pc.equal(raw.events.column("user_id"), user)).to_pylist() if event["ts"] < logs.info.history_end]
    baskets: dict[object, list[dict[str, Any]]] = {}
    for event in mine:
        if event["kind"] in logs.info.behaviour_kinds:
            baskets.setdefault(event["request_id"] or event["ts"], []).append(event)
    kept = sorted(baskets.values(), key=lambda basket: min(event["ts"] for event in basket))[-count:]
    since = min(event["ts"] for event in kept[0])
    others = {event["event_id"] for event in mine if event["kind"] not in logs.info.behaviour_kinds and event["ts"] >= since}
    return {event["event_id"] for basket in kept for event in basket} | others


@hypothesis_settings(max_examples=20, deadline=None)
@given(
    is_shop=st.booleans(),
    seed=st.integers(0, 2**31),
    users_frac=st.floats(0.01, 0.99),
    baskets=st.tuples(st.integers(1, 4), st.integers(1, 4)).map(sorted),
    max_label_weeks=st.integers(1, 3),
)
def test_a_truncated_user_keeps_exactly_the_last_baskets(is_shop: bool, seed: int, users_frac: float, baskets: list[int], max_label_weeks: int) -> None:
    raw = busy_shop() if is_shop else sessions()
    truncate = {"users_frac": users_frac, "min_baskets": baskets[0], "max_baskets": baskets[1], "max_label_weeks": max_label_weeks}
    base = {"source": "synthetic", "split": {"history_frac": 0.4}}
    whole, logs = (logs_from(raw, LogsSettings.model_validate(base | extra), seed) for extra in ({}, {"truncate": truncate}))
    num_baskets = dict(encoded(logs.tables["truncated"], "user_id", "num_baskets"))
    assert 1 <= len(num_baskets) == logs.info.num_truncated
    assert all(baskets[0] <= count <= baskets[1] for count in num_baskets.values())
    kept: dict[str, set[str]] = {user: set() for user in num_baskets}
    for user, event in encoded(logs.tables["events"], "user_id", "event_id"):
        if user in kept:
            kept[user].add(event)
    assert kept == {user: last_baskets(raw, logs, user, count) for user, count in num_baskets.items()}
    events = logs.tables["events"].to_pylist()
    assert not [event for event in events if event["user_id"] in num_baskets and event["ts"] >= logs.info.history_end]
    taken = {(event["user_id"], event["request_id"] or event["ts"]) for event in events if event["kind"] in logs.info.behaviour_kinds}
    assert {user: sum(of == user for of, _ in taken) for user in num_baskets} == num_baskets
    # the others lose nothing
    assert len(events) - sum(map(len, kept.values())) == sum(user not in num_baskets for user in raw.events.column("user_id").to_pylist())
    assert logs.rows_in == len(events) + sum(logs.dropped.values())

    fields = ("user_id", "item_id", "ts", "split", "request_id", "outcome", "conversion")
    before, after = set(encoded(whole.tables["examples"], *fields)), set(encoded(logs.tables["examples"], *fields))
    weeks: dict[str, set[int]] = {user: set() for user in num_baskets}
    for user, _, ts, split, *_ in after:
        if user in weeks and split == "train":
            weeks[user].add(week(ts, logs))
    assert all(1 <= len(mine) <= max_label_weeks for mine in weeks.values())
    gone = {example for example in before if example[3] == "train" and example[0] in weeks and week(example[2], logs) not in weeks[example[0]]}
    assert after == before - gone
    assert logs.info.positives_left_out.get(OVER_WEEKS, 0) == sum(example[5] for example in gone)


def test_the_seed_decides_who_keeps_what() -> None:
    given = LogsSettings.model_validate({"source": "synthetic", "split": {"history_frac": 0.4}, "truncate": {"users_frac": 0.5, "max_baskets": 3}})
    first, again, other = (logs_from(busy_shop(), given, seed) for seed in (5, 5, 6))
    assert all(first.tables[name].equals(again.tables[name]) for name in (*STAGE_TABLES, "truncated"))
    assert not first.tables["truncated"].equals(other.tables["truncated"])
    assert column(first, "truncated", "user_id") == [user for user in column(first, "users", "user_id") if user in column(first, "truncated", "user_id")]


def test_samples_are_drawn_first_and_every_drop_has_one_reason() -> None:
    base = {"source": "synthetic", "split": {"history_frac": 0.4}, "sample": {"num_users": 30, "num_items": 30}}
    whole, logs = (logs_from(busy_shop(), LogsSettings.model_validate(base | extra), 5) for extra in ({}, {"truncate": {"users_frac": 0.5, "max_baskets": 3}}))
    assert column(logs, "users", "user_id") == column(whole, "users", "user_id")
    assert set(column(logs, "truncated", "user_id")) < set(column(logs, "users", "user_id"))
    assert {reason: count for reason, count in logs.dropped.items() if reason != HIDDEN} == whole.dropped
    assert logs.rows_in == logs.info.num_events + sum(logs.dropped.values())


def test_pools_stay_with_their_events() -> None:
    """One shop a week whose shelf holds all items: the visits of a truncated user are those of the whole logs."""
    raw = busy_shop()
    pool_E = pc.cast(raw.events.column("ts"), pa.int64()).to_numpy() // (7 * 86_400_000_000)

    def offered(wanted: Any) -> tuple[Any, Any]:
        pairs = pa.table({"item": [item for item in range(40) for _ in wanted], "pool": list(wanted) * 40})
        return pairs.column("item").to_numpy(), pairs.column("pool").to_numpy()

    pools = Pools(pool_E, offered, lambda ids: [f"week {number}" for number in ids.tolist()], "everything")
    raw = replace(raw, pools=pools, negatives=Negatives(policy="available"))
    base = {"source": "synthetic", "split": {"history_frac": 0.4}, "negatives": {"policy": "available"}, "sample": {"num_users": 30}}
    whole, logs = (logs_from(raw, LogsSettings.model_validate(base | extra), 5) for extra in ({}, {"truncate": {"users_frac": 0.5, "max_baskets": 3}}))
    fields = ("user_id", "item_id", "ts", "split", "request_id", "outcome")
    before, after = set(encoded(whole.tables["examples"], *fields)), set(encoded(logs.tables["examples"], *fields))
    truncated = set(column(logs, "truncated", "user_id"))
    assert after < before
    assert all(example[0] in truncated and example[3] == "train" for example in before - after)


def test_nobody_to_truncate_is_refused() -> None:
    truncate = TRUNCATE | {"max_baskets": 7}
    with pytest.raises(
        ValueError,
        match=r"logs\.truncate\.users_frac = 0\.9 finds nobody.*max_baskets = 7 baskets before 2024-04-10.*Of 3 users, 0 .*, 3 .*, 2 .*Lower max_baskets",
    ):
        logs_from(world(BY_HAND), settings(truncate=truncate), seed=1)


@pytest.mark.parametrize(
    ("truncate", "message"),
    [
        ({"min_baskets": 4, "max_baskets": 3}, "min_baskets = 4 must be at most max_baskets = 3"),
        ({"users_frac": 1}, "less than 1"),
        ({"users_frac": -0.1}, "greater than or equal to 0"),
        ({"min_baskets": 0}, "greater than or equal to 1"),
        ({"max_label_weeks": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_truncations_are_refused(truncate: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(truncate=truncate)


def test_complete_journey_truncated() -> None:
    """1,302 households can be truncated, with the windows of the config."""
    given = load(CONFIGS / "complete_journey_truncated.toml")
    logs = build_logs(given.logs, given.run.seed)
    truncated, events, examples = (logs.tables[name] for name in ("truncated", "events", "examples"))
    assert logs.info.num_truncated == len(truncated) == 1302 // 2
    assert logs.rows_in == 1_469_307 == logs.info.num_events + sum(logs.dropped.values())
    users = truncated.column("user_id").combine_chunks()
    theirs = events.filter(pc.is_in(events.column("user_id"), value_set=users))
    assert pc.max(theirs.column("ts")).as_py() < logs.info.history_end
    baskets = theirs.group_by("user_id").aggregate([("request_id", "count_distinct")])
    assert dict(encoded(baskets, "user_id", "request_id_count_distinct")) == dict(encoded(truncated, "user_id", "num_baskets"))
    assert set(column(logs, "truncated", "num_baskets")) == set(range(1, 11))
    labels = examples.filter(pc.and_(pc.is_in(examples.column("user_id"), value_set=users), pc.equal(examples.column("split"), "train")))
    weeks = {(user, week(ts, logs)) for user, ts in encoded(labels, "user_id", "ts")}
    assert set(pc.value_counts(pa.array([user for user, _ in weeks])).field("counts").to_pylist()) <= {1, 2}
    assert {user for user, _ in weeks} == set(users.to_pylist())
    assert all(abs(value - 0.5) < 0.01 for value in popularity_auc(logs).values())  # leaving out whole weeks does not make popularity tell
