"""Sample rows of a made-up world for the bench of training, as the stages `samples`, `matches` and `lent` write them.

What users choose follows, with noise, statistics, how good an item and how liked its topic is, and the taste of the user, who is shown it half the time and
whose history is full of it. Taste weighs little: a network finds it all at once after some hundred steps, earlier or later by the draw of its weights, and a
comparison of two networks would be one of their draws. Items are as popular as Zipf's law says (exponent 1), every history is full.

Letters: N rows, M users + 1, K items + 1, T topics, L history length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import torch

from longtail.features import CROSS_STATS, ITEM_STATS, USER_STATS
from longtail.matches import MATCH_STATS
from longtail.peers import PEER_STATS
from longtail.rankers.catalogue import OOV, Catalogue, CatalogueSizes
from longtail.sample_files import SampleFiles
from longtail.samples import FeatureSpec

NUM_TOPICS = 64
LEAVES_PER_TOPIC = 8
NUM_BRANDS = 2_000
ATTRIBUTES = {"age": 9, "city": 13, "income": 6}  # codes of each, unknown included
VECTOR_DIM = 64
ITEM_CODES = (32, 32, 32)
GROUP_CODES = (8, 8)
GROUP_LENGTH = 18
POOL = 30  # a user's histories are windows of a sequence so much longer
FOLDERS = ("samples", "matches", "lent")
COLUMNS_OF = {"matches": ("match_stats",), "lent": ("completed", "group_stats", "user_codes", "group_history", "group_weight", "peer_stats")}

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """Users with a taste, items with a topic."""

    spec: FeatureSpec
    taste_M: Ints
    topic_K: Ints
    quality_K: npt.NDArray[np.float64]
    appeal_T: npt.NDArray[np.float64]
    row_K: Ints  # of the items by popularity within their topic: popular ones stand anywhere in a table
    sequence_MP: npt.NDArray[np.int32]

    @staticmethod
    def of(num_users: int, num_items: int, history_length: int, seed: int) -> "World":
        rng = np.random.default_rng(seed)
        spec = FeatureSpec(
            num_users=num_users,
            num_items=num_items,
            history_length=history_length,
            group_history_length=GROUP_LENGTH,
            attributes=tuple(ATTRIBUTES),
            attribute_sizes=tuple(ATTRIBUTES.values()),
            user_stats=USER_STATS,
            cross_stats=CROSS_STATS,
            match_stats=MATCH_STATS,
            item_stats=ITEM_STATS,
            peer_stats=PEER_STATS,
            code_sizes=GROUP_CODES,
            has_conversion=False,
        )
        taste = rng.integers(0, NUM_TOPICS, num_users + 1)
        row = np.concatenate([[0], rng.permutation(num_items) + 1])
        topic = np.zeros(num_items + 1, np.int64)
        topic[row[1:]] = np.arange(num_items) % NUM_TOPICS
        length = history_length + POOL
        any_topic = rng.integers(0, NUM_TOPICS, (num_users + 1, length))
        sequence = row[_items(rng, np.where(rng.random(any_topic.shape) < 0.5, taste[:, None], any_topic), num_items)]
        return World(spec, taste, topic, rng.normal(0, 0.7, num_items + 1), rng.normal(0, 0.7, NUM_TOPICS), row, sequence.astype(np.int32))

    def catalogue(self) -> Catalogue:
        """All users and items have an ID of their own."""
        rng, spec = np.random.default_rng(0), self.spec
        items = np.arange(spec.num_items + 1)
        vectors = np.eye(NUM_TOPICS, VECTOR_DIM)[self.topic_K] + rng.normal(0, 0.1, (len(items), VECTOR_DIM))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        leaf = self.topic_K * LEAVES_PER_TOPIC + items % LEAVES_PER_TOPIC + 1
        categories = np.stack([self.topic_K // 4 + 1, leaf], axis=1)
        codes = np.stack([self.topic_K % ITEM_CODES[0], self.topic_K // 2, items % ITEM_CODES[2]], axis=1) + 1
        rows = 1 + rng.integers(0, 60, len(items))
        sizes = CatalogueSizes(
            user_ids=spec.num_users + 1 + OOV,
            item_ids=spec.num_items + 1 + OOV,
            categories=(NUM_TOPICS // 4 + 1, NUM_TOPICS * LEAVES_PER_TOPIC + 1),
            brands=NUM_BRANDS + 1,
            vector_dim=VECTOR_DIM,
            codes=tuple(size + 1 for size in ITEM_CODES),
        )
        brands = items % NUM_BRANDS + 1
        tables = [np.arange(spec.num_users + 1) + OOV, items + OOV, categories, brands, vectors.astype(np.float32), codes, rows.astype(np.float32)]
        for known in tables:
            known[0] = 0
        return Catalogue(sizes, *map(torch.from_numpy, tables))

    def rows(self, num: int, seed: int, split: str = "train") -> pa.Table:
        """Sample rows with all columns that a ranker reads."""
        spec, rng = self.spec, np.random.default_rng(seed)
        user = rng.integers(1, spec.num_users + 1, num)
        topic = np.where(rng.random(num) < 0.5, self.taste_M[user], rng.integers(0, NUM_TOPICS, num))
        item = self.row_K[_items(rng, topic, spec.num_items)]
        start = rng.integers(0, POOL + 1, num)
        history = self.sequence_MP[user[:, None], start[:, None] + np.arange(spec.history_length)]
        match = self.topic_K[item] == self.taste_M[user]
        user_stats, cross_stats, item_stats = (rng.standard_normal((num, len(names)), np.float32) for names in (USER_STATS, CROSS_STATS, ITEM_STATS))
        cross_stats[:, 0] += match
        score = -1.0 + 0.5 * match + self.quality_K[item] + self.appeal_T[self.topic_K[item]] + 0.6 * user_stats[:, 0] + 0.6 * item_stats[:, 0]
        outcome = rng.random(num) < 1 / (1 + np.exp(-score))
        attributes = np.stack([rng.integers(1, size, num) for size in ATTRIBUTES.values()], axis=1)
        codes = np.stack([self.taste_M[user] % GROUP_CODES[0], self.taste_M[user] // GROUP_CODES[0]], axis=1) + 1
        columns: dict[str, pa.Array] = {
            "split": pa.array([split] * num),
            "user_row": pa.array(user.astype(np.int32)),
            "item_row": pa.array(item.astype(np.int32)),
            "outcome": pa.array(outcome.astype(np.int8)),
            "conversion": pa.nulls(num, pa.int8()),
            "history": lists(history),
            "history_days": lists(np.cumsum(rng.exponential(3, history.shape), axis=1, dtype=np.float32)),
            "attributes": lists(attributes.astype(np.int32)),
            "user_stats": lists(user_stats),
            "cross_stats": lists(cross_stats),
            "item_stats": lists(item_stats),
            "activity": lists(rng.integers(0, 30, (num, 3)).astype(np.float32)),
            "num_purchases": pa.array(rng.integers(0, 30, num).astype(np.int32)),
            "item_events": pa.array(rng.integers(0, 300, num).astype(np.int32)),
            "match_stats": lists(rng.standard_normal((num, len(MATCH_STATS)), np.float32)),
            "completed": lists(attributes.astype(np.int32)),
            "group_stats": lists(rng.standard_normal((num, len(USER_STATS)), np.float32)),
            "user_codes": lists(codes.astype(np.int32)),
            "group_history": lists(self.row_K[_items(rng, np.repeat(self.taste_M[user, None], GROUP_LENGTH, axis=1), spec.num_items)].astype(np.int32)),
            "group_weight": lists(rng.random((num, GROUP_LENGTH), np.float32)),
            "peer_stats": lists(rng.standard_normal((num, len(PEER_STATS)), np.float32)),
        }
        return pa.table(columns)


def write(world: World, folder: Path, num_parts: int, rows_per_part: int, seed: int, held_out: int) -> None:
    """`num_parts` parts of training rows below `folder`, the first with `held_out` validation rows after them."""
    for number in range(num_parts):
        table = world.rows(rows_per_part, seed + 1 + number)
        if number == 0 and held_out:
            table = pa.concat_tables([table, world.rows(held_out, seed, "validation")])
        for name, part in by_folder(table).items():
            (folder / f"{name}.parquet").mkdir(parents=True, exist_ok=True)
            pq.write_table(part, folder / f"{name}.parquet" / f"part-{number:05d}.parquet", compression="zstd", compression_level=1)


def by_folder(table: pa.Table) -> Mapping[str, pa.Table]:
    """A table's columns as the three stages share them."""
    theirs = {name: table.select(columns) for name, columns in COLUMNS_OF.items()}
    return {"samples": table.drop_columns([name for columns in COLUMNS_OF.values() for name in columns]), **theirs}


def scan(folder: Path, spec: FeatureSpec) -> SampleFiles:
    """All parts below `folder`."""
    return SampleFiles.scan(pafs.LocalFileSystem(), [str(folder / f"{name}.parquet") for name in FOLDERS], spec, ("outcome",))


def first_parts(files: SampleFiles, num: int) -> SampleFiles:
    """The first `num` parts alone."""
    labelled = {split: rows[:num] for split, rows in files.labelled.items()}
    return SampleFiles(files.fs, files.parts[:num], files.spec, files.heads, labelled, sum(map(sum, labelled.values())))


def _items(rng: np.random.Generator, topic: Ints, num_items: int) -> Ints:
    """Item rows of these topics; of a topic's items the r-th most popular is drawn 1 / r times as often as the first."""
    num = (num_items - 1 - topic) // NUM_TOPICS + 1
    rank: Ints = np.minimum(np.exp(rng.random(topic.shape) * np.log(num + 1.0)).astype(np.int64), num) - 1
    return topic + NUM_TOPICS * rank + 1


def lists(values: npt.NDArray[np.generic]) -> pa.Array:
    """A column of lists of one length."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
