"""What groups and peers lend: by hand, to whom and from when on; blind to the future; and the stage, whose rows are those of the samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtail import schema
from longtail.config import Config
from longtail.feature_state import lent_rows
from longtail.features import EXAMPLE_COLUMNS, Rows
from longtail.lent import LentState, UserGroups, inherited
from longtail.peers import PEER_STATS
from longtail.rankers.batch import Batch
from longtail.run_state import feature_spec, load_lent_state, load_peer_lifts
from longtail.sample_files import feature_columns, read_part, side_by_side
from longtail.samples import FeatureSpec
from pipelines import work
from pipelines.codes import ITEM_CODES, USER_CODES
from pipelines.groups import GROUPS
from pipelines.lent import LENT
from pipelines.lifts import LIFTS
from pipelines.logs import LOGS
from pipelines.peers import PEERS
from pipelines.samples import SAMPLES
from pipelines.stage import ensure, find
from tests import borrowing_world, small_world, test_groups
from tests.small_features import CONFIG, Events, examples, lent_state, rows_of, user_codes
from tests.test_peers import index

A, B, C, D = 1, 2, 3, 4


def lent(pairs: list[tuple[str, str, float]], rows: Events | None = None, config: Config = CONFIG) -> dict[str, list]:
    return lent_rows(lent_state(rows, config), examples(pairs)).to_pydict()


def own_attributes(rows: Rows) -> np.ndarray:
    return small_world.entities().attribute_codes_MA[rows.user_row_B]


def test_groups_lend_to_those_who_lack_and_unknown_users_get_everyone() -> None:
    got = lent([("d", "tea", 25), ("c", "tea", 25), ("nobody", "tea", 25), ("a", "tea", 5)])
    # d sits alone in [1]: smaller than min_size at every depth, so the root lends; its own attributes are missing
    assert got["completed"][0] == [1, 1]
    assert got["completed"][1] == [2, 3]  # c keeps its own
    assert got["user_codes"][0] == [2, 1]
    assert got["user_codes"][2] == [0, 0]
    assert got["completed"][2] == got["completed"][0]
    assert any(got["group_history"][2])
    # before the first snapshot there is no group at all
    assert got["user_codes"][3] == [0, 0]
    assert not any(got["group_history"][3])
    assert got["group_stats"][3] == [0] * 6


def test_a_group_in_which_nobody_has_a_value_lends_the_value_of_the_one_above() -> None:
    place = {(0, ()): 0, (0, (1,)): 1, (0, (1, 2)): 2, (0, (0,)): 3, (1, ()): 4, (1, (1,)): 5}
    majority_PA = np.array([[1, 4, 0], [0, 3, 0], [2, 0, 0], [0, 0, 5], [7, 0, 0], [0, 8, 0]], np.int32)
    found_PA = inherited(majority_PA, place)
    assert found_PA.tolist() == [[1, 4, 0], [1, 3, 0], [2, 3, 0], [1, 4, 5], [7, 0, 0], [7, 8, 0]]
    assert majority_PA[1, 0] == 0, "what was given is left as it was"


def test_the_deepest_group_with_enough_members_lends() -> None:
    table = test_groups.groups()
    places = {tuple(row["prefix"]): place for place, row in enumerate(table.to_pylist())}
    for min_size, lender in ((1, {"a": (0, 1), "c": (0, 2), "d": (1, 0)}), (2, {"a": (0, 1), "c": (0,), "d": ()}), (3, {"a": (0,), "c": (0,), "d": ()})):
        state = lent_state(config=CONFIG.model_copy(update={"groups": CONFIG.groups.model_copy(update={"min_size": min_size})}))
        got = lent_rows(state, examples([(user, "tea", 25) for user in lender])).to_pydict()
        for place, prefix in enumerate(lender.values()):
            row = table.slice(places[prefix], 1).to_pylist()[0]
            assert got["group_stats"][place] == row["stats"]
            ids = small_world.entities().items.values.to_pylist()
            assert [ids[item - 1] for item in got["group_history"][place] if item] == row["sequence"]
            assert [weight for weight in got["group_weight"][place] if weight] == row["sequence_weight"]
    assert len(set(map(str, got["group_stats"]))) == 2


def test_a_row_borrows_from_the_latest_snapshot_not_after_it() -> None:
    """At the second snapshot a has gone over to d's group."""
    first = user_codes()
    moved = first.set_column(1, "as_of", pa.array([small_world.day(30)] * 4, schema.TIMESTAMP))
    moved = moved.set_column(2, "codes", pa.array([[1, 0], [0, 1], [0, 2], [1, 0]], moved["codes"].type))
    table = test_groups.groups()
    later = table.set_column(0, "as_of", pa.array([small_world.day(30)] * len(table), schema.TIMESTAMP))
    later = later.set_column(3, "size", pa.array([4, 2, 2, 1, 1, 2], pa.int32()))
    codes, tables = pa.concat_tables([first, moved.cast(first.schema)]), pa.concat_tables([table, later.cast(table.schema)])
    groups = UserGroups.build(codes, tables, small_world.entities(), (3, 3), CONFIG.groups)
    state = LentState(small_world.entities(), groups, None)
    got = lent_rows(state, examples([("a", "tea", day) for day in (19.9, 20, 29.9, 30, 39)])).to_pydict()
    assert got["user_codes"] == [[0, 0], [1, 2], [1, 2], [2, 1], [2, 1]]
    assert got["group_stats"][1] == got["group_stats"][2] != got["group_stats"][3] == got["group_stats"][4]


