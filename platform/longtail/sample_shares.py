"""Samples in shares of the users, so that the memory of whoever makes them follows from a setting and not from the length of the logs.

A user's own features hang on the events of that user alone. So events and examples are dealt out to shares, which are ranges of user rows; a share's events
are sorted, its rows made, and dealt back to the parts that the examples came in. Between the steps everything lies in Arrow files below `folder`, one record
batch per share or per part, and every step is a function of files that a lost worker can do over. How many shares there are changes no value.

Reads a logs artifact; writes parts of the samples table. Letters: E events, B rows.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from longtail.artifacts import Artifact, parquet_files
from longtail.behaviour import Behaviour
from longtail.collaborative import CollaborativeIndex
from longtail.config import Config
from longtail.entities import Entities
from longtail.features import EXAMPLE_COLUMNS, Columns, OwnState, Rows, written
from longtail.item_counts import ItemCounts, Tally, boundaries
from longtail.logs import LogsInfo
from longtail.run_state import EVENT_COLUMNS, load_entities, logs_info
from longtail.samples import SamplesSettings
from longtail.times import to_us

Ints = npt.NDArray[np.int64]

EVENT_BYTES = 200  # of one event while a share's state is built, indexes and what sorting takes included
ROW_BYTES = 600  # of one row beside its history, twice: as it is made and as it is dealt back
TEXTS = ("user_id", "item_id", "split")
CHUNK_ROWS = 16_384  # rows made at a time: their intermediate arrays stay in the processor's cache


def num_shares(num_events: int, num_examples: int, settings: SamplesSettings) -> int:
    """As many shares as there are actors, or as keep each within the memory that the settings give; half as much again is left for busy shares."""
    row_bytes = ROW_BYTES + 16 * settings.history_length
    needed = 1.5 * (num_events * EVENT_BYTES + num_examples * row_bytes)
    return max(settings.compute.num_actors, math.ceil(needed / (settings.memory_mb * 2**20)))


def row_groups(fs: pafs.FileSystem, path: str) -> list[tuple[str, int]]:
    """Each row group of a Parquet file, or of a folder of them in name order."""
    files = parquet_files(fs, path) if fs.get_file_info(path).type == pafs.FileType.Directory else [path]
    return [(file, group) for file in files for group in range(pq.read_metadata(file, filesystem=fs).num_row_groups)]


#: Runs one step of SampleShares for each job, and returns what it said, in any order.
Order = Callable[[str, Sequence[tuple[Any, ...]]], list[Any]]


def run_steps(order: Order, logs: Artifact, parts: Sequence[tuple[str, str]], num_shares: int) -> list[dict[str, int]]:
    """All steps, one after the other; `parts` are the examples' files and the samples' beside them. Returns the rows by split of every part."""
    groups = row_groups(logs.fs, logs.path("events.parquet"))
    deals = [(number, *group) for number, group in enumerate(groups)]
    order("deal", [*deals, *((number, source, None) for number, (source, _) in enumerate(parts))])
    order("sort_share", [(share,) for share in range(num_shares)])
    (price_before,) = order("totals", [()])
    order("make_rows", list(enumerate(price_before)))
    return order("write_part", [(number, *part) for number, part in enumerate(parts)])


@dataclass(frozen=True)
class SampleShares:
    """The steps, in their order. They may run anywhere and side by side, but each after all of the step before."""

    logs: Artifact
    collaborative: Artifact
    config: Config
    folder: str  # of the files between the steps, on the logs' file system
    num_shares: int

    @property
    def fs(self) -> pafs.FileSystem:
        return self.logs.fs

    @cached_property
    def info(self) -> LogsInfo:
        return logs_info(self.logs)

    @cached_property
    def entities(self) -> Entities:
        return load_entities(self.logs, self.config.samples.numeric_bins)

    @cached_property
    def first_rows(self) -> Ints:
        """First user row of each share but the first, which has unknown users (row 0) too."""
        return np.arange(1, self.num_shares) * (len(self.entities.users) + 1) // self.num_shares

    @cached_property
    def grid(self) -> Ints:
        start_us = to_us(self.info.start)
        return boundaries(start_us, to_us(self.info.end), start_us, self.config.samples.snapshot_days)

    def deal(self, number: int, source: str, group: int | None) -> None:
        """Step 1: one row group of the events dealt out to the shares, or where there is no group, one part of the examples."""
        if group is None:
            self._deal_examples(number, source)
        else:
            self._deal_events(number, source, group)

    def _deal_events(self, number: int, source: str, group: int) -> None:
        """The behaviour events of a row group, coded, by share; and how many each item had in each interval."""
        with self.fs.open_input_file(source) as file:
            parquet = pq.ParquetFile(file, read_dictionary=["user_id", "item_id", "kind"])  # half the time: ids are looked up once
            table = parquet.read_row_group(group, columns=[name for name in EVENT_COLUMNS if name in parquet.schema_arrow.names])
        table = table.filter(pc.is_in(table.column("kind"), value_set=pa.array(self.info.behaviour_kinds)))
        events = Behaviour.build(table, self.entities, self.info.behaviour_kinds)
        tally = Tally.of(events.item_row_E, events.time_E, self.grid)
        self._write(f"counts-{number:06d}", [_tallied(tally)])
        columns = {
            "user": pa.array(events.user_row_E.astype(np.int32)),
            "item": pa.array(events.item_row_E.astype(np.int32)),
            "time": pa.array(events.time_E),
            "kind": pa.array(events.kind_E),
            "log_price": pa.array(events.log_price_E),
        }
        self._write(f"events-{number:06d}", _dealt(pa.table(columns), self._share_of(events.user_row_E), self.num_shares))

    def _deal_examples(self, number: int, source: str) -> None:
        """Who, what and when of the examples of a part, by share."""
        examples = pq.read_table(source, columns=["user_id", "item_id", "ts"], filesystem=self.fs)
        rows = Rows.of(examples, self.entities)
        columns = {
            "place": pa.array(np.arange(len(rows), dtype=np.int32)),
            "user": pa.array(rows.user_row_B.astype(np.int32)),
            "item": pa.array(rows.item_row_B.astype(np.int32)),
            "time": pa.array(rows.time_B),
        }
        self._write(f"examples-{number:06d}", _dealt(pa.table(columns), self._share_of(rows.user_row_B), self.num_shares))

    def sort_share(self, share: int) -> None:
        """Step 2: one share's events in the order of users and times."""
        table = self._read("events", share)
        order = _order(*(table.column(name).to_numpy() for name in ("user", "item", "time")))
        self._write(f"share-{share:06d}", [_batch(table.take(pa.array(order)))])

    def totals(self) -> list[float]:
        """Step 3, once: the item counts of all events; returns the sum of log prices of all users in front of each share."""
        counts = self._read("counts", 0)
        tally = Tally.summed(counts.column("key").to_numpy(), counts.column("count").to_numpy())
        self._write("totals-000000", [_tallied(tally)])
        sums = [0.0]
        for share in range(self.num_shares):
            price = self._read(f"share-{share:06d}", 0).column("log_price").to_numpy()
            # As one running sum over all users would have it, rounding included: the same for any number of shares.
            sums.append(float(np.cumsum(np.concatenate([sums[-1:], np.nan_to_num(price)]))[-1]))
        return sums[:-1]

    def make_rows(self, share: int, price_before: float) -> None:
        """Step 4: own features of the share's rows, by the part that they go back to; `price_before` is the share's of `totals`."""
        asked = self._read("examples", share)
        made = _columns(self._state(share, price_before), *(asked.column(name).to_numpy() for name in ("user", "item", "time")))
        rows = written({"place": asked.column("place"), **made})
        ends = np.cumsum([len(chunk) for chunk in asked.column("place").chunks]).tolist()
        self._write(f"rows-{share:06d}", [_batch(rows.slice(start, end - start)) for start, end in zip([0, *ends], ends, strict=False)])

    def write_part(self, number: int, source: str, target: str) -> dict[str, int]:
        """Step 5: the rows of part `number` in the order of its examples, beside their labels; returns the rows by split."""
        examples = pq.read_table(source, columns=list(EXAMPLE_COLUMNS), filesystem=self.fs)
        found = self._read("rows", number)
        own = found.take(pa.array(np.argsort(found.column("place").to_numpy()))).drop_columns(["place"])
        columns = {**dict(zip(examples.column_names, examples.columns, strict=True)), **dict(zip(own.column_names, own.columns, strict=True))}
        # A dictionary of the lists' numbers fills up and is given up: it costs a third of the writing and leaves larger files.
        pq.write_table(pa.table(columns), target, filesystem=self.fs, compression="zstd", use_dictionary=list(TEXTS))
        return dict(Counter(examples.column("split").to_pylist()))

    def _state(self, share: int, price_before: float) -> OwnState:
        events, counts, settings = self._read(f"share-{share:06d}", 0), self._read("totals", 0), self.config.collaborative
        user, item, time, kind, price = (column.to_numpy() for column in events.columns)
        behaviour = Behaviour(user.astype(np.int64), item.astype(np.int64), time, kind, price, self.info.behaviour_kinds)
        tally = Tally(counts.column("key").to_numpy(), counts.column("count").to_numpy())
        item_counts = ItemCounts.build(tally, self.entities.leaf_codes_N, self.grid)
        weights = self.collaborative.read("collaborative") if settings.scores else None
        scores = None if weights is None else CollaborativeIndex.build(weights, self.entities, behaviour, settings)
        return OwnState.build(self.entities, behaviour, self.config.samples, to_us(self.info.start), scores, item_counts, price_before)

    def _share_of(self, user_row_B: Ints) -> Ints:
        shares: Ints = np.searchsorted(self.first_rows, user_row_B, side="right")
        return shares

    def _write(self, name: str, batches: Sequence[pa.RecordBatch]) -> None:
        with self.fs.open_output_stream(f"{self.folder}/{name}.arrow") as stream, pa.ipc.new_file(stream, batches[0].schema) as file:
            for batch in batches:
                file.write_batch(batch)

    def _read(self, name: str, batch: int) -> pa.Table:
        """Record batch number `batch` of every file whose name begins so, in their order."""
        paths = sorted(entry.path for entry in self.fs.get_file_info(pafs.FileSelector(self.folder)) if entry.base_name.startswith(name))
        found = []
        for path in paths:
            with self.fs.open_input_file(path) as stream:
                found.append(pa.ipc.open_file(stream).get_batch(batch))
        return pa.Table.from_batches(found)


