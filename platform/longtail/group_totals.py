"""Group totals: all that groups need of the events before an as_of, gathered batch by batch, so that memory follows from a setting and not from the logs.

Of each user a few counts and the days seen; of each cell, an item in a group of the deepest prefix, how often and when it was bought. Everything is summed
in whole numbers: neither threads nor batches nor shares of the users change a result.
Reads a logs artifact's events. Letters: M users + 1, E events of a batch, K cells, D days, B users asked for.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from longtail.entities import Entities, Vocabulary
from longtail.features import NEVER_DAYS
from longtail.times import DAY_US, from_us

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

TEXTS = ("user_id", "item_id", "kind")
COLUMNS = (*TEXTS, "ts", "price")
BATCH_ROWS = 1 << 20
RECENT_US = 28 * DAY_US
PRICE_UNIT = 2.0**-28  # of log prices: a batch's sums stay exact, and a mean is a hundredth of float32's last digit off
WEIGHT_UNIT = 2.0**-40
AGE_UNIT_US = 1_000  # ages summed over a billion purchases of half a year still fit
USER_BYTES = 64  # of one user's totals beside the days
PENDING_CELLS = 1 << 20


@dataclass(frozen=True)
class Question:
    """Whose events count, and which."""

    entities: Entities
    kinds: tuple[str, ...]  # of behaviour, strongest last
    start_us: int  # of the logs
    as_of_us: int
    leaf_group_M: Ints  # number of the deepest prefix of each user; -1 for users without codes
    half_life_days: float | None = None

    @property
    def first_day(self) -> int:
        return self.start_us // DAY_US

    @property
    def num_days(self) -> int:
        """Days that were over at as_of."""
        return max(self.as_of_us // DAY_US - self.first_day, 0)

    def shares(self, memory_mb: int) -> list[range]:
        """Ranges of user rows whose totals fit into the memory."""
        num_users = len(self.leaf_group_M)
        num = max(math.ceil(num_users * (USER_BYTES + self.num_days) / (memory_mb * 2**20)), 1)
        return [range(share * num_users // num, (share + 1) * num_users // num) for share in range(num)]


@dataclass(frozen=True)
class Events:
    """A batch's behaviour before as_of by users and items that are known."""

    user_row_E: Ints
    item_row_E: Ints
    time_E: Ints
    strongest_E: npt.NDArray[np.bool_]
    log_price_E: npt.NDArray[np.float64]

    @staticmethod
    def of(batch: pa.RecordBatch | pa.Table, question: Question) -> "Events":
        """From rows of the events table; its texts may be dictionaries."""
        column = {name: batch.column(name) for name in batch.schema.names}
        kind_E = _looked_up(column["kind"], lambda kinds: Vocabulary(pa.array(question.kinds)).encode(kinds))
        time_E = _whole(column["ts"]).cast(pa.int64()).to_numpy(zero_copy_only=False)
        kept = np.flatnonzero((kind_E > 0) & (time_E < question.as_of_us))
        user = _looked_up(column["user_id"], question.entities.users.encode)[kept].astype(np.int64)
        item = _looked_up(column["item_id"], question.entities.items.encode)[kept].astype(np.int64)
        price = _whole(column["price"]).to_numpy(zero_copy_only=False)[kept].astype(np.float64) if "price" in column else np.full(len(kept), np.nan)
        log_price = np.log1p(np.maximum(np.where(np.isfinite(price), price, np.nan), 0))
        log_price = np.where(np.isnan(log_price), question.entities.log_price_N[item], log_price)
        known = (user > 0) & (item > 0)
        return Events(user, item, time_E[kept], kind_E[kept] == len(question.kinds), log_price).where(known)

    def where(self, kept_E: npt.NDArray[np.bool_]) -> "Events":
        if kept_E.all():
            return self
        return Events(self.user_row_E[kept_E], self.item_row_E[kept_E], self.time_E[kept_E], self.strongest_E[kept_E], self.log_price_E[kept_E])


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _looked_up(column: pa.Array | pa.ChunkedArray, encode: Callable[[pa.Array], npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """Codes [E] of texts, each distinct one encoded once; 0 for null."""
    texts = _whole(column)
    if not pa.types.is_dictionary(texts.type):
        texts = texts.dictionary_encode()
    codes = np.append(encode(texts.dictionary), np.int32(0))  # null is -1, the last
    looked_up: npt.NDArray[np.int32] = codes[pc.fill_null(texts.indices, -1).to_numpy(zero_copy_only=False)]
    return looked_up


@dataclass(frozen=True)
class UserTotals:
    """What a share of the users has done, by place in its range of rows."""

    rows: range
    first_day: int
    purchases_M: Ints
    others_M: Ints
    recent_M: Ints
    last_M: Ints  # time of the last event
    price_M: Ints  # sum of log prices, in PRICE_UNIT
    priced_M: Ints
    seen_MD: npt.NDArray[np.bool_]

    @staticmethod
    def none(rows: range, question: Question) -> "UserTotals":
        purchases, others, recent, last, price, priced = np.zeros((6, len(rows)), np.int64)
        seen_MD = np.zeros((len(rows), question.num_days), np.bool_)
        return UserTotals(rows, question.first_day, purchases, others, recent, last, price, priced, seen_MD)

    def add(self, events: Events, question: Question) -> None:
        """Count events of the share's users."""
        user = events.user_row_E - self.rows.start

        def count(flags_E: npt.NDArray[np.bool_]) -> Ints:
            return np.bincount(user[flags_E], minlength=len(self.rows))

        purchases_M = count(events.strongest_E)
        self.purchases_M[:] += purchases_M
        self.others_M[:] += np.bincount(user, minlength=len(self.rows)) - purchases_M
        recent = events.time_E >= question.as_of_us - RECENT_US
        if recent.any():
            self.recent_M[:] += count(recent)
        np.maximum.at(self.last_M, user, events.time_E)
        priced = ~np.isnan(events.log_price_E)
        units = np.rint(events.log_price_E[priced] / PRICE_UNIT)
        self.price_M[:] += np.bincount(user[priced], units, len(self.rows)).astype(np.int64)
        self.priced_M[:] += count(priced)
        day = events.time_E // DAY_US - self.first_day
        over = (day >= 0) & (day < question.num_days)
        self.seen_MD[user[over], day[over]] = True

    def statistics(self, as_of_us: int) -> Floats:
        """features.USER_STATS [M, U] of the share's users at `as_of_us`."""
        events_M = self.purchases_M + self.others_M
        since_M = np.where(events_M > 0, (as_of_us - self.last_M) / DAY_US, NEVER_DAYS)
        counts = np.stack([self.purchases_M, self.others_M, self.seen_MD.sum(1), self.recent_M, since_M], 1)
        price_M = self.price_M * PRICE_UNIT / np.maximum(self.priced_M, 1)
        statistics_MU: Floats = np.concatenate([np.log1p(counts), price_M[:, None]], 1).astype(np.float32)
        return statistics_MU


@dataclass(frozen=True)
class Cells:
    """Purchases by group and item; where nobody had purchased, all behaviour. Once merged, ascending by key."""

    key_K: Ints  # group * (items + 1) + item row
    num_K: Ints
    age_K: Ints  # summed, in AGE_UNIT_US before as_of
    weight_K: Ints  # summed, in WEIGHT_UNIT, or as num_K where all count alike
    strongest: bool = False

    @staticmethod
    def of(events: Events, question: Question) -> "Cells":
        """A cell for each event of users with codes; of those of the strongest kind where there is one, also of a user without codes."""
        strongest = bool(events.strongest_E.any())
        counted = (question.leaf_group_M[events.user_row_E] >= 0) & (events.strongest_E | (not strongest))
        events = events.where(counted)
        age_us = question.as_of_us - events.time_E
        weight = np.ones(len(age_us), np.int64)
        if question.half_life_days is not None:
            weight = np.rint(0.5 ** (age_us / DAY_US / question.half_life_days) / WEIGHT_UNIT).astype(np.int64)
        key = question.leaf_group_M[events.user_row_E] * (len(question.entities.items) + 1) + events.item_row_E
        return Cells(key, np.ones(len(key), np.int64), age_us // AGE_UNIT_US, weight, strongest)

    @staticmethod
    def merged(parts: Sequence["Cells"]) -> "Cells":
        """One of several; those of weaker kinds count only where no part has the strongest."""
        strongest = any(part.strongest for part in parts)
        parts = [part for part in parts if part.strongest == strongest]
        columns = zip(*((part.key_K, part.num_K, part.age_K, part.weight_K) for part in parts), strict=True)
        key_K, (num_K, age_K, weight_K) = summed(*(np.concatenate(column) for column in columns))
        return Cells(key_K, num_K, age_K, weight_K, strongest)

    def rolled_up(self, parent_G: Ints, num_items: int) -> "Cells":
        """The cells of the parents of the groups; `num_items` with the unknown one."""
        key = parent_G[self.key_K // num_items] * num_items + self.key_K % num_items
        return Cells.merged([Cells(key, self.num_K, self.age_K, self.weight_K, self.strongest)])


def summed(key_E: Ints, *values: Ints) -> tuple[Ints, list[Ints]]:
    """Distinct keys, ascending, and the sum of each of `values` by key; keys are not negative."""
    key_E, order = _sorted(key_E)
    starts = np.flatnonzero(np.diff(key_E, prepend=-1))
    if len(starts) == len(key_E):
        return key_E, [value[order] for value in values]
    return key_E[starts], [np.add.reduceat(value[order], starts) for value in values]


def _sorted(key_E: Ints) -> tuple[Ints, Ints]:
    """The keys in order, and their places; where both fit into one number, one sort of numbers does it, in two thirds of the time."""
    bits = len(key_E).bit_length()
    if int(key_E.max(initial=0)).bit_length() + bits > 63:
        order = np.argsort(key_E)
        return key_E[order], order
    packed = np.sort(key_E << bits | np.arange(len(key_E)))
    return packed >> bits, packed & ((1 << bits) - 1)


def gathered(batches: Iterable[Events], rows: range, question: Question) -> tuple[UserTotals, Cells]:
    """Totals of the users of a share, and the cells that they make up."""
    users, cells = UserTotals.none(rows, question), [Cells(*np.zeros((4, 0), np.int64))]
    whole = len(rows) == len(question.leaf_group_M)
    for events in batches:
        mine = events if whole else events.where((events.user_row_E >= rows.start) & (events.user_row_E < rows.stop))
        users.add(mine, question)
        cells.append(Cells.of(mine, question))
        if sum(len(part.key_K) for part in cells[1:]) > max(PENDING_CELLS, len(cells[0].key_K)):
            cells = [Cells.merged(cells)]
    return users, Cells.merged(cells)


def totals(fs: pafs.FileSystem, groups: Sequence[tuple[str, int]], question: Question, threads: int, memory_mb: int) -> tuple[Floats, Cells]:
    """features.USER_STATS [M, U] of all users at as_of and the cells, from the events' row groups; read once for each share of the users."""
    parts = []
    for rows in question.shares(memory_mb):
        users, cells = gathered(read(fs, groups, question, threads), rows, question)
        parts.append((users.statistics(question.as_of_us), cells))
    merged = parts[0][1] if len(parts) == 1 else Cells.merged([cells for _, cells in parts])
    return np.concatenate([stats for stats, _ in parts]), merged


def read(fs: pafs.FileSystem, groups: Sequence[tuple[str, int]], question: Question, threads: int) -> Iterator[Events]:
    """The events of Parquet row groups, at most twice as many at a time as there are threads that read."""
    waiting: deque[Future[list[Events]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for path, group in groups:
            waiting.append(pool.submit(_read_group, fs, path, group, question))
            if len(waiting) > 2 * threads - 1:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _read_group(fs: pafs.FileSystem, path: str, group: int, question: Question) -> list[Events]:
    with fs.open_input_file(path) as file:
        parquet = pq.ParquetFile(file, read_dictionary=list(TEXTS))  # an id is looked up once
        names = parquet.schema_arrow.names
        times = parquet.metadata.row_group(group).column(names.index("ts")).statistics
        if times is not None and times.has_min_max and times.min >= from_us(question.as_of_us):
            return []
        columns = [name for name in COLUMNS if name in names]
        return [Events.of(batch, question) for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)]
