"""Fixtures that more than one test module uses."""

import os
from collections.abc import Iterator

import pytest


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
