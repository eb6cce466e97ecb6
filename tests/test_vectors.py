"""Reading vectors by row numbers, from several files and row groups."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from longtail.vectors import VectorTable, fingerprints, to_arrow, to_numpy


@pytest.fixture
def table(tmp_path: Path) -> tuple[VectorTable, np.ndarray]:
    """Fifty vectors in three files of several row groups each."""
    vectors = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    folder = tmp_path / "vectors.parquet"
    folder.mkdir()
    for number, (start, stop) in enumerate([(0, 20), (20, 21), (21, 50)]):
        part = pa.table({"item_id": [f"i{row}" for row in range(start, stop)], "vector": to_arrow(vectors[start:stop])})
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=7)
    return VectorTable(pafs.LocalFileSystem(), str(folder)), vectors


@pytest.mark.parametrize("rows", [[0], [49, 0, 20, 20, 7], [], list(range(50)), [13, 14, 22, 21]])
def test_rows_come_in_the_order_asked_for(table: tuple[VectorTable, np.ndarray], rows: list[int]) -> None:
    source, vectors = table
    np.testing.assert_array_equal(source.read(np.array(rows, dtype=np.int64)), vectors[rows].reshape(-1, 4))


@pytest.mark.parametrize(("start", "stop"), [(0, 50), (3, 4), (6, 22), (20, 21), (45, 50), (8, 8), (0, 49)])
def test_a_range_comes_whole(table: tuple[VectorTable, np.ndarray], start: int, stop: int) -> None:
    source, vectors = table
    chunks = list(source.chunks(start, stop))
    got = np.concatenate(chunks) if chunks else np.zeros((0, 4), np.float32)
    np.testing.assert_array_equal(got, vectors[start:stop])


def test_row_groups_without_an_asked_row_are_not_read(table: tuple[VectorTable, np.ndarray]) -> None:
    source, _ = table
    assert [first for first, _ in source._batches(np.array([8, 20]))] == [7, 20]


def test_slices_keep_their_offset() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.testing.assert_array_equal(to_numpy(to_arrow(vectors).slice(2, 3)), vectors[2:5])


def test_fingerprints_tell_rows_apart_and_know_equal_ones() -> None:
    rng = np.random.default_rng(1)
    vectors = np.concatenate([rng.normal(size=(20_000, 16)), rng.integers(0, 2, size=(20_000, 16))]).astype(np.float32)
    prints = fingerprints(vectors)
    assert len(np.unique(prints)) == len(np.unique(vectors, axis=0))
    np.testing.assert_array_equal(fingerprints(vectors[::-1].copy()), prints[::-1])
