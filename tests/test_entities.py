"""Entities: numbering by sorted id, attribute codes, category levels."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from longtail.entities import UNKNOWN_TIME, Vocabulary
from tests import small_world


def test_rows_follow_sorted_ids_and_unknown_is_zero() -> None:
    entities = small_world.entities()
    assert entities.users.encode(["a", "d", "nobody", None]).tolist() == [1, 4, 0, 0]
    assert entities.items.values.to_pylist() == ["book", "milk", "odd", "soap", "tea"]


def test_attributes_are_coded_by_value_and_by_quantile() -> None:
    entities = small_world.entities()
    city, age = entities.attributes
    assert (city.size, age.size) == (3, 4)
    # rows 1.. are a, b, c, d; ages 20, 30, 40 fall into three bins; d has neither
    assert entities.attribute_codes_MA[1:].tolist() == [[1, 1], [1, 2], [2, 3], [0, 0]]
    assert entities.attribute_codes({"city": "Ulm", "age": 25, "shoe": 43}).tolist() == [2, 1]
    assert (city.label(2), city.label(0)) == ("Ulm", "unknown")
    assert age.label(1).startswith("[-inf, 26")


def test_category_levels_are_prefixes_and_leaf_is_the_deepest() -> None:
    entities = small_world.entities()
    assert [level.values.to_pylist() for level in entities.categories] == [["food", "home"], ["food > drinks", "home > paper"]]
    # book, milk, odd, soap, tea
    assert entities.category_codes_NC[1:].tolist() == [[2, 2], [1, 1], [0, 0], [2, 0], [1, 1]]
    assert entities.leaf_codes_N[1:].tolist() == [4, 3, 0, 2, 3]
    assert entities.category_codes(["food", "drinks"]).tolist() == [1, 1]
    assert entities.leaf_code(entities.category_codes(["home"])) == 2
    assert entities.category_codes(["toys"]).tolist() == [0, 0]


def test_a_path_deeper_than_the_levels_keeps_its_true_leaf_in_tables_and_in_requests_alike() -> None:
    deep = ["a", "b", "c", "d", "e"]
    items = pa.table({"item_id": ["i", "j"], "title": ["I", "J"], "category": pa.array([deep, ["a", "b", "c"]], pa.list_(pa.string()))})
    entities = small_world.Entities.build(small_world.USERS, items, small_world.INFO, 4)
    assert [len(level) for level in entities.categories] == [1, 1, 2]
    assert entities.category_codes(deep).tolist() == entities.category_codes_NC[1].tolist()
    assert entities.category_codes(deep[:3]).tolist() == entities.category_codes_NC[2].tolist()


def test_a_column_by_code_has_a_row_for_everything() -> None:
    keys, lists = pa.chunked_array([["soap", "tea"], ["no item"]]), pa.chunked_array([pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int32(), 2))])
    assert small_world.entities().items.by_code(keys, lists, missing=-1).tolist() == [[-1, -1]] * 4 + [[1, 2], [3, 4]]


def test_numbers_that_are_none_and_empty_levels_spoil_nothing() -> None:
    users = pa.table({"user_id": list("abcdef"), "city": ["x"] * 6, "age": [float("nan"), float("inf"), 20.0, 30.0, 40.0, None]})
    items = pa.table({"item_id": ["i", "j"], "title": ["I", "J"], "category": pa.array([["food", None, ""], ["food"]], pa.list_(pa.string()))})
    entities = small_world.Entities.build(users, items, small_world.INFO, 3)
    assert entities.attribute_codes_MA[:, 1].tolist() == [0, 0, 0, 1, 2, 3, 0]
    assert entities.category_codes_NC[1].tolist() == entities.category_codes_NC[2].tolist()


def test_prices_and_first_sight_keep_the_unknown_apart() -> None:
    entities = small_world.entities()
    assert np.isnan(entities.log_price_N[0])
    assert np.isnan(entities.log_price_N[1])
    assert np.isclose(entities.log_price_N[5], np.log1p(2.0))
    assert entities.first_seen_N[1] == small_world.us(10)
    assert entities.first_seen_N[4] == UNKNOWN_TIME


def test_tables_without_optional_columns_are_all_unknown() -> None:
    info = small_world.INFO.model_copy(update={"categorical_attributes": (), "numeric_attributes": ()})
    bare = small_world.Entities.build(pa.table({"user_id": ["a"]}), pa.table({"item_id": ["i"], "title": ["I"]}), info, 4)
    assert bare.attribute_codes_MA.shape == (2, 0)
    assert bare.category_codes_NC.shape == (2, 0)
    assert bare.leaf_codes_N.tolist() == [0, 0]


def test_a_few_values_are_looked_up_without_hashing_the_vocabulary_again(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = Vocabulary(pa.array([f"id {number:04d}" for number in range(2000)]))
    asked = ["id 1999", None, "nobody", "id 0000", "id 1999"]
    column = pa.array(asked)
    assert (
        vocabulary.encode(asked).tolist()
        == vocabulary.encode(column).tolist()
        == vocabulary.encode(pa.chunked_array([column])).tolist()
        == [2000, 0, 0, 1, 2000]
    )
    assert vocabulary.encode([]).dtype == vocabulary.encode(column).dtype == np.int32

    def hashing(*args: object, **more: object) -> None:
        raise AssertionError("the whole vocabulary was hashed for a few values")

    monkeypatch.setattr(pc, "index_in", hashing)
    assert vocabulary.encode(asked).tolist() == [2000, 0, 0, 1, 2000]


def test_vocabulary_drops_nulls() -> None:
    assert Vocabulary.of(pa.array(["b", None, "a", "b"])).values.to_pylist() == ["a", "b"]
