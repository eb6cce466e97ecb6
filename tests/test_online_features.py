"""Online features: what is published of a run answers a request as the run's own indexes answer the same row, from every store."""

import dataclasses
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from longtail.feature_state import FeatureState
from longtail.features import ItemFacts, Rows
from longtail.online import met_by_peers, redis_store
from longtail.online.features import MOST_KEYS, ByKey, KeyIndex, KeyTable, OnlineFeatures, events_by
from longtail.online.mapped import read_tables, row_of, write_tables
from longtail.online.records import Ints, UserRecord
from longtail.online.tables import online_tables
from longtail.peers import PEER_STATS
from longtail.times import DAY_US, to_us
from tests import redis_server, small_features, small_world
from tests.test_features import SCORES, collaborative
from tests.test_peers import index

ITEMS = ("book", "milk", "odd", "soap", "tea")


def published(state: FeatureState, end: datetime, folder: Path) -> OnlineFeatures:
    write_tables(online_tables(state, end), folder)
    return OnlineFeatures.of(read_tables(folder))


def assert_alike(state: FeatureState, online: OnlineFeatures, user_id: str, items: list[str], now: datetime) -> None:
    user_row = int(state.entities.users.encode([user_id])[0])
    item_row_B = state.entities.items.encode(items).astype(np.int64)
    rows = Rows(np.full(len(items), user_row), item_row_B, np.full(len(items), to_us(now)))
    expected = state.columns(rows)
    user = online.users.user(user_id) or UserRecord.nobody(len(online.meta.attributes))
    got = online.columns(user, item_row_B, to_us(now), None, user.attributes_A, user.codes)
    for name, values in got.items():
        assert np.allclose(np.broadcast_to(values, expected[name].shape), expected[name], atol=1e-6), (name, values, expected[name])
    assert set(expected) - set(got) == {"num_purchases", "item_events", "item_age_days"}, "which evaluation alone reads"


@pytest.mark.parametrize("day", [5, 12, 21, 25.5, 40])
def test_a_request_s_features_are_those_of_the_training_rows(day: float, tmp_path: Path) -> None:
    state, end = small_features.state(), small_world.day(day)
    online = published(state, end, tmp_path)
    for user in ("a", "b", "c", "d", "nobody"):
        for now in (end, small_world.day(day + 0.3), small_world.day(max(day - 0.2, 0))):
            if to_us(now) >= online.meta.since_us and online.meta.snapshot_us == snapshot(now):
                assert_alike(state, online, user, [*ITEMS, "?"], now)


def snapshot(now: datetime) -> int:
    week = 7 * 24 * 3_600_000_000
    return small_world.us(0) + (to_us(now) - small_world.us(0)) // week * week


@pytest.mark.parametrize("day", [12, 21, 35.5])
def test_collaborative_scores_and_peers_too_whatever_the_events(day: float, tmp_path: Path) -> None:
    draw = np.random.default_rng(round(day))
    kinds = small_world.INFO.behaviour_kinds
    rows = [(str(draw.choice(list("abc"))), str(draw.choice(ITEMS)), float(draw.uniform(0, day)), str(draw.choice(kinds))) for _ in range(60)]
    state = small_features.state(rows, collaborative=collaborative(rows), peers=index(rows))
    spec = state.spec.model_copy(update={"collaborative_stats": SCORES.scores, "peer_stats": PEER_STATS})
    online = published(dataclasses.replace(state, spec=spec), small_world.day(day), tmp_path)
    for user in ("a", "b", "c", "d", "nobody") * 2:  # the second time what peers had met is known
        assert_alike(state, online, user, [*ITEMS, "?"], small_world.day(day))


def test_what_peers_had_met_is_kept_for_the_last_users_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(met_by_peers, "MOST_KEPT", 2)
    state = small_features.state(peers=index())
    state = dataclasses.replace(state, spec=state.spec.model_copy(update={"peer_stats": PEER_STATS}))
    online = published(state, small_world.day(40), tmp_path)
    for user in ("a", "b", "a", "c", "d"):  # d has no peers
        assert_alike(state, online, user, [*ITEMS], small_world.day(40))
    assert online.peers is not None
    assert list(online.peers._kept) == [1, 3]


def test_peers_lend_what_they_know_of_the_kind_of_an_item_that_only_a_request_describes(tmp_path: Path) -> None:
    state = small_features.state(peers=index())
    state = dataclasses.replace(state, spec=state.spec.model_copy(update={"peer_stats": PEER_STATS}))
    online = published(state, small_world.day(21), tmp_path)
    tea, milk = small_features.TEA, small_features.MILK
    of_tea = online.facts(np.array([tea, tea]))
    user = online.users.user("a")
    assert user is not None

    def stats(items: list[int], stated: ItemFacts | None = None) -> list[list[float]]:
        return online.columns(user, np.array(items), small_world.us(21), stated, user.attributes_A, user.codes)["peer_stats"].tolist()

    known, described = stats([milk, 0], of_tea)
    assert known == stats([milk])[0], "what is stated of an item that the run knows is not read"
    assert described == [0.0, *stats([tea])[0][1:]], "all but who has met the very item"


def test_ids_are_found_in_their_order_by_bytes() -> None:
    ids = pa.array(sorted(["b", "a", "ä", "aa", "Z", "10", "9"], key=str.encode))
    assert [row_of(ids, one) for one in ids.to_pylist()] == list(range(1, 8))
    assert [row_of(ids, one) for one in ("", "0", "ab", "zzz", "ß")] == [0] * 5
    assert row_of(pa.array([], pa.string()), "a") == 0


