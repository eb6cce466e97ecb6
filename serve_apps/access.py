"""Access: who may look at the console and who may act through it; one token, told by LONGTAIL_TOKEN or made when the application is built.

Looking needs no token where the application listens on this machine alone. Acting always does, as the header `Authorization: Bearer <token>`, which no other
site's page can make a browser send.
"""

import hashlib
import hmac
import ipaddress
import os
import secrets
from dataclasses import dataclass, field

from fastapi import Request
from starlette.requests import HTTPConnection

from serve_apps.problems import RequestProblemError

TOKEN_VARIABLE = "LONGTAIL_TOKEN"
VIEWING_COOKIE = "longtail_viewing"
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="longtail"'}
_REMEDY = f"Send Authorization: Bearer <token>. The token is what {TOKEN_VARIABLE} was set to, or the line `token` that python -m serve_apps.up printed."


@dataclass(frozen=True)
class Access:
    """The token, and whether looking needs it; without a token nobody acts."""

    token: str | None = field(repr=False)
    viewing_needs_token: bool

    @staticmethod
    def of(host: str, token: str | None = None) -> "Access":
        """For an application that listens on `host`; the token is the environment's where none is given."""
        return Access(token or os.environ.get(TOKEN_VARIABLE) or None, not is_loopback(host))

    @staticmethod
    def generated(host: str) -> "Access":
        """The same, with a token made here where the environment has none."""
        return Access.of(host, os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24))

    def text(self) -> str:
        """The same for the same, and without the token."""
        token = "" if self.token is None else hashlib.sha256(self.token.encode()).hexdigest()
        return f"{token} {self.viewing_needs_token}"

    def require(self, request: Request) -> None:
        """Refuse a request that does not bring the token; a FastAPI dependency.

        Raises:
            RequestProblemError: 401.
        """
        if not self.holds(request):
            raise refusal("acting needs the token")

    def require_elsewhere(self, request: Request) -> None:
        """Refuse a request that does not bring the token, unless looking is free for it; for what is told of items, users and events.

        Raises:
            RequestProblemError: 401.
        """
        if not (self.holds(request) or self._free(request)):
            raise refusal("telling the application from elsewhere needs the token")

    def may_view(self, request: HTTPConnection) -> bool:
        """True where looking is free, or the request brings the token or the cookie that stands for it.

        Free looking asks for a local name in Host, too: a site that lets its own name point to 127.0.0.1 is another site all the same.
        """
        if self._free(request):
            return True
        cookie = request.cookies.get(VIEWING_COOKIE, "")
        return self.holds(request) or (self.token is not None and _equal(cookie, self.viewing_pass))

    def _free(self, request: HTTPConnection) -> bool:
        return not self.viewing_needs_token and is_loopback(_host_name(request))

    def holds(self, request: HTTPConnection) -> bool:
        """True where the request brings the token."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return self.token is not None and scheme.lower() == "bearer" and _equal(given.strip(), self.token)

    @property
    def viewing_pass(self) -> str:
        """What a browser keeps as a cookie: good for looking, and not the token."""
        return hmac.new((self.token or "").encode(), b"viewing", hashlib.sha256).hexdigest()


def refusal(what: str) -> RequestProblemError:
    """The problem of a request without the token."""
    return RequestProblemError(401, "token-needed", "A token is needed", f"{what}, and the request does not bring it.", _REMEDY, headers=_CHALLENGE)


def is_loopback(host: str) -> bool:
    """True for names and addresses of this machine alone."""
    host = host.lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(request: HTTPConnection) -> str:
    """The Host header without its port and an IPv6 address's brackets."""
    host = request.headers.get("host", "")
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
