"""Groups: majorities with support, means, sequences, by hand; nothing from after as_of; users' totals as the features have them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from longtail.behaviour import Behaviour
from longtail.entities import Entities
from longtail.features import ActivityIndex
from longtail.group_totals import Cells, Events, Question, gathered, totals
from longtail.groups import GroupsSettings, Prefixes, build_groups
from longtail.sample_shares import row_groups
from tests import small_world

# a and b share a leaf, c is alone beside them under the same root, d is elsewhere
CODES_RS = np.array([[0, 1], [0, 1], [0, 2], [1, 0]])
USER_ROW_R = np.array([1, 2, 3, 4])


def question(entities: Entities, half_life_days: float | None = None) -> Question:
    leaf_group_M = np.full(len(entities.users) + 1, -1)
    leaf_group_M[USER_ROW_R] = Prefixes.by_depth(CODES_RS)[-1].group_R
    kinds, start = small_world.INFO.behaviour_kinds, small_world.us(0)
    return Question(entities, kinds, start, small_world.us(20), leaf_group_M, half_life_days)


def groups(rows: list[tuple[str, str, float, str]] | None = None, **changes: object) -> pa.Table:
    settings = GroupsSettings.model_validate({"sequence_categories": 2, "items_per_category": 1, **changes})
    entities = small_world.entities()
    asked = question(entities, settings.half_life_days)
    events = small_world.events(small_world.BEHAVIOUR if rows is None else rows)
    users, cells = gathered([Events.of(events, asked)], range(len(entities.users) + 1), asked)
    return build_groups(CODES_RS, USER_ROW_R, users.statistics(asked.as_of_us)[USER_ROW_R], cells, entities, asked.as_of_us, settings)


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


def test_purchases_count_less_with_age() -> None:
    rows = [("a", "tea", 1.0, "purchase"), ("b", "tea", 2.0, "purchase"), ("a", "soap", 19.0, "purchase")]
    assert row(groups(rows, sequence_categories=1), [0, 1])["sequence"] == ["tea"]
    aged = row(groups(rows, sequence_categories=1, half_life_days=2.0), [0, 1])
    assert aged["sequence"] == ["soap"]
    weights = [0.5 ** (days / 2) for days in (19, 18, 1)]
    assert np.allclose(aged["sequence_weight"], weights[2] / sum(weights))


def test_where_nobody_purchased_all_behaviour_counts() -> None:
    clicks = [("a", "tea", 1.0, "click"), ("b", "soap", 2.0, "click")]
    assert row(groups(clicks), [0, 1])["sequence"] == ["tea", "soap"]
    assert row(groups([*clicks, ("d", "odd", 3.0, "purchase")]), [0, 1])["sequence"] == []
    late = [*clicks, ("d", "odd", 21.0, "purchase")]  # not known yet
    assert row(groups(late), [0, 1])["sequence"] == ["tea", "soap"]


def drawn(num: int, entities: Entities) -> pa.Table:
    """Events of a few users and items over 25 days, with prices on some."""
    rng = np.random.default_rng(1)
    pick = [rng.choice([*values.values.to_pylist(), "stranger"], num).tolist() for values in (entities.users, entities.items)]
    kinds = rng.choice(["impression", "click", "purchase"], num).tolist()
    table = small_world.events(sorted(zip(*pick, (rng.random(num) * 25).tolist(), kinds, strict=True), key=lambda one: one[2]))
    return table.set_column(5, "price", pa.array(rng.lognormal(size=num), mask=rng.random(num) < 0.3))


def test_statistics_are_those_of_the_features() -> None:
    entities = small_world.entities()
    events, asked = drawn(400, entities), question(entities)
    users, cells = gathered([Events.of(events, asked)], range(5), asked)
    behaviour = Behaviour.build(events, entities, asked.kinds)
    wanted, _ = ActivityIndex.build(behaviour).statistics(USER_ROW_R, np.full(4, asked.as_of_us))
    np.testing.assert_allclose(users.statistics(asked.as_of_us)[USER_ROW_R], wanted, rtol=1e-6)
    past = behaviour.before(asked.as_of_us)
    assert cells.num_K.sum() == past.is_purchase.sum()


@pytest.mark.parametrize(("threads", "memory_mb", "rows_per_group"), [(1, 1024, 400), (2, 1024, 37), (2, 1, 100)])
def test_threads_memory_and_files_change_nothing(threads: int, memory_mb: int, rows_per_group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtail.group_totals.USER_BYTES", 2**19)  # two users to a megabyte
    monkeypatch.setattr("longtail.group_totals.PENDING_CELLS", 3)
    monkeypatch.setattr("longtail.group_totals.BATCH_ROWS", 50)
    entities = small_world.entities()
    events, asked = drawn(400, entities), question(entities, half_life_days=3.0)
    users, cells = gathered([Events.of(events, asked)], range(5), asked)
    assert len(asked.shares(memory_mb)) == (3 if memory_mb == 1 else 1)
    pq.write_table(events, tmp_path / "events.parquet", row_group_size=rows_per_group)
    fs, path = pafs.LocalFileSystem(), str(tmp_path / "events.parquet")
    stats, found = totals(fs, row_groups(fs, path), asked, threads, memory_mb)
    np.testing.assert_array_equal(stats, users.statistics(asked.as_of_us))
    for name in ("key_K", "num_K", "age_K", "weight_K"):
        np.testing.assert_array_equal(getattr(found, name), getattr(cells, name))


def test_cells_of_a_weaker_kind_give_way() -> None:
    weak = Cells(np.array([3, 1]), np.array([1, 1]), np.array([5, 6]), np.array([1, 1]), False)
    strong = Cells(np.array([3, 3]), np.array([1, 1]), np.array([5, 6]), np.array([1, 1]), True)
    merged = Cells.merged([weak, strong, weak])
    assert (merged.key_K.tolist(), merged.num_K.tolist(), merged.age_K.tolist(), merged.strongest) == ([3], [2], [11], True)
    assert Cells.merged([weak, weak]).num_K.tolist() == [2, 2]
