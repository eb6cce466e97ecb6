"""The console's pages in the order of the navigation. A new page is a module, a template and a line here; its icon is a symbol in templates/icons.html."""

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter

from serve_apps.console.context import Console
from serve_apps.console.pages import groups, items, overview, quality, rollouts, sweeps, users


@dataclass(frozen=True)
class Page:
    """An entry of the navigation."""

    name: str  # also of its icon
    title: str
    path: str  # below the console's root; all of the page's routes begin with it
    routes: Callable[[Console], APIRouter]
    warm: Callable[[Console], object] = lambda console: None  # reads what the page's first visit would wait for


PAGES = (
    Page("overview", "Overview", "", overview.routes),
    Page("users", "Users", "users", users.routes, lambda console: console.activity),
    Page("groups", "Groups", "groups", groups.routes, lambda console: (console.group_tree, console.groups)),
    Page("items", "Items", "items", items.routes, items.warm),
    Page("quality", "Quality", "quality", quality.routes),
    Page("sweeps", "Sweeps", "sweeps", sweeps.routes),
    Page("rollouts", "Rollouts", "rollouts", rollouts.routes),
)
