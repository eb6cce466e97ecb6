"""The form that an answer is decoded under: a regular expression for vLLM's structured outputs.

`free` bounds three free strings, for models that can summarise. `grounded` lets the model choose, but only among what its facts say: which attributes,
which goods of the long and of the short window, which price level, habit or variety. Models of a few hundred million parameters copy the example or drift
off into anything when they write freely; choosing they can. Either answer is validated afterwards (longtail.profile_text).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from longtail.profile_facts import PRICE_LEVELS, UNKNOWN, recent_goods, stable_goods
from longtail.profiles import FIELDS, ProfilesSettings, field_chars

_FREE = '[A-Za-z][^"\\\\\\x00-\\x1f]{{11,{last}}}'
NO_ATTRIBUTES = "Someone of whom no attribute is known"
NO_GOODS = "Nothing is known of the interests yet"
NUM_STABLE, NUM_RECENT = 8, 3


def answer_pattern(settings: ProfilesSettings, facts: Mapping[str, Any] | None) -> str:
    """The pattern of one user's answer; `facts` is a row of FACTS, which the free form ignores."""
    limits = field_chars(settings.max_output_tokens)
    if settings.answer_form == "free" or facts is None:
        parts = [_FREE.format(last=limit - 1) for limit in limits]
    else:
        parts = [_identity(facts, limits[0]), _interests(facts, limits[1]), _philosophy(facts)]
    return "\\{" + ",".join(f'"{name}":"{part}"' for name, part in zip(FIELDS, parts, strict=True)) + "\\}"


def _identity(facts: Mapping[str, Any], limit: int) -> str:
    known = [_safe(attribute.replace(": ", " ")) for attribute in facts["attributes"] if not attribute.endswith(f": {UNKNOWN}")]
    kept = _within(known, limit - len("Someone with "))
    return f"Someone with {_some_in_order(kept)}" if kept else NO_ATTRIBUTES


def _interests(facts: Mapping[str, Any], limit: int) -> str:
    stable = [_safe(line["leaf"]) for line in stable_goods(facts)[:NUM_STABLE]]
    kept = _within(list(dict.fromkeys(stable)), limit - len("Buys mostly ") - len("; lately "))
    if not kept:
        return NO_GOODS
    recent = [name for name in dict.fromkeys(_safe(line["leaf"]) for line in recent_goods(facts)[:NUM_RECENT]) if name not in kept[:3]]
    lately = _within(recent, limit - len("Buys mostly ") - len("; lately ") - sum(len(name) + 2 for name in kept))
    return f"Buys mostly {_some_in_order(kept)}" + (f"(; lately {_some_in_order(lately)})?" if lately else "")


def _philosophy(facts: Mapping[str, Any]) -> str:
    levels = [level for level in PRICE_LEVELS if any(line["price_power"] == level for line in facts["lines"])]
    habit = "(keeps to few kinds of goods|likes variety)"
    if not facts["lines"]:
        return "Little is known of how this shopper decides"
    return f"Pays ({'|'.join(levels)}) prices and {habit}" if levels else f"This shopper {habit}"


def _within(names: Sequence[str], chars: int) -> list[str]:
    """The first names that fit `chars` together, so that an answer that takes all of them still closes."""
    kept: list[str] = []
    for name in names:
        chars -= len(name) + 2
        if chars < 0:
            break
        kept.append(name)
    return kept


def _some_in_order(names: Sequence[str]) -> str:
    """A pattern for one or more of `names`, comma-separated, none twice, in their order."""
    own = [re.escape(name).replace("\\ ", " ") for name in names]
    starts = [first + "".join(f"(, {later})?" for later in own[place + 1 :]) for place, first in enumerate(own)]
    return f"({'|'.join(starts)})"


def _safe(name: str) -> str:
    """A name without the characters that JSON would escape."""
    return " ".join(re.sub(r'["\\\x00-\x1f]', " ", name).split())
