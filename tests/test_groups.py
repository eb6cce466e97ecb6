"""Groups: majorities with support, means, sequences, by hand; nothing from after as_of."""

import numpy as np
import pyarrow as pa

from longtail.features import ActivityIndex
from longtail.groups import GroupsSettings, build_groups
from tests import small_world

# a and b share a leaf, c is alone beside them under the same root, d is elsewhere
CODES_RS = np.array([[0, 1], [0, 1], [0, 2], [1, 0]])
USER_ROW_R = np.array([1, 2, 3, 4])


def groups(rows: list[tuple[str, str, float, str]] | None = None, **changes: object) -> pa.Table:
    behaviour = small_world.behaviour(rows)
    stats, _ = ActivityIndex.build(behaviour).statistics(USER_ROW_R, np.full(4, small_world.us(20)))
    settings = GroupsSettings.model_validate({"sequence_categories": 2, "items_per_category": 1, **changes})
    return build_groups(CODES_RS, USER_ROW_R, stats, behaviour, small_world.entities(), small_world.us(20), settings)


def row(table: pa.Table, prefix: list[int]) -> dict[str, object]:
    return next(entry for entry in table.to_pylist() if entry["prefix"] == prefix)


def test_every_prefix_has_a_row_and_sizes_add_up() -> None:
    table = groups()
    assert [entry["prefix"] for entry in table.to_pylist()] == [[], [0], [1], [0, 1], [0, 2], [1, 0]]
    for depth in range(3):
        assert sum(entry["size"] for entry in table.to_pylist() if entry["depth"] == depth) == 4


def test_majority_needs_support_and_ignores_missing_values() -> None:
    table = groups()
    assert row(table, [0, 1])["attributes"] == [1, 1]  # both live in Bonn; ages 20 and 30 tie, the lower code wins
    assert row(table, [0, 1])["support"] == [1.0, 0.5]
    assert row(table, [0])["attributes"][0] == 1  # Bonn, two of three
    assert np.isclose(row(table, [0])["support"][0], 2 / 3)
    assert row(table, [1])["attributes"] == [0, 0]  # d has no attributes at all
    assert row(table, [0, 2])["attributes"] == [0, 0]  # one member is fewer than min_support
    assert row(groups(min_support=1), [0, 2])["attributes"] == [2, 3]


def test_statistics_are_means_over_the_members() -> None:
    behaviour = small_world.behaviour()
    stats, raw = ActivityIndex.build(behaviour).statistics(np.array([1, 2]), np.full(2, small_world.us(20)))
    assert raw.tolist() == [[3, 1, 3], [2, 0, 2]]
    assert np.allclose(row(groups(), [0, 1])["stats"], stats.mean(0))


def test_sequence_takes_top_categories_and_orders_by_mean_time() -> None:
    # a and b: tea twice (days 1, 3), milk once, soap twice (4, 12) -> drinks then home; head items tea, soap
    leaf = row(groups(), [0, 1])
    assert leaf["sequence"] == ["tea", "soap"]
    assert np.allclose(leaf["sequence_weight"], [2 / 5, 2 / 5])
    assert row(groups(), [1])["sequence"] == []


def test_lift_prefers_what_the_group_buys_more_than_others() -> None:
    by_count = row(groups(sequence_categories=1), [0, 1])["sequence"]
    by_lift = row(groups(sequence_categories=1, weight_by_lift=True), [0, 2])["sequence"]
    assert by_count == ["tea"]
    assert by_lift == ["book"]


def test_a_future_event_changes_no_group() -> None:
    planted = [*small_world.BEHAVIOUR, ("b", "book", 20.0, "purchase"), ("d", "odd", 33, "purchase")]
    assert groups(planted).equals(groups())
