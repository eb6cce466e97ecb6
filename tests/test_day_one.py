"""The application on Ray Serve: what is told is ranked from the next request on by every replica, also after everything was started again; a canary that
breaks is taken back by itself."""

import base64
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from longtail.artifacts import Store
from longtail.config import Config
from serve_apps.access import Access
from serve_apps.ranking import deployed, served_run
from tests import redis_server, small_run, small_world
from tests.test_service import shifted, spoiled

pytestmark = pytest.mark.ray

TOKEN = "token of the tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ITEMS = ["book", "milk", "odd", "soap", "tea"]


@contextmanager
def serving(config: Config, **serve: Any) -> Iterator[str]:
    """The application's URL, with two replicas."""
    config = config.model_copy(update={"serve": config.serve.model_copy(update={"num_replicas": 2, "num_cpus": 0.1, **serve})})
    with deployed(served_run(config, Store.open(config.run.uri)), Access(TOKEN, False)) as served:
        yield served.url


def ask(url: str, user: str, items: list[str] = ITEMS, **more: Any) -> dict[str, Any]:
    response = requests.post(f"{url}/v1/rank", json={"user_id": user, "item_ids": items, "ranker": "choirrec", **more}, timeout=60)
    assert response.ok, response.text
    answer: dict[str, Any] = response.json()
    return answer


