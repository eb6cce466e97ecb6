"""Drift: themes change topics at the planned moments, nobody stays where it was told to go, and the world without drift is what it was."""

import hashlib
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from longtail.logs import Logs, LogsSettings, build_logs
from longtail.sources.drift import Drift, DriftSettings, regrouped
from longtail.times import DAY_US, to_us
from longtail.windows import Windows
from tests.test_synthetic import cell_auc

TINY = {"num_users": 60, "num_items": 60, "num_days": 40}
WINDOWS = Windows(0, 10 * DAY_US, 18 * DAY_US, 20 * DAY_US, 34 * DAY_US)
#: Digests of worlds as they were before there was drift.
BEFORE = {
    "default": ({}, "1078a8491b3a2528"),
    "no groups": ({"num_groups": 1}, "704124ba04821cb7"),
    "own tastes": ({"tastes": "own", "num_groups": 1}, "4c2dd5318fbca8b2"),
    "made-up words": ({"num_topics": 30, "cold_item_frac": 0}, "9d682756b4e321c9"),
}


def settings(**synthetic: object) -> LogsSettings:
    split = {"history_end": "2024-02-10T00:00:00Z", "train_end": "2024-03-11T00:00:00Z"}
    return LogsSettings.model_validate({"source": "synthetic", "split": split, "synthetic": synthetic})


@pytest.mark.parametrize("name", BEFORE)
def test_a_world_without_drift_is_bit_equal_to_what_it_was(name: str) -> None:
    changes, expected = BEFORE[name]
    tables = build_logs(LogsSettings.model_validate({"source": "synthetic", "synthetic": TINY | changes}), seed=1).tables
    digest = hashlib.sha256()
    for table in sorted(tables):
        digest.update(table.encode())
        digest.update(repr(tables[table].to_pydict()).encode())
    assert digest.hexdigest()[:16] == expected


def test_the_logs_key_knows_of_drift_only_where_there_is_some() -> None:
    assert {"drift", "launch_frac"}.isdisjoint(LogsSettings().key_fields()["synthetic"])
    changed = settings(launch_frac=1.0, drift={"themes_per_topic": 2}).key_fields()["synthetic"]
    assert (changed["launch_frac"], changed["drift"]["themes_per_topic"]) == (1.0, 2)


def test_two_of_three_themes_change_places_by_hand() -> None:
    after = regrouped(np.array([0, 1, 2]), 2, np.random.default_rng(0))
    assert sorted(after.tolist()) == [0, 1, 2]
    assert (after != [0, 1, 2]).sum() == 2


@given(st.integers(3, 8), st.integers(1, 4), st.integers(2, 32), st.integers(0, 1000))
def test_as_many_as_asked_move_and_topics_keep_their_size(topics: int, per_topic: int, moving: int, seed: int) -> None:
    before = np.random.default_rng(seed).permutation(np.arange(topics * per_topic) % topics)
    moving = min(moving, len(before))
    after = regrouped(before, moving, np.random.default_rng([seed, 1]))
    assert (after != before).sum() == moving
    assert np.array_equal(np.bincount(after), np.bincount(before))


def test_topics_by_time() -> None:
    weekly = Drift.of(DriftSettings(themes_per_topic=2, start="train_end", frac=0.5, every_days=7), 4, WINDOWS, seed=3)
    assert weekly.since_M[1:].tolist() == [20 * DAY_US, 27 * DAY_US]
    themes = np.arange(8)
    at = [weekly.topics(themes, np.full(8, time)) for time in (0, 20 * DAY_US - 1, 20 * DAY_US, 27 * DAY_US - 1, 33 * DAY_US)]
    assert np.array_equal(at[0], themes % 4)
    assert [int((a != b).sum()) for a, b in pairwise(at)] == [0, 4, 0, 4]
    once = Drift.of(DriftSettings(themes_per_topic=2, start="history_end", frac=0.25), 4, WINDOWS, seed=3)
    assert once.since_M[1:].tolist() == [10 * DAY_US]
    never = Drift.of(DriftSettings(themes_per_topic=3), 4, WINDOWS, seed=3)
    assert never.topic_MH.tolist() == [[0, 1, 2, 3] * 3]


@pytest.fixture(scope="module")
def drifted() -> Logs:
    """Half of the themes change places once, at the end of the history window."""
    world = {"num_users": 300, "num_items": 240, "num_groups": 1, "num_topics": 6, "topics_per_group": 1, "num_days": 90, "sessions_per_user": 30}
    return build_logs(settings(**world, launch_frac=1.0, drift={"themes_per_topic": 2, "start": "history_end", "frac": 0.5}), seed=5)


