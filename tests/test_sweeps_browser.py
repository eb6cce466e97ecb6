"""The Sweeps pages in a browser: planted sweeps in both themes and on a phone, without what axe calls serious; and a real sweep that is started, watched to its
end and compared by clicks, on a real Ray that serves.
"""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from longtail.artifacts import Store
from longtail.config import Config
from longtail.config_text import as_toml
from longtail.sweep_watch import SweepWatch
from pipelines.cluster import ROOT
from serve_apps.client import RankClient
from tests import planted_sweeps, small_run
from tests.browsing import MARKS, SIZES, faults, shot, watched
from tests.console_server import served

pytestmark = MARKS

TOKEN = "the-token-of-the-test"
LAPTOP: Any = {"width": 1280, "height": 800}
TIMEOUT_MS = 20_000
RUNNING, FINISHED = "bbbb0000", "aaaa0000"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = Store.open(str(tmp_path_factory.mktemp("store")))
    planted_sweeps.finished(store, FINISHED)
    planted_sweeps.running(store, RUNNING)
    planted_sweeps.interrupted(store, "cccc0000")
    planted_sweeps.alive(store, RUNNING, age_s=-3600)  # it lives as long as the tests
    with served(planted_sweeps.console_over(store, TOKEN, "http://127.0.0.1:8265")) as url:
        yield url


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_in_both_themes_and_on_a_phone(browser: Browser, url: str, scheme: str, size: str, tmp_path: Path) -> None:
    width, height = SIZES[size]
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
    for page in watched(context, TIMEOUT_MS):
        for path, name, ready in (
            ("sweeps", "list", "#sweeps tbody tr"),
            (f"sweeps/{RUNNING}", "running", "#parallel .trial-line"),
            (f"sweeps/{FINISHED}", "finished", "#parallel .trial-line"),
        ):
            page.goto(f"{url}/{path}")
            page.wait_for_selector(ready)
            assert not faults(page)
            shot(page, f"sweeps-{name}-{scheme}-{size}", tmp_path)
            assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], f"{path} is wider than the window"
        page.locator("#trials [data-open]").first.click()
        expect(page.locator("#trial")).to_be_visible()
        assert not faults(page)
        shot(page, f"sweeps-trial-{scheme}-{size}", tmp_path)


def test_a_comparison_by_clicks_and_by_keys(browser: Browser, url: str) -> None:
    for page in watched(browser.new_context(viewport=LAPTOP), TIMEOUT_MS):
        page.goto(f"{url}/sweeps")
        page.get_by_role("link", name=re.compile(f"choirrec {FINISHED}")).click()
        expect(page.locator("#finals .headline")).to_contain_text("Not shown to be better than the config as it stood")
        expect(page.locator("#trials tbody tr")).to_have_count(36)
        best = page.locator("#trials .best-row").get_attribute("data-trial")
        page.locator(f"#front [data-trial='{best}']").hover()
        expect(page.locator(f"#parallel [data-trial='{best}']")).to_have_class(re.compile("lit"))
        page.locator(f"#front [data-trial='{best}']").click()
        expect(page.get_by_role("heading", name=re.compile(f"Trial {best}"))).to_be_visible()
        expect(page.locator("#trial .trial-curve-dot")).to_have_count(3)
        page.keyboard.press("Escape")
        expect(page.locator("#trial")).to_be_hidden()
        button = page.locator("#trials [data-open='7']")
        button.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#trial .refusal")).to_contain_text("1,024 codes of 801 users")
        page.get_by_role("button", name="Close").click()
        before = page.locator("#parallel .trial-line").first.get_attribute("data-trial")
        page.get_by_label("Colour by").select_option("whole")
        assert page.locator("#parallel .trial-line").first.get_attribute("data-trial") != before, "the worst is drawn first"


def give_token(page: Page) -> None:
    page.get_by_role("textbox", name="Token").fill(TOKEN)
    page.get_by_role("button", name="Keep").click()


def test_the_form_says_what_the_command_would(browser: Browser, url: str, tmp_path: Path) -> None:
    for page in watched(browser.new_context(viewport=LAPTOP), TIMEOUT_MS):
        page.goto(f"{url}/sweeps")
        page.get_by_label("Config", exact=True).select_option("")
        page.get_by_label("Config as TOML").fill('[run]\nname = "pasted"\n')
        page.get_by_label("Settings over it, one a line").fill("sweep.num_trials=3")
        page.get_by_role("button", name="Check only").click()
        give_token(page)
        expect(page.locator("#answer .command")).to_contain_text("python -m tuning.sweep --set 'run.name=\"pasted\"' --set sweep.num_trials=3 --set 'run.uri=")
        assert not faults(page)
        shot(page, "sweeps-checked", tmp_path)


@contextmanager
def another_ray() -> Iterator[None]:
    """Hold the port on which the agent of a machine's first Ray listens."""
    with socket.socket() as taken:
        with suppress(OSError):  # there is another Ray indeed
            taken.bind(("0.0.0.0", 52365))
            taken.listen()
        yield


