"""The logs stage: the split and negatives by hand and by property, sampling, adapters, and what it refuses."""

import importlib.util
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from longtail import schema
from longtail.artifacts import Store
from longtail.logs import Logs, LogsSettings, build_logs, fingerprint, logs_from
from longtail.negatives import Negatives, popularity_matched
from longtail.sources import complete_journey, movielens, tables
from longtail.sources.raw import Pools, RawLogs
from longtail.strata import stratified
from longtail.times import to_us
from longtail.windows import SplitSettings, Windows
from tests.tables_world import at, events_table, shop, write
from tests.test_labels import SPLIT, by_hand, rows_of


def test_windows_by_shares() -> None:
    times = np.arange(0, 1000, dtype=np.int64)
    windows = Windows.of(times, SplitSettings(history_frac=0.5, train_frac=0.3, validation_frac=0.2))
    assert (windows.start, windows.history_end, windows.validation_start, windows.train_end, windows.end) == (0, 500, 740, 800, 1000)
    assert windows.split_of(np.array([0, 499, 500, 739, 740, 799, 800, 999, 1000])).tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, -1]


def test_naive_dates_are_utc() -> None:
    split = SplitSettings.model_validate({"history_end": "2024-03-01T10:00:00", "train_end": "2024-03-02"})
    assert split.history_end == at(10)
    assert split.train_end == at(24)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"history_end": at(10)}, "go together"),
        ({"history_end": at(30), "train_end": at(10)}, "must lie before"),
        ({"history_frac": 0.6, "train_frac": 0.4}, "must stay below 1"),
    ],
)
def test_impossible_splits_are_refused(split: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SplitSettings.model_validate(split)


def test_empty_window_is_refused_by_name() -> None:
    settings = LogsSettings.model_validate({"source": "synthetic", "split": {"history_end": at(10), "train_end": at(900), "validation_frac": 0}})
    with pytest.raises(ValueError, match=r"empty window\(s\): test.*2024-03-01.*Move history_end"):
        logs_from(by_hand(), settings, seed=1)


def test_split_without_both_outcomes_is_refused() -> None:
    settings = LogsSettings.model_validate({"source": "synthetic", "split": {"history_end": at(10), "train_end": at(38), "validation_frac": 0}})
    with pytest.raises(ValueError, match="test window has 1 examples, 0 of them with the outcome 'click'"):
        logs_from(by_hand(), settings, seed=1)


def shop_settings(tmp_path: Path, **sections: object) -> LogsSettings:
    paths = write(shop(), tmp_path)
    return LogsSettings.model_validate({"source": "tables", "tables": paths, "categorical_attributes": ["city"], "split": {"history_frac": 0.4}} | sections)


def encoded(table: pa.Table, *names: str) -> list[tuple[object, ...]]:
    return list(zip(*(table.column(name).to_pylist() for name in names), strict=True))


def auc(score: np.ndarray, label: np.ndarray) -> float:
    """Probability that a positive scores above a negative; ties count half."""
    order = np.argsort(score, kind="stable")
    _, place, counts = np.unique(score[order], return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positive = label[order] == 1
    return float((rank[positive].sum() - positive.sum() * (positive.sum() + 1) / 2) / (positive.sum() * (~positive).sum()))


def popularity_auc(logs: Logs) -> dict[str, float]:
    """What an item's number of behaviour events, over all time, scores alone in each split."""
    events, examples = logs.tables["events"], logs.tables["examples"]
    behaviour = events.filter(pc.is_in(events.column("kind"), value_set=pa.array(logs.info.behaviour_kinds)))
    counts = behaviour.group_by("item_id").aggregate([([], "count_all")])
    place = pc.index_in(examples.column("item_id"), value_set=counts.column("item_id").combine_chunks())
    popularity = pc.fill_null(counts.column("count_all").take(place), 0).to_numpy()
    label, split = examples.column("outcome").to_numpy(), np.array(examples.column("split").to_pylist())
    return {name: auc(popularity[split == name], label[split == name]) for name in schema.SPLITS}


@pytest.mark.parametrize("reject", ["request", "seen"])
@pytest.mark.parametrize("per_positive", [1.0, 2.5])
def test_matched_negatives_of_own_tables(tmp_path: Path, reject: str, per_positive: float) -> None:
    logs = build_logs(shop_settings(tmp_path, negatives={"reject": reject, "per_positive": per_positive}), seed=5)
    examples, events = logs.tables["examples"], logs.tables["events"]
    positives = examples.filter(pc.equal(examples.column("outcome"), 1))
    negatives = examples.filter(pc.equal(examples.column("outcome"), 0))
    assert set(encoded(positives, "user_id", "item_id", "request_id")) <= set(encoded(events, "user_id", "item_id", "request_id"))
    # never a positive of the same request, and never twice
    assert not set(encoded(negatives, "request_id", "item_id")) & set(encoded(events, "request_id", "item_id"))
    assert len(set(encoded(examples, "request_id", "item_id"))) == len(examples)
    # a negative stands at the user and time of its request
    assert set(encoded(negatives, "user_id", "request_id", "ts")) <= set(encoded(events, "user_id", "request_id", "ts"))
    if reject == "seen":
        ends = {"train": logs.info.validation_start, "validation": logs.info.train_end, "test": logs.info.end}
        first_met: dict[tuple[object, object], object] = {}
        for user, item, ts in sorted(encoded(events, "user_id", "item_id", "ts"), key=lambda row: row[2]):
            first_met.setdefault((user, item), ts)
        met = [(u, i) for u, i, split in encoded(negatives, "user_id", "item_id", "split") if (u, i) in first_met and first_met[u, i] < ends[split]]
        assert met == []
    else:
        assert len(negatives) == pytest.approx(per_positive * len(positives), rel=0.1)
    assert all(abs(value - 0.5) < 0.02 for value in popularity_auc(logs).values())
    assert "not impressions" in logs.info.exposure
    assert set(examples.column("origin").to_pylist()) == {"sampled"}


def test_examples_lie_in_their_windows_and_outside_of_history(tmp_path: Path) -> None:
    logs = build_logs(shop_settings(tmp_path), seed=5)
    info = logs.info
    bounds = {
        "train": (info.history_end, info.validation_start),
        "validation": (info.validation_start, info.train_end),
        "test": (info.train_end, info.end),
    }
    for split, ts in encoded(logs.tables["examples"], "split", "ts"):
        low, high = bounds[split]
        assert low <= ts < high
    assert sum(info.num_examples.values()) == len(logs.tables["examples"])


def test_future_events_change_no_earlier_label(tmp_path: Path) -> None:
    raw = by_hand()
    later = events_table([{"user": "b", "item": "x", "hour": 39, "kind": "click", "request": "r2"}])
    later = later.set_column(0, schema.EVENTS.field("event_id"), pa.array(["planted"]))
    settings = LogsSettings.model_validate({"source": "synthetic", "split": SPLIT, "labels": {"outcome_window_h": 400, "conversion_window_h": 400}})
    before = rows_of(logs_from(raw, settings, seed=1))
    after = rows_of(logs_from(RawLogs(**{**raw.__dict__, "events": pa.concat_tables([raw.events, later])}), settings, seed=1))
    assert {key: row for key, row in after.items() if row[0] != "test"} == {key: row for key, row in before.items() if row[0] != "test"}


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    baskets=st.lists(st.tuples(st.integers(0, 4), st.sets(st.integers(0, 9), min_size=1, max_size=4)), min_size=4, max_size=30),
    seed=st.integers(0, 2**31),
    per_positive=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_matched_negatives_hold_for_any_baskets(baskets: list[tuple[int, set[int]]], seed: int, per_positive: float) -> None:
    item = np.array([item for _, basket in baskets for item in sorted(basket)], np.int64)
    group = np.array([place for place, (_, basket) in enumerate(baskets) for _ in basket], np.int64)
    block = group // 8
    chosen = np.unique(group * 10 + item)
    source, drawn, keep = popularity_matched(item, group, block, chosen, group, 10, per_positive, np.random.default_rng(seed))
    keys = group[source] * 10 + drawn
    assert not np.isin(keys, chosen).any()
    assert len(np.unique(keys)) == len(keys)
    # within a block, an item never has more negatives than its positives allow
    have = np.zeros((block.max() + 1, 10), np.int64)
    np.add.at(have, (block[source], drawn), 1)
    most = np.zeros_like(have)
    np.add.at(most, (block, item), int(np.ceil(per_positive)))
    assert (have <= most).all()
    if per_positive == 1.0:  # exactly matched, thinned positives included
        kept = np.zeros_like(have)
        np.add.at(kept, (block[keep], item[keep]), 1)
        assert (kept == have).all()


def test_user_sample_counts_what_it_drops_and_keeps_what_it_needs(tmp_path: Path) -> None:
    whole = build_logs(shop_settings(tmp_path), seed=5)
    logs = build_logs(shop_settings(tmp_path, sample={"num_users": 20, "max_positives_per_user": 3}), seed=5)
    assert logs.info.num_users == 20
    assert logs.rows_in == logs.info.num_events + logs.dropped["user not in the sample"] == whole.info.num_events
    examples = logs.tables["examples"]
    positives = examples.filter(pc.equal(examples.column("outcome"), 1))
    per_user = positives.group_by(["user_id", "split"]).aggregate([([], "count_all")]).column("count_all").to_pylist()
    assert max(per_user) == 3
    needed = set(examples.column("item_id").to_pylist()) | set(logs.tables["events"].column("item_id").to_pylist())
    assert set(logs.tables["items"].column("item_id").to_pylist()) == needed


def test_strata_have_equal_shares() -> None:
    count = np.random.default_rng(1).permutation(200)
    chosen = stratified(count, count >= 100, 40, np.random.default_rng(2))
    assert np.bincount(count[chosen] // 10).tolist() == [0] * 10 + [4] * 10
    assert stratified(count, count >= 100, 500, np.random.default_rng(2)).sum() == 100


def test_item_sample_drops_their_events(tmp_path: Path) -> None:
    logs = build_logs(shop_settings(tmp_path, sample={"num_items": 20}), seed=5)
    assert logs.info.num_items == 20
    assert logs.rows_in == logs.info.num_events + logs.dropped["item not in the sample"]
    assert set(logs.tables["examples"].column("item_id").to_pylist()) <= set(logs.tables["items"].column("item_id").to_pylist())


def test_capped_logged_exposures_keep_the_users_rate() -> None:
    base = {"source": "synthetic", "synthetic": {"num_users": 80, "num_items": 60, "sessions_per_user": 40}}
    whole, capped = (build_logs(LogsSettings.model_validate(base | extra), seed=2) for extra in ({}, {"sample": {"max_positives_per_user": 5}}))
    rate = [pc.mean(logs.tables["examples"].column("outcome")).as_py() for logs in (whole, capped)]
    assert capped.info.num_examples["train"] < 0.7 * whole.info.num_examples["train"]
    assert rate[1] == pytest.approx(rate[0], abs=0.03)


def test_one_seed_gives_one_result_and_another_seed_another(tmp_path: Path) -> None:
    first, again, other = (build_logs(shop_settings(tmp_path), seed=seed).tables["examples"] for seed in (5, 5, 6))
    assert first.equals(again)
    assert not first.equals(other)


@pytest.mark.parametrize(
    ("given_time", "is_kept"),
    [(at(-24 * 400), True), (at(-1), True), (at(0), False), (at(1), False)],  # of x, which was first shown at hour 0
)
def test_a_first_event_is_left_censored_and_an_earlier_first_sight_is_not(given_time: datetime, is_kept: bool) -> None:
    raw = by_hand()
    items = raw.items.append_column("first_seen", pa.array([given_time, None], schema.TIMESTAMP))
    raw = RawLogs(**{**raw.__dict__, "items": items})
    settings = {"source": "synthetic", "split": SPLIT}
    censored = logs_from(raw, LogsSettings.model_validate(settings), seed=1).tables["items"].column("first_seen").to_pylist()
    assert censored == [given_time if is_kept else None, None]  # y was first shown in the logs' first days
    trusted = logs_from(raw, LogsSettings.model_validate(settings | {"censored_days": 0}), seed=1).tables["items"].column("first_seen").to_pylist()
    assert trusted == [given_time, pc.min(raw.events.filter(pc.equal(raw.events.column("item_id"), "y")).column("ts")).as_py()]


def test_history_price_sees_the_history_window_only() -> None:
    rows = [
        {"user": "a", "item": "x", "hour": hour, "kind": "purchase", "price": price} for hour, price in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (20, 900.0))
    ]
    rows += [{"user": "b", "item": "y", "hour": hour, "kind": "purchase", "price": 7.0} for hour in (11, 28, 40)]
    rows += [{"user": "a", "item": "x", "hour": hour, "kind": "purchase", "price": 900.0} for hour in (27, 39)]
    raw = by_hand()
    raw = RawLogs(**{**raw.__dict__, "events": events_table(rows), "labels": tables.own_labels({"purchase"}), "price_from_history": True})
    logs = logs_from(raw, LogsSettings.model_validate({"source": "synthetic", "split": SPLIT, "negatives": {"block_days": 0}}), seed=1)
    assert logs.tables["items"].column("price").to_pylist() == [3.0, None]


def test_available_candidates_by_hand() -> None:
    """Two shops with their own shelves; a visit's candidates come from the shop's shelf, and what was bought there is no negative."""
    shelves = {1: [0, 1, 2, 3], 2: [2, 3, 4, 5]}
    rng = np.random.default_rng(0)
    rows, pools = [], []
    for visit in range(400):
        shop_id = 1 + visit % 2
        for item in rng.choice([*shelves[shop_id], 6], 2, replace=False):  # item 6 is never on offer
            rows.append({"user": f"u{visit % 20}", "item": f"i{item}", "hour": visit, "kind": "purchase", "request": f"b{visit}"})
            pools.append(1000 * (visit // 40) + shop_id)  # a shop in a "week" of 40 hours

    def offered(wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pairs = sorted((item, int(pool)) for pool in wanted for item in shelves[int(pool) % 1000])
        return np.array([item for item, _ in pairs]), np.array([pool for _, pool in pairs])

    raw = RawLogs(
        users=pa.table({"user_id": [f"u{row}" for row in range(20)]}),
        items=pa.table({"item_id": [f"i{row}" for row in range(7)], "title": [f"thing {row}" for row in range(7)]}),
        events=events_table(rows),
        labels=tables.own_labels({"purchase"}),
        negatives=Negatives(policy="available"),
        rows_in=len(rows),
        pools=Pools(np.array(pools), offered, lambda ids: [f"pool {number}" for number in ids.tolist()], "what the shop's shelf held"),
    )
    logs = logs_from(raw, LogsSettings.model_validate({"source": "synthetic", "split": {"history_frac": 0.3, "train_frac": 0.4}}), seed=4)
    examples = logs.tables["examples"]
    taken = {(f"{row['user']} pool {pool}", row["item"]) for row, pool in zip(rows, pools, strict=True)}
    first_ts: dict[str, object] = {}
    for row, pool in zip(rows, pools, strict=True):
        first_ts.setdefault(f"{row['user']} pool {pool}", at(row["hour"]))
    for row in examples.to_pylist():
        request = row["request_id"]
        assert int(row["item_id"][1:]) in shelves[int(request.split()[-1]) % 1000]
        assert row["ts"] == first_ts[request]
        assert row["outcome"] == int((request, row["item_id"]) in taken)
    for split in schema.SPLITS:
        part = examples.filter(pc.equal(examples.column("split"), split))
        counts = {
            (row["item_id"], row["outcome"]): row["count_all"] for row in part.group_by(["item_id", "outcome"]).aggregate([([], "count_all")]).to_pylist()
        }
        assert all(counts[item, 0] == counts[item, 1] for item, _ in counts)
    assert "available, not necessarily seen" in logs.info.exposure


def test_available_needs_pools(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='"available" needs a source that knows what was on offer'):
        build_logs(shop_settings(tmp_path, negatives={"policy": "available"}), seed=5)


def test_written_parts_hold_every_row_once(tmp_path: Path) -> None:
    logs = build_logs(shop_settings(tmp_path), seed=5)
    store = Store.open(str(tmp_path / "run"))
    draft = store.create("logs", "k")
    logs.write(draft, rows_per_file=1000)
    artifact = draft.commit(
        config={}, inputs={}, seed=5, rows_in=logs.rows_in, rows_out=logs.info.num_events, dropped=logs.dropped, info=logs.info.model_dump(mode="json")
    )
    parts = sorted(Path(artifact.path("examples.parquet")).iterdir())
    assert [part.name for part in parts] == [f"part-{place:05d}.parquet" for place in range(len(parts))]
    assert [pq.read_metadata(part).num_rows for part in parts[:-1]] == [1000] * (len(parts) - 1)
    assert artifact.read("examples").column("example_id").to_pylist() == list(range(len(logs.tables["examples"])))
    splits = np.array(artifact.read("examples").slice(0, 1000).column("split").to_pylist())
    assert set(splits) == set(schema.SPLITS)  # a seeded random order, not the order of time
    for name, expected in (("items", schema.ITEMS), ("events", schema.EVENTS), ("examples", schema.EXAMPLES)):
        assert artifact.read(name).schema.equals(expected)


def test_fingerprint_follows_the_tables_bytes(tmp_path: Path) -> None:
    settings = shop_settings(tmp_path)
    before = fingerprint(settings)
    assert fingerprint(settings) == before
    assert settings.tables is not None
    changed = pq.read_table(settings.tables.items).slice(1)
    pq.write_table(changed, settings.tables.items)
    assert fingerprint(settings) != before


def test_missing_tables_are_named(tmp_path: Path) -> None:
    paths = write(shop(), tmp_path) | {"items": str(tmp_path / "nowhere.parquet")}
    with pytest.raises(ValueError, match=r"logs.tables.items = .*nowhere.parquet.*nothing is there"):
        fingerprint(LogsSettings.model_validate({"source": "tables", "tables": paths}))


def test_encodings_that_save_room_are_read_like_plain_columns(tmp_path: Path) -> None:
    world = shop()
    plain = build_logs(shop_settings(tmp_path), seed=5)
    times = world["events"].column("ts").cast(pa.timestamp("ns", "UTC"))
    stored = {
        "users": world["users"].set_column(0, "user_id", world["users"].column("user_id").cast(pa.string_view())),
        "items": world["items"].set_column(0, "item_id", world["items"].column("item_id").dictionary_encode()),
        "events": world["events"]
        .set_column(1, "user_id", world["events"].column("user_id").dictionary_encode())
        .set_column(2, "ts", pc.add(times, pa.scalar(7, pa.duration("ns")))),
    }
    folder = tmp_path / "stored"
    folder.mkdir()
    encoded = build_logs(shop_settings(tmp_path, tables=write(stored, folder)), seed=5)
    assert all(encoded.tables[name].equals(plain.tables[name]) for name in ("users", "items", "events", "examples"))


def test_parts_of_a_folder_that_differ_are_named(tmp_path: Path) -> None:
    world, folder = shop(), tmp_path / "items"
    folder.mkdir()
    pq.write_table(world["items"], folder / "a.parquet")
    pq.write_table(world["items"].append_column("brand", pa.repeat("x", 40)), folder / "b.parquet")
    paths = write(world, tmp_path) | {"items": str(folder)}
    with pytest.raises(ValueError, match=r"logs\.tables\.items = .*b\.parquet from .*a\.parquet by \[.*brand"):
        tables.read(tables.TablesSettings.model_validate(paths))


def test_tables_section_and_source_go_together() -> None:
    with pytest.raises(ValidationError, match="go together"):
        LogsSettings.model_validate({"source": "tables"})


def test_undeclared_attributes_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        logs = build_logs(shop_settings(tmp_path, categorical_attributes=None), seed=5)
    assert logs.tables["users"].column_names == ["user_id"]
    assert "['city'] are not declared" in caplog.text


def test_unknown_ids_are_dropped_and_counted_on_request(tmp_path: Path) -> None:
    world = shop()
    world["users"] = world["users"].slice(1)
    world["items"] = world["items"].slice(1)
    paths = write(world, tmp_path)
    base = {"source": "tables", "categorical_attributes": ["city"], "split": {"history_frac": 0.4}}
    with pytest.raises(ValueError, match="user_id that the table users does not have"):
        build_logs(LogsSettings.model_validate(base | {"tables": paths}), seed=5)
    logs = build_logs(LogsSettings.model_validate(base | {"tables": paths | {"unknown_ids": "drop"}}), seed=5)
    assert logs.rows_in == len(world["events"]) == logs.info.num_events + logs.dropped["unknown user"] + logs.dropped["unknown item"]


def test_titles_are_readable() -> None:
    assert complete_journey.title("FRZN BAGGED VEGETABLES - PLAIN", "FRZN VEGETABLE/VEG DSH", "16 OZ", "Private", 69).endswith(", 16 oz, private label 69")
    assert complete_journey.title("BUTTER", "BUTTER", "1 LB", "National", 709) == "butter, 1 lb, brand 709"
    assert complete_journey.title(None, None, None, "National", 2) == "unnamed product, brand 2"
    assert movielens.readable_title("Usual Suspects, The", "1995") == "The Usual Suspects (1995)"
    assert movielens.readable_title("Toy Story", "1995") == "Toy Story (1995)"
    assert movielens.readable_title("unkonwn", "unkonwn") == "unkonwn"


def test_movielens_100k_is_read_as_it_is_and_popularity_tells_nothing() -> None:
    assert importlib.util.find_spec("recbole") is not None, "the locked dependencies hold recbole, whose example files this source reads"
    logs = build_logs(LogsSettings(source="movielens_100k"), seed=7)
    kinds = {row["values"]: row["counts"] for row in pc.value_counts(logs.tables["events"].column("kind")).to_pylist()}
    assert kinds == {"click": 100_000, "purchase": 34_174 + 21_201}
    assert (logs.info.num_users, logs.info.num_items) == (943, 1682)
    assert all(abs(value - 0.5) < 0.005 for value in popularity_auc(logs).values())
    examples = logs.tables["examples"]
    likes = examples.filter(pc.equal(examples.column("conversion"), 1))
    assert set(encoded(likes, "outcome")) == {(1,)}
    events = logs.tables["events"]
    liked = events.filter(pc.equal(events.column("kind"), "purchase"))
    assert set(encoded(likes, "user_id", "item_id", "ts")) <= set(encoded(liked, "user_id", "item_id", "ts"))


@pytest.mark.slow
def test_complete_journey_sample_is_matched_and_holds_all_it_needs() -> None:
    settings = LogsSettings.model_validate(
        {
            "source": "complete_journey",
            "split": {"history_end": "2017-05-01T04:00:00Z", "train_end": "2017-11-06T05:00:00Z"},
            "sample": {"num_users": 60},
        }
    )
    logs = build_logs(settings, seed=7)
    assert logs.rows_in == 1_469_307 == logs.info.num_events + sum(logs.dropped.values())
    assert logs.info.num_users == 60
    assert all(abs(value - 0.5) < 0.02 for value in popularity_auc(logs).values())
    history_end = to_us(logs.info.history_end)
    events = logs.tables["events"]
    assert pc.min(events.column("ts").cast(pa.int64())).as_py() < history_end
    taken = set(encoded(events, "user_id", "item_id"))
    positives = logs.tables["examples"].filter(pc.equal(logs.tables["examples"].column("outcome"), 1))
    assert set(encoded(positives, "user_id", "item_id")) <= taken
    assert logs.info.start < logs.info.history_end < logs.info.start + timedelta(days=200)
