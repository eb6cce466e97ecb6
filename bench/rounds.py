"""Timing in turns: ours and the peers do the same work round by round, so that what else the machine does falls on all of them.

Every bench but `serve` and `sweep` is made of this: sides that take turns, and one JSON line of what they took.
Reads nothing, writes nothing; a bench module calls it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "ours"
MIN_ROUNDS = 5


def nothing() -> None:
    """What a side needs before each run, where it needs nothing."""


@dataclass(frozen=True)
class Side:
    """One way of doing the work: `run` is timed, `before` makes the same start for it and is not."""

    run: Callable[[], Any]
    before: Callable[[], None] = nothing


@dataclass
class Taken:
    """Seconds of each round and what the last run returned."""

    seconds: list[float] = field(default_factory=list)
    result: Any = None

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


def in_turns(sides: Mapping[str, Side], rounds: int = MIN_ROUNDS, warm_up: int = 1) -> dict[str, Taken]:
    """`warm_up` runs of each side that do not count, then `rounds` rounds, in which every side begins as often as the others.

    Raises:
        ValueError: rounds < 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds = {rounds}: must be at least 1. Leave --rounds out for {MIN_ROUNDS}.")
    taken = {name: Taken() for name in sides}
    names = list(sides)
    for number in range(-warm_up, rounds):
        for name in _turned(names, number):
            sides[name].before()
            began = time.perf_counter()
            taken[name].result = sides[name].run()
            if number >= 0:
                taken[name].seconds.append(time.perf_counter() - began)
    return taken


def _turned(names: list[str], number: int) -> list[str]:
    place = number % len(names)
    return names[place:] + names[:place]


def report(bench: str, work: Mapping[str, Any], taken: Mapping[str, Taken], *, threads: int, quality: Mapping[str, Any], ours: str = OURS) -> dict[str, Any]:
    """The JSON line of a bench: medians in seconds, `ratio` = peer's seconds to ours (above 1: ours is faster), with the least and most over the rounds.

    Ratios are taken round by round: two runs of one round stood beside the same other work of the machine.
    """
    mine = taken[ours]
    peers = {name: one for name, one in taken.items() if name != ours}
    by_round = {name: [theirs / own for theirs, own in zip(one.seconds, mine.seconds, strict=True)] for name, one in peers.items()}
    return {
        "bench": bench,
        "work": dict(work),
        "ours_s": rounded(mine.median_s),
        "peers": {name: rounded(one.median_s) for name, one in peers.items()},
        "ratio": {name: rounded(statistics.median(ratios)) for name, ratios in by_round.items()},
        "spread": {
            "rounds": len(mine.seconds),
            "ours_s": least_and_most(mine.seconds),
            "peers": {name: least_and_most(one.seconds) for name, one in peers.items()},
            "ratio": {name: least_and_most(ratios) for name, ratios in by_round.items()},
        },
        "threads": threads,
        "quality": dict(quality),
    }


def rounded(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def least_and_most(values: Sequence[float]) -> list[float]:
    return [rounded(min(values)), rounded(max(values))]


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The flags that benches share; a bench adds the sizes of its work."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help="runs of each side after the warm-up")
    parser.add_argument("--threads", type=int, default=2, help="of every side")
    return parser


def say(line: Mapping[str, Any]) -> None:
    """The last line of a bench's stdout."""
    print(json.dumps(line))
