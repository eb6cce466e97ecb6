"""The samples as training reads them: one part at a time, in an order that neither the number of workers nor a restart changes.

Reads samples.parquet/part-*.parquet and the same parts of matches.parquet and lent.parquet, which hold a part's columns side by side. Per epoch the parts
are permuted, and the training rows within each part; global batch t is a contiguous slice of that order within one part, and worker r takes its contiguous
share of every global batch.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import torch

from longtail.artifacts import parquet_files
from longtail.rankers.batch import Batch
from longtail.rankers.heads import has_label
from longtail.rankers.settings import Head
from longtail.samples import FeatureSpec

Split = Literal["train", "validation", "test"]

LABEL_COLUMNS = ("split", "outcome", "conversion")
FEATURE_COLUMNS = ("user_row", "item_row", "history", "history_days", "user_stats", "cross_stats", "item_stats", "activity")
SLICE_COLUMNS = ("num_purchases", "item_events")


class Purpose(IntEnum):
    """What random numbers are drawn for; part of every key, so that no two uses share their numbers."""

    FILES = 1
    ROWS = 2
    HIDE = 3
    DROPOUT = 4
    WEIGHTS = 5


@dataclass(frozen=True)
class Workers:
    """This process among those that share a training run."""

    rank: int = 0
    size: int = 1

    def share(self, num: int) -> tuple[int, int]:
        """Start and end of this worker's contiguous share of `num` rows; it may be empty."""
        return num * self.rank // self.size, num * (self.rank + 1) // self.size


ALONE = Workers()


#: The files of one part of the samples; they have the same rows, and each column lies in one of them.
Part = tuple[str, ...]


def side_by_side(fs: pafs.FileSystem, folders: Sequence[str]) -> tuple[Part, ...]:
    """The parts below `folders`, each with its file in every one of them.

    Raises:
        ValueError: a folder is empty, or they hold different parts.
    """
    by_folder = [parquet_files(fs, folder) for folder in folders]
    names = [[path.rsplit("/", 1)[1] for path in paths] for paths in by_folder]
    for folder, found in zip(folders, names, strict=True):
        if found != names[0]:
            raise ValueError(f"{folder} and {folders[0]} hold different parts: {len(found)} and {len(names[0])}. Build them again from the same samples.")
    return tuple(zip(*by_folder, strict=True))


def read_part(fs: pafs.FileSystem, part: Part, columns: Sequence[str]) -> pa.Table:
    """`columns` of one part, from whichever of its files has them.

    Raises:
        ValueError: no file has a column, or the files have different rows.
    """
    found: dict[str, pa.ChunkedArray] = {}
    for path in part:
        with fs.open_input_file(path) as source:
            file = pq.ParquetFile(source)
            mine = [name for name in columns if name in file.schema_arrow.names and name not in found]
            table = file.read(mine) if mine else None
        found |= {name: table.column(name) for name in mine} if table is not None else {}
    missing = [name for name in columns if name not in found]
    if missing:
        raise ValueError(f"{part[0]} and the files beside it lack {missing}. Build the samples again with this config.")
    if len({len(column) for column in found.values()}) > 1:
        raise ValueError(f"the files {list(part)} have different numbers of rows. Build the samples and what is lent to them again.")
    return pa.table({name: found[name] for name in columns})


def feature_columns(spec: FeatureSpec) -> list[str]:
    """The feature columns that a batch of `spec` is made of; those of width 0 are not there."""
    columns = list(FEATURE_COLUMNS)
    columns += ["attributes"] if spec.attributes else []
    columns += ["collaborative_stats"] if spec.collaborative_stats else []
    columns += ["match_stats"] if spec.match_stats else []
    if not spec.lent:
        return columns
    columns += ["group_stats", "user_codes"]
    columns += ["completed"] if spec.attributes else []
    columns += ["group_history", "group_weight"] if spec.group_history_length else []
    columns += ["peer_stats"] if spec.peer_stats else []
    return columns


@dataclass(frozen=True)
class GlobalBatch:
    """One worker's share of one global batch."""

    batch: Batch
    num_rows: int  # of the global batch
    start: int  # of this share within it


