"""Groups: what the members of a code prefix have in common at one as_of (ChoirRec, group attribute completion and group behaviour sequence).

Reads user codes, users and the events before each as_of; writes one row per (as_of, prefix). Run: python -m pipelines.groups --config …

Letters: R users with codes, S code stages, A attributes, U statistics, G groups of one depth, K cells (an item in a group).
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from longtail import schema
from longtail.entities import Entities
from longtail.group_totals import WEIGHT_UNIT, Cells, summed
from longtail.settings import Settings

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class GroupsSettings(Settings):
    """The `groups` stage."""

    min_support: int = Field(2, ge=1, description="members with a value, before a majority is lent to the others")
    min_size: int = Field(3, ge=1, description="a user whose leaf group is smaller borrows from the parent prefix")
    sequence_categories: int = Field(6, ge=1, description="top categories over all purchases of the group")
    items_per_category: int = Field(3, ge=1)
    weight_by_lift: bool = Field(False, description="rank categories, and items within them, by lift over everyone instead of by count (ours)")
    half_life_days: float | None = Field(None, gt=0, description="a purchase of the sequence counts half as much for each such age (ours); None: all alike")
    threads: int = Field(2, ge=1, description="that read the events")
    memory_mb: int = Field(1024, ge=1, description="what the users' totals may take, beside the run's users and items: a share of the users at a time")

    @property
    def sequence_length(self) -> int:
        """Longest group sequence."""
        return self.sequence_categories * self.items_per_category

    def key_fields(self) -> dict[str, Any]:
        """The values that decide the stage's result: threads and memory decide none."""
        return {name: value for name, value in super().key_fields().items() if name not in ("threads", "memory_mb")}


@dataclass(frozen=True)
class Prefixes:
    """The groups of one depth, ascending by their codes."""

    codes_GD: Ints
    group_R: Ints
    parent_G: Ints  # the group of the depth above

    @staticmethod
    def by_depth(codes_RS: Ints) -> list["Prefixes"]:
        """From the empty prefix, everyone's, to the whole codes."""
        num_users, num_stages = codes_RS.shape
        found = [Prefixes(np.zeros((1, 0), np.int64), np.zeros(num_users, np.int64), np.zeros(1, np.int64))]
        for depth in range(1, num_stages + 1):
            base = int(codes_RS[:, depth - 1].max(initial=0)) + 1
            numbers, first, group_R = np.unique(found[-1].group_R * base + codes_RS[:, depth - 1], return_index=True, return_inverse=True)
            found.append(Prefixes(codes_RS[first, :depth], group_R.astype(np.int64), numbers // base))
        return found


def build_groups(codes_RS: Ints, user_row_R: Ints, stats_RU: Floats, cells: Cells, entities: Entities, as_of_us: int, settings: GroupsSettings) -> pa.Table:
    """One row per prefix of the codes at one as_of, the empty prefix (everyone) first; rows as in schema.GROUPS.

    `cells` are of the groups of whole codes (`Prefixes.by_depth`), and of what lies strictly before `as_of_us`.
    """
    tables, by_depth = [], Prefixes.by_depth(codes_RS)
    attributes_RA = entities.attribute_codes_MA[user_row_R]
    with ThreadPoolExecutor(settings.threads) as pool:
        waiting = []
        for prefixes in reversed(by_depth):
            waiting.append(pool.submit(_sequences, cells, entities, len(prefixes.codes_GD), settings))
            if prefixes.codes_GD.shape[1]:
                cells = cells.rolled_up(prefixes.parent_G, len(entities.items) + 1)
        sequences = [one.result() for one in reversed(waiting)]
    for prefixes, (ends, items, weights) in zip(by_depth, sequences, strict=True):
        group_R, (num_groups, depth) = prefixes.group_R, prefixes.codes_GD.shape
        size = np.bincount(group_R, minlength=num_groups)
        majority, support = majority_values(group_R, attributes_RA, [a.size for a in entities.attributes], num_groups, settings)
        stats = np.stack([np.bincount(group_R, column, num_groups) / np.maximum(size, 1) for column in stats_RU.T], 1)
        tables.append(
            pa.table(
                {
                    "as_of": pa.array([as_of_us] * num_groups, pa.int64()).cast(schema.TIMESTAMP),
                    "depth": pa.array([depth] * num_groups, pa.int8()),
                    "prefix": _lists(prefixes.codes_GD, pa.int32()),
                    "size": pa.array(size, pa.int32()),
                    "attributes": _lists(majority, pa.int32()),
                    "support": _lists(support, pa.float32()),
                    "stats": _lists(stats, pa.float32()),
                    "sequence": pa.ListArray.from_arrays(ends, entities.items.values.take(pa.array(items - 1))),
                    "sequence_weight": pa.ListArray.from_arrays(ends, pa.array(weights, pa.float32())),
                },
                schema=schema.GROUPS,
            )
        )
    return pa.concat_tables(tables)


def _lists(values: npt.NDArray[np.generic], kind: pa.DataType) -> pa.ListArray:
    """A matrix's rows as lists."""
    ends = np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1])
    return pa.ListArray.from_arrays(ends, pa.array(values.reshape(-1)).cast(kind, safe=False))


