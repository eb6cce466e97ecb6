"""Ranking: a request's features and scores are those of the training samples; the unknown is ranked by what is said of it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch

from longtail import schema
from longtail.codes import encode
from longtail.entities import Entities, Vocabulary
from longtail.feature_state import lent_rows, match_rows, own_rows
from longtail.features import CROSS_STATS, ITEM_STATS
from longtail.matches import MATCH_STATS
from longtail.online.added import SeenEvent
from longtail.online.features import OnlineFeatures
from longtail.online.tables import online_tables
from longtail.questions import Encoded, Question, Ranking, StatedItem, StatedUser, UnanswerableError
from longtail.rankers.batch import Batch
from longtail.ranking import RequestRanker, stated_facts
from longtail.scoring import predict
from tests import small_run, small_world

ITEMS = ("book", "milk", "odd", "soap", "tea")
NAMES = ("base", "choirrec", "saviorrec")


@pytest.fixture(scope="module")
def ranker() -> RequestRanker:
    config = small_run.config("unused")
    return small_run.request_ranker(config, max_items=8)


def question(user_id: str = "a", items: tuple[str | StatedItem, ...] = ITEMS, name: str = "saviorrec", **more: object) -> Question:
    return Question(user_id, tuple(StatedItem(item) if isinstance(item, str) else item for item in items), name, **more)  # type: ignore[arg-type]


def by_id(ranking: Ranking) -> dict[str, float]:
    return {item.item_id: item.scores[0] for item in ranking.items}


def encoded(vectors: np.ndarray, user_codes: tuple[int, ...] | None = None) -> Encoded:
    return Encoded(user_codes, vectors, encode(vectors, small_run.item_codebook()))


NOBODYS = encoded(np.zeros((0, small_run.DIM), np.float32))


@pytest.mark.parametrize("day", [5, 12, 21, 25.5])
def test_features_and_scores_are_those_of_the_training_samples(day: float) -> None:
    config, now = small_run.config("unused"), small_world.day(day)
    ranker = small_run.request_ranker(config, 8, end=now)
    asked = [(user, now) for user in ("a", "b", "c", "d")]
    rows = [(user, item, now) for user, now in asked for item in ITEMS]
    examples = pa.table(
        {
            "example_id": np.arange(len(rows)),
            "user_id": [row[0] for row in rows],
            "item_id": [row[1] for row in rows],
            "ts": pa.array([row[2] for row in rows], schema.TIMESTAMP),
            "split": ["test"] * len(rows),
            "outcome": pa.array([0] * len(rows), pa.int8()),
            "conversion": pa.nulls(len(rows), pa.int8()),
        }
    )
    state = small_run.state(config)
    parts = own_rows(state.own, examples), match_rows(state.matches, examples), lent_rows(state.lent, examples)
    samples = pa.table({name: part.column(name) for part in parts for name in part.column_names})
    spec = state.spec
    for place, (user, now) in enumerate(asked):
        trained, served = Batch.from_table(samples.slice(place * len(ITEMS), len(ITEMS)), spec), ranker.batch(question(user, now=now))
        for feature in fields(Batch):
            assert torch.allclose(getattr(trained, feature.name), getattr(served, feature.name), atol=1e-6), feature.name
    for name in NAMES:
        evaluated = predict(ranker.rankers[name], name, samples, spec, batch_size=7)
        expected = dict(zip(evaluated.column("example_id").to_pylist(), evaluated.column("probability").to_pylist(), strict=True))
        for place, (user, now) in enumerate(asked):
            scores = by_id(ranker.rank(question(user, name=name, now=now)))
            assert np.allclose([scores[item] for item in ITEMS], [expected[place * len(ITEMS) + i] for i in range(len(ITEMS))], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_best_first_whatever_the_order_of_the_request(ranker: RequestRanker, name: str) -> None:
    ranking = ranker.rank(question(name=name))
    scores = [item.scores[0] for item in ranking.items]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(ITEMS)
    turned = ranker.rank(question(name=name, items=ITEMS[::-1]))
    assert [item.item_id for item in turned.items] == [item.item_id for item in ranking.items]
    assert np.allclose([item.scores[0] for item in turned.items], scores, atol=1e-6)


def test_the_time_of_a_request_is_the_end_of_the_logs_unless_it_says_another(ranker: RequestRanker) -> None:
    assert ranker.rank(question()).now == small_world.INFO.end
    assert by_id(ranker.rank(question())) == by_id(ranker.rank(question(now=small_world.INFO.end)))
    assert by_id(ranker.rank(question(now=small_world.day(41)))) != by_id(ranker.rank(question()))
    with pytest.raises(UnanswerableError, match=r"now = .* lies before 2026-02-05.*know what came until then"):
        ranker.rank(question(now=small_world.day(34)))


def test_an_unknown_user_is_everyone_until_the_request_says_more(ranker: RequestRanker) -> None:
    nobody, other = (ranker.rank(question(user, name="choirrec")) for user in ("nobody", "somebody else"))
    assert not nobody.user_known
    assert (nobody.group, nobody.group_basis) == ((), "everyone")
    assert by_id(nobody) == by_id(other)
    root = ranker.batch(question("nobody"))
    assert root.user_codes_BS.tolist() == [[0, 0]] * 5
    assert root.group_history_BG[0].any()

    stated = question("nobody", name="choirrec", user=StatedUser({"city": "Ulm"}))
    assert ranker.unknowns(stated).user == stated.user
    placed = ranker.rank(stated, replace(NOBODYS, user_codes=(0, 2)))
    assert (placed.group, placed.group_basis) == ((0, 2), "request")
    assert by_id(placed) != by_id(nobody)
    stated_batch = ranker.batch(stated, replace(NOBODYS, user_codes=(0, 2)))
    assert stated_batch.attributes_BA.tolist() == [[2, 0]] * 5
    assert stated_batch.completed_BA[:, 0].tolist() == [2] * 5
    # what the run knows is kept where a request states nothing
    assert ranker.batch(question("c", user=StatedUser({"city": "Bonn"}))).attributes_BA[0].tolist() == [1, 3]


def test_a_published_group_wins_over_a_stated_one_and_needs_no_encoder(ranker: RequestRanker) -> None:
    stated = question("a", user=StatedUser({"city": "Ulm"}))
    assert not ranker.unknowns(stated)
    answer = ranker.rank(stated)
    assert (answer.group, answer.group_basis, answer.user_known) == ((0, 1), "published", True)
    # before the first snapshot nobody has a group, and what the request states is all there is
    early = small_run.request_ranker(small_run.config("unused"), 8, end=small_world.day(10))
    assert early.unknowns(stated).user is not None


@pytest.mark.parametrize("name", NAMES)
def test_an_item_described_like_one_of_the_catalogue_scores_like_it(ranker: RequestRanker, name: str) -> None:
    # "odd" has neither events nor an ID of its own: its twin differs from it in nothing that a ranker sees, if vector and codes are the same
    twin = StatedItem("twin", title="Odd", price=9.0)
    answer = ranker.rank(question(name=name, items=("odd", twin)), encoded(small_run.item_vectors()[[2]]))
    assert {item.item_id: item.basis for item in answer.items} == {"odd": "catalogue", "twin": "content"}
    assert np.isclose(by_id(answer)["twin"], by_id(answer)["odd"], atol=1e-6)


def test_features_of_an_unknown_item_come_from_the_category_brand_and_price_stated() -> None:
    like_tea = StatedItem("tea two", "Tea", ("food", "drinks"), "x", 2.0, small_world.day(0))
    ranker = small_run.request_ranker(small_run.config("unused"), 8, end=small_world.day(12))
    asked = question("a", items=("tea", like_tea, "?"))
    tea = encoded(small_run.item_vectors()[[4]])
    batch = ranker.batch(asked, tea)
    cross = {name: batch.cross_stats_BX[:, place].tolist() for place, name in enumerate(CROSS_STATS)}
    cross |= {name: batch.match_stats_BM[:, place].tolist() for place, name in enumerate(MATCH_STATS)}
    for name in ("log_same_leaf", "log_same_root", "log_same_brand", "leaf_share", "leaf_recency", "price_gap", *MATCH_STATS):
        assert cross[name][1] == cross[name][0], name
        assert cross[name][1] != 0, name
        assert abs(cross[name][2]) < 1e-9, name
    assert cross["log_same_item"][1] == 0
    # Without codes, or with those of no item of the run, it is of no cluster.
    for without in (None, replace(tea, item_codes_NS=np.full((1, 2), 99, np.int32))):
        unplaced = ranker.batch(asked, without).match_stats_BM
        assert unplaced[1].tolist() == [0] * 3
        assert torch.equal(unplaced[0], batch.match_stats_BM[0])
    stats = {name: batch.item_stats_BI[:, place].tolist() for place, name in enumerate(ITEM_STATS)}
    for name in ("log_leaf_events_28d", "log_price", "price_known", "log_age_days", "age_known"):
        assert stats[name][1] == stats[name][0] > 0, name
    # Of the other item nothing is known; that nobody has met it is.
    assert {name: stats[name][2] for name in ITEM_STATS} == dict.fromkeys(ITEM_STATS, 0) | {"age_known": 1}
    assert stats["log_events"][1] == 0


def test_an_item_with_nothing_but_an_id_is_flagged_and_has_no_semantics(ranker: RequestRanker) -> None:
    answer = ranker.rank(question(items=("tea", "?", "??")))
    assert {item.item_id: item.basis for item in answer.items} == {"tea": "catalogue", "?": "none", "??": "none"}
    assert by_id(answer)["?"] == by_id(answer)["??"]
    assert not ranker.unknowns(question(items=("tea", "?")))


def test_a_described_item_follows_its_vector_and_its_codes_and_leaves_no_trace(ranker: RequestRanker) -> None:
    described = question(items=("tea", StatedItem("new", title="New")))
    before = by_id(ranker.rank(question(items=("tea", "?"))))
    vectors = small_run.item_vectors()
    first, second = (by_id(ranker.rank(described, encoded(vectors[[row]])))["new"] for row in (0, 1))
    assert first != second
    codes_only = replace(encoded(vectors[[0]]), item_codes_NS=(encode(vectors[[0]], small_run.item_codebook()) + 1) % 4)
    assert by_id(ranker.rank(described, codes_only))["new"] != first
    assert by_id(ranker.rank(question(items=("tea", "?")))) == before
    # Of semantics the base knows what the user did with the item's cluster, and no more: not the vector, and nothing for who has done nothing.
    base, same_codes = replace(described, ranker="base"), encoded(vectors[[0]]).item_codes_NS
    other_vectors = [replace(encoded(vectors[[row]]), item_codes_NS=same_codes) for row in (0, 1)]
    assert len({by_id(ranker.rank(base, one))["new"] for one in other_vectors}) == 1
    assert len({by_id(ranker.rank(replace(base, user_id="d"), encoded(vectors[[row]])))["new"] for row in (0, 1)}) == 1
    assert len({by_id(ranker.rank(base, encoded(vectors[[row]])))["new"] for row in (0, 1)}) == 2


def test_a_request_is_looked_up_once_and_only_unknown_items_are_read(ranker: RequestRanker, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = question(items=(StatedItem("tea", "Tea", ("food", "drinks"), "x", 2.0), "soap", StatedItem("new", "New", ("home",), "y", 3.0)))
    alone = ranker.rank(asked, encoded(small_run.item_vectors()[[0]]))
    looked_up, read = [], []
    encode_values, category_codes = Vocabulary.encode, Entities.category_codes

    def counting(self: Vocabulary, values: Sequence[str | None]) -> np.ndarray:
        if self is ranker.features.entities.items:
            looked_up.append(values)
        return encode_values(self, values)

    def reading(self: Entities, category: Sequence[str]) -> np.ndarray:
        read.append(tuple(category))
        return category_codes(self, category)

    monkeypatch.setattr(Vocabulary, "encode", counting)
    monkeypatch.setattr(Entities, "category_codes", reading)
    found = ranker.find(asked)
    assert [item.item_id for item in ranker.unknowns(asked, found).items] == ["new"]
    assert ranker.rank(asked, encoded(small_run.item_vectors()[[0]]), found) == alone
    assert len(looked_up) == 1
    assert set(read) == {("home",)}
    assert stated_facts(asked.items[:2], found.item_row_B[:2], ranker.features.entities) is None


def test_requests_at_the_same_time_do_not_mix(ranker: RequestRanker) -> None:
    vectors = small_run.item_vectors()
    asked = [(question(items=("tea", StatedItem(f"new {row}", title="New"))), encoded(vectors[[row % 5]])) for row in range(60)]
    alone = [by_id(ranker.rank(*one)) for one in asked]
    with ThreadPoolExecutor(8) as pool:
        together = [by_id(ranking) for ranking in pool.map(lambda one: ranker.rank(*one), asked)]
    assert together == alone


def test_too_many_unknown_items_and_unknown_heads_are_refused(ranker: RequestRanker) -> None:
    with pytest.raises(ValueError, match=r"9 unknown items .* serve\.max_items = 8"):
        ranker.rank(question(items=tuple(f"item {number}" for number in range(9))))
    with pytest.raises(ValueError, match=r"'saviorrec' has no head \['conversion'\]"):
        ranker.rank(question(heads=("conversion",)))


def test_a_ranker_of_another_run_is_refused() -> None:
    config = small_run.config("unused")
    wider = config.model_copy(update={"samples": config.samples.model_copy(update={"history_length": 4})})
    with pytest.raises(ValueError, match=r"trained on other features.*history_length"):
        RequestRanker(OnlineFeatures.of(online_tables(small_run.state(wider), small_world.INFO.end), 1), small_run.rankers(config), max_items=1)


@pytest.mark.parametrize("name", NAMES)
def test_an_item_told_of_is_ranked_as_one_described_and_stays(name: str) -> None:
    ranker, asked = small_run.request_ranker(small_run.config("unused"), 8), ("odd", "twin", "tea")
    vectors = small_run.item_vectors()
    twin = StatedItem("twin", title="Odd", price=9.0)
    described = by_id(ranker.rank(question(name=name, items=("odd", twin, "tea")), encoded(vectors[[2]])))
    codes = encode(vectors, small_run.item_codebook())
    assert ranker.put_item(twin, vectors[2], codes[2], told_us=small_world.us(41))
    told = ranker.rank(question(name=name, items=asked))
    assert {item.item_id: item.basis for item in told.items} == {"odd": "catalogue", "twin": "added", "tea": "catalogue"}
    assert np.allclose([by_id(told)[item] for item in asked], [described[item] for item in asked], atol=1e-6)
    assert not ranker.unknowns(question(items=(twin,)))
    # many more do not move it, and one that is told again is told anew
    for number in range(100):
        assert ranker.put_item(StatedItem(f"other {number}", title="x"), vectors[number % 5], codes[number % 5], told_us=small_world.us(41))
    assert by_id(ranker.rank(question(name=name, items=asked))) == by_id(told)
    assert not ranker.put_item(StatedItem("twin", title="Tea", price=2.0), vectors[4], codes[4], told_us=small_world.us(42))
    assert by_id(ranker.rank(question(name=name, items=asked)))["twin"] != by_id(told)["twin"]


def test_a_catalogue_s_item_told_of_is_what_was_told() -> None:
    ranker, vectors = small_run.request_ranker(small_run.config("unused"), 8), small_run.item_vectors()
    before = by_id(ranker.rank(question()))
    assert not ranker.put_item(StatedItem("odd", "Odd", price=1.0), vectors[0], encode(vectors, small_run.item_codebook())[0], told_us=small_world.us(41))
    after = ranker.rank(question())
    assert {item.basis for item in after.items} == {"catalogue"}
    assert by_id(after)["odd"] != before["odd"]
    assert all(by_id(after)[item] == before[item] for item in ITEMS if item != "odd")


def test_a_user_told_of_is_grouped_and_events_are_their_history() -> None:
    ranker, vectors = small_run.request_ranker(small_run.config("unused"), 8), small_run.item_vectors()
    codes = encode(vectors, small_run.item_codebook())
    nobody = ranker.rank(question("new"))
    ranker.put_user("new", {"city": "Ulm"}, (0, 2))
    told = ranker.rank(question("new"))
    assert (told.user_known, told.group, told.group_basis) == (True, (0, 2), "added")
    assert by_id(told) != by_id(nobody)
    assert ranker.batch(question("new")).attributes_BA[:, 0].tolist() == [2] * 5
    events = [SeenEvent("new", "tea", "purchase", small_world.us(41)), SeenEvent("a", "book", "click", small_world.us(42), 3.0)]
    ignored = [SeenEvent("a", "tea", "search", small_world.us(42)), SeenEvent("a", "tea", "click", 0)]
    assert ranker.add_events([*events, *ignored]) == 2
    batch = ranker.batch(question("new"))
    assert batch.history_BL[0].tolist() == [5, 0, 0]
    assert batch.activity_B3[0].tolist() == [1, 0, 0], "the day is not over"
    assert ranker.rank(question("new")).now == small_world.day(41) + timedelta(microseconds=1)
    assert ranker.batch(question("a")).history_BL[0, 0] == 1
    # a published group stays, and an item that was told of may be in a history
    ranker.put_user("a", {"city": "Ulm"}, (0, 2))
    assert (ranker.rank(question("a")).group, ranker.rank(question("a")).group_basis) == ((0, 1), "published")
    assert ranker.batch(question("a")).attributes_BA[0, 0] == 2
    ranker.put_item(StatedItem("later", "Later"), vectors[0], codes[0], small_world.us(43))
    assert ranker.add_events([SeenEvent("a", "later", "purchase", small_world.us(44))]) == 1
    # an event may come before its item does
    assert ranker.add_events([SeenEvent("b", "soon", "purchase", small_world.us(44))]) == 0
    assert ranker.batch(question("b")).history_BL[0, 0] != 15
    ranker.put_item(StatedItem("soon", "Soon"), vectors[1], codes[1], small_world.us(45))
    assert ranker.batch(question("b")).history_BL[0, 0] == 15
    answer = ranker.rank(question("a", name="saviorrec", explain=True))
    assert "later" in {one.item_id for item in answer.items for one in (item.explanation.attended["history"] if item.explanation else ())}
