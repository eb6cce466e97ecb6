"""Logs: a source's raw logs become users, items, events and labelled examples, split by time.

Reads a source adapter (longtail.sources.*) or three Parquet tables; writes users, items, events, examples. Run: python -m pipelines.logs --config …
"""

from datetime import datetime
from typing import Literal

from pydantic import Field

from longtail.settings import Settings


class TablesSettings(Settings):
    """Where the user's own three tables lie (Parquet files or folders, local or any pyarrow URI)."""

    users: str
    items: str
    events: str


class SplitSettings(Settings):
    """The time split: history | train (its last share is validation) | test. Either two dates, or two shares of the events' whole span of time."""

    history_frac: float = Field(0.5, gt=0, lt=1)
    train_frac: float = Field(0.3, gt=0, lt=1)
    history_end: datetime | None = None
    train_end: datetime | None = None
    validation_frac: float = Field(0.2, ge=0, lt=1, description="last share of the train window, by time")


class LabelSettings(Settings):
    """Which kind is the exposure, which the outcome, and how long after the exposure an outcome counts."""

    exposure: Literal["impression", "click", "cart", "purchase"] | None = Field(None, description="None: no logged exposures, negatives are sampled")
    outcome: Literal["click", "cart", "purchase"] = "purchase"
    conversion: Literal["cart", "purchase"] | None = Field(None, description="second outcome, for CVR and CTCVR heads")
    outcome_window_h: float = Field(24.0, gt=0)
    conversion_window_h: float = Field(72.0, gt=0)


class NegativeSettings(Settings):
    """How candidates that were not chosen come to be, where the source logs no exposures."""

    policy: Literal["popularity_matched", "available"] = Field(
        "popularity_matched",
        description="popularity_matched: drawn from the positives' own item distribution | available: the source's candidate pool (Complete Journey's promotions)",
    )
    per_positive: float = Field(1.0, gt=0)


class SampleSettings(Settings):
    """A stratified sample of the users (all activity levels), and of their examples; None keeps all."""

    num_users: int | None = Field(None, ge=1)
    max_positives_per_user: int | None = Field(None, ge=1, description="per split, drawn by a seeded hash")


class SyntheticSettings(Settings):
    """The synthetic world: planted user groups, planted item semantics that are independent of category, price and brand."""

    num_users: int = Field(600, ge=10)
    num_items: int = Field(800, ge=10)
    num_groups: int = Field(8, ge=1, description="planted user groups; 1 means that there are none")
    num_topics: int = Field(12, ge=1, description="planted item semantics, visible in titles only")
    num_days: int = Field(120, ge=10)
    cold_item_frac: float = Field(0.2, ge=0, lt=1, description="items first shown in the test window")
    quiet_user_frac: float = Field(0.5, ge=0, le=1)
    sessions_per_user: float = Field(20.0, gt=0)
    impressions_per_session: int = Field(8, ge=1)


class LogsSettings(Settings):
    """The `logs` stage."""

    source: Literal["complete_journey", "movielens_100k", "movielens_1m", "synthetic", "tables"] = "complete_journey"
    tables: TablesSettings | None = None
    categorical_attributes: tuple[str, ...] | None = Field(None, description="user columns; None: the adapter's own")
    numeric_attributes: tuple[str, ...] | None = None
    split: SplitSettings = SplitSettings()
    labels: LabelSettings = LabelSettings()
    negatives: NegativeSettings = NegativeSettings()
    sample: SampleSettings = SampleSettings()
    synthetic: SyntheticSettings = SyntheticSettings()


class LogsInfo(Settings):
    """What every later stage must know of the logs; it stands in the manifest's `info`."""

    source: str
    start: datetime  # first event
    history_end: datetime
    validation_start: datetime
    train_end: datetime
    end: datetime  # just after the last event
    categorical_attributes: tuple[str, ...]
    numeric_attributes: tuple[str, ...]
    has_conversion: bool
    behaviour_kinds: tuple[str, ...]  # event kinds that make histories and counts, strongest last, e.g. ("click", "purchase")
    exposure: str  # one sentence that every report repeats: "logged impressions" or the sampling policy in words
    num_users: int
    num_items: int
    num_events: int
    num_examples: dict[str, int]  # by split
