"""GET /v1/releases, GET and POST /v1/rollout: which releases there are, which one answers whom, and what is seen of each."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends

from longtail.rollouts import RolloutChange
from serve_apps.problems import RequestProblemError
from serve_apps.rank_routes import PROBLEMS
from serve_apps.teller import Teller, UnknownReleaseError


def rollout_routes(teller: Teller, require: Callable[..., Any]) -> APIRouter:
    """The routes; `require` lets nobody change a rollout without the token."""
    routes = APIRouter(tags=["rollouts"])

    @routes.get("/v1/releases", summary="What is published in the store of the application's run")
    async def releases() -> dict[str, Any]:
        return {"releases": await teller.releases()}

    @routes.get("/v1/rollout", summary="Which release answers whom, and what is seen of each")
    async def rollout() -> dict[str, Any]:
        return await teller.rollout()

    @routes.post("/v1/rollout", responses=PROBLEMS, dependencies=[Depends(require)], summary="Canary, shadow, promotion, roll-back")
    async def change(body: RolloutChange) -> dict[str, Any]:
        try:
            changed = await teller.change_rollout(body)
        except UnknownReleaseError as error:
            raise RequestProblemError(422, "unknown-release", "The release cannot be served", str(error), "GET /v1/releases lists what can.") from error
        if "refused" in changed:
            raise RequestProblemError(409, "rollout", "The rollout cannot change so", changed["refused"], "GET /v1/rollout tells how it stands.")
        return changed

    return routes
