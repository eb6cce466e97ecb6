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

_SAME = 1e-6  # similarities closer than this are a tie: float32 products of equal texts differ by less, of different ones by more
_QUERY_ROWS = 256


class ItemEncoderSettings(Settings):
    """The `item_encoder` stage."""

    pairs: tuple[PairKind, ...] = Field(("co_purchase",), min_length=1)
    window_days: float = Field(28.0, gt=0, description="two purchases of one user form a pair when they lie this close")
    swing_alpha: float = Field(1.0, gt=0, description="swing-like weight: 1 / (alpha + common items) for each pair of users")
    max_partners: int = Field(32, ge=1, description="later events that one event is paired with, at most")
    max_users_per_pair: int = Field(8, ge=1, description="users whose common items weigh a pair of items, at most")
    max_pairs: int = Field(200_000, ge=100, description="kept for training, drawn by weight")
    min_pairs: int = Field(500, ge=1, description="fewer than this teach nothing")
    few_pairs: Literal["refuse", "frozen"] = Field("refuse", description="with fewer than min_pairs: stop, or pass the frozen vectors on, cut to `dim`")
    dim: int = Field(64, ge=4)
    hidden_dim: int = Field(256, ge=0, description="0: a linear projection")
    temperature: float = Field(0.07, gt=0)
    logq_correction: bool = True
    epochs: int = Field(4, ge=1)
    pair_batch_size: int = Field(1024, ge=8, description="global, over all workers")
    learning_rate: float = Field(1e-3, gt=0)
    image_encoder: str | None = Field(None, description="timm:<name>, package:<name>, or a sentence-transformers folder; None: text only")
    hit_k: int = Field(30, ge=1)
    max_eval_pairs: int = Field(5_000, ge=1, description="later pairs that Hit@k is measured on, drawn by weight")
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


def hits_by_vector(vectors_UD: NDArray[np.float32], contents: Contents, query_Q: NDArray[np.int64], target_Q: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """For each (query, target) of item rows: the chance that the target is among the k items nearest to the query, ties in random order.

    `vectors_UD` are L2-normalised, one per content. The query itself is no candidate.
    """
    sizes_U = np.bincount(contents.content_N, minlength=len(vectors_UD)).astype(np.float32)
    query_content, target_content = contents.content_N[query_Q], contents.content_N[target_Q]
    hits = np.empty(len(query_Q))
    for start in range(0, len(query_Q), _QUERY_ROWS):
        rows = slice(start, start + _QUERY_ROWS)
        own, goal = query_content[rows], target_content[rows]
        scores = vectors_UD[own] @ vectors_UD.T
        each = np.arange(len(own))
        wanted = scores[each, goal][:, None]
        nearer = (scores > wanted + _SAME) @ sizes_U - (scores[each, own] > wanted[:, 0] + _SAME)
        as_near = (np.abs(scores - wanted) <= _SAME) @ sizes_U - (np.abs(scores[each, own] - wanted[:, 0]) <= _SAME)
        hits[rows] = np.clip((k - nearer) / as_near, 0.0, 1.0)
    return hits


def hits_by_count(count_N: NDArray[np.int64], query_Q: NDArray[np.int64], target_Q: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """The same chance when every query gets the k items with the highest counts, the query left out."""
    ascending = np.sort(count_N)
    goal, own = count_N[target_Q], count_N[query_Q]
    more = len(ascending) - np.searchsorted(ascending, goal, side="right") - (own > goal)
    as_many = np.searchsorted(ascending, goal, side="right") - np.searchsorted(ascending, goal, side="left") - (own == goal)
    chance: NDArray[np.float64] = np.clip((k - more) / as_many, 0.0, 1.0)
    return chance


def later_queries(later: Pairs, history: Pairs, num_items: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(query, target) item rows, both directions of each later pair that never occurs in the history window."""
    unseen = later.take(~np.isin(later.keys(num_items), history.keys(num_items)))
    return np.concatenate([unseen.left_P, unseen.right_P]), np.concatenate([unseen.right_P, unseen.left_P])


def hit_report(
    hits: Mapping[str, NDArray[np.float64]], query_Q: NDArray[np.int64], target_Q: NDArray[np.int64], trained_N: NDArray[np.bool_], k: int
) -> dict[str, object]:
    """Mean Hit@k by method, over all queries and over those whose target (or query) item stood in no training pair; None where a slice is empty."""
    slices = {"all": np.ones(len(query_Q), bool), "hidden_target": ~trained_N[target_Q], "hidden_query": ~trained_N[query_Q]}
    report: dict[str, object] = {"k": k}
    for name, chosen in slices.items():
        means = {method: float(values[chosen].mean()) if chosen.any() else None for method, values in hits.items()}
        report[name] = {"queries": int(chosen.sum()), **means}
    return report
