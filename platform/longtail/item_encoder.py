"""SaviorEnc: a trained projection over frozen text (and image) vectors, taught by behaviour pairs (SaviorRec, step 1).

Here: the settings, and Hit@k on pairs that training never saw. The pairs are in longtail.pairs, the projection and its training in longtail.projection, the
images in longtail.images; python -m pipelines.item_encoder runs it.
Letters: N items, U distinct contents, Q queries, D vector width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from longtail.pairs import PairKind, PairRules, Pairs
from longtail.settings import Compute, Settings

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Rates = NDArray[np.float64]

_SAME = 1e-6  # similarities closer than this are a tie: float32 products of equal texts differ by less, of different ones by more
_QUERY_ROWS = 256


class ItemEncoderSettings(Settings):
    """The `item_encoder` stage."""

    pairs: tuple[PairKind, ...] = Field(("co_purchase",), min_length=1)
    window_days: float = Field(28.0, gt=0, description="two purchases of one user form a pair when they lie this close")
    swing_alpha: float = Field(1.0, gt=0, description="swing-like weight: 1 / (alpha + common items) for each pair of users")
    max_partners: int = Field(32, ge=1, description="later events that one event is paired with, at most")
    max_users_per_pair: int = Field(8, ge=1, description="users whose common items weigh a pair of items, at most")
    max_pairs: int = Field(100_000, ge=100, description="kept for training, drawn by weight")
    balance: float = Field(
        0.5, ge=0, le=1, description="pairs are drawn by weight / (both items' weights) ** balance, so that popular items don't fill batches"
    )
    min_pairs: int = Field(500, ge=1, description="fewer than this teach nothing")
    few_pairs: Literal["refuse", "frozen"] = Field("refuse", description="with fewer than min_pairs: stop, or pass the frozen vectors on, cut to `dim`")
    dim: int = Field(64, ge=4)
    hidden_dim: int = Field(256, ge=0, description="0: a linear projection")
    temperature: float = Field(0.07, gt=0)
    logq_correction: bool = True
    epochs: int = Field(1, ge=1, description="more teach it who the trained items are, and items that stood in no pair fall behind them")
    pair_batch_size: int = Field(1024, ge=8, description="global, over all workers")
    learning_rate: float = Field(1e-3, gt=0)
    factor_dim: int = Field(128, ge=0, description="behaviour factors beside the projection, told from the frozen vectors by a kernel; 0: none")
    kernel_width: float = Field(0.5, gt=0, description="squared distance of two contents' inputs at which one says 1/e of what it knows of the other")
    kernel_ridge: float = Field(0.1, gt=0)
    max_landmarks: int = Field(4_096, ge=16, description="contents that the kernel compares with, at most; memory and time grow with its square")
    image_encoder: str | None = Field(None, description="timm:<name>, package:<name>, or a sentence-transformers folder; None: text only")
    held_out_frac: float = Field(0.0, ge=0, lt=1, description="share of the contents that pairs are kept from, drawn at random: measured as new items would be")
    hit_k: int = Field(30, ge=1)
    max_eval_pairs: int = Field(5_000, ge=1, description="later pairs that Hit@k is measured on, drawn by weight")
    seed: int | None = Field(None, ge=0, description="of what is held out, of the pairs and of training; without it run.seed")
    compute: Compute = Compute(num_actors=1)

    def rules(self) -> PairRules:
        """How events become pairs."""
        return PairRules(self.pairs, self.window_days, self.swing_alpha, self.max_partners, self.max_users_per_pair)


def check_pairs(settings: ItemEncoderSettings, num_pairs: int, events_by_kind: Mapping[str, int]) -> bool:
    """True where the pairs suffice to train, False where the setting passes the frozen vectors on.

    Raises:
        ValueError: fewer than min_pairs, and few_pairs = "refuse".
    """
    if num_pairs >= settings.min_pairs:
        return True
    if settings.few_pairs == "frozen":
        return False
    raise ValueError(
        f"item_encoder.min_pairs = {settings.min_pairs}, but the history window gives {num_pairs} pairs of items with different contents "
        f"(item_encoder.pairs = {list(settings.pairs)}, window_days = {settings.window_days:g}; events there by kind: {dict(events_by_kind)}). "
        "Choose pairs that these events can form, widen item_encoder.window_days or logs.split.history_frac, lower item_encoder.min_pairs, "
        'or set item_encoder.few_pairs = "frozen" to use the untrained vectors.'
    )


@dataclass(frozen=True)
class Contents:
    """Items by what the encoder sees of them: items of one text (and image) are one content, which no projection can tell apart."""

    content_N: NDArray[np.int64]  # item row -> content row
    first_U: NDArray[np.int64]  # content row -> the first item row that has it

    @staticmethod
    def of(fingerprint_N: NDArray[np.uint64]) -> "Contents":
        _, first, inverse = np.unique(fingerprint_N, return_index=True, return_inverse=True)
        return Contents(inverse.reshape(-1).astype(np.int64), first.astype(np.int64))

    def of_pairs(self, pairs: Pairs) -> Pairs:
        """The pairs whose items differ in content, as content rows; the others teach nothing."""
        left, right = self.content_N[pairs.left_P], self.content_N[pairs.right_P]
        different = left != right
        return Pairs(left[different], right[different], pairs.weight_P[different], {**pairs.dropped, "same_content": int((~different).sum())})


def held_out(num_contents: int, frac: float, seed: int) -> Bools:
    """Which contents pairs are kept from [U]: a random share."""
    held_U = np.zeros(num_contents, bool)
    held_U[np.random.default_rng([seed, 5]).permutation(num_contents)[: round(frac * num_contents)]] = True
    return held_U


def hits_by_vector(vectors_UD: NDArray[np.float32], contents: Contents, query_Q: Ints, target_Q: Ints, k: int, candidate_N: Bools | None = None) -> Rates:
    """For each (query, target) of item rows: the chance that the target is among the k items nearest to the query, ties in random order.

    `vectors_UD` are L2-normalised, one per content. Candidates are all items (or those of `candidate_N`, targets among them) but the query itself.
    """
    candidate_N = np.ones(len(contents.content_N), bool) if candidate_N is None else candidate_N
    sizes_U = np.bincount(contents.content_N[candidate_N], minlength=len(vectors_UD)).astype(np.float32)
    query_content, target_content = contents.content_N[query_Q], contents.content_N[target_Q]
    hits = np.empty(len(query_Q))
    for start in range(0, len(query_Q), _QUERY_ROWS):
        rows = slice(start, start + _QUERY_ROWS)
        own, goal, listed = query_content[rows], target_content[rows], candidate_N[query_Q[rows]]
        scores = vectors_UD[own] @ vectors_UD.T
        each = np.arange(len(own))
        wanted = scores[each, goal][:, None]
        nearer = (scores > wanted + _SAME) @ sizes_U - (listed & (scores[each, own] > wanted[:, 0] + _SAME))
        as_near = (np.abs(scores - wanted) <= _SAME) @ sizes_U - (listed & (np.abs(scores[each, own] - wanted[:, 0]) <= _SAME))
        hits[rows] = np.clip((k - nearer) / as_near, 0.0, 1.0)
    return hits


def hits_by_count(count_N: Ints, query_Q: Ints, target_Q: Ints, k: int) -> Rates:
    """The same chance when every query gets the k items with the highest counts, the query left out."""
    ascending = np.sort(count_N)
    goal, own = count_N[target_Q], count_N[query_Q]
    more = len(ascending) - np.searchsorted(ascending, goal, side="right") - (own > goal)
    as_many = np.searchsorted(ascending, goal, side="right") - np.searchsorted(ascending, goal, side="left") - (own == goal)
    chance: Rates = np.clip((k - more) / as_many, 0.0, 1.0)
    return chance


def hits_by_pair(history: Pairs, count_N: Ints, query_Q: Ints, target_Q: Ints, k: int) -> Rates:
    """The same chance when every query gets the k items that history's pairs tie to it most; those of equal weight, or of none, by their counts."""
    neighbours, ascending, hits = history.neighbours(len(count_N)), np.sort(count_N), np.empty(len(query_Q))
    more = len(ascending) - np.searchsorted(ascending, count_N, side="right")
    as_many = len(ascending) - more - np.searchsorted(ascending, count_N, side="left")
    for row, (query, target) in enumerate(zip(query_Q, target_Q, strict=True)):
        tied = slice(neighbours.indptr[query], neighbours.indptr[query + 1])
        items, weights, wanted = neighbours.indices[tied], neighbours.data[tied], count_N[target]
        weight = weights[items == target].sum()
        if weight > 0:
            equal = weights == weight
            nearer, as_near = (weights > weight).sum() + (equal & (count_N[items] > wanted)).sum(), (equal & (count_N[items] == wanted)).sum()
        else:  # behind all that are tied to the query, among those that are not
            others = count_N[np.append(items, query)]
            nearer, as_near = len(items) + more[target] - (others > wanted).sum(), as_many[target] - (others == wanted).sum()
        hits[row] = (k - nearer) / as_near
    return np.clip(hits, 0.0, 1.0)


def later_queries(later: Pairs, history: Pairs, num_items: int) -> tuple[Ints, Ints]:
    """(query, target) item rows, both directions of each later pair that never occurs in the history window."""
    unseen = later.take(~np.isin(later.keys(num_items), history.keys(num_items)))
    return np.concatenate([unseen.left_P, unseen.right_P]), np.concatenate([unseen.right_P, unseen.left_P])


def hit_report(hits: Mapping[str, Rates], query_Q: Ints, target_Q: Ints, trained_N: Bools, k: int, held_N: Bools | None = None) -> dict[str, object]:
    """Mean Hit@k by method, over all queries and over those whose target (or query) item stood in no training pair; None where a slice is empty.

    Where items were held out (`held_N`), also over those whose target was.
    """
    slices = {"all": np.ones(len(query_Q), bool), "hidden_target": ~trained_N[target_Q], "hidden_query": ~trained_N[query_Q]}
    if held_N is not None:
        slices["held_out_target"] = held_N[target_Q]
    report: dict[str, object] = {"k": k}
    for name, chosen in slices.items():
        means = {method: float(values[chosen].mean()) if chosen.any() else None for method, values in hits.items()}
        report[name] = {"queries": int(chosen.sum()), **means}
    return report
