"""Behaviour drift in the synthetic world: what an item is about stays, and which things people like together changes.

Every item has a theme, which its title speaks of, and every theme belongs to a topic, which is what users like. From a moment on, once or again and again,
a share of the themes changes places: each goes to a topic that another of them leaves, so that topics keep their numbers of themes. Whoever knew before
which themes are liked together is wrong about those from then on, for items that nobody has met too, and right again once one item of a theme has told.

Letters: H themes, T topics, M moments.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from longtail.settings import Settings
from longtail.times import DAY_US
from longtail.windows import Windows

Ints = npt.NDArray[np.int64]


class DriftSettings(Settings):
    """Themes below the topics, and when how many of them change places."""

    themes_per_topic: int = Field(1, ge=1, description="1: a topic is its own theme")
    start: Literal["history_end", "train_end"] | None = Field(None, description="the first moment (with logs.split by dates, to the microsecond); None: never")
    frac: float = Field(0.0, ge=0, le=1, description="share of all themes that change places at a moment")
    every_days: float | None = Field(None, gt=0, description="again after so many days, to the logs' end; None: once")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.start is None) != (self.frac == 0):
            raise ValueError(f"start = {self.start!r} and frac = {self.frac:g} go together: when themes change places, and how many. Give both or neither")
        if self.start is None and self.every_days is not None:
            raise ValueError(f"every_days = {self.every_days:g} repeats what start begins, and there is no start. Set start, or leave out every_days")
        return self

    @property
    def is_off(self) -> bool:
        return self.themes_per_topic == 1 and self.start is None


@dataclass(frozen=True)
class Drift:
    """Which topic each theme belongs to, and since when."""

    since_M: Ints  # microseconds, ascending; the first is the beginning of time
    topic_MH: Ints

    @staticmethod
    def of(settings: DriftSettings, num_topics: int, windows: Windows, seed: int) -> "Drift":
        """The whole plan of a world.

        Raises:
            ValueError: fewer than two themes would change places.
        """
        topic_H = np.arange(num_topics * settings.themes_per_topic) % num_topics
        moments = _moments(settings, windows)
        moving = round(settings.frac * len(topic_H))
        if moments and moving < 2:
            raise ValueError(
                f"logs.synthetic.drift.frac = {settings.frac:g} of {len(topic_H)} themes is {moving}: two at least must change places. Raise frac, or "
                "logs.synthetic.drift.themes_per_topic."
            )
        rng, rows = np.random.default_rng([seed, 0xD21F]), [topic_H]
        for _ in moments:
            rows.append(regrouped(rows[-1], moving, rng))
        return Drift(np.array([np.iinfo(np.int64).min, *moments], np.int64), np.stack(rows))

    def topics(self, theme_N: Ints, time_N: Ints) -> Ints:
        """The topic of each theme at each time."""
        found: Ints = self.topic_MH[np.searchsorted(self.since_M, time_N, side="right") - 1, theme_N]
        return found


def regrouped(topic_H: Ints, moving: int, rng: np.random.Generator) -> Ints:
    """The topics after `moving` random themes, from three topics or more, have changed places: none of them is left where it was."""
    while True:
        moved = rng.permutation(len(topic_H))[:moving]
        sizes = np.bincount(topic_H[moved])
        if 2 * sizes.max() <= moving:
            break
    # In a circle with each topic's themes side by side, so many steps on is a theme of another topic.
    order = rng.permutation(len(sizes))[topic_H[moved]].argsort(kind="stable")
    moved = moved[order]
    after = topic_H.copy()
    after[moved] = np.roll(topic_H[moved], sizes.max())
    return after


def _moments(settings: DriftSettings, windows: Windows) -> list[int]:
    if settings.start is None:
        return []
    first = windows.history_end if settings.start == "history_end" else windows.train_end
    return [first] if settings.every_days is None else list(range(first, windows.end, round(settings.every_days * DAY_US)))
