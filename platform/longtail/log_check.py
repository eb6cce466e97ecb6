"""The checker: one pass over a user's three tables that says everything that is wrong with them, each with a count, examples and the remedy.

Run: python -m pipelines.logs --config my.toml --check
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from longtail import schema
from longtail.labels import LabelSettings
from longtail.schema import EVENT_KINDS
from longtail.sources.tables import own_labels
from longtail.times import from_us
from longtail.windows import SplitSettings, Windows

NUM_EXAMPLES = 3
EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)  # what lies before is seconds or milliseconds read as microseconds
LATEST_AHEAD = timedelta(days=2)


@dataclass(frozen=True)
class Finding:
    """One kind of fault: an error stops the logs stage, a warning does not."""

    level: Literal["error", "warning"]
    table: str
    what: str
    count: int
    examples: Sequence[str]
    remedy: str

    def __str__(self) -> str:
        shown = f" e.g. {'; '.join(self.examples)}." if self.examples else ""
        return f"{self.level}: {self.table}: {self.what} ({self.count:,}).{shown} {self.remedy}"


@dataclass
class Report:
    """What a check found."""

    rows: dict[str, int]
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    def raise_errors(self) -> None:
        """Raise ValueError that lists every error, if there are any."""
        if self.errors:
            lines = "\n".join(f"  {finding}" for finding in self.errors)
            raise ValueError(f"the tables have {len(self.errors)} kind(s) of error:\n{lines}\npython -m pipelines.logs --check shows warnings too.")

    def add(self, level: Literal["error", "warning"], table: str, what: str, count: int, examples: Sequence[str], remedy: str) -> None:
        """Note a fault, if there is any (count > 0)."""
        if count:
            self.findings.append(Finding(level, table, what, count, examples, remedy))

    def as_json(self) -> dict[str, Any]:
        """For the command's last line."""
        errors = len(self.errors)
        kinds = [{"level": f.level, "table": f.table, "what": f.what, "count": f.count} for f in self.findings]
        return {"rows": self.rows, "errors": errors, "warnings": len(self.findings) - errors, "findings": kinds}


def check_tables(
    users: pa.Table,
    items: pa.Table,
    events: pa.Table,
    *,
    attributes: tuple[Sequence[str], Sequence[str]],
    split: SplitSettings,
    labels: LabelSettings,
    unknown_ids: str = "refuse",
    now: datetime | None = None,
) -> Report:
    """Everything that is wrong with the tables; `attributes` are the declared (categorical, numeric) ones."""
    report = Report({"users": len(users), "items": len(items), "events": len(events)})
    wanted_users = pa.schema(
        [*schema.USERS, *(pa.field(name, pa.string()) for name in attributes[0]), *(pa.field(name, pa.float64()) for name in attributes[1])]
    )
    sound = {
        "users": _check_columns(report, "users", users, wanted_users, {*attributes[0], *attributes[1]}, set(attributes[0])),
        "items": _check_columns(report, "items", items, schema.ITEMS),
        "events": _check_columns(report, "events", events, schema.EVENTS),
    }
    for name, table, key in (("users", users, "user_id"), ("items", items, "item_id"), ("events", events, "event_id")):
        if key in sound[name]:
            _check_unique(report, name, table.column(key), key)
    for name in attributes[1]:
        if name in sound["users"]:
            _check_finite(report, "users", users, name)
    if "category" in sound["items"]:
        _check_paths(report, items.column("category"))
    if "first_seen" in sound["items"]:
        _check_times(report, "items", items.column("first_seen"), "first_seen", now)
    if "price" in sound["items"]:
        _check_numbers(report, "items", items, "price", below=0.0, remedy="Prices are used as they are; make unknown ones null.")
    _check_events(report, events, sound["events"])
    level: Literal["error", "warning"] = "error" if unknown_ids == "refuse" else "warning"
    for name, table, key in (("users", users, "user_id"), ("items", items, "item_id")):
        if key in sound[name] and key in sound["events"]:
            _check_known(report, level, name, table.column(key), events, key)
    if {"ts", "kind", "user_id"} <= sound["events"]:
        kept = events
        if unknown_ids == "drop":  # what is dropped fills no window
            for table, key in ((users, "user_id"), (items, "item_id")):
                if key in sound["events"] and key in table.column_names:
                    kept = kept.filter(pc.invert(_unknown(table.column(key), kept.column(key))))
        _check_windows(report, kept, sound["events"], split, labels)
    return report


