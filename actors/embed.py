"""Embedding actors: one text encoder each, fed with blocks of texts by Ray Data."""

import time
from collections.abc import Callable

import pyarrow as pa

from actors import metrics
from actors.timing import rows_only, with_times
from longtail.embeddings import EncoderSettings, TextEncoder


class EmbedActor:
    """Adds `vector`, fixed_size_list<float32>[dim], to blocks that have a `text` column; the other columns pass."""

    def __init__(self, settings: EncoderSettings, load: Callable[[EncoderSettings], TextEncoder] = TextEncoder) -> None:
        self._encoder = load(settings)

    def __call__(self, block: pa.Table) -> pa.Table:
        started = time.time()
        vectors = self._encoder.encode(block.column("text").to_pylist())
        metrics.TEXTS.add(len(vectors))
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self._encoder.dim)
        return with_times(rows_only(block).append_column("vector", column), block, "embed", started)
