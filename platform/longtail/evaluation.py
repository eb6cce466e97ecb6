"""Evaluation: metrics by slice of user activity and item age, paired with the base ranker."""

from pydantic import Field

from longtail.settings import Compute, Settings


class EvaluateSettings(Settings):
    """The `evaluate` stage."""

    low_activity_frac: float = Field(0.2, gt=0, lt=1, description="users with the fewest purchases before the test window")
    high_activity_frac: float = Field(0.2, gt=0, lt=1)
    cold_item_events: int = Field(100, ge=1, description="an item with fewer events before the row's snapshot is cold")
    new_item_days: float = Field(20.0, gt=0)
    num_bins: int = Field(10, ge=2, description="calibration bins and activity deciles")
    bootstrap_rounds: int = Field(200, ge=0, description="paired bootstrap over users, for the difference from the base")
    compute: Compute = Compute(batch_size=4096)