def _check_columns(report: Report, name: str, table: pa.Table, wanted: pa.Schema, must: set[str] | None = None, any_scalar: set[str] | None = None) -> set[str]:
    """Presence, type, nulls; returns the columns that are sound enough to look into. `must`: optional by schema but declared, so required."""
    sound = set()
    for column in wanted:
        required = not column.nullable or column.name in (must or ())
        if column.name not in table.column_names:
            declared = ", or take it out of logs.categorical_attributes / numeric_attributes" if column.name in (must or ()) else ""
            if required:
                report.add("error", name, f"column {column.name!r} is missing", 1, [f"there are {table.column_names}"], f"Add it as {column.type}{declared}.")
            continue
        kind = table.schema.field(column.name).type
        problem = _type_problem(kind, column.type, column.name in (any_scalar or ()))
        if problem:
            report.add("error", name, f"column {column.name!r} is {kind}", len(table), [], problem)
            continue
        sound.add(column.name)
        if not column.nullable:
            nulls = table.column(column.name).null_count
            report.add("error", name, f"column {column.name!r} has nulls", nulls, _rows(pc.is_null(table.column(column.name))), "Drop or fill those rows.")
    if not len(table):
        report.add("error", name, "the table has no rows", 1, [], "Bring some.")
    return sound


def _type_problem(kind: pa.DataType, wanted: pa.DataType, any_scalar: bool) -> str | None:
    """What to do about a column of type `kind` where `wanted` is expected; None where it fits."""
    value = kind.value_type if pt.is_dictionary(kind) else kind
    if any_scalar:
        return "Declared attributes are text, numbers or booleans." if pt.is_nested(value) or pt.is_binary(value) else None
    if pt.is_timestamp(wanted):
        if not pt.is_timestamp(kind):
            return "Write timestamps, as timestamp[us, UTC]."
        if kind.tz is None:
            return "The times have no time zone: say which one they are in and convert them to UTC (timestamp[us, UTC])."
        if kind.tz.upper() not in ("UTC", "ETC/UTC", "Z", "+00:00", "GMT"):
            return f"The time zone is {kind.tz}: convert to UTC (a cast to timestamp[us, UTC] keeps the instants)."
        return None
    if pt.is_string(wanted):
        fits = pt.is_string(value) or pt.is_large_string(value) or pt.is_string_view(value)
        return None if fits else "Cast it to string."
    if pt.is_floating(wanted):
        return None if pt.is_floating(value) or pt.is_integer(value) or pt.is_decimal(value) else "Cast it to double."
    if pt.is_list(wanted):
        inner = kind.value_type if pt.is_list(kind) or pt.is_large_list(kind) else None
        fits = inner is not None and (pt.is_string(inner) or pt.is_large_string(inner))
        return None if fits else 'Write a list of strings, root first: ["Kitchen", "Mugs"].'
    if pt.is_binary(wanted):
        return None if pt.is_binary(value) or pt.is_large_binary(value) else "Write the encoded picture's bytes as binary, or give image_uri."
    return None


def _check_unique(report: Report, name: str, column: pa.ChunkedArray, key: str) -> None:
    counts = pc.value_counts(column.drop_null())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    extra = pc.sum(pc.subtract(repeated.field("counts"), 1)).as_py() or 0
    shown = [f"{row['values']!r} x {row['counts']}" for row in repeated.slice(0, NUM_EXAMPLES).to_pylist()]
    report.add("error", name, f"duplicate {key}", extra, shown, f"Each {key} stands once: keep one row of each.")
    empty = pc.equal(pc.utf8_trim_whitespace(column.cast(pa.string())), "")
    report.add("error", name, f"empty {key}", pc.sum(empty).as_py() or 0, _rows(empty), "Give every row its id.")


def _check_times(report: Report, name: str, column: pa.ChunkedArray, key: str, now: datetime | None) -> None:
    latest = (now or datetime.now(UTC)) + LATEST_AHEAD
    low = pa.scalar(EARLIEST, pa.timestamp("us", "UTC")).cast(column.type)
    high = pa.scalar(latest, pa.timestamp("us", "UTC")).cast(pa.timestamp("s", "UTC"), safe=False).cast(column.type)
    bad = pc.fill_null(pc.or_(pc.less(column, low), pc.greater(column, high)), False)
    shown = [str(value) for value in column.filter(bad).slice(0, NUM_EXAMPLES).cast(pa.string()).to_pylist()]
    remedy = f"Plausible is {EARLIEST:%Y-%m-%d} to {latest:%Y-%m-%d}. Were seconds or milliseconds written as another unit?"
    report.add("error", name, f"{key} out of plausible range", pc.sum(bad).as_py() or 0, shown, remedy)


def _check_numbers(report: Report, name: str, table: pa.Table, key: str, below: float, remedy: str) -> None:
    column = table.column(key).cast(pa.float64())
    bad = pc.fill_null(pc.or_(pc.less(column, below), pc.invert(pc.is_finite(column))), False)
    shown = [f"{value}" for value in column.filter(bad).slice(0, NUM_EXAMPLES).to_pylist()]
    report.add("warning", name, f"{key} below {below:g} or not finite", pc.sum(bad).as_py() or 0, shown, remedy)


def _check_finite(report: Report, name: str, table: pa.Table, key: str) -> None:
    bad = pc.fill_null(pc.invert(pc.is_finite(table.column(key).cast(pa.float64()))), False)
    report.add("warning", name, f"{key} is not a finite number", pc.sum(bad).as_py() or 0, _rows(bad), "It is taken as unknown; make it null.")


