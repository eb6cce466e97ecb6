"""Behaviour pairs: which items users' behaviour ties, and how strongly (SaviorRec, step 1).

Reads events of one window of time, writes nothing; the item encoder learns from the pairs. The weight of a pair of items is swing-like: each pair of users
who both tie the two items adds 1 / (alpha + items common to these users), so that two people who otherwise share little say more than two who buy the same
everywhere. A single user counts as a pair with himself (common items = all his own), or sparse logs, where most pairs have one user, would have no pairs.

An exact swing is quadratic twice over, in a user's events and in a pair's users. Both are bounded: an event meets at most `max_partners` later ones, evenly
spread over its window from a random start, and a pair of items keeps at most `max_users_per_pair` of its users, whose sum is scaled up to all of them.
Letters: E events, R (pair, user) records, P pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

PairKind = Literal["basket", "co_click", "co_purchase"]
Ints = NDArray[np.int64]

#: The kind of event that each source of pairs looks at.
EVENT_KIND: Mapping[PairKind, str] = {"basket": "purchase", "co_click": "click", "co_purchase": "purchase"}
_OVERLAP_ROWS = 65_536


@dataclass(frozen=True)
class PairRules:
    """How events become pairs; the bounds are explained at the top."""

    kinds: tuple[PairKind, ...] = ("co_purchase",)
    window_days: float = 28.0
    swing_alpha: float = 1.0
    max_partners: int = 32
    max_users_per_pair: int = 8


@dataclass(frozen=True)
class Pairs:
    """Unordered pairs of item rows, left < right, each once, in ascending order."""

    left_P: Ints
    right_P: Ints
    weight_P: NDArray[np.float64]
    dropped: Mapping[str, int] = field(default_factory=dict)  # events that made no pair, by reason

    def __len__(self) -> int:
        return len(self.left_P)

    def take(self, chosen: NDArray[np.bool_] | Ints, weight: NDArray[np.float64] | None = None) -> "Pairs":
        return Pairs(self.left_P[chosen], self.right_P[chosen], self.weight_P[chosen] if weight is None else weight, self.dropped)

    def keys(self, num_items: int) -> Ints:
        """One number per pair."""
        return self.left_P * num_items + self.right_P

    def neighbours(self, num_items: int) -> sparse.csr_array:
        """The weights as a symmetric matrix of items [N, N]."""
        ends = np.concatenate([self.left_P, self.right_P]), np.concatenate([self.right_P, self.left_P])
        return sparse.csr_array((np.tile(self.weight_P, 2), ends), shape=(num_items, num_items))


def build_pairs(events: pa.Table, item_ids: pa.Array, rules: PairRules, seed: int) -> Pairs:
    """All pairs of the given events (user_id, ts, kind, item_id, request_id), as rows of `item_ids`.

    Cut the events to the window that may be known before the call. Events whose item is not in `item_ids` are dropped and counted.
    """
    wanted = events.filter(pc.is_in(events["kind"], pa.array(sorted({EVENT_KIND[kind] for kind in rules.kinds}))))
    item_E = pc.index_in(wanted["item_id"], value_set=item_ids)
    known = pc.is_valid(item_E).to_numpy()
    dropped = {"unknown_item": int((~known).sum())}
    wanted = wanted.filter(pa.array(known))
    if not len(wanted):
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), dropped)
    items = item_E.drop_null().to_numpy().astype(np.int64)
    rng = np.random.default_rng([seed, 1])
    users = _numbers(wanted["user_id"])
    users = rng.permutation(users.max() + 1)[users]  # so that neighbours in user order are strangers
    seconds = wanted["ts"].cast(pa.int64()).to_numpy() // 1_000_000
    kinds = wanted["kind"].to_numpy(zero_copy_only=False)

    num_items = len(item_ids)
    if num_items**2 * (int(users.max()) + 1) >= 2**63:
        raise ValueError(
            f"item_encoder: {num_items} items and {users.max() + 1} users overflow 64-bit pair numbers. Run it on a sample of the users: logs.sample.num_users."
        )
    records: list[tuple[Ints, Ints]] = []
    for kind in rules.kinds:
        mine = kinds == EVENT_KIND[kind]
        if kind == "basket":
            with_basket = mine & pc.is_valid(wanted["request_id"]).to_numpy()
            dropped["no_request_id"] = int((mine & ~with_basket).sum())
            mine, window = with_basket, None
        else:
            window = int(rules.window_days * 86_400)
        if not mine.any():
            continue
        groups = users[mine]
        if kind == "basket":  # a request belongs to one user, but its id need not be unique among users
            baskets = _numbers(wanted["request_id"].filter(pa.array(mine)))
            groups = groups * (baskets.max() + 1) + baskets
        records += _meet(groups, users[mine], items[mine], seconds[mine], window, rules.max_partners, num_items, rng)
    if not any(len(pair) for pair, _ in records):
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), dropped)
    return _weigh(records, users, items, num_items, rules, rng, dropped)


def balanced(pairs: Pairs, num_items: int, power: float) -> Pairs:
    """The pairs with weights divided by (both items' sums of weights) ** power.

    Drawn by weight alone (0), popular items fill the batches and what is learnt is who they are; at 1 an item's popularity hardly counts any more.
    """
    mass = np.bincount(pairs.left_P, pairs.weight_P, num_items) + np.bincount(pairs.right_P, pairs.weight_P, num_items)
    return pairs.take(np.arange(len(pairs)), pairs.weight_P / (mass[pairs.left_P] * mass[pairs.right_P]) ** power)


def sample_pairs(pairs: Pairs, max_pairs: int, seed: int) -> Pairs:
    """At most `max_pairs` of them, drawn by weight without replacement (priority sampling, Duffield et al. 2007).

    A kept pair's weight becomes max(weight, threshold): sums of weights over any set of pairs stay what they were, in expectation.
    """
    if len(pairs) <= max_pairs:
        return pairs
    uniform = np.random.default_rng([seed, 2]).random(len(pairs))
    priority = pairs.weight_P / np.maximum(uniform, 1e-300)
    order = np.argpartition(-priority, max_pairs)
    threshold = priority[order[max_pairs]]
    kept = np.sort(order[:max_pairs])
    return pairs.take(kept, np.maximum(pairs.weight_P[kept], threshold))


def _numbers(column: pa.ChunkedArray) -> Ints:
    """Dense numbers from 0 for the distinct values, in the order of their first sight."""
    encoded = column.combine_chunks().dictionary_encode()
    numbers: Ints = encoded.indices.to_numpy().astype(np.int64)
    return numbers


def _meet(
    group_E: Ints, user_E: Ints, item_E: Ints, seconds_E: Ints, window: int | None, max_partners: int, num_items: int, rng: np.random.Generator
) -> Iterator[tuple[Ints, Ints]]:
    """(pair number, user) of every event with its partners: later ones of the same group within `window` seconds, or anywhere in the group (None)."""
    if window is None:
        seconds_E = np.zeros_like(seconds_E)
        window = 0
    # Ties in time (a basket, a day) are put in random order, so that the cap below has no favourites among them.
    order = np.lexsort((rng.random(len(group_E)), seconds_E, group_E))
    group_E, user_E, item_E = group_E[order], user_E[order], item_E[order]
    offset_E = seconds_E[order] - seconds_E.min()
    span = int(offset_E.max()) + window + 1
    _, dense_E = np.unique(group_E, return_inverse=True)
    clock_E = dense_E.astype(np.int64) * span + offset_E
    later_E = np.searchsorted(clock_E, clock_E + window, side="right") - np.arange(len(clock_E)) - 1
    count_E = np.minimum(later_E, max_partners)
    step_E = later_E / np.maximum(count_E, 1)
    start_E = rng.random(len(clock_E))
    chunk = max(1, 4_000_000 // max_partners)
    for low in range(0, len(clock_E), chunk):
        counts = count_E[low : low + chunk]
        first = low + np.repeat(np.arange(len(counts)), counts)
        nth = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        second = first + 1 + np.minimum((nth + start_E[first]) * step_E[first], later_E[first] - 1).astype(np.int64)
        a, b = item_E[first], item_E[second]
        different = a != b
        pair = np.minimum(a, b)[different] * num_items + np.maximum(a, b)[different]
        yield pair, user_E[first][different]


def _weigh(
    records: Sequence[tuple[Ints, Ints]], user_E: Ints, item_E: Ints, num_items: int, rules: PairRules, rng: np.random.Generator, dropped: Mapping[str, int]
) -> Pairs:
    num_users = int(user_E.max()) + 1
    record = _distinct(np.concatenate([pair * num_users + user for pair, user in records]))
    key_R, user_R = np.divmod(record, num_users)
    new_R = np.append(True, key_R[1:] != key_R[:-1])
    pair_key = key_R[new_R]
    users_P = np.diff(np.append(np.flatnonzero(new_R), len(record)))

    # At most max_users_per_pair neighbours (on a circle, from a random place) of a pair's users.
    kept_P = np.minimum(users_P, rules.max_users_per_pair)
    first_P = np.cumsum(users_P) - users_P
    turn_P = (rng.random(len(pair_key)) * users_P).astype(np.int64)
    pair_K = np.repeat(np.arange(len(pair_key)), kept_P)
    nth_K = np.arange(len(pair_K)) - np.repeat(np.cumsum(kept_P) - kept_P, kept_P)
    user_K = user_R[first_P[pair_K] + (turn_P[pair_K] + nth_K) % users_P[pair_K]]

    owned = sparse.csr_array((np.ones(len(user_E), np.float32), (user_E, item_E)), shape=(num_users, num_items))
    owned.sum_duplicates()
    owned.data[:] = 1.0
    alone_K = 1.0 / (rules.swing_alpha + np.diff(owned.indptr)[user_K])
    alone_P = np.bincount(pair_K, weights=alone_K, minlength=len(pair_key)) * users_P / kept_P

    firsts, seconds, pairs = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for distance in range(1, rules.max_users_per_pair):
        at = np.flatnonzero(nth_K + distance < kept_P[pair_K])
        firsts.append(user_K[at])
        seconds.append(user_K[at + distance])
        pairs.append(pair_K[at])
    together = 1.0 / (rules.swing_alpha + _common_items(owned, np.concatenate(firsts), np.concatenate(seconds)))
    together_P = np.bincount(np.concatenate(pairs), weights=together, minlength=len(pair_key))
    scale_P = users_P * (users_P - 1) / np.maximum(kept_P * (kept_P - 1), 1)
    left, right = np.divmod(pair_key, num_items)
    return Pairs(left, right, alone_P + together_P * scale_P, dropped)


def _common_items(owned: sparse.csr_array, user_a: Ints, user_b: Ints) -> NDArray[np.float64]:
    """How many items the users a and b have both met, for each pair of users."""
    num_users = owned.shape[0]
    wanted = np.minimum(user_a, user_b) * num_users + np.maximum(user_a, user_b)
    key = _distinct(wanted)
    low, high = np.divmod(key, num_users)
    common = np.zeros(len(key))
    for start in range(0, len(key), _OVERLAP_ROWS):
        rows = slice(start, start + _OVERLAP_ROWS)
        common[rows] = owned[low[rows]].multiply(owned[high[rows]]).sum(axis=1)
    result: NDArray[np.float64] = common[np.searchsorted(key, wanted)]
    return result


def _distinct(values: Ints) -> Ints:
    """The distinct values in ascending order. np.unique hashes integers since NumPy 2.3 and takes 20 times as long on nine million pairs."""
    ascending = np.sort(values)
    distinct: Ints = ascending[np.append(True, ascending[1:] != ascending[:-1])] if len(ascending) else ascending
    return distinct
