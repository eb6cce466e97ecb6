"""The form of an answer: bounded where the model writes freely, and nothing but facts where it chooses."""

import json
import random
import re
from typing import Any

import pytest

from longtail.profile_form import NO_ATTRIBUTES, NO_GOODS, answer_pattern
from longtail.profile_text import KnownNames, check, parse
from longtail.profiles import FIELDS, ProfilesSettings, field_chars

FREE = ProfilesSettings(answer_form="free")
GROUNDED = ProfilesSettings(answer_form="grounded")


def line(window: int, leaf: str, count: int, price_power: str = "low") -> dict[str, Any]:
    return {"window": window, "l1": "grocery", "leaf": leaf, "count": count, "price_power": price_power, "recent": True}


ROW = {
    "attributes": ["age: 35-44", "city: unknown", "home: Owner (flat)"],
    "lines": [line(0, "pears", 1, "high"), line(2, "milk", 9), line(2, '12" pizza', 5), line(2, "tea + more", 3, "unknown")],
    "searches": [],
}


def dumped(identity: str, interests: str, philosophy: str) -> str:
    return json.dumps(dict(zip(FIELDS, (identity, interests, philosophy), strict=True)), separators=(",", ":"))


def test_free_answers_are_bounded() -> None:
    pattern = re.compile(answer_pattern(FREE, None))
    limits = field_chars(FREE.max_output_tokens)
    assert pattern.fullmatch(dumped(*("a" * limit for limit in limits)))
    assert not pattern.fullmatch(dumped("a" * (limits[0] + 1), "a" * 20, "a" * 20))
    assert not pattern.fullmatch(dumped("", "a" * 20, "a" * 20))


@pytest.mark.parametrize(
    ("interests", "taken"),
    [
        ("Buys mostly milk", True),
        ("Buys mostly milk, tea + more", True),
        ("Buys mostly 12 pizza; lately pears", True),  # without the quotation mark that JSON would escape
        ("Buys mostly milk, milk", False),
        ("Buys mostly tea + more, milk", False),
        ("Buys mostly cigarettes", False),
        ("Buys mostly ", False),
    ],
)
def test_grounded_answers_choose_among_the_goods(interests: str, taken: bool) -> None:
    said = dumped("Someone with age 35-44", interests, "Pays low prices and likes variety")
    assert bool(re.fullmatch(answer_pattern(GROUNDED, ROW), said)) == taken


@pytest.mark.parametrize(
    ("identity", "philosophy", "taken"),
    [
        ("Someone with home Owner (flat)", "Pays high prices and keeps to few kinds of goods", True),
        ("Someone with city unknown", "Pays high prices and likes variety", False),
        ("Someone with age 35-44", "Pays lowest prices and likes variety", False),
    ],
)
def test_grounded_answers_choose_among_attributes_and_prices(identity: str, philosophy: str, taken: bool) -> None:
    assert bool(re.fullmatch(answer_pattern(GROUNDED, ROW), dumped(identity, "Buys mostly milk", philosophy))) == taken


def test_without_facts_there_is_one_answer() -> None:
    pattern = answer_pattern(GROUNDED, {"attributes": ["age: unknown"], "lines": [], "searches": []})
    assert re.fullmatch(pattern, dumped(NO_ATTRIBUTES, NO_GOODS, "Little is known of how this shopper decides"))


@pytest.mark.parametrize("seed", range(20))
def test_every_grounded_answer_stands_and_closes(seed: int) -> None:
    rng = random.Random(seed)
    goods = [" ".join("".join(rng.choices("bcdfgh", k=6)) for _ in range(rng.randint(1, 6))) for _ in range(rng.randint(1, 15))]
    own = [line(2, leaf, 30 - place, rng.choice(["low", "unknown"])) for place, leaf in enumerate(goods)]
    own += [line(0, f"fresh {place}", 3) for place in range(rng.randint(0, 4))]
    row = {"attributes": ["age: 35-44"][: rng.randint(0, 1)], "lines": own, "searches": []}
    pattern = answer_pattern(GROUNDED, row)
    said = longest_match(pattern)
    fields = parse(said, GROUNDED.max_output_tokens)
    limits = field_chars(GROUNDED.max_output_tokens)
    assert len(fields.interests) <= limits[1]
    assert len(fields.identity) <= limits[0]
    facts = "\n".join([*row["attributes"], *(f"grocery ({one['leaf']} - {one['count']} - {one['price_power']})" for one in own)])
    check(fields, facts, [one["leaf"] for one in own], KnownNames([*goods, "cigarettes"]))


def longest_match(pattern: str) -> str:
    """The answer that takes every optional part and the first of all alternatives, read off the pattern itself."""
    text, depth, out, skip = pattern, 0, [], None
    place = 0
    while place < len(text):
        char = text[place]
        if char == "\\":
            if skip is None:
                out.append(text[place + 1])
            place += 2
            continue
        if char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
            if skip is not None and depth < skip:
                skip = None
            if text[place + 1 : place + 2] == "?":
                place += 1
        elif char == "|":
            skip = depth if skip is None else skip
        elif skip is None:
            out.append(char)
        place += 1
    said = "".join(out)
    assert re.fullmatch(pattern, said)
    return said
