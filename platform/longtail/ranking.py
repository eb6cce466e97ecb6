"""Ranking one request: its user's record, features equal to those of the training samples, and a loaded ranker's scores.

Reads nothing and writes nothing: it is given published features and rankers; serve_apps keeps it alive in a Ray Serve replica. Nobody and nothing unknown is
an error here: an unknown user gets the group of what the request states, or everyone's; an unknown item is ranked by the content that the request states.
What came after the run's logs (items, users, events) is put into it while it serves.

Letters: B candidates, H heads, D semantic width, S code stages, C category levels.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from longtail.entities import UNKNOWN_TIME, Entities
from longtail.explanation import explain, group_path
from longtail.features import ItemFacts
from longtail.online.added import AddedUsers, SeenEvent
from longtail.online.features import OnlineFeatures
from longtail.online.records import UserRecord
from longtail.questions import Encoded, GroupBasis, ItemBasis, Knowledge, Question, RankedItem, Ranking, StatedItem, UnanswerableError, Unknowns
from longtail.rankers.batch import Batch
from longtail.rankers.catalogue import OOV, Catalogue
from longtail.rankers.ranker import Ranker, RankerOutput, predict_rows
from longtail.times import from_us, to_us

logger = logging.getLogger(__name__)

MOST_EARLY = 10_000  # events that wait for their items


@dataclass(frozen=True)
class Found:
    """A request, looked up."""

    user: UserRecord
    known: bool  # by the run's logs, or since
    item_row_B: npt.NDArray[np.int64]
    time_us: int
    group_basis: GroupBasis  # of the codes in the user's record; "everyone" where it has none


class RequestRanker:
    """Answers requests from one release's features and rankers; safe to call from several threads.

    Raises:
        ValueError: a ranker was trained on features of another shape than the published ones.
    """

    def __init__(
        self, features: OnlineFeatures, rankers: Mapping[str, Ranker], max_items: int, release: str = "", versions: Mapping[str, str] | None = None
    ) -> None:
        spec = features.meta.spec
        for name, ranker in rankers.items():
            if ranker.spec != spec:
                differ = [key for key, value in spec.model_dump().items() if getattr(ranker.spec, key) != value]
                raise ValueError(f"ranker {name!r} was trained on other features than this run's: {differ} differ. Serve it from the run that trained it.")
        self.features = features
        self.rankers = dict(rankers)
        self.release = release
        self.versions = dict(versions or {})
        self.now = from_us(features.meta.end_us)
        self.added = AddedUsers()
        self._early: dict[str, list[SeenEvent]] = {}  # of items that nobody has told of yet, as they came
        self._num_early = 0
        self._cluster_of = _clusters_by_codes(features, next(iter(rankers.values()))) if rankers else {}
        # Described items are written into rows behind the catalogue's for the length of one request; those that are added to stay lie behind them.
        self._spare = {name: ranker.catalogue.add_spare_rows(max_items) for name, ranker in rankers.items()}
        assert all(first + max_items == features.added.first_row for first in self._spare.values()), "the rows of added items follow the spare ones"
        self._max_items = max_items
        self._lock = threading.Lock()
        for vocabulary in (features.entities.items, features.entities.brands, *features.entities.categories):
            _ = vocabulary.codes  # made now, not in the first request's time

    def knowledge(self, examples: int = 5) -> Knowledge:
        """What this run knows, with a few ids and values to start from."""
        meta, entities = self.features.meta, self.features.entities
        return Knowledge(
            heads={name: tuple(ranker.heads) for name, ranker in self.rankers.items()},
            attributes={
                coding.name: tuple(coding.vocabulary.values[:examples].to_pylist()) if coding.vocabulary is not None else None for coding in entities.attributes
            },
            now=self.now,
            since=from_us(meta.since_us),
            num_users=meta.num_users,
            num_items=len(entities.items),
            user_ids=tuple(meta.example_users[:examples]),
            item_ids=tuple(entities.items.values[:examples].to_pylist()),
        )

    def find(self, question: Question) -> Found:
        """The request's user and items; `unknowns`, `rank` and `batch` look them up themselves where they are not passed on to them.

        Raises:
            UnanswerableError: the request's time lies before what the features know already.
        """
        meta = self.features.meta
        published = self.features.users.user(question.user_id)
        user = published or UserRecord.nobody(len(meta.attributes))
        basis: GroupBasis = "everyone" if user.codes is None else "published"
        added = self.added.find(question.user_id)
        if added is not None:
            user = added.over(user)
            basis = "added" if basis == "everyone" and user.codes is not None else basis
        last = int(user.time_E[-1]) + 1 if len(user.time_E) else 0
        time = to_us(question.now) if question.now is not None else max(meta.end_us, last)
        if time < meta.since_us:
            since = from_us(meta.since_us)
            raise UnanswerableError(f"now = {question.now} lies before {since}: the published features know what came until then. Ask for that time or later.")
        return Found(user, published is not None or added is not None, self._item_rows([item.item_id for item in question.items]), time, basis)

    def _item_rows(self, item_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        rows = self.features.entities.items.encode(item_ids).astype(np.int64)
        for place in np.flatnonzero(rows == 0) if self.features.added.ids else ():
            rows[place] = self.features.added.row_of.get(item_ids[place], 0)
        return rows

    def unknowns(self, question: Question, found: Found | None = None) -> Unknowns:
        """What of `question` needs the text encoder: a described user without a group, described items that nobody has told of before."""
        found = found or self.find(question)
        user = question.user
        if user is not None and (found.user.codes is not None or not (user.attributes or user.profile)):
            user = None
        strange = (question.items[place] for place in np.flatnonzero(found.item_row_B == 0))
        return Unknowns(user, tuple(item for item in strange if item.described))

    def rank(self, question: Question, encoded: Encoded | None = None, found: Found | None = None) -> Ranking:
        """Score all candidates as one batch; `encoded` answers `unknowns(question)`, None where there were none.

        Raises:
            UnanswerableError: no ranker has that name, more unknown items than there are spare rows, or a head that the ranker lacks.
        """
        if question.ranker not in self.rankers:
            raise UnanswerableError(f"release {self.release!r} has no ranker {question.ranker!r}. Its rankers are {list(self.rankers)}.")
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
            raise UnanswerableError(f"ranker {question.ranker!r} has no head {lacking}. Its heads are {list(ranker.heads)}.")
        output = self._score(question.ranker, batch, places, spare)
        heads_at = [ranker.heads.index(head) for head in heads]
        probabilities_BH = output.probabilities_BH.double().numpy()[:, heads_at]
        basis: list[ItemBasis] = ["catalogue"] * num
        for place in np.flatnonzero(found.item_row_B >= self.features.added.first_row):
            basis[place] = "added"
        for number, place in enumerate(places):
            basis[place] = "none" if spare[number].vector_D is None else "content"
        order, by_head = np.argsort(-probabilities_BH[:, 0], kind="stable").tolist(), probabilities_BH.tolist()
        group = tuple(int(code) - 1 for code in batch.user_codes_BS[0] if code > 0)
        if not np.isfinite(probabilities_BH).all():
            raise FloatingPointError(f"ranker {question.ranker!r} gave {int((~np.isfinite(probabilities_BH)).sum())} scores that are no numbers")
        told = explain(output, batch, self._item_id, order, heads_at) if question.explain else repeat(None)
        ids, scores = [item.item_id for item in question.items], list(map(tuple, by_head))
        return Ranking(
            heads=heads,
            items=tuple(map(RankedItem, [ids[place] for place in order], [scores[place] for place in order], [basis[place] for place in order], told)),
            now=from_us(found.time_us),
            user_known=found.known,
            group=group,
            group_basis="everyone" if not group else "request" if found.user.codes is None else found.group_basis,
            num_purchases=int(batch.activity_B3[0, 0]),
            alpha_fusion=None if output.alpha_fusion_B is None else float(output.alpha_fusion_B.mean()),
            group_path=group_path(self.features.groups, group) if question.explain else (),
            release=self.release,
            version=self.versions.get(question.ranker, ""),
        )

    def batch(self, question: Question, encoded: Encoded | None = None, found: Found | None = None) -> Batch:
        """The request's features; unknown items have item row 0."""
        features, found, num = self.features, found or self.find(question), len(question.items)
        stated = stated_facts(question.items, found.item_row_B, features.entities)
        if stated is not None and encoded is not None:
            stated = replace(stated, cluster_B=self._clusters(question, found, encoded))
        own_A, codes = found.user.attributes_A, found.user.codes
        if question.user is not None and question.user.attributes:
            told_A = features.entities.attribute_codes(question.user.attributes)
            own_A = np.where(told_A > 0, told_A, own_A)
        if codes is None and encoded is not None:
            codes = encoded.user_codes
        return Batch.from_columns(features.columns(found.user, found.item_row_B, found.time_us, stated, own_A, codes), num, features.meta.spec)

    def _item_id(self, row: int) -> str:
        """The id of an item that the run knows, or that was added."""
        added = self.features.added
        return added.ids[row - added.first_row] if row >= added.first_row else str(self.features.entities.items.values[row - 1].as_py())

    def _clusters(self, question: Question, found: Found, encoded: Encoded) -> npt.NDArray[np.int64]:
        """The cluster [B] of each described item, by the codes that were found for it; 0 in the rows of the others."""
        places = [place for place, row in enumerate(found.item_row_B) if row == 0 and question.items[place].described]
        clusters = [self._cluster(codes_S) for codes_S in encoded.item_codes_NS]
        return _spread(np.array(clusters, np.int64), np.array(places, np.int64), len(question.items))

    def _cluster(self, codes_S: npt.NDArray[np.integer]) -> int:
        """The run's cluster of an item with these codes; 0 where no item of the run is like it."""
        return self._cluster_of.get(tuple(codes_S[: self.features.meta.cluster_depth].tolist()), 0)

    def _spare_item(self, item: StatedItem) -> "_SpareItem":
        entities = self.features.entities
        return _SpareItem(entities.category_codes(item.category).astype(np.int64), int(entities.brands.encode([item.brand])[0]))

    def put_item(self, item: StatedItem, vector_D: npt.NDArray[np.float32], codes_S: npt.NDArray[np.int32], told_us: int) -> bool:
        """Take an item in, or what is new of one that is known; it is ranked like one of the catalogue from here on. Returns whether it is new.

        Args:
            vector_D: z, by the run's own encoder, as codes_S (from 0).
            told_us: when; the time of the first sight of an item that states none.
        """
        row, added = int(self._item_rows([item.item_id])[0]), self.features.added
        new = row == 0
        facts = stated_facts([item], np.zeros(1, np.int64), self.features.entities)
        assert facts is not None
        if item.first_seen is None:
            facts = replace(facts, first_seen_B=np.array([told_us]))
        facts = replace(facts, cluster_B=np.array([self._cluster(codes_S)]))
        with self._lock:
            if new:
                row = added.new_row()
            self.features.put_item(row, facts)
            spare = replace(self._spare_item(item), vector_D=vector_D, codes_S=codes_S + 1)
            for ranker in self.rankers.values():
                ranker.catalogue.hold_rows(row + 1)
                _write(ranker.catalogue, row, spare, ranker.catalogue.item_id_N[row] if row < added.first_row else OOV)
            if new:
                added.name(row, item.item_id)  # last: requests find it now, and all of it is there
        waited = self._early.pop(item.item_id, [])
        self._num_early -= len(waited)
        self.add_events(waited)
        return new

    def knows_item(self, item_id: str) -> bool:
        """Whether the run's catalogue has the item."""
        return bool(self.features.entities.items.encode([item_id])[0])

    def put_user(self, user_id: str, attributes: Mapping[str, object], codes: tuple[int, ...] | None, told_us: int = 0) -> None:
        """Take a user in, or what is new of one that is known: attributes over those known, codes for one who has no published group."""
        coded = self.features.entities.attribute_codes(attributes)
        self.added.put(user_id, coded, np.array(codes if codes is not None else (), np.int32), told_us)

    def add_events(self, events: Sequence[SeenEvent]) -> int:
        """Take events in that came after the logs; those of kinds that histories are not made of have no effect. Returns how many are in histories now.

        Events on an item that nobody has told of yet wait for it.
        """
        kinds = self.features.meta.kinds
        rows = self._item_rows([event.item_id for event in events])
        num = 0
        for event, row in zip(events, rows.tolist(), strict=True):
            if event.kind not in kinds or event.time_us < self.features.meta.end_us:
                continue
            if row == 0:
                self._wait_for_item(event)
                continue
            known = self.features.facts(np.array([row])).log_price_B[0] if event.price is None else np.log1p(max(event.price, 0.0))
            self.added.add_event(event.user_id, row, event.time_us, event.kind == kinds[-1], float(known))
            num += 1
        return num

    def _wait_for_item(self, event: SeenEvent) -> None:
        """Keep an event until its item is told of; of too many the oldest items' go."""
        self._early.setdefault(event.item_id, []).append(event)
        self._num_early += 1
        while self._num_early > MOST_EARLY:
            item_id = next(iter(self._early))
            dropped = len(self._early.pop(item_id))
            self._num_early -= dropped
            logger.warning("%d events wait for items that nobody has told of; %d of item %r are dropped", MOST_EARLY, dropped, item_id)

    def _score(self, name: str, batch: Batch, places: npt.NDArray[np.int64], spare: Sequence["_SpareItem"]) -> RankerOutput:
        """The ranker's output, with the items at `places` described by `spare`."""
        if len(places) > self._max_items:
            raise UnanswerableError(f"{len(places)} unknown items in one request, and serve.max_items = {self._max_items}. Send fewer, or raise it.")
        first, catalogue = self._spare[name], self.rankers[name].catalogue
        if len(places):
            rows = batch.item_row_B.clone()
            rows[torch.from_numpy(places)] = first + torch.arange(len(places))
            batch = replace(batch, item_row_B=rows)
        with self._lock:
            for row, item in enumerate(spare, start=first):
                _write(catalogue, row, item, OOV)
            return predict_rows(self.rankers[name], batch)


