"""A served run without Ray: the rankers' web application with the console behind its bridge, in this process or on a port of uvicorn."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from longtail.newcomers import Placed
from longtail.questions import Encoded, Question, Ranking, StatedItem, Unknowns
from serve_apps.access import Access
from serve_apps.console.app import make_console
from serve_apps.console.bridge import Answered, Asked, Bridge, call
from serve_apps.console.context import Console
from serve_apps.console.nav import PAGES
from serve_apps.console.templating import Templates
from serve_apps.served_run import ServedRun
from serve_apps.web import web_app

TOKEN = "the token of the tests"


def application(run: ServedRun, host: str = "127.0.0.1", root_path: str = "") -> FastAPI:
    """What serve_apps.ranking.application serves, with calls in the place of handles."""
    ranker, encoder = run.request_ranker(), run.encoder()

    async def encode(unknowns: Unknowns) -> Encoded:
        return await asyncio.to_thread(encoder.encode, unknowns)

    async def answer(question: Question) -> Ranking:
        unknowns = ranker.unknowns(question)
        return ranker.rank(question, await encode(unknowns) if unknowns else None)

    async def place_items(items: Sequence[StatedItem]) -> Placed:
        return await asyncio.to_thread(encoder.place, items)

    access, scratch = Access(TOKEN, host != "127.0.0.1"), Path(run.store.root) / "scratch"
    console = make_console(Console(run.config, run.store, run.artifacts, access, Templates(PAGES), place_items, "http://127.0.0.1:8265", scratch))

    async def respond(asked: Asked) -> Answered:
        return await call(console, asked)

    return web_app(lambda: run.info(ranker), answer, root_path, console=Bridge(respond))


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The application on a free port, for the length of a block; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "uvicorn did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
