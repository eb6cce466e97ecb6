"""A table of vectors in Parquet, read by row numbers and never as a whole.

Reads a `vectors`/`z` table (keys, and `vector` as fixed_size_list<float32>); writes nothing. Used by the k-means shards and by the item encoder.
Letters: R rows asked for, D vector width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longtail.artifacts import parquet_files, read_parquet

_BATCH_ROWS = 8192


def to_numpy(column: pa.ChunkedArray | pa.Array) -> NDArray[np.float32]:
    """A fixed-size list column as float32 [rows, D]."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    dim = column.type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim) for chunk in chunks if len(chunk)]
    return np.ascontiguousarray(np.concatenate(parts), dtype=np.float32) if parts else np.zeros((0, dim), np.float32)


def to_arrow(vectors_ND: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """float32 [N, D] as fixed_size_list<float32>[D]."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors_ND, dtype=np.float32).reshape(-1)), vectors_ND.shape[1])


def fingerprints(vectors_ND: NDArray[np.float32]) -> NDArray[np.uint64]:
    """A 64-bit number per row that equal rows share and that different ones practically never do."""
    words = np.ascontiguousarray(vectors_ND, dtype=np.float32).view(np.uint32).astype(np.uint64)
    multipliers = np.random.default_rng(20).integers(0, 2**64, size=words.shape[1], dtype=np.uint64) | np.uint64(1)
    words ^= words >> np.uint64(15)  # float32 numbers differ mostly in their high bits; spread them before the sum
    mixed: NDArray[np.uint64] = (words * multipliers * (words | np.uint64(1))).sum(axis=1, dtype=np.uint64)
    return mixed


@dataclass(frozen=True)
class VectorTable:
    """One Parquet file, or a folder of them in name order, with a column `vector`; rows are numbered through all files."""

    fs: pafs.FileSystem
    path: str

    def files(self) -> list[str]:
        if self.fs.get_file_info(self.path).type == pafs.FileType.Directory:
            return parquet_files(self.fs, self.path)
        return [self.path]

    def keys(self, schema: pa.Schema) -> pa.Table:
        """The key columns of every row."""
        return read_parquet(self.fs, self.path, schema.names)

    def dim(self) -> int:
        """Vector width D."""
        return int(pq.read_schema(self.files()[0], filesystem=self.fs).field("vector").type.list_size)

    def read(self, rows_R: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [R, D] of the given row numbers, in their order; row groups without any of them are not read."""
        out = np.zeros((len(rows_R), self.dim()), np.float32)
        order = np.argsort(rows_R, kind="stable")
        ascending = rows_R[order]
        for first, vectors in self._batches(ascending):
            low, high = np.searchsorted(ascending, [first, first + len(vectors)])
            out[order[low:high]] = vectors[ascending[low:high] - first]
        return out

    def chunks(self, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
        """The rows start … stop in order, a few thousand at a time."""
        if stop <= start:
            return
        for first, vectors in self._batches(np.array([start, stop - 1]), whole_range=True):
            part = vectors[max(start - first, 0) : max(stop - first, 0)]
            if len(part):
                yield part

    def _batches(self, ascending_R: NDArray[np.int64], whole_range: bool = False) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Batches as (number of the first row, vectors), from the row groups that hold any asked row (or any row between the first and the last)."""
        first = 0
        for file in self.files():
            with pq.ParquetFile(file, filesystem=self.fs) as parquet:
                for group in range(parquet.num_row_groups):
                    rows = parquet.metadata.row_group(group).num_rows
                    low, high = np.searchsorted(ascending_R, [first, first + rows])
                    touched = high > low or (whole_range and ascending_R[0] < first and ascending_R[-1] >= first + rows)
                    if touched:
                        at = first
                        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=["vector"]):
                            yield at, to_numpy(batch.column(0))
                            at += batch.num_rows
                    first += rows