def _check_paths(report: Report, column: pa.ChunkedArray) -> None:
    parts = pc.list_flatten(column)
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(parts), ""), True)
    owners = pc.list_parent_indices(column).filter(empty)
    shown = [f"row {row}" for row in pc.unique(owners).slice(0, NUM_EXAMPLES).to_pylist()]
    report.add("warning", "items", "category with a null or empty level", pc.sum(empty).as_py() or 0, shown, "Such levels are left out of the path.")


def _check_events(report: Report, events: pa.Table, sound: set[str]) -> None:
    if "ts" in sound:
        _check_times(report, "events", events.column("ts"), "ts", None)
    if "kind" in sound:
        counts = pc.value_counts(events.column("kind").cast(pa.string()).drop_null()).to_pylist()
        unknown = [row for row in counts if row["values"] not in EVENT_KINDS]
        shown = [f"{row['values']!r} x {row['counts']}" for row in unknown[:NUM_EXAMPLES]]
        remedy = f"Kinds are {', '.join(EVENT_KINDS)}: rename what means one of these, drop the rest."
        report.add("error", "events", "unknown kind", sum(row["counts"] for row in unknown), shown, remedy)
        search = pc.equal(events.column("kind").cast(pa.string()), "search")
        if "item_id" in sound:
            lacking = pc.and_(pc.is_null(events.column("item_id")), pc.invert(search))
            report.add(
                "error", "events", "item_id is null where kind is not search", pc.sum(lacking).as_py() or 0, _rows(lacking), "Say which item, or drop them."
            )
        elif "item_id" not in events.column_names:
            others = len(events) - (pc.sum(search).as_py() or 0)
            report.add("error", "events", "column 'item_id' is missing", others, [], "Add it as string; null only for searches.")
        if "query" in sound:
            silent = pc.and_(search, pc.is_null(events.column("query")))
            report.add("warning", "events", "search without a query", pc.sum(silent).as_py() or 0, _rows(silent), "Such searches say nothing; drop them.")
    if "price" in sound:
        _check_numbers(report, "events", events, "price", below=0.0, remedy="Returns and corrections are no purchases: drop them.")
    if "quantity" in sound:
        _check_numbers(report, "events", events, "quantity", below=0.0, remedy="Returns and corrections are no purchases: drop them.")


def _check_known(report: Report, level: Literal["error", "warning"], name: str, known: pa.ChunkedArray, events: pa.Table, key: str) -> None:
    strange = _unknown(known, events.column(key))
    shown = [repr(value) for value in pc.unique(events.column(key).filter(strange)).slice(0, NUM_EXAMPLES).to_pylist()]
    remedy = f'Add them to {name}, drop those events, or set logs.tables.unknown_ids = "drop".'
    report.add(level, "events", f"{key} that the table {name} does not have", pc.sum(strange).as_py() or 0, shown, remedy)


def _unknown(known: pa.ChunkedArray, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which `ids` are there and not among the known ones."""
    ids = ids.cast(pa.string())
    return pc.and_(pc.is_valid(ids), pc.invert(pc.is_in(ids, value_set=known.cast(pa.string()).combine_chunks())))


def _check_windows(report: Report, events: pa.Table, sound: set[str], split: SplitSettings, labels: LabelSettings) -> None:
    kinds = events.column("kind").cast(pa.string())
    usable = events.filter(pc.and_(pc.is_valid(events.column("ts")), pc.is_valid(kinds)))
    times = usable.column("ts").cast(schema.TIMESTAMP, safe=False).cast(pa.int64()).to_numpy()
    kind = np.asarray(usable.column("kind").cast(pa.string()).to_pylist(), dtype=object)
    try:
        windows = Windows.of(times, split)
    except ValueError as error:
        report.add("error", "events", "empty window", 1, [], str(error))
        return
    try:
        chosen = own_labels(set(kind)).overridden(labels)
    except ValueError as error:
        report.add("error", "events", "labels", 1, [], str(error))
        return
    remedy = f"Move logs.split (events run from {from_us(windows.start)} to {from_us(windows.end - 1)}), or choose other logs.labels."
    for role, wanted in (("exposure", chosen.exposure), ("outcome", chosen.outcome)):
        if wanted is None:
            continue
        empty = [name for name in windows.empty(times[kind == wanted]) if name != "history"]
        there = f"kinds there are: {', '.join(sorted(set(kind)))}"
        report.add("error", "events", f"no {role} events ({wanted}) in {' and '.join(empty)}", len(empty), [there], remedy)


def _rows(mask: pa.ChunkedArray) -> list[str]:
    """The first rows that a mask marks."""
    places = np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False) if isinstance(mask, pa.Array) else pc.fill_null(mask, False).to_numpy())
    return [f"row {place}" for place in places[:NUM_EXAMPLES]]
