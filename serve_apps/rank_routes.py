"""POST /v1/rank and /v1/rank:batch: requests checked against what is serving, asked, and answered.

Answers are plain dictionaries in the shape of serve_apps.schemas, which the OpenAPI page is made of: a model for each of a thousand candidates would take
longer than ranking them. A test holds both against each other.
"""

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Body, Response
from pydantic_core import to_json

from longtail.explanation import Attended, ItemExplanation
from longtail.questions import ItemBasis, Question, Ranking, UnanswerableError
from serve_apps.problems import PROBLEM_MEDIA_TYPE, Problem, RequestProblemError, internal
from serve_apps.schemas import (
    AttendedOut,
    BatchRequest,
    BatchResponse,
    ExplanationOut,
    GroupStepOut,
    RankRequest,
    RankResponse,
)
from serve_apps.service_info import GetInfo, ServiceInfo

logger = logging.getLogger(__name__)

FEW = 4
KNOWN = ("catalogue", "added")  # bases of items that the run knows, or was told of

T = TypeVar("T")
Answer = Callable[[Question], Awaitable[Ranking]]

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text, "content": {PROBLEM_MEDIA_TYPE: {}}}
    for status, text in [
        (404, "no such ranker"),
        (413, "a body over serve.max_body_mb"),
        (422, "the request breaks a rule"),
        (503, "too many requests at once; Retry-After says when to come back"),
    ]
}


def rank_routes(info: GetInfo, answer: Answer) -> APIRouter:
    """The routes over one run's rankers."""
    routes = APIRouter(tags=["ranking"])
    examples = request_examples(info())

    async def ranked(request: RankRequest) -> dict[str, Any]:
        started = time.perf_counter()
        now = info()
        question = checked_question(request, now)
        return rank_response(request.user_id, question, await answered(question, answer), now.run, time.perf_counter() - started)

    async def settled(request: RankRequest) -> dict[str, Any]:
        try:
            return {"status": 200, "answer": await ranked(request)}
        except RequestProblemError as error:
            return {"status": error.problem.status, "problem": error.problem}
        except Exception as error:
            logger.error("a request of a batch failed", exc_info=error)
            return {"status": 500, "problem": internal(error)}

    @routes.post("/v1/rank", response_model=RankResponse, responses=PROBLEMS, summary="Rank candidates for a user")
    async def rank(request: RankRequest = Body(openapi_examples=examples)) -> Response:  # noqa: B008  FastAPI's way to declare a body
        return as_json(await ranked(request))

    @routes.post("/v1/rank:batch", response_model=BatchResponse, responses=PROBLEMS, summary="Several requests, each answered alone")
    async def rank_batch(batch: BatchRequest) -> Response:
        most = info().max_batch
        if len(batch.requests) > most:
            detail = f"{len(batch.requests)} requests, and at most {most} are taken at once."
            raise RequestProblemError(422, "too-many-requests-in-one", "Too many requests in one", detail, "Send several batches, or raise serve.max_batch.")
        return as_json({"answers": await a_few_at_a_time([partial(settled, request) for request in batch.requests])})

    return routes


async def a_few_at_a_time(work: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """All results, in order; FEW are under way, so that a batch has no more than that in line before others' requests."""
    room = asyncio.Semaphore(FEW)

    async def one(part: Callable[[], Awaitable[T]]) -> T:
        async with room:
            return await part()

    return await asyncio.gather(*map(one, work))


def as_json(answer: dict[str, Any]) -> Response:
    """The answer as it stands; FastAPI would check it again field by field."""
    return Response(to_json(answer), media_type="application/json")


async def answered(question: Question, answer: Answer) -> Ranking:
    """The answer.

    Raises:
        RequestProblemError: no release could answer this question.
    """
    try:
        return await answer(question)
    except UnanswerableError as error:
        raise RequestProblemError(422, "unanswerable", "The request cannot be answered", str(error), "GET /v1/models tells what is serving.") from error


def rank_response(user_id: str, question: Question, ranking: Ranking, run: str, seconds: float) -> dict[str, Any]:
    """The answer in the shape of RankResponse; what nobody asked for is left out."""
    user: dict[str, Any] = {"user_id": user_id, "known": ranking.user_known, "group": ranking.group, "group_basis": ranking.group_basis}
    if question.explain:
        user["group_path"] = [GroupStepOut(prefix=list(step.prefix), size=step.size, lends=step.lends) for step in ranking.group_path]
    return {
        "ranker": question.ranker,
        "version": ranking.version,
        "release": ranking.release,
        "run": run,
        "now": ranking.now,
        "user": user,
        "heads": ranking.heads,
        "items": [_item(ranking.heads, *item) for item in ranking.items],
        "seconds": round(seconds, 6),
    }


def _item(heads: tuple[str, ...], item_id: str, scores: tuple[float, ...], basis: ItemBasis, explanation: ItemExplanation | None) -> dict[str, Any]:
    """One candidate in the shape of ItemOut."""
    told = {"item_id": item_id, "score": scores[0], "scores": dict(zip(heads, scores)), "known": basis in KNOWN, "basis": basis}
    return told if explanation is None else {**told, "explanation": _explanation(explanation, heads)}


def _explanation(found: ItemExplanation, heads: tuple[str, ...]) -> ExplanationOut:
    def by_head(logits: tuple[float, ...] | None) -> dict[str, float] | None:
        return None if logits is None else dict(zip(heads, logits, strict=True))

    def attended(one: Attended) -> AttendedOut:
        return AttendedOut(item_id=one.item_id, weight=one.weight, days=one.days)

    return ExplanationOut(
        logits=dict(zip(heads, found.logits, strict=True)),
        individual=by_head(found.individual),
        group=by_head(found.group),
        alpha_fusion=found.alpha_fusion,
        attended={name: [attended(one) for one in most] for name, most in found.attended.items()},
    )


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
    if request.release is not None and request.release not in {model.release for model in info.models}:
        there = sorted({model.release for model in info.models})
        raise RequestProblemError(404, "unknown-release", "No such release", f"release {request.release!r} is not loaded.", f"Loaded are {there}.")
    if request.now is not None and request.now < info.knowledge.since:
        detail = f"now = {request.now.isoformat()}, and the published features know what came until {info.knowledge.since.isoformat()}."
        raise RequestProblemError(422, "too-early", "The time is too early", detail, "Ask for that time or a later one.")
    check_attributes(request.user.attributes if request.user is not None else {}, info)
    return request.question(name)


def check_attributes(attributes: Mapping[str, str | bool | float | None], info: ServiceInfo) -> None:
    """Attributes are those of the run's users.

    Raises:
        RequestProblemError: one is not, or is no number where one is needed.
    """
    known = info.knowledge.attributes
    strange = sorted(set(attributes) - set(known))
    if strange:
        detail = f"user.attributes has {strange}, which this run's users do not have."
        raise RequestProblemError(422, "unknown-attribute", "No such user attribute", detail, f"Its attributes are {sorted(known)}; leave out the rest.")
    for attribute, value in attributes.items():
        if known[attribute] is None and not _is_number(value):
            detail = f"user.attributes.{attribute} = {value!r} is not a number."
            raise RequestProblemError(422, "not-a-number", "A number is needed", detail, "Send a number, or leave the attribute out where it is not known.")


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


def _is_number(value: str | bool | float | None) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"-?\d{1,15}(\.\d*)?([eE][-+]?\d{1,2})?", value, re.ASCII) is not None
    return value is None or math.isfinite(value)
