"""Labels: which events are exposures, which outcomes, and the examples that follow.

Letters: E events, K examples.

Two forms. Where exposures are logged, each is an example, and its label is whether the first outcome of the same user and item (and request, where both
name one) came within the window. Where they are not, the outcomes are the positives and longtail.negatives makes the rest by a declared policy.
An outcome counts only if it lies before the end of its example's split: a later one is not known when that split closes.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from longtail.schema import EVENT_KINDS
from longtail.settings import Settings
from longtail.times import HOUR_US
from longtail.windows import Windows

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NEVER = np.iinfo(np.int64).max
MAX_HOURS = 876_000.0  # a century
Outcome = Literal["click", "cart", "purchase"]


class LabelSettings(Settings):
    """Which kind is the exposure, which the outcome, and how long after the exposure an outcome counts; what is left out is the source's own."""

    exposure: Literal["none", "impression", "click", "cart"] | None = Field(None, description='"none": no logged exposures, negatives are sampled')
    outcome: Outcome | None = None
    conversion: Literal["none", "cart", "purchase"] | None = Field(None, description='second outcome, for CVR and CTCVR heads; "none": one outcome only')
    outcome_window_h: float | None = Field(None, gt=0, le=MAX_HOURS)
    conversion_window_h: float | None = Field(None, gt=0, le=MAX_HOURS)


@dataclass(frozen=True)
class Labels:
    """LabelSettings with every value known."""

    exposure: str | None  # None: no logged exposures
    outcome: str
    conversion: str | None = None
    outcome_window_h: float = 24.0
    conversion_window_h: float = 72.0

    def overridden(self, settings: LabelSettings) -> "Labels":
        """These labels with what the config sets.

        Raises:
            ValueError: exposure, outcome and conversion do not follow each other in the order impression, click, cart, purchase.
        """
        given: dict[str, Any] = {name: value for name, value in settings.model_dump().items() if value is not None}
        chosen: dict[str, Any] = {name: None if value == "none" else value for name, value in given.items()}
        labels = replace(self, **chosen)
        if "conversion" not in given and labels.conversion is not None and EVENT_KINDS.index(labels.conversion) <= EVENT_KINDS.index(labels.outcome):
            labels = replace(labels, conversion=None)  # the source's own conversion is what the config chose as the outcome
        chain = [kind for kind in (labels.exposure, labels.outcome, labels.conversion) if kind is not None]
        places = [EVENT_KINDS.index(kind) for kind in chain]
        if places != sorted(set(places)):
            raise ValueError(
                f"logs.labels: exposure = {labels.exposure}, outcome = {labels.outcome}, conversion = {labels.conversion} must follow each other in the order "
                'impression, click, cart, purchase. Set the ones that the source should not decide, "none" where there is none.'
            )
        return labels


@dataclass(frozen=True)
class CodedEvents:
    """Events as numbers: rows of the users and items tables, microseconds, places in EVENT_KINDS."""

    user_E: Ints
    item_E: Ints  # -1: none (a search)
    time_E: Ints
    kind_E: npt.NDArray[np.int8]
    request_E: Ints  # -1: none

    def __len__(self) -> int:
        return len(self.user_E)

    def take(self, which: Bools | Ints) -> "CodedEvents":
        return CodedEvents(*(getattr(self, field.name)[which] for field in fields(self)))

    def is_kind(self, *kinds: str) -> Bools:
        """Which events [E] are of these kinds and name an item."""
        which: Bools = np.isin(self.kind_E, [EVENT_KINDS.index(kind) for kind in kinds]) & (self.item_E >= 0)
        return which

    def of_kind(self, *kinds: str) -> "CodedEvents":
        """The events of these kinds that name an item."""
        return self.take(self.is_kind(*kinds))


@dataclass(frozen=True)
class Examples:
    """Labelled examples as numbers. `request_K` is the source's request (-1: none), `group_K` numbers what was shown or bought together."""

    user_K: Ints
    item_K: Ints
    time_K: Ints
    split_K: npt.NDArray[np.int8]
    request_K: Ints
    group_K: Ints
    outcome_K: npt.NDArray[np.int8]
    conversion_K: npt.NDArray[np.int8]  # -1: the source has one outcome only

    def __len__(self) -> int:
        return len(self.user_K)

    def take(self, which: Bools | Ints) -> "Examples":
        return Examples(*(getattr(self, field.name)[which] for field in fields(self)))

    def joined(self, other: "Examples") -> "Examples":
        return Examples(*(np.concatenate([getattr(self, field.name), getattr(other, field.name)]) for field in fields(self)))


