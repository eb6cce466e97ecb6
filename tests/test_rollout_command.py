"""python -m serve_apps.rollout and python -m pipelines.publish, against a real application over HTTP and a real store."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from longtail.artifacts import Store
from longtail.online.log import FileLog
from longtail.rollouts import GuardSettings
from pipelines.cluster import ROOT
from serve_apps.access import TOKEN_VARIABLE, Access
from serve_apps.client import RankClient
from serve_apps.problems import add_problem_handlers
from serve_apps.ranking import served_run
from serve_apps.rollout_routes import rollout_routes
from serve_apps.served_run import Served
from serve_apps.teller import Teller
from serve_apps.told import Writer
from tests import console_server, small_run
from tests.rollout_server import Direct
from tests.test_service import shifted

TOKEN = "secret"


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Served, Served]:
    folder = tmp_path_factory.mktemp("two releases")
    first, second = (served_run(config, Store.open(str(folder))) for config in (small_run.publish(folder), small_run.publish(folder, 0.5, shifted)))
    return first, second


@pytest.fixture
def url(releases: tuple[Served, Served], tmp_path: Path) -> Iterator[str]:
    served = releases[0]
    store = Store.open(str(tmp_path))
    writer = Writer(FileLog.open(store.fs, store.root), GuardSettings())
    service: Any = None  # no route here asks it
    app = FastAPI()
    add_problem_handlers(app)
    app.include_router(rollout_routes(Teller(served, Direct(writer), None, service), Access(TOKEN, False).require))

    @app.post("/begin")
    async def begin() -> None:
        await writer.begin(served.release, 1)

    with console_server.served(app) as address:
        RankClient(address)._call("POST", "/begin")
        yield address


def command(url: str, *words: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({} if token is None else {TOKEN_VARIABLE: token})}
    return subprocess.run(
        [sys.executable, "-m", "serve_apps.rollout", "--url", url, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_rollout_from_a_terminal(url: str, releases: tuple[Served, Served]) -> None:
    first, second = (one.release for one in releases)
    there = command(url, "releases", token=None)
    assert there.returncode == 0, there.stderr
    assert first in there.stdout
    assert "small, published" in there.stdout
    canary = command(url, "canary", second, "--weight", "0.25", "--reason", "try it")
    assert canary.returncode == 0, canary.stderr
    assert f"canary   {second} for 25.0% of the users" in canary.stdout
    assert json.loads(canary.stdout.splitlines()[-1])["state"]["reason"] == "try it"
    promoted = command(url, "promote")
    assert f"stable   {second}" in promoted.stdout
    assert f"stable   {first}" in command(url, "rollback").stdout


@pytest.mark.parametrize(
    ("words", "token", "said"),
    [
        (("promote",), None, "401 acting needs the token"),
        (("promote",), "wrong", "401 acting needs the token"),
        (("canary", "r9", "--weight", "0.1"), TOKEN, "422 no release 'r9'"),
        (("rollback",), TOKEN, "409 nothing to roll back"),
    ],
)
def test_what_is_refused_is_told_in_a_line(url: str, words: tuple[str, ...], token: str | None, said: str) -> None:
    run = command(url, *words, token=token)
    assert run.returncode == 2
    assert said in run.stderr
    assert "Traceback" not in run.stderr


def test_where_nobody_answers_the_remedy_is_told() -> None:
    run = command("http://127.0.0.1:9", "status")
    assert run.returncode == 2
    assert "no answer" in run.stderr
    assert "make up" in run.stderr
