"""The time split: history | train, whose last share is validation | test. Times are microseconds since the epoch, UTC."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from longtail.schema import SPLITS
from longtail.settings import Settings
from longtail.times import from_us, to_us

Ints = npt.NDArray[np.int64]


class SplitSettings(Settings):
    """The time split: history | train (its last share is validation) | test. Either two dates, or two shares of the events' whole span of time."""

    history_frac: float = Field(0.5, gt=0, lt=1)
    train_frac: float = Field(0.3, gt=0, lt=1)
    history_end: datetime | None = Field(None, description="UTC where no offset is given; goes with train_end and replaces the two shares")
    train_end: datetime | None = None
    validation_frac: float = Field(0.2, ge=0, lt=1, description="last share of the train window, by time")

    @field_validator("history_end", "train_end")
    @classmethod
    def _utc(cls, value: datetime | None) -> datetime | None:
        return None if value is None else value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.history_end is None) != (self.train_end is None):
            raise ValueError("history_end and train_end go together: give both dates, or neither and the shares history_frac and train_frac")
        if self.history_end is not None and self.train_end is not None and self.history_end >= self.train_end:
            raise ValueError(f"history_end = {self.history_end} must lie before train_end = {self.train_end}")
        if self.history_end is None and self.history_frac + self.train_frac >= 1:
            raise ValueError(f"history_frac + train_frac = {self.history_frac + self.train_frac:g} must stay below 1: the rest is the test window")
        return self


@dataclass(frozen=True)
class Windows:
    """The split's boundaries; each window holds its first microsecond and not its last."""

    start: int
    history_end: int
    validation_start: int
    train_end: int
    end: int

    @staticmethod
    def of(times: Ints, settings: SplitSettings) -> "Windows":
        """The windows of logs whose events happened at `times` [E].

        Raises:
            ValueError: there are no events, or a window holds none.
        """
        if len(times) == 0:
            raise ValueError("the events table has no rows: there is nothing to split by time. Bring events, or point logs.tables.events at the right files.")
        start, end = int(times.min()), int(times.max()) + 1
        if settings.history_end is not None and settings.train_end is not None:
            history_end, train_end = to_us(settings.history_end), to_us(settings.train_end)
        else:
            history_end = start + round(settings.history_frac * (end - start))
            train_end = start + round((settings.history_frac + settings.train_frac) * (end - start))
        validation_start = train_end - round(settings.validation_frac * (train_end - history_end))
        windows = Windows(start, history_end, validation_start, train_end, end)
        empty = windows.empty(times)
        if empty:
            raise ValueError(
                f"empty window(s): {', '.join(empty)}. The events run from {from_us(start)} to {from_us(end - 1)}; logs.split puts "
                f"history before {from_us(history_end)}, validation from {from_us(validation_start)}, test from {from_us(train_end)}. "
                "Move history_end and train_end (or the shares) so that events fall into each window; validation_frac = 0 does without validation."
            )
        return windows

    def empty(self, times: Ints) -> list[str]:
        """Names of the windows that hold none of `times`; validation may be empty where it has no length."""
        counts = self.counts(times)
        optional = {"validation"} if self.validation_start == self.train_end else set()
        return [name for name, count in counts.items() if count == 0 and name not in optional]

    def counts(self, times: Ints) -> dict[str, int]:
        """How many of `times` fall into each window."""
        split = self.split_of(times)
        inside = (times >= self.start) & (times < self.end)
        return {"history": int((inside & (split < 0)).sum())} | {name: int((split == place).sum()) for place, name in enumerate(SPLITS)}

    def split_of(self, times: Ints) -> npt.NDArray[np.int8]:
        """Place in schema.SPLITS [len(times)]; -1 in the history window and outside of the logs."""
        place = np.searchsorted([self.history_end, self.validation_start, self.train_end, self.end], times, side="right") - 1
        split: npt.NDArray[np.int8] = np.where(place == len(SPLITS), -1, place).astype(np.int8)
        return split

    @property
    def ends(self) -> Ints:
        """When each split of schema.SPLITS closes: what happens later is not known to its labels."""
        return np.array([self.validation_start, self.train_end, self.end], np.int64)
