"""Users and items as rows and codes: the numbering that groups, samples, training and serving share.

Users and items are numbered from 1 in the order of their ids; 0 is anyone and anything unknown. Attribute values, category prefixes and brands are numbered
from 1 in sorted order too, so that the same tables give the same numbers everywhere.

Letters: M users + 1, N items + 1, A attributes, C category levels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longtail.logs import LogsInfo

MAX_CATEGORY_LEVELS = 3
UNKNOWN_TIME = np.iinfo(np.int64).min

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Vocabulary:
    """Values in sorted order; a value's code is its place plus one, 0 for unknown ones."""

    values: pa.Array

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def codes(self) -> Mapping[str, int]:
        """Code by value: about 150 MB for a million ids, and kept."""
        return dict(zip(self.values.to_pylist(), range(1, len(self) + 1), strict=True))

    def encode(self, values: pa.Array | pa.ChunkedArray | Sequence[str | None]) -> Ints:
        """Codes [len(values)] int32. A column is looked up in one go, which hashes the whole vocabulary each time; a sequence, a request's say, in `codes`."""
        if not isinstance(values, pa.Array | pa.ChunkedArray):
            find: Callable[[Any, int], int] = self.codes.get  # None is no value, and has no code
            return np.array([find(value, 0) for value in values], np.int32)
        array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        found = pc.index_in(array, value_set=self.values, skip_nulls=True)
        codes: Ints = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int32) + 1
        return codes

    def by_code(self, keys: pa.ChunkedArray, lists: pa.ChunkedArray, missing: int = 0) -> npt.NDArray[Any]:
        """A fixed-size list column as [len(self) + 1, width], each row at the code of its key; `missing` at 0 and where there is no row."""
        codes = self.encode(keys)
        values = lists.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(lists), lists.type.list_size)
        placed = np.full((len(self) + 1, values.shape[1]), missing, values.dtype)
        placed[codes[codes > 0]] = values[codes > 0]
        return placed

    @staticmethod
    def of(values: pa.Array | pa.ChunkedArray) -> "Vocabulary":
        unique = pc.unique(values).drop_null()
        return Vocabulary(unique.take(pc.sort_indices(unique)))


@dataclass(frozen=True)
class AttributeCoding:
    """How one user attribute becomes a code: by its values, or by quantile bins where it is numeric."""

    name: str
    vocabulary: Vocabulary | None
    edges: npt.NDArray[np.float64] | None

    @property
    def size(self) -> int:
        """Number of codes, 0 (unknown) included."""
        if self.vocabulary is not None:
            return len(self.vocabulary) + 1
        assert self.edges is not None
        return len(self.edges) + 2

    def encode(self, values: pa.Array | pa.ChunkedArray) -> Ints:
        if self.vocabulary is not None:
            return self.vocabulary.encode(pc.cast(values, pa.string()))
        assert self.edges is not None
        numbers = pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else pc.cast(values, pa.float64()).to_numpy()
        codes = np.searchsorted(self.edges, np.nan_to_num(numbers), side="right") + 1
        return np.where(np.isfinite(numbers), codes, 0).astype(np.int32)

    def label(self, code: int) -> str:
        """A code in words."""
        if code == 0:
            return "unknown"
        if self.vocabulary is not None:
            return str(self.vocabulary.values[code - 1].as_py())
        assert self.edges is not None
        low = "-inf" if code == 1 else f"{self.edges[code - 2]:g}"
        high = "inf" if code == len(self.edges) + 1 else f"{self.edges[code - 1]:g}"
        return f"[{low}, {high})"


