"""Settings of a sweep; the search itself is in `tuning`."""

from typing import Literal

from pydantic import Field

from longtail.rankers.settings import Head
from longtail.settings import Settings


class SweepSettings(Settings):
    ranker: Literal["choirrec", "saviorrec"] = "choirrec"
    num_trials: int = Field(4, ge=1)
    max_concurrent: int = Field(1, ge=1)
    metric: Literal["gauc", "gauc_low", "auc", "auc_cold"] = Field("gauc_low", description="on the validation window")
    head: Head | None = None
    num_cpus_per_trial: float = Field(1.0, gt=0)
