"""Tracking settings. Nothing leaves the machine unless `mode` says online."""

from typing import Literal

from pydantic import Field

from longtail.settings import Settings


class TrackingSettings(Settings):
    backend: Literal["wandb", "none"] = "wandb"
    mode: Literal["offline", "online"] = "offline"
    project: str = "longtail"
    group: str | None = Field(None, description="None: the run's name")