@dataclass(frozen=True)
class Entities:
    """Every user and item of a run, by row."""

    users: Vocabulary
    items: Vocabulary
    attributes: tuple[AttributeCoding, ...]
    attribute_codes_MA: Ints
    categories: tuple[Vocabulary, ...]  # by level: prefixes "root", "root > middle", …
    category_codes_NC: Ints
    leaf_codes_N: Ints
    brands: Vocabulary
    brand_codes_N: Ints
    log_price_N: npt.NDArray[np.float32]  # log1p, NaN unknown
    first_seen_N: npt.NDArray[np.int64]  # microseconds since the epoch, UNKNOWN_TIME where nobody knows

    @staticmethod
    def build(users: pa.Table, items: pa.Table, info: LogsInfo, numeric_bins: int) -> "Entities":
        """Number everything; `users` and `items` are the logs stage's tables."""
        users = users.take(pc.sort_indices(users.column("user_id")))
        items = items.take(pc.sort_indices(items.column("item_id")))
        codings, columns = [], []
        for name in (*info.categorical_attributes, *info.numeric_attributes):
            coding = _coding(name, users.column(name), name in info.numeric_attributes, numeric_bins)
            codings.append(coding)
            columns.append(np.concatenate([[0], coding.encode(users.column(name))]))
        attribute_codes = np.stack(columns, 1).astype(np.int32) if columns else np.zeros((len(users) + 1, 0), np.int32)
        categories, category_codes = _category_levels(_column(items, "category", pa.list_(pa.string())))
        brand_column = _column(items, "brand", pa.string())
        brands = Vocabulary.of(brand_column)
        price = _column(items, "price", pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
        price[~np.isfinite(price)] = np.nan
        first_seen = pc.cast(_column(items, "first_seen", pa.timestamp("us", tz="UTC")), pa.int64())
        return Entities(
            users=Vocabulary(users.column("user_id").combine_chunks()),
            items=Vocabulary(items.column("item_id").combine_chunks()),
            attributes=tuple(codings),
            attribute_codes_MA=attribute_codes,
            categories=categories,
            category_codes_NC=category_codes,
            leaf_codes_N=_leaf_codes(category_codes, [len(level) for level in categories]),
            brands=brands,
            brand_codes_N=np.concatenate([[0], brands.encode(brand_column)]).astype(np.int32),
            log_price_N=np.concatenate([[np.nan], np.log1p(np.maximum(price, 0))]).astype(np.float32),
            first_seen_N=np.concatenate([[UNKNOWN_TIME], pc.fill_null(first_seen, UNKNOWN_TIME).to_numpy(zero_copy_only=False)]),
        )

    @property
    def root_codes(self) -> Ints:
        """The first level [N] of each item's category path; 0 unknown."""
        return self.category_codes_NC[:, 0] if self.category_codes_NC.shape[1] else np.zeros(len(self.category_codes_NC), np.int32)

    def attribute_codes(self, values: Mapping[str, object]) -> Ints:
        """Codes [A] of attributes given by name, as a request does; unknown names and values are 0."""
        codes = [int(coding.encode(pa.array([values.get(coding.name)]))[0]) if values.get(coding.name) is not None else 0 for coding in self.attributes]
        return np.array(codes, np.int32)

    def category_codes(self, category: Sequence[str]) -> Ints:
        """Codes [C] of a category path; levels that no item of the run has are 0."""
        path = _path_prefixes(category, len(self.categories))
        return np.array([vocabulary.encode([prefix])[0] for vocabulary, prefix in zip(self.categories, path, strict=True)], np.int32)

    def leaf_code(self, category_codes_C: Ints) -> int:
        return int(_leaf_codes(category_codes_C[None], [len(level) for level in self.categories])[0])


def _column(table: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    if name not in table.column_names:
        return pa.nulls(len(table), kind)
    return table.column(name).combine_chunks().cast(kind)


def _coding(name: str, values: pa.ChunkedArray, numeric: bool, bins: int) -> AttributeCoding:
    if not numeric:
        return AttributeCoding(name, Vocabulary.of(pc.cast(values, pa.string())), None)
    known = pc.cast(values, pa.float64()).drop_null().to_numpy()
    known = known[np.isfinite(known)]
    edges = np.unique(np.quantile(known, np.arange(1, bins) / bins)) if len(known) else np.zeros(0)
    return AttributeCoding(name, None, edges)


def _category_levels(paths: pa.Array) -> tuple[tuple[Vocabulary, ...], Ints]:
    """Vocabularies of the path prefixes by level, and codes [N, C] with row 0 unknown."""
    number_N, first_D = _distinct(paths)
    lists = [[part for part in path or () if part] for path in paths.take(pa.array(first_D)).to_pylist()]
    depth = min(max((len(path) for path in lists if path), default=0), MAX_CATEGORY_LEVELS)
    vocabularies, columns = [], []
    by_path = [_path_prefixes(path, depth) if path else [None] * depth for path in lists]
    for level in range(depth):
        prefixes = pa.array([row[level] for row in by_path], pa.string())
        vocabulary = Vocabulary.of(prefixes)
        vocabularies.append(vocabulary)
        columns.append(np.concatenate([[0], vocabulary.encode(prefixes)[number_N]]))
    codes = np.stack(columns, 1).astype(np.int32) if columns else np.zeros((len(paths) + 1, 0), np.int32)
    return tuple(vocabularies), codes


def _distinct(paths: pa.ListArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The number [N] of each row's path, and a row [D] of each distinct one: a catalogue has few, whatever its size. Empty parts do not count."""
    parts = pc.fill_null(paths.flatten(), "")
    kept = pc.not_equal(parts, "").to_numpy(zero_copy_only=False)
    row_P = pc.list_parent_indices(paths).to_numpy()[kept]
    code_P = parts.dictionary_encode().indices.to_numpy()[kept].astype(np.int64) + 1
    starts = np.flatnonzero(np.diff(row_P, prepend=-1))
    level_P = np.arange(len(row_P)) - np.repeat(starts, np.diff(np.append(starts, len(row_P))))
    number_N, first_D = np.zeros(len(paths), np.int64), np.zeros(min(len(paths), 1), np.int64)
    for level in range(int(level_P.max(initial=-1)) + 1):
        there = level_P == level
        code_N = np.zeros(len(paths), np.int64)
        code_N[row_P[there]] = code_P[there]
        _, first_D, number_N = np.unique(number_N * (int(code_P.max()) + 1) + code_N, return_index=True, return_inverse=True)
    return number_N, first_D


def _path_prefixes(path: Sequence[str], depth: int) -> list[str | None]:
    """A path's prefix at each of `depth` levels, None below its end; one that is deeper than the levels we keep ends in its true leaf, not in a middle node."""
    return [None if level >= len(path) else " > ".join(path if level == depth - 1 else path[: level + 1]) for level in range(depth)]


def _leaf_codes(category_codes_NC: Ints, sizes: Sequence[int]) -> Ints:
    """The deepest known level of each row, numbered across levels; 0 where no level is known."""
    leaf = np.zeros(len(category_codes_NC), np.int32)
    offset = 0
    for level, size in enumerate(sizes):
        known = category_codes_NC[:, level] > 0
        leaf[known] = category_codes_NC[known, level] + offset
        offset += size
    return leaf
