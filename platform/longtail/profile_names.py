"""Names: the categories and attribute values that a run's profiles may speak of, as they stand in prompts.

Reads the logs' users and items; writes nothing. Answers are held against them (longtail.profile_text), and so are finished profiles (longtail.faithfulness).
"""

import pyarrow as pa
import pyarrow.compute as pc

from longtail.logs import LogsInfo
from longtail.profile_facts import category_names, is_missing, label, shown_value


def category_pairs(items: pa.Table) -> set[tuple[str, str]]:
    """(first-level name, leaf name) of every category."""
    paths = {tuple(path) for path in items.column("category").to_pylist() if path} if "category" in items.column_names else set()
    return {category_names(path) for path in paths}


def attribute_values(users: pa.Table, info: LogsInfo) -> dict[str, set[str]]:
    """By attribute, as prompts call it, the values that any user has, as prompts show them."""
    found = {}
    for name in (*info.categorical_attributes, *info.numeric_attributes):
        values = pc.unique(users.column(name)).to_pylist()
        found[label(name)] = {shown_value(value) for value in values if not is_missing(value)}
    return found


def known_names(users: pa.Table, items: pa.Table, info: LogsInfo) -> list[str]:
    """Category names and values of categorical attributes, sorted: what an answer may not name unless its facts do."""
    values = attribute_values(users, info)
    names = {name for pair in category_pairs(items) for name in pair}
    return sorted(names.union(*(values[label(name)] for name in info.categorical_attributes)))