def test_a_record_is_the_same_after_its_bytes(tmp_path: Path) -> None:
    online = published(small_features.state(peers=index()), small_world.day(40), tmp_path)
    record = online.users.user("a")
    assert record is not None
    again = UserRecord.from_bytes(record.to_bytes())
    for name in ("user_row", "attributes_A", "codes_S", "item_row_E", "time_E", "purchase_E", "log_price_E"):
        assert np.array_equal(getattr(again, name), getattr(record, name), equal_nan=name == "log_price_E"), name
    assert [rows.tolist() for rows in again.peer_row_VP] == [rows.tolist() for rows in record.peer_row_VP]
    assert again.codes == record.codes == (0, 1)


def test_events_that_come_later_are_as_if_the_logs_had_them(tmp_path: Path) -> None:
    now = small_world.day(41)
    more = [("a", "book", 40.5, "purchase"), ("a", "tea", 40.2, "click")]
    online = published(small_features.state(), small_world.day(40), tmp_path)
    user = online.users.user("a")
    assert user is not None
    later = user.with_events(
        np.array([1, 5]), np.array([small_world.us(40.5), small_world.us(40.2)]), np.array([True, False]), np.array([np.nan, np.log1p(2.0)])
    )
    items = online.entities.items.encode(ITEMS).astype(np.int64)
    got = online.columns(later, items, to_us(now), None, user.attributes_A, user.codes)
    (tmp_path / "second").mkdir()
    whole = published(small_features.state([*small_world.BEHAVIOUR, *more]), small_world.day(40), tmp_path / "second")
    known = whole.users.user("a")
    assert known is not None
    expected = whole.columns(known, items, to_us(now), None, user.attributes_A, user.codes)
    for name in ("history", "history_days", "user_stats", "cross_stats", "match_stats", "activity"):
        assert np.allclose(got[name], expected[name]), name
    assert got["history"][0, :2].tolist() == [1, 5]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server.running(tmp_path_factory.mktemp("redis")) as url:
        yield url


def test_redis_answers_as_the_mapped_files_do(redis_url: str, tmp_path: Path) -> None:
    state = small_features.state(collaborative=collaborative(), peers=index())
    state = dataclasses.replace(state, spec=state.spec.model_copy(update={"collaborative_stats": SCORES.scores, "peer_stats": PEER_STATS}))
    published(state, small_world.day(40), tmp_path)
    client = redis_store.connect(redis_url)
    assert not redis_store.there(client, "k1")
    with pytest.raises(ValueError, match=r"no features 'k1'.*pipelines\.publish"):
        redis_store.read(client, "k1")
    for key in ("k1", "k2"):
        redis_store.fill(client, "store", key, read_tables(tmp_path))
    assert redis_store.published_keys(client, "store") == ["k1", "k2"]
    assert redis_store.published_keys(client, "another") == []
    online = OnlineFeatures.build(*redis_store.read(client, "k1"), redis_store.RedisStore(client, "k1"))
    for user in ("a", "b", "c", "d", "nobody"):
        assert_alike(state, online, user, [*ITEMS, "?"], small_world.day(40))
    redis_store.remove(client, "store", "k1")
    assert redis_store.published_keys(client, "store") == ["k2"]
    with pytest.raises(RuntimeError, match="the features k1 are no longer in Redis"):
        online.users.user("a")
    assert not [name for name in client.keys("*") if b":k1:" in name]
    assert redis_store.RedisStore(client, "k2").user("a") is not None


def test_a_redis_that_does_not_answer_is_told_without_its_password() -> None:
    with pytest.raises(ValueError, match=r"serve\.redis_url = 'redis://…@127\.0\.0\.1:1/0'.*Start that Redis") as told:
        redis_store.connect("redis://me:secret@127.0.0.1:1/0")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("made", [lambda keys_E, time_E: KeyTable(keys_E, time_E, 9), KeyIndex.of, events_by])
def test_events_by_a_key_are_those_that_a_count_by_hand_finds(made: Callable[[Ints, Ints], ByKey]) -> None:
    draw = np.random.default_rng(4)
    keys_E, time_E, asked_B = draw.integers(0, 9, 60), np.sort(draw.integers(0, 100, 60)) * DAY_US, np.arange(14)
    now_us = 120 * DAY_US
    count_B, days_B = made(keys_E, time_E).count_and_days(asked_B, now_us)
    met_B = made(keys_E, time_E).had_met(asked_B, 12 * DAY_US)
    for key in asked_B:
        times = time_E[keys_E == key]
        assert count_B[key] == len(times)
        assert np.isnan(days_B[key]) if len(times) == 0 else days_B[key] == (now_us - times.max()) / DAY_US
        assert met_B[key] == any(times < 12 * DAY_US)
    assert 0 < met_B.sum() < len(set(keys_E)), "some were met early and some late"
    nothing = made(keys_E[:0], time_E[:0])
    assert nothing.count_and_days(asked_B, now_us)[0].sum() == 0
    assert not nothing.had_met(asked_B, now_us).any()


def test_many_keys_are_searched_and_few_looked_up() -> None:
    time_E = np.array([1, 2])
    assert isinstance(events_by(np.array([3, 5]), time_E), KeyTable)
    assert isinstance(events_by(np.array([3, MOST_KEYS]), time_E), KeyIndex)
