"""What callers tell the application: items and users that came since the logs ended, events, rollouts; checked here, encoded, and given to the writer.

Each method returns once the entry is durable and the replicas have taken it in (or serve.told_wait_s has passed: `seen_by` of `replicas` tells).
"""

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from longtail.online.added import SeenEvent
from longtail.online.entries import EventEntry, EventsEntry, ItemEntry, UserEntry
from longtail.questions import StatedItem, StatedUser, Unknowns
from longtail.releases import open_release, release_keys
from longtail.rollouts import RolloutChange
from longtail.times import to_us
from serve_apps.served_run import Served
from serve_apps.service import RankingService

logger = logging.getLogger(__name__)

CHANGE_WAIT_S = 60.0  # for replicas to load a release


class UnknownReleaseError(ValueError):
    """A release that is not in the store, or whose parts do not belong together."""


class NotTakenError(RuntimeError):
    """The encoder or the writer does not answer: nothing was told, or nobody knows."""


@contextlib.contextmanager
def taken() -> Iterator[None]:
    """Tell a failure of another process as what it is for a caller."""
    try:
        yield
    except (RayError, RayServeException, TimeoutError) as error:
        logger.exception("not taken in")
        raise NotTakenError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


class Teller:
    """The writing side of one replica.

    Raises:
        NotTakenError: of each method, where the encoder or the writer does not answer.
    """

    def __init__(self, served: Served, writer: Any, encoder: Any, service: RankingService, profiler: Any = None) -> None:
        self._served, self._writer, self._encoder, self._service, self._profiler = served, writer, encoder, service, profiler
        self._being_written: set[asyncio.Task[None]] = set()

    async def put_item(self, item: StatedItem) -> dict[str, Any]:
        """Encode an item and tell of it."""
        info = self._service.info()
        with taken():
            encoded = await self._encoder.encode.remote(info.release, Unknowns(None, (item,)))
        entry = ItemEntry(
            told_us=time.time_ns() // 1000,
            item_id=item.item_id,
            title=item.title,
            category=list(item.category),
            brand=item.brand,
            price=item.price,
            first_seen_us=to_us(item.first_seen) if item.first_seen is not None else None,
            image=base64.b64encode(item.image).decode() if item.image is not None else None,
            encoder=self._service.encoder(info.release),
            vector=ItemEntry.packed(encoded.item_z_ND[0]),
            codes=encoded.item_codes_NS[0].tolist(),
        )
        told = await self._append([entry.model_dump_json(exclude_none=True)])
        return {"codes": entry.codes, **told}

    async def put_user(self, user_id: str, user: StatedUser, events: Sequence[EventEntry]) -> dict[str, Any]:
        """Find a user's group by the profile of what is said of them, and tell of both."""
        info = self._service.info()
        with taken():
            text, codes = await self._encoder.profile.remote(info.release, user)
        by = "none" if text is None else "request" if user.profile else "deterministic"
        entry = UserEntry(
            told_us=time.time_ns() // 1000,
            user_id=user_id,
            attributes=dict(user.attributes),
            profile=text,
            profile_by=by,
            encoder=self._service.encoder(info.release),
            codes=list(codes) if codes is not None else None,
        )
        told: dict[str, Any] = {}
        if events:
            told = await self.add_events(events)
        told |= await self._append([entry.model_dump_json(exclude_none=True)])
        if self._profiler is not None and by == "deterministic":
            task = asyncio.get_running_loop().create_task(self._write_profile(entry, user))
            self._being_written.add(task)
            task.add_done_callback(self._being_written.discard)
        return {"profile": text, "profile_by": by, "group": list(codes) if codes is not None else [], **told}

    async def _write_profile(self, entry: UserEntry, user: StatedUser) -> None:
        """Tell of the user again with what the language model wrote, unless its answer could not stand."""
        try:
            written = await self._profiler.write.remote(user)
            if written is None or written.outcome != "llm":
                logger.info("user %s keeps the profile made by rule: %s", entry.user_id, "no facts" if written is None else written.outcome)
                return
            release = self._service.info().release
            codes = await self._encoder.codes_of_profile.remote(release, written.text)
            update: dict[str, Any] = {"told_us": time.time_ns() // 1000, "profile": written.text, "profile_by": "llm", "of_us": entry.told_us}
            update |= {"encoder": self._service.encoder(release), "codes": list(codes) if codes is not None else None}
            await self._append([entry.model_copy(update=update).model_dump_json(exclude_none=True)])
        except Exception:
            logger.exception("the language model's profile of user %s was not taken in; the one made by rule stays", entry.user_id)

    async def add_events(self, events: Sequence[EventEntry]) -> dict[str, Any]:
        """Tell of events; those that were told before are counted and left out."""
        entry = EventsEntry(told_us=time.time_ns() // 1000, events=list(events))
        with taken():
            told: dict[str, Any] = await self._writer.append_events.remote(
                entry.model_dump_json(exclude_none=True), self._wait_s(self._served.serve.told_wait_s)
            )
        return told

    def _wait_s(self, wanted: float) -> float:
        """As long as is wanted, and shorter than a request may take."""
        limit = self._served.serve.request_timeout_s
        return wanted if limit is None else min(wanted, limit / 2)

    async def _append(self, lines: Sequence[str]) -> dict[str, Any]:
        with taken():
            told: dict[str, Any] = await self._writer.append.remote(list(lines), self._wait_s(self._served.serve.told_wait_s))
        return told

    async def rollout(self) -> dict[str, Any]:
        """The rollout's state (serve_apps.told.Writer.state)."""
        with taken():
            state: dict[str, Any] = await self._writer.state.remote()
        return state

    async def change_rollout(self, change: RolloutChange) -> dict[str, Any]:
        """Change the rollout; `refused` says why it was not.

        Raises:
            UnknownReleaseError: the release is not in the store, or its parts do not belong together.
        """
        if change.release is not None and change.action != "rollback":
            try:
                await asyncio.to_thread(self._served.open, change.release)
            except ValueError as error:
                raise UnknownReleaseError(str(error)) from error
        with taken():
            changed: dict[str, Any] = await self._writer.change.remote(change.model_dump_json(), self._wait_s(CHANGE_WAIT_S))
        return changed

    async def releases(self) -> list[Mapping[str, Any]]:
        """All releases of the store, the latest first."""
        return await asyncio.to_thread(self._releases)

    def _releases(self) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        for key in release_keys(self._served.store):
            try:
                release = open_release(self._served.store, key)
            except ValueError as error:
                found.append({"release": key, "problem": str(error)})
                continue
            rankers = {name: artifact.key for name, artifact in release.rankers.items()}
            found.append({"release": key, "run": release.file.run, "published": release.published, "commit": release.commit, "rankers": rankers})
        return found


def seen_events(events: Sequence[EventEntry]) -> tuple[SeenEvent, ...]:
    """Events as profiles read them."""
    return tuple(event.seen() for event in events)


def stated_user(attributes: Mapping[str, Any], profile: str | None, events: Sequence[EventEntry]) -> StatedUser:
    """What is said of a user."""
    return StatedUser(attributes, profile, seen_events(events))
