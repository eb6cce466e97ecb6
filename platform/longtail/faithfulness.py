"""Faithfulness: whether profiles say what their facts say, for any language model.

A profile is held against the facts of its own prompt. Known names are the run's category names and values of categorical attributes that KnownNames finds
(longtail.profile_text); "stands in the facts" means whole words of the user's part of the prompt, by the rule that answers are validated by.

    stated categories   of the known category names in a text, each once, those that stand in the facts
    primary categories  of the one to three goods with the highest counts in the longest window that has any, those whose name is in the text
    price words         of the texts' "<level> price…" those that agree. In brackets right behind a good of the facts: one of the levels that its lines have.
                        Anywhere else: not below the lowest and not above the highest level on the lines, since it may be a mean
    attribute values    of the stated ones, those that are the user's. Stated is an attribute's name with a known value (or a number, or "unknown") behind it,
                        and a known value that stands alone, unless the facts or the categories have the same words; each once a profile
    contradictions      attribute values where the facts know another one, and price words where the facts know other levels
    invented names      known names in a text that do not stand in the facts, each once

Each outcome is measured twice. `profiles` are the texts that go on: an answer that was refused is a deterministic text there, and one that was not has no
invented name, because those are refused. `answers` are what the model itself said, refused or not, as far as it can be read; they tell models apart.

Reads logs and profiles; the stage `faithfulness` writes faithfulness.json. Run: python -m pipelines.faithfulness --config …
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa

from longtail.logs import LogsInfo
from longtail.profile_facts import PRICE_LEVELS, UNKNOWN, label, line_heads, read_back, stable_goods
from longtail.profile_names import attribute_values, category_pairs
from longtail.profile_text import FORMAT_REASONS, PRICE_WORD, Fields, KnownNames, RefusedError, foreign_names, parse, spaced, stands_in, words
from longtail.settings import Settings

NUM_PRIMARY = 3
ALL = "all"
_BRACKETS = re.compile(r"([^()]*)\(([^()]*)\)")

Section = Literal["profiles", "answers"]
Tally = dict[tuple[Section, str], Counter[str]]  # by section and outcome


class Share(Settings):
    """How many of `of` statements hold; None where there is no statement."""

    share: float | None
    of: int


class Measures(Settings):
    """The measures of the module's docstring over some texts."""

    texts: int
    stated_categories: Share
    primary_categories: Share
    price_words: Share
    attribute_values: Share
    contradictions: int
    contradictions_per_text: float
    invented_names: int
    texts_with_invented: Share
    prompt_tokens: float  # mean, of the outcome's prompts
    output_tokens: float


class FaithfulnessResults(Settings):
    """What faithfulness.json holds."""

    outcomes: dict[str, int]
    format_failures: dict[str, int]  # answers that could not be read, by reason
    content_refusals: dict[str, int]  # answers that were read and refused, by reason
    profiles: dict[str, Measures]  # by outcome, and "all"
    answers: dict[str, Measures]
    notes: dict[str, object]


@dataclass(frozen=True)
class Catalogue:
    """What the run's profiles may speak of."""

    pairs: frozenset[tuple[str, str]]  # first-level and leaf names
    values: Mapping[str, frozenset[str]]  # of each attribute, in words
    categories: KnownNames
    own_values: KnownNames  # of categorical attributes
    names: KnownNames  # both

    @staticmethod
    def of(users: pa.Table, items: pa.Table, info: LogsInfo) -> "Catalogue":
        pairs, values = category_pairs(items), attribute_values(users, info)
        categories = {name for pair in pairs for name in pair}
        stated = {value for name in info.categorical_attributes for value in values[label(name)]}
        in_words = {name: frozenset(_phrase(value) for value in own) for name, own in values.items()}
        return Catalogue(frozenset(pairs), in_words, KnownNames(categories), KnownNames(stated), KnownNames(categories | stated))

    @cached_property
    def heads(self) -> Mapping[str, tuple[str, str]]:
        return line_heads(self.pairs)

    @cached_property
    def category_phrases(self) -> frozenset[str]:
        return frozenset(_phrase(name) for pair in self.pairs for name in pair)


@dataclass(frozen=True)
class Statement:
    """Something that a text says of the user, held against the facts."""

    agrees: bool
    contradicts: bool


