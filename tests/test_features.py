"""Own features: by hand at one time, against slow counts, and blind to the future."""

import numpy as np
import pyarrow as pa

from longtail.collaborative import CollaborativeIndex, CollaborativeSettings, fit
from longtail.feature_state import own_rows
from longtail.features import CROSS_STATS, EXAMPLE_COLUMNS, ITEM_STATS, USER_STATS
from longtail.times import DAY_US
from tests import small_world
from tests.small_features import Events, examples, own_state
from tests.test_collaborative import met

SCORES = CollaborativeSettings(scores=("svd", "ease"), ease_l2=1.0, svd_dim=2)


def features(pairs: list[tuple[str, str, float]], rows: Events | None = None, **state: object) -> dict[str, list]:
    return own_rows(own_state(rows, **state), examples(pairs)).to_pydict()  # type: ignore[arg-type]


def collaborative(rows: Events | None = None) -> CollaborativeIndex:
    """Scores with weights of day 20."""
    entities = small_world.entities()
    return CollaborativeIndex.build(fit(met(rows, 20), entities.items, small_world.us(20), SCORES, seed=0), entities, small_world.behaviour(rows), SCORES)


def test_history_is_most_recent_first_and_strictly_before() -> None:
    got = features([("a", "tea", 12), ("a", "tea", 12.01), ("d", "tea", 25), ("nobody", "tea", 25)])
    _, milk, _, soap, tea = range(1, 6)
    assert sorted(got["history"][0][:2]) == [milk, tea]  # both on day 2
    assert got["history"][0][2] == tea
    assert got["history"][1][0] == soap
    assert got["history"][2] == [0, 0, 0]
    assert got["history"][3] == [0, 0, 0]
    assert np.allclose(got["history_days"][0], [10, 10, 11])


def test_user_and_cross_statistics_by_hand() -> None:
    got = features([("a", "tea", 12)])
    stats = dict(zip(USER_STATS, got["user_stats"][0], strict=True))
    assert np.isclose(stats["log_purchases"], np.log1p(2))
    assert np.isclose(stats["log_clicks"], np.log1p(1))
    assert np.isclose(stats["log_active_days"], np.log1p(2))
    assert np.isclose(stats["log_days_since_last"], np.log1p(10))
    assert np.isclose(stats["mean_log_price"], (2 * np.log(3) + np.log(2)) / 3)
    cross = dict(zip(CROSS_STATS, got["cross_stats"][0], strict=True))
    assert np.isclose(cross["log_same_item"], np.log1p(2))
    assert np.isclose(cross["log_same_leaf"], np.log1p(3))
    assert np.isclose(cross["log_same_root"], np.log1p(3))
    assert np.isclose(cross["log_same_brand"], np.log1p(2))
    assert np.isclose(cross["leaf_share"], 1.0)
    assert np.isclose(cross["item_recency"], 1 / 11)


def test_item_counts_change_only_at_snapshots() -> None:
    # day 13.9 belongs to the boundary at day 7, day 14 to its own; soap is bought on days 4, 5 and 12
    got = features([("b", "soap", 13.9), ("b", "soap", 14.0)])
    counts = [dict(zip(ITEM_STATS, row, strict=True)) for row in got["item_stats"]]
    assert got["item_events"] == [2, 3]
    assert np.isclose(counts[0]["log_events_7d"], np.log1p(2))
    assert np.isclose(counts[1]["log_events_7d"], np.log1p(1))
    assert counts[0]["age_known"] == 0  # seen, but nobody knows since when
    assert np.isnan(got["item_age_days"][0])


def test_an_items_age_is_as_of_the_snapshot_and_nothing_before_its_first_sight() -> None:
    # book is first seen on day 10; the boundaries are days 7, 14 and 21. odd has neither a date nor an event.
    got = features([("a", "book", 9), ("a", "book", 13.9), ("a", "book", 14), ("a", "book", 22), ("a", "odd", 22), ("a", "not in the shop", 22)])
    assert np.allclose(got["item_age_days"], [0, 0, 4, 11, 0, 0])
    known = ITEM_STATS.index("age_known")
    assert [row[known] for row in got["item_stats"]] == [1] * 6


