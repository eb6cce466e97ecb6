"""The console's replica: pages over the run's artifacts, asked by the rankers' door through a handle. It imports no pipeline, so that it starts fast."""

from typing import Any

from longtail.ranking import Encoded, Unknowns
from serve_apps.access import Access
from serve_apps.console.app import make_console
from serve_apps.console.bridge import Answered, Asked, call
from serve_apps.served_run import Served


class Console:
    """Every page of the console."""

    def __init__(self, served: Served, access: Access, encoder: Any, dashboard: str | None) -> None:
        async def encode(unknowns: Unknowns) -> Encoded:
            found: Encoded = await encoder.encode.remote(served.release, unknowns)
            return found

        run = served.open()
        self._app = make_console(run.config, run.store, run.artifacts, access, encode, dashboard)

    async def respond(self, asked: Asked) -> Answered:
        """The answer to one HTTP request."""
        return await call(self._app, asked)
