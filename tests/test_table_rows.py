"""Rows picked from tables: by value, by words, a page at a time, from one file or many."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtail.artifacts import Artifact, Store
from longtail.table_rows import by_key, contains, first_rows, has_table, rows_with, starts_with

IDS = [f"i{number:03d}" for number in range(100)]


@pytest.fixture(params=["one file", "parts"])
def artifact(tmp_path: Path, request: pytest.FixtureRequest) -> Artifact:
    table = pa.table({"item_id": IDS, "title": [f"Tea {number % 7} green" for number in range(100)]})
    draft = Store.open(str(tmp_path)).create("items", "key")
    if request.param == "one file":
        draft.write("items", table)
    else:
        for start in range(0, 100, 30):
            pq.write_table(table.slice(start, 30), draft.path(f"items.parquet/part-{start:03d}.parquet"), row_group_size=7)
    return draft.commit(config={}, inputs={}, seed=1, rows_in=0, rows_out=0, dropped={}, info={})


def test_rows_by_value_come_in_the_tables_order_with_the_columns_that_there_are(artifact: Artifact) -> None:
    found = rows_with(artifact, "items", "item_id", ["i050", "i003", "nothing"], ["item_id", "brand"])
    assert found.to_pydict() == {"item_id": ["i003", "i050"]}
    assert by_key(artifact, "items", "item_id", ["i003"], ["title"]) == {"i003": {"item_id": "i003", "title": "Tea 3 green"}}
    assert has_table(artifact, "items")
    assert not has_table(artifact, "others")
    assert not has_table(None, "items")


def test_pages_follow_each_other(artifact: Artifact) -> None:
    wanted = contains("title", "GREEN tea")
    pages = [first_rows(artifact, "items", wanted, ["item_id"], start, 33).column("item_id").to_pylist() for start in range(0, 120, 33)]
    assert [item_id for page in pages for item_id in page] == IDS
    assert [len(page) for page in pages] == [33, 33, 33, 1]
    assert first_rows(artifact, "items", contains("title", "tea 3"), ["item_id"], 1, 1).column("item_id").to_pylist() == ["i010"]
    assert first_rows(artifact, "items", starts_with("item_id", "i09"), ["item_id"], 0, 100).num_rows == 10
    assert first_rows(artifact, "items", contains("title", "coffee"), ["item_id"], 0, 5).num_rows == 0
    assert first_rows(artifact, "items", contains("title", "("), ["item_id"], 0, 5).num_rows == 0, "no pattern, but words"


def test_a_missing_table_is_named(artifact: Artifact) -> None:
    with pytest.raises(ValueError, match=r"others.parquet is not there"):
        rows_with(artifact, "others", "item_id", ["i003"])
