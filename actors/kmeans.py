"""The k-means shard that Ray keeps alive: it reads its own rows from the Parquet, answers with block sums, and encodes ranges of rows.

A thin shell over longtail.codes.VectorShard. A restarted shard reads its rows again and takes the stages already fixed from the next call.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longtail.codes import BlockSums, Floats, VectorShard, encode
from longtail.vectors import VectorTable, fingerprints


class KMeansShard:
    """Whole blocks of the rows that a codebook is fitted on. `blocks` are (position of the first row, row numbers in the table)."""

    def __init__(self, table: VectorTable, blocks: Sequence[tuple[int, NDArray[np.int64]]]) -> None:
        self._table = table
        rows = np.concatenate([rows for _, rows in blocks])
        vectors = table.read(rows)
        cuts = np.cumsum([0, *[len(rows) for _, rows in blocks]])
        self._shard = VectorShard([(first, vectors[low:high]) for (first, _), low, high in zip(blocks, cuts, cuts[1:], strict=False)])

    def step(self, fixed_SKD: Floats, centroids_KD: Floats) -> list[BlockSums]:
        return self._shard.step(fixed_SKD, centroids_KD)

    def residuals(self, fixed_SKD: Floats, rows_R: NDArray[np.int64]) -> Floats:
        return self._shard.residuals(fixed_SKD, rows_R)

    def encode(self, start: int, stop: int, codebook_SKD: Floats) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
        """Codes [rows, S] and fingerprints [rows] of the table's rows start … stop, streamed."""
        parts = [(encode(vectors, codebook_SKD), fingerprints(vectors)) for vectors in self._table.chunks(start, stop)]
        if not parts:
            return np.zeros((0, len(codebook_SKD)), np.int32), np.zeros(0, np.uint64)
        return np.concatenate([codes for codes, _ in parts]), np.concatenate([prints for _, prints in parts])
