"""All features together: serving's one table is what the three stages write side by side."""

import dataclasses

import numpy as np
import pyarrow as pa

from longtail.feature_state import lent_rows, match_rows, own_rows
from longtail.features import EXAMPLE_COLUMNS, Rows, written
from longtail.rankers.batch import Batch
from tests import small_world
from tests.small_features import examples, rows_of, state
from tests.test_features import SCORES, collaborative
from tests.test_peers import index

PAIRS = [(user, item, day) for user in ("a", "b", "c", "d", "nobody") for item in ("tea", "book", "odd", "?") for day in (5.0, 21.0, 30.0)]


def test_features_are_the_columns_of_all_tables() -> None:
    built = state(collaborative=collaborative(), peers=index())
    tables = (
        own_rows(built.own, examples(PAIRS)).drop_columns(EXAMPLE_COLUMNS),
        match_rows(built.matches, examples(PAIRS)),
        lent_rows(built.lent, examples(PAIRS)),
    )
    column_of = {name: table.column(name) for table in tables for name in table.column_names}
    assert len(column_of) == sum(len(table.column_names) for table in tables)
    served = written(built.columns(rows_of(PAIRS)))
    assert served.column_names == list(column_of)
    for name, column in column_of.items():
        assert served.column(name).type == column.type
        assert str(served.column(name).to_pylist()) == str(column.to_pylist()), name  # as text, since NaN is not equal to itself


def test_missing_attributes_are_completed_and_not_made_the_users_own() -> None:
    got = written(state().columns(rows_of([("d", "tea", 25)]))).to_pydict()
    assert got["attributes"][0] == [0, 0]
    assert got["completed"][0] == [1, 1]


def test_a_batch_holds_what_the_table_held() -> None:
    built = state(collaborative=collaborative(), peers=index())
    spec = built.spec.model_copy(update={"collaborative_stats": SCORES.scores, "peer_stats": ("a", "b", "c", "d", "e")})
    table = written(built.columns(Rows(np.array([1, 2]), np.array([5, 4]), np.array([small_world.us(25)] * 2))))
    batch = Batch.from_table(table, spec)
    assert batch.history_BL.tolist() == table.column("history").to_pylist()
    assert batch.attributes_BA.tolist() == table.column("attributes").to_pylist()
    assert batch.collaborative_stats_BF.tolist() == table.column("collaborative_stats").to_pylist()
    assert batch.peer_stats_BP.tolist() == table.column("peer_stats").to_pylist()
    assert batch.conversion_B.tolist() == [-1, -1]
    assert batch.rows(slice(1, 2)).user_row_B.tolist() == [2]


def test_a_source_without_attributes_scores_or_peers_has_no_such_column_and_empty_tensors() -> None:
    built = state()
    entities = dataclasses.replace(built.entities, attributes=(), attribute_codes_MA=np.zeros((5, 0), np.int32))
    groups = dataclasses.replace(built.lent.groups, attributes_PA=np.zeros((len(built.lent.groups.size_P), 0), np.int32))
    own = dataclasses.replace(built.own, entities=entities)
    bare = dataclasses.replace(built, own=own, lent=dataclasses.replace(built.lent, entities=entities, groups=groups))
    table = written(bare.columns(Rows(np.array([1]), np.array([5]), np.array([small_world.us(25)]))))
    assert not {"attributes", "completed", "collaborative_stats", "peer_stats"} & set(table.column_names)
    spec = built.spec.model_copy(update={"attributes": (), "attribute_sizes": ()})
    batch = Batch.from_table(table, spec)
    widths = [batch.attributes_BA.shape, batch.completed_BA.shape, batch.collaborative_stats_BF.shape, batch.peer_stats_BP.shape]
    assert widths == [(1, 0)] * 4


def test_the_spec_says_how_wide_the_columns_are() -> None:
    built = state()
    table = written(built.columns(rows_of([("a", "tea", 25)])))
    widths = {name: table.column(name).type.list_size for name in table.column_names if pa.types.is_fixed_size_list(table.column(name).type)}
    spec = built.spec
    assert widths == {
        **{"history": spec.history_length, "history_days": spec.history_length, "activity": 3, "user_codes": len(spec.code_sizes)},
        **{"attributes": len(spec.attributes), "completed": len(spec.attributes), "user_stats": len(spec.user_stats), "group_stats": len(spec.user_stats)},
        **{"cross_stats": len(spec.cross_stats), "match_stats": len(spec.match_stats), "item_stats": len(spec.item_stats)},
        **{"group_history": spec.group_history_length, "group_weight": spec.group_history_length},
    }