@dataclass(frozen=True)
class _SpareItem:
    """What the catalogue is told of an item that the run does not know."""

    category_C: npt.NDArray[np.int64]
    brand: int
    vector_D: npt.NDArray[np.float32] | None = None
    codes_S: npt.NDArray[np.int32] | None = None  # code plus one


def _write(catalogue: Catalogue, row: int, item: _SpareItem, item_id: int | torch.Tensor) -> None:
    """Describe an item in a row of the catalogue."""
    catalogue.item_id_N[row] = item_id
    catalogue.category_NC[row] = torch.from_numpy(item.category_C)
    catalogue.brand_N[row] = item.brand
    catalogue.vector_ND[row] = 0.0 if item.vector_D is None else torch.tensor(item.vector_D)
    catalogue.codes_NS[row] = 0 if item.codes_S is None else torch.from_numpy(item.codes_S.astype(np.int64))


def _clusters_by_codes(features: OnlineFeatures, ranker: Ranker) -> dict[tuple[int, ...], int]:
    """Cluster by the first codes, as the run's items have them; `ranker` is any of the run's, whose catalogue holds the codes plus one."""
    cluster_N = features.shared["item_cluster"]
    rows = np.flatnonzero(cluster_N)
    codes = (ranker.catalogue.codes_NS[torch.from_numpy(rows), : features.meta.cluster_depth] - 1).tolist()
    return dict(zip(map(tuple, codes), cluster_N[rows].tolist(), strict=True))


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