def tell(method: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    response = requests.request(method, url, json=body, timeout=60)
    assert response.ok, response.text
    told: dict[str, Any] = response.json()
    assert (told["replicas"], told["seen_by"]) == (2, 2)
    return told


def picture() -> str:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def test_day_one_a_restart_and_a_rollout(ray_cluster: None, tmp_path: Path) -> None:
    config = small_run.publish(tmp_path)
    store = Store.open(config.run.uri)
    good = served_run(small_run.publish(tmp_path, 0.5, shifted), store).release
    broken = served_run(small_run.publish(tmp_path, 0.25, spoiled), store).release
    guards = config.serve.guards.model_copy(update={"min_requests": 50, "max_latency_ratio": 100.0, "max_psi": 100.0})
    told = _day_one(config, guards=guards)
    with serving(config, guards=guards) as url:  # Serve, replicas and writer are new
        _as_told(url, told)
        _rollout(url, good, broken)


@pytest.mark.slow
def test_day_one_in_redis(ray_cluster: None, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    config = small_run.publish(tmp_path)
    with redis_server.running(tmp_path_factory.mktemp("redis")) as url:
        serve: dict[str, Any] = {"feature_store": "redis", "redis_url": url}
        told = _day_one(config, **serve)
        with serving(config, **serve) as url:
            _as_told(url, told)


@pytest.mark.slow
def test_what_was_promoted_stays_after_a_restart(ray_cluster: None, tmp_path: Path) -> None:
    config = small_run.publish(tmp_path)
    good = served_run(small_run.publish(tmp_path, 0.5, shifted), Store.open(config.run.uri)).release
    with serving(config) as url:
        stable = ask(url, "a")["release"]
        assert requests.post(f"{url}/v1/rollout", json={"action": "promote", "release": good}, headers=BEARER, timeout=60).ok
    with serving(config) as url:
        assert ask(url, "a")["release"] == good
        assert requests.post(f"{url}/v1/rollout", json={"action": "rollback", "release": good}, headers=BEARER, timeout=60).ok
        assert ask(url, "a")["release"] == stable


def _day_one(config: Config, **serve: Any) -> dict[str, Any]:
    """Tell of an item, a user and events; returns what users are answered then."""
    later = small_world.day(41).isoformat()
    with serving(config, **serve) as url:
        first = ask(url, "a", [*ITEMS, "oat"])
        assert next(item for item in first["items"] if item["item_id"] == "oat")["basis"] == "none"
        item = {"title": "Oat drink", "category": ["food", "drinks"], "brand": "x", "price": 2.5, "image": picture()}
        told = tell("PUT", f"{url}/v1/items/oat", item)
        assert len(told["codes"]) == 2
        user = {"attributes": {"city": "Ulm", "age": 30}, "events": [{"event_id": "1", "item_id": "tea", "kind": "purchase", "ts": later}]}
        placed = tell("PUT", f"{url}/v1/users/new", user)
        assert (placed["profile_by"], len(placed["group"])) == ("deterministic", 2)
        assert "drinks" in placed["profile"]
        event = {"event_id": "2", "user_id": "a", "item_id": "oat", "kind": "purchase", "ts": later}
        assert tell("POST", f"{url}/v1/events", {"events": [event]})["accepted"] == 1
        assert tell("POST", f"{url}/v1/events", {"events": [event]})["told_before"] == 1
        expected = {user: ask(url, user, [*ITEMS, "oat"], explain=True) for user in ("a", "new")}
        for user, answer in expected.items():
            for _ in range(6):  # both replicas answer
                assert ask(url, user, [*ITEMS, "oat"], explain=True)["items"] == answer["items"]
        assert {item["item_id"]: item["basis"] for item in expected["a"]["items"]}["oat"] == "added"
        assert {seen["item_id"] for seen in expected["a"]["items"][0]["explanation"]["attended"]["history"]} >= {"oat"}
        assert (expected["new"]["user"]["known"], expected["new"]["user"]["group_basis"]) == (True, "added")
        early = requests.post(f"{url}/v1/events", json={"events": [event | {"ts": small_world.day(3).isoformat()}]}, timeout=60)
        assert (early.status_code, early.json()["type"]) == (422, "urn:longtail:problem:event-too-early")
        late = requests.post(f"{url}/v1/events", json={"events": [event | {"ts": "2199-01-01T00:00:00Z"}]}, timeout=60)
        assert (late.status_code, late.json()["type"]) == (422, "urn:longtail:problem:event-too-late")
        for nothing in ({"price": 1}, {"title": "  "}, {"title": "x", "image": base64.b64encode(b"no picture").decode()}):
            assert requests.put(f"{url}/v1/items/x", json=nothing, timeout=60).status_code == 422, nothing
        slashed = requests.put(f"{url}/v1/items/shelf%2F7", json={"title": "x"}, timeout=60)
        assert slashed.json()["item_id"] == "shelf/7"
        large = requests.put(f"{url}/v1/items/large", json={"title": "x", "brand": "y" * 17_000_000}, timeout=60)
        assert (large.status_code, large.json()["type"]) == (413, "urn:longtail:problem:too-large")
    return expected


def _as_told(url: str, told: dict[str, Any]) -> None:
    for user, answer in told.items():
        assert ask(url, user, [*ITEMS, "oat"], explain=True)["items"] == answer["items"]
    event = {"event_id": "2", "user_id": "a", "item_id": "oat", "kind": "purchase", "ts": small_world.day(41).isoformat()}
    assert tell("POST", f"{url}/v1/events", {"events": [event]})["told_before"] == 1


def until(what: str, url: str, seconds: float = 60) -> dict[str, Any]:
    """The rollout's state once its reason speaks of something; requests go on meanwhile."""
    deadline = time.monotonic() + seconds
    while True:
        state: dict[str, Any] = requests.get(f"{url}/v1/rollout", timeout=60).json()
        if what in state["state"]["reason"]:
            return state
        assert time.monotonic() < deadline, state
        for number in range(10):
            ask(url, f"user {number}")


def _rollout(url: str, good: str, broken: str) -> None:
    """A canary that breaks is taken back by itself, a good one is promoted."""
    stable = ask(url, "a")["release"]
    there = [one["release"] for one in requests.get(f"{url}/v1/releases", timeout=60).json()["releases"]]
    assert set(there) == {stable, good, broken}

    def change(**body: Any) -> requests.Response:
        return requests.post(f"{url}/v1/rollout", json=body, headers=BEARER, timeout=120)

    assert requests.post(f"{url}/v1/rollout", json={"action": "promote", "release": good}, timeout=60).status_code == 401
    assert change(action="canary", release=broken, weight=0.5).ok
    state = until("rolled back by itself", url)
    assert (state["state"]["canary"], state["state"]["stable"]) == (None, stable)
    assert "requests failed" in state["state"]["reason"]
    assert change(action="canary", release="r9", weight=0.5).json()["type"] == "urn:longtail:problem:unknown-release"
    assert change(action="promote").json()["type"] == "urn:longtail:problem:rollout"
    assert change(action="canary", release=good, weight=0.5).ok
    assert {ask(url, f"user {number}")["release"] for number in range(20)} == {stable, good}
    assert change(action="promote").ok
    assert {ask(url, f"user {number}")["release"] for number in range(20)} == {good}
    assert requests.get(f"{url}/v1/models", timeout=60).json()["release"] == good


@pytest.mark.slow
def test_the_language_model_s_profile_comes_after_the_one_made_by_rule(ray_cluster: None, tmp_path: Path) -> None:
    config = small_run.publish(tmp_path)
    assert config.profiles.generator == "llm"
    with serving(config, llm_profiles=True) as url:
        body = {"attributes": {"city": "Bonn"}, "events": [{"event_id": "1", "item_id": "tea", "kind": "purchase", "ts": small_world.day(41).isoformat()}]}
        assert tell("PUT", f"{url}/v1/users/new", body)["profile_by"] == "deterministic"
        deadline, told = time.monotonic() + 240, Path(tmp_path) / "told"
        while not (found := [line for path in sorted(told.iterdir()) for line in path.read_text().splitlines() if '"profile_by":"llm"' in line]):
            assert time.monotonic() < deadline, "the model's answer was refused, or never came"
            time.sleep(1)
        assert "tea" in found[0] or "drinks" in found[0]
        assert ask(url, "new")["user"]["group_basis"] == "added"
