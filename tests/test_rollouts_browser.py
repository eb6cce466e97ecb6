"""The Rollouts page in headless Chromium: a canary by a click and the token, taken back by itself when it breaks; a good one promoted and rolled back."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from longtail.artifacts import Store
from longtail.rollouts import GuardSettings
from serve_apps.client import RankClient
from serve_apps.ranking import served_run
from serve_apps.served_run import Served
from tests import console_server, rollout_server, small_run
from tests.test_service import shifted, spoiled

pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed (pyproject.toml, dev)")
from playwright.sync_api import Browser, Page, expect

from tests.browsing import MARKS, SIZES, faults, shot, watched

pytestmark = MARKS

GUARDS = GuardSettings(min_requests=40, max_latency_ratio=1000, max_psi=100)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Served, Served, Served]:
    folder = tmp_path_factory.mktemp("three releases")
    configs = small_run.publish(folder), small_run.publish(folder, 0.5, shifted), small_run.publish(folder, 0.25, spoiled)
    first, good, broken = (served_run(config, Store.open(str(folder))) for config in configs)
    return first, good, broken


@pytest.fixture
def url(releases: tuple[Served, Served, Served], tmp_path: Path) -> Iterator[str]:
    with console_server.served(rollout_server.application(releases[0], tmp_path / "log", GUARDS)) as address:
        yield address


def requests_of_users(url: str, num: int) -> None:
    """`num` users ask once."""
    client = RankClient(url)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda number: client.rank({"user_id": f"user {number}", "item_ids": ["tea", "book", "soap"]}), range(num)))


def row_of(page: Page, release: str) -> Any:
    return page.locator("#releases tr", has_text=release[:10])


def act(page: Page, press: Any) -> None:
    """Press a button; the first time the token is asked for."""
    press.click()
    if page.locator("#token-dialog").is_visible():
        page.get_by_role("textbox", name="Token").fill(rollout_server.TOKEN)
        page.get_by_role("button", name="Keep").click()


def test_a_canary_that_breaks_and_one_that_is_promoted(browser: Browser, url: str, releases: tuple[Served, Served, Served], tmp_path: Path) -> None:
    first, good, broken = (one.release for one in releases)
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    for page in watched(context):
        page.goto(f"{url}/console/rollouts")
        expect(page.locator("#now .card").first).to_contain_text(first[:10])
        page.get_by_label("Share of the users for a canary, %").fill("50")
        page.get_by_label("Why (stands in the history)").fill("try the other weights")
        act(page, row_of(page, broken).get_by_role("button", name="Canary"))
        expect(page.locator("#now")).to_contain_text(broken[:10])
        requests_of_users(url, 60)
        expect(page.locator("#reason")).to_contain_text("rolled back by itself")
        expect(page.locator("#history li").first).to_contain_text("requests failed")
        expect(page.locator("#now")).not_to_contain_text(broken[:10])
        shot(page, "rollout-taken-back", tmp_path)

        act(page, row_of(page, good).get_by_role("button", name="Canary"))
        expect(page.locator("#now")).to_contain_text(good[:10])
        requests_of_users(url, 60)
        expect(page.locator("#drift")).to_contain_text("PSI")
        shot(page, "rollout-canary", tmp_path)
        act(page, page.get_by_role("button", name="Promote the canary"))
        expect(page.locator("#now .card").first).to_contain_text(good[:10])
        assert RankClient(url).models()["release"] == good
        act(page, row_of(page, first).get_by_role("button", name="Shadow"))
        expect(page.locator("#now")).to_contain_text("ranks unseen")
        requests_of_users(url, 20)
        expect(page.locator("#differences")).not_to_contain_text("compared0")
        act(page, page.get_by_role("button", name="Stop the shadow"))
        act(page, page.get_by_role("button", name="Roll back the last promotion"))
        expect(page.locator("#now .card").first).to_contain_text(first[:10])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_page_is_fit_for_everyone(browser: Browser, url: str, releases: tuple[Served, Served, Served], theme: Any, size: str, tmp_path: Path) -> None:
    RankClient(url, token=rollout_server.TOKEN).change_rollout({"action": "canary", "release": releases[1].release, "weight": 0.5})
    requests_of_users(url, 30)
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce")
    for page in watched(context):
        page.goto(f"{url}/console/rollouts")
        expect(page.locator("#drift")).to_contain_text("PSI")
        page.wait_for_function("() => document.querySelector('#scores').matches('.drawn')")
        shot(page, f"rollouts-{theme}-{size}", tmp_path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert not faults(page)