def majority_values(
    group_R: Ints, attribute_codes_RA: npt.NDArray[np.int32], sizes: list[int], num_groups: int, settings: GroupsSettings
) -> tuple[npt.NDArray[np.int32], Floats]:
    """Majority code [groups, A] over the members that have one (0 where fewer than min_support do), and the share of those that agree with it."""
    majority = np.zeros((num_groups, len(sizes)), np.int32)
    support = np.zeros((num_groups, len(sizes)), np.float32)
    for column, size in enumerate(sizes):
        counts = np.bincount(group_R * size + attribute_codes_RA[:, column], minlength=num_groups * size).reshape(num_groups, size)
        counts[:, 0] = 0  # a missing value has no vote
        known = counts.sum(1)
        best = counts.argmax(1)
        enough = known >= settings.min_support
        majority[:, column] = np.where(enough, best, 0)
        support[:, column] = np.where(enough, counts.max(1) / np.maximum(known, 1), 0)
    return majority, support


def _sequences(cells: Cells, entities: Entities, num_groups: int, settings: GroupsSettings) -> tuple[npt.NDArray[np.int32], Ints, npt.NDArray[np.float64]]:
    """Top categories of each group's purchases, in each the head items, ordered by mean purchase time; weights are shares of the group's purchases.

    Returns:
        The end of each group's sequence, with a leading 0; item rows; weights.
    """
    num_leaves, num_items = int(entities.leaf_codes_N.max(initial=0)) + 1, len(entities.items) + 1
    item_row, leaf_N = cells.key_K % num_items, entities.leaf_codes_N.astype(np.int64)
    group = cells.key_K // num_items
    unit = 1.0 if settings.half_life_days is None else WEIGHT_UNIT
    total_G = np.maximum(np.bincount(group, cells.weight_K * unit, num_groups), 1e-12)
    leaf_K = group * num_leaves + leaf_N[item_row]
    leaf_key, (leaf_weight,) = summed(leaf_K, cells.weight_K)
    leaf_group, leaf, leaf_count = leaf_key // num_leaves, leaf_key % num_leaves, leaf_weight * unit
    score = leaf_count
    if settings.weight_by_lift:
        overall = np.bincount(leaf, leaf_count, num_leaves) / max(float(leaf_count.sum()), 1e-12)
        # One pseudo-purchase at the overall rate keeps a single odd purchase from topping the list.
        score = (leaf_count + overall[leaf]) / (total_G[leaf_group] + 1) / np.maximum(overall[leaf], 1e-12)
    chosen = np.flatnonzero(np.isin(leaf_K, leaf_key[_top_per_group(leaf_group, score, settings.sequence_categories)]))
    item_group, item_row, cell, item_count = group[chosen], item_row[chosen], leaf_K[chosen], cells.weight_K[chosen] * unit
    item_score = item_count
    if settings.weight_by_lift:  # within a category too: else its bestsellers stand in every group's sequence
        everyone = np.bincount(cells.key_K % num_items, cells.weight_K * unit, num_items) / max(float(leaf_count.sum()), 1e-12)
        item_score = (item_count + everyone[item_row]) / (total_G[item_group] + 1) / np.maximum(everyone[item_row], 1e-12) * np.log1p(item_count)
    head = _top_per_group(cell, item_score, settings.items_per_category)
    mean_age = cells.age_K[chosen[head]] / cells.num_K[chosen[head]]
    head = head[np.lexsort((item_row[head], -mean_age, item_group[head]))]
    ends = np.concatenate([[0], np.cumsum(np.bincount(item_group[head], minlength=num_groups))]).astype(np.int32)
    return ends, item_row[head], item_count[head] / total_G[item_group[head]]


def _top_per_group(group: Ints, score: npt.NDArray[np.floating[Any]], count: int) -> Ints:
    """Places of the `count` best-scored rows of each group; ties go to the earlier row."""
    order = np.lexsort((-score, group))
    sorted_group = group[order]
    starts = np.flatnonzero(np.diff(sorted_group, prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    top: Ints = order[rank < count]
    return top
