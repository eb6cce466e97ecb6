"""The one writer of what an application is told: it numbers entries, makes them durable, hands them to every replica, and decides about rollouts.

It is an actor with a name, one for each run URI, and outlives the replicas; Ray starts it again where it dies, and then it reads its log
(<uri>/told, or Redis where serve.feature_store says so). A replica asks for what is new as soon as it has taken in what came before, so that its asking tells
how far it is.
"""

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from longtail.artifacts import Store
from longtail.hashing import digest
from longtail.online import redis_store
from longtail.online.entries import EventsEntry, RolloutEntry, parse
from longtail.online.log import FileLog, RedisLog, ToldLog, told_key
from longtail.rollouts import GuardSettings, ReleaseStats, Rollout, RolloutChange, ShadowStats, changed, psi, verdict
from longtail.serving import ServeSettings
from longtail.times import from_us

logger = logging.getLogger(__name__)

NAMESPACE = "longtail"
PAGE = 2_000  # entries handed over at once, and PAGE_BYTES of them
PAGE_BYTES = 8 * 2**20
WAIT_S = 1.0  # that a replica is left waiting for news, after which it reports again
GONE_S = 3.0  # a replica that does not ask again for so long is not waited for, nor one that loads a release for LOADING_S
LOADING_S = 120.0
FORGOTTEN_S = 300.0
MOST_HISTORY = 50  # rollouts that the state tells of
MOST_EVENT_IDS = 1_000_000  # that are remembered, to know an event that is sent again


@dataclass
class Replica:
    """What one replica said last."""

    applied: int
    asked: float  # monotonic, as the next
    handed: float = 0.0  # when it was handed lines, or sent away without
    waiting: int = 0  # it is asking now
    loading: bool = False  # what it was handed has a rollout in it
    report: Mapping[str, Any] = field(default_factory=dict)

    def there(self, now: float) -> bool:
        """It asks, or is about to ask again."""
        return self.waiting > 0 or now - self.handed < (LOADING_S if self.loading else GONE_S)


