"""The Ray that a pipeline runs on: one of its own, a cluster that it joins, or the one that it was submitted to."""

import json
import logging
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray._private.parameter
import ray.data

from longtail.config import ClusterSettings

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent

#: Every node of a pool has 1 of its resource, and an actor takes this much: CPUs and GPUs decide how many share a node, never the pool.
POOL_SHARE = 0.001

NICENESS = "RAY_worker_niceness"

#: What workers would print a hundred times over their own progress; each can be set to something else in the environment.
QUIET = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "VLLM_LOGGING_LEVEL": "ERROR"}


def in_job() -> bool:
    """True in a driver that `ray job submit` started."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def submission_id() -> str | None:
    """The id of the job that `ray job submit` started this driver for."""
    if not in_job():
        return None
    told = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])
    found = told.get("metadata", {}).get("job_submission_id")
    return None if found is None else str(found)


def may_grow(settings: ClusterSettings) -> bool:
    """True where the Ray is a cluster that was joined or submitted to, whose autoscaler may add nodes; one's own has what it was started with."""
    return in_job() or settings.address != "local"


def pool_resources(pool: str | None) -> dict[str, float]:
    """What an actor asks of its node beside CPUs and GPUs, so that Ray starts it in `pool`, and Ray's autoscaler a node of it where there is none."""
    return {} if pool is None else {f"pool_{pool}": POOL_SHARE}


def runtime_env() -> dict[str, Any]:
    """What a worker needs to import the core and the packages beside it, where no working directory is uploaded."""
    quiet = {name: os.environ.get(name, value) for name, value in QUIET.items()}
    env: dict[str, Any] = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")]), **quiet}}
    if shlex.quote(sys.executable) != sys.executable:
        env["py_executable"] = shlex.quote(sys.executable)  # Ray puts it into a shell command as it is: a path with a space would not start (Ray 2.60)
    return env


@contextmanager
def ray_session(settings: ClusterSettings) -> Iterator[None]:
    """Ray for the length of a block: left as it was if it was up, started and stopped here otherwise.

    Raises:
        ValueError: cluster.address names a cluster that does not answer.
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
        # Ray Train's watchdog looks for its controller in "the" Ray of the machine; with two of them it may ask the other one, take its own controller for
        # dead and remove the running workers (Ray 2.60). RAY_ADDRESS tells it which one, and must be known before the start: so the port is chosen here.
        os.environ["RAY_GCS_SERVER_PORT"] = str(_free_port())
        if settings.worker_niceness is not None:
            os.environ[NICENESS] = str(settings.worker_niceness)
        address = f"{ray.util.get_node_ip_address()}:{os.environ['RAY_GCS_SERVER_PORT']}"  # type: ignore[no-untyped-call]
        arguments["runtime_env"]["env_vars"]["RAY_ADDRESS"] = address
        if not settings.dashboard:
            arguments["runtime_env"]["worker_process_setup_hook"] = "actors.quiet.without_dashboard"
        arguments |= {
            "num_cpus": settings.num_cpus,
            "object_store_memory": settings.object_store_mb * 2**20,
            "include_dashboard": settings.dashboard,
            # Without a dashboard Ray still publishes the default port, where another Ray's dashboard may answer the same question: name one where nobody does.
            "dashboard_port": None if settings.dashboard else _free_port(),
            "_temp_dir": str(temp_dir),
        }
    try:
        try:
            with _any_agent_port():
                ray.init(**arguments)
        except ConnectionError as error:
            raise ValueError(
                f'cluster.address = {settings.address!r} does not answer: {error}. Start that cluster, or set "local" for one of its own.'
            ) from error
        if not sys.stdout.isatty():  # Ray Data's bars become twelve log lines every ten seconds; the stages log their own progress
            ray.data.DataContext.get_current().enable_progress_bars = False
        os.environ.pop("RAY_GCS_SERVER_PORT", None)
        yield
    finally:
        os.environ.pop("RAY_GCS_SERVER_PORT", None)
        if settings.worker_niceness is not None:
            os.environ.pop(NICENESS, None)
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)


@contextmanager
def _any_agent_port() -> Iterator[None]:
    """Within this block a Ray that is started lets its agent listen on any free port.

    ray.init takes no such setting (2.60): a second Ray of a machine would find the fixed port taken, go on without its agent, and take no jobs.
    """
    parameter = ray._private.parameter
    own = parameter.RayParams
    parameter.RayParams = partial(own, dashboard_agent_listen_port=0)  # type: ignore[misc, assignment]  # called only
    try:
        yield
    finally:
        parameter.RayParams = own  # type: ignore[misc]


def _free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
