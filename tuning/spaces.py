"""What a sweep searches: the codebooks' sizes and the rankers' gates, as finite sets of values by setting.

Reads nothing, writes nothing; `python -m tuning.sweep --show` prints the space of a config.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longtail.config import Config, parse
from longtail.sweeping import Value

Point = dict[str, Value]


@dataclass(frozen=True)
class Parameter:
    """One setting and the values to try, in the order of the paper's own size of things."""

    setting: str
    values: tuple[Value, ...]
    meaning: str = ""


SPACES: Mapping[str, tuple[Parameter, ...]] = {
    "choirrec": (
        Parameter("codes.user.num_stages", (1, 2, 3), "depth of the group hierarchy; the paper's is 3"),
        Parameter("codes.user.codebook_size", (4, 8, 16, 32), "codes per stage; the paper's 256 is for millions of users"),
        Parameter("rankers.choirrec.group_dim", (8, 16, 32), "width of the fused group ID"),
        Parameter("rankers.choirrec.min_purchases", (1.0, 2.0, 5.0, 10.0), "hard gate theta_act: purchases from which a user can teach"),
        Parameter("rankers.choirrec.min_confidence", (0.0, 0.05, 0.1, 0.2), "hard gate theta_conf: distance of the teacher's probability from one half"),
        Parameter("rankers.choirrec.distill_weight", (0.0, 0.005, 0.05, 0.5), "lambda; the paper's is 0.005, 0 switches distillation off"),
        Parameter("rankers.choirrec.distill_margin", (0.0, 0.1, 0.3), "error below which nothing is distilled"),
        Parameter("rankers.choirrec.distill_teacher", ("individual", "group"), "direction of the distillation"),
    ),
    "saviorrec": (
        Parameter("codes.item.num_stages", (1, 2, 3, 4), "codes per item"),
        Parameter("codes.item.codebook_size", (8, 16, 32, 64), "codes per stage"),
        Parameter("rankers.saviorrec.alignment", (True, False), "MBA: learned drift of every code"),
        Parameter("rankers.saviorrec.semantic_to_behaviour", (True, False), "attention branch (a)"),
        Parameter("rankers.saviorrec.behaviour_to_semantic", (True, False), "attention branch (b)"),
    ),
}


def space_of(config: Config) -> tuple[Parameter, ...]:
    """The space that a config asks for: its own [sweep.space], or the ranker's default.

    Raises:
        ValueError: a setting does not exist or refuses one of its values.
    """
    given = config.sweep.space
    space = SPACES[config.sweep.ranker] if given is None else tuple(Parameter(setting, values) for setting, values in given.items())
    for parameter in space:
        for value in parameter.values:
            with_point(config, {parameter.setting: value})
    return space


def current(config: Config, space: Sequence[Parameter]) -> Point:
    """The config's own values of the space's settings."""
    raw = config.model_dump(mode="json")
    return {parameter.setting: _get(raw, parameter.setting) for parameter in space}


def with_point(config: Config, point: Point) -> Config:
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
    size = math.prod(len({*parameter.values, start[parameter.setting]}) for parameter in space)
    while len(points) < min(num_points, size):
        point: Point = {parameter.setting: rng.choice(sorted({*parameter.values, start[parameter.setting]}, key=repr)) for parameter in space}
        if point not in points:
            points.append(point)
    return points


def in_words(point: Mapping[str, Any]) -> str:
    """The point as --set arguments take it."""
    return ", ".join(f"{setting}={str(value).lower() if isinstance(value, bool) else value}" for setting, value in point.items())


def _get(raw: Any, setting: str) -> Value:
    for part in setting.split("."):
        raw = raw[part]
    value: Value = raw
    return value
