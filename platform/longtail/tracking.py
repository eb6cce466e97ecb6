"""Tracking settings. Nothing leaves the machine unless `mode` says online; the tracking itself is in pipelines.tracking."""

from typing import Literal

from pydantic import Field, model_validator

from longtail.settings import Settings
from longtail.storage import without_secrets

LOCAL_DATABASE = "sqlite:///"


class TrackingSettings(Settings):
    """Where training curves and results are recorded beside the artifacts; never part of a stage's key."""

    backend: Literal["wandb", "mlflow", "none"] = "wandb"
    mode: Literal["offline", "online"] = Field(
        "offline", description="offline needs no account and no server; `wandb sync <run.uri>/wandb/offline-run-*` pushes later"
    )
    project: str = Field("longtail", min_length=1, description="W&B's project, MLflow's experiment")
    entity: str | None = Field(None, description="W&B: user or team that owns the project; None: the account's own")
    group: str | None = Field(None, description="None: the run's name")
    uri: str | None = Field(None, min_length=1, description="MLflow's server (with mode online) or sqlite:/// database; None: <run.uri>/mlflow.db")

    @model_validator(mode="after")
    def _nothing_leaves_unless_asked(self) -> "TrackingSettings":
        if self.backend != "mlflow":
            if self.uri is not None:
                raise ValueError(
                    f'uri = {without_secrets(self.uri)!r} is MLflow\'s alone, and backend = {self.backend!r}. Set backend = "mlflow", or leave uri out.'
                )
            return self
        if self.mode == "online" and self.uri is None:
            raise ValueError('mode = "online" with backend = "mlflow" needs a server. Set uri, such as "http://mlflow:5000", or mode = "offline".')
        if self.mode == "offline" and self.uri is not None and not self.uri.startswith(LOCAL_DATABASE):
            raise ValueError(
                f'uri = {without_secrets(self.uri)!r} is not a database on this machine, and mode = "offline" keeps everything here. '
                f'Set mode = "online" to send runs there, or uri = "{LOCAL_DATABASE}/a/path/mlflow.db", or leave uri out.'
            )
        return self
