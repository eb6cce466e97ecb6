"""Examples: from coded events to labelled rows by the source's way, logged exposures or positives with declared negatives.

Letters: E events, K examples, P positives, V visits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from longtail.labels import CodedEvents, Examples, Labels, dense, logged_examples, outcome_examples
from longtail.negatives import Negatives, available, popularity_matched
from longtail.ranks import rank_within
from longtail.schema import SPLITS
from longtail.sources.raw import Pools
from longtail.times import DAY_US
from longtail.windows import Windows

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


NOT_OFFERED = "not among what the source says was on offer"
OVER_LIMIT = "over logs.sample.max_positives_per_user"
TOO_FEW_NEGATIVES = "its item found too few negatives to be matched"


@dataclass(frozen=True)
class Labelled:
    """Examples with what the manifest says of them."""

    examples: Examples
    origin: str  # logged | sampled
    exposure: str  # one sentence
    left_out: Mapping[str, int]  # positives that are no example, by reason
    visits: tuple[Ints, Ints] | None = None  # user and pool of each visit, where requests are visits and not the source's own


def build_examples(
    events: CodedEvents,
    pools: Pools | None,
    item_kept: Bools,
    kinds: tuple[str, ...],
    windows: Windows,
    labels: Labels,
    negatives: Negatives,
    max_positives_per_user: int | None,
    seed: int,
) -> Labelled:
    """The examples after the history window, and how they came to be.

    Args:
        events: the kept events.
        pools: what was on offer, its event_pool by `events`' rows.
        item_kept: which rows of the items table [I] may appear.
        kinds: kinds that count as having met an item.

    Raises:
        ValueError: the policy is "available" and the source knows no pools.
    """
    if labels.exposure is not None:
        exposures = logged_examples(events, windows, labels)
        examples = _capped(exposures, max_positives_per_user, seed)
        left_out = {OVER_LIMIT: _num_positives(exposures) - _num_positives(examples)}
        return Labelled(examples, "logged", f"logged {labels.exposure}s: every {labels.exposure} in the logs is an example", left_out)
    if negatives.policy == "available":
        if pools is None:
            raise ValueError('logs.negatives.policy = "available" needs a source that knows what was on offer; this one does not. Set "popularity_matched".')
        return _available(events, pools, item_kept, windows, labels, negatives, max_positives_per_user, seed)
    examples, left_out = _matched(events, kinds, windows, labels, negatives, len(item_kept), max_positives_per_user, seed)
    return Labelled(examples, "sampled", _matched_sentence(labels, negatives), left_out)


def _matched(
    events: CodedEvents,
    kinds: tuple[str, ...],
    windows: Windows,
    labels: Labels,
    negatives: Negatives,
    num_items: int,
    max_positives_per_user: int | None,
    seed: int,
) -> tuple[Examples, dict[str, int]]:
    """Positives, and negatives dealt from the same items, split by split; and how many positives were left out, by reason."""
    outcomes = outcome_examples(events, windows, labels)
    labelled = outcomes.take(outcomes.split_K >= 0)
    positives = _capped(labelled, max_positives_per_user, seed)
    left_out = {OVER_LIMIT: len(labelled) - len(positives), TOO_FEW_NEGATIVES: 0}
    met = events.of_kind(*kinds)
    block_us = round(negatives.block_days * DAY_US)
    parts = []
    for place in range(len(SPLITS)):
        rows = positives.take(positives.split_K == place)
        if negatives.reject == "seen":
            before = met.time_E < windows.ends[place]
            forbidden, scope = np.unique(met.user_E[before] * num_items + met.item_E[before]), rows.user_K
        else:
            forbidden, scope = np.unique(outcomes.group_K * num_items + outcomes.item_K), rows.group_K
        block = (rows.time_K - windows.start) // block_us if block_us else np.zeros(len(rows), np.int64)
        rng = np.random.default_rng([seed, 0xB0, place])
        source, item, keep = popularity_matched(rows.item_K, rows.group_K, block, forbidden, scope, num_items, negatives.per_positive, rng)
        left_out[TOO_FEW_NEGATIVES] += int((~keep).sum())
        parts.append(rows.take(keep).joined(_as_negatives(rows.take(source), item)))
    return _concatenated(parts), left_out


def _available(
    events: CodedEvents,
    pools: Pools,
    item_kept: Bools,
    windows: Windows,
    labels: Labels,
    negatives: Negatives,
    max_positives_per_user: int | None,
    seed: int,
) -> Labelled:
    """One visit per user and pool, at its first event; what the pool offered is a positive where the user took it during the visit."""
    is_outcome = events.is_kind(labels.outcome)
    outcomes, pool_E = events.take(is_outcome), pools.event_pool[is_outcome]
    num_items = len(item_kept)
    visit_E = dense(outcomes.user_E, pool_E)
    by_visit = np.lexsort((outcomes.time_E, visit_E))
    _, first = np.unique(visit_E[by_visit], return_index=True)
    first = by_visit[first]
    user_V, time_V, pool_V = outcomes.user_E[first], outcomes.time_E[first], pool_E[first]
    split_V = windows.split_of(time_V)
    offered_item, offered_pool = pools.offered(np.unique(pool_V[split_V >= 0]))
    known = item_kept[offered_item]
    offered_item, offered_pool = offered_item[known], offered_pool[known]
    pool_ids, visits = np.unique(pool_V), (user_V, pool_V)
    offered_pool, pool_V = np.searchsorted(pool_ids, offered_pool), np.searchsorted(pool_ids, pool_V)
    bought = np.unique(visit_E * num_items + outcomes.item_E)
    in_time = outcomes.time_E < windows.ends[np.maximum(split_V[visit_E], 0)]
    taken = np.unique((visit_E * num_items + outcomes.item_E)[in_time & (split_V[visit_E] >= 0)])
    visit, item = taken // num_items, taken % num_items
    # `offered` comes sorted by item, then pool.
    key_R = offered_item * len(pool_ids) + offered_pool
    place = np.minimum(np.searchsorted(key_R, item * len(pool_ids) + pool_V[visit]), max(len(key_R) - 1, 0))
    on_offer = key_R[place] == item * len(pool_ids) + pool_V[visit] if len(key_R) else np.zeros(len(item), bool)
    visit, item = visit[on_offer], item[on_offer]
    offered = _visit_examples(visit, item, user_V, time_V, split_V)
    positives = _capped(offered, max_positives_per_user, seed)
    left_out = {NOT_OFFERED: len(taken) - len(visit), OVER_LIMIT: len(offered) - len(positives), TOO_FEW_NEGATIVES: 0}
    parts = []
    for split in range(len(SPLITS)):
        rows = positives.take(positives.split_K == split)
        here = np.zeros(len(pool_ids), bool)
        here[pool_V[rows.group_K]] = True
        rng = np.random.default_rng([seed, 0xB1, split])
        now = here[offered_pool]
        drawn, drawn_item, keep = available(
            rows.group_K, rows.item_K, pool_V, bought, offered_item[now], offered_pool[now], num_items, negatives.per_positive, rng
        )
        made = _visit_examples(drawn, drawn_item, user_V, time_V, split_V)
        left_out[TOO_FEW_NEGATIVES] += int((~keep).sum())
        parts.append(rows.take(keep).joined(replace(made, outcome_K=np.zeros(len(made), np.int8))))
    return Labelled(_concatenated(parts), "sampled", _available_sentence(pools, labels, negatives), left_out, visits)


def _visit_examples(visit: Ints, item: Ints, user_V: Ints, time_V: Ints, split_V: npt.NDArray[np.int8]) -> Examples:
    """Rows of visits, as positives; request and group are the visit."""
    ones = np.ones(len(visit), np.int8)
    return Examples(user_V[visit], item, time_V[visit], split_V[visit], visit, visit, ones, -ones)


def _as_negatives(rows: Examples, item: Ints) -> Examples:
    zeros = np.zeros(len(rows), np.int8)
    return replace(rows, item_K=item, outcome_K=zeros, conversion_K=np.minimum(rows.conversion_K, zeros))


def _num_positives(examples: Examples) -> int:
    return int(examples.outcome_K.sum())


def _concatenated(parts: list[Examples]) -> Examples:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.joined(part)
    return whole


def _capped(examples: Examples, limit: int | None, seed: int) -> Examples:
    """At most `limit` positives per user and split, and as large a share of the user's logged negatives, drawn by a seeded hash of the row."""
    if limit is None or len(examples) == 0:
        return examples
    ticket = _mixed(_mixed(_mixed(np.full(len(examples), seed), examples.user_K), examples.item_K), examples.time_K)
    cell = dense(examples.user_K, examples.split_K.astype(np.int64))
    positives = np.bincount(cell, examples.outcome_K)
    share = np.minimum(limit / np.maximum(positives, 1), 1.0)[cell]
    keep = np.where(examples.outcome_K == 1, rank_within(cell, -examples.outcome_K, ticket) < limit, ticket < (share * float(2**64 - 1)))
    return examples.take(keep)


