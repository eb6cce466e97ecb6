"""The web application in front of the rankers: routes, validation, problem details, the OpenAPI page. It knows neither Ray nor a model.

It is given what is serving (ServiceInfo) and a function that answers a question; serve_apps.deployments passes a Serve handle's, a test its own.
"""

import logging
import math
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from longtail.ranking import Knowledge, Question, Ranking
from serve_apps.schemas import PROBLEM_MEDIA_TYPE, Health, ItemOut, ModelOut, ModelsResponse, Problem, RankRequest, RankResponse, UserOut

logger = logging.getLogger(__name__)

DESCRIPTION = """Ranks candidates for a user, above all for users who hardly act and items that hardly anyone has met.

The models are those of one finished run and know its logs up to their end; a request may state another time (`now`), never a later state of the logs.
Nobody and nothing unknown is an error: an unknown user gets the group that the request's `user` leads to, or everyone's; an unknown item is ranked by the
content in `items`, or, with nothing but an id, as an item of which nothing is known (`basis`: `none`)."""


@dataclass(frozen=True)
class ModelInfo:
    """One ranker's checkpoint."""

    name: str
    version: str
    trained: str
    commit: str


@dataclass(frozen=True)
class ServiceInfo:
    """What is serving."""

    run: str
    source: str
    exposure: str
    knowledge: Knowledge
    models: tuple[ModelInfo, ...]
    default_ranker: str
    max_items: int


