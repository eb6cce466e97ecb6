"""Admission: bursts wait, a standing queue does not, nobody is turned away at half the load, and what is turned away is told when to come back."""

import asyncio
import heapq
from dataclasses import dataclass, field

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from serve_apps.admission import INTERVAL_S, SEEN, SLOW_BODY_S, Admission, AdmissionGate

SERVICE_S = 0.008


@dataclass
class Replica:
    """One that answers requests one after the other, each in SERVICE_S, on a clock of its own."""

    standing_wait_s: float | None = 0.025
    now: float = 0.0
    ends: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.admission = Admission(self.standing_wait_s, 0.075, lambda: self.now)

    def run(self, arrivals: list[float]) -> None:
        free_at = self.now
        for arrival in arrivals:
            while self.ends and self.ends[0] <= arrival:
                self.now = heapq.heappop(self.ends)
                self.admission.took(SERVICE_S)
                self.admission.leave()
            self.now = arrival
            if not self.admission.admit():
                self.refused.append(arrival)
                continue
            free_at = max(free_at, arrival) + SERVICE_S
            heapq.heappush(self.ends, free_at)
            self.waited.append(free_at - arrival - SERVICE_S)


def poisson(load: float, seconds: float, seed: int = 0) -> list[float]:
    """Arrivals at a share of what one replica answers."""
    gaps = np.random.default_rng(seed).exponential(SERVICE_S / load, size=int(seconds * load / SERVICE_S * 2))
    times = np.cumsum(gaps)
    return times[times < seconds].tolist()


def warm(standing_wait_s: float = 0.025) -> Replica:
    """A replica that knows what a request takes."""
    replica = Replica(standing_wait_s)
    replica.run([0.007 * number for number in range(SEEN + 2)])
    replica.run([1.0])
    assert not replica.refused
    return replica


def test_a_burst_waits_and_is_answered() -> None:
    replica = warm()
    replica.run([2 + 0.001 * number for number in range(9)])
    assert not replica.refused
    assert max(replica.waited) > 2 * 0.025, "longer than a standing queue may"
    replica.run([3 + 0.001 * number for number in range(30)])
    assert len(replica.refused) > 10, "no burst is that long"
    assert max(replica.waited) <= 0.075


@pytest.mark.parametrize(("load", "most"), [(0.5, 0.004), (0.7, 0.03)])
def test_hardly_anybody_is_turned_away_below_saturation(load: float, most: float) -> None:
    replica = Replica()
    arrivals = poisson(load, 60)
    replica.run(arrivals)
    assert len(replica.refused) <= most * len(arrivals)


@pytest.mark.parametrize("wait_s", [0.025, 0.05])
def test_at_twice_the_rate_those_let_in_wait_little_and_the_replica_is_busy(wait_s: float) -> None:
    replica = warm(wait_s)
    before = len(replica.waited)
    replica.run([2 + time for time in poisson(2.0, 10)])
    answered = len(replica.waited) - before
    assert answered * SERVICE_S > 0.95 * 10
    assert np.quantile(replica.waited, 0.98) <= wait_s
    assert max(replica.waited) <= 0.075
    assert len(replica.refused) > 0.4 * (answered + len(replica.refused))


def test_it_forgets_an_overload() -> None:
    replica = Replica()
    replica.run(poisson(2.0, 5))
    before = len(replica.refused)
    assert before
    replica.run([5 + 2 * INTERVAL_S + time for time in poisson(0.5, 30)])
    assert len(replica.refused) - before <= 8


def test_without_a_limit_everybody_is_let_in() -> None:
    replica = Replica(None)
    replica.run(poisson(2.0, 5))
    assert not replica.refused
    assert max(replica.waited) > 1


def test_who_waits_for_the_encoder_keeps_nobody_out() -> None:
    now = [0.0]
    admission = Admission(0.025, 0.075, lambda: now[0])
    with admission.elsewhere(), admission.elsewhere():
        for number in range(100):
            now[0] = 0.01 * number
            assert admission.admit()
            if number >= 2:
                admission.leave()
        assert admission.waiting == 0
    for _ in range(SEEN):
        admission.took(0.01)
    for _ in range(2):
        admission.leave()
    now[0] += 1
    assert [admission.admit() for _ in range(9)] == [True] * 7 + [False] * 2, "what waits here is counted: 75 ms for 10 ms each"


def test_the_gate_turns_rankings_away_and_nothing_else() -> None:
    now = [0.0]
    admission = Admission(0.025, 0.075, lambda: now[0])
    app = FastAPI(root_path="/shop")
    app.add_middleware(AdmissionGate, admission=admission, retry_after_s=7)
    inside = []

    @app.post("/v1/rank")
    def rank() -> dict[str, bool]:
        inside.append(admission.waiting)
        return {"ranked": True}

    @app.post("/v2/models/base/infer")
    def infer() -> dict[str, bool]:
        return rank()

    @app.post("/v1/events")
    def events() -> dict[str, bool]:
        return {"told": True}

    client = TestClient(app, root_path="/shop")
    assert client.post("/shop/v1/rank").json() == {"ranked": True}
    assert inside == [1]
    assert admission.waiting == 0, "it left"
    for _ in range(SEEN):
        admission.took(0.02)
    for _ in range(3):
        admission.admit()
    now[0] += 2 * INTERVAL_S
    refused = client.post("/shop/v1/rank", json={})
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "7"
    assert refused.headers["content-type"] == "application/problem+json"
    assert "serve.standing_wait_ms" in refused.json()["remedy"]
    protocol = client.post("/shop/v2/models/base/infer", json={})
    assert (protocol.status_code, "error" in protocol.json()) == (503, True)
    assert client.post("/shop/v1/events").json() == {"told": True}
    for _ in range(2):
        admission.leave()
    assert client.post("/shop/v1/rank").status_code == 200, "there is room again"


def test_a_body_that_is_slow_to_come_keeps_nobody_waiting() -> None:
    admission = Admission(0.025, 0.075)
    seen: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        seen.append(admission.waiting)
        while message["more_body"]:
            message = await receive()
        seen.append(admission.waiting)

    async def ask(pause_s: float) -> None:
        left = iter((True, False))

        async def receive() -> Message:
            await asyncio.sleep(pause_s)
            return {"type": "http.request", "body": b"", "more_body": next(left)}

        async def send(message: Message) -> None:
            raise AssertionError(message)

        await AdmissionGate(app, admission, 1)({"type": "http", "method": "POST", "path": "/v1/rank"}, receive, send)

    asyncio.run(ask(1.2 * SLOW_BODY_S))
    assert seen == [0, 1], "not while it comes, and then it is ranked"
    asyncio.run(ask(0.0))
    assert seen[2:] == [1, 1]
    assert admission.waiting == 0
    assert admission._elsewhere == 0
