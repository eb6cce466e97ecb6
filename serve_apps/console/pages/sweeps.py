"""Sweeps: searches as they run and as they ended, the jobs of the cluster, a form that starts both. The pages draw what sweeps/api tells, every two seconds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Request, Response

from longtail.sweep_watch import SweepWatch
from serve_apps.console.context import Console
from serve_apps.console.job_order import JobOrder
from serve_apps.console.jobs import Jobs, NoDashboardError, NotThereError, RunsAlreadyError, connect, room
from serve_apps.console.sweeps import PAGES, Sweeps
from serve_apps.problems import RequestProblemError

REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"  # it has its styles in itself, and no script


def routes(console: Console) -> APIRouter:
    """The list, a sweep, their JSON, and what is started, stopped and promoted; acting takes the token (serve_apps.access)."""
    return sweep_routes(console, Sweeps(console.store, SweepWatch(console.store), Jobs(os.getcwd(), connect), room, console.dashboard))


def sweep_routes(console: Console, sweeps: Sweeps) -> APIRouter:
    """The same over a given side of the server."""
    router = APIRouter(prefix="/sweeps")

    @router.get("/api/sweeps")
    def all_sweeps() -> dict[str, Any]:
        with refusals():
            return sweeps.all()

    @router.get("/api/sweeps/{key}")
    def one(key: str) -> dict[str, Any]:
        with refusals():
            return sweeps.one(key)

    @router.get("/api/jobs/{job}/log")
    def log(job: str) -> dict[str, Any]:
        with refusals():
            return sweeps.log(job)

    @router.post("/api/jobs:check")
    def check(order: JobOrder) -> dict[str, Any]:
        with refusals():
            return sweeps.check(order)

    @router.post("/api/jobs", status_code=202)
    def start(order: JobOrder) -> dict[str, Any]:
        with refusals():
            return sweeps.start(order)

    @router.post("/api/jobs/{job}/stop", status_code=202)
    def stop(job: str) -> dict[str, Any]:
        with refusals():
            return sweeps.stop(job)

    @router.post("/api/sweeps/{key}/promote", status_code=202)
    def promote(key: str) -> dict[str, Any]:
        with refusals():
            return sweeps.promote(key)

    _add_pages(router, console, sweeps)  # last: its /{key}/{page} would take what begins with /api
    return router


def _add_pages(router: APIRouter, console: Console, sweeps: Sweeps) -> None:
    @router.get("")
    def listed(request: Request) -> Response:
        return console.page(request, "sweeps.html", form=sweeps.form())

    @router.get("/{key}")
    def shown(request: Request, key: str) -> Response:
        with refusals():
            sweeps.one(key)
        return console.page(request, "sweep.html", key=key)

    @router.get("/{key}/{page}")
    def page(key: str, page: str) -> Response:
        with refusals():
            content, media = sweeps.page(key, page)
        headers = {"Content-Security-Policy": REPORT_POLICY}
        if page == "best":
            headers["Content-Disposition"] = f'attachment; filename="best-{key[:8]}.toml"'
        return Response(content, media_type=f"{media}; charset=utf-8", headers=headers)


@contextmanager
def refusals() -> Iterator[None]:
    """What a handler refuses, as a problem.

    Raises:
        RequestProblemError: 404, 409, 422 or 503.
    """
    try:
        yield
    except NotThereError as error:
        remedy = f"The list has every sweep of the store and every job of the cluster; of a sweep there are {', '.join(PAGES)} when it is finished."
        raise RequestProblemError(404, "no-such-sweep", "There is no such sweep or job", f"{error.args[0]!r} is not there.", remedy) from error
    except RunsAlreadyError as error:
        raise RequestProblemError(409, "runs-already", "It runs already", str(error), "Stop it first, or change a setting.") from error
    except NoDashboardError as error:
        remedy = "python -m serve_apps.up starts Ray with it; elsewhere look at the cluster's head."
        raise RequestProblemError(503, "no-dashboard", "No jobs can be started", str(error), remedy, retry_after_s=2) from error
    except ValueError as error:
        remedy = "Mend the setting that it names, and send the form again."
        raise RequestProblemError(422, "refused-order", "The command would refuse this", str(error), remedy) from error