def test_peers_lend_as_of_the_weekly_boundary() -> None:
    peers = index()
    state = lent_state(peers=peers)
    pairs = [(user, item, day) for user in ("a", "b", "c", "d", "nobody") for item in ("tea", "milk", "odd", "?") for day in (20.5, 21.0, 27.9, 28.0)]
    rows = rows_of(pairs)
    got = lent_rows(state, examples(pairs))
    boundary = np.array([small_world.us(7 * (day // 7)) for _, _, day in pairs])
    expected = peers.lifts(rows.user_row_B, peers.firsts.column_NC[rows.item_row_B], boundary)
    assert got["peer_stats"].type == pa.list_(pa.float32(), len(PEER_STATS))
    assert np.array_equal(np.array(got["peer_stats"].to_pylist(), np.float32), expected)
    by_day = expected.reshape(-1, 4, len(PEER_STATS))
    assert not by_day[:, 0].any(), "day 20.5 is of the boundary at day 14, before the peers were known"
    assert np.array_equal(by_day[:, 1], by_day[:, 2])
    assert by_day[0, 1].all()
    assert "peer_stats" not in lent_rows(lent_state(), examples(pairs)).column_names


def test_a_planted_future_event_changes_nothing_that_is_lent() -> None:
    asked = [(user, item, 21.0) for user in "abcd" for item in ("tea", "milk", "soap", "book", "odd")]
    planted = [
        *small_world.BEHAVIOUR,
        ("a", "book", 21.0, "purchase"),
        ("d", "odd", 21.5, "click"),
        ("b", "tea", 20.0, "purchase"),
        ("c", "tea", 39, "purchase"),
    ]
    groups_only = [lent(asked, rows) for rows in (None, planted)]
    assert groups_only[1] == groups_only[0]
    with_peers = [lent_rows(lent_state(rows, peers=index(rows)), examples(asked)) for rows in (None, planted[:-3] + planted[-1:])]
    assert with_peers[1].equals(with_peers[0])
    after = [lent_rows(lent_state(rows, peers=index(rows)), examples([("b", "book", 28.0)])) for rows in (None, planted)]
    assert not after[1].equals(after[0])


def test_the_rows_are_the_examples_and_the_columns_what_is_lent() -> None:
    table = lent_rows(lent_state(), examples([("c", "tea", 25), ("a", "book", 25), ("c", "tea", 25)]))
    assert table.column_names == ["completed", "group_stats", "user_codes", "group_history", "group_weight"]
    rows = table.to_pylist()
    assert rows[0] == rows[2] != rows[1]


def test_the_stage_writes_a_part_for_each_part_of_the_samples(tmp_path: Path) -> None:
    settings, store = borrowing_world.publish(tmp_path)
    with work.in_place():
        artifact = ensure(LENT, settings, store, build_inputs=True).artifact
    made = {stage.name: ensure(stage, settings, store).artifact for stage in (LOGS, USER_CODES, GROUPS, PEERS, ITEM_CODES, SAMPLES)}
    samples, lifts = made["samples"], load_peer_lifts(made["logs"], made["peers"], made["item_codes"], settings)
    state = load_lent_state(made["logs"], made["user_codes"], made["groups"], lifts, settings)
    parts = side_by_side(store.fs, [samples.path("samples.parquet"), artifact.path("lent.parquet")])
    assert len(parts) == 2
    for (own, lent), asked in zip(parts, borrowing_world.examples(), strict=True):
        rows, written = pq.read_table(own), pq.read_table(lent)
        assert rows.select(EXAMPLE_COLUMNS).equals(asked.select(EXAMPLE_COLUMNS).cast(rows.select(EXAMPLE_COLUMNS).schema))
        assert written.equals(lent_rows(state, asked))
        assert np.array(written["peer_stats"].to_pylist()).any()
    spec = FeatureSpec.model_validate(artifact.info["spec"])
    assert spec == feature_spec(state.entities, settings, has_conversion=False)
    assert (spec.peer_stats, spec.collaborative_stats) == (PEER_STATS, ("ease", "svd"))
    assert artifact.manifest["rows"] == {"in": 120, "out": 120, "dropped": {}}
    alone = spec.model_copy(update={"match_stats": ()})
    assert Batch.from_table(read_part(store.fs, parts[0], [*feature_columns(alone), "outcome"]), alone).peer_stats_BP.shape == (70, 5)


@pytest.mark.parametrize(
    ("sections", "same_samples"),
    [
        ({"groups": {"min_size": 5}}, True),
        ({"peers": {"num_peers": [3]}}, True),
        ({"peers": {"form": "none"}}, True),
        ({"peers": {"prior_users": 3.0}}, True),
        ({"user_spaces": {"shuffled": True}}, True),
        ({"samples": {"cluster_depth": 1}}, True),
        ({"samples": {"snapshot_days": 3}}, False),
        ({"collaborative": {"scores": ["svd"]}}, False),
    ],
)
def test_a_change_of_what_is_lent_leaves_the_samples(tmp_path: Path, sections: dict[str, dict[str, object]], same_samples: bool) -> None:
    settings, store = borrowing_world.publish(tmp_path)
    with work.in_place():
        first = ensure(LENT, settings, store, build_inputs=True).artifact
        one = find(SAMPLES, settings, store)
        changed = borrowing_world.config(store.uri, **{name: settings.model_dump(mode="json")[name] | values for name, values in sections.items()})
        assert find(LENT, changed, store) is None
        assert (find(SAMPLES, changed, store) == one) is same_samples
        second = ensure(LENT, changed, store, build_inputs=True).artifact
    assert second.key != first.key


@pytest.mark.parametrize(
    ("sections", "same_lifts"),
    [
        ({"groups": {"min_size": 5}}, True),
        ({"codes": {"user": {"num_stages": 1, "codebook_size": 2}}}, True),
        ({"peers": {"prior_users": 3.0}}, False),
        ({"user_spaces": {"shuffled": True}}, False),
    ],
)
def test_groups_leave_what_peers_lend_as_it_is(tmp_path: Path, sections: dict[str, dict[str, Any]], same_lifts: bool) -> None:
    settings, store = borrowing_world.publish(tmp_path)
    with work.in_place():
        first = ensure(LENT, settings, store, build_inputs=True).artifact
        changed = borrowing_world.config(store.uri, **{name: settings.model_dump(mode="json")[name] | values for name, values in sections.items()})
        second = ensure(LENT, changed, store, build_inputs=True).artifact
    assert first.key != second.key
    lifts = [find(LIFTS, config, store) for config in (settings, changed)]
    assert None not in lifts
    assert (lifts[0] == lifts[1]) is same_lifts
    stats = [artifact.read("lent", ["peer_stats"]) for artifact in (first, second)]
    assert stats[0].equals(stats[1]) is same_lifts
