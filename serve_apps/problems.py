"""Problem details (RFC 9457): how the application says no, and the handlers that turn every failure into one."""

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import Scope

from actors import metrics
from serve_apps.body_limit import BodyTooLargeError

logger = logging.getLogger(__name__)

PROBLEM_MEDIA_TYPE = "application/problem+json"
MOST_ERRORS = 20  # that are told: an answer must not be larger than what it refuses


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    type: str = Field(description="a URN that names the kind of problem")
    title: str
    status: int
    detail: str
    remedy: str
    errors: list[str] = Field([], description="one line per refused field")


class RequestProblemError(Exception):
    """A request that cannot be answered, as a problem."""

    def __init__(
        self, status: int, kind: str, title: str, detail: str, remedy: str, retry_after_s: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.problem = Problem(type=f"urn:longtail:problem:{kind}", title=title, status=status, detail=detail, remedy=remedy, errors=[])
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})


def refuse_unready(lacking: list[str]) -> None:
    """Say what does not answer.

    Raises:
        RequestProblemError: something doesn't.
    """
    if lacking:
        remedy = "Send requests elsewhere until GET /readyz says ok."
        raise RequestProblemError(503, "not-ready", "Not ready", f"no answer from {', '.join(lacking)}.", remedy, retry_after_s=1)


def internal(error: Exception) -> Problem:
    """What a fault of ours looks like from outside."""
    return Problem(
        type="urn:longtail:problem:internal",
        title="The application failed on this request",
        status=500,
        detail=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        remedy="The replica's log has the whole story; a request that does so again is a fault to report.",
        errors=[],
    )


def invalid_request(error: RequestValidationError) -> Problem:
    """Fields that break a rule, a line each."""
    found = error.errors()
    lines = [f"{'.'.join(str(part)[:80] for part in e['loc'][1:]) or 'body'}: {e['msg'].removeprefix('Value error, ')[:300]}" for e in found[:MOST_ERRORS]]
    lines += [f"and {len(found) - MOST_ERRORS:,} more"] if len(found) > MOST_ERRORS else []
    return Problem(
        type="urn:longtail:problem:invalid-request",
        title="The request breaks a rule",
        status=422,
        detail=lines[0] if len(found) == 1 else f"{len(found):,} fields are refused.",
        remedy="Mend what `errors` names; /docs has the fields, their limits and examples.",
        errors=lines,
    )


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every failure with a problem."""

    @app.exception_handler(RequestProblemError)
    async def refusal(request: Request, error: RequestProblemError) -> JSONResponse:
        response = problem_response(error.problem, error.retry_after_s, request)
        response.headers.update(error.headers)
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem_response(invalid_request(error), request=request)

    @app.exception_handler(BodyTooLargeError)
    async def too_large(request: Request, error: BodyTooLargeError) -> JSONResponse:
        problem = RequestProblemError(413, "too-large", "The body is too large", str(error.detail), "Split the request, or raise serve.max_body_mb.").problem
        return problem_response(problem, request=request)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        path, remedy = f"{request.method} {request.url.path}", "GET /docs lists the routes."
        problem = Problem(type="about:blank", title=str(error.detail), status=error.status_code, detail=path, remedy=remedy, errors=[])
        response = problem_response(problem, request=request)
        response.headers.update(error.headers or {})  # Allow, where it is the method that is wrong
        return response

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem_response(internal(error), request=request)


def route_of(scope: Scope) -> str:
    """The path of a request below the application's own prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def problem_response(problem: Problem, retry_after_s: int | None = None, request: Request | None = None) -> JSONResponse:
    """The problem over HTTP; under /v2, with the member `error` that clients of the Open Inference Protocol read."""
    metrics.REFUSALS.add(1, status=str(problem.status))
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    told = problem.model_dump()
    if request is not None and route_of(request.scope).startswith("/v2"):
        told["error"] = f"{problem.detail} {problem.remedy}"
    return JSONResponse(told, status_code=problem.status, media_type=PROBLEM_MEDIA_TYPE, headers=headers)
