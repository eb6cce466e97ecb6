"""Who is let in: a burst may wait, a queue that stands may not.

A replica ranks one request after the other, so that whoever waits, waits for all before. A queue that empties again within INTERVAL_S is a burst, and turning
it away would lose requests for nothing; one that stands for longer, or outgrows what a burst may wait, means that more come than can be ranked, and then a long
queue only makes every answer late.
After controlled delay (Nichols and Jacobson 2012) as Maurer 2015 ("Fail at Scale") has it for servers, with one difference: what is limited while a queue
stands is the number of those inside, from what a request has taken of late, since a request is turned away for less before it has waited than after.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors import metrics
from serve_apps.problems import RequestProblemError, problem_response, route_of

INTERVAL_S = 0.1  # a queue that has stood for that long is no burst
FEWEST = 2  # one that is ranked and one that waits: with fewer the replica would be idle between them
SEEN = 16  # questions from which it is known what one takes; a replica's first ones take longer
SLOW_BODY_S = 0.05  # a request whose body takes longer to come keeps nobody waiting until it is there


def surplus() -> RequestProblemError:
    """What those hear who are not let in."""
    detail, remedy = "more requests come than are ranked in time.", "Come back in a moment; more replicas, or a longer serve.standing_wait_ms, take more in."
    return RequestProblemError(503, "overloaded", "Too many requests at once", detail, remedy)


class Admission:
    """Counts the requests inside one replica; called by its event loop alone.

    Args:
        standing_wait_s: what a request that is let in may wait, and be answered, while a queue stands; None: everybody is let in, as far as Serve does.
        burst_wait_s: the same in a burst.
        clock: seconds.
    """

    def __init__(self, standing_wait_s: float | None, burst_wait_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._standing_s, self._burst_s, self._clock = standing_wait_s, burst_wait_s, clock
        self._inside = self._elsewhere = 0
        self._num_seen, self._seconds = 0, 0.0  # that one question takes
        self._short_at = self._refused_at = clock()
        self._stands = False

    @property
    def waiting(self) -> int:
        """Requests that are ranked or wait for it."""
        return max(self._inside - self._elsewhere, 0)

    def admit(self) -> bool:
        """Let a request in, or not; one that is in must `leave`."""
        now = self._clock()
        if self.waiting < FEWEST:
            self._short_at = now
        if self._stands and now - self._refused_at > INTERVAL_S:  # nobody was turned away for as long
            self._stands, self._short_at = False, now
        elif not self._stands and now - self._short_at > INTERVAL_S:
            self._stands, self._refused_at = True, now
        if self.waiting >= self._most():
            self._stands, self._refused_at = True, now
            return False
        self._inside += 1
        return True

    def leave(self) -> None:
        """A request has been answered."""
        self._inside -= 1

    def took(self, seconds: float) -> None:
        """A question has been ranked, and nobody else's was meanwhile."""
        self._num_seen = min(self._num_seen + 1, SEEN)
        self._seconds += (seconds - self._seconds) / self._num_seen

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """While a request waits for somebody else, such as the encoder, it keeps nobody waiting here; so may a few of a batch, which is one request."""
        self._elsewhere += 1
        try:
            yield
        finally:
            self._elsewhere -= 1

    def _most(self) -> float:
        if self._standing_s is None or self._num_seen < SEEN:
            return math.inf
        return max(FEWEST, int((self._standing_s if self._stands else self._burst_s) / self._seconds))


class AdmissionGate:
    """Turns the surplus of what is to be ranked away before its body is read: 503 with Retry-After."""

    def __init__(self, app: ASGIApp, admission: Admission, retry_after_s: int) -> None:
        self._app, self._admission, self._retry_after_s = app, admission, retry_after_s
        self._refusals: dict[bool, JSONResponse] = {}  # by whether it is /v2 that is asked: most of what costs time is made once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not is_ranking(route_of(scope)):
            await self._app(scope, receive, send)
            return
        if not self._admission.admit():
            await self._refusal(scope)(scope, receive, send)
            return
        try:
            with ExitStack() as body:
                slow = asyncio.get_running_loop().call_later(SLOW_BODY_S, lambda: body.enter_context(self._admission.elsewhere()))
                body.callback(slow.cancel)

                async def received() -> Message:
                    message = await receive()
                    if not message.get("more_body", False):  # it is all there, or nobody waits for it any more
                        body.close()
                    return message

                await self._app(scope, received, send)
        finally:
            self._admission.leave()

    def _refusal(self, scope: Scope) -> JSONResponse:
        protocol = route_of(scope).startswith("/v2")
        if protocol in self._refusals:
            metrics.REFUSALS.add(1, status="503")
        else:
            self._refusals[protocol] = problem_response(surplus().problem, self._retry_after_s, Request(scope))
        return self._refusals[protocol]


def is_ranking(path: str) -> bool:
    """Whether a route ranks, which is what takes long."""
    return path.startswith("/v1/rank") or (path.startswith("/v2/models/") and path.endswith("/infer"))
