"""Samples: the settings of the stage and the shape of its rows. The features themselves are in longtail.features and longtail.lent, which serving shares.

Reads logs and collaborative scores; writes samples.parquet/part-*.parquet, one part per part of the examples; the stages `matches` and `lent` write their
other columns. Run: python -m pipelines.samples --config …
"""

from typing import Any

from pydantic import Field

from longtail.settings import Compute, Settings


class SamplesSettings(Settings):
    """The `samples` stage."""

    history_length: int = Field(50, ge=1)
    snapshot_days: int = Field(7, ge=1, description="popularity and item counts are as of the last such boundary")
    numeric_bins: int = Field(8, ge=2, description="quantile bins of numeric user attributes")
    cluster_depth: int = Field(2, ge=1, description="items are of one cluster where so many of their semantic codes are the same")
    rows_per_file: int = Field(65_536, ge=1_024, description="training reads one such file at a time")
    memory_mb: int = Field(1536, ge=1, description="what an actor's events and rows may take, beside the run's users and items: a share of the users at a time")
    compute: Compute = Compute(num_actors=2, num_cpus=0.5)

    def key_fields(self) -> dict[str, Any]:
        """The values that decide the stage's result: memory decides none."""
        return {name: value for name, value in super().key_fields().items() if name != "memory_mb"}


class FeatureSpec(Settings):
    """Widths and vocabulary sizes of a sample row; it stands in the lent table's manifest and in every checkpoint."""

    num_users: int  # user_row runs from 1; 0 is a user nobody knows
    num_items: int  # item_row runs from 1; 0 is padding or an item nobody knows
    history_length: int
    group_history_length: int
    attributes: tuple[str, ...]
    attribute_sizes: tuple[int, ...]  # codes of each attribute, 0 (unknown) included
    user_stats: tuple[str, ...]
    cross_stats: tuple[str, ...]
    match_stats: tuple[str, ...] = ()  # none for a ranker that reads no semantic codes' counts
    item_stats: tuple[str, ...]
    collaborative_stats: tuple[str, ...] = ()  # none where collaborative.scores is empty
    peer_stats: tuple[str, ...] = ()  # none where peers.form is "none"
    code_sizes: tuple[int, ...]  # codebook size of each stage; codes are stored plus one, 0 is no group
    has_conversion: bool
    lent: bool = True  # False: own features alone, for rankers that borrow nothing
