"""What a tracked run is, whatever keeps it: its description, what can be recorded of it, and the few rules that the backends share.

Reads nothing; pipelines.tracking opens runs, pipelines.tracking_wandb and pipelines.tracking_mlflow keep them.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from longtail.artifacts import Artifact, Store
from longtail.tracking import TrackingSettings

Cell = str | float | int | bool | None


@dataclass(frozen=True)
class Table:
    """Rows under named columns, and the two that its plot shows."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    x: str
    y: str
    title: str

    def points(self) -> list[tuple[Cell, float]]:
        """The plot's points; rows without a finite y are not in it."""
        x, y = self.columns.index(self.x), self.columns.index(self.y)
        return [(row[x], float(row[y])) for row in self.rows if isinstance(row[y], int | float) and math.isfinite(row[y])]  # type: ignore[arg-type]


class Track:
    """A run that is being recorded; this one records nothing (backend "none")."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Record the numbers among `metrics` at `step`, which must not fall."""

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Record final values; nested mappings become names with slashes."""

    def table(self, table: Table) -> None:
        """Record a table and its plot."""

    def page(self, name: str, html: str) -> None:
        """Record an HTML page."""

    def used(self, artifact: Artifact) -> None:
        """The run read a finished artifact."""

    def made(self, artifact: Artifact) -> None:
        """The run made an artifact, which is finished."""


@dataclass(frozen=True)
class TrackedRun:
    """What a run is called, where it belongs and where it is kept; plain values, so that it travels to a worker."""

    settings: TrackingSettings
    store: Store
    run_id: str
    name: str
    group: str
    job_type: str
    config: Mapping[str, Any]
    inputs: tuple[Artifact, ...] = ()


def check_credentials(settings: TrackingSettings) -> None:
    """Tell Ray's W&B integration not to look for an account, or see that there is one.

    Raises:
        ValueError: tracking.mode is online and WANDB_API_KEY is not set.
    """
    if settings.backend != "wandb":
        return
    os.environ["WANDB_MODE"] = settings.mode  # Ray asks for an API key unless this says offline
    if settings.mode == "online" and not os.environ.get("WANDB_API_KEY"):
        raise ValueError(
            "tracking.mode = 'online' needs an account's key in WANDB_API_KEY, here and on every node (for a submitted job: --runtime-env-json). "
            'Set it, or leave tracking.mode = "offline" and push later with wandb sync.'
        )


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float | int]:
    """The finite numbers of a nested mapping by path ("all/choirrec/auc"); what is no number is left out."""
    found: dict[str, float | int] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= numbers(value, f"{path}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            found[path] = int(value) if isinstance(value, bool | int) else float(value)
    return found


def lineage_of(artifact: Artifact) -> dict[str, Any]:
    """What is told of a finished artifact: its manifest without `info`, which readers of its tables want."""
    return {name: value for name, value in artifact.manifest.items() if name != "info"}


def disk_folder(store: Store, run: str) -> Path:
    """Where files of a backend lie that must be on a disk: the store, or a folder of this machine where that is none."""
    if isinstance(store.fs, pafs.LocalFileSystem):
        return Path(store.root)
    return Path(os.environ.get("LONGTAIL_HOME", "~/.longtail")).expanduser() / run


def made_folder(store: Store, run: str) -> Path:
    """`disk_folder`, made where it is missing."""
    folder = disk_folder(store, run)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
