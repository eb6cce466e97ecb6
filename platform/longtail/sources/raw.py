"""What every source adapter hands to the logs stage: three tables in the documented form, and what only the source itself can know."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longtail.labels import Labels
from longtail.negatives import Negatives

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pools:
    """What a source could have sold where: `event_pool` [E] is the pool (a store-week, say) in which each event fell, by row of the events table."""

    event_pool: Ints
    offered: Callable[[Ints], tuple[Ints, Ints]]  # wanted pools -> (row of the items table [R], pool [R]), each pair once, sorted by item
    names: Callable[[Ints], list[str]]  # pools in words, for request ids
    sentence: str  # what the pool is, in words for every report


@dataclass(frozen=True)
class RawLogs:
    """A source's tables: users, items and events as in `longtail.schema`, ids unique, every event's user and item known."""

    users: pa.Table
    items: pa.Table
    events: pa.Table
    labels: Labels  # the source's own; the config may override each
    negatives: Negatives
    categorical_attributes: tuple[str, ...] = ()
    numeric_attributes: tuple[str, ...] = ()
    rows_in: int = 0  # events as the source had them
    dropped: Mapping[str, int] = field(default_factory=dict)  # events that the adapter left out, by reason
    pools: Pools | None = None
    price_from_history: bool = False  # items.price is to be the median paid price in the history window
    truth: Mapping[str, pa.Table] = field(default_factory=dict)  # planted truth, keyed by user_id or item_id
