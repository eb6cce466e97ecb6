"""Faithfulness of profiles: counted by hand where the errors are planted, and none in the deterministic text of any facts."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from longtail import schema
from longtail.config import parse
from longtail.faithfulness import Catalogue, added, measure, results, table, tally
from longtail.profile_facts import PRICE_LEVELS, UNKNOWN, read_back, render
from longtail.profile_form import answer_pattern
from longtail.profile_text import FORMAT_REASONS, Fields, RefusedError, fallback
from longtail.profile_text import parse as read_answer
from longtail.profiles import FIELDS, ProfilesSettings
from longtail.token_count import count_words
from pipelines.faithfulness import FAITHFULNESS
from pipelines.profiles import PROFILES
from tests import planted_artifacts, small_world
from tests.test_profile_form import longest_match

INFO = small_world.INFO.model_copy(update={"categorical_attributes": ("home_ownership", "city"), "numeric_attributes": ("age",)})
USERS = pa.table(
    {"user_id": ["a", "b", "c"], "home_ownership": ["Homeowner", "Renter", "1-2 (flat), shared"], "city": ["Bonn", "Ulm", None], "age": [31.0, 52.5, None]}
)
PATHS = [
    ["GROCERY", "FLUID MILK"],
    ["GROCERY", "SOAP (BAR)"],
    ["grocery", "fresh tea, herbs"],
    ["pets", "cat food"],
    ["home", "garden tools"],
    ["home", "home"],
]
ITEMS = pa.table({"item_id": [str(row) for row in range(len(PATHS))], "title": ["x"] * len(PATHS), "category": pa.array(PATHS, pa.list_(pa.string()))})
CATALOGUE = Catalogue.of(USERS, ITEMS, INFO)


def line(window: int, leaf: str, count: int, price_power: str, l1: str = "grocery") -> dict[str, Any]:
    return {"window": window, "l1": l1, "leaf": leaf, "count": count, "price_power": price_power, "recent": True}


ROW = {
    "attributes": ["home ownership: Homeowner", "city: unknown", "age: 31"],
    "lines": [line(0, "fluid milk", 1, "high"), line(2, "fluid milk", 9, "low"), line(2, "soap (bar)", 3, "middle"), line(2, "fresh tea, herbs", 1, UNKNOWN)],
    "searches": ["2026-01-01 oat milk"],
}
SETTINGS = ProfilesSettings(generator="deterministic", max_fact_tokens=400)


def facts_of(row: dict[str, Any]) -> str:
    return render([row], "purchase", SETTINGS, count_words)[0].text


FACTS = facts_of(ROW)


def counted(identity: str, interests: str, philosophy: str, facts: str = FACTS) -> dict[str, int]:
    return {name: number for name, number in measure(Fields(identity, interests, philosophy), facts, CATALOGUE).items() if name != "texts"}


def test_rendered_facts_are_read_back() -> None:
    shown = [{name: value for name, value in own.items() if name != "recent"} for own in ROW["lines"]]
    assert read_back(FACTS, CATALOGUE.heads) == ROW | {"lines": shown}
    nothing = {"attributes": ["age: unknown"], "lines": [], "searches": []}
    assert read_back(facts_of(nothing), CATALOGUE.heads) == nothing


def test_a_faithful_profile() -> None:
    said = counted("A Homeowner of age 31.", "Fluid milk (low price), soap bar, fresh tea, herbs.", "Pays middle prices and keeps habits.")
    assert said == {
        "categories": 3,  # fluid milk, soap (bar), fresh tea, herbs
        "categories_hold": 3,
        "primary": 3,
        "primary_hold": 3,
        "prices": 2,
        "prices_hold": 2,
        "attributes": 2,
        "attributes_hold": 2,
        "contradictions": 0,
        "invented": 0,
        "with_invented": 0,
    }


def test_planted_errors_are_counted() -> None:
    said = counted("A Renter from Ulm, age is 52.", "Cat food, then fluid milk (grocery, highest price).", "Pays lowest prices, never high prices.")
    assert (said["categories"], said["categories_hold"]) == (3, 2)  # cat food is not theirs; fluid milk, grocery are
    assert (said["primary"], said["primary_hold"]) == (3, 1)
    assert (said["prices"], said["prices_hold"]) == (3, 1)  # high is on a line
    assert (said["attributes"], said["attributes_hold"]) == (2, 0)  # Ulm is too short a name to be known by itself
    assert said["contradictions"] == 4  # highest for milk, lowest, Renter, 52
    assert (said["invented"], said["with_invented"]) == (2, 1)  # cat food, Renter


@pytest.mark.parametrize(
    ("identity", "stated", "hold", "contradictions"),
    [
        ("Someone with city unknown", 1, 1, 0),
        ("Someone with city: Bonn", 1, 0, 0),
        ("Someone whose home ownership is unknown", 1, 0, 1),
        ("Someone with age 30 to 35, a homeowner", 2, 1, 1),
        ("Someone with age 31, homeowner, Homeowner", 2, 2, 0),
        ("Someone", 0, 0, 0),
    ],
)
def test_attribute_values(identity: str, stated: int, hold: int, contradictions: int) -> None:
    said = counted(identity, "Nothing more.", "Nobody knows.")
    assert (said["attributes"], said["attributes_hold"], said["contradictions"]) == (stated, hold, contradictions)


@pytest.mark.parametrize(
    ("interests", "stated", "hold", "contradictions"),
    [
        ("fluid milk (high price)", 1, 1, 0),  # in the short window
        ("fluid milk (middle price)", 1, 0, 1),  # within the span of all goods, but not this one's
        ("soap (bar) (grocery, high price)", 1, 1, 0),  # the brackets of the name hide the good: any level of the span
        ("herbs (low price)", 1, 1, 0),  # no good's whole name
        ("fresh tea, herbs (low price)", 1, 0, 0),  # the facts do not know its prices
        ("low-priced things of unknown price", 1, 1, 0),
        ("highest prices", 1, 0, 1),
    ],
)
def test_price_words(interests: str, stated: int, hold: int, contradictions: int) -> None:
    said = counted("Someone.", interests, "Nobody knows.")
    assert (said["prices"], said["prices_hold"], said["contradictions"]) == (stated, hold, contradictions)


def random_row(rng: random.Random) -> dict[str, Any]:
    goods = rng.sample(sorted(CATALOGUE.pairs), rng.randint(0, len(CATALOGUE.pairs)))
    levels = (*PRICE_LEVELS, UNKNOWN)
    lines = [line(window, leaf, rng.randint(1, 30), rng.choice(levels), l1) for window in (0, 2) for l1, leaf in goods if rng.random() < 0.8]
    lines.sort(key=lambda one: (one["window"], -one["count"]))
    values = [("home ownership", ["Homeowner", "Renter", "1-2 (flat), shared"]), ("city", ["Bonn", "Ulm"]), ("age", ["31", "52.5"])]
    attributes = [f"{name}: {rng.choice([*own, UNKNOWN])}" for name, own in values]
    return {"attributes": attributes, "lines": lines, "searches": [f"2026-01-01 {rng.choice(['renter rights', 'cat food', 'tea'])}"][: rng.randint(0, 1)]}


@pytest.mark.parametrize("seed", range(40))
def test_the_deterministic_text_of_facts_is_faithful(seed: int) -> None:
    row = random_row(random.Random(seed))
    fields = fallback(row)
    said = counted(fields.identity, fields.interests, fields.philosophy, facts_of(row))
    for name in ("categories", "primary", "prices", "attributes"):
        assert said[name] == said[f"{name}_hold"]
    assert said["contradictions"] == said["invented"] == 0
    assert said["attributes"] == sum(not attribute.endswith(UNKNOWN) for attribute in row["attributes"])


@pytest.mark.parametrize("seed", range(20))
def test_so_is_every_grounded_answer(seed: int) -> None:
    row = random_row(random.Random(seed))
    grounded = json.loads(longest_match(answer_pattern(ProfilesSettings(answer_form="grounded"), row)))
    said = counted(*(grounded[name] for name in FIELDS), facts_of(row))
    assert said["contradictions"] == said["invented"] == 0
    assert said["prices"] == said["prices_hold"]


def profile(outcome: str, fields: Fields, raw: str = "", tokens: int = 10) -> dict[str, Any]:
    parts = {"identity": fields.identity, "interests": fields.interests, "philosophy": fields.philosophy}
    return parts | {"facts": FACTS, "raw_text": raw, "outcome": outcome, "prompt_tokens": tokens, "output_tokens": tokens // 2}


def rows() -> list[dict[str, Any]]:
    """One of each outcome; the refused answer names cat food."""
    own = fallback(ROW)
    good, bad = (dict(zip(FIELDS, ("A Homeowner.", interests, "Pays low prices."), strict=True)) for interests in ("Fluid milk.", "Fluid milk and cat food."))
    return [
        profile("deterministic", own, tokens=0),
        profile("llm", Fields(**good), json.dumps(good)),
        profile("fallback:foreign_name", own, json.dumps(bad), tokens=30),
        profile("fallback:unclosed", own, json.dumps(good)[:-9], tokens=50),
    ]


def test_outcomes_apart_and_what_was_refused_still_counts_for_the_model() -> None:
    found = results(tally(rows(), CATALOGUE, 96), {})
    assert found.outcomes == {"deterministic": 1, "fallback:foreign_name": 1, "fallback:unclosed": 1, "llm": 1}
    assert found.format_failures == {"unclosed": 1}
    assert found.content_refusals == {"foreign_name": 1}
    assert [found.profiles[name].texts for name in ("all", "llm", "fallback:unclosed")] == [4, 1, 1]
    assert found.profiles["all"].invented_names == 0
    assert {name: one.texts for name, one in found.answers.items()} == {"all": 2, "llm": 1, "fallback:foreign_name": 1}
    assert found.answers["fallback:foreign_name"].invented_names == 1
    assert found.answers["all"].stated_categories.model_dump() == {"share": 2 / 3, "of": 3}
    assert found.answers["all"].prompt_tokens == 30  # of three prompts
    assert found.profiles["llm"].primary_categories.model_dump() == {"share": 1 / 3, "of": 3}
    for outcome in found.outcomes:
        assert outcome in table(found)


@pytest.mark.parametrize("raw", ["", '{"identity":"a', "no}", "{}", json.dumps(dict.fromkeys(FIELDS, "one"))])
def test_what_cannot_be_read_fails_by_its_form(raw: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read_answer(raw, 96)
    assert refused.value.reason in FORMAT_REASONS


def test_parts_add_up() -> None:
    assert added([tally(rows()[:2], CATALOGUE, 96), tally(rows()[2:], CATALOGUE, 96)]) == tally(rows(), CATALOGUE, 96)


@pytest.mark.ray
def test_the_stage_on_ray(ray_cluster: None, tmp_path: Path) -> None:
    """The profiles of the deterministic generator, built and measured."""
    store = planted_artifacts.open_store(tmp_path, "run")
    tables = {
        "users": small_world.USERS,
        "items": small_world.ITEMS,
        "events": small_world.events(small_world.BEHAVIOUR).append_column("query", pa.nulls(8, pa.string())),
    }
    logs = planted_artifacts.commit(store, "logs", tables, small_world.INFO.model_dump(mode="json"))
    config: dict[str, object] = {"run": {"uri": store.uri}, "profiles": {"generator": "deterministic", "streaming": False}}
    profiles = planted_artifacts.build(PROFILES, [logs], store, config)
    assert profiles.read("profiles").schema.equals(schema.PROFILES)
    found = planted_artifacts.build(FAITHFULNESS, [logs, profiles], store, config).read_json("faithfulness.json")
    assert found["outcomes"] == {"deterministic": 3}
    assert found["profiles"]["all"]["contradictions"] == found["profiles"]["all"]["invented_names"] == 0
    assert found["profiles"]["deterministic"]["attribute_values"] == {"share": 1.0, "of": 6}
    assert found["answers"] == {}
    assert found["notes"] == {"generator": "deterministic"}


def test_another_output_budget_reads_answers_anew() -> None:
    short, long = (parse({"profiles": {"max_output_tokens": tokens}}, "test") for tokens in (64, 96))
    assert FAITHFULNESS.settings(short) != FAITHFULNESS.settings(long)
