"""Ranking one request: its rows, their features by the function that made the training samples, and a loaded ranker's scores.

Reads nothing and writes nothing: it is given a FeatureState and rankers; serve_apps keeps it alive in a Ray Serve replica. Nobody and nothing unknown is an
error here: an unknown user gets the group of what the request states, or everyone's; an unknown item is ranked by the content that the request states.

Letters: B candidates, H heads, N described items, D semantic width, S code stages, C category levels.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from longtail.entities import UNKNOWN_TIME, Entities
from longtail.explanation import GroupStep, ItemExplanation, explain, group_path
from longtail.feature_state import FeatureState
from longtail.features import ItemFacts, Rows
from longtail.rankers.batch import Batch
from longtail.rankers.catalogue import OOV
from longtail.rankers.ranker import Ranker, RankerOutput, predict_rows
from longtail.times import to_us

ItemBasis = Literal["catalogue", "content", "none"]
GroupBasis = Literal["published", "request", "everyone"]


@dataclass(frozen=True)
class StatedUser:
    """What a request says of its user."""

    attributes: Mapping[str, str | bool | float | None] = field(default_factory=dict)
    profile: str | None = None  # in words; None: the deterministic profile of the attributes


@dataclass(frozen=True)
class StatedItem:
    """A candidate, and what the request says of it; read only where the run does not know the item."""

    item_id: str
    title: str | None = None
    category: tuple[str, ...] = ()  # root -> leaf
    brand: str | None = None
    price: float | None = None
    first_seen: datetime | None = None

    @property
    def described(self) -> bool:
        """True where there is a text to encode."""
        return bool(self.title or self.category or self.brand)


@dataclass(frozen=True)
class Question:
    """One request."""

    user_id: str
    items: tuple[StatedItem, ...]
    ranker: str
    heads: tuple[str, ...] | None = None  # None: all of the ranker's; the first one decides the order
    now: datetime | None = None  # None: the end of the run's logs
    user: StatedUser | None = None
    explain: bool = False


@dataclass(frozen=True)
class Found:
    """A request in row numbers."""

    user_row: int
    item_row_B: npt.NDArray[np.int64]
    time_us: int
    published: bool  # the user has group codes in the snapshot that holds at the request's time


@dataclass(frozen=True)
class Unknowns:
    """What of a request must be encoded from text before it can be ranked."""

    user: StatedUser | None
    items: tuple[StatedItem, ...]  # in the order of the request

    def __bool__(self) -> bool:
        return self.user is not None or bool(self.items)


@dataclass(frozen=True)
class Encoded:
    """Unknowns as the text encoder and the run's codebooks see them."""

    user_codes: tuple[int, ...] | None  # by stage, from 0
    item_z_ND: npt.NDArray[np.float32]
    item_codes_NS: npt.NDArray[np.int32]  # from 0


@dataclass(frozen=True)
class RankedItem:
    """One candidate in the answer."""

    item_id: str
    scores: tuple[float, ...]  # probabilities by head, in the answer's order of heads
    basis: ItemBasis
    explanation: ItemExplanation | None = None  # where the question asked for it


@dataclass(frozen=True)
class Ranking:
    """The answer: candidates by the first head's probability, best first; equal ones in the request's order."""

    heads: tuple[str, ...]
    items: tuple[RankedItem, ...]
    now: datetime
    user_known: bool
    group: tuple[int, ...]  # the codes that the ranker saw, from 0; empty: none
    group_basis: GroupBasis
    num_purchases: int  # the user's before the request's time
    alpha_fusion: float | None  # ChoirRec: weight of the group channel, mean over the candidates
    group_path: tuple[GroupStep, ...] = ()  # where the question asked for explanations


@dataclass(frozen=True)
class Knowledge:
    """What a caller may ask for."""

    heads: Mapping[str, tuple[str, ...]]  # by ranker
    attributes: Mapping[str, tuple[str, ...] | None]  # some of each attribute's values; None for a numeric one
    now: datetime
    num_users: int
    num_items: int
    user_ids: tuple[str, ...]  # a few of them, for examples
    item_ids: tuple[str, ...]


