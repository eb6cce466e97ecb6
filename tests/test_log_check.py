"""The checker: clean tables pass, and each planted fault is found with its count, all of them in one pass."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from longtail import schema
from longtail.labels import LabelSettings
from longtail.log_check import Report, check_tables
from longtail.windows import SplitSettings
from tests.tables_world import START, at, events_table, shop, write

ROOT = Path(__file__).resolve().parent.parent
Tables = dict[str, pa.Table]


def checked(tables: Tables, **settings: object) -> Report:
    arguments: dict[str, object] = {"attributes": (("city",), ()), "split": SplitSettings(history_frac=0.4), "labels": LabelSettings()}
    return check_tables(tables["users"], tables["items"], tables["events"], **{**arguments, **settings})  # type: ignore[arg-type]


def replaced(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def changed(table: pa.Table, name: str, rows: slice, value: object) -> pa.Table:
    values = table.column(name).to_pylist()
    values[rows] = [value] * len(values[rows])
    return replaced(table, name, pa.array(values, table.column(name).type))


def in_zone(tables: Tables, zone: str | None) -> Tables:
    return tables | {"events": replaced(tables["events"], "ts", tables["events"].column("ts").cast(pa.timestamp("us", zone)))}


FAULTS: dict[str, tuple[Callable[[Tables], Tables], str, str, int]] = {
    "missing column": (lambda t: t | {"items": t["items"].drop_columns("title")}, "items", "column 'title' is missing", 1),
    "missing attribute": (lambda t: t | {"users": t["users"].drop_columns("city")}, "users", "column 'city' is missing", 1),
    "missing item_id": (lambda t: t | {"events": t["events"].drop_columns("item_id")}, "events", "column 'item_id' is missing", -1),
    "integer ids": (lambda t: t | {"users": replaced(t["users"], "user_id", pa.array(np.arange(60)))}, "users", "column 'user_id' is int64", 60),
    "text price": (lambda t: t | {"events": replaced(t["events"], "price", pa.repeat("1", len(t["events"])))}, "events", "column 'price' is string", -1),
    "text category": (
        lambda t: t | {"items": t["items"].append_column("category", pa.repeat("Mugs", 40))},
        "items",
        "column 'category' is string",
        40,
    ),
    "null title": (lambda t: t | {"items": changed(t["items"], "title", slice(3, 5), None)}, "items", "column 'title' has nulls", 2),
    "naive times": (lambda t: in_zone(t, None), "events", "column 'ts' is timestamp[us]", -1),
    "other zone": (lambda t: in_zone(t, "Europe/Berlin"), "events", "column 'ts' is timestamp[us, tz=Europe/Berlin]", -1),
    "unknown kind": (lambda t: t | {"events": changed(t["events"], "kind", slice(0, 7), "buy")}, "events", "unknown kind", 7),
    "null item": (lambda t: t | {"events": changed(t["events"], "item_id", slice(0, 4), None)}, "events", "item_id is null where kind is not search", 4),
    "unknown user": (
        lambda t: t | {"events": changed(t["events"], "user_id", slice(0, 5), "nobody")},
        "events",
        "user_id that the table users does not have",
        5,
    ),
    "unknown item": (
        lambda t: t | {"events": changed(t["events"], "item_id", slice(0, 6), "nothing")},
        "events",
        "item_id that the table items does not have",
        6,
    ),
    "old times": (lambda t: t | {"events": changed(t["events"], "ts", slice(0, 3), at(-24 * 365 * 50))}, "events", "ts out of plausible range", 3),
    "future times": (lambda t: t | {"events": changed(t["events"], "ts", slice(0, 2), at(24 * 365 * 90))}, "events", "ts out of plausible range", 2),
    "duplicate events": (lambda t: t | {"events": changed(t["events"], "event_id", slice(0, 4), "e9")}, "events", "duplicate event_id", 4),
    "duplicate users": (lambda t: t | {"users": pa.concat_tables([t["users"], t["users"].slice(0, 3)])}, "users", "duplicate user_id", 3),
    "duplicate items": (lambda t: t | {"items": pa.concat_tables([t["items"], t["items"].slice(0, 2)])}, "items", "duplicate item_id", 2),
    "empty id": (lambda t: t | {"items": changed(t["items"], "item_id", slice(0, 1), " ")}, "items", "empty item_id", 1),
    "no rows": (lambda t: t | {"users": t["users"].slice(0, 0)}, "users", "the table has no rows", 1),
}


def test_clean_tables_pass() -> None:
    report = checked(shop())
    assert report.findings == []
    assert report.rows["users"] == 60


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_planted_fault_is_found(fault: str) -> None:
    plant, table, what, count = FAULTS[fault]
    found = [finding for finding in checked(plant(shop())).errors if finding.table == table and finding.what == what]
    assert len(found) == 1
    assert found[0].count == count or count == -1
    assert found[0].remedy


def test_all_faults_are_found_in_one_pass() -> None:
    tables = shop()
    names = ["unknown kind", "null item", "null title", "duplicate users"]
    for name in names:
        tables = FAULTS[name][0](tables)
    whats = {finding.what for finding in checked(tables).errors}
    assert {FAULTS[name][2] for name in names} <= whats
    with pytest.raises(ValueError, match=r"unknown kind \(3\)") as error:
        checked(shop() | {"events": changed(shop()["events"], "kind", slice(0, 3), "buy")}).raise_errors()
    assert "'buy' x 3" in str(error.value)


def test_empty_window_and_missing_outcomes_are_found() -> None:
    late = SplitSettings(history_end=START + timedelta(days=10), train_end=START + timedelta(days=400))
    assert [finding.what for finding in checked(shop(), split=late).errors] == ["empty window"]
    rows = [{"user": "u0", "item": "i0", "hour": hour, "kind": "impression"} for hour in range(100)]
    rows += [{"user": "u0", "item": "i0", "hour": hour, "kind": "click"} for hour in range(30)]
    tables = shop() | {"events": events_table(rows)}
    whats = [finding.what for finding in checked(tables).errors]
    assert whats == ["no outcome events (click) in train and validation and test"]


def test_wishes_are_warnings() -> None:
    events = changed(shop()["events"], "price", slice(0, 2), -1.0)
    rows = events_table([{"user": "u1", "hour": 5, "kind": "search"}]).set_column(0, schema.EVENTS.field("event_id"), pa.array(["s"]))
    report = checked(shop() | {"events": pa.concat_tables([events, rows])})
    assert {(finding.level, finding.what, finding.count) for finding in report.findings} == {
        ("warning", "price below 0 or not finite", 2),
        ("warning", "search without a query", 1),
    }
    report.raise_errors()


def test_large_strings_dictionaries_and_other_units_are_fine() -> None:
    tables = shop()
    events = replaced(tables["events"], "kind", tables["events"].column("kind").dictionary_encode())
    events = replaced(events, "user_id", events.column("user_id").cast(pa.large_string()))
    events = replaced(events, "ts", events.column("ts").cast(pa.timestamp("ns", "UTC")))
    assert checked(tables | {"events": events}).findings == []


def test_what_is_taken_as_unknown_is_said() -> None:
    tables = shop()
    users = tables["users"].append_column("age", pa.array([float("nan"), float("inf"), None] + [30.0] * 57))
    items = tables["items"].append_column("category", pa.array([["a", None], ["", "b"], None, []] + [["a", "b"]] * 36, pa.list_(pa.string())))
    report = checked(tables | {"users": users, "items": items}, attributes=(("city",), ("age",)))
    assert {(finding.level, finding.what, finding.count) for finding in report.findings} == {
        ("warning", "age is not a finite number", 2),
        ("warning", "category with a null or empty level", 2),
    }


def test_events_that_are_dropped_fill_no_window() -> None:
    tables = shop()
    late = pc.greater(tables["events"].column("ts"), pa.scalar(START + timedelta(days=85), pa.timestamp("us", "UTC")))
    users = pc.if_else(late, "nobody", tables["events"].column("user_id"))
    split = SplitSettings(history_end=START + timedelta(days=40), train_end=START + timedelta(days=86))
    report = checked(tables | {"events": replaced(tables["events"], "user_id", users)}, unknown_ids="drop", split=split)
    assert [finding.what for finding in report.errors] == ["empty window"]


@pytest.mark.parametrize(("fault", "code"), [(None, 0), ("unknown user", 1)])
def test_command_prints_findings_and_sets_its_exit_code(tmp_path: Path, fault: str | None, code: int) -> None:
    tables = shop() if fault is None else FAULTS[fault][0](shop())
    paths = write(tables, tmp_path)
    lines = [
        "[logs]",
        'source = "tables"',
        'categorical_attributes = ["city"]',
        "[logs.tables]",
        *(f"{name} = {json.dumps(path)}" for name, path in paths.items()),
    ]
    config = tmp_path / "my.toml"
    config.write_text("\n".join([*lines, "[logs.split]", "history_frac = 0.4"]))
    command = [sys.executable, "-m", "pipelines.logs", "--config", str(config), "--check"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert run.returncode == code, run.stderr
    last = json.loads(run.stdout.splitlines()[-1])
    assert last["errors"] == code
    if fault is not None:
        assert "error: events: user_id that the table users does not have (5). e.g. 'nobody'." in run.stdout
