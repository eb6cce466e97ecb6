"""The user's own three Parquet tables (a file or a folder each, at a local path or a URI) as a source.

What is wrong with them is found by longtail.log_check, which runs before anything is made of them.
"""

import hashlib
import logging
from functools import lru_cache
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.types as pt
from pydantic import Field

from longtail import schema
from longtail.artifacts import parquet_files, read_parquet
from longtail.hashing import digest
from longtail.labels import Labels
from longtail.negatives import Negatives
from longtail.settings import Settings
from longtail.sources.raw import RawLogs
from longtail.storage import Place, open_place

logger = logging.getLogger(__name__)


class TablesSettings(Settings):
    """Where the user's own three tables lie (Parquet files or folders; longtail.storage says what a place may be)."""

    users: Place
    items: Place
    events: Place
    unknown_ids: Literal["refuse", "drop"] = Field("refuse", description="events of users or items that the tables lack: refused, or dropped and counted")


def read(settings: TablesSettings) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The three tables as they are: users, items, events; raises ValueError where one cannot be read."""
    users, items, events = (_read(name, getattr(settings, name)) for name in ("users", "items", "events"))
    return users, items, events


def raw_logs(
    users: pa.Table,
    items: pa.Table,
    events: pa.Table,
    categorical_attributes: tuple[str, ...],
    numeric_attributes: tuple[str, ...],
) -> RawLogs:
    """Checked tables as a source. Events of unknown users or items are dropped here (a check that refuses them has run before)."""
    declared = ["user_id", *categorical_attributes, *numeric_attributes]
    undeclared = [name for name in users.column_names if name not in declared]
    if undeclared:
        logger.info("users: columns %s are not declared in logs.categorical_attributes or logs.numeric_attributes and are ignored", undeclared)
    rows_in = len(events)
    known = pc.is_in(events.column("user_id"), value_set=users.column("user_id").combine_chunks().cast(events.column("user_id").type))
    dropped = {"unknown user": rows_in - pc.sum(pc.cast(known, pa.int64())).as_py() if rows_in else 0}
    events = events.filter(known)
    if "item_id" in events.column_names:
        item_ids = items.column("item_id").combine_chunks().cast(events.column("item_id").type)
        item_known = pc.or_(pc.is_null(events.column("item_id")), pc.is_in(events.column("item_id"), value_set=item_ids))
        before = len(events)
        events = events.filter(item_known)
        dropped["unknown item"] = before - len(events)
    kinds = set(pc.unique(events.column("kind")).to_pylist())
    return RawLogs(
        users=_attributes(users, categorical_attributes, numeric_attributes),
        items=conformed(items, schema.ITEMS, "items"),
        events=conformed(events, schema.EVENTS, "events"),
        labels=own_labels(kinds),
        negatives=Negatives(),
        categorical_attributes=categorical_attributes,
        numeric_attributes=numeric_attributes,
        rows_in=rows_in,
        dropped=dropped,
    )


def own_labels(kinds: set[str | None]) -> Labels:
    """What tables with events of these kinds are labelled by, where the config does not say: impression, click, purchase as far as they are there."""
    if "impression" in kinds:
        outcomes = [kind for kind in ("click", "cart", "purchase") if kind in kinds] or ["click"]
        conversion = "purchase" if "purchase" in outcomes[1:] else None
        return Labels(exposure="impression", outcome=outcomes[0], conversion=conversion)
    if "click" in kinds and "purchase" in kinds:
        return Labels(exposure="click", outcome="purchase")
    return Labels(exposure=None, outcome=next((kind for kind in ("purchase", "cart", "click") if kind in kinds), "purchase"))


def conformed(table: pa.Table, expected: pa.Schema, name: str) -> pa.Table:
    """`table` with all of `expected`'s columns: missing optional ones are null, others are left out."""
    missing = [field for field in expected if field.name not in table.column_names and field.nullable]
    for field in missing:
        table = table.append_column(field.name, pa.nulls(len(table), field.type))
    return schema.check(table, expected, name)


def fingerprint(settings: TablesSettings) -> str:
    """Digest of the bytes of all three tables' files."""
    digests = {}
    for name in ("users", "items", "events"):
        fs, path = _open(name, getattr(settings, name))
        files = parquet_files(fs, path) if fs.get_file_info(path).type == pafs.FileType.Directory else [path]
        digests[name] = [_file_digest(name, getattr(settings, name), info.path, info.size, info.mtime_ns) for info in fs.get_file_info(files)]
    return digest(digests)


@lru_cache(maxsize=4096)
def _file_digest(name: str, place: str, path: str, size: int, mtime_ns: int | None) -> str:
    """SHA-256 of a file; asked for at every stage, so it is computed once per size and time of change."""
    sha = hashlib.sha256()
    fs, _ = _open(name, place)
    with fs.open_input_stream(path) as stream:
        while chunk := stream.read(1 << 22):
            sha.update(chunk)
    return sha.hexdigest()


def _read(name: str, place: str) -> pa.Table:
    fs, path = _open(name, place)
    try:
        return plain(read_parquet(fs, path))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"logs.tables.{name} = {place!r} is not readable as Parquet: {error}. Write it as a .parquet file or a folder of such files."
        ) from error
    except ValueError as error:
        raise ValueError(f"logs.tables.{name} = {place!r}: {error}") from error


def plain(table: pa.Table) -> pa.Table:
    """`table` without the encodings that only save room (dictionaries, views, large offsets), and with times by the microsecond."""
    for place, field in enumerate(table.schema):
        kind = _plain_type(field.type)
        if kind != field.type:
            column = table.column(place).cast(kind, safe=not pt.is_timestamp(kind))  # nanoseconds below a microsecond are cut
            table = table.set_column(place, pa.field(field.name, kind, field.nullable), column)
    return table


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pt.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pt.is_large_string(kind) or pt.is_string_view(kind):
        return pa.string()
    if pt.is_large_binary(kind) or pt.is_binary_view(kind):
        return pa.binary()
    if pt.is_list(kind) or pt.is_large_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    if pt.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    return kind


def _open(name: str, place: str) -> tuple[pafs.FileSystem, str]:
    fs, path = open_place(f"logs.tables.{name}", place)
    if fs.get_file_info(path).type == pafs.FileType.NotFound:
        raise ValueError(f"logs.tables.{name} = {place!r}: nothing is there (looked at {path}). Relative paths count from the folder of the command.")
    return fs, path


def _attributes(users: pa.Table, categorical: tuple[str, ...], numeric: tuple[str, ...]) -> pa.Table:
    columns = {"user_id": users.column("user_id").cast(pa.string())}
    columns |= {name: users.column(name).cast(pa.string()) for name in categorical}
    columns |= {name: users.column(name).cast(pa.float64()) for name in numeric}
    return pa.table(columns)
