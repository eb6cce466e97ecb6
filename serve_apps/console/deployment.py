"""The console's replica: pages over the run's artifacts, asked by the rankers' door through a handle. It imports no pipeline, so that it starts fast."""

from collections.abc import Sequence
from typing import Any

from longtail.newcomers import Placed
from longtail.questions import StatedItem
from serve_apps.access import Access
from serve_apps.console.app import make_console
from serve_apps.console.bridge import Answered, Asked, call
from serve_apps.console.context import Console as Pages
from serve_apps.console.nav import PAGES
from serve_apps.console.templating import Templates
from serve_apps.served_run import Served


class Console:
    """Every page of the console."""

    def __init__(self, served: Served, access: Access, encoder: Any, dashboard: str | None) -> None:
        async def place_items(items: Sequence[StatedItem]) -> Placed:
            placed: Placed = await encoder.place.remote(served.release, items)
            return placed

        run = served.open()
        self._app = make_console(Pages(run.config, run.store, run.artifacts, access, Templates(PAGES), place_items, dashboard))

    async def respond(self, asked: Asked) -> Answered:
        """The answer to one HTTP request."""
        return await call(self._app, asked)
