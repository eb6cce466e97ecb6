"""Sampled negatives, matched on popularity, for sources that log no exposures.

Uniform negatives would make popularity alone a strong ranker (.88 AUC on Complete Journey), and a user's or an item's number of rows would give the
label away. So within each split (or each block of days) every item gets as many negatives as it has positives (times `per_positive`), and, by the
first policy, every user too. Where an item cannot be matched, its positives are thinned and counted.

Letters: P positives, Q negatives, B of them in conflict, T mates tried, V visits (a user in a pool), R rows of what the pools offered.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from longtail.ranks import rank_within
from longtail.settings import Settings

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SWEEPS = 20
TRIES = 8192  # mates looked at in a round, shared by the places that need one
PATIENCE = 4  # rounds without a swap
DRAW_ROUNDS = 24


class NegativeSettings(Settings):
    """How candidates that were not chosen come to be, where the source logs no exposures; what is left out is the source's own."""

    policy: Literal["popularity_matched", "available"] | None = Field(
        None,
        description="popularity_matched: drawn from the positives' own items | available: what the source could have sold (Complete Journey's promotions)",
    )
    per_positive: float = Field(1.0, gt=0)
    reject: Literal["request", "seen"] | None = Field(
        None,
        description="popularity_matched never draws: what the user chose in the same request | what the user meets at any time before the split ends (unrated)",
    )
    block_days: float | None = Field(
        None, ge=0, le=36_500, description="popularity_matched: popularity is matched within blocks of this many days; 0: within each split"
    )


@dataclass(frozen=True)
class Negatives:
    """NegativeSettings with every value known."""

    policy: str = "popularity_matched"
    per_positive: float = 1.0
    reject: str = "request"
    block_days: float = 7.0

    def overridden(self, settings: NegativeSettings) -> "Negatives":
        """These with what the config sets."""
        given: dict[str, Any] = {name: value for name, value in settings.model_dump().items() if value is not None}
        return replace(self, **given)


