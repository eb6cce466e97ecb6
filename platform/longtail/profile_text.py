"""What is done with a model's answer: parse it, hold it against the facts, or replace it by a deterministic text of the same three fields.

A language model's output is untrusted. Every refusal has a reason, which the profile's outcome names ("fallback:<reason>"); the raw text is kept.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longtail.profile_facts import PRICE_LEVELS, UNKNOWN, recent_goods, stable_goods
from longtail.profiles import FIELDS, SYSTEM_PROMPT, field_chars

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_STOP = re.compile(r"[,;:.()\n]")
_NUMBER = re.compile(r"\d+")
PRICE_WORD = re.compile(rf"\b({'|'.join(PRICE_LEVELS)})\b[ -]price")
ECHO_WORDS = 5  # a run of so many words that the shared prompt has too counts as copied
MAX_ECHO_FRAC = 0.5
FORMAT_REASONS = ("empty", "unclosed", "not_json", "missing_field", "empty_field")  # why an answer is not read at all; every other reason is its content
MIN_NAME_CHARS = 4  # shorter names ("deli" is four) are also common words


@dataclass(frozen=True)
class Fields:
    """The three paragraphs of a profile."""

    identity: str
    interests: str
    philosophy: str

    @property
    def text(self) -> str:
        """The paragraphs as they are embedded."""
        return "\n".join((self.identity, self.interests, self.philosophy))


#: Every reason that a refusal can have.
REASONS = (
    *("empty", "unclosed", "not_json", "missing_field", "empty_field", "echo_prompt", "repetition"),
    *("foreign_number", "foreign_name", "foreign_price", "ungrounded"),
)


class RefusedError(Exception):
    """The answer cannot stand; `reason`, one of REASONS, is the word that is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text."""
    return _WORD.findall(text.lower())


def parse(raw: str, max_output_tokens: int) -> Fields:
    """The three fields of a raw answer, each without the half word that a length bound left at its end.

    Raises:
        RefusedError: empty, unclosed, not_json, missing_field, empty_field.
    """
    text = raw.strip()
    if not text:
        raise RefusedError("empty")
    if not text.endswith("}"):
        raise RefusedError("unclosed")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise RefusedError("not_json") from None
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in FIELDS):
        raise RefusedError("missing_field")
    tidy = [_whole_words(" ".join(value[name].split()), limit) for name, limit in zip(FIELDS, field_chars(max_output_tokens), strict=True)]
    if any(len(words(part)) < 2 for part in tidy):
        raise RefusedError("empty_field")
    return Fields(*tidy)


def _whole_words(text: str, limit: int) -> str:
    if len(text) >= limit and " " in text and text[-1] not in ".!?":
        text = text.rsplit(" ", 1)[0].rstrip(" ,;:-")
    return text


class KnownNames:
    """Every category name and attribute value of the run, to find those that a text names and its facts do not."""

    def __init__(self, names: Iterable[str]) -> None:
        shared = spaced(SYSTEM_PROMPT)
        phrases = {" ".join(words(name)) for name in names}
        self._phrases = {phrase for phrase in phrases if len(phrase) >= MIN_NAME_CHARS and f" {phrase} " not in shared and not phrase.isdigit()}
        self._longest = max((phrase.count(" ") + 1 for phrase in self._phrases), default=0)

    def within(self, text: str) -> list[tuple[str, ...]]:
        """The names that occur in `text` as whole words; of names that begin together, the longest. Each in the pieces that commas and stops cut it into."""
        pieces = [words(piece) for piece in _STOP.split(text)]
        own, piece_of = [word for piece in pieces for word in piece], [number for number, piece in enumerate(pieces) for _ in piece]
        found, place = [], 0
        while place < len(own):
            for length in range(min(self._longest, len(own) - place), 0, -1):
                if " ".join(own[place : place + length]) in self._phrases:
                    parts: dict[int, list[str]] = {}
                    for number, word in zip(piece_of[place : place + length], own[place : place + length], strict=True):
                        parts.setdefault(number, []).append(word)
                    found.append(tuple(" ".join(part) for part in parts.values()))
                    place += len(next(iter(parts.values()))) - 1  # the next name may begin behind the comma
                    break
            place += 1
        return found


def stands_in(pieces: Sequence[str], given: str) -> bool:
    """Whether a name, in the pieces that KnownNames found, is part of `given`, a text's words between spaces, with one at either end.

    A name with commas is also what a list of other, given names reads like: "Action, Comedy" beside the genre of that name.
    """
    return f" {' '.join(pieces)} " in given or all(f" {piece} " in given for piece in pieces)


def spaced(text: str) -> str:
    """The words of a text between spaces, with one at either end."""
    return " " + " ".join(words(text)) + " "


def foreign_names(text: str, facts: str, known: KnownNames) -> list[str]:
    """The known names in `text` that `facts`, the user's part of the prompt, does not have, each once."""
    given = spaced(facts)
    return list(dict.fromkeys(" ".join(pieces) for pieces in known.within(text) if not stands_in(pieces, given)))


