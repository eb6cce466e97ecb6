"""Vector search: the items nearest to a vector, over a table of unit vectors that is laid out once as a file and mapped into memory.

Parquet takes seconds to decode a list column of a few ten thousand vectors; mapped, the same search takes milliseconds, and two million items cost no memory
but the pages that the system can drop. Reads a table of item_id and vector; writes the mapped file below a folder of this machine. Letters: N items, D width.
"""

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longtail.artifacts import Artifact
from longtail.table_rows import table
from longtail.vectors import to_numpy

SEARCH_ROWS = 65_536
LAYOUT_ROWS = 8_192

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class VectorIndex:
    """Items and their unit vectors."""

    item_ids: pa.Array
    vectors_ND: Floats

    def vector(self, item_id: str) -> Floats | None:
        """An item's vector [D]; None of an item that has none."""
        place = pc.index(self.item_ids, item_id).as_py()
        return None if place < 0 else np.array(self.vectors_ND[place])

    def nearest(self, vector_D: Floats, count: int, without: str = "") -> list[tuple[str, float]]:
        """The `count` items of the greatest cosine, best first, equal ones by their place, with it; `without` one of them."""
        unit_D = vector_D / max(float(np.linalg.norm(vector_D)), 1e-12)
        places, cosines = np.zeros(0, np.int64), np.zeros(0, np.float32)
        for start in range(0, len(self.vectors_ND), SEARCH_ROWS):
            found_B = self.vectors_ND[start : start + SEARCH_ROWS] @ unit_D
            best = np.argpartition(-found_B, min(count, len(found_B) - 1))[: count + 1]
            places, cosines = np.concatenate([places, best + start]), np.concatenate([cosines, found_B[best]])
            order = np.lexsort((places, -cosines))[: count + 1]
            places, cosines = places[order], cosines[order]
        ids = self.item_ids.take(pa.array(places)).to_pylist()
        return [(item_id, float(cosine)) for item_id, cosine in zip(ids, cosines, strict=True) if item_id != without][:count]


@lru_cache(maxsize=4)
def load_vector_index(artifact: Artifact, name: str, into: Path) -> VectorIndex:
    """The index of a table, laid out below `into` where it is not yet.

    Several processes may ask at once: each lays out aside, and the first that is done stays.
    """
    found = table(artifact, name)
    item_ids = found.to_table(columns=["item_id"]).column("item_id").combine_chunks()
    path = into / artifact.stage / artifact.key / str(artifact.manifest["data"]) / f"{name}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".layout-", dir=path.parent) as aside:
            target = Path(aside) / path.name
            dim = found.schema.field("vector").type.list_size
            mapped = np.lib.format.open_memmap(target, mode="w+", dtype=np.float32, shape=(len(item_ids), dim))  # type: ignore[no-untyped-call]
            start = 0
            for batch in found.to_batches(columns=["vector"], batch_size=LAYOUT_ROWS):
                mapped[start : start + len(batch)] = to_numpy(batch.column(0))
                start += len(batch)
            mapped.flush()
            target.replace(path)
    return VectorIndex(item_ids, np.load(path, mmap_mode="r"))
