"""Jobs of the console: pipelines and sweeps as Ray jobs on the cluster that serves, their states, logs and ends.

Asks Ray's dashboard, which must be up; writes nothing itself. A job gets the code that this process runs: the uploaded working directory, or else the checkout.
"""

import json
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import ray

from pipelines.cluster import ROOT, runtime_env
from serve_apps.console.job_order import CONFIGS, MODULES, SWEEP, Checked, Room, relative_to_root

JobStatus = Literal["pending", "running", "stopped", "succeeded", "failed"]
ALIVE: tuple[JobStatus, ...] = ("pending", "running")

MODULE, SAME, SWEEP_KEY = "longtail_module", "longtail_settings", "longtail_sweep"  # of a job's metadata
#: Of this process' environment, what its jobs need too.
HANDED_ON = ("RAY_TRAIN_V2_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "HF_HUB_OFFLINE", "LONGTAIL_CACHE")
MOST_LOG = 64 * 1024
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # a terminal's
MOST_JOBS = 50
START_S = 12.0  # with the dashboard's own ten seconds, less than serve.request_timeout_s


class NoDashboardError(Exception):
    """Ray's dashboard, which starts jobs, does not answer."""


class RunsAlreadyError(Exception):
    """The same sweep runs already."""


class NotThereError(LookupError):
    """No sweep or job has that name; the argument is the name."""


@dataclass(frozen=True)
class Job:
    """A job of the cluster that serves."""

    job: str  # its submission id
    module: str | None  # None: not started here
    command: str
    status: JobStatus
    message: str
    began: float | None  # seconds since 1970
    ended: float | None
    same: str | None  # of a sweep: its settings' digest
    sweep: str | None  # of a job that publishes a sweep's best config: the sweep's key

    @property
    def alive(self) -> bool:
        return self.status in ALIVE


@dataclass
class Jobs:
    """Starts, lists and stops jobs of one cluster."""

    folder: str  # where relative paths of a config begin, on a machine that runs a checkout
    connect: Callable[[], Any]  # a JobSubmissionClient

    def __post_init__(self) -> None:
        self._client: Any = None
        self._one_at_a_time = threading.Lock()

    def start(self, order: Checked, same_elsewhere: Callable[[str], str | None] = lambda same: None, sweep: str | None = None) -> Job:
        """Submit it.

        Args:
            order: the checked order.
            same_elsewhere: says what runs a sweep of these settings outside of the jobs; None where nothing does.
            sweep: the key of the sweep whose best config it publishes.

        Raises:
            RunsAlreadyError: it is a sweep, and the same one runs or waits.
            NoDashboardError: nothing answers.
        """
        with self._one_at_a_time, self._asked() as client:
            environment, folder, python = code_of_this_process(self.folder)
            # Of several Rays on a machine the job's supervisor gives its command the address of any (Ray 2.60): the command names its own.
            address = None if folder is None else ray.get_runtime_context().gcs_address
            if order.same is not None:
                self._refuse_second(order.same, same_elsewhere)
            job = f"{order.module.rpartition('.')[2].replace('_', '-')}-{time.strftime('%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:4]}"
            arguments = order.arguments if folder is not None else tuple(_uploaded(argument) for argument in order.arguments)
            found = Checked(order.module, arguments, order.config, order.same)
            about = {MODULE: order.module, SAME: order.same, SWEEP_KEY: sweep}
            asked = {"submission_id": job, "entrypoint": found.entrypoint(python, folder, address), "runtime_env": environment}
            _submit(client, asked | {"metadata": {name: value for name, value in about.items() if value}})
        return self.job(job)

    def _refuse_second(self, same: str, same_elsewhere: Callable[[str], str | None]) -> None:
        running = next((one for one in self.jobs() if one.alive and one.same == same), None)
        where = f"job {running.job} ({running.status})" if running is not None else same_elsewhere(same)
        if where is not None:
            raise RunsAlreadyError(
                f"a sweep with these very settings runs already: {where}. Watch it, or stop it first: a second one would try the same points."
            )

    def jobs(self) -> list[Job]:
        """The jobs that were submitted to this cluster, the newest first, at most MOST_JOBS."""
        with self._asked() as client:
            found = [_told(one) for one in client.list_jobs() if one.submission_id]
        return sorted(found, key=lambda one: one.began or float("inf"), reverse=True)[:MOST_JOBS]

    def job(self, job: str) -> Job:
        """One of them.

        Raises:
            NotThereError: there is none by that id.
        """
        with self._asked(job) as client:
            return _told(client.get_job_info(job))

    def log(self, job: str) -> str:
        """The end of what a job printed.

        Raises:
            NotThereError: there is none by that id.
        """
        with self._asked(job) as client:
            text: str = _COLOUR.sub("", client.get_job_logs(job))
        return text if len(text) <= MOST_LOG else text[-MOST_LOG:].partition("\n")[2]

    def stop(self, job: str) -> None:
        """Ask a job to end; one that has ended stays as it is.

        Raises:
            NotThereError: there is none by that id.
        """
        with self._asked(job) as client:
            client.stop_job(job)

    @contextmanager
    def _asked(self, job: str | None = None) -> Iterator[Any]:
        try:
            if self._client is None:
                self._client = self.connect()
            yield self._client
        except (ConnectionError, OSError) as error:
            self._client = None
            raise NoDashboardError(f"Ray's dashboard, which starts jobs, does not answer: {str(error).splitlines()[0]}") from error
        except RuntimeError as error:
            if job is not None and ("404" in str(error) or "does not exist" in str(error)):
                raise NotThereError(job) from error
            raise NoDashboardError(f"Ray's dashboard refused: {str(error).splitlines()[0][:300]}") from error


def _submit(client: Any, asked: dict[str, Any]) -> None:
    """Hand a job over; a cluster that has just started has nobody who takes it for some seconds."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            client.submit_job(**asked)
            return
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)


def connect() -> Any:
    """A client of the dashboard of the cluster that this process is in; it brings Ray's own token where the cluster asks for one.

    Raises:
        ConnectionError: this process is in no cluster, or its dashboard does not answer.
    """
    from ray.job_submission import JobSubmissionClient

    if not ray.is_initialized():
        raise ConnectionError("this process is in no Ray cluster")
    return JobSubmissionClient(ray.get_runtime_context().gcs_address)


def room() -> Room:
    """What the cluster has and what of it is free now; nothing outside of a cluster."""
    if not ray.is_initialized():
        return Room({}, {})
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves both without annotations
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return Room(*({name: round(found.get(name, 0.0), 3) for name in ("CPU", "GPU")} for found in (total, free)))


def code_of_this_process(folder: str) -> tuple[dict[str, Any], str | None, str]:
    """What a job needs to run the code that this process runs: runtime environment, the folder to start in (None: Ray's own), the interpreter."""
    here = ray.get_runtime_context().runtime_env or {}
    if here.get("working_dir"):
        environment = {name: here[name] for name in ("working_dir", "env_vars", "py_modules", "pip", "uv", "container", "image_uri") if here.get(name)}
        return environment, None, "python"
    environment = runtime_env()
    environment.pop("py_executable", None)  # the entrypoint names the interpreter
    # Ray Train's watchdog asks "the" Ray of the machine for its controller (pipelines.cluster); workers of the job must ask this one.
    environment["env_vars"] |= {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    environment["env_vars"] |= {name: os.environ[name] for name in HANDED_ON if name in os.environ}
    return environment, folder if os.path.isdir(folder) else str(ROOT), sys.executable


def result_of(log: str) -> dict[str, Any] | None:
    """The JSON object that a command prints as its last line; None where a log has none."""
    for line in reversed(log.splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    return None


def error_of(log: str) -> str | None:
    """What a failed command says of its failure: from its line `error: …` on."""
    at = log.rfind("\nerror: ")
    found = log[at + 1 :] if at >= 0 else log if log.startswith("error: ") else None
    return None if found is None else found.removeprefix("error: ").strip()[:2000]


def _uploaded(argument: str) -> str:
    return relative_to_root(CONFIGS / argument.rpartition("/")[2]) if argument.startswith(f"{CONFIGS}/") else argument


def _told(details: Any) -> Job:
    metadata = details.metadata or {}
    module = metadata.get(MODULE)
    return Job(
        job=details.submission_id,
        module=module if module in MODULES else None,
        command=details.entrypoint,
        status=str(details.status.value).lower(),  # type: ignore[arg-type]  # Ray's five states, in small letters
        message=(details.message or "").strip(),
        began=None if details.start_time is None else details.start_time / 1000,
        ended=None if not details.end_time else details.end_time / 1000,
        same=metadata.get(SAME) if module == SWEEP else None,
        sweep=metadata.get(SWEEP_KEY),
    )
