"""Rows of a stage's table picked by their values, read batch by batch, so that a table of any length may be looked into.

Reads Parquet; writes nothing. What is asked for a page at a time: for the whole table there is Artifact.read.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from longtail.artifacts import Artifact

BATCH_ROWS = 65_536


def has_table(artifact: Artifact | None, name: str) -> bool:
    """True where the artifact has the table."""
    return artifact is not None and artifact.fs.get_file_info(artifact.path(f"{name}.parquet")).type != pafs.FileType.NotFound


def table(artifact: Artifact, name: str) -> ds.Dataset:
    """The table, unread.

    Raises:
        ValueError: the artifact has none of that name.
    """
    try:
        return ds.dataset(artifact.path(f"{name}.parquet"), filesystem=artifact.fs, format="parquet")
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise ValueError(f"{artifact.path(name)}.parquet is not there: {error}. Remove the folder of its key and run again, it is built anew.") from error


def rows_with(artifact: Artifact, name: str, column: str, values: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
    """Every row whose `column` is one of `values`, in the table's order."""
    found = table(artifact, name)
    return found.to_table(columns=_there(found, columns), filter=pc.field(column).isin(list(values)))


def by_key(artifact: Artifact, name: str, column: str, values: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, object]]:
    """The same as dicts by the column's value; the last row stands where there are several."""
    rows = rows_with(artifact, name, column, values, list(dict.fromkeys([column, *columns])))
    return {row[column]: row for row in rows.to_pylist()}


def first_rows(artifact: Artifact, name: str, wanted: pc.Expression | None, columns: Sequence[str] | None, skip: int, limit: int) -> pa.Table:
    """Rows skip … skip + limit of those `wanted`, in the table's order; reading stops with the last of them."""
    found = table(artifact, name)
    kept: list[pa.RecordBatch] = []
    seen, missing = 0, limit
    scanner = found.scanner(columns=_there(found, columns), filter=wanted, batch_size=BATCH_ROWS, use_threads=False)
    for batch in scanner.to_batches():
        start = max(skip - seen, 0)
        seen += len(batch)
        if start < len(batch):
            kept.append(batch.slice(start, missing))
            missing -= len(kept[-1])
        if missing <= 0:
            break
    return pa.Table.from_batches(kept, schema=scanner.projected_schema)


def contains(column: str, words: str) -> pc.Expression:
    """True where the column holds every one of the words, whatever their case."""
    wanted = pc.scalar(True)
    for word in words.split():
        wanted = wanted & pc.match_substring(pc.field(column), word, ignore_case=True)
    return wanted


def starts_with(column: str, beginning: str) -> pc.Expression:
    return pc.starts_with(pc.field(column), beginning)


def _there(found: ds.Dataset, columns: Sequence[str] | None) -> list[str] | None:
    """Those of `columns` that the table has: optional ones may be missing."""
    return None if columns is None else [name for name in columns if name in found.schema.names]
