"""The embedded store: published features as files of one folder, mapped into memory; replicas of one machine share the pages, and no server is needed.

    meta.json, user_ids.arrow, item_ids.arrow     what the arrays are of
    shared/*.npy, users/*.npy                     longtail.online.tables

Letters: T meetings of several users.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longtail.online.records import Ints, Met, UserRecord
from longtail.online.tables import Array, OnlineMeta, OnlineTables
from longtail.peers import TARGETS


def write_tables(tables: OnlineTables, folder: Path) -> None:
    """Write the files into an existing folder."""
    for kind, arrays in (("shared", tables.shared), ("users", tables.per_user)):
        (folder / kind).mkdir()
        for name, array in arrays.items():
            np.save(folder / kind / f"{name}.npy", np.ascontiguousarray(array))
    for name, ids in (("user_ids", tables.user_ids), ("item_ids", tables.item_ids)):
        with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("id", pa.string())])) as writer:
            writer.write_batch(pa.record_batch([ids.cast(pa.string())], names=["id"]))
    (folder / "meta.json").write_text(tables.meta.model_dump_json())


def read_ids(folder: Path, name: str) -> pa.Array:
    """`user_ids` or `item_ids`, by row from 1, sorted."""
    table = pa.ipc.open_file(pa.memory_map(str(folder / f"{name}.arrow"))).read_all()
    return table.column("id").chunk(0) if table.num_rows else pa.array([], pa.string())


def read_tables(folder: Path) -> OnlineTables:
    """Everything, mapped; what is written to an array of everyone and everything stays in this process."""
    meta = OnlineMeta.model_validate_json((folder / "meta.json").read_text())
    shared, per_user = _mapped(folder / "shared", "c"), _mapped(folder / "users", "r")
    return OnlineTables(meta, shared, per_user, read_ids(folder, "user_ids"), read_ids(folder, "item_ids"))


@dataclass(frozen=True)
class MappedStore:
    """Users' records from mapped files (records.UserStore)."""

    arrays: Mapping[str, Array]
    user_ids: pa.Array
    num_peer_levels: int

    def user(self, user_id: str) -> UserRecord | None:
        """See records.UserStore."""
        row = row_of(self.user_ids, user_id)
        return record_of(self.arrays, row, self.num_peer_levels) if row else None

    def met(self, user_rows: Ints) -> Met:
        """See records.UserStore."""
        columns, owners = [], []
        for target in TARGETS:
            starts = self.arrays[f"met_starts_{target}"]
            begin, length = starts[user_rows], starts[user_rows + 1] - starts[user_rows]
            owner = np.repeat(np.arange(len(user_rows)), length)
            place = np.arange(len(owner)) + (begin - np.cumsum(length) + length)[owner]
            columns.append(self.arrays[f"met_{target}"][place])
            owners.append(owner)
        return Met(tuple(columns), tuple(owners))


def row_of(ids: pa.Array, wanted: str) -> int:
    """The row of an id among sorted ones; 0 where it is not there. A search, since a dictionary would hold every user's id in every replica."""
    low, high, key = 0, len(ids), wanted.encode()
    while low < high:
        middle = (low + high) // 2
        if ids[middle].as_py().encode() < key:  # sorted as Arrow sorts: by bytes
            low = middle + 1
        else:
            high = middle
    return low + 1 if low < len(ids) and ids[low].as_py() == wanted else 0


def record_of(arrays: Mapping[str, Array], row: int, num_peer_levels: int) -> UserRecord:
    """One user's record out of the arrays of all."""
    start, end = (int(place) for place in arrays["event_starts"][row : row + 2])
    codes = arrays["codes"][row]
    levels = range(num_peer_levels)
    return UserRecord(
        user_row=row,
        attributes_A=arrays["attributes"][row],
        codes_S=codes if len(codes) and codes[0] >= 0 else np.zeros(0, np.int32),
        item_row_E=arrays["event_item"][start:end].astype(np.int64),
        time_E=arrays["event_time"][start:end],
        purchase_E=arrays["event_purchase"][start:end],
        log_price_E=arrays["event_log_price"][start:end],
        peer_row_VP=tuple(arrays[f"peer_row_{level}"][row].astype(np.int64) for level in levels),
        peer_weight_VP=tuple(arrays[f"peer_weight_{level}"][row] for level in levels),
    )


def met_of(arrays: Mapping[str, Array], row: int) -> dict[str, npt.NDArray[np.int32]]:
    """What one user had met, by target; empty where nobody has peers."""
    found: dict[str, npt.NDArray[Any]] = {}
    for target in TARGETS:
        if f"met_{target}" in arrays:
            start, end = (int(place) for place in arrays[f"met_starts_{target}"][row : row + 2])
            found[target] = arrays[f"met_{target}"][start:end]
    return found


def _mapped(folder: Path, mode: Any) -> dict[str, Array]:
    """Every array of a folder; an empty one cannot be mapped and is read."""
    found = {}
    for path in sorted(folder.glob("*.npy")):
        try:
            found[path.stem] = np.asarray(np.load(path, mmap_mode=mode))  # a plain view of the mapped pages: np.memmap's own indexing is slow
        except ValueError:
            found[path.stem] = np.load(path)
    return found
