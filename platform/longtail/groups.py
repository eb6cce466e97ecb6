"""Groups: what the members of a code prefix have in common at one as_of (ChoirRec, group attribute completion and group behaviour sequence).

Reads user codes, users and the events before each as_of; writes one row per (as_of, prefix). Run: python -m pipelines.groups --config …

Letters: R users with codes, S code stages, A attributes, U statistics.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from longtail import schema
from longtail.behaviour import Behaviour
from longtail.entities import Entities
from longtail.ranks import rank_within
from longtail.settings import Settings
from longtail.times import DAY_US

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

    @property
    def sequence_length(self) -> int:
        """Longest group sequence."""
        return self.sequence_categories * self.items_per_category


def build_groups(
    codes_RS: Ints,
    user_row_R: Ints,
    stats_RU: Floats,
    behaviour: Behaviour,
    entities: Entities,
    as_of_us: int,
    settings: GroupsSettings,
) -> pa.Table:
    """One row per prefix of the codes at one as_of, the empty prefix (everyone) first; rows as in schema.GROUPS.

    `behaviour` may reach beyond `as_of_us`; only what lies strictly before it is used.
    """
    past = behaviour.before(as_of_us)
    purchases = past.is_purchase
    tables = []
    for depth in range(codes_RS.shape[1] + 1):
        prefixes, group_R = np.unique(codes_RS[:, :depth], axis=0, return_inverse=True) if depth else (np.zeros((1, 0), np.int64), np.zeros(len(codes_RS), int))
        group_R = group_R.reshape(-1)
        num_groups = len(prefixes)
        size = np.bincount(group_R, minlength=num_groups)
        majority, support = majority_values(group_R, entities.attribute_codes_MA[user_row_R], [a.size for a in entities.attributes], num_groups, settings)
        stats = np.stack([np.bincount(group_R, column, num_groups) / np.maximum(size, 1) for column in stats_RU.T], 1)
        group_M = np.full(len(entities.users) + 1, -1, np.int64)
        group_M[user_row_R] = group_R
        age_days_E = (as_of_us - past.time_E[purchases]) / DAY_US
        counts_E = np.ones(len(age_days_E)) if settings.half_life_days is None else 0.5 ** (age_days_E / settings.half_life_days)
        sequences, weights = _sequences(
            group_M[past.user_row_E[purchases]], past.item_row_E[purchases], past.time_E[purchases], counts_E, entities, num_groups, settings
        )
        tables.append(
            pa.table(
                {
                    "as_of": pa.array([as_of_us] * num_groups, pa.int64()).cast(schema.TIMESTAMP),
                    "depth": pa.array([depth] * num_groups, pa.int8()),
                    "prefix": pa.array(prefixes.tolist(), pa.list_(pa.int32())),
                    "size": pa.array(size, pa.int32()),
                    "attributes": pa.array(majority.tolist(), pa.list_(pa.int32())),
                    "support": pa.array(support.tolist(), pa.list_(pa.float32())),
                    "stats": pa.array(stats.tolist(), pa.list_(pa.float32())),
                    "sequence": pa.array(sequences, pa.list_(pa.string())),
                    "sequence_weight": pa.array(weights, pa.list_(pa.float32())),
                },
                schema=schema.GROUPS,
            )
        )
    return pa.concat_tables(tables)


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


def _sequences(
    group_E: Ints, item_row_E: Ints, time_E: Ints, counts_E: npt.NDArray[np.float64], entities: Entities, num_groups: int, settings: GroupsSettings
) -> tuple[list[list[str]], list[list[float]]]:
    """Top categories of each group's purchases, in each the head items, ordered by mean purchase time; weights are shares of the group's purchases.

    `counts_E` is how much each purchase counts.
    """
    kept = group_E >= 0
    group_E, item_row_E, time_E, counts_E = group_E[kept], item_row_E[kept], time_E[kept], counts_E[kept]
    leaf_E = entities.leaf_codes_N[item_row_E].astype(np.int64)
    num_leaves, num_items = int(entities.leaf_codes_N.max(initial=0)) + 1, len(entities.items) + 1
    leaf_key, leaf_place = np.unique(group_E * num_leaves + leaf_E, return_inverse=True)
    leaf_count: npt.NDArray[np.float64] = np.bincount(leaf_place.reshape(-1), counts_E, len(leaf_key)).astype(np.float64)
    leaf_group, leaf = leaf_key // num_leaves, leaf_key % num_leaves
    total_G = np.maximum(np.bincount(group_E, counts_E, num_groups), 1e-12)
    score = leaf_count
    if settings.weight_by_lift:
        overall = np.bincount(leaf_E, counts_E, num_leaves) / max(float(counts_E.sum()), 1e-12)
        # One pseudo-purchase at the overall rate keeps a single odd purchase from topping the list.
        score = (leaf_count + overall[leaf]) / (total_G[leaf_group] + 1) / np.maximum(overall[leaf], 1e-12)
    chosen_leaves = _top_per_group(leaf_group, score, leaf, settings.sequence_categories)
    chosen = np.isin(group_E * num_leaves + leaf_E, leaf_key[chosen_leaves])
    item_key, inverse, num_E = np.unique(group_E[chosen] * num_items + item_row_E[chosen], return_inverse=True, return_counts=True)
    item_count: npt.NDArray[np.float64] = np.bincount(inverse.reshape(-1), counts_E[chosen], len(item_key)).astype(np.float64)
    mean_time = np.bincount(inverse.reshape(-1), (time_E[chosen] - (time_E[0] if len(time_E) else 0)).astype(np.float64)) / np.maximum(num_E, 1)
    item_group, item_row = item_key // num_items, item_key % num_items
    cell = item_group * num_leaves + entities.leaf_codes_N[item_row]
    item_score = item_count
    if settings.weight_by_lift:  # within a category too: else its bestsellers stand in every group's sequence
        everyone = np.bincount(item_row_E, counts_E, num_items) / max(float(counts_E.sum()), 1e-12)
        item_score = (item_count + everyone[item_row]) / (total_G[item_group] + 1) / np.maximum(everyone[item_row], 1e-12) * np.log1p(item_count)
    head = _top_per_group(cell, item_score, item_row, settings.items_per_category)
    head = head[np.lexsort((item_row[head], mean_time[head], item_group[head]))]
    sequences: list[list[str]] = [[] for _ in range(num_groups)]
    weights: list[list[float]] = [[] for _ in range(num_groups)]
    ids = entities.items.values
    for place in head:
        group = int(item_group[place])
        sequences[group].append(ids[int(item_row[place]) - 1].as_py())
        weights[group].append(float(item_count[place] / total_G[group]))
    return sequences, weights


def _top_per_group(group: Ints, score: npt.NDArray[np.float64], tie: Ints, count: int) -> Ints:
    """Places of the `count` best-scored rows of each group; ties go to the smaller `tie`."""
    return np.flatnonzero(rank_within(group, -score, tie) < count)