def test_titles_tell_themes_and_clicks_follow_the_topics_of_their_time(drifted: Logs) -> None:
    truth, items = drifted.tables["truth_items"], drifted.tables["items"]
    theme = truth.column("item_theme").to_numpy()
    half = np.arange(len(theme)) % 2 == 0
    words = CountVectorizer().fit_transform(items.column("title").to_pylist())
    assert LogisticRegression(max_iter=500).fit(words[half], theme[half]).score(words[~half], theme[~half]) > 0.95

    topics = np.array(truth.column("topics").to_pylist())
    assert truth.column("topics_since")[0].as_py() == [None, datetime(2024, 2, 10, tzinfo=UTC)]
    assert np.array_equal(topics[:, 0], truth.column("item_topic").to_numpy())
    examples = drifted.tables["examples"]
    user = pc.index_in(examples.column("user_id"), value_set=truth_ids(drifted, "user")).to_numpy()
    item = pc.index_in(examples.column("item_id"), value_set=truth_ids(drifted, "item")).to_numpy()
    label, train = examples.column("outcome").to_numpy(), np.array(examples.column("split").to_pylist()) == "train"
    moved = (topics[:, 0] != topics[:, 1])[item]
    assert 0.3 < moved.mean() < 0.7
    rows, test = user * 6, ~train & moved
    # All examples lie after the moment: with each row's topic as it is then, a user's past tells that user's future; with the one before, hardly.
    now, before = rows + topics[item, 1], rows + topics[item, 0]
    assert cell_auc(now[train], label[train], now[test], label[test]) > 0.65
    assert cell_auc(now[train & ~moved], label[train & ~moved], before[test], label[test]) < 0.55
    cold = test & truth.column("cold").to_numpy()[item]
    assert cell_auc(now[train], label[train], now[cold], label[cold]) > 0.65, "of items that nobody has met, too"


def truth_ids(logs: Logs, kind: str) -> pa.Array:
    return logs.tables[f"truth_{kind}s"].column(f"{kind}_id").combine_chunks()


def test_cold_items_come_all_through_the_test_window(drifted: Logs) -> None:
    first = drifted.tables["items"].filter(drifted.tables["truth_items"].column("cold")).column("first_seen").cast(pa.int64()).to_numpy()
    opens, end = to_us(drifted.info.train_end), to_us(drifted.info.end)
    place = (first - opens) / (end - opens)
    assert place.min() >= 0
    assert ((place < 0.5).mean(), (place >= 0.5).mean()) == pytest.approx((0.5, 0.5), abs=0.2)


def test_searches_speak_of_themes_that_are_liked_by_then(drifted: Logs) -> None:
    events = drifted.tables["events"].filter(pc.equal(drifted.tables["events"].column("kind"), "search"))
    titles, theme = drifted.tables["items"].column("title").to_pylist(), drifted.tables["truth_items"].column("item_theme").to_numpy()
    of_word = {word: int(number) for title, number in zip(titles, theme, strict=True) for word in title.split()[1:-1]}
    asked = np.array([of_word[query.split()[0]] for query in events.column("query").to_pylist()])
    late = events.column("ts").cast(pa.int64()).to_numpy() >= to_us(drifted.info.history_end)
    topic_MH = np.zeros((2, 12), np.int64)
    topic_MH[:, theme] = np.array(drifted.tables["truth_items"].column("topics").to_pylist()).T
    user = events.column("user_id").to_numpy(zero_copy_only=False)
    liked = {one: set(topic_MH[0, asked[(user == one) & ~late]]) for one in np.unique(user[~late])}
    known = late & np.array([len(liked.get(one, ())) == 2 for one in user])
    assert known.sum() > 300
    assert all(topic_MH[1, number] in liked[one] for one, number in zip(user[known], asked[known], strict=True))


@pytest.mark.parametrize(
    ("drift", "message"),
    [
        ({"start": "train_end"}, "go together"),
        ({"frac": 0.5}, "go together"),
        ({"every_days": 7}, "there is no start"),
    ],
)
def test_half_a_drift_is_refused(drift: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(drift=drift)


def test_one_theme_cannot_change_places_alone() -> None:
    with pytest.raises(ValueError, match=r"frac = 0.01 of 12 themes is 0: two at least"):
        build_logs(settings(**TINY | {"num_days": 90}, drift={"start": "train_end", "frac": 0.01}), seed=1)


def test_own_tastes_know_no_topics_to_move_between() -> None:
    with pytest.raises(ValueError, match='tastes = "own" knows no topics'):
        settings(tastes="own", drift={"start": "train_end", "frac": 0.5})
