"""Fixtures that more than one test module uses."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for the session, of two CPUs, with workers that can import this checkout."""
    import ray

    from longtail.config import ClusterSettings
    from pipelines.cluster import ray_session

    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    with ray_session(ClusterSettings(num_cpus=2, object_store_mb=512, dashboard=False)):
        assert ray.is_initialized()
        yield


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """Debian's Chromium without a window."""
    from playwright.sync_api import sync_playwright

    from tests.browsing import CHROMIUM, FLAGS

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
