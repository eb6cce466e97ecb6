"""Randomised cold start: items that sell well made cold, so that cold and warm items are of equal quality and differ in events alone (ours).

Items that are cold by nature are also worse or niche, and what a ranker gains on them mixes both. Here a random share of the busy items keeps a few events
from before validation starts, or none: the others enter no feature, history, pair, codebook or train label. Rows of validation and test all stay: there the
items are met as cold as they were when training ended. Reads coded events and the examples made of them; longtail.logs writes what is left. Set by
[logs.cold_start].

Letters: E events, K examples, I items, C cold items.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from longtail.examples import Labelled
from longtail.labels import CodedEvents, Examples
from longtail.ranks import rank_within
from longtail.schema import SPLITS
from longtail.settings import Settings, own_seed
from longtail.times import from_us
from longtail.windows import Windows

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

HIDDEN = "cold item's other events"
OVER_EVENTS = "of a cold item, over the events that it keeps"

TRAIN, TEST = SPLITS.index("train"), SPLITS.index("test")


class ColdStartSettings(Settings):
    """A cold-start world: a random share of the busy items keeps a few events."""

    items_frac: float = Field(0, ge=0, lt=1, description="of the items with at least min_events events before validation and rows in the test window; 0: off")
    min_events: int = Field(100, ge=1, description="behaviour events of a busy item before validation starts")
    keep: tuple[tuple[int, int], ...] = Field(
        ((0, 0), (1, 5), (6, 20), (21, 99)),
        min_length=1,
        description="a cold item keeps low to high events, drawn uniformly; equal shares of the items a range",
    )
    seed: int | None = Field(None, ge=0, description="of which items, and which of their events; without it run.seed")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for low, high in self.keep:
            if not 0 <= low <= high < self.min_events:
                raise ValueError(f"keep has [{low}, {high}]: 0 <= low <= high < min_events = {self.min_events}, or nothing would be taken from an item")
        return self


@dataclass(frozen=True)
class ColdStart:
    """Which items were made cold, and what is left."""

    item_C: Ints  # rows of the items table, ascending
    num_events_C: Ints
    hidden_E: Bools  # events that no later stage sees
    labelled: Labelled  # without the train examples that were taken


def cold_start(
    events: CodedEvents, labelled: Labelled, kinds: tuple[str, ...], windows: Windows, settings: ColdStartSettings, num_items: int, seed: int
) -> ColdStart:
    """The cold items, the events that are hidden of them, and the examples that stay; no item and everything where `items_frac` is 0.

    Args:
        events: the kept events, whole.
        labelled: the examples that `events` make; those of validation and test all stay.
        kinds: kinds whose events count.

    Raises:
        ValueError: no item can be made cold.
    """
    if settings.items_frac == 0:
        nothing = np.zeros(0, np.int64)
        return ColdStart(nothing, nothing, np.zeros(len(events), bool), labelled)
    rng = np.random.default_rng([own_seed(settings.seed, seed), 0xC01D])
    counted_E = events.is_kind(*kinds) & (events.time_E < windows.validation_start)
    busy = np.flatnonzero(_busy(np.bincount(events.item_E[counted_E], minlength=num_items), labelled.examples, windows, settings, num_items))
    drawn = rng.choice(busy, max(round(settings.items_frac * len(busy)), 1), replace=False)
    low, high = np.array(settings.keep)[np.arange(len(drawn)) % len(settings.keep)].T
    kept_I = np.full(num_items, -1)  # -1: not cold
    kept_I[drawn] = rng.integers(low, high, endpoint=True)
    item_C = np.sort(drawn)

    hidden_E = (events.item_E >= 0) & (kept_I[events.item_E] >= 0)
    rows = np.flatnonzero(hidden_E & counted_E)
    hidden_E[rows[rank_within(events.item_E[rows], rng.random(len(rows))) < kept_I[events.item_E[rows]]]] = False
    over = _over_events(labelled.examples, events.take(~hidden_E & counted_E), kept_I >= 0, windows, rng)
    left_out = {**labelled.left_out, OVER_EVENTS: int(labelled.examples.outcome_K[over].sum())}
    rest = replace(labelled, examples=labelled.examples.take(~over), left_out=left_out)
    return ColdStart(item_C, kept_I[item_C], hidden_E, rest)


def _busy(events_I: Ints, examples: Examples, windows: Windows, settings: ColdStartSettings, num_items: int) -> Bools:
    """Which items [I] lose something by the cut and have rows to be measured on."""
    often = events_I >= settings.min_events
    in_test = np.bincount(examples.item_K[examples.split_K == TEST], minlength=num_items) > 0
    busy: Bools = often & in_test
    if not busy.any():
        raise ValueError(
            f"logs.cold_start.items_frac = {settings.items_frac:g} finds no item to make cold: one needs at least logs.cold_start.min_events = "
            f"{settings.min_events} events before {from_us(windows.validation_start)} and an example in the test window. Of {num_items} items, {often.sum()} "
            f"have the first, {in_test.sum()} the second. Lower min_events (and keep), move logs.split, or set items_frac = 0."
        )
    return busy


def _over_events(examples: Examples, kept: CodedEvents, cold_I: Bools, windows: Windows, rng: np.random.Generator) -> Bools:
    """Which train examples [K] of cold items go: as many positives stay as events of the train window do, the same ones where they are, and the same share of
    the negatives."""
    rows = np.flatnonzero((examples.split_K == TRAIN) & cold_I[examples.item_K])
    item, positive = examples.item_K[rows], examples.outcome_K[rows] == 1
    num_items = len(cold_I)
    stay_I = np.bincount(kept.item_E[kept.time_E >= windows.history_end], minlength=num_items)
    positives_I, negatives_I = (np.bincount(item[which], minlength=num_items) for which in (positive, ~positive))
    stay_I = np.minimum(stay_I, positives_I)
    share_I = stay_I / np.maximum(positives_I, 1)
    matched = np.isin(_event_keys(examples.user_K[rows], item, examples.time_K[rows]), _event_keys(kept.user_E, kept.item_E, kept.time_E))
    rank = rank_within(item * 2 + positive, ~matched, rng.random(len(rows)))
    over = np.zeros(len(examples), bool)
    over[rows] = rank >= np.where(positive, stay_I[item], np.round(share_I * negatives_I)[item])
    return over


def _event_keys(user: Ints, item: Ints, time: Ints) -> npt.NDArray[np.void]:
    """One value for each (user, item, time), equal where all three are."""
    return np.ascontiguousarray(np.stack([user, item, time], axis=1)).view([("", np.int64)] * 3).reshape(-1)
