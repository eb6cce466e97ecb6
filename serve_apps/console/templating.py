"""The console's templates: Jinja2, everything escaped, links relative to the page that they stand on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from longtail.report_plots import name as ranker_name
from serve_apps.console.static_files import StaticFiles

FOLDER = Path(__file__).parent / "templates"


class Entry(Protocol):
    """What the navigation shows of a page."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def path(self) -> str: ...


def number(value: float | None, digits: int = 4) -> str:
    """A number as the console writes it: thousands apart, `digits` after the point; "–" where there is none."""
    if value is None:
        return "\u2013"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share in percent."""
    return "\u2013" if value is None else f"{value:.{digits}%}".replace("%", "\u202f%")


def moment(value: datetime | str | None) -> str:
    """A time in UTC, to the minute."""
    if value is None:
        return "\u2013"
    time = datetime.fromisoformat(value) if isinstance(value, str) else value
    return f"{time:%Y-%m-%d %H:%M}"


def embedded_json(value: Any) -> Markup:
    """JSON that may stand in a script element: no tag can begin in it."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@dataclass(frozen=True)
class Place:
    """Where a page stands, for links that hold under any prefix."""

    root: str  # from the page to the console's first page
    api: str  # from the page to the application's root

    @staticmethod
    def of(request: Request) -> "Place":
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "")).lstrip("/")
        up = "../" * path.count("/")
        return Place(up or "./", f"{up}../")


class Templates:
    """Renders pages."""

    def __init__(self, nav: Sequence[Entry]) -> None:
        self.static = StaticFiles.of_the_console()
        self._environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        self._environment.filters |= {"number": number, "percent": percent, "moment": moment, "embedded_json": embedded_json, "ranker_name": ranker_name}
        self._environment.globals |= {"nav": tuple(nav), "version": self.static.version}

    def render(self, request: Request, template: str, **values: object) -> str:
        """The template with the page's place, and which entry of the navigation it belongs to."""
        first = request.scope["path"].removeprefix(request.scope.get("root_path", "")).strip("/").partition("/")[0]
        return self._environment.get_template(template).render(at=Place.of(request), here=first, **values)
