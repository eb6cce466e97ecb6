"""What a sweep searches: codebooks, gates, encoders, widths and learning rates, as typed parameters by setting.

Reads nothing, writes nothing; `python -m tuning.sweep --show` prints the space of a config.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longtail.config import Config, parse
from longtail.sweeping import Range, Value, Values

Point = dict[str, Value]


@dataclass(frozen=True)
class Parameter:
    """One setting and what to try: values in the order of the paper's own size of things, or a range of numbers."""

    setting: str
    values: Values
    meaning: str = ""

    def choices(self, own: Value) -> tuple[Value, ...]:
        """The values to choose from, the config's own among them.

        Raises:
            TypeError: it has a range.
        """
        if isinstance(self.values, Range):
            raise TypeError(f"{self.setting} has a range")
        return tuple(sorted({*self.values, own}, key=in_order))

    def draw(self, rng: random.Random, own: Value) -> Value:
        """One value at random."""
        if not isinstance(self.values, Range):
            return rng.choice(self.choices(own))
        low, high = self.values.low, self.values.high
        if self.values.whole and not self.values.log:
            return rng.randint(int(low), int(high))
        found = math.exp(rng.uniform(math.log(low), math.log(high))) if self.values.log else rng.uniform(low, high)
        return min(max(round(found), int(low)), int(high)) if self.values.whole else min(max(found, float(low)), float(high))

    def in_words(self, own: Value) -> str:
        """Its values, the config's own in brackets."""
        if isinstance(self.values, Range):
            kind = "int" if self.values.whole else "float"
            return f"{kind} {self.values.low} … {self.values.high}{', log' if self.values.log else ''}  [{own}]"
        kinds = {type(value).__name__ for value in self.values}
        return f"{' or '.join(sorted(kinds))}: " + ", ".join(f"[{value}]" if value == own else str(value) for value in self.choices(own))


USER_CODES = (
    Parameter("codes.user.num_stages", (1, 2, 3), "S, depth of the group hierarchy; the paper's is 3"),
    Parameter("codes.user.codebook_size", (4, 8, 16, 32), "k, codes per stage; the paper's 256 is for millions of users"),
)
ITEM_CODES = (
    Parameter("codes.item.num_stages", (1, 2, 3, 4), "S, codes per item"),
    Parameter("codes.item.codebook_size", (8, 16, 32, 64), "k, codes per stage"),
)
ENCODER = (
    Parameter("item_encoder.factor_dim", (0, 64, 128), "width of the behaviour factors; 0: the contrastive projection alone, as published"),
    Parameter("item_encoder.temperature", Range(low=0.03, high=0.3, log=True), "of the contrastive loss"),
)
TRAINING = (Parameter("train.learning_rate", Range(low=0.002, high=0.2, log=True), "at the first step, of the config's optimizer"),)


def _gates(ranker: str) -> tuple[Parameter, ...]:
    of = f"rankers.{ranker}"
    return (
        Parameter(f"{of}.group_dim", (8, 16, 32), "width of the fused group ID"),
        Parameter(f"{of}.min_purchases", (1.0, 2.0, 5.0, 10.0), "hard gate theta_act: purchases from which a user can teach"),
        Parameter(f"{of}.min_confidence", Range(low=0.0, high=0.3), "hard gate theta_conf: distance of the teacher's probability from one half"),
        Parameter(f"{of}.distill_weight", (0.0, 0.005, 0.05, 0.5), "lambda; the paper's is 0.005, 0 switches distillation off"),
        Parameter(f"{of}.distill_margin", Range(low=0.0, high=0.4), "error below which nothing is distilled"),
        Parameter(f"{of}.distill_teacher", ("individual", "group"), "direction of the distillation"),
    )


def _semantics(ranker: str) -> tuple[Parameter, ...]:
    of = f"rankers.{ranker}"
    return (
        Parameter(f"{of}.alignment", (True, False), "MBA: learned drift of every code"),
        Parameter(f"{of}.alignment_shrinkage", (0.0, 20.0, 50.0, 200.0), "rows at which a code's alignment counts half; 0 as published"),
        Parameter(f"{of}.alignment_rate", Range(low=0.1, high=1.0, log=True), "learning rate of the alignment, as a share of the others'"),
        Parameter(f"{of}.similarity", ("none", "tiers", "kernels"), "how near the history lies, straight into the tower"),
        Parameter(f"{of}.semantic_to_behaviour", (True, False), "attention branch (a)"),
        Parameter(f"{of}.behaviour_to_semantic", (True, False), "attention branch (b)"),
        Parameter(f"{of}.semantic_dim", (16, 32, 64), "width of the aligned vector in the tower"),
    )