def logged_examples(events: CodedEvents, windows: Windows, labels: Labels) -> Examples:
    """One example per logged exposure after the history window, labelled by the first outcome (and conversion) in its window."""
    assert labels.exposure is not None
    exposures = events.of_kind(labels.exposure)
    split = windows.split_of(exposures.time_E)
    exposures, split = exposures.take(split >= 0), split[split >= 0]
    closed = windows.ends[split]
    outcome_time = _first_within(events.of_kind(labels.outcome), exposures, exposures.time_E, labels.outcome_window_h, closed)
    group = request_groups(exposures)
    conversion = _conversions(events, exposures, outcome_time, labels, closed)
    outcome = (outcome_time < NEVER).astype(np.int8)
    return Examples(exposures.user_E, exposures.item_E, exposures.time_E, split, exposures.request_E, group, outcome, conversion)


def outcome_examples(events: CodedEvents, windows: Windows, labels: Labels) -> Examples:
    """The positives of a source without logged exposures, those of the history window (split -1) included.

    One per user, item and request at the outcome's first time; where there is no request id, a user's outcomes of one instant are one request.
    """
    outcomes = events.of_kind(labels.outcome)
    group = request_groups(outcomes)
    order = np.lexsort((outcomes.time_E, outcomes.item_E, group))
    sorted_group, sorted_item = group[order], outcomes.item_E[order]
    first = order[np.append(True, (sorted_group[1:] != sorted_group[:-1]) | (sorted_item[1:] != sorted_item[:-1]))[: len(order)]]
    rows = outcomes.take(first)
    split = windows.split_of(rows.time_E)
    closed = np.where(split >= 0, windows.ends[np.maximum(split, 0)], windows.history_end)
    conversion = _conversions(events, rows, rows.time_E, labels, closed)
    return Examples(rows.user_E, rows.item_E, rows.time_E, split, rows.request_E, group[first], np.ones(len(rows), np.int8), conversion)


def request_groups(events: CodedEvents) -> Ints:
    """Numbers from 0 for what a user was shown or took together: at one request or, where there is none, at one instant."""
    return dense(events.user_E, np.where(events.request_E >= 0, events.request_E, -1 - events.time_E))


def dense(*columns: Ints) -> Ints:
    """Numbers from 0 for the distinct rows of `columns`, in their sorted order."""
    numbers = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, place = np.unique(column, return_inverse=True)
        _, numbers = np.unique(numbers * max(len(values), 1) + place.reshape(-1), return_inverse=True)
    return numbers.reshape(-1)


def _conversions(events: CodedEvents, rows: CodedEvents, outcome_time: Ints, labels: Labels, closed: Ints) -> npt.NDArray[np.int8]:
    if labels.conversion is None:
        return np.full(len(rows), -1, np.int8)
    happened = outcome_time < NEVER
    found = np.full(len(rows), NEVER, np.int64)
    found[happened] = _first_within(
        events.of_kind(labels.conversion), rows.take(happened), outcome_time[happened], labels.conversion_window_h, closed[happened]
    )
    return (found < NEVER).astype(np.int8)


def _first_within(events: CodedEvents, rows: CodedEvents, since: Ints, window_h: float, closed: Ints) -> Ints:
    """Time of the first of `events` with the row's user and item, in [since, since + window] and before `closed`; NEVER where there is none.

    Where both the event and the row name a request, it must be the same one; unless none of the events' requests is one of the rows', as where
    impressions carry the page's id and purchases the order's.
    """
    named = (events.request_E >= 0) & np.isin(events.request_E, rows.request_E).any()
    same_request = _first_of_key(events.take(named), rows, True, since, window_h, closed)
    # An event without a request fits any row, and any event a row without one.
    unnamed_event = _first_of_key(events.take(~named), rows, False, since, window_h, closed)
    unnamed_row = np.where(rows.request_E < 0, _first_of_key(events.take(named), rows, False, since, window_h, closed), NEVER)
    first: Ints = np.minimum(np.minimum(same_request, unnamed_event), unnamed_row)
    return first


def _first_of_key(events: CodedEvents, rows: CodedEvents, by_request: bool, since: Ints, window_h: float, closed: Ints) -> Ints:
    """`_first_within` by user and item, with `by_request` also by request."""
    if len(events) == 0 or len(rows) == 0:
        return np.full(len(rows), NEVER, np.int64)
    columns = [np.concatenate([events.user_E, rows.user_E]), np.concatenate([events.item_E, rows.item_E])]
    if by_request:
        columns.append(np.concatenate([events.request_E, rows.request_E]))
    keys = dense(*columns)
    key_E, key_K = keys[: len(events)], keys[len(events) :]
    clock = np.unique(np.concatenate([events.time_E, since]))
    order = np.lexsort((events.time_E, key_E))
    composite_E = key_E[order] * len(clock) + np.searchsorted(clock, events.time_E[order])
    place = np.searchsorted(composite_E, key_K * len(clock) + np.searchsorted(clock, since))
    nearest = order[np.minimum(place, len(order) - 1)]
    found = events.time_E[nearest]
    valid = (place < len(order)) & (key_E[nearest] == key_K) & (found - since <= round(window_h * HOUR_US)) & (found < closed)
    return np.where(valid, found, NEVER)
