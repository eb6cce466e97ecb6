"""Rollouts: which release answers whom, what is seen of each, and the buttons that change it. The page draws what GET /v1/rollout and /v1/releases tell."""

from fastapi import APIRouter, Request, Response

from longtail.rollouts import SCORE_EDGES
from serve_apps.console.context import Console


def routes(console: Console) -> APIRouter:
    """GET /rollouts."""
    router = APIRouter()

    @router.get("/rollouts")
    def rollouts(request: Request) -> Response:
        return console.page(request, "rollouts.html", edges=SCORE_EDGES.tolist())

    return router
