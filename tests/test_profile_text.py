"""A model's answer: what stands, what is refused and why, and what takes its place."""

import json

import pytest

from longtail.profile_text import Fields, KnownNames, RefusedError, check, fallback, parse
from longtail.profiles import FIELDS, SYSTEM_PROMPT, field_chars

BUDGET = 96
FACTS = "Attributes:\nage: 35-44\nPurchases in 365 days:\ngrocery (fluid milk - 9 - low)\ngrocery (soft drinks - 3 - middle)\nSearches:\nnone"
NAMES = ["grocery", "fluid milk", "soft drinks"]
KNOWN = KnownNames([*NAMES, "milk", "cigarettes", "frozen pizza", "Married", "deli", "35-44", "low", "yes", "store"])
GOOD = {"identity": "A shopper between 35 and 44.", "interests": "Mostly fluid milk, then soft drinks.", "philosophy": "Prefers low prices and keeps habits."}


def answer(**changes: str) -> str:
    return json.dumps(GOOD | changes)


def reason(raw: str, facts: str = FACTS, names: list[str] = NAMES) -> str:
    try:
        check(parse(raw, BUDGET), facts, names, KNOWN)
    except RefusedError as refused:
        return refused.reason
    return "llm"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (answer(), "llm"),
        ("", "empty"),
        (" \n", "empty"),
        (answer()[:-10], "unclosed"),
        ("the shopper}", "not_json"),
        ("{1:2}", "not_json"),
        ('"}"', "unclosed"),
        (json.dumps({"identity": "A shopper.", "interests": "Milk and more."}), "missing_field"),
        (json.dumps(GOOD | {"philosophy": 3}), "missing_field"),
        (answer(identity="..."), "empty_field"),
        (answer(philosophy="Habit"), "empty_field"),
        (answer(**dict(zip(FIELDS, SYSTEM_PROMPT.splitlines()[3:6], strict=True))), "echo_prompt"),
        (answer(identity="Buys fluid milk often.", interests="Buys fluid milk often."), "repetition"),
        (answer(interests="fluid milk and fluid milk and fluid milk and fluid milk"), "repetition"),
        (answer(identity="A shopper of 67 years."), "foreign_number"),
        (answer(interests="Mostly fluid milk and cigarettes."), "foreign_name"),
        (answer(interests="Fluid milk, soft drinks, frozen pizza."), "foreign_name"),
        (answer(identity="A married shopper between 35 and 44."), "foreign_name"),
        (answer(interests="Mostly milk, from the store."), "llm"),  # within a name of the facts; a word of the shared prompt
        (answer(philosophy="Pays the highest prices, a habit."), "foreign_price"),
        (answer(interests="Many different things of all sorts."), "ungrounded"),
    ],
)
def test_answers_are_judged(raw: str, expected: str) -> None:
    assert reason(raw) == expected


def test_a_user_without_goods_need_not_name_any() -> None:
    assert reason(answer(interests="Little is known so far."), names=[]) == "llm"


def test_the_longest_of_overlapping_names_counts() -> None:
    assert KNOWN.within("Fluid milk, frozen pizza; PIZZA") == [("fluid milk",), ("frozen pizza",)]


def test_half_a_word_at_the_bound_is_left_out() -> None:
    limit = field_chars(BUDGET)[1]
    whole = ("fluid milk " * 40)[:limit]
    assert len(whole) == limit
    parsed = parse(answer(interests=whole[:-3] + "sof"), BUDGET)
    assert not parsed.interests.endswith("sof")
    assert parsed.interests.startswith("fluid milk")


def test_a_list_of_given_names_is_no_foreign_name_with_commas() -> None:
    known = KnownNames(["Action", "Comedy", "Action, Comedy", "Comedy, Horror"])
    facts = "Purchases in 365 days:\nAction (Action - 9 - low)\nComedy (Comedy - 3 - low)\nSearches:\nnone"

    def said(interests: str) -> str:
        try:
            check(Fields("Nobody knows who.", interests, "Pays low prices."), facts, ["Action", "Comedy"], known)
        except RefusedError as refused:
            return refused.reason
        return "llm"

    assert said("Watches mostly Action, Comedy.") == "llm"
    assert said("Watches mostly Action Comedy.") == "foreign_name"  # without the comma it is the other genre's name
    assert said("Watches mostly Action, Comedy, Horror.") == "foreign_name"


def test_a_price_level_is_no_part_of_another() -> None:
    assert reason(answer(), FACTS) == "llm"
    assert reason(answer(), FACTS.replace("- low)", "- lowest)")) == "foreign_price"


def line(window: int, leaf: str, count: int, price_power: str = "low", recent: bool = True) -> dict[str, object]:
    return {"window": window, "l1": "grocery", "leaf": leaf, "count": count, "price_power": price_power, "recent": recent}


def test_fallback_by_hand() -> None:
    row = {
        "attributes": ["age: 35-44", "city: unknown"],
        "lines": [
            line(0, "tea", 2),
            line(0, "milk", 1, recent=False),
            line(2, "milk", 9),
            line(2, "soap", 5, "highest"),
            line(2, "tea", 3, "unknown"),
            line(2, "rice", 1),
        ],
        "searches": [],
    }
    assert fallback(row) == Fields(
        identity="Shopper with age: 35-44.",
        interests="Mostly milk (grocery, low price), soap (grocery, highest price), tea (grocery, unknown price); also rice; lately tea.",
        philosophy="Takes middle prices within a category; returns to few kinds of goods; now and then active.",
    )


def test_fallback_of_someone_of_whom_nothing_is_known() -> None:
    nothing = fallback({"attributes": ["age: unknown"], "lines": [], "searches": []})
    assert nothing == Fields("Shopper of whom no attribute is known.", "Interests are not known yet.", "Little is known of how this shopper decides.")
    searched = fallback({"attributes": [], "lines": [], "searches": ["2026-01-01 oat milk", "2026-01-02 tea"]})
    assert searched.interests == "Searches for oat milk, tea."


def test_a_fallback_stands_up_to_its_own_checks() -> None:
    row = {"attributes": ["age: 35-44"], "lines": [line(2, "fluid milk", 9), line(2, "soft drinks", 3, "middle")], "searches": []}
    check(fallback(row), FACTS, NAMES, KNOWN)
