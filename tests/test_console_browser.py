"""The console in headless Chromium: what a reader clicks, in both themes, on a laptop and on a phone, by mouse and by keyboard.

Run: pytest -m browser tests/test_console_browser.py
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from longtail.artifacts import Store
from serve_apps.ranking import served_run
from serve_apps.served_run import ServedRun
from tests import console_run, console_server

pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed (pyproject.toml, dev)")
from playwright.sync_api import Browser, Page, expect

from tests.browsing import MARKS, SIZES, faults, shot, watched

PAGES = {
    "overview": "",
    "users": "users",
    "user": "users?user=c",
    "unknown user": "users?user=somebody-new",
    "groups": "groups",
    "group": "groups?group=0-1",
    "items": "items",
    "item": "items?item=tea",
    "new item": "items/new",
    "quality": "quality",
    "no page": "nowhere",
}

pytestmark = MARKS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ServedRun:
    config = console_run.publish(tmp_path_factory.mktemp("console run"))
    console_run.add_evaluation(config, "again", seed=1)
    return served_run(config, Store.open(config.run.uri)).open()


@pytest.fixture(scope="module")
def url(run: ServedRun) -> Iterator[str]:
    """Under a prefix, as behind serve.route_prefix."""
    app = FastAPI()
    app.mount("/deep", console_server.application(run))
    with console_server.served(app) as address:
        yield f"{address}/deep/console/"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A laptop's page that fails the test where a script, a policy or a request failed."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="dark", reduced_motion="reduce")
    yield from watched(context)


def ready(page: Page) -> None:
    page.wait_for_load_state("networkidle")
    page.wait_for_function(
        "() => !document.querySelector('[aria-busy=true]') && [...document.querySelectorAll('[data-chart]')].every((one) => one.matches('.drawn'))"
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_every_page_is_whole_and_fit_for_everyone(browser: Browser, url: str, theme: Any, size: str, tmp_path: Path) -> None:
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce")
    found: list[str] = []
    for page in watched(context):
        for name, path in PAGES.items():
            page.goto(url + path)
            ready(page)
            shot(page, f"{name.replace(' ', '-')}-{theme}-{size}", tmp_path)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways as a whole"
            found += [f"{name}: {fault}" for fault in faults(page)]
        assert not found, "\n".join(found)


def test_the_navigation_leads_everywhere_and_the_lineage_to_its_artifact(page: Page, url: str) -> None:
    page.goto(url)
    ready(page)
    expect(page.locator("#models .card")).to_have_count(3)
    page.get_by_role("link", name="item_codes", exact=False).first.click()
    assert page.url.endswith("#item_codes")
    for title in ("Users", "Groups", "Items", "Quality", "Overview"):
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=title).click()
        expect(page.locator(".side [aria-current=page]")).to_have_text(title)
    page.get_by_role("link", name="Evaluation report").click()
    assert "the report of" in page.title()


def test_the_theme_is_chosen_and_kept(page: Page, url: str) -> None:
    page.goto(url + "groups")
    ready(page)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Dark or light").click()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    page.goto(url + "users")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light


def test_a_user_is_found_and_ranked_by_every_ranker(page: Page, url: str) -> None:
    page.goto(url + "users")
    page.get_by_label("Id begins with").fill("c")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("c")
    ready(page)
    ranked = page.locator("[data-ranked]")
    expect(ranked.locator("tbody tr")).to_have_count(5)
    expect(ranked).to_contain_text(re.compile(r"own \d.*group \d"))
    first = ranked.locator("caption").inner_text()
    page.get_by_label("Ranker").select_option("saviorrec")
    expect(ranked.locator("caption")).to_contain_text("SaviorRec")
    assert first.startswith("ChoirRec")
    expect(ranked).to_contain_text("one channel")
    ranked.get_by_role("link", name="Tea").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Tea")


def test_a_box_of_the_treemap_opens_its_group(page: Page, url: str) -> None:
    page.goto(url + "groups")
    ready(page)
    page.locator("#treemap g.slice", has_text="0-1").last.click()
    page.wait_for_url("**/groups?group=0-1")
    expect(page.get_by_role("heading", level=1)).to_have_text("Group 0-1")
    page.get_by_role("link", name="b", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("b")


def test_a_new_item_is_placed_and_ranked_within_a_second(page: Page, url: str) -> None:
    page.goto(url + "items")
    page.get_by_role("link", name="Try a new item").click()
    ready(page)
    for _ in range(2):  # the text model is loaded with the first; replicas load it before they are ready
        page.get_by_label("Title").fill("Oat drink")
        page.get_by_label("Category").fill("food > drinks")
        page.get_by_label("For the user").fill("a")
        page.get_by_role("button", name="Place and rank").click()
        expect(page.locator("#placed")).to_contain_text("Neighbours after", timeout=60_000)
        expect(page.get_by_role("button", name="Place and rank")).to_be_enabled()
    placed = page.locator("#placed")
    expect(placed).to_contain_text(re.compile(r"Place \d of 6"))
    expect(placed.locator("tr.mine")).to_contain_text("new, by its content")
    assert int(re.search(r"in (\d+) ms\.$", placed.inner_text().strip())[1]) < 1000  # type: ignore[index]


def test_quality_holds_one_run_against_another(page: Page, url: str) -> None:
    page.goto(url + "quality")
    ready(page)
    page.get_by_label("Against").select_option(index=1)
    page.get_by_label("Metric").select_option("auc")
    page.get_by_role("button", name="Show").first.click()
    ready(page)
    expect(page.get_by_role("heading", name=re.compile(" against "))).to_be_visible()
    expect(page.locator("section", has=page.get_by_role("heading", name=re.compile(" against "))).locator("tbody tr").first).to_contain_text("all rows")


def test_it_goes_by_keyboard_alone(page: Page, url: str) -> None:
    page.goto(url)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.goto(url)
    for _ in range(4):
        page.keyboard.press("Tab")
    focused = page.locator(":focus")
    expect(focused).to_have_text("Users")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Users")


def test_the_token_is_typed_once_and_a_wrong_one_is_told(page: Page, url: str) -> None:
    page.goto(url)
    page.get_by_role("button", name="Token for actions").click()
    dialog = page.get_by_role("dialog", name="Token")
    dialog.get_by_label("Token", exact=True).fill("wrong")
    dialog.get_by_role("button", name="Keep").click()
    expect(dialog.get_by_role("alert")).to_have_text("This is not the token.")
    dialog.get_by_label("Token", exact=True).fill(console_server.TOKEN)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    assert page.evaluate("sessionStorage.getItem('longtail-token')") == console_server.TOKEN
    page.get_by_role("button", name="Token for actions").click()
    page.get_by_role("button", name="Forget").click()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_console_for_other_machines_asks_before_it_shows(page: Page, run: ServedRun) -> None:
    with console_server.served(console_server.application(run, host="0.0.0.0")) as address:
        page.goto(f"{address}/console/users")
        expect(page.get_by_role("heading", level=1)).to_have_text("This console asks for its token")
        page.get_by_role("button", name="Enter the token").click()
        page.get_by_role("dialog").get_by_label("Token", exact=True).fill(console_server.TOKEN)
        page.get_by_role("button", name="Keep").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Users")
        page.goto(f"{address}/console/groups")
        expect(page.get_by_role("heading", level=1)).to_have_text("Groups")
        page.goto("about:blank")