def _columns(state: OwnState, user_B: npt.NDArray[np.integer], item_B: npt.NDArray[np.integer], time_B: Ints) -> Columns:
    """The rows' features in narrow types, made in the order of users: rows of one user are answered out of the same few events."""
    order = np.lexsort((time_B, user_B))
    made: Columns = {}
    for start in range(0, max(len(order), 1), CHUNK_ROWS):
        some = order[start : start + CHUNK_ROWS]
        rows = Rows(user_B[some].astype(np.int64), item_B[some].astype(np.int64), time_B[some])
        for name, values in state.columns(rows, state.entities.attribute_codes_MA[rows.user_row_B]).items():
            if name not in made:
                made[name] = np.empty((len(order), *values.shape[1:]), np.int32 if np.issubdtype(values.dtype, np.integer) else np.float32)
            made[name][some] = values
    return made


def _order(user_E: npt.NDArray[np.integer], item_E: npt.NDArray[np.integer], time_E: Ints) -> Ints:
    """Places of the events by user, time and item."""
    user, item, time = np.diff(user_E), np.diff(item_E), np.diff(time_E)
    in_time = not ((time < 0) | (time == 0) & ((user < 0) | (user == 0) & (item < 0))).any()
    return np.argsort(user_E, kind="stable") if in_time else np.lexsort((item_E, time_E, user_E))


def _dealt(table: pa.Table, share_B: Ints, num_shares: int) -> list[pa.RecordBatch]:
    """The table's rows by share, in their order."""
    ends = np.cumsum(np.bincount(share_B, minlength=num_shares)).tolist()
    table = table.take(pa.array(np.argsort(share_B, kind="stable")))
    return [_batch(table.slice(start, end - start)) for start, end in zip([0, *ends], ends, strict=False)]


def _batch(table: pa.Table) -> pa.RecordBatch:
    """The table as one batch, also where it has no rows."""
    return pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=table.schema)


def _tallied(tally: Tally) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"key": tally.keys_K, "count": tally.count_K})
