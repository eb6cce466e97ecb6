"""The Ray that a pipeline runs on: one of its own, a cluster that it joins, or the one that it was submitted to."""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from longtail.config import ClusterSettings

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent


def in_job() -> bool:
    """True in a driver that `ray job submit` started."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def runtime_env() -> dict[str, Any]:
    """What a worker needs to import the core and the packages beside it, where no working directory is uploaded."""
    return {"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")])}}


@contextmanager
def ray_session(settings: ClusterSettings) -> Iterator[None]:
    """Ray for the length of a block: left as it was if it was up, started and stopped here otherwise.

    Raises:
        ConnectionError: cluster.address names a cluster that does not answer.
    """
    if ray.is_initialized():
        yield
        return
    if in_job():
        ray.init(logging_level=logging.WARNING)
        yield
        return
    # Ray's Unix sockets live below its temp dir and their paths are limited to 107 bytes: keep it short, whatever the checkout's path is.
    temp_dir = Path(tempfile.mkdtemp(prefix="lt-", dir="/tmp" if sys.platform != "win32" else None))
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    arguments: dict[str, Any] = {"address": settings.address, "runtime_env": runtime_env(), "logging_level": logging.WARNING, "log_to_driver": True}
    if settings.address == "local":
        arguments |= {
            "num_cpus": settings.num_cpus,
            "object_store_memory": settings.object_store_mb * 2**20,
            "include_dashboard": settings.dashboard,
            "_temp_dir": str(temp_dir),
        }
    try:
        ray.init(**arguments)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)
