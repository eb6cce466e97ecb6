"""Snapshots: tables whose rows are of an as_of, by microseconds since the epoch."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def as_of_us(table: pa.Table) -> npt.NDArray[np.int64]:
    """The as_of [rows] of a table."""
    times: npt.NDArray[np.int64] = pc.cast(table.column("as_of"), pa.int64()).to_numpy()
    return times


def of_snapshot(table: pa.Table, time: int) -> pa.Table:
    """A table's rows of one as_of, in their order."""
    return table.filter(pa.array(as_of_us(table) == time))