def measure(fields: Fields, facts: str, catalogue: Catalogue) -> Counter[str]:
    """Counts of what one text says, and of what of it holds.

    Args:
        fields: its three paragraphs.
        facts: the user's part of its prompt.
        catalogue: of the run.
    """
    row = read_back(facts, catalogue.heads)
    given, said = spaced(facts), spaced(fields.text)
    categories = dict.fromkeys(catalogue.categories.within(fields.text))
    primary = dict.fromkeys(_phrase(line["leaf"]) for line in stable_goods(row)[:NUM_PRIMARY] if line["leaf"] != UNKNOWN)
    prices, attributes = price_statements(fields.text, row), attribute_statements(fields.text, facts, row, catalogue)
    invented = foreign_names(fields.text, facts, catalogue.names)
    return Counter(
        {
            "texts": 1,
            "categories": len(categories),
            "categories_hold": sum(stands_in(pieces, given) for pieces in categories),
            "primary": len(primary),
            "primary_hold": sum(f" {phrase} " in said for phrase in primary),
            "prices": len(prices),
            "prices_hold": sum(one.agrees for one in prices),
            "attributes": len(attributes),
            "attributes_hold": sum(one.agrees for one in attributes),
            "contradictions": sum(one.contradicts for one in (*prices, *attributes)),
            "invented": len(invented),
            "with_invented": bool(invented),
        }
    )


def price_statements(text: str, row: Mapping[str, Any]) -> list[Statement]:
    """The price words of a text, those in brackets behind a good first."""
    of_good: dict[str, set[int]] = {}
    for line in row["lines"]:
        of_good.setdefault(_phrase(line["leaf"]), set()).update({PRICE_LEVELS.index(line["price_power"])} if line["price_power"] != UNKNOWN else set())
    found: list[Statement] = []

    def behind_a_good(match: re.Match[str]) -> str:
        levels, before = PRICE_WORD.findall(match[2]), spaced(match[1])
        goods = [known for phrase, known in of_good.items() if before.endswith(f" {phrase} ")]
        if not levels or not goods:
            return match[0]
        known = set().union(*goods)
        found.extend(Statement(PRICE_LEVELS.index(level) in known, bool(known) and PRICE_LEVELS.index(level) not in known) for level in levels)
        return match[1]

    rest = _BRACKETS.sub(behind_a_good, text.lower())
    known = set().union(*of_good.values())
    for level in PRICE_WORD.findall(rest):
        agrees = bool(known) and min(known) <= PRICE_LEVELS.index(level) <= max(known)
        found.append(Statement(agrees, bool(known) and not agrees))
    return found


def attribute_statements(text: str, facts: str, row: Mapping[str, Any], catalogue: Catalogue) -> list[Statement]:
    """The attribute values that a text states: those behind their attribute's name, then those that stand alone."""
    own = {name: _phrase(line.removeprefix(f"{name}: ")) for line in row["attributes"] for name in catalogue.values if line.startswith(f"{name}: ")}
    known = {name: value for name, value in own.items() if value != UNKNOWN}
    named = {(name, value) for name in catalogue.values for value in _values_behind(name, words(text), own.get(name), catalogue.values[name])}
    found = [Statement(own.get(name) == value, name in known and known[name] != value) for name, value in sorted(named)]
    already, of_user, given = {value for _, value in named}, spaced("\n".join(row["attributes"])), spaced(facts)
    for pieces in dict.fromkeys(catalogue.own_values.within(text)):
        phrase = " ".join(pieces)
        if phrase in already:
            continue
        if stands_in(pieces, of_user):
            found.append(Statement(agrees=True, contradicts=False))
        elif not stands_in(pieces, given) and phrase not in catalogue.category_phrases:
            found.append(Statement(agrees=False, contradicts=any(phrase in catalogue.values[name] for name in known)))
    return found


def _values_behind(name: str, said: list[str], own: str | None, values: frozenset[str]) -> set[str]:
    """The values that follow an attribute's name in a text's words: the user's own if it does, else the longest known one, else a number."""
    of_name = words(name)
    longest = max((value.count(" ") + 1 for value in values), default=0)
    found = set()
    for start in range(len(said) - len(of_name)):
        if said[start : start + len(of_name)] != of_name:
            continue
        behind = said[start + len(of_name) :]
        behind = behind[1:] if behind[0] in ("is", "of") else behind
        following = [" ".join(behind[:length]) for length in range(min(longest, len(behind)), 0, -1)]
        number = behind[0] if behind and (behind[0].isdigit() or behind[0] == UNKNOWN) else None
        is_own = own is not None and (own in following or number in own.split())  # "35 to 44" is 35-44
        value = own if is_own else next((phrase for phrase in following if phrase in values), number)
        if value is not None:
            found.add(value)
    return found


