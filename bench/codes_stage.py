"""The Ray side of the codes stage, for the benches of its two halves: shards as actors that read their rows from Parquet.

Writes vectors to a temporary folder. Ray's start and the actors' are apart: the clock runs once every actor has its rows.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longtail.codes import CodebookSettings, fit_codebook
from longtail.config import ClusterSettings
from longtail.settings import Compute
from longtail.vectors import VectorTable, to_arrow
from pipelines.cluster import ray_session
from pipelines.codes import RayShards

Floats = NDArray[np.float32]
_GROUP_ROWS = 65_536


def write(vectors_ND: Floats, path: Path) -> VectorTable:
    """Vectors as the stage before leaves them."""
    schema = pa.schema({"vector": pa.list_(pa.float32(), vectors_ND.shape[1])})
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, len(vectors_ND), _GROUP_ROWS):
            writer.write_table(pa.table({"vector": to_arrow(vectors_ND[start : start + _GROUP_ROWS])}, schema=schema))
    return VectorTable(pafs.LocalFileSystem(), str(path))


def on_ray(vectors_ND: Floats, settings: CodebookSettings, num_actors: int, codebook_SKD: Floats | None = None) -> dict[str, float]:
    """Seconds that `num_actors` actors of one CPU take to read their rows, to fit on them (not where a codebook is given), and to encode the table."""
    settings = settings.model_copy(update={"compute": Compute(num_actors=num_actors, num_cpus=1.0)})
    taken: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="longtail-bench-") as folder, ray_session(ClusterSettings(num_cpus=num_actors, dashboard=False)):
        table = write(vectors_ND, Path(folder) / "vectors.parquet")
        began = time.perf_counter()
        shards = RayShards(table, np.arange(len(vectors_ND)), settings)
        try:
            shards.extents()
            taken["start_and_read_s"] = time.perf_counter() - began
            if codebook_SKD is None:
                began = time.perf_counter()
                codebook_SKD = fit_codebook(shards, len(vectors_ND), vectors_ND.shape[1], settings, 7).codebook_SKD
                taken["fit_s"] = time.perf_counter() - began
            began = time.perf_counter()
            shards.encode(len(vectors_ND), codebook_SKD)
            taken["read_and_encode_s"] = time.perf_counter() - began
        finally:
            shards.close()
    return {name: float(f"{seconds:.4g}") for name, seconds in taken.items()}
