"""What every page of the console is given: the run's artifacts, the store that they lie in, who may do what, and the templates.

A page is a module in serve_apps.console.pages with `routes(console) -> APIRouter`, a template, and an entry in serve_apps.console.nav. Its handlers are plain
`def`s, which FastAPI runs in threads, so that reading never holds up the event loop. What several pages read is kept here for as long as the run is served.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fastapi import Request
from fastapi.responses import HTMLResponse

from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.evaluation import Metrics
from longtail.group_tree import GroupNode, Members, Prefix
from longtail.lent_view import GroupTable, load_group_table
from longtail.lineage import made_from, stored, upstream
from longtail.logs import LogsInfo
from longtail.newcomers import Placed
from longtail.packaged_models import cache_dir
from longtail.questions import StatedItem
from longtail.run_state import logs_info
from longtail.table_rows import by_key, has_table
from longtail.user_activity import UserActivity, user_activity
from serve_apps.access import Access
from serve_apps.console.templating import Templates

BUILD_ALL = "python -m pipelines.full --config …"
LISTED_S = 15.0  # how long a listing of the store's evaluations stands

PlaceItems = Callable[[Sequence[StatedItem]], Awaitable[Placed]]


class NothingToShowError(Exception):
    """A page has nothing to show yet, and says what makes it."""

    def __init__(self, title: str, detail: str, command: str | None = None) -> None:
        super().__init__(detail)
        self.title, self.detail, self.command = title, detail, command


@dataclass
class _Listing:
    read: float = float("-inf")
    evaluations: tuple[Artifact, ...] = ()


@dataclass(frozen=True)
class Console:
    """The console over one served run."""

    config: Config
    store: Store
    served: tuple[Artifact, ...]  # what serving reads
    access: Access
    templates: Templates
    place_items: PlaceItems | None = None  # asks the run's encoders; None where they are not there
    dashboard: str | None = None  # Ray's, where it is up
    scratch: Path = field(default_factory=lambda: cache_dir() / "console")  # files of this machine that can be made again
    _listing: _Listing = field(default_factory=_Listing)

    @cached_property
    def artifacts(self) -> Mapping[str, Artifact]:
        """By stage, what is served and everything that it was made from."""
        return {artifact.stage: artifact for artifact in upstream(self.store, self.served)}

    def artifact(self, stage: str, table: str, what: str) -> Artifact:
        """The run's artifact of a stage, which has the table.

        Raises:
            NothingToShowError: it has not; `what` the page would show of it.
        """
        found = self.artifacts.get(stage)
        if found is None or not has_table(found, table):
            raise NothingToShowError(f"No {what} yet", f"They come from stage {stage!r}, which has not made them for this run.", BUILD_ALL)
        return found

    @property
    def logs(self) -> Artifact:
        return self.artifacts["logs"]

    @cached_property
    def info(self) -> LogsInfo:
        return logs_info(self.logs)

    def evaluations(self) -> tuple[Artifact, ...]:
        """Every evaluation in the store, the latest first."""
        listing = self._listing
        if time.monotonic() - listing.read > LISTED_S:
            listing.evaluations, listing.read = tuple(stored(self.store, "evaluation")), time.monotonic()
        return listing.evaluations

    def evaluation(self) -> Artifact | None:
        """The latest evaluation of the served rankers."""
        rankers = [self.artifacts[name] for name in self.config.train.rankers if name in self.artifacts]
        return next((artifact for artifact in self.evaluations() if made_from(artifact, rankers)), None)

    @cached_property
    def activity(self) -> UserActivity:
        """Who is how active, and who hardly."""
        evaluation = self.evaluation()
        metrics = None if evaluation is None else Metrics.model_validate(evaluation.read_json("metrics.json"))
        return user_activity(self.logs, self.config.evaluate.low_activity_frac, metrics)

    @cached_property
    def members(self) -> Members:
        """Who is in which group."""
        return Members.of(self.artifact("user_codes", "codes", "groups").read("codes"))

    @cached_property
    def group_tree(self) -> dict[Prefix, GroupNode]:
        """Every group that has a member, with how many of them hardly act."""
        return self.members.tree(self.activity.of(self.members.user_ids)[0], self.activity.low_max)

    @cached_property
    def groups(self) -> GroupTable:
        """What each group lends."""
        groups = self.artifact("groups", "groups", "groups")
        return load_group_table(self.logs, groups, self.config.samples.numeric_bins, self.config.groups.min_size)

    def titles(self, item_ids: Sequence[str]) -> dict[str, str]:
        """Titles of items; an id stands for itself where there is none."""
        found = by_key(self.logs, "items", "item_id", list(item_ids), ["title"]) if item_ids else {}
        return {item_id: str(found[item_id]["title"]) if item_id in found else item_id for item_id in item_ids}

    def page(self, request: Request, template: str, status_code: int = 200, **values: object) -> HTMLResponse:
        """A page of the console."""
        return HTMLResponse(self.templates.render(request, template, run=self.config.run.name, **values), status_code)