class RequestProblemError(Exception):
    """A request that cannot be answered, as a problem."""

    def __init__(self, status: int, kind: str, title: str, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.problem = Problem(type=f"urn:longtail:problem:{kind}", title=title, status=status, detail=detail, remedy=remedy, errors=[])


def web_app(info: ServiceInfo, answer: Callable[[Question], Awaitable[Ranking]], root_path: str = "") -> FastAPI:
    """The FastAPI application over one run's rankers."""
    # FastAPI's own /docs takes Swagger UI from a CDN and is blank where that cannot be reached; this one brings it along.
    app = FastAPIOffline(title="Longtail", version=version("longtail"), description=DESCRIPTION, root_path=root_path)
    _add_problem_handlers(app)
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": text, "content": {PROBLEM_MEDIA_TYPE: {}}}
        for status, text in [(404, "no such ranker"), (422, "the request breaks a rule")]
    }
    examples = request_examples(info)

    @app.post("/v1/rank", responses=problems, summary="Rank candidates for a user", tags=["ranking"])
    async def rank(request: RankRequest = Body(openapi_examples=examples)) -> RankResponse:  # noqa: B008  FastAPI's way to declare a body
        started = time.perf_counter()
        question = checked_question(request, info)
        ranking = await answer(question)
        checkpoint = next(model.version for model in info.models if model.name == question.ranker)
        return RankResponse(
            ranker=question.ranker,
            version=checkpoint,
            run=info.run,
            now=ranking.now,
            user=UserOut(user_id=request.user_id, known=ranking.user_known, group=list(ranking.group), group_basis=ranking.group_basis),
            heads=list(ranking.heads),
            items=[
                ItemOut(
                    item_id=item.item_id,
                    score=item.scores[0],
                    scores=dict(zip(ranking.heads, item.scores, strict=True)),
                    known=item.basis == "catalogue",
                    basis=item.basis,
                )
                for item in ranking.items
            ],
            seconds=round(time.perf_counter() - started, 6),
        )

    @app.get("/v1/models", summary="What is serving, and what it knows", tags=["ranking"])
    async def models() -> ModelsResponse:
        knowledge = info.knowledge
        return ModelsResponse(
            run=info.run,
            source=info.source,
            exposure=info.exposure,
            now=knowledge.now,
            num_users=knowledge.num_users,
            num_items=knowledge.num_items,
            attributes={name: None if values is None else list(values) for name, values in knowledge.attributes.items()},
            max_items=info.max_items,
            models=[
                ModelOut(
                    name=model.name,
                    version=model.version,
                    heads=list(knowledge.heads[model.name]),
                    default=model.name == info.default_ranker,
                    trained=model.trained,
                    commit=model.commit,
                )
                for model in info.models
            ],
        )

    @app.get("/healthz", summary="Is the application up", tags=["operation"])
    async def healthz() -> Health:
        return Health(status="ok", run=info.run, rankers=[model.name for model in info.models])

    @app.get("/", include_in_schema=False)
    async def root(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{request.scope.get('root_path', '').rstrip('/')}/docs")

    return app


def checked_question(request: RankRequest, info: ServiceInfo) -> Question:
    """The request as a question.

    Raises:
        RequestProblemError: no such ranker, head or attribute, too many candidates, or a value that is no number where one is needed.
    """
    name = request.ranker or info.default_ranker
    heads = info.knowledge.heads.get(name)
    if heads is None:
        raise RequestProblemError(404, "unknown-ranker", "No such ranker", f"ranker {name!r} is not serving.", f"Choose one of {sorted(info.knowledge.heads)}.")
    if len(request.ids) > info.max_items:
        detail = f"{len(request.ids)} candidates, and at most {info.max_items} are taken in one request."
        raise RequestProblemError(422, "too-many-items", "Too many candidates", detail, "Split the list over several requests, or raise serve.max_items.")
    lacking = [head for head in request.heads or () if head not in heads]
    if lacking:
        raise RequestProblemError(422, "unknown-head", "No such head", f"ranker {name!r} has no head {lacking}.", f"Its heads are {list(heads)}.")
    attributes = request.user.attributes if request.user is not None else {}
    known = info.knowledge.attributes
    strange = sorted(set(attributes) - set(known))
    if strange:
        detail = f"user.attributes has {strange}, which this run's users do not have."
        raise RequestProblemError(422, "unknown-attribute", "No such user attribute", detail, f"Its attributes are {sorted(known)}; leave out the rest.")
    for attribute, value in attributes.items():
        if known[attribute] is None and not _is_number(value):
            detail = f"user.attributes.{attribute} = {value!r} is not a number."
            raise RequestProblemError(422, "not-a-number", "A number is needed", detail, "Send a number, or leave the attribute out where it is not known.")
    return request.question(name)


def request_examples(info: ServiceInfo) -> dict[str, Any]:
    """Requests that can be sent as they stand, made of ids that the run has."""
    knowledge = info.knowledge
    user, items = (list(knowledge.user_ids) or ["a user"])[0], list(knowledge.item_ids)
    attributes = {name: values[0] for name, values in knowledge.attributes.items() if values}
    content: dict[str, Any] = {"item_id": "an item that came today", "title": "Organic oat drink, barista", "category": [], "brand": None, "price": 2.49}
    return {
        "known": {"summary": "a known user, known items", "value": {"user_id": user, "item_ids": items, "ranker": info.default_ranker}},
        "user": {
            "summary": "a user who came today, with attributes",
            "value": {"user_id": "somebody who came today", "item_ids": items, "user": {"attributes": attributes}},
        },
        "item": {"summary": "an item that came today", "value": {"user_id": user, "items": [content, *({"item_id": item} for item in items[:3])]}},
    }


def _add_problem_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestProblemError)
    async def refusal(request: Request, error: RequestProblemError) -> JSONResponse:
        return _problem(error.problem)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        lines = [f"{'.'.join(str(part) for part in e['loc'][1:]) or 'body'}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        return _problem(
            Problem(
                type="urn:longtail:problem:invalid-request",
                title="The request breaks a rule",
                status=422,
                detail=lines[0] if len(lines) == 1 else f"{len(lines)} fields are refused.",
                remedy="Mend what `errors` names; /docs has the fields, their limits and examples.",
                errors=lines,
            )
        )

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        path, remedy = f"{request.method} {request.url.path}", "The routes are POST /v1/rank, GET /v1/models, GET /healthz and GET /docs."
        return _problem(Problem(type="about:blank", title=str(error.detail), status=error.status_code, detail=path, remedy=remedy, errors=[]))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _problem(
            Problem(
                type="urn:longtail:problem:internal",
                title="The application failed on this request",
                status=500,
                detail=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                remedy="The replica's log has the whole story; a request that does so again is a fault to report.",
                errors=[],
            )
        )


def _problem(problem: Problem) -> JSONResponse:
    return JSONResponse(problem.model_dump(), status_code=problem.status, media_type=PROBLEM_MEDIA_TYPE)


def _is_number(value: str | bool | float | None) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"-?\d{1,15}(\.\d*)?([eE][-+]?\d{1,2})?", value, re.ASCII) is not None
    return value is None or math.isfinite(value)
