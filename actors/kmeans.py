"""The k-means shard that Ray keeps alive: it reads its own rows from the Parquet, answers with block sums, and encodes ranges of rows.

A thin shell over longtail.kmeans.VectorShard. A restarted shard reads its rows again and takes the stages already fixed from the next call.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longtail.codes import encode
from longtail.kmeans import Assignment, FarRows, Floats, Space, Sums, VectorShard
from longtail.vectors import VectorTable, fingerprints


class KMeansShard:
    """Whole blocks of the rows that a codebook is fitted on. `blocks` are (position of the first row, row numbers in the table)."""

    def __init__(self, table: VectorTable, blocks: Sequence[tuple[int, NDArray[np.int64]]], device: str = "cpu") -> None:
        self._table = table
        rows = np.concatenate([rows for _, rows in blocks])
        vectors = table.read(rows)
        cuts = np.cumsum([0, *[len(rows) for _, rows in blocks]])
        self._shard = VectorShard([(first, vectors[low:high]) for (first, _), low, high in zip(blocks, cuts, cuts[1:], strict=False)], device)

    def extent(self) -> float:
        return self._shard.extent()

    def rows_by_bucket(self, space: Space) -> NDArray[np.int64]:
        return self._shard.rows_by_bucket(space)

    def step(self, space: Space, centroids_KD: Floats) -> Sums:
        return self._shard.step(space, centroids_KD)

    def assign(self, space: Space, centroids_KD: Floats) -> Assignment:
        return self._shard.assign(space, centroids_KD)

    def farthest(self, space: Space, centroids_KD: Floats, num: int) -> FarRows:
        return self._shard.farthest(space, centroids_KD, num)

    def residuals(self, space: Space, rows_R: NDArray[np.int64]) -> Floats:
        return self._shard.residuals(space, rows_R)

    def encode(self, start: int, stop: int, codebook_SKD: Floats) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
        """Codes [rows, S] and fingerprints [rows] of the table's rows start … stop, streamed."""
        parts = [(encode(vectors, codebook_SKD), fingerprints(vectors)) for vectors in self._table.chunks(start, stop)]
        if not parts:
            return np.zeros((0, len(codebook_SKD)), np.int32), np.zeros(0, np.uint64)
        return np.concatenate([codes for codes, _ in parts]), np.concatenate([prints for _, prints in parts])
