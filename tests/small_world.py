"""A hand-sized world of four users and five items that the tests of entities, behaviour, groups and features share."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa

from longtail import schema
from longtail.behaviour import Behaviour
from longtail.entities import Entities
from longtail.logs import LogsInfo

START = datetime(2026, 1, 1, tzinfo=UTC)


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def us(number: float) -> int:
    return round(day(number).timestamp() * 1e6)


INFO = LogsInfo(
    source="tables",
    start=START,
    history_end=day(20),
    validation_start=day(28),
    train_end=day(30),
    end=day(40),
    categorical_attributes=("city",),
    numeric_attributes=("age",),
    has_conversion=False,
    behaviour_kinds=("click", "purchase"),
    exposure="sampled",
    num_users=4,
    num_items=5,
    num_events=0,
    num_examples={},
)

USERS = pa.table({"user_id": ["d", "a", "b", "c"], "city": [None, "Bonn", "Bonn", "Ulm"], "age": [None, 20.0, 30.0, 40.0]})
ITEMS = pa.table(
    {
        "item_id": ["tea", "milk", "soap", "book", "odd"],
        "title": ["Tea", "Milk", "Soap", "Book", "Odd"],
        "category": pa.array([["food", "drinks"], ["food", "drinks"], ["home"], ["home", "paper"], None], pa.list_(pa.string())),
        "brand": ["x", "y", "x", None, None],
        "price": [2.0, 1.0, 3.0, None, 9.0],
        "first_seen": pa.array([day(0), day(1), None, day(10), None], schema.TIMESTAMP),
    }
)

#: (user, item, day, kind)
BEHAVIOUR = [
    ("a", "tea", 1, "purchase"),
    ("a", "tea", 2, "click"),
    ("a", "milk", 2, "purchase"),
    ("b", "tea", 3, "purchase"),
    ("b", "soap", 4, "purchase"),
    ("c", "soap", 5, "purchase"),
    ("c", "book", 11, "purchase"),
    ("a", "soap", 12, "purchase"),
]


def events(rows: list[tuple[str, str, float, str]]) -> pa.Table:
    return pa.table(
        {
            "event_id": [str(number) for number in range(len(rows))],
            "user_id": [row[0] for row in rows],
            "ts": pa.array([day(row[2]) for row in rows], schema.TIMESTAMP),
            "kind": [row[3] for row in rows],
            "item_id": [row[1] for row in rows],
            "price": pa.nulls(len(rows), pa.float64()),
        }
    )


def entities() -> Entities:
    return Entities.build(USERS, ITEMS, INFO, numeric_bins=3)


def behaviour(rows: list[tuple[str, str, float, str]] | None = None) -> Behaviour:
    return Behaviour.build(events(rows or BEHAVIOUR), entities(), INFO.behaviour_kinds)
