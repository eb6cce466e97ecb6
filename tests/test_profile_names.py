"""Names that profiles may speak of, as they stand in prompts."""

import pyarrow as pa

from longtail.profile_names import attribute_values, category_pairs, known_names
from tests.small_world import INFO
from tests.test_profile_facts import ITEMS, USERS


def test_names_stand_as_prompts_show_them() -> None:
    assert category_pairs(ITEMS) == {("grocery", "fluid milk"), ("grocery", "cream"), ("Home", "Home")}
    assert attribute_values(USERS, INFO) == {"city": {"Bonn", "Ulm"}, "age": {"31"}}
    assert known_names(USERS, ITEMS, INFO) == ["Bonn", "Home", "Ulm", "cream", "fluid milk", "grocery"]  # numbers are no names


def test_a_source_without_categories_or_attributes() -> None:
    bare = INFO.model_copy(update={"categorical_attributes": (), "numeric_attributes": ()})
    assert known_names(pa.table({"user_id": ["a"]}), pa.table({"item_id": ["x"]}), bare) == []
    assert known_names(USERS, pa.table({"item_id": ["x"]}), INFO) == ["Bonn", "Ulm"]