@contextmanager
def up(config: Config, folder: Path) -> Iterator[str]:
    """The application with its console in a process of its own, on a Ray with its dashboard; yields the console's address."""
    toml = folder / "up.toml"
    toml.write_text(as_toml(config))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")]), "LONGTAIL_TOKEN": TOKEN}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "serve_apps.up", "--config", str(toml)]
    said = folder / "up.log"  # a pipe would fill up: it prints as long as jobs do
    with said.open("w") as log, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 240
            while "Ctrl-C ends it" not in said.read_text() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.5)
            found = [line.split()[1].rstrip("/") for line in said.read_text().splitlines() if line.startswith("console")]
            assert found, said.read_text()[-4000:]
            yield found[0]
        finally:
            process.terminate()


SETTINGS = """profiles.generator=deterministic
tracking.backend=none
sweep.space={"codes.user.codebook_size"=[3, 4, 6], "train.learning_rate"={low=0.01, high=0.1, log=true}}
sweep.num_trials=2
sweep.max_loss=0.05
sweep.finalists.num_trials=0"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2400)
def test_a_sweep_is_started_watched_compared_and_its_best_served_by_clicks(browser: Browser, tmp_path: Path) -> None:
    config = small_run.publish(tmp_path / "small")
    with another_ray(), up(config, tmp_path) as console:
        for page in watched(browser.new_context(viewport=LAPTOP), TIMEOUT_MS):
            sweep_by_clicks(page, console, config, tmp_path)
            release = promote_by_clicks(page, tmp_path)
            client = RankClient(console.removesuffix("/console"))
            answers = [client.rank({"user_id": f"user {number}", "item_ids": ["tea", "book"]}) for number in range(40)]
            assert 0 < sum(answer["release"] == release for answer in answers) < 40, "the canary answers its share"


def promote_by_clicks(page: Page, tmp_path: Path) -> str:
    """The sweep's best, trained, published by a job, and half the users' answered by it; its key."""
    page.keyboard.press("Escape")  # out of the trial's own dialogue
    page.locator("#promote").click()
    expect(page.locator("#promoted")).to_contain_text("Published as", timeout=900_000)
    release = page.locator("#promoted code").inner_text()
    shot(page, "sweeps-promoted", tmp_path)
    page.get_by_role("link", name="Start its canary").click()
    page.get_by_label("Share of the users for a canary, %").fill("50")
    page.locator("#releases tr", has_text=release[:10]).get_by_role("button", name="Canary").click()
    expect(page.locator("#now")).to_contain_text(release[:10], timeout=60_000)
    shot(page, "sweeps-canary", tmp_path)
    return release


def sweep_by_clicks(page: Page, console: str, config: Config, tmp_path: Path) -> None:
    """A sweep of two trials, started, watched and compared."""
    page.goto(f"{console}/sweeps")
    expect(page.locator("#room")).to_contain_text("of 2 CPUs")
    page.get_by_label("Config", exact=True).select_option("test.toml")
    page.get_by_label("Settings over it, one a line").fill(SETTINGS)
    page.get_by_role("button", name="Start", exact=True).click()
    give_token(page)
    expect(page.locator("#answer")).to_contain_text("Started as sweep-", timeout=60_000)
    expect(page.locator("#jobs tbody tr")).to_contain_text("running", timeout=60_000)
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("#answer")).to_contain_text("these very settings runs already")
    shot(page, "sweeps-live-list", tmp_path)

    page.locator("#sweeps tbody a").click(timeout=120_000)
    seen: list[str] = []
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        state = page.locator("#state").inner_text()
        trials = [row.inner_text() for row in page.locator("#trials tbody tr .chip.good, #trials tbody tr .chip.bad").all()]
        now = f"{state} | {' '.join(word for word in trials if word in ('running', 'finished', 'failed'))}"
        if now not in seen:
            seen.append(now)
            shot(page, f"sweeps-live-{len(seen)}", tmp_path)
        if state in ("finished", "interrupted"):
            break
        page.wait_for_timeout(500)
    assert seen[-1] == "finished | finished finished", seen
    assert any(now.endswith("| running") or "finished running" in now for now in seen), f"a trial was seen while it ran: {seen}"
    expect(page.locator("#parallel .trial-line")).to_have_count(2)
    expect(page.locator("#front .base-mark")).to_have_count(1)
    expect(page.locator("#job-head")).to_contain_text("succeeded", timeout=60_000)
    expect(page.locator("#log")).to_contain_text("sweep: trial 1 of 2 finished")
    page.locator("#trials [data-open='0']").click()
    expect(page.locator("#trial .trial-curve-dot")).to_have_count(2)
    assert not faults(page)
    shot(page, "sweeps-live-trial", tmp_path)
    (sweep,) = SweepWatch(Store.open(config.run.uri)).sweeps()
    assert sweep.status == "finished", "it lies in the store that serves"
    assert sweep.plan is not None
    assert sweep.plan.job is not None
