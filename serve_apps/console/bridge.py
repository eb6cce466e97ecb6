"""The bridge between the application's door and the console: one request as plain values, asked of another process and answered likewise.

The rankers' web application mounts `Bridge`, which hands a request to a function (a Serve handle's method, or a test's own); at the other end `call` puts the
request to the console's ASGI application. So no page is made in a ranker's event loop.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]

_OF_ONE_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer"}


@dataclass(frozen=True)
class Asked:
    """An HTTP request in full."""

    method: str
    scheme: str
    path: str  # whole, with root_path in front
    root_path: str
    query: bytes
    headers: Headers
    body: bytes


@dataclass(frozen=True)
class Answered:
    """An HTTP answer in full."""

    status: int
    headers: Headers
    body: bytes


Respond = Callable[[Asked], Awaitable[Answered]]


class Bridge:
    """An ASGI application that has every request answered by `respond`."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no page of the console opens a web socket
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            return
        body = await Request(scope, receive).body()
        headers = [(name, value) for name, value in scope["headers"] if name not in _OF_ONE_HOP]
        asked = Asked(scope["method"], scope.get("scheme", "http"), scope["path"], scope.get("root_path", ""), scope["query_string"], headers, body)
        answered = await self._respond(asked)
        response = Response(answered.body, answered.status)
        response.raw_headers = answered.headers
        await response(scope, receive, send)


async def call(app: ASGIApp, asked: Asked) -> Answered:
    """What `app` answers; an error that it lets out is raised after its answer of 500, as Starlette does, and is left to its log here."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": asked.scheme,
        "path": asked.path,
        "raw_path": asked.path.encode(),
        "root_path": asked.root_path,
        "query_string": asked.query,
        "headers": asked.headers,
        "client": None,
        "server": None,
    }
    unread, parts = [asked.body], []
    status, headers = 500, list[tuple[bytes, bytes]]()

    async def receive() -> Message:
        return {"type": "http.request", "body": unread.pop()} if unread else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], [(bytes(name), bytes(value)) for name, value in message["headers"]]
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    try:
        await app(scope, receive, send)
    except Exception:
        if not parts:
            raise
    return Answered(status, headers, b"".join(parts))
