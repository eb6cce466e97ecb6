"""A limit on the size of requests: what is larger is refused before it is read to its end."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyTooLargeError(HTTPException):
    """A body over the limit; an HTTPException, since FastAPI takes every other error in a body for broken JSON."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(413, f"The body has more than {max_bytes:,} bytes.")


class BodyLimit:
    """Counts a request's bytes as they come, whatever Content-Length says."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise BodyTooLargeError(self._max_bytes)
            return message

        await self._app(scope, counted, send)