def _phrase(name: str) -> str:
    return " ".join(words(name))


def tally(rows: Iterable[Mapping[str, Any]], catalogue: Catalogue, max_output_tokens: int) -> Tally:
    """Counts over rows of PROFILES, by section and outcome; tallies of parts add up."""
    found: Tally = {}
    for row in rows:
        tokens = Counter({"rows": 1, "prompt_tokens": row["prompt_tokens"], "output_tokens": row["output_tokens"]})
        fields = Fields(row["identity"], row["interests"], row["philosophy"])
        found.setdefault(("profiles", row["outcome"]), Counter()).update(measure(fields, row["facts"], catalogue) + tokens)
        if row["outcome"] == "deterministic":
            continue
        of_answers = found.setdefault(("answers", row["outcome"]), Counter())
        of_answers.update(tokens)
        try:
            of_answers.update(measure(parse(row["raw_text"], max_output_tokens), row["facts"], catalogue))
        except RefusedError:
            continue  # counted by the outcome
    return found


def added(tallies: Iterable[Tally]) -> Tally:
    """The tally of all parts together."""
    found: Tally = {}
    for one in tallies:
        for key, counts in one.items():
            found.setdefault(key, Counter()).update(counts)
    return found


def results(counts: Tally, notes: Mapping[str, object]) -> FaithfulnessResults:
    """Shares and means of a tally."""
    outcomes = {outcome: of["rows"] for (section, outcome), of in sorted(counts.items()) if section == "profiles"}
    refused = {outcome.removeprefix("fallback:"): number for outcome, number in outcomes.items() if outcome.startswith("fallback:")}

    def by_outcome(wanted: Section) -> dict[str, Measures]:
        parts = {outcome: of for (section, outcome), of in sorted(counts.items()) if section == wanted}
        together = sum(parts.values(), Counter())
        return {outcome: _measures(of) for outcome, of in ({ALL: together} | parts).items() if of["texts"]}

    return FaithfulnessResults(
        outcomes=outcomes,
        format_failures={reason: number for reason, number in refused.items() if reason in FORMAT_REASONS},
        content_refusals={reason: number for reason, number in refused.items() if reason not in FORMAT_REASONS},
        profiles=by_outcome("profiles"),
        answers=by_outcome("answers"),
        notes=dict(notes),
    )


def _measures(counts: Counter[str]) -> Measures:
    def share(name: str) -> Share:
        return Share(share=counts[f"{name}_hold"] / counts[name] if counts[name] else None, of=counts[name])

    return Measures(
        texts=counts["texts"],
        stated_categories=share("categories"),
        primary_categories=share("primary"),
        price_words=share("prices"),
        attribute_values=share("attributes"),
        contradictions=counts["contradictions"],
        contradictions_per_text=counts["contradictions"] / counts["texts"],
        invented_names=counts["invented"],
        texts_with_invented=Share(share=counts["with_invented"] / counts["texts"], of=counts["texts"]),
        prompt_tokens=counts["prompt_tokens"] / counts["rows"],
        output_tokens=counts["output_tokens"] / counts["rows"],
    )


def table(found: FaithfulnessResults) -> str:
    """The results as text; behind each share, how many statements it is of."""
    titles = ("categories", "primary", "prices", "attributes")
    lines = []
    for section, kinds in (("profiles", found.profiles), ("answers", found.answers)):
        if not kinds:
            continue
        head = f"{section:<26} {'texts':>7} " + " ".join(f"{title:>15}" for title in titles)
        lines.append(f"{head} {'contradictions':>15} {'invented':>15} {'tokens in':>10} {'out':>6}")
        for outcome, one in kinds.items():
            shares = " ".join(f"{_shown(of):>15}" for of in (one.stated_categories, one.primary_categories, one.price_words, one.attribute_values))
            wrong = f"{one.contradictions:,} ({one.contradictions_per_text:.3f})", f"{one.invented_names:,} ({one.texts_with_invented.share:.3f})"
            lines.append(f"{outcome[:26]:<26} {one.texts:>7,} {shares} {wrong[0]:>15} {wrong[1]:>15} {one.prompt_tokens:>10.1f} {one.output_tokens:>6.1f}")
    for name, failures in (("format failures", found.format_failures), ("refused for what they say", found.content_refusals)):
        lines.append(f"{name}: " + (", ".join(f"{reason} {number:,}" for reason, number in failures.items()) or "none"))
    return "\n".join(lines)


def _shown(one: Share) -> str:
    return "none" if one.share is None else f"{one.share:.3f} ({one.of:,})"
