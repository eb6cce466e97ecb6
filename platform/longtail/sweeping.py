"""Settings of a sweep; the search itself is in tuning.sweep, what is searched by default in tuning.spaces."""

from typing import Literal

from pydantic import Field, field_validator

from longtail.rankers.settings import Head, RankerName
from longtail.settings import Settings

Value = bool | int | float | str


class SweepSettings(Settings):
    """A search over settings of one ranker and of the stages before it."""

    ranker: RankerName = "choirrec"
    num_trials: int = Field(4, ge=1, description="the config as it stands is the first of them")
    max_concurrent: int = Field(1, ge=1)
    metric: Literal["gauc", "gauc_low", "auc", "auc_cold"] = Field("gauc_low", description="on the validation window")
    head: Head | None = Field(None, description="None: the ranker's primary head")
    space: dict[str, tuple[Value, ...]] | None = Field(None, description="values to try by setting, as in --set; None: the ranker's own, tuning.spaces")

    @field_validator("space")
    @classmethod
    def _something_to_choose_from(cls, space: dict[str, tuple[Value, ...]] | None) -> dict[str, tuple[Value, ...]] | None:
        for name, values in (space or {}).items():
            if not values:
                raise ValueError(f"{name} has no values to try; list at least one, or leave it out")
            if name.split(".")[0] in ("run", "cluster", "sweep", "tracking", "serve"):
                raise ValueError(f"{name} changes no result of training and cannot be searched")
        return space