def _mixed(state: npt.NDArray[np.generic], value: npt.NDArray[np.generic]) -> npt.NDArray[np.uint64]:
    """splitmix64 of `state` with `value` stirred in."""
    x = state.astype(np.uint64) + value.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def _matched_sentence(labels: Labels, negatives: Negatives) -> str:
    blocks = f"each {negatives.block_days:g}-day block of each split" if negatives.block_days else "each split"
    spared = {
        "seen": "never an item that the user meets at any time before the split ends (which looks a little into the future: a later choice is spared too)",
        "request": "never an item that the user chose in the same request",
    }[negatives.reject]
    return (
        f"sampled negatives, not impressions: every {labels.outcome} is a positive, with {negatives.per_positive:g} negative(s) of the same user and time, "
        f"drawn from the positives' own items within {blocks} so that popularity alone tells nothing, and {spared}"
    )


def _available_sentence(pools: Pools, labels: Labels, negatives: Negatives) -> str:
    return (
        f"sampled candidates, not impressions: available, not necessarily seen. Candidates are a sample of {pools.sentence}; the outcome is "
        f"{labels.outcome} there and then. Each item has {negatives.per_positive:g} negative(s) per positive within each split, its positives "
        "thinned where it has too few, so that popularity alone tells nothing"
    )
