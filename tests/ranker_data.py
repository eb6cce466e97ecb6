"""Sample tables of the real schema with a known truth, for tests of the rankers and of training.

Written below a folder as the stages `samples` and `lent` write them, the columns of each part in two files.
Letters: N rows, M users + 1, K items + 1, L history length, D vector width.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import torch

from longtail.collaborative import COLLABORATIVE_STATS
from longtail.peers import PEER_STATS
from longtail.rankers.batch import Batch
from longtail.rankers.catalogue import OOV, Catalogue, CatalogueSizes
from longtail.sample_files import SampleFiles
from longtail.samples import FeatureSpec

NUM_TOPICS = 6
NUM_GROUPS = 6
DIM = 8
STAGES = ("samples", "matches", "lent")

#: The columns that the stages `matches` and `lent` write; the others are the samples' own.
MATCH_COLUMNS = ("match_stats",)
LENT_COLUMNS = ("completed", "group_stats", "user_codes", "group_history", "group_weight", "peer_stats")


def spec_of(
    num_users: int = 40,
    num_items: int = 60,
    history_length: int = 5,
    attributes: int = 2,
    has_conversion: bool = True,
    collaborative_stats: int = 0,
    peer_stats: int = 0,
) -> FeatureSpec:
    return FeatureSpec(
        num_users=num_users,
        num_items=num_items,
        history_length=history_length,
        group_history_length=4,
        attributes=("age", "city", "income")[:attributes],
        attribute_sizes=(4, 5, 3)[:attributes],
        user_stats=("log_purchases", "log_clicks"),
        cross_stats=("log_same_item",),
        match_stats=("log_same_cluster",),
        item_stats=("log_events", "log_price"),
        collaborative_stats=COLLABORATIVE_STATS[:collaborative_stats],
        peer_stats=PEER_STATS[:peer_stats],
        code_sizes=(NUM_GROUPS, 3),
        has_conversion=has_conversion,
    )


@dataclass(frozen=True)
class World:
    """Items with topics that only their vectors show, users with a taste, planted user groups."""

    spec: FeatureSpec
    topic_K: npt.NDArray[np.int64]
    vector_KD: npt.NDArray[np.float32]
    taste_M: npt.NDArray[np.int64]
    group_M: npt.NDArray[np.int64]

    @staticmethod
    def of(spec: FeatureSpec, seed: int = 0) -> "World":
        rng = np.random.default_rng(seed)
        topic = rng.integers(0, NUM_TOPICS, spec.num_items + 1)
        centres = np.eye(NUM_TOPICS, DIM)
        vectors = centres[topic] + rng.normal(0, 0.1, (spec.num_items + 1, DIM))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors[0] = 0
        taste = rng.integers(0, NUM_TOPICS, spec.num_users + 1)
        return World(spec, topic, vectors.astype(np.float32), taste, rng.integers(0, NUM_GROUPS, spec.num_users + 1))

    def catalogue(self, cold_from: int | None = None, categories: npt.NDArray[np.int64] | None = None) -> Catalogue:
        """Every user and item has an ID of its own, but items from row `cold_from` on, and the last user, are out of vocabulary."""
        spec = self.spec
        cold_from = spec.num_items + 1 if cold_from is None else cold_from
        items = torch.arange(spec.num_items + 1) + OOV
        items[0] = 0
        items[cold_from:] = OOV
        users = torch.arange(spec.num_users + 1) + OOV
        users[0], users[-1] = 0, OOV
        category = torch.zeros(spec.num_items + 1, 1, dtype=torch.int64) if categories is None else torch.from_numpy(categories).reshape(-1, 1)
        codes = torch.stack([torch.from_numpy(self.topic_K) + 1, torch.arange(spec.num_items + 1) % 4 + 1], 1)
        codes[0] = 0
        sizes = CatalogueSizes(spec.num_users + 2, spec.num_items + 2, (int(category.max()) + 1,), 3, DIM, (NUM_TOPICS + 1, 5))
        brands = torch.arange(spec.num_items + 1) % 3
        return Catalogue(sizes, users, items, category, brands, torch.from_numpy(self.vector_KD).clone(), codes, (items > OOV).float() * 30)

    def rows(
        self,
        num: int,
        seed: int = 1,
        *,
        truth: str = "taste",
        split: str = "train",
        items: tuple[int, int] | None = None,
        history_items: tuple[int, int] | None = None,
    ) -> pa.Table:
        """Sample rows whose outcome follows `truth`: taste (user's taste = item's topic) or group (user's group = item's topic).

        Args:
            num: how many.
            seed: of the draw.
            truth: what decides the outcome, with 10 % noise.
            split: of every row.
            items: range of target rows, all items by default.
            history_items: range that histories are drawn from, all items by default.
        """
        spec, rng = self.spec, np.random.default_rng(seed)
        user = rng.integers(1, spec.num_users + 1, num)
        item = rng.integers(*(items or (1, spec.num_items + 1)), num)
        wanted = self.taste_M[user] if truth == "taste" else self.group_M[user]
        liked = rng.random(num) < 0.5  # half of the candidates are of the wanted topic
        low, high = items or (1, spec.num_items + 1)
        by_topic = [np.flatnonzero(self.topic_K[low:high] == topic) + low for topic in range(NUM_TOPICS)]
        item = np.array([rng.choice(by_topic[w]) if yes and len(by_topic[w]) else i for i, w, yes in zip(item, wanted, liked, strict=True)], np.int64)
        match = self.topic_K[item] == wanted
        outcome = np.where(rng.random(num) < 0.1, ~match, match).astype(np.int8)
        low, high = history_items or (1, spec.num_items + 1)
        of_taste = [np.flatnonzero(self.topic_K[low:high] == topic) + low for topic in range(NUM_TOPICS)]
        history = np.stack([rng.choice(of_taste[taste], spec.history_length) for taste in self.taste_M[user]])
        length = rng.integers(0 if num > 10 else 1, spec.history_length + 1, num)
        if truth == "group":
            length[:] = 0
        history[np.arange(spec.history_length)[None] >= length[:, None]] = 0
        conversion = np.where(outcome == 1, (item % 2).astype(np.int8), 0)
        attributes = np.stack([rng.integers(0, size, num) for size in spec.attribute_sizes], 1) if spec.attributes else np.zeros((num, 0), np.int64)
        codes = np.stack([self.group_M[user] + 1, rng.integers(1, 4, num)], 1)
        group_history = rng.integers(0, spec.num_items + 1, (num, spec.group_history_length))
        columns = {
            "example_id": pa.array(np.arange(num, dtype=np.int64) + 1_000_000 * seed),
            "user_id": pa.array([f"u{u:04d}" for u in user]),
            "item_id": pa.array([f"i{i:04d}" for i in item]),
            "split": pa.array([split] * num),
            "user_row": pa.array(user.astype(np.int32)),
            "item_row": pa.array(item.astype(np.int32)),
            "history": fixed(history, pa.int32()),
            "history_days": fixed(rng.exponential(20, history.shape), pa.float32()),
            "user_stats": fixed(rng.normal(3, 2, (num, 2)), pa.float32()),
            "cross_stats": fixed(rng.normal(0, 1, (num, 1)), pa.float32()),
            "item_stats": fixed(rng.normal(1, 5, (num, 2)), pa.float32()),
            "match_stats": fixed(np.random.default_rng(seed).normal(0, 1, (num, 1)), pa.float32()),
            "group_stats": fixed(rng.normal(3, 1, (num, 2)), pa.float32()),
            "user_codes": fixed(codes, pa.int32()),
            "group_history": fixed(group_history, pa.int32()),
            "group_weight": fixed(rng.random((num, spec.group_history_length)), pa.float32()),
            "activity": fixed(rng.integers(0, 30, (num, 3)), pa.float32()),
            "num_purchases": pa.array(rng.integers(0, 30, num).astype(np.int32)),
            "item_events": pa.array(rng.integers(0, 300, num).astype(np.int32)),
            "item_age_days": pa.array(rng.random(num).astype(np.float32)),
            "outcome": pa.array(outcome),
            "conversion": pa.array(conversion, pa.int8()) if spec.has_conversion else pa.nulls(num, pa.int8()),
        }
        if spec.attributes:
            columns |= {"attributes": fixed(attributes, pa.int32()), "completed": fixed(np.maximum(attributes, 1), pa.int32())}
        for name, width in (("collaborative_stats", len(spec.collaborative_stats)), ("peer_stats", len(spec.peer_stats))):
            if width:
                columns[name] = fixed(rng.normal(0, 2, (num, width)), pa.float32())
        return pa.table(columns)

    def batch(self, num: int, seed: int = 1, truth: str = "taste") -> Batch:
        return Batch.from_table(self.rows(num, seed, truth=truth), self.spec)


def fixed(values: npt.NDArray[np.generic], kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(values).reshape(-1)).cast(kind, safe=False), values.shape[1])


def by_stage(table: pa.Table) -> tuple[pa.Table, pa.Table, pa.Table]:
    """A table's columns as the three stages share them."""
    matches, lent = ([name for name in names if name in table.column_names] for names in (MATCH_COLUMNS, LENT_COLUMNS))
    return table.drop_columns([*matches, *lent]), table.select(matches), table.select(lent)


def write_parts(folder: Path, tables: list[pa.Table]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"part-{number:05d}.parquet")
    return folder


def write_samples(folder: Path, tables: list[pa.Table]) -> Path:
    """Parts of samples below `folder`, which `scan` reads."""
    for name, parts in zip(STAGES, zip(*map(by_stage, tables), strict=True), strict=True):
        write_parts(folder / f"{name}.parquet", list(parts))
    return folder


def scan(folder: Path, spec: FeatureSpec, heads: tuple[str, ...] = ("outcome",)) -> SampleFiles:
    return SampleFiles.scan(pafs.LocalFileSystem(), folders_of(folder), spec, heads)  # type: ignore[arg-type]


def folders_of(folder: Path) -> tuple[str, ...]:
    return tuple(str(folder / f"{name}.parquet") for name in STAGES)
