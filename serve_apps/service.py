"""The ranking service of one replica: the releases that it holds, who is answered by which, what was told since the logs ended, what is seen of each.

It knows neither HTTP nor Ray: it is given functions that open a release, encode what is unknown, and read what was told before; serve_apps.deployments gives
it those of a cluster, a test its own.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from actors import metrics
from longtail.online.entries import EventsEntry, ItemEntry, RolloutEntry, UserEntry
from longtail.questions import Encoded, Question, Ranking, StatedItem, StatedUser, UnanswerableError, Unknowns
from longtail.ranking import RequestRanker
from longtail.rollouts import ReleaseStats, Rollout, ShadowStats
from longtail.times import from_us
from serve_apps.admission import Admission
from serve_apps.background import in_background
from serve_apps.served_run import ServedRun
from serve_apps.service_info import ServiceInfo

logger = logging.getLogger(__name__)

AnyEntry = ItemEntry | UserEntry | EventsEntry | RolloutEntry

#: Rounds of the event loop that the next in turn leaves to the others: between two rankings they come as far as their place in the queue, or are turned away;
#: if every round of theirs took a ranking of another's, a request would wait for as many rankings as it has steps.
ROUNDS_BETWEEN = 5
MOST_SHADOWED = 4  # requests that wait for a shadow's answer; more are not compared


@dataclass(frozen=True)
class Loaded:
    """A release in memory."""

    run: ServedRun
    ranker: RequestRanker
    info: ServiceInfo

    @property
    def encoder(self) -> str:
        return self.run.release.file.encoder


class RankingService:
    """Answers questions; `apply` is called by one thread, in the order of what was told.

    Args:
        open_run: opens a release by key.
        encode: what a release's encoders make of unknowns.
        encode_now: the same, for the thread that applies.
        history: what was told up to an entry's number, for a release that is loaded later.
        rollout: as it stands after `told` entries.
        admission: is told what a question takes, and which wait for their encoding.
    """

    def __init__(
        self,
        open_run: Callable[[str], ServedRun],
        encode: Callable[[str, Unknowns], Awaitable[Encoded]],
        encode_now: Callable[[str, Unknowns], Encoded],
        history: Callable[[int], Iterable[AnyEntry]],
        rollout: Rollout,
        told: int = 0,
        admission: Admission | None = None,
    ) -> None:
        self._open_run, self._encode, self._encode_now, self._history = open_run, encode, encode_now, history
        self._admission = admission or Admission(None)
        self.applied = told
        self._turn = asyncio.Lock()  # one is ranked at a time, in the order in which they came; shadows beside them
        self.failures: dict[str, str] = {}  # releases that could not be loaded, and why
        self._loaded: dict[str, Loaded] = {}
        self._seen: dict[str, ReleaseStats] = {}
        self._shadow = ShadowStats()
        self._shadowing: set[asyncio.Task[None]] = set()
        self._lock = threading.Lock()  # of what is seen, which another thread takes away
        self._rollout_number = told
        self.rollout = rollout.model_copy(update={"stable": self._first(rollout)})
        self._roll(told, rollout)

    def _first(self, rollout: Rollout) -> str:
        """Load the stable release, or where it cannot be loaded the one before it; without any there is nothing to serve."""
        keys = list(dict.fromkeys(key for key in (rollout.stable, rollout.previous, rollout.configured) if key is not None))
        for key in keys[:-1]:
            try:
                self._load(key, must_answer=True)
                return key
            except Exception as error:
                self._cannot_load(key, error)
        self._load(keys[-1])
        return keys[-1]

    def _cannot_load(self, key: str, error: Exception) -> None:
        logger.error("release %s cannot be loaded", key, exc_info=error)
        self.failures[key] = f"{type(error).__name__}: {error}"

    def info(self) -> ServiceInfo:
        """What is serving: the stable release, and the models of the others that are loaded for the rollout."""
        return self._info

    def _told(self) -> ServiceInfo:
        stable = self._loaded[self.rollout.stable]
        others = [self._loaded[key].run.models() for key in self.rollout.releases[1:] if key in self._loaded]
        return replace(stable.info, models=(*stable.info.models, *(model for models in others for model in models)))

    def encoder(self, release: str) -> str:
        """Digest of what decides the codes that a release gives."""
        return self._loaded[release].encoder

    async def answer(self, question: Question) -> Ranking:
        """The ranking by the release that the question names, or by the one that answers its user; the stable release stands in where a canary fails."""
        chosen = question.release or self.rollout.release_of(question.user_id)
        stable = self.rollout.stable
        if chosen not in self._loaded and question.release is None:
            chosen = stable
        try:
            ranking = await self._seen_answer(chosen, question)
        except Exception as error:
            if chosen == stable or question.release is not None:
                raise
            logger.warning("canary %s did not answer, the stable release does: %s", chosen, error)
            ranking = await self._seen_answer(stable, question)
        self._mirror(question, ranking)
        return ranking

    async def _seen_answer(self, key: str, question: Question) -> Ranking:
        """An answer of one release, counted in its statistics."""
        started = time.perf_counter()
        loaded = self._loaded.get(key)
        if loaded is None:
            raise UnanswerableError(f"release {key!r} is not loaded any more. GET /v1/rollout tells which are.")
        counted = len(self.rollout.releases) > 1 and question.release is None  # who names a release tries it, and is no sample of its users
        try:
            ranking = await self._rank(loaded, question)
        except UnanswerableError:
            raise
        except Exception as error:
            metrics.REQUEST_ERRORS.add(1, ranker=question.ranker, error=type(error).__name__)
            if counted:
                with self._lock:
                    self._seen.setdefault(key, ReleaseStats()).fail()
            raise
        seconds = time.perf_counter() - started
        metrics.REQUEST_SECONDS.observe(seconds, ranker=question.ranker, part="whole")
        if counted:
            probability_B = np.array([item.scores[0] for item in ranking.items]).clip(1e-7, 1 - 1e-7)
            with self._lock:
                self._seen.setdefault(key, ReleaseStats()).see(1000 * seconds, np.log(probability_B / (1 - probability_B)))
        return ranking

    async def _rank(self, loaded: Loaded, question: Question) -> Ranking:
        """One request, one batch."""
        ranker = loaded.ranker
        found = ranker.find(question)
        unknowns = ranker.unknowns(question, found)
        encoded: Encoded | None = None
        if unknowns:
            with timed(question.ranker, "encode"), self._admission.elsewhere():
                encoded = await self._encode(loaded.run.release.key, unknowns)
        async with self._turn:
            began = time.perf_counter()
            for _ in range(ROUNDS_BETWEEN):
                await asyncio.sleep(0)
            with timed(question.ranker, "rank"), torch.inference_mode():  # a tenth faster than no_grad alone
                ranking = ranker.rank(question, encoded, found)
            self._admission.took(time.perf_counter() - began)
        count(question, ranking)
        return ranking

    def _mirror(self, question: Question, served: Ranking) -> None:
        """Have the shadow rank the same, behind the answer."""
        shadow = self._loaded.get(self.rollout.shadow) if self.rollout.shadow is not None else None
        if shadow is None or question.release is not None or question.ranker not in shadow.ranker.rankers:
            return
        if len(self._shadowing) >= MOST_SHADOWED:
            with self._lock:
                self._shadow.dropped += 1
            return
        task = asyncio.get_running_loop().create_task(self._compare(shadow, question, served))
        self._shadowing.add(task)
        task.add_done_callback(self._shadowing.discard)

    async def _compare(self, shadow: Loaded, question: Question, served: Ranking) -> None:
        try:
            question = replace(question, explain=False, heads=served.heads)
            found = shadow.ranker.find(question)
            unknowns = shadow.ranker.unknowns(question, found)
            encoded = await self._encode(shadow.run.release.key, unknowns) if unknowns else None
            ranking = await asyncio.to_thread(shadow.ranker.rank, question, encoded, found)
        except Exception as error:  # nobody waits for it
            logger.warning("shadow %s failed: %s", shadow.run.release.key, error)
            with self._lock:
                self._shadow.errors += 1
            return
        with self._lock:
            self._shadow.see({item.item_id: item.scores[0] for item in served.items}, {item.item_id: item.scores[0] for item in ranking.items})

    def apply(self, number: int, entry: AnyEntry) -> None:
        """Take in what was told.

        Raises:
            Exception: a release could not take it in, such as for want of the encoder; the others have, and it may be tried again.
        """
        if isinstance(entry, RolloutEntry):
            self._roll(number, entry.rollout)
        else:
            wrong: Exception | None = None
            for loaded in sorted(self._loaded.values(), key=lambda one: one.run.release.key != self.rollout.stable):
                try:
                    take_in(loaded, [entry], self._encode_now)
                except Exception as error:
                    wrong = wrong or error
            if wrong is not None:
                raise wrong
        self.applied = number

    def _roll(self, number: int, rollout: Rollout) -> None:
        """Load what is new in the rollout, then switch; what cannot be loaded is left out and told."""
        new = [key for key in rollout.releases if key not in self._loaded]
        self.failures = {key: why for key, why in self.failures.items() if number == self._rollout_number and key in new}
        for key in new:
            if key not in self.failures:
                try:
                    self._load(key, must_answer=key == rollout.stable)
                except Exception as error:  # whatever is wrong with it, the others go on
                    self._cannot_load(key, error)
        self._rollout_number = number
        if rollout.stable not in self._loaded:
            logger.error("the stable release %s cannot be loaded; %s goes on", rollout.stable, self.rollout.stable)
            rollout = rollout.model_copy(update={"stable": self.rollout.stable})
        self.rollout = rollout
        self._begin(rollout)
        kept = {*rollout.releases, rollout.previous}
        for key in [key for key in self._loaded if key not in kept]:
            del self._loaded[key]
        self._info = self._told()

    def _begin(self, rollout: Rollout) -> None:
        """Statistics are of one rollout."""
        with self._lock:
            self._seen = {key: ReleaseStats() for key in rollout.releases}
            self._shadow = ShadowStats()

    def _load(self, key: str, must_answer: bool = False) -> None:
        """Hold a release; one that answers everybody must give numbers, a canary is counted."""
        run = self._open_run(key)
        ranker = in_background(run.request_ranker)
        mute = warm(ranker)
        if mute and must_answer:
            raise ValueError(f"its rankers {mute} give scores that are no numbers")
        loaded = Loaded(run, ranker, run.info(ranker))
        take_in(loaded, [entry for entry in self._history(self.applied) if not isinstance(entry, RolloutEntry)], self._encode_now)
        self.failures.pop(key, None)
        self._loaded[key] = loaded

    def report(self) -> dict[str, Any]:
        """What this replica has seen since the rollout's last change; numbers that add up with other replicas'."""
        with self._lock:
            return {
                "rollout": self._rollout_number,
                "releases": {key: stats.model_dump() for key, stats in self._seen.items()},
                "shadow": self._shadow.model_dump(),
                "failures": dict(self.failures),
            }


def take_in(loaded: Loaded, entries: list[ItemEntry | UserEntry | EventsEntry] | list[Any], encode: Callable[[str, Unknowns], Encoded]) -> None:
    """Put entries into a release; what another release's encoder made is made anew, in one go."""
    ranker, release = loaded.ranker, loaded.run.release.key
    entries = [entry for entry in entries if not is_in_the_logs(loaded, entry)]
    foreign = [entry for entry in entries if isinstance(entry, ItemEntry) and entry.encoder != loaded.encoder]
    anew: dict[int, tuple[Any, Any]] = {}
    if foreign:
        made = encode(release, Unknowns(None, tuple(stated_item(entry) for entry in foreign)))
        anew = {id(entry): (z_D, codes_S) for entry, z_D, codes_S in zip(foreign, made.item_z_ND, made.item_codes_NS, strict=True)}
    for entry in entries:
        if isinstance(entry, ItemEntry):
            vector_D, codes_S = anew.get(id(entry), (entry.vector_D, np.array(entry.codes, np.int32)))
            ranker.put_item(stated_item(entry), vector_D, codes_S, entry.told_us)
        elif isinstance(entry, UserEntry):
            if entry.of_us is not None and ranker.added.told_us(entry.user_id) != entry.of_us:
                continue
            codes = entry.codes
            if entry.encoder != loaded.encoder and entry.profile is not None:
                found = encode(release, Unknowns(StatedUser(profile=entry.profile), ())).user_codes
                codes = list(found) if found is not None else None
            ranker.put_user(entry.user_id, entry.attributes, tuple(codes) if codes is not None else None, entry.told_us)
        else:
            ranker.add_events([event.seen() for event in entry.events])


