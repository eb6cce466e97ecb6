"""The times that a block of rows carries through a Ray Data plan, from which the plan's overlap is read."""

import time

import pyarrow as pa

_SUFFIXES = ("_started", "_ended")


def carried(name: str) -> bool:
    """True for the columns that tell of a block itself and not of its rows: its number, and when each step had it."""
    return name == "part" or name.endswith(_SUFFIXES)


def rows_only(block: pa.Table) -> pa.Table:
    """The block without those columns."""
    return block.select([name for name in block.column_names if not carried(name)])


def with_times(table: pa.Table, source: pa.Table, step: str, started: float) -> pa.Table:
    """`table` with what `source` carried, and this step's own `<step>_started` and `<step>_ended`, in seconds since the epoch."""
    for name in source.column_names:
        if carried(name):
            table = table.append_column(name, source.column(name))
    return with_span(table, step, started, time.time())


def with_span(table: pa.Table, step: str, started: float, ended: float) -> pa.Table:
    """`table` with `<step>_started` and `<step>_ended`; NaN where the step was not needed."""
    for name, value in ((f"{step}_started", started), (f"{step}_ended", ended)):
        table = table.append_column(name, pa.array([value] * len(table), pa.float64()))
    return table