class RequestRanker:
    """Answers requests from one run's feature state and rankers; safe to call from several threads.

    Raises:
        ValueError: a ranker was trained on features of another shape than the state's.
    """

    def __init__(self, state: FeatureState, rankers: Mapping[str, Ranker], now: datetime, max_items: int) -> None:
        for name, ranker in rankers.items():
            if ranker.spec != state.spec:
                differ = [key for key, value in state.spec.model_dump().items() if getattr(ranker.spec, key) != value]
                raise ValueError(f"ranker {name!r} was trained on other features than this run's: {differ} differ. Serve it from the run that trained it.")
        self.state = state
        self.rankers = dict(rankers)
        self.now = now
        self._cluster_of = _clusters_by_codes(state, next(iter(rankers.values()))) if rankers else {}
        # Described items are written into rows behind the catalogue's for the length of one request.
        self._spare = {name: ranker.catalogue.add_spare_rows(max_items) for name, ranker in rankers.items()}
        self._max_items = max_items
        self._lock = threading.Lock()
        state.own.keep_counts(to_us(now))
        for vocabulary in (state.entities.users, state.entities.items, state.entities.brands, *state.entities.categories):
            _ = vocabulary.codes  # made now, not in the first request's time

    def knowledge(self, examples: int = 5) -> Knowledge:
        """What this run knows, with a few ids and values to start from."""
        entities = self.state.entities
        return Knowledge(
            heads={name: tuple(ranker.heads) for name, ranker in self.rankers.items()},
            attributes={
                coding.name: tuple(coding.vocabulary.values[:examples].to_pylist()) if coding.vocabulary is not None else None for coding in entities.attributes
            },
            now=self.now,
            num_users=len(entities.users),
            num_items=len(entities.items),
            user_ids=tuple(entities.users.values[:examples].to_pylist()),
            item_ids=tuple(entities.items.values[:examples].to_pylist()),
        )

    def find(self, question: Question) -> Found:
        """The request in row numbers; `unknowns`, `rank` and `batch` look it up themselves where it is not passed on to them."""
        entities, groups = self.state.entities, self.state.lent.groups
        user = int(entities.users.encode([question.user_id])[0])
        time = to_us(question.now or self.now)
        snapshot = int(groups.snapshot(np.array([time]))[0])
        items = entities.items.encode([item.item_id for item in question.items]).astype(np.int64)
        return Found(user, items, time, groups.codes_of(snapshot, user) is not None)

    def unknowns(self, question: Question, found: Found | None = None) -> Unknowns:
        """What of `question` needs the text encoder: a described user without a published group, described items that the run does not know."""
        found = found or self.find(question)
        user = question.user
        if user is not None and (found.published or not (user.attributes or user.profile)):
            user = None
        return Unknowns(user, tuple(item for item, row in zip(question.items, found.item_row_B, strict=True) if row == 0 and item.described))

    def rank(self, question: Question, encoded: Encoded | None = None, found: Found | None = None) -> Ranking:
        """Score all candidates as one batch; `encoded` answers `unknowns(question)`, None where there were none.

        Raises:
            KeyError: no ranker has that name.
            ValueError: more unknown items than there are spare rows, or a head that the ranker lacks.
        """
        found, num = found or self.find(question), len(question.items)
        batch = self.batch(question, encoded, found)
        ranker = self.rankers[question.ranker]
        places = np.flatnonzero(found.item_row_B == 0)
        spare = [self._spare_item(question.items[place]) for place in places]
        described = [number for number, place in enumerate(places) if encoded is not None and question.items[place].described]
        for row, number in enumerate(described):
            assert encoded is not None
            spare[number] = replace(spare[number], vector_D=encoded.item_z_ND[row], codes_S=encoded.item_codes_NS[row] + 1)
        heads = question.heads or tuple(ranker.heads)
        lacking = [head for head in heads if head not in ranker.heads]
        if lacking:
            raise ValueError(f"ranker {question.ranker!r} has no head {lacking}. Its heads are {list(ranker.heads)}.")
        output = self._score(question.ranker, batch, places, spare)
        heads_at = [ranker.heads.index(head) for head in heads]
        probabilities_BH = output.probabilities_BH.double().numpy()[:, heads_at]
        basis: list[ItemBasis] = ["catalogue"] * num
        for number, place in enumerate(places):
            basis[place] = "none" if spare[number].vector_D is None else "content"
        order = np.argsort(-probabilities_BH[:, 0], kind="stable").tolist()
        group = tuple(int(code) - 1 for code in batch.user_codes_BS[0] if code > 0)
        told = explain(output, batch, self.state.entities.items, order, heads_at) if question.explain else [None] * num
        return Ranking(
            heads=heads,
            items=tuple(
                RankedItem(question.items[place].item_id, tuple(probabilities_BH[place].tolist()), basis[place], why)
                for place, why in zip(order, told, strict=True)
            ),
            now=question.now or self.now,
            user_known=found.user_row > 0,
            group=group,
            group_basis="everyone" if not group else "published" if found.published else "request",
            num_purchases=int(batch.activity_B3[0, 0]),
            alpha_fusion=None if output.alpha_fusion_B is None else float(output.alpha_fusion_B.mean()),
            group_path=group_path(self.state.lent.groups, found.time_us, group) if question.explain else (),
        )

    def batch(self, question: Question, encoded: Encoded | None = None, found: Found | None = None) -> Batch:
        """The request's features, by the function that makes the training samples; unknown items have item row 0."""
        state, found, num = self.state, found or self.find(question), len(question.items)
        stated = stated_facts(question.items, found.item_row_B, state.entities)
        if stated is not None and encoded is not None:
            stated = replace(stated, cluster_B=self._clusters(question, found, encoded))
        rows = Rows(
            user_row_B=np.full(num, found.user_row, np.int64),
            item_row_B=found.item_row_B,
            time_B=np.full(num, found.time_us, np.int64),
            stated=stated,
            one_owner=True,
        )
        attributes = None
        if question.user is not None and question.user.attributes:
            attributes = state.entities.attribute_codes(question.user.attributes)[None]
        codes: list[tuple[int, ...] | None] | None = [encoded.user_codes] if encoded is not None and encoded.user_codes is not None else None
        return Batch.from_columns(state.columns(rows, attributes, codes), num, state.spec)

    def _clusters(self, question: Question, found: Found, encoded: Encoded) -> npt.NDArray[np.int64]:
        """The cluster [B] of each described item, by the codes that were found for it; 0 in the rows of the others."""
        depth = self.state.own.settings.cluster_depth
        places = [place for place, row in enumerate(found.item_row_B) if row == 0 and question.items[place].described]
        clusters = [self._cluster_of.get(tuple(codes_S[:depth].tolist()), 0) for codes_S in encoded.item_codes_NS]
        return _spread(np.array(clusters, np.int64), np.array(places, np.int64), len(question.items))

    def _spare_item(self, item: StatedItem) -> "_SpareItem":
        entities = self.state.entities
        return _SpareItem(entities.category_codes(item.category).astype(np.int64), int(entities.brands.encode([item.brand])[0]))

    def _score(self, name: str, batch: Batch, places: npt.NDArray[np.int64], spare: Sequence["_SpareItem"]) -> RankerOutput:
        """The ranker's output, with the items at `places` described by `spare`."""
        if len(places) > self._max_items:
            raise ValueError(f"{len(places)} unknown items in one request, and serve.max_items = {self._max_items}. Send fewer, or raise it.")
        first, catalogue = self._spare[name], self.rankers[name].catalogue
        rows = batch.item_row_B.clone()
        rows[torch.from_numpy(places)] = first + torch.arange(len(places))
        with self._lock:
            for row, item in enumerate(spare, start=first):
                catalogue.item_id_N[row] = OOV
                catalogue.category_NC[row] = torch.from_numpy(item.category_C)
                catalogue.brand_N[row] = item.brand
                catalogue.vector_ND[row] = 0.0 if item.vector_D is None else torch.tensor(item.vector_D)
                catalogue.codes_NS[row] = 0 if item.codes_S is None else torch.from_numpy(item.codes_S.astype(np.int64))
            return predict_rows(self.rankers[name], replace(batch, item_row_B=rows))