def _widths(ranker: str) -> tuple[Parameter, ...]:
    return (Parameter(f"rankers.{ranker}.id_dim", (8, 16, 32), "width of user and item IDs"),)


SPACES: Mapping[str, tuple[Parameter, ...]] = {
    "choirrec": (*USER_CODES, *ITEM_CODES, *_gates("choirrec"), *_widths("choirrec"), *TRAINING),
    "saviorrec": (*ITEM_CODES, *ENCODER, *_semantics("saviorrec"), *_widths("saviorrec"), *TRAINING),
    "duet": (*USER_CODES, *ITEM_CODES, *ENCODER, *_gates("duet"), *_semantics("duet"), *_widths("duet"), *TRAINING),
}


def space_of(config: Config) -> tuple[Parameter, ...]:
    """The space that a config asks for: its own [sweep.space], or the ranker's default.

    Raises:
        ValueError: a setting does not exist, refuses one of its values, or has its own value outside of its range; or the ranker has no space.
    """
    given = config.sweep.space
    if given is None and config.sweep.ranker not in SPACES:
        raise ValueError(f"sweep.ranker = {config.sweep.ranker!r} has no space of its own (there are {', '.join(SPACES)}): write one as [sweep.space]")
    space = SPACES[config.sweep.ranker] if given is None else tuple(Parameter(setting, values) for setting, values in given.items())
    for parameter in space:
        values = parameter.values
        for value in (values.low, values.high) if isinstance(values, Range) else values:
            with_point(config, {parameter.setting: value})
    for setting, own in current(config, space).items():
        values = next(parameter.values for parameter in space if parameter.setting == setting)
        if isinstance(values, Range) and not (isinstance(own, int | float) and values.low <= own <= values.high):
            raise ValueError(
                f"sweep.space: {setting} is searched from {values.low} to {values.high}, and the config as it stands, the first trial, has {own}. "
                "Widen the range, or set a value inside of it."
            )
    return space


def current(config: Config, space: Sequence[Parameter]) -> Point:
    """The config's own values of the space's settings."""
    raw = config.model_dump(mode="json")
    return {parameter.setting: _get(raw, parameter.setting) for parameter in space}


def with_point(config: Config, point: Mapping[str, Value]) -> Config:
    """The config with the point's values in place.

    Raises:
        ValueError: a setting does not exist or refuses its value.
    """
    raw = config.model_dump()
    for setting, value in point.items():
        *parents, last = setting.split(".")
        section = raw
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None  # type: ignore[assignment]
        if not isinstance(section, dict):
            raise ValueError(f"sweep.space: there is no setting {setting!r}. Name it as in --set, for example codes.user.codebook_size.")
        section[last] = value
    return parse(raw, f"sweep point {in_words(point)}")


def draw(space: Sequence[Parameter], start: Point, num_points: int, seed: int) -> list[Point]:
    """Different points, `start` first and the others drawn at random; fewer than asked for where the space has no more."""
    points = [start]
    rng = random.Random(seed)
    finite = all(not isinstance(one.values, Range) for one in space)
    size = math.prod(len(one.choices(start[one.setting])) for one in space) if finite else num_points
    while len(points) < min(num_points, size):
        point: Point = {one.setting: one.draw(rng, start[one.setting]) for one in space}
        if point not in points:
            points.append(point)
    return points


def in_words(point: Mapping[str, Any]) -> str:
    """The point as --set arguments take it."""
    return ", ".join(f"{setting}={in_word(value)}" for setting, value in point.items())


def in_word(value: Any) -> str:
    """A value as --set takes it, to four digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show(space: Sequence[Parameter], start: Point) -> str:
    """The space as text: setting, type, values with the config's own marked, meaning."""
    rows = [(one.setting, one.in_words(start[one.setting]), one.meaning) for one in space]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{setting:<{wide[0]}}  {values:<{wide[1]}}  {meaning}".rstrip() for setting, values, meaning in rows)


def in_order(value: Any) -> tuple[str, Any]:
    """Numbers by size, texts by letter."""
    return ("text" if isinstance(value, str) else "number", value)


def _get(raw: Any, setting: str) -> Value:
    for part in setting.split("."):
        if not isinstance(raw, dict) or part not in raw:
            raise ValueError(f"sweep.space: there is no setting {setting!r}. Name it as in --set, for example codes.user.codebook_size.")
        raw = raw[part]
    value: Value = raw
    return value
