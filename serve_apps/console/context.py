"""What every page of the console is given: the run's artifacts, the store that they lie in, who may do what, and the templates.

A page is a module in serve_apps.console.pages with `routes(console) -> APIRouter`, a template, and an entry in serve_apps.console.nav. Its handlers are plain
`def`s, which FastAPI runs in threads, so that reading never holds up the event loop.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from fastapi import Request
from fastapi.responses import HTMLResponse

from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.lineage import upstream
from longtail.ranking import Encoded, Unknowns
from serve_apps.access import Access
from serve_apps.console.templating import Templates

BUILD_ALL = "python -m pipelines.full --config …"
Encode = Callable[[Unknowns], Awaitable[Encoded]]


class NothingToShowError(Exception):
    """A page has nothing to show yet, and says what makes it."""

    def __init__(self, title: str, detail: str, command: str | None = None) -> None:
        super().__init__(detail)
        self.title, self.detail, self.command = title, detail, command


@dataclass(frozen=True)
class Console:
    """The console over one served run."""

    config: Config
    store: Store
    served: tuple[Artifact, ...]  # what serving reads
    access: Access
    templates: Templates
    encode: Encode | None = None  # of the run's text encoder; None where it is not there
    dashboard: str | None = None  # Ray's, where it is up

    @cached_property
    def artifacts(self) -> Mapping[str, Artifact]:
        """By stage, what is served and everything that it was made from."""
        return {artifact.stage: artifact for artifact in upstream(self.store, self.served)}

    def artifact(self, stage: str, what: str) -> Artifact:
        """The run's artifact of a stage.

        Raises:
            NothingToShowError: the run has none; `what` the page would show of it.
        """
        found = self.artifacts.get(stage)
        if found is None:
            raise NothingToShowError(
                f"No {what} yet", f"They come from stage {stage!r}, which this run has not finished.", "python -m pipelines.full --config …"
            )
        return found

    def page(self, request: Request, template: str, status_code: int = 200, **values: object) -> HTMLResponse:
        """A page of the console."""
        return HTMLResponse(self.templates.render(request, template, run=self.config.run.name, **values), status_code)
