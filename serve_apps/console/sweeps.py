"""The Sweeps page's side of the server: what is watched, started, stopped and promoted. It blocks; its routes call it in threads.

Reads <uri>/sweeps and asks Ray's dashboard; what it starts are jobs, which write to the same store.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from longtail.artifacts import Store
from longtail.storage import without_secrets
from longtail.sweep_watch import SweepWatch, WatchedSweep
from serve_apps.console import sweep_views
from serve_apps.console.job_order import MODULES, SWEEP, Checked, JobOrder, Room, checked, config_names, publishing, waits
from serve_apps.console.jobs import Job, Jobs, NoDashboardError, NotThereError

PAGES = {"report": ("sweep.html", "text/html"), "best": ("best.toml", "text/plain")}


@dataclass(frozen=True)
class Sweeps:
    """The sweeps of one store and the jobs of one cluster."""

    store: Store
    watch: SweepWatch
    jobs: Jobs
    room: Callable[[], Room]
    dashboard: str | None = None  # Ray's, where it is up

    def all(self) -> dict[str, Any]:
        """Every sweep and job, as the list is told."""
        jobs, problem = self._jobs()
        by_id = {one.job: one for one in jobs}
        sweeps = [sweep_views.listed(one, by_id.get(one.plan.job or "") if one.plan is not None else None) for one in self.watch.sweeps()]
        room = self.room()
        return {
            "sweeps": sweeps,
            "jobs": sweep_views.jobs_told(jobs),
            "problem": problem,
            "dashboard": self.dashboard,
            "room": {"total": room.total, "free": room.free},
            "store": without_secrets(self.store.uri),
        }

    def one(self, key: str) -> dict[str, Any]:
        """A sweep with its trials.

        Raises:
            NotThereError: there is none by that key.
        """
        sweep = self._sweep(key)
        name = sweep.plan.job if sweep.plan is not None else None
        jobs, problem = self._jobs()
        job = next((one for one in jobs if one.job == name), None)
        published = next((one for one in jobs if one.sweep == key), None)
        return sweep_views.told(sweep, job) | {"problem": problem, "dashboard": self.dashboard, "publishing": published and sweep_views.job_told(published)}

    def page(self, key: str, name: str) -> tuple[bytes, str]:
        """A finished sweep's file and its media type.

        Raises:
            NotThereError: there is no such sweep, it is not finished, or it has no such file.
        """
        artifact = self._sweep(key).artifact
        if artifact is None or name not in PAGES:
            raise NotThereError(f"{key}/{name}")
        file, media = PAGES[name]
        try:
            with artifact.fs.open_input_stream(artifact.path(file)) as stream:
                return bytes(stream.read()), media
        except FileNotFoundError as error:
            raise NotThereError(file) from error

    def form(self) -> dict[str, Any]:
        """What can be chosen."""
        return {"modules": MODULES, "sweep": SWEEP, "configs": config_names()}

    def check(self, order: JobOrder) -> dict[str, Any]:
        """What an order would run, and whether it would wait.

        Raises:
            ValueError: its command would refuse it.
        """
        found = checked(order, self.store.uri)
        return {"command": found.entrypoint("python", None), "waits": waits(found, self.room()), "runs": self._elsewhere(found.same) if found.same else None}

    def start(self, order: JobOrder) -> dict[str, Any]:
        """Start it.

        Raises:
            ValueError: its command would refuse it.
            RunsAlreadyError: it is a sweep that runs.
            NoDashboardError: nobody takes jobs.
        """
        return self._started(checked(order, self.store.uri))

    def promote(self, key: str) -> dict[str, Any]:
        """Start the job that publishes a finished sweep's best config.

        Raises:
            NotThereError: there is no such sweep.
            ValueError: it is not finished, or no trial may win.
        """
        sweep = self._sweep(key)
        if sweep.artifact is None:
            raise ValueError(f"sweep {key} is not finished, and what is best so far may not stay so. Wait for its end.")
        if sweep.best is None:
            raise ValueError(f"sweep {key} has no trial that was trained to the end within the constraint. Raise sweep.max_loss, or widen the space.")
        return self._started(publishing(sweep.artifact.fs, sweep.artifact.path("best.toml"), self.store.uri), key)

    def log(self, job: str) -> dict[str, Any]:
        """A job with the end of its log.

        Raises:
            NotThereError: there is none by that id.
        """
        return sweep_views.log_told(self.jobs.job(job), self.jobs.log(job))

    def stop(self, job: str) -> dict[str, Any]:
        """Ask a job to end.

        Raises:
            NotThereError: there is none by that id.
        """
        self.jobs.stop(job)
        return sweep_views.job_told(self.jobs.job(job))

    def _started(self, order: Checked, sweep: str | None = None) -> dict[str, Any]:
        return sweep_views.job_told(self.jobs.start(order, self._elsewhere, sweep)) | {"waits": waits(order, self.room())}

    def _elsewhere(self, same: str) -> str | None:
        """What runs a sweep of these settings, jobs or not."""
        for sweep in self.watch.sweeps():
            if sweep.status != "running" or sweep.plan is None or sweep.plan.settings != same:
                continue
            if sweep.plan.job is None:
                return f"sweep {sweep.key}, started from a command line"
            if any(one.job == sweep.plan.job and one.alive for one in self._jobs()[0]):
                return f"sweep {sweep.key}, job {sweep.plan.job}"
        return None

    def _sweep(self, key: str) -> WatchedSweep:
        sweep = self.watch.sweep(key) if key.isalnum() else None
        if sweep is None:
            raise NotThereError(key)
        return sweep

    def _jobs(self) -> tuple[list[Job], str | None]:
        """The jobs, and why they are unknown."""
        try:
            return self.jobs.jobs(), None
        except NoDashboardError as error:
            return [], str(error)
