"""The console's web application: pages, static files, who may see them, and how it says no."""

import logging
import threading
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serve_apps.access import VIEWING_COOKIE, refusal
from serve_apps.console.context import Console, NothingToShowError
from serve_apps.console.nav import PAGES
from serve_apps.problems import RequestProblemError, internal, invalid_request, problem_response

logger = logging.getLogger(__name__)

#: The two style elements that plotly.js puts into a page, by their digests: an empty one, which it fills by script, and one of maplibre's that no map needs.
PLOTLY_STYLES = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=' 'sha256-ji27qzEtxXZW+7dun6UwjHXJ18e6WAin1VvNtkzIE/o='"
#: No script and no style but the console's own files. Style attributes are let through: plotly.js positions its drawings with them.
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        f"style-src 'self' {PLOTLY_STYLES}",
        "style-src-attr 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
SEEING = ("GET", "HEAD")
FREE = "/static/"

Next = Callable[[Request], Awaitable[Response]]


def make_console(console: Console) -> FastAPI:
    """The console's application."""
    threading.Thread(target=_warm, args=(console,), name="console-warm", daemon=True).start()
    app = FastAPI(title="Longtail console", docs_url=None, redoc_url=None, openapi_url=None)
    _add_refusals(app, console)
    app.middleware("http")(_gate(console))
    app.include_router(console.templates.static.routes())
    for page in PAGES:
        app.include_router(page.routes(console))

    @app.post("/session")
    def session(request: Request) -> Response:
        """Let a browser that brought the token look around: a cookie that is good for looking and for nothing else."""
        response = Response(status_code=204)
        path = request.scope.get("root_path", "") or "/"
        response.set_cookie(VIEWING_COOKIE, console.access.viewing_pass, path=path, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return response

    return app


def _warm(console: Console) -> None:
    """Read what first visits would wait for."""
    try:
        for page in PAGES:
            page.warm(console)
    except Exception:  # a page that cannot be made says so itself, when somebody asks for it
        logger.info("the console could not be warmed", exc_info=True)


def _gate(console: Console) -> Callable[[Request, Next], Awaitable[Response]]:
    """Looking for who may look, acting for who brings the token; and the headers of every answer."""

    async def gate(request: Request, answer: Next) -> Response:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if request.method not in SEEING and not console.access.holds(request):
            response: Response = _refuse(console, request, refusal("acting through the console needs the token"))
        elif request.method in SEEING and not path.startswith(FREE) and not console.access.may_view(request):
            response = _refuse(console, request, refusal("looking at this console needs the token"))
        else:
            response = await answer(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    return gate


def _add_refusals(app: FastAPI, console: Console) -> None:
    """Every failure as a page for who reads HTML, as a problem for who does not."""

    @app.exception_handler(NothingToShowError)
    async def nothing(request: Request, error: NothingToShowError) -> Response:
        if _reads_html(request):
            return console.page(request, "nothing.html", title=error.title, detail=error.detail, command=error.command)
        return _refuse(console, request, RequestProblemError(404, "nothing-to-show", error.title, error.detail, error.command or "Look at another run."))

    @app.exception_handler(RequestProblemError)
    async def refused(request: Request, error: RequestProblemError) -> Response:
        return _refuse(console, request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problem = invalid_request(error)
        return _refuse(console, request, RequestProblemError(problem.status, "invalid-request", problem.title, "; ".join(problem.errors), problem.remedy))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        remedy = "The navigation leads to every page that there is."
        return _refuse(console, request, RequestProblemError(error.status_code, "no-page", str(error.detail), f"{request.method} {request.url.path}", remedy))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        problem = internal(error)
        response = _refuse(console, request, RequestProblemError(problem.status, "internal", problem.title, problem.detail, problem.remedy))
        response.headers.update(HEADERS)  # this handler stands outside of the gate
        return response


def _refuse(console: Console, request: Request, error: RequestProblemError) -> Response:
    """The problem, as a page where one is read."""
    if _reads_html(request):
        template = "token.html" if error.problem.status == 401 else "problem.html"
        response: Response = console.page(request, template, error.problem.status, problem=error.problem)
    else:
        response = problem_response(error.problem, error.retry_after_s, request)
    response.headers.update(error.headers)
    return response


def _reads_html(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")