class Writer:
    """The log's only writer; its methods run in one event loop."""

    def __init__(self, log: ToldLog, guards: GuardSettings) -> None:
        self._log, self._guards = log, guards
        self._lines: list[str] = []
        self._rollouts: list[tuple[int, Rollout, int]] = []  # the entry's number, what it says, and when it was told
        self._event_ids: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._replicas: dict[str, Replica] = {}
        self._left: list[Mapping[str, Any]] = []  # reports of replicas that have ended
        self._writing, self._news = asyncio.Lock(), asyncio.Condition()
        for number, line in log.read(0):
            self._remember(number, line)

    @property
    def last(self) -> int:
        """The number of the last entry."""
        return len(self._lines)

    async def begin(self, release: str, deployed_us: int, guards: GuardSettings | None = None) -> tuple[int, str]:
        """The number of entries and the rollout (JSON) that an application starts with: what was decided last, be it by an operator or by a deployment."""
        async with self._writing:
            self._guards = guards or self._guards
            now = self._rollouts[-1][1] if self._rollouts else None
            if now is None:
                await self._write([self._entry(Rollout(stable=release, configured=release, deployed_us=deployed_us, reason="first deployment"))])
            elif deployed_us > now.deployed_us:
                told: dict[str, Any] = {"configured": release, "deployed_us": deployed_us}
                if release not in (now.configured, now.stable):  # deployed with another release than before
                    told |= {"stable": release, "previous": now.stable, "canary": None, "weight": 0.0, "reason": "deployed with this release"}
                    told |= {"shadow": None if now.shadow == release else now.shadow}
                await self._write([self._entry(now.model_copy(update=told))])
            return self.last, self._rollouts[-1][1].model_dump_json()

    async def read(self, after: int, until: int | None = None) -> list[str]:
        """Some lines from number `after` + 1 on, at least one where there is one.

        Raises:
            ValueError: there are fewer lines than the replica has taken in: the log has lost some.
        """
        if after > self.last:
            raise ValueError(f"the log ends with entry {self.last}, and entry {after} was taken in: it has lost some. Start the application again.")
        page: list[str] = []
        size = 0
        for line in self._lines[after : min(after + PAGE, self.last if until is None else until)]:
            size += len(line)
            if page and size > PAGE_BYTES:
                break
            page.append(line)
        return page

    async def follow(self, replica: str, applied: int, report: Mapping[str, Any]) -> list[str]:
        """Lines after those that a replica has taken in, as soon as there are any; none after WAIT_S."""
        now = time.monotonic()
        self._replicas = {name: one for name, one in self._replicas.items() if now - one.asked < FORGOTTEN_S}
        mine = self._replicas[replica] = Replica(applied, now, waiting=1, report=report)
        lines: list[str] = []
        try:
            async with self._news:
                self._news.notify_all()  # who waits for replicas to be as far
            await self._judge()
            if self.last <= applied:
                async with self._news:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._news.wait_for(lambda: self.last > applied), WAIT_S)
            lines = await self.read(applied)
        finally:
            mine.waiting, mine.handed, mine.loading = 0, time.monotonic(), any(applied < number for number, *_ in self._rollouts)
        return lines

    async def leave(self, replica: str) -> None:
        """A replica ends; nobody waits for it, and what it saw counts on."""
        mine = self._replicas.pop(replica, None)
        if mine is not None:
            self._left = [*self._current(self._left), mine.report]
        async with self._news:
            self._news.notify_all()

    async def append(self, lines: Sequence[str], wait_s: float) -> dict[str, int]:
        """Write entries, and wait until every replica has taken them in: the last one's number, how many replicas there are, and how many have it."""
        async with self._writing:
            number = await self._write(lines)
        return await self._seen(number, wait_s)

    async def append_events(self, line: str, wait_s: float) -> dict[str, int]:
        """Write an EventsEntry without the events that were told before; adds how many those were."""
        async with self._writing:
            entry = parse(line)
            assert isinstance(entry, EventsEntry)
            fresh = list({event.key: event for event in entry.events if event.key not in self._event_ids}.values())
            told = len(entry.events) - len(fresh)
            number = await self._write([entry.model_copy(update={"events": fresh}).model_dump_json(exclude_none=True)] if fresh else [])
        return {**await self._seen(number, wait_s), "accepted": len(fresh), "told_before": told}

    async def change(self, change: str, wait_s: float) -> dict[str, Any]:
        """Change the rollout: its state (as `state`), or `refused`, the rule that forbids it."""
        async with self._writing:
            try:
                rollout = changed(self._rollouts[-1][1], RolloutChange.model_validate_json(change))
            except ValueError as error:
                return {"refused": str(error)}
            number = await self._write([self._entry(rollout)])
        seen = await self._seen(number, wait_s)
        await self._judge()
        return {**self._state(), **seen}

    async def state(self) -> dict[str, Any]:
        """The rollout, its history, what was seen of each release, and how far the replicas are."""
        return self._state()

    def _state(self) -> dict[str, Any]:
        releases, shadow = self._totals()
        return {
            "state": self._rollouts[-1][1].model_dump() if self._rollouts else None,
            "history": [
                {"number": number, "time": from_us(told_us).isoformat(timespec="seconds"), **rollout.model_dump()}
                for number, rollout, told_us in self._rollouts[-MOST_HISTORY:]
            ],
            "releases": {
                key: {"requests": one.requests, "errors": one.errors, "p50_ms": one.latency_ms(0.5), "p95_ms": one.latency_ms(0.95), "scores_K": one.scores_K}
                for key, one in releases.items()
            },
            "psi": self._drift(releases),
            "shadow": shadow.model_dump(),
            "failures": self._failures(),
            "guards": self._guards.model_dump(),
            "entries": self.last,
            "replicas": {name: {"applied": one.applied, "silent_s": round(time.monotonic() - one.asked, 1)} for name, one in self._replicas.items()},
        }

    def _totals(self) -> tuple[dict[str, ReleaseStats], ShadowStats]:
        """What all replicas saw since the last change."""
        releases, shadow = dict[str, ReleaseStats](), ShadowStats()
        for report in self._reports():
            for key, stats in report["releases"].items():
                releases[key] = releases.get(key, ReleaseStats()) + ReleaseStats.model_validate(stats)
            shadow = shadow + ShadowStats.model_validate(report["shadow"])
        return releases, shadow

    def _reports(self) -> list[Mapping[str, Any]]:
        """What the replicas that know the last rollout have said."""
        return self._current([*(replica.report for replica in self._replicas.values()), *self._left])

    def _current(self, reports: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        current = self._rollouts[-1][0] if self._rollouts else 0
        return [report for report in reports if report.get("rollout", -1) >= current]

    def _drift(self, releases: Mapping[str, ReleaseStats]) -> float | None:
        """PSI of the canary's scores; None before both have some."""
        rollout = self._rollouts[-1][1] if self._rollouts else None
        canary, stable = (releases.get(key or "") for key in (rollout.canary, rollout.stable)) if rollout is not None else (None, None)
        return psi(canary.scores_K, stable.scores_K) if canary and stable and any(canary.scores_K) and any(stable.scores_K) else None

    def _failures(self) -> dict[str, str]:
        return {key: why for report in self._reports() for key, why in report["failures"].items()}

    async def _judge(self) -> None:
        """Take back what cannot be loaded, and the canary where the guards say so."""
        if not self._rollouts:
            return
        number, rollout, _ = self._rollouts[-1]
        judged, failures = rollout.canary or rollout.stable, self._failures()
        why = f"it could not be loaded: {failures[judged]}" if judged in failures else None
        if why is None and rollout.canary is not None:
            releases, _ = self._totals()
            why = verdict(releases.get(rollout.canary, ReleaseStats()), releases.get(rollout.stable, ReleaseStats()), self._guards)
        if why is None or (rollout.canary is None and rollout.previous is None):
            return
        async with self._writing:
            if self._rollouts[-1][0] == number:  # nobody has changed it meanwhile
                logger.warning("release %s is taken back: %s", judged, why)
                back = changed(rollout, RolloutChange(action="rollback", release=judged, reason=f"rolled back by itself: {why}"[:500]))
                await self._write([self._entry(back)])

    async def _seen(self, number: int, wait_s: float) -> dict[str, int]:
        """Wait until every replica has taken an entry in, but not longer than `wait_s`."""
        deadline = time.monotonic() + wait_s

        def there() -> list[Replica]:
            return [one for one in self._replicas.values() if one.there(time.monotonic())]

        def behind() -> bool:
            return any(one.applied < number for one in there()) or not self._replicas  # a writer that has just started is asked soon

        async with self._news:
            while behind() and (left := deadline - time.monotonic()) > 0:
                try:
                    await asyncio.wait_for(self._news.wait(), left)
                except TimeoutError:
                    break
        replicas = there()
        return {"number": number, "replicas": len(replicas), "seen_by": sum(one.applied >= number for one in replicas)}

    async def _write(self, lines: Sequence[str]) -> int:
        """Make lines durable, then known; the caller holds `_writing`."""
        if lines:
            number = await asyncio.to_thread(self._log.append, lines)
            if number != self.last + len(lines):  # an append whose answer was lost before
                lines = [line for _, line in await asyncio.to_thread(lambda: list(self._log.read(self.last)))]
            for line in lines:
                self._remember(self.last + 1, line)
            async with self._news:
                self._news.notify_all()
        return self.last

    def _remember(self, number: int, line: str) -> None:
        self._lines.append(line)
        entry = parse(line)
        if isinstance(entry, RolloutEntry):
            self._rollouts.append((number, entry.rollout, entry.told_us))
        elif isinstance(entry, EventsEntry):
            for event in entry.events:
                self._event_ids[event.key] = None
            while len(self._event_ids) > MOST_EVENT_IDS:
                self._event_ids.popitem(last=False)

    @staticmethod
    def _entry(rollout: Rollout) -> str:
        return RolloutEntry(told_us=time.time_ns() // 1000, rollout=rollout).model_dump_json()


class WriterActor(Writer):
    """The writer of a run's log; the log is opened where the actor is."""

    def __init__(self, uri: str, serve: ServeSettings) -> None:
        store = Store.open(uri)
        log: ToldLog = FileLog.open(store.fs, store.root)
        if serve.feature_store == "redis":
            log = RedisLog(redis_store.connect(serve.redis_url), told_key(uri))
        super().__init__(log, serve.guards)


def writer_of(uri: str, serve: ServeSettings, resources: Mapping[str, float]) -> Any:
    """The handle of the run's writer, which is started if there is none on this cluster; `resources` say on which nodes it may stand."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3, resources=dict(resources))(WriterActor)
    return actor.options(name=writer_name(uri), namespace=NAMESPACE, get_if_exists=True, lifetime="detached", max_concurrency=1000).remote(uri, serve)


def writer_name(uri: str) -> str:
    return f"told-{digest(uri)}"


def end_writer(uri: str) -> None:
    """End the run's writer, if there is one: what it wrote stays."""
    try:
        ray.kill(ray.get_actor(writer_name(uri), namespace=NAMESPACE))
    except ValueError:
        return
