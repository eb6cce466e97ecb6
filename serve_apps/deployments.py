"""What lives in the replicas: shells over the core, imported by reference (no pipeline is imported here, so that a replica starts fast).

Rankers   the application's door: the HTTP side, and the releases that are being served, in one process, since a hop between two costs more than ranking does;
          asks Encoder only for what a release does not know, and follows the writer of what the application is told (serve_apps.told)
Encoder   text encoders, item projections and codebooks of those releases; loaded before it is ready, so that no request waits for a model
Profiler  the run's language model, where serve.llm_profiles is on (serve_apps.profiler)
Console   the pages for people (serve_apps.console.deployment): Rankers hands on what comes for /console
"""

import asyncio
import contextlib
import logging
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import ray
import torch
from fastapi import FastAPI

from longtail.newcomers import NewcomerEncoder, Placed
from longtail.online.entries import parse
from longtail.questions import Encoded, StatedItem, StatedUser, Unknowns
from longtail.rollouts import Rollout
from serve_apps.access import Access
from serve_apps.admission import Admission
from serve_apps.background import in_background
from serve_apps.console.bridge import Answered, Asked, Bridge
from serve_apps.inference_grpc import InferenceService
from serve_apps.served_run import Served
from serve_apps.service import AnyEntry, RankingService
from serve_apps.teller import Teller
from serve_apps.told import writer_of
from serve_apps.web import web_app

logger = logging.getLogger(__name__)

PING_TIMEOUT_S = 2.0
ENCODE_TIMEOUT_S = 60.0  # of what was told
ATTEMPTS = 4
MOST_ENCODERS = 4  # releases whose encoders are kept


class Encoder:
    """Texts and pictures that requests bring, as codes and vectors of a release."""

    def __init__(self, served: Served) -> None:
        torch.set_num_threads(served.serve.num_threads)
        self._served = served
        self._encoders: OrderedDict[str, NewcomerEncoder] = OrderedDict()  # by the digest of what decides their codes
        self._digests: dict[str, str] = {}
        self._loading = threading.Lock()
        self._of(served.release)

    async def encode(self, release: str, unknowns: Unknowns) -> Encoded:
        """Codes of the described user, z and codes of the described items."""
        return await asyncio.to_thread(lambda: self._of(release).encode(unknowns))

    async def codes_of_profile(self, release: str, text: str) -> tuple[int, ...] | None:
        """The codes that a profile leads to."""
        return await asyncio.to_thread(lambda: self._of(release).codes_of_profile(text))

    async def profile(self, release: str, user: StatedUser) -> tuple[str | None, tuple[int, ...] | None]:
        """The profile that stands for a user, and the codes that it leads to."""

        def found() -> tuple[str | None, tuple[int, ...] | None]:
            encoder = self._of(release)
            text = encoder.profile_of(user)
            return text, encoder.codes_of_profile(text)

        return await asyncio.to_thread(found)

    async def place(self, release: str, items: Sequence[StatedItem]) -> Placed:
        """Text vectors, z and codes of described items."""
        return await asyncio.to_thread(lambda: self._of(release).place(items))

    async def ping(self) -> None:
        """Answer."""

    def _of(self, release: str) -> NewcomerEncoder:
        with self._loading:
            digest = self._digests.get(release, "")
            if digest in self._encoders:
                self._encoders.move_to_end(digest)
                return self._encoders[digest]
        run = self._served.open(release)  # without the lock: other releases are asked meanwhile
        digest = run.release.file.encoder
        encoder = self._encoders.get(digest)
        if encoder is None:
            encoder = in_background(run.encoder)
            encoder.warm()
        with self._loading:
            self._digests[release] = digest
            self._encoders[digest] = encoder
            while len(self._encoders) > MOST_ENCODERS:
                self._encoders.popitem(last=False)
        return encoder


class Rankers(InferenceService):
    """Every ranker of the releases being served, and the application's only door: HTTP, and gRPC by the methods of InferenceService."""

    def __init__(self, served: Served, encoder: Any, route_prefix: str, access: Access, console: Any = None, profiler: Any = None) -> None:
        torch.set_num_threads(served.serve.num_threads)
        self._encoder, self._access, self._console = encoder, access, console
        self._writer = writer_of(served.store.uri, served.serve, served.resources)
        self._name = uuid.uuid4().hex[:12]
        told, rollout = ray.get(self._writer.begin.remote(served.release, served.deployed_us, served.serve.guards))
        standing_ms = served.serve.standing_wait_ms
        self._admission = Admission(None if standing_ms is None else standing_ms / 1000, served.serve.burst_wait_ms / 1000)
        self._retry_after_s = served.serve.retry_after_s
        self._service = RankingService(served.open, self._encode, self._encode_now, self._history, Rollout.model_validate_json(rollout), told, self._admission)
        super().__init__(self._service.info, self._service.answer, self.not_ready, self._admission)
        self._teller = Teller(served, self._writer, encoder, self._service, profiler)
        self._root_path = route_prefix.rstrip("/")
        self._ended = threading.Event()
        threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve takes the application from here once the constructor is done."""
        bridge = None if self._console is None else Bridge(self._from_console)
        return web_app(
            self._service.info,
            self._service.answer,
            self._root_path,
            self.not_ready,
            self._teller,
            self._access,
            bridge,
            self._admission,
            self._retry_after_s,
        )

    def __del__(self) -> None:
        self._ended.set()
        with contextlib.suppress(Exception):  # Ray may be gone; the writer forgets who does not ask anyway, after a while
            self._writer.leave.remote(self._name)

    async def _from_console(self, asked: Asked) -> Answered:
        answered: Answered = await self._console.respond.remote(asked)
        return answered

    async def not_ready(self) -> list[str]:
        """What does not answer, of the deployments that this one asks."""
        try:
            await asyncio.wait_for(self._ping(), PING_TIMEOUT_S)
        except Exception as error:  # whatever it is, it is no answer
            logger.warning("the encoder does not answer: %s", error)
            return ["Encoder"]
        return []

    async def _ping(self) -> None:
        await self._encoder.ping.remote()

    async def _encode(self, release: str, unknowns: Unknowns) -> Encoded:
        encoded: Encoded = await self._encoder.encode.remote(release, unknowns)
        return encoded

    def _encode_now(self, release: str, unknowns: Unknowns) -> Encoded:
        encoded: Encoded = self._encoder.encode.remote(release, unknowns).result(timeout_s=ENCODE_TIMEOUT_S)
        return encoded

    def _history(self, until: int) -> Iterable[AnyEntry]:
        after = 0
        while after < until:
            lines = ray.get(self._writer.read.remote(after, until))
            assert lines, f"the writer told of {until} entries and has {after}"
            yield from map(parse, lines)
            after += len(lines)

    def _follow(self) -> None:
        """Take in what is told, for as long as the replica lives."""
        while not self._ended.is_set():
            try:
                lines = ray.get(self._writer.follow.remote(self._name, self._service.applied, self._service.report()), timeout=30)
            except Exception as error:  # the writer is being started again, or this replica is ending
                logger.warning("the writer of what is told does not answer: %s", error)
                self._ended.wait(1.0)
                continue
            for number, line in enumerate(lines, start=self._service.applied + 1):
                self._take_in(number, line)

    def _take_in(self, number: int, line: str) -> None:
        """One entry; one that cannot be taken in, also not after a while, must not keep those behind it out."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._service.apply(number, parse(line))
            except Exception:
                logger.exception("entry %d cannot be taken in (attempt %d of %d)", number, attempt, ATTEMPTS)
                self._ended.wait(attempt)
        self._service.applied = number
        return None
