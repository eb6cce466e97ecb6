"""Features: by hand at one time, against slow counts, and blind to the future."""

import dataclasses

import numpy as np
import pyarrow as pa

from longtail import schema
from longtail.features import CROSS_STATS, ITEM_STATS, USER_STATS, FeatureState, Rows, UserGroups
from longtail.groups import GroupsSettings
from longtail.rankers.batch import Batch
from longtail.run_state import feature_spec
from longtail.samples import SamplesSettings
from longtail.times import DAY_US
from tests import small_world, test_groups

SETTINGS = SamplesSettings(history_length=3, snapshot_days=7)
GROUPS = GroupsSettings(sequence_categories=2, items_per_category=1, min_size=2)


def state(rows: list[tuple[str, str, float, str]] | None = None) -> FeatureState:
    from longtail.config import Config

    entities = small_world.entities()
    config = Config.model_validate({"samples": SETTINGS.model_dump(), "groups": GROUPS.model_dump(), "codes": {"user": {"num_stages": 2, "codebook_size": 3}}})
    spec = feature_spec(entities, config, has_conversion=False)
    codes = pa.table(
        {
            "user_id": ["a", "b", "c", "d"],
            "as_of": pa.array([small_world.day(20)] * 4, schema.TIMESTAMP),
            "codes": pa.array(test_groups.CODES_RS.tolist(), pa.list_(pa.int32(), 2)),
        }
    )
    groups = UserGroups.build(codes, test_groups.groups(rows), entities, spec.code_sizes, GROUPS)
    return FeatureState.build(entities, small_world.behaviour(rows), groups, spec, SETTINGS, small_world.us(0))


def features(pairs: list[tuple[str, str, float]], rows: list[tuple[str, str, float, str]] | None = None) -> dict[str, list]:
    built = state(rows)
    table = pa.table(
        {
            "user_id": [p[0] for p in pairs],
            "item_id": [p[1] for p in pairs],
            "ts": pa.array([small_world.day(p[2]) for p in pairs], schema.TIMESTAMP),
        }
    )
    return built.features(Rows.of(table, built.entities)).to_pydict()


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


def test_groups_lend_to_those_who_lack_and_unknown_users_get_everyone() -> None:
    got = features([("d", "tea", 25), ("c", "tea", 25), ("nobody", "tea", 25), ("a", "tea", 5)])
    # d sits alone in [1]: smaller than min_size at every depth, so the root lends; its own attributes are missing
    assert got["attributes"][0] == [0, 0]
    assert got["completed"][0] == [1, 1]
    assert got["completed"][1] == [2, 3]  # c keeps its own
    assert got["user_codes"][0] == [2, 1]
    assert got["user_codes"][2] == [0, 0]
    assert got["completed"][2] == got["completed"][0]
    assert any(got["group_history"][2])
    # before the first snapshot there is no group at all
    assert got["user_codes"][3] == [0, 0]
    assert not any(got["group_history"][3])


def test_a_planted_future_event_changes_no_feature() -> None:
    asked = [(user, item, 21.0) for user in "abcd" for item in ("tea", "milk", "soap", "book", "odd")]
    planted = [*small_world.BEHAVIOUR, ("a", "book", 21.0, "purchase"), ("d", "odd", 21.5, "click"), ("c", "tea", 39, "purchase")]
    assert str(features(asked, planted)) == str(features(asked))  # as text, since NaN is not equal to itself


def test_a_stated_attribute_wins_over_nothing_and_codes_over_the_root() -> None:
    built = state()
    rows = Rows(np.array([0]), np.array([5]), np.array([small_world.us(25)]))
    got = built.features(rows, attributes_BA=np.array([[2, 0]], np.int32), codes=[(0, 1)]).to_pydict()
    assert got["attributes"][0] == [2, 0]
    assert got["completed"][0] == [2, 1]
    assert got["user_codes"][0] == [1, 2]


def test_a_batch_holds_what_the_table_held() -> None:
    built = state()
    table = built.features(Rows(np.array([1, 2]), np.array([5, 4]), np.array([small_world.us(25)] * 2)))
    batch = Batch.from_table(table, built.spec)
    assert batch.history_BL.tolist() == table.column("history").to_pylist()
    assert batch.attributes_BA.tolist() == table.column("attributes").to_pylist()
    assert batch.conversion_B.tolist() == [-1, -1]
    assert batch.rows(slice(1, 2)).user_row_B.tolist() == [2]


def test_a_source_without_attributes_has_no_such_column_and_an_empty_tensor() -> None:
    built = state()
    bare = dataclasses.replace(built, entities=dataclasses.replace(built.entities, attributes=(), attribute_codes_MA=np.zeros((5, 0), np.int32)))
    bare = dataclasses.replace(bare, groups=dataclasses.replace(built.groups, attributes_PA=np.zeros((len(built.groups.size_P), 0), np.int32)))
    table = bare.features(Rows(np.array([1]), np.array([5]), np.array([small_world.us(25)])))
    assert "attributes" not in table.column_names
    spec = built.spec.model_copy(update={"attributes": (), "attribute_sizes": ()})
    assert Batch.from_table(table, spec).attributes_BA.shape == (1, 0)


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
        assert np.isclose(got["cross_stats"][place][0], np.log1p(sum(r[1] == item for r in mine)))
        boundary = small_world.us(0) + (now - small_world.us(0)) // (7 * DAY_US) * 7 * DAY_US
        assert got["item_events"][place] == sum(r[1] == item and small_world.us(r[2]) < boundary for r in rows)
