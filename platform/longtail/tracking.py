"""Tracking settings. Nothing leaves the machine unless `mode` says online; the tracking itself is in pipelines.tracking."""

from typing import Literal

from pydantic import Field

from longtail.settings import Settings


class TrackingSettings(Settings):
    """Where training curves and results are recorded beside the artifacts; never part of a stage's key."""

    backend: Literal["wandb", "none"] = "wandb"
    mode: Literal["offline", "online"] = Field("offline", description="offline needs no account; `wandb sync <run.uri>/wandb/offline-run-*` pushes later")
    project: str = Field("longtail", min_length=1)
    entity: str | None = Field(None, description="user or team that owns the project; None: the account's own")
    group: str | None = Field(None, description="None: the run's name")