def check(fields: Fields, facts: str, names: Sequence[str], known: KnownNames) -> None:
    """Hold a parsed answer against the facts that it was given.

    Args:
        facts: the user's part of the prompt.
        names: leaf and first-level categories on its lines, as they stand there.
        known: every name of the run.

    Raises:
        RefusedError: echo_prompt, repetition, foreign_number, foreign_name, foreign_price, ungrounded.
    """
    text = fields.text
    own = words(text)
    if _copied_frac(own) > MAX_ECHO_FRAC:
        raise RefusedError("echo_prompt")
    if _repeats(fields, own):
        raise RefusedError("repetition")
    if not set(_NUMBER.findall(text)) <= set(_NUMBER.findall(facts)):
        raise RefusedError("foreign_number")
    given_levels = {level for level in PRICE_LEVELS if f"- {level})" in facts}
    if foreign_names(text, facts, known):
        raise RefusedError("foreign_name")
    if any(level not in given_levels for level in PRICE_WORD.findall(text.lower())):
        raise RefusedError("foreign_price")
    goods = {word for name in names for word in words(name) if len(word) > 2}
    if goods and not goods & set(words(fields.interests)):
        raise RefusedError("ungrounded")


_PROMPT_RUNS = frozenset(tuple(run) for own in [words(SYSTEM_PROMPT)] for run in zip(*(own[shift:] for shift in range(ECHO_WORDS)), strict=False))


def _copied_frac(own: Sequence[str]) -> float:
    """Share of the answer's runs of ECHO_WORDS words that stand in the shared prompt."""
    runs = list(zip(*(own[shift:] for shift in range(ECHO_WORDS)), strict=False))
    return sum(run in _PROMPT_RUNS for run in runs) / max(len(runs), 1)


def _repeats(fields: Fields, own: Sequence[str]) -> bool:
    if len({fields.identity.lower(), fields.interests.lower(), fields.philosophy.lower()}) < len(FIELDS):
        return True
    runs = list(zip(own, own[1:], own[2:], strict=False))
    return len(set(own)) < 0.4 * len(own) or any(runs.count(run) >= 3 for run in set(runs))


def fallback(facts: Mapping[str, Any]) -> Fields:
    """The three fields without a model, from a row of structured facts (profile_facts.FACTS)."""
    known = [attribute for attribute in facts["attributes"] if not attribute.endswith(f": {UNKNOWN}")]
    identity = f"Shopper with {', '.join(known)}." if known else "Shopper of whom no attribute is known."
    stable = stable_goods(facts)
    return Fields(identity, _interests(stable, recent_goods(facts), facts["searches"]), _philosophy(stable))


def _interests(stable: Sequence[Mapping[str, Any]], recent: Sequence[Mapping[str, Any]], searches: Sequence[str]) -> str:
    queries = list(dict.fromkeys(search.split(" ", 1)[1] for search in searches if " " in search))[:5]
    if not stable:
        return f"Searches for {', '.join(queries)}." if queries else "Interests are not known yet."
    parts = ["Mostly " + ", ".join(f"{line['leaf']} ({line['l1']}, {line['price_power']} price)" for line in stable[:3])]
    if stable[3:]:
        parts.append("also " + ", ".join(line["leaf"] for line in stable[3:8]))
    if recent:
        parts.append("lately " + ", ".join(line["leaf"] for line in recent[:3]))
    if queries:
        parts.append("searches for " + ", ".join(queries))
    return "; ".join(parts) + "."


def _philosophy(stable: Sequence[Mapping[str, Any]]) -> str:
    if not stable:
        return "Little is known of how this shopper decides."
    total = sum(line["count"] for line in stable)
    priced = [line for line in stable if line["price_power"] in PRICE_LEVELS]
    top = stable[0]["count"] / total
    habit = "returns to few kinds of goods" if top > 0.4 else "buys in many categories" if len(stable) > 10 else "buys in some categories"
    if not priced:
        return f"Prices are not known; {habit}."
    weight = sum(line["count"] for line in priced)
    mean = sum(PRICE_LEVELS.index(line["price_power"]) * line["count"] for line in priced) / weight
    pace = "often" if total >= 50 else "now and then" if total >= 10 else "seldom"
    return f"Takes {PRICE_LEVELS[round(mean)]} prices within a category; {habit}; {pace} active."


def without(text: str, label: str, value: str) -> str:
    """A paragraph as it would read if an attribute's value were not known, for the forms that a profile's identity has.

    In free text the value goes wherever it stands in its own words; what a model said of it in others stays.
    """
    own = "|".join(re.escape(form) for form in dict.fromkeys((value, " ".join(words(value)))) if words(form))
    if not own:
        return text
    found = re.sub(rf"(?i)(?<![^\W_]){re.escape(label)}:? (?:is |of )?(?:{own})(?![^\W_])", "", text)
    if len(value) >= MIN_NAME_CHARS and not value.isdigit():
        found = re.sub(rf"(?i)(?<![^\W_])(?:{own})(?![^\W_])", "", found)
    if found == text:
        return text
    found = re.sub(r" ([,.;])", r"\1", " ".join(found.split()))
    found = re.sub(r",(?:\s*,)+", ",", found)
    found = re.sub(r"\bwith, ", "with ", re.sub(r",([.;]|$)", r"\1", found))
    return re.sub(r"\bwith(\.?)$", r"of whom no attribute is known\1", found)
