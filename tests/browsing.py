"""What the browser tests share: Debian's Chromium, pages that fail their test where something complains, screenshots, accessibility.

Screenshots go to $LONGTAIL_SCREENSHOTS, else to the test's own folder. The fixture `browser` is in tests/conftest.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed (pyproject.toml, dev)")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SIZES = {"laptop": (1280, 800), "phone": (390, 844)}
MARKS = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}: install Debian's package chromium")]


def watched(context: BrowserContext, timeout_ms: float = 15_000) -> Iterator[Page]:
    """A page of the context, which ends with it; a script, a policy or a request that failed is the test's failure."""
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.set_default_timeout(timeout_ms)
    yield page
    context.close()
    assert not [text for text in complaints if "status of 4" not in text], "a refusal that a test asked for is no complaint"


def shot(page: Page, name: str, tmp_path: Path) -> None:
    """Keep a picture of the whole page."""
    place = Path(os.environ.get("LONGTAIL_SCREENSHOTS") or tmp_path)
    place.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=place / f"{name}.png", full_page=True)


def faults(page: Page) -> list[str]:
    """What axe calls serious or critical."""
    found = [one for one in Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {node['html'][:160]} {node['failureSummary'][:300]}" for one in found for node in one["nodes"][:3]]