def test_a_first_sale_tells_nothing_of_the_rows_around_it() -> None:
    """Positives and negatives of the week of an item's first sight read the same age, whichever came first."""
    assert small_world.entities().first_seen_N[1] == small_world.us(10)
    ages = features([("a", "book", 8), ("b", "book", 9.99), ("c", "book", 10), ("d", "book", 13.9)])["item_age_days"]
    assert len(set(ages)) == 1


def test_collaborative_scores_are_those_of_the_index_and_have_no_column_without_one() -> None:
    pairs = [(user, item, day) for user in "abcd" for item in ("tea", "milk", "soap", "book") for day in (19.0, 25.0)]
    assert "collaborative_stats" not in features(pairs)
    built = collaborative()
    table = own_rows(own_state(collaborative=built), examples(pairs))
    rows = [(small_world.entities().users.codes[user], small_world.entities().items.codes[item], small_world.us(day)) for user, item, day in pairs]
    expected = built.scores(*(np.array(column) for column in zip(*rows, strict=True)))
    assert np.array_equal(np.array(table["collaborative_stats"].to_pylist(), np.float32), expected)
    assert (expected != 0).any(axis=0).all()
    assert not expected[::2].any(), "none before the first snapshot"


def test_rows_are_the_examples_with_own_features_beside_them() -> None:
    asked = examples([("a", "tea", 12), ("d", "odd", 25)])
    table = own_rows(own_state(), asked)
    assert table.select(EXAMPLE_COLUMNS).equals(asked.select(EXAMPLE_COLUMNS))
    others = {"match_stats", "completed", "group_stats", "user_codes", "group_history", "group_weight", "peer_stats"}
    assert not others & set(table.column_names)
    assert {"attributes", "user_stats", "cross_stats", "item_stats", "history", "activity"} <= set(table.column_names)
    assert table["attributes"].type == pa.list_(pa.int32(), 2)


def test_a_planted_future_event_changes_no_feature() -> None:
    asked = [(user, item, 21.0) for user in "abcd" for item in ("tea", "milk", "soap", "book", "odd")]
    planted = [*small_world.BEHAVIOUR, ("a", "book", 21.0, "purchase"), ("d", "odd", 21.5, "click"), ("c", "tea", 39, "purchase")]
    got, later = (features(asked, rows, collaborative=collaborative(rows)) for rows in (None, planted))
    assert str(later) == str(got)  # as text, since NaN is not equal to itself
    after = [(user, item, 29.0) for user, item, _ in asked]
    assert str(features(after, planted)) != str(features(after))


def test_counts_agree_with_a_slow_recount() -> None:
    generator = np.random.default_rng(3)
    names = ["tea", "milk", "soap", "book", "odd"]
    rows = [
        (str(u), str(i), float(d), str(k))
        for u, i, d, k in zip(
            generator.choice(list("abcd"), 200),
            generator.choice(names, 200),
            generator.uniform(0, 30, 200).round(2),
            generator.choice(["click", "purchase"], 200),
            strict=True,
        )
    ]
    asked = [
        (str(u), str(i), float(d))
        for u, i, d in zip(generator.choice(list("abcd"), 50), generator.choice(names, 50), generator.uniform(0, 35, 50), strict=True)
    ]
    got = features(asked, rows)
    for place, (user, item, time) in enumerate(asked):
        now = small_world.us(time)
        mine = [r for r in rows if r[0] == user and small_world.us(r[2]) < now]
        assert got["num_purchases"][place] == sum(r[3] == "purchase" for r in mine)
        cross = dict(zip(CROSS_STATS, got["cross_stats"][place], strict=True))
        assert np.isclose(cross["log_same_item"], np.log1p(sum(r[1] == item for r in mine)))
        boundary = small_world.us(0) + (now - small_world.us(0)) // (7 * DAY_US) * 7 * DAY_US
        assert got["item_events"][place] == sum(r[1] == item and small_world.us(r[2]) < boundary for r in rows)
