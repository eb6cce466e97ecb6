"""The cold-start world: whose events and labels stay, by property, on the real logs, and what it refuses."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from longtail import schema
from longtail.cold_start import HIDDEN, OVER_EVENTS
from longtail.logs import Logs, LogsSettings, build_logs, logs_from
from longtail.sources.raw import RawLogs
from tests.test_logs import encoded, popularity_auc
from tests.test_truncation import STAGE_TABLES, busy_shop, column, sessions

FIELDS = ("user_id", "item_id", "ts", "split", "request_id", "outcome", "conversion")
ITEM, SPLIT, OUTCOME = FIELDS.index("item_id"), FIELDS.index("split"), FIELDS.index("outcome")
Row = tuple[Any, ...]


def settings(**sections: object) -> LogsSettings:
    return LogsSettings.model_validate({"source": "synthetic", "split": {"history_frac": 0.4}} | sections)


def both(raw: RawLogs, cold_start: dict[str, Any], seed: int = 5) -> tuple[Logs, Logs]:
    """The same logs whole and with cold items."""
    return logs_from(raw, settings(), seed), logs_from(raw, settings(cold_start=cold_start), seed)


def examples(logs: Logs) -> Counter[Row]:
    return Counter(encoded(logs.tables["examples"], *FIELDS))


@hypothesis_settings(max_examples=20, deadline=None)
@given(
    is_shop=st.booleans(),
    seed=st.integers(0, 2**31),
    items_frac=st.floats(0.01, 0.99),
    keep=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)).map(lambda pair: tuple(sorted(pair))), min_size=1, max_size=3),
)
def test_a_cold_item_keeps_some_events_of_before_validation_and_as_many_train_labels(
    is_shop: bool, seed: int, items_frac: float, keep: list[tuple[int, int]]
) -> None:
    try:
        whole, logs = both(busy_shop() if is_shop else sessions(), {"items_frac": items_frac, "min_events": 8, "keep": keep}, seed)
    except ValueError as refusal:  # nearly all items lost nearly all that was known of them
        assume(items_frac < 0.9 or "the train window has" not in str(refusal))
        raise
    cold = dict(encoded(logs.tables["cold_items"], "item_id", "num_events"))
    assert 1 <= len(cold) == logs.info.num_cold
    assert all(any(low <= number <= high for low, high in keep) for number in cold.values())
    before, after = (set(encoded(one.tables["events"], "event_id", "item_id", "ts", "kind")) for one in (whole, logs))
    assert after < before
    assert {event for event in before - after if event[1] not in cold} == set(), "the others lose nothing"
    theirs = [event for event in after if event[1] in cold]
    assert Counter(event[1] for event in theirs) == Counter({item: number for item, number in cold.items() if number})
    assert all(event[2] < logs.info.validation_start and event[3] in logs.info.behaviour_kinds for event in theirs)
    assert logs.rows_in == len(after) + sum(logs.dropped.values())
    assert logs.dropped[HIDDEN] == len(before - after)

    rows_before, rows_after = examples(whole), examples(logs)
    gone = rows_before - rows_after
    assert rows_after <= rows_before
    assert all(row[ITEM] in cold and row[SPLIT] == "train" for row in gone)
    assert logs.info.positives_left_out.get(OVER_EVENTS, 0) == sum(number for row, number in gone.items() if row[OUTCOME])
    in_train = Counter(event[1] for event in theirs if event[2] >= logs.info.history_end)
    labels = Counter(row[ITEM] for row in rows_after.elements() if row[ITEM] in cold and row[SPLIT] == "train" and row[OUTCOME])
    assert all(labels[item] <= in_train[item] for item in cold)
    assert not [row for row in rows_after if row[ITEM] in cold and cold[row[ITEM]] == 0 and row[SPLIT] == "train"]


def test_kept_labels_are_those_of_kept_events_and_negatives_stay_as_many() -> None:
    whole, logs = both(busy_shop(), {"items_frac": 0.9, "min_events": 8, "keep": [[4, 7]]})
    cold = set(column(logs, "cold_items", "item_id"))
    kept = set(encoded(logs.tables["events"], "user_id", "item_id", "ts"))
    rows = [row for row in examples(logs).elements() if row[ITEM] in cold and row[SPLIT] == "train"]
    positives = [row for row in rows if row[OUTCOME]]
    assert len(positives) > 10
    assert {row[:3] for row in positives} <= kept
    assert Counter(row[ITEM] for row in rows if not row[OUTCOME]) == Counter(row[ITEM] for row in positives)
    assert all(abs(value - 0.5) < 0.05 for value in popularity_auc(logs).values())
    assert all(abs(value - 0.5) < 0.05 for value in popularity_auc(whole).values())


def test_off_is_as_without_the_section() -> None:
    plain, off = settings(), settings(cold_start={"items_frac": 0, "min_events": 200})
    first, second = (logs_from(busy_shop(), one, seed=1) for one in (plain, off))
    assert set(first.tables) == set(second.tables) == set(STAGE_TABLES)
    assert all(first.tables[name].equals(second.tables[name]) for name in STAGE_TABLES)
    assert (first.info, dict(first.dropped), second.info.num_cold) == (second.info, dict(second.dropped), 0)
    assert plain.key_fields() == off.key_fields()
    assert "cold_start" not in plain.key_fields()
    on = settings(cold_start={"items_frac": 0.3, "seed": 4})
    assert on.key_fields()["cold_start"]["seed"] == 4


def test_its_own_seed_decides_which_items_and_leaves_all_else() -> None:
    worlds = [both(busy_shop(), {"items_frac": 0.5, "min_events": 8, "keep": [[0, 0], [1, 5]], "seed": seed})[1] for seed in (1, 1, 2)]
    first, again, other = worlds
    assert all(first.tables[name].equals(again.tables[name]) for name in (*STAGE_TABLES, "cold_items"))
    assert not first.tables["cold_items"].equals(other.tables["cold_items"])
    assert first.tables["cold_items"].schema.equals(schema.COLD_ITEMS)
    held_out = [Counter({row: number for row, number in examples(one).items() if row[SPLIT] != "train"}) for one in worlds]
    assert held_out[0] == held_out[2]


def test_equal_shares_of_the_items_keep_each_range() -> None:
    _, logs = both(busy_shop(), {"items_frac": 0.8, "min_events": 8, "keep": [[0, 0], [1, 1], [5, 5]]})
    counts = Counter(column(logs, "cold_items", "num_events"))
    assert set(counts) == {0, 1, 5}
    assert max(counts.values()) - min(counts.values()) <= 1


def test_no_item_to_make_cold_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"logs\.cold_start\.items_frac = 0\.3 finds no item.*min_events = 5000.*Of 40 items, 0 have the first, 40 the second.*Lower"
    ):
        both(busy_shop(), {"items_frac": 0.3, "min_events": 5000})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"cold_start": {"keep": [[0, 100]]}}, r"keep has \[0, 100\].*min_events = 100"),
        ({"cold_start": {"keep": [[3, 2]]}}, r"keep has \[3, 2\]"),
        ({"cold_start": {"keep": [[-1, 2]]}}, r"keep has \[-1, 2\]"),
        ({"cold_start": {"keep": []}}, "at least 1"),
        ({"cold_start": {"items_frac": 1}}, "less than 1"),
        ({"cold_start": {"items_frac": 0.2}, "truncate": {"users_frac": 0.2}}, "truncate.users_frac = 0.2 and cold_start.items_frac = 0.2: one at a time"),
    ],
)
def test_impossible_worlds_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**sections)


def test_movielens_interest() -> None:
    """Items of all caps, none of whose other ratings is left anywhere but in the labels."""
    given = LogsSettings.model_validate({"source": "movielens_100k", "cold_start": {"items_frac": 0.33}})
    logs = build_logs(given, 7)
    cold = dict(encoded(logs.tables["cold_items"], "item_id", "num_events"))
    shares = [sum(low <= number <= high for number in cold.values()) / len(cold) for low, high in given.cold_start.keep]
    assert all(abs(share - 0.25) < 0.02 for share in shares)
    ids = logs.tables["cold_items"].column("item_id").combine_chunks()
    theirs = logs.tables["events"].filter(pc.is_in(logs.tables["events"].column("item_id"), value_set=ids))
    assert len(theirs) == sum(cold.values())
    assert pc.max(theirs.column("ts")).as_py() < logs.info.validation_start
    test = logs.tables["examples"].filter(pc.equal(logs.tables["examples"].column("split"), "test"))
    assert pc.sum(pc.is_in(test.column("item_id"), value_set=ids).cast(pa.int64())).as_py() > 1000
