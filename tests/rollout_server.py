"""The whole application over several releases in this process: writer, service and console as a replica has them, without Ray."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from longtail.artifacts import Store
from longtail.online.entries import parse
from longtail.online.log import FileLog
from longtail.questions import Encoded, Unknowns
from longtail.rollouts import GuardSettings, Rollout
from serve_apps.access import Access
from serve_apps.console.app import make_console
from serve_apps.console.bridge import Answered, Asked, Bridge, call
from serve_apps.console.context import Console
from serve_apps.console.nav import PAGES
from serve_apps.console.templating import Templates
from serve_apps.served_run import Served
from serve_apps.service import AnyEntry, RankingService
from serve_apps.teller import Teller
from serve_apps.told import Writer
from serve_apps.web import web_app

TOKEN = "secret"


class Direct:
    """An object's methods as a handle has them."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        class Remote:
            remote = staticmethod(method)

        return Remote


def application(served: Served, log: Path, guards: GuardSettings) -> FastAPI:
    """One replica's application, which follows a writer of its own."""
    store, run = Store.open(str(log)), served.open()
    writer, encoder = Writer(FileLog.open(store.fs, store.root), guards), run.encoder()
    with ThreadPoolExecutor(1) as thread:  # a browser's test has an event loop in this one
        _, begun = thread.submit(asyncio.run, writer.begin(served.release, 1)).result()

    async def encode(release: str, unknowns: Unknowns) -> Encoded:
        return await asyncio.to_thread(encoder.encode, unknowns)

    def history(until: int) -> Iterable[AnyEntry]:
        return [parse(line) for line in writer._lines[:until]]

    service = RankingService(served.open, encode, lambda release, unknowns: encoder.encode(unknowns), history, Rollout.model_validate_json(begun), 1)

    async def follow() -> None:
        while True:
            for number, line in enumerate(await writer.follow("one", service.applied, service.report()), start=service.applied + 1):
                await asyncio.to_thread(service.apply, number, parse(line))

    @contextlib.asynccontextmanager
    async def following(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(follow())
        yield
        task.cancel()

    access = Access(TOKEN, False)
    console = make_console(Console(run.config, run.store, run.artifacts, access, Templates(PAGES)))

    async def respond(asked: Asked) -> Answered:
        return await call(console, asked)

    app = web_app(service.info, service.answer, teller=Teller(served, Direct(writer), Direct(None), service), access=access, console=Bridge(respond))
    app.router.lifespan_context = following
    return app
