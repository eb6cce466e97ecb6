"""Labels: which exposures count as taken, by hand."""

from collections.abc import Callable

import pyarrow as pa
import pytest

from longtail import schema
from longtail.labels import LabelSettings
from longtail.logs import Logs, LogsSettings, logs_from
from longtail.negatives import Negatives
from longtail.sources import tables
from longtail.sources.raw import RawLogs
from tests.tables_world import at, events_table

SPLIT = {"history_end": at(10), "train_end": at(30), "validation_frac": 0.25}


def by_hand() -> RawLogs:
    """Logs whose labels can be told by looking: history before hour 10, train to 25, validation to 30, test after."""
    rows = [
        {"user": "a", "item": "x", "hour": 0, "kind": "impression", "request": "r0"},
        {"user": "a", "item": "x", "hour": 1, "kind": "click", "request": "r0"},
        # clicked after 1 h, bought after 3 more: both outcomes
        {"user": "a", "item": "x", "hour": 11, "kind": "impression", "request": "r1"},
        {"user": "a", "item": "x", "hour": 12, "kind": "click", "request": "r1"},
        {"user": "a", "item": "x", "hour": 15, "kind": "purchase", "request": "r1"},
        # clicked, but 6 h later: outside of the outcome window of 4 h
        {"user": "a", "item": "y", "hour": 11, "kind": "impression", "request": "r1"},
        {"user": "a", "item": "y", "hour": 17, "kind": "click", "request": "r1"},
        # the click belongs to another request, and to another user
        {"user": "b", "item": "x", "hour": 12, "kind": "impression", "request": "r2"},
        {"user": "b", "item": "x", "hour": 13, "kind": "click", "request": "r3"},
        # clicked an hour before it was shown
        {"user": "b", "item": "y", "hour": 14, "kind": "impression", "request": "r4"},
        {"user": "b", "item": "y", "hour": 13, "kind": "click", "request": "r4"},
        # shown in train, clicked when train was closed (hour 25): not known then
        {"user": "b", "item": "x", "hour": 24, "kind": "impression", "request": "r5"},
        {"user": "b", "item": "x", "hour": 26, "kind": "click", "request": "r5"},
        # validation: clicked; bought after the conversion window of 5 h
        {"user": "b", "item": "y", "hour": 25, "kind": "impression", "request": "r6"},
        {"user": "b", "item": "y", "hour": 25.5, "kind": "click", "request": "r6"},
        {"user": "b", "item": "y", "hour": 31, "kind": "purchase", "request": "r6"},
        {"user": "a", "item": "y", "hour": 29, "kind": "impression", "request": "r7"},
        # test
        {"user": "a", "item": "x", "hour": 30, "kind": "impression", "request": "r8"},
        {"user": "a", "item": "x", "hour": 30, "kind": "click", "request": "r8"},
        {"user": "a", "item": "y", "hour": 40, "kind": "impression", "request": "r9"},
    ]
    return RawLogs(
        users=pa.table({"user_id": ["a", "b"]}),
        items=pa.table({"item_id": ["x", "y"], "title": ["one", "two"]}),
        events=events_table(rows),
        labels=tables.own_labels({"impression", "click", "purchase"}),
        negatives=Negatives(),
        rows_in=len(rows),
    )


def rows_of(logs: Logs) -> dict[tuple[str, str, str], tuple[str, int, int | None]]:
    """(user, item, request) -> (split, outcome, conversion)."""
    table = logs.tables["examples"].to_pylist()
    return {(row["user_id"], row["item_id"], row["request_id"]): (row["split"], row["outcome"], row["conversion"]) for row in table}


def test_labels_and_split_by_hand() -> None:
    settings = LogsSettings.model_validate({"source": "synthetic", "split": SPLIT, "labels": {"outcome_window_h": 4, "conversion_window_h": 5}})
    logs = logs_from(by_hand(), settings, seed=1)
    assert rows_of(logs) == {
        ("a", "x", "r1"): ("train", 1, 1),
        ("a", "y", "r1"): ("train", 0, 0),
        ("b", "x", "r2"): ("train", 0, 0),
        ("b", "y", "r4"): ("train", 0, 0),
        ("b", "x", "r5"): ("train", 0, 0),
        ("b", "y", "r6"): ("validation", 1, 0),
        ("a", "y", "r7"): ("validation", 0, 0),
        ("a", "x", "r8"): ("test", 1, 0),
        ("a", "y", "r9"): ("test", 0, 0),
    }
    assert logs.info.behaviour_kinds == ("click", "purchase")
    assert logs.info.has_conversion
    assert logs.info.exposure.startswith("logged impressions")
    assert set(logs.tables["examples"].column("origin").to_pylist()) == {"logged"}


def test_config_overrides_single_labels() -> None:
    settings = LogsSettings.model_validate({"source": "synthetic", "split": SPLIT, "labels": {"conversion": "none", "outcome_window_h": 7}})
    logs = logs_from(by_hand(), settings, seed=1)
    assert not logs.info.has_conversion
    assert rows_of(logs)["a", "y", "r1"] == ("train", 1, None)  # six hours are within the window now


def with_requests(raw: RawLogs, kind: str, change: Callable[[int, str], str | None]) -> RawLogs:
    """`raw` with the requests of one kind of events changed by (place among them, request)."""
    rows, place = raw.events.to_pylist(), 0
    for row in rows:
        if row["kind"] == kind:
            row["request_id"] = change(place, row["request_id"])
            place += 1
    return RawLogs(**{**raw.__dict__, "events": pa.Table.from_pylist(rows, schema.EVENTS)})


def test_an_outcome_without_a_request_fits_any_exposure_of_its_item() -> None:
    settings = LogsSettings.model_validate({"source": "synthetic", "split": SPLIT, "labels": {"outcome_window_h": 4, "conversion_window_h": 5}})
    whole = rows_of(logs_from(by_hand(), settings, seed=1))
    # the second click (of r1) and the purchase of r1 lose their requests; the others keep theirs
    raw = with_requests(by_hand(), "click", lambda place, request: None if place == 1 else request)
    raw = with_requests(raw, "purchase", lambda place, request: None if place == 0 else request)
    assert rows_of(logs_from(raw, settings, seed=1)) == whole
    # a click of another request still does not count, one without a request does
    raw = with_requests(by_hand(), "click", lambda place, request: None if request == "r3" else request)
    assert rows_of(logs_from(raw, settings, seed=1))["b", "x", "r2"] == ("train", 1, 0)


def test_purchases_that_carry_the_orders_id_are_no_other_request() -> None:
    settings = LogsSettings.model_validate({"source": "synthetic", "split": SPLIT, "labels": {"outcome_window_h": 4, "conversion_window_h": 5}})
    raw = with_requests(by_hand(), "purchase", lambda place, request: f"order {place}")
    assert rows_of(logs_from(raw, settings, seed=1))["a", "x", "r1"] == ("train", 1, 1)


def test_an_outcome_that_was_the_sources_conversion_leaves_none() -> None:
    chosen = tables.own_labels({"impression", "click", "purchase"}).overridden(LabelSettings(exposure="none", outcome="purchase"))
    assert (chosen.exposure, chosen.outcome, chosen.conversion) == (None, "purchase", None)


def test_labels_out_of_order_are_refused() -> None:
    settings = LogsSettings.model_validate({"source": "synthetic", "split": SPLIT, "labels": {"exposure": "cart"}})
    with pytest.raises(ValueError, match="must follow each other in the order"):
        logs_from(by_hand(), settings, seed=1)