def is_in_the_logs(loaded: Loaded, entry: AnyEntry) -> bool:
    """What was told before a release's logs ended stands in them, for items and users that they have."""
    ranker = loaded.ranker
    if isinstance(entry, EventsEntry | RolloutEntry) or entry.told_us >= ranker.features.meta.end_us:
        return False
    return ranker.knows_item(entry.item_id) if isinstance(entry, ItemEntry) else ranker.features.users.user(entry.user_id) is not None


def warm(ranker: RequestRanker, times: int = 3) -> list[str]:
    """Rank as a request does, so that what is made once is made before the release answers; returns the rankers whose scores are no numbers."""
    known, mute = ranker.knowledge(), list[str]()
    with torch.inference_mode():
        for name in ranker.rankers:
            for user_id in (*known.user_ids[:1], "nobody") * times:
                try:
                    ranker.rank(Question(user_id, tuple(map(StatedItem, known.item_ids)), name))
                except FloatingPointError:
                    mute += [] if name in mute else [name]
    return mute


def stated_item(entry: ItemEntry) -> StatedItem:
    """What was told of an item."""
    first_seen = from_us(entry.first_seen_us) if entry.first_seen_us is not None else None
    return StatedItem(entry.item_id, entry.title, tuple(entry.category), entry.brand, entry.price, first_seen, entry.image_bytes)


@contextlib.contextmanager
def timed(ranker: str, part: str) -> Iterator[None]:
    """Tell Ray's metrics how long a block of a request took, unless it failed."""
    started = time.perf_counter()
    yield
    metrics.REQUEST_SECONDS.observe(time.perf_counter() - started, ranker=ranker, part=part)


def count(question: Question, ranking: Ranking) -> None:
    """Tell Ray's metrics what was ranked, and by what."""
    ranker = question.ranker
    metrics.REQUESTS.add(1, ranker=ranker, group_basis=ranking.group_basis)
    metrics.REQUEST_ITEMS.observe(len(ranking.items), ranker=ranker)
    for basis, number in Counter([item.basis for item in ranking.items]).items():
        metrics.CANDIDATES.add(number, ranker=ranker, basis=basis)
    if ranking.alpha_fusion is not None:
        metrics.SERVED_ALPHA.observe(ranking.alpha_fusion, ranker=ranker, activity=metrics.activity_level(ranking.num_purchases))
