"""Vector search: the nearest are those of a full search, whatever the blocks; the layout is made once and whole."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtail import vector_search
from longtail.artifacts import Artifact, Store
from longtail.vector_search import load_vector_index
from longtail.vectors import to_arrow

IDS = [f"i{number:03d}" for number in range(100)]
VECTORS = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    draft = Store.open(str(tmp_path / "store")).create("items", "key")
    table = pa.table({"item_id": IDS, "vector": to_arrow(VECTORS)})
    for start in range(0, 100, 30):
        pq.write_table(table.slice(start, 30), draft.path(f"vectors.parquet/part-{start:03d}.parquet"), row_group_size=7)
    return draft.commit(config={}, inputs={}, seed=1, rows_in=0, rows_out=0, dropped={}, info={})


@pytest.mark.parametrize("rows", [7, 100, 1000])
def test_the_nearest_are_those_of_a_full_search(artifact: Artifact, tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_search, "SEARCH_ROWS", rows)
    monkeypatch.setattr(vector_search, "LAYOUT_ROWS", rows)
    index = load_vector_index(artifact, "vectors", tmp_path / f"mapped {rows}")
    found = index.nearest(3 * VECTORS[17], 10, without="i017")
    cosines = VECTORS @ VECTORS[17]
    expected = [place for place in np.argsort(-cosines) if place != 17][:10]
    assert [item_id for item_id, _ in found] == [IDS[place] for place in expected]
    assert [cosine for _, cosine in found] == pytest.approx(cosines[expected].tolist(), abs=1e-5)
    assert len(index.nearest(VECTORS[0], 500)) == 100
    assert index.nearest(np.zeros(8, np.float32), 3) == [("i000", 0), ("i001", 0), ("i002", 0)]
    assert index.vector("i042") == pytest.approx(VECTORS[42])
    assert index.vector("nothing") is None


def test_the_layout_is_made_once_and_leaves_nothing_beside(artifact: Artifact, tmp_path: Path) -> None:
    into = tmp_path / "mapped"
    load_vector_index(artifact, "vectors", into)
    (file,) = into.rglob("*.npy")
    assert list(file.parent.iterdir()) == [file]
    changed = file.stat().st_mtime_ns
    load_vector_index.cache_clear()
    load_vector_index(artifact, "vectors", into)
    assert file.stat().st_mtime_ns == changed