@dataclass(frozen=True)
class SampleFiles:
    """The parts of a samples table, and how many rows of each have a label for a ranker's heads."""

    fs: pafs.FileSystem
    parts: tuple[Part, ...]
    spec: FeatureSpec
    heads: tuple[Head, ...]
    labelled: dict[str, tuple[int, ...]]  # split -> rows with a label, by file
    num_rows: int  # of all splits, labelled or not
    kept: tuple[pa.Table, ...] = ()  # the parts in memory, where they are read many times and fit

    @staticmethod
    def scan(fs: pafs.FileSystem, folders: Sequence[str], spec: FeatureSpec, heads: Sequence[Head]) -> "SampleFiles":
        """Count the rows below `folders`, whose parts lie side by side; reads three small columns.

        Raises:
            ValueError: no row of the train split has a label for `heads`.
        """
        parts = side_by_side(fs, folders)
        counts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
        num_rows = 0
        for part in parts:
            table = read_part(fs, part, LABEL_COLUMNS)
            num_rows += len(table)
            labelled = table.column("split").filter(pa.array(_has_label(table, heads)))
            for split, count in counts.items():
                count.append(pc.sum(pc.equal(labelled, split)).as_py() or 0)
        if not sum(counts["train"]):
            raise ValueError(
                f"samples: none of {num_rows} rows in {len(parts)} part(s) is in the train split and has a label for heads {list(heads)}. "
                "Widen logs.split.train_frac, or choose other heads for this ranker."
            )
        return SampleFiles(fs, parts, spec, tuple(heads), {split: tuple(count) for split, count in counts.items()}, num_rows)

    @staticmethod
    def of_table(rows: pa.Table, spec: FeatureSpec, heads: Sequence[Head]) -> "SampleFiles":
        """Rows in memory as one part, all of them to train on, whatever split they say.

        Raises:
            ValueError: none of them has a label for `heads`.
        """
        place = rows.column_names.index("split")
        rows = rows.set_column(place, "split", pa.array(["train"] * len(rows), pa.string())).combine_chunks()
        labelled = int(_has_label(rows, heads).sum())
        if not labelled:
            raise ValueError(f"none of {len(rows)} rows has a label for heads {list(heads)}. Bring rows of a longer time, or choose other heads.")
        by_split: dict[str, tuple[int, ...]] = {"train": (labelled,), "validation": (0,), "test": (0,)}
        return SampleFiles(pafs.LocalFileSystem(), ((),), spec, tuple(heads), by_split, len(rows), (rows,))

    def trained_rows(self) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
        """Of how many training rows with a label each user [M + 1] and each item [N + 1] is the user or the target."""
        users, items = np.zeros(self.spec.num_users + 1, np.int64), np.zeros(self.spec.num_items + 1, np.int64)
        for index in range(len(self.parts)):
            table = self._pick(self._read(index, [*LABEL_COLUMNS, "user_row", "item_row"]), "train")
            users += np.bincount(table.column("user_row").to_numpy(), minlength=len(users))
            items += np.bincount(table.column("item_row").to_numpy(), minlength=len(items))
        return users, items

    def steps_per_epoch(self, batch_size: int) -> int:
        """Global batches per epoch; each part ends with a short one."""
        return sum(-(-rows // batch_size) for rows in self.labelled["train"])

    def load(self, index: int, split: Split, extra: Sequence[str] = ()) -> pa.Table:
        """The labelled rows of one file and split, in file order, with the columns that a batch needs and `extra` ones."""
        columns = [*feature_columns(self.spec), *LABEL_COLUMNS, *extra]
        return self._pick(self._read(index, columns), split)

    def first_batch(self) -> Batch:
        """Training rows of the first file that has any, to fit the normalisers on."""
        index = next(i for i, rows in enumerate(self.labelled["train"]) if rows)
        return Batch.from_table(self.load(index, "train"), self.spec)

    def epoch(self, epoch: int, batch_size: int, seed: int, workers: Workers, device: torch.device | str = "cpu") -> Iterator[GlobalBatch]:
        """This worker's shares of an epoch's global batches, in order; the next file is read while the last one is used."""
        order = torch.randperm(len(self.parts), generator=generator(Purpose.FILES, seed, epoch)).tolist()
        files = [index for index in order if self.labelled["train"][index]]

        def read(index: int) -> Batch:
            return Batch.from_table(self.load(index, "train"), self.spec).to(device)

        with ThreadPoolExecutor(max_workers=1) as pool:
            coming = pool.submit(read, files[0])
            for place, index in enumerate(files):
                rows = coming.result()
                if place + 1 < len(files):
                    coming = pool.submit(read, files[place + 1])
                permutation = torch.randperm(len(rows), generator=generator(Purpose.ROWS, seed, epoch, index)).to(device)
                for start in range(0, len(rows), batch_size):
                    picked = permutation[start : start + batch_size]
                    first, last = workers.share(len(picked))
                    yield GlobalBatch(rows.rows(picked[first:last]), len(picked), first)

    def _read(self, index: int, columns: Sequence[str]) -> pa.Table:
        return self.kept[index].select(columns) if self.kept else read_part(self.fs, self.parts[index], columns)

    def _pick(self, table: pa.Table, split: Split) -> pa.Table:
        in_split = pc.equal(table.column("split"), split).to_numpy()
        return table.filter(pa.array(in_split & _has_label(table, self.heads)))


def generator(purpose: Purpose, *key: int) -> torch.Generator:
    """A generator whose draws depend on `purpose` and `key` alone."""
    state = np.random.SeedSequence((purpose, *key)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def _has_label(table: pa.Table, heads: Sequence[Head]) -> npt.NDArray[np.bool_]:
    conversion = pc.fill_null(table.column("conversion"), -1).to_numpy()
    return has_label(heads, table.column("outcome").to_numpy(), conversion)