def popularity_matched(
    item_P: Ints,
    group_P: Ints,
    block_P: Ints,
    forbidden: Ints,
    scope_P: Ints,
    num_items: int,
    per_positive: float,
    rng: np.random.Generator,
) -> tuple[Ints, Ints, Bools]:
    """Negatives of one split, by dealing the positives' own items out anew among the positives of each block.

    The deal starts as a random permutation and is mended by random swaps until no request holds an item twice and none that is forbidden to it,
    so items and requests keep their numbers exactly.

    Args:
        item_P: the positives' items.
        group_P: their requests.
        block_P: their blocks of time.
        forbidden: keys scope * num_items + item that must not be drawn, sorted.
        scope_P: what the forbidden keys are about: the positive's request, or its user.

    Returns:
        Each negative's positive [Q], whose user, time and request it shares; its item [Q]; which positives stay [P].
    """
    copies = np.floor(per_positive + rng.random(len(item_P))).astype(np.int64)
    source = np.repeat(np.arange(len(item_P)), copies)
    source = source[np.lexsort((rng.random(len(source)), block_P[source]))]
    _, block_start, block_size = np.unique(block_P[source], return_index=True, return_counts=True)
    start_Q, size_Q = np.repeat(block_start, block_size), np.repeat(block_size, block_size)
    item_Q = item_P[source][np.lexsort((rng.random(len(source)), block_P[source]))]
    group_Q, scope_Q = group_P[source], scope_P[source]
    for _ in range(SWEEPS):
        bad = _conflicts(group_Q, scope_Q, item_Q, forbidden, num_items)
        # What requests hold is looked up as it was when the sweep began; an item that two swaps bring to one request is found by the next sweep.
        taken = np.sort(group_Q * num_items + item_Q)
        failures = swaps = 0
        while len(bad) and failures < PATIENCE:
            mate_BT = start_Q[bad, None] + (rng.random((len(bad), max(TRIES // len(bad), 1))) * size_Q[bad, None]).astype(np.int64)
            bad_BT = np.broadcast_to(bad[:, None], mate_BT.shape)
            fits_BT = np.ones(mate_BT.shape, bool)
            for here, there in ((bad_BT, mate_BT), (mate_BT, bad_BT)):
                fits_BT &= ~contains(forbidden, scope_Q[here] * num_items + item_Q[there]) & ~contains(taken, group_Q[here] * num_items + item_Q[there])
            found = fits_BT.any(1)
            pairs = np.stack([bad, mate_BT[np.arange(len(bad)), fits_BT.argmax(1)]], 1)[found]
            # A place takes part in one swap of a round at most: the first that names it.
            _, first = np.unique(pairs.reshape(-1), return_index=True)
            is_first = np.zeros(pairs.size, bool)
            is_first[first] = True
            a, b = pairs[is_first.reshape(-1, 2).all(1)].T
            item_Q[a], item_Q[b] = item_Q[b], item_Q[a]
            bad = bad[~np.isin(bad, np.concatenate([a, b]))]
            swaps += len(a)
            failures = 0 if len(a) else failures + 1
        if swaps == 0:
            break
    bad = _conflicts(group_Q, scope_Q, item_Q, forbidden, num_items)
    keep_Q = np.ones(len(source), bool)
    keep_Q[bad] = False
    keep_P = _thinned(item_P, block_P, item_Q[bad], block_P[source[bad]], per_positive, num_items, rng)
    return source[keep_Q], item_Q[keep_Q], keep_P


def available(
    visit_P: Ints,
    item_P: Ints,
    visit_pool_V: Ints,
    bought: Ints,
    offered_item_R: Ints,
    offered_pool_R: Ints,
    num_items: int,
    per_positive: float,
    rng: np.random.Generator,
) -> tuple[Ints, Ints, Bools]:
    """Negatives of one split, drawn from what each visit's pool offered and the visitor did not take.

    An item's negatives fall on the visits to pools that offered it, in proportion to the visits' own positives, so that neither an item's nor (nearly)
    a user's number of rows tells the label.

    Args:
        visit_P: the positives' visits.
        item_P: the positives' items.
        visit_pool_V: each visit's pool.
        bought: keys visit * num_items + item of all that was taken, sorted.
        offered_item_R: what was offered, sorted by item.
        offered_pool_R: in which pool.

    Returns:
        Each negative's visit [Q]; its item [Q]; which positives stay [P].
    """
    num_pools = int(max(visit_pool_V.max(initial=-1), offered_pool_R.max(initial=-1))) + 1
    weight_V = np.bincount(visit_P, minlength=len(visit_pool_V)).astype(np.float64)
    by_pool = np.argsort(visit_pool_V, kind="stable")
    visit_end = np.cumsum(weight_V[by_pool])
    pool_weight = np.bincount(visit_pool_V, weight_V, num_pools)
    pool_start = np.concatenate([[0.0], np.cumsum(pool_weight)])
    row_end = np.cumsum(pool_weight[offered_pool_R])
    items, first_row = np.unique(offered_item_R, return_index=True)
    bounds = np.concatenate([[0.0], row_end])[np.append(first_row, len(offered_item_R))]
    need = np.floor(np.bincount(item_P, minlength=num_items) * per_positive + rng.random(num_items)).astype(np.int64)
    need[np.bincount(item_P, minlength=num_items) == 0] = 0
    drawn = np.zeros(0, np.int64)
    for _ in range(DRAW_ROUNDS):
        short = need - np.bincount(drawn % num_items, minlength=num_items)
        wanted = np.repeat(np.arange(num_items), np.maximum(short, 0))
        if len(wanted) == 0:
            break
        place = np.searchsorted(items, wanted)
        low, high = bounds[place], bounds[place + 1]
        ticket = low + rng.random(len(wanted)) * (high - low)
        row = np.minimum(np.searchsorted(row_end, ticket, side="right"), len(row_end) - 1)
        pool = offered_pool_R[row]
        within = pool_start[pool] + np.clip(ticket - (row_end[row] - pool_weight[pool]), 0, None)
        visit = by_pool[np.minimum(np.searchsorted(visit_end, within, side="right"), len(by_pool) - 1)]
        key = visit * num_items + wanted
        # Rounding may carry a ticket over the edge of its row; what was not offered to the visit is not a candidate.
        good = (visit_pool_V[visit] == pool) & (offered_item_R[row] == wanted) & ~contains(bought, key)
        drawn = np.unique(np.concatenate([drawn, key[good]]))
    missing = np.maximum(need - np.bincount(drawn % num_items, minlength=num_items), 0)
    lost = np.repeat(np.arange(num_items), missing)
    zeros_P, zeros_lost = np.zeros(len(item_P), np.int64), np.zeros(len(lost), np.int64)
    keep_P = _thinned(item_P, zeros_P, lost, zeros_lost, per_positive, num_items, rng)
    return drawn // num_items, drawn % num_items, keep_P


def contains(sorted_keys: Ints, keys: Ints) -> Bools:
    """Which of `keys` stand in `sorted_keys`."""
    if len(sorted_keys) == 0:
        return np.zeros(len(keys), bool)
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    found: Bools = sorted_keys[place] == keys
    return found


def _conflicts(group_Q: Ints, scope_Q: Ints, item_Q: Ints, forbidden: Ints, num_items: int) -> Ints:
    """Negatives that are forbidden, or that their request already holds."""
    _, first = np.unique(group_Q * num_items + item_Q, return_index=True)
    twice = np.ones(len(item_Q), bool)
    twice[first] = False
    return np.flatnonzero(twice | contains(forbidden, scope_Q * num_items + item_Q))


def _thinned(item_P: Ints, block_P: Ints, lost_item: Ints, lost_block: Ints, per_positive: float, num_items: int, rng: np.random.Generator) -> Bools:
    """Which positives stay when some of an item's negatives could not be placed: as many go as those negatives stood for."""
    keep = np.ones(len(item_P), bool)
    if len(lost_item) == 0:
        return keep
    key_P = block_P * num_items + item_P
    keys, lost = np.unique(lost_block * num_items + lost_item, return_counts=True)
    surplus = np.round(lost / per_positive).astype(np.int64)
    rank = rank_within(key_P, rng.random(len(key_P)))
    place = np.minimum(np.searchsorted(keys, key_P), len(keys) - 1)
    keep[(keys[place] == key_P) & (rank < surplus[place])] = False
    return keep
