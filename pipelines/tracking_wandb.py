"""Weights & Biases through Ray's own integration: run folders below <run.uri>/wandb.

By default offline: no account, no network, and complete, so that `wandb sync <run.uri>/wandb/offline-run-*` pushes them whenever someone wants to.
tracking.mode = "online" streams them (key in WANDB_API_KEY). Artifacts are named by reference: the manifest's URI with our own content hash as its digest, so
that tables stay where they are, and a version in W&B is what a content hash is here; small results (SMALL_FILES) go along. Called by pipelines.tracking.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pyarrow.fs as pafs

from longtail.artifacts import Artifact, Store
from longtail.rankers.settings import RankerName
from longtail.tracking import TrackingSettings
from pipelines.tracked_run import Table, Track, TrackedRun, check_credentials, disk_folder, lineage_of, numbers

SMALL_FILES = ("metrics.json", "report.html", "results.json", "checkpoint/ranker.json")


class WandbTrack(Track):
    """A W&B run that is being recorded."""

    def __init__(self, run: Any, store: Store) -> None:
        self._run = run
        self._store = store

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        self._run.log(numbers(metrics), step=step)

    def summarise(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(numbers(values))

    def table(self, table: Table) -> None:
        import wandb

        rows = wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows], allow_mixed_types=True)
        shown = wandb.Table(columns=[table.x, table.y], data=[list(point) for point in table.points()])
        draw = wandb.plot.scatter if all(not isinstance(x, str) for x, _ in table.points()) else wandb.plot.bar
        self._run.log({table.name: rows, f"{table.name}_plot": draw(shown, table.x, table.y, title=table.title)})

    def page(self, name: str, html: str) -> None:
        import wandb

        self._run.log({name: wandb.Html(html, inject=False)})

    def used(self, artifact: Artifact) -> None:
        named = self._named(artifact)
        if self._run.settings._offline:
            # use_artifact refuses to work offline, though the run's log has the very record that it writes, and wandb sync acts on it.
            self._run._log_artifact(named, aliases=[artifact.key[:12]], is_user_created=True, use_after_commit=True)
        else:
            self._run.use_artifact(named, aliases=[artifact.key[:12]])

    def made(self, artifact: Artifact) -> None:
        self._run.log_artifact(self._named(artifact), aliases=["latest", artifact.key[:12]])

    def _named(self, artifact: Artifact) -> Any:
        """The artifact as W&B knows it, the same for whoever makes it and whoever reads it."""
        import wandb
        from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

        local = isinstance(artifact.fs, pafs.LocalFileSystem)
        kind = "ranker" if artifact.stage in get_args(RankerName) else "results" if artifact.stage in ("evaluation", "sweeps") else "table"
        named = wandb.Artifact(artifact.stage, type=kind, metadata=lineage_of(artifact))
        manifest = f"{artifact.root.rsplit('/', 1)[0]}/manifest.json"
        uri = Path(manifest).as_uri() if local else f"{self._store.uri.split('://')[0]}://{manifest}"
        named.manifest.add_entry(ArtifactManifestEntry(path="manifest.json", ref=uri, digest=artifact.content_hash))
        for name in SMALL_FILES if local else ():
            if Path(artifact.path(name)).is_file():
                named.add_file(artifact.path(name), name=name, policy="immutable", skip_cache=True)  # no copies: finished artifacts stay as they are
        return named


@contextmanager
def wandb_run(tracked: TrackedRun) -> Iterator[WandbTrack]:
    """Record a run for the length of a block, as failed if that raises."""
    import wandb
    from ray.air.integrations.wandb import setup_wandb

    check_credentials(tracked.settings)
    with _folder(tracked.store) as folder, _staged(tracked):
        arguments = _arguments(tracked.settings, tracked.group, tracked.job_type, folder)
        run = setup_wandb(dict(tracked.config), id=tracked.run_id, name=tracked.name, **arguments)
        failed = True
        try:
            yield WandbTrack(run, tracked.store)
            failed = False
        finally:
            run.finish(exit_code=1 if failed else 0)
            wandb.teardown()  # ends W&B's service process now, not some time after this one


@contextmanager
def _staged(tracked: TrackedRun) -> Iterator[None]:
    """Keep what `wandb sync` will read of tables beside the run folders, and not in W&B's folder below the home of whoever ran this."""
    before = os.environ.get("WANDB_DATA_DIR")
    here = disk_folder(tracked.store, str(tracked.config["settings"]["run"]["name"]))
    os.environ["WANDB_DATA_DIR"] = str(here / "wandb" / "staged")
    try:
        yield
    finally:
        os.environ.pop("WANDB_DATA_DIR")
        if before is not None:
            os.environ["WANDB_DATA_DIR"] = before


def wandb_tune_callback(settings: TrackingSettings, folder: Path, group: str) -> Any:
    """Ray Tune's own callback: a run per trial."""
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(upload_timeout=60, **_arguments(settings, group, "trial", folder))


def _arguments(settings: TrackingSettings, group: str, job_type: str, folder: Path) -> dict[str, Any]:
    import wandb

    # Ray collects the output and its dashboard shows the machines; W&B shall neither redirect nor sample.
    quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True, disable_code=True, init_timeout=120)
    return {
        "project": settings.project,
        "entity": settings.entity,
        "group": group,
        "job_type": job_type,
        "dir": str(folder),
        "mode": settings.mode,
        "reinit": "finish_previous",  # Ray passes a boolean, which W&B warns about
        "resume": "allow" if settings.mode == "online" else None,
        "settings": quiet,
    }


@contextmanager
def _folder(store: Store) -> Iterator[Path]:
    """Where W&B writes its `wandb` folder: the store itself, or a folder of this machine that is copied to <run.uri>/wandb at the end."""
    if isinstance(store.fs, pafs.LocalFileSystem):
        Path(store.root).mkdir(parents=True, exist_ok=True)
        yield Path(store.root)
        return
    with tempfile.TemporaryDirectory(prefix="longtail-wandb-") as folder:
        try:
            yield Path(folder)
        finally:  # a run that failed is the one to look at
            for run in sorted((Path(folder) / "wandb").glob("*run-*")):
                if run.is_dir() and not run.is_symlink():
                    target = f"{store.root}/wandb/{run.name}"
                    store.fs.create_dir(target, recursive=True)
                    pafs.copy_files(str(run), target, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=store.fs)