@dataclass(frozen=True)
class _SpareItem:
    """What the catalogue is told of an item that the run does not know."""

    category_C: npt.NDArray[np.int64]
    brand: int
    vector_D: npt.NDArray[np.float32] | None = None
    codes_S: npt.NDArray[np.int32] | None = None  # code plus one


def _clusters_by_codes(state: FeatureState, ranker: Ranker) -> dict[tuple[int, ...], int]:
    """Cluster by the first codes, as the run's items have them; `ranker` is any of the run's, whose catalogue holds the codes plus one."""
    rows = np.flatnonzero(state.matches.cluster_N)
    codes = (ranker.catalogue.codes_NS[torch.from_numpy(rows), : state.own.settings.cluster_depth] - 1).tolist()
    return dict(zip(map(tuple, codes), state.matches.cluster_N[rows].tolist(), strict=True))


def stated_facts(items: Sequence[StatedItem], item_row_B: npt.NDArray[np.int64], entities: Entities) -> ItemFacts | None:
    """What a request says of the items that the run does not know (row 0), as features ask for it; zeros, which nobody reads, in the rows of the others.

    Categories and brands that the run has not met are unknown, and so is the cluster, which takes codes. None where the run knows every item.
    """
    places = np.flatnonzero(item_row_B == 0)
    if len(places) == 0:
        return None
    stated = [items[place] for place in places]
    category_BC = np.stack([entities.category_codes(item.category) for item in stated]).astype(np.int32)
    facts = ItemFacts(
        leaf_B=np.array([entities.leaf_code(codes) for codes in category_BC], np.int64),
        root_B=category_BC[:, 0].astype(np.int64) if category_BC.shape[1] else np.zeros(len(stated), np.int64),
        brand_B=entities.brands.encode([item.brand for item in stated]).astype(np.int64),
        cluster_B=np.zeros(len(stated), np.int64),
        log_price_B=np.array([np.nan if item.price is None else np.log1p(max(item.price, 0.0)) for item in stated], np.float32),
        first_seen_B=np.array([UNKNOWN_TIME if item.first_seen is None else to_us(item.first_seen) for item in stated], np.int64),
    )
    return ItemFacts(**{f.name: _spread(getattr(facts, f.name), places, len(items)) for f in fields(ItemFacts)})


def _spread(values: npt.NDArray[Any], places: npt.NDArray[np.int64], num: int) -> npt.NDArray[Any]:
    """Zeros [num], with `values` at `places`."""
    spread_B = np.zeros(num, values.dtype)
    spread_B[places] = values
    return spread_B
