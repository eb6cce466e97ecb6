"""Completion: group votes by hand and as the samples lend them, masked values that nobody sees, planted worlds, and measures against sklearn's."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

import pipelines.completion
from longtail import schema
from longtail.completion import (
    METHODS,
    Codes,
    CompletionSettings,
    Evidence,
    Filled,
    check_left,
    draw_mask,
    fill_in,
    group_votes,
    measured,
    neighbour_votes,
    user_statistics,
)
from longtail.completion_results import CompletionResults, MethodResult, compare, table
from longtail.groups import GroupsSettings
from longtail.lent import UserGroups
from longtail.profile_facts import UNKNOWN
from longtail.profile_text import Fields, fallback, without
from longtail.user_spaces import replaced, side_by_side, unit
from longtail.vectors import to_arrow
from pipelines import work
from pipelines.completion import COMPLETION, struck
from tests import planted_artifacts, small_world, test_groups

GROUPS = GroupsSettings(min_support=2, min_size=3)
SETTINGS = CompletionSettings(num_masks=2, bootstrap_rounds=200)


def test_groups_vote_and_fall_back_along_the_prefix() -> None:
    codes_RS = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [0, 1], [1, 0], [1, 0], [1, 0], [2, 0]], np.int32)
    left_R = np.array([1, 1, 0, 2, 0, 2, 0, 0, 2], np.int32)
    value_RA, nearest_RA = group_votes(codes_RS, left_R[:, None], [3], GROUPS)
    # The first leaf has its own majority; the second is too small and asks (0,) with 1, 1, 2; in (1, 0) and (1,) one of three has a value, which is too
    # few, so everybody's 2 stands in; the last is alone and asks everybody.
    assert value_RA[:, 0].tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 2]
    assert nearest_RA[:, 0].tolist() == [True] * 5 + [False] * 3 + [True]


@pytest.mark.parametrize("min_size", [1, 2, 3, 4])
def test_what_is_lent_is_what_samples_lend(min_size: int) -> None:
    settings = GroupsSettings(min_size=min_size, sequence_categories=2, items_per_category=1)
    entities = small_world.entities()
    key = {"user_id": list("abcd"), "as_of": pa.array([small_world.day(20)] * 4, schema.TIMESTAMP)}
    codes = pa.table(key | {"codes": pa.array(test_groups.CODES_RS.tolist(), pa.list_(pa.int32(), 2))})
    groups = UserGroups.build(codes, test_groups.groups(min_size=min_size), entities, (3, 3), settings)
    by_samples = [groups.attributes_PA[groups.lend(0, tuple(codes))] for codes in test_groups.CODES_RS.tolist()]
    value_RA, _ = group_votes(test_groups.CODES_RS.astype(np.int32), entities.attribute_codes_MA[1:], [a.size for a in entities.attributes], settings)
    np.testing.assert_array_equal(value_RA, np.stack(by_samples))


def test_neighbours_vote_without_the_one_who_asks() -> None:
    vectors_RD = unit(np.array([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3], [-1, 0]], np.float32))
    asks = np.array([True, False, False, False, False])
    assert neighbour_votes(vectors_RD, np.array([0, 2, 2, 1, 1], np.int32), asks, 3).tolist() == [2, 0, 0, 0, 0]
    assert neighbour_votes(vectors_RD, np.array([0, 2, 1, 1, 1], np.int32), asks, 2)[0] == 1  # a tie: the lower code
    assert neighbour_votes(vectors_RD, np.array([0, 0, 0, 2, 1], np.int32), asks, 1)[0] == 2  # the nearest have no value, and no vote


def world(of_group: bool, seed: int = 0, num_users: int = 300) -> tuple[Codes, Evidence]:
    """Users in 6 leaf groups of the space; the first attribute follows the group or nothing, the second what the user buys, a tenth is missing."""
    rng = np.random.default_rng(seed)
    leaf_R = rng.integers(0, 6, num_users)
    codes_RS = np.stack([leaf_R // 2, leaf_R % 2], axis=1).astype(np.int32)
    vectors_RD = unit(np.eye(6, 8, dtype=np.float32)[leaf_R] + 0.05 * rng.normal(size=(num_users, 8)).astype(np.float32))
    statistics_RF = rng.random((num_users, 4)).astype(np.float32)
    first_R = leaf_R % 3 + 1 if of_group else rng.integers(1, 4, num_users)
    truth_RA = np.stack([first_R, 1 + (statistics_RF[:, 1] > 0.5)], axis=1).astype(np.int32)
    truth_RA[rng.random((num_users, 2)) < 0.1] = 0
    return truth_RA, Evidence(codes_RS, vectors_RD, statistics_RF)


def filled(truth_RA: Codes, evidence: Evidence) -> tuple[list[np.ndarray], list[Filled]]:
    masks = [draw_mask(truth_RA, SETTINGS, (7, number)) for number in range(SETTINGS.num_masks)]
    return masks, [fill_in(truth_RA, mask, [4, 3], evidence, GROUPS, SETTINGS, 7) for mask in masks]


def test_masked_values_are_not_seen() -> None:
    truth_RA, evidence = world(of_group=True)
    masks, answers = filled(truth_RA, evidence)
    rng = np.random.default_rng(1)
    for masked_RA, one in zip(masks, answers, strict=True):
        other_RA = truth_RA.copy()
        for column in range(2):
            hidden = np.flatnonzero(masked_RA[:, column])
            other_RA[hidden, column] = truth_RA[rng.permutation(hidden), column]
        assert not np.array_equal(other_RA, truth_RA)
        again = fill_in(other_RA, masked_RA, [4, 3], evidence, GROUPS, SETTINGS, 7)
        for method in METHODS:
            np.testing.assert_array_equal(one.values[method], again.values[method])
            np.testing.assert_array_equal(one.values[method] > 0, masked_RA)
        np.testing.assert_array_equal(one.nearest_RA, again.nearest_RA)


def test_a_share_of_the_known_values_is_masked() -> None:
    truth_RA, _ = world(of_group=True)
    masked_RA = draw_mask(truth_RA, SETTINGS, (7, 0))
    assert not masked_RA[truth_RA == 0].any()
    assert masked_RA.sum(axis=0).tolist() == np.round(0.2 * (truth_RA > 0).sum(axis=0)).tolist()
    np.testing.assert_array_equal(masked_RA, draw_mask(truth_RA, SETTINGS, (7, 0)))
    assert not np.array_equal(masked_RA, draw_mask(truth_RA, SETTINGS, (7, 1)))
    whole_RA = draw_mask(truth_RA, SETTINGS.model_copy(update={"masked": "users"}), (7, 0))
    users = whole_RA.any(axis=1)
    np.testing.assert_array_equal(whole_RA, users[:, None] & (truth_RA > 0))
    assert users.sum() == round(0.2 * (truth_RA > 0).any(axis=1).sum())


def overall(of_group: bool) -> tuple[dict[str, MethodResult], dict[str, MethodResult]]:
    """The results of either attribute."""
    truth_RA, evidence = world(of_group)
    masks, answers = filled(truth_RA, evidence)
    by_attribute, _ = compare(["first", "second"], truth_RA, truth_RA > 0, masks, answers, 200, seed=7)
    return by_attribute["first"].methods, by_attribute["second"].methods


def test_groups_that_determine_an_attribute_complete_it() -> None:
    first, second = overall(of_group=True)
    for method in ("group", "neighbours"):
        assert first[method].accuracy > 0.98
        assert first[method].balanced > 0.98
        assert first[method].gain.verdict == "higher"
    assert second["gbm"].accuracy > 0.95
    assert second["gbm"].gain.verdict == "higher"
    assert second["group"].gain.verdict == "unclear"


def test_groups_that_say_nothing_stay_near_the_majority() -> None:
    first, _ = overall(of_group=False)
    for method in METHODS[1:]:
        assert abs(first[method].accuracy - first["majority"].accuracy) < 0.1
        assert first[method].gain.verdict != "higher"


def test_measures_agree_with_sklearns() -> None:
    truth_RA, evidence = world(of_group=True)
    masks, answers = filled(truth_RA, evidence)
    nearest_RA = np.zeros(truth_RA.shape, bool)
    nearest_RA[np.flatnonzero(truth_RA[:, 0] == 0)[:5], 0] = True
    by_attribute, together = compare(["first", "second"], truth_RA, nearest_RA, masks, answers, 50, seed=7)
    for column, name in enumerate(("first", "second")):
        for method in METHODS:
            pairs = [(truth_RA[mask[:, column], column], one.values[method][mask[:, column], column]) for mask, one in zip(masks, answers, strict=True)]
            found = by_attribute[name].methods[method]
            for slow, mean, sd in ((accuracy_score, found.accuracy, found.accuracy_sd), (balanced_accuracy_score, found.balanced, found.balanced_sd)):
                by_mask = [slow(*pair) for pair in pairs]
                assert mean == pytest.approx(np.mean(by_mask))
                assert sd == pytest.approx(np.std(by_mask, ddof=1))
    assert by_attribute["first"].missing == (truth_RA[:, 0] == 0).sum()
    assert by_attribute["first"].nearest_missing_frac == 5 / by_attribute["first"].missing
    assert by_attribute["first"].nearest_frac == 1  # large groups, in which most have a value
    assert by_attribute["second"].methods["majority"].balanced == pytest.approx(0.5)
    assert together["gbm"].accuracy == pytest.approx(np.mean([by_attribute[name].methods["gbm"].accuracy for name in by_attribute]))
    assert together["majority"].gain.model_dump() == {"difference": 0, "low": 0, "high": 0}


@pytest.mark.parametrize("masked", ["values", "users"])
def test_a_mask_that_leaves_next_to_nothing_is_refused(masked: str) -> None:
    truth_RA = np.ones((40, 1), np.int32)
    settings = CompletionSettings.model_validate({"masked_frac": 0.95, "masked": masked, "min_known": 10})
    with pytest.raises(ValueError, match=r"completion\.masked_frac = 0\.95 leaves 2 of 40 known values of 'age': at least 10 .* Mask less"):
        check_left(truth_RA, [draw_mask(truth_RA, settings, (1,))], ["age"], settings)
    few = settings.model_copy(update={"masked_frac": 0.75})
    check_left(truth_RA, [draw_mask(truth_RA, few, (1,))], ["age"], few)


def test_attributes_that_cannot_be_measured_are_left_out_with_the_reason() -> None:
    truth_RA, _ = world(of_group=True)
    few, same = np.where(np.arange(300) < 49, 1, 0), np.ones(300)
    codes_RA = np.column_stack([few, truth_RA[:, 0], same]).astype(np.int32)
    columns, left_out = measured(codes_RA, ["few", "first", "same"], SETTINGS)
    assert columns == [1]
    assert left_out == {"few": "49 known values, fewer than completion.min_known = 50", "same": "every known value is the same"}
    with pytest.raises(ValueError, match=r"no attribute can be completed: few: 49 known values.*same: every known.*lower completion.min_known"):
        measured(codes_RA[:, [0, 2]], ["few", "same"], SETTINGS)
    with pytest.raises(ValueError, match="the logs declare no user attribute"):
        measured(codes_RA[:, :0], [], SETTINGS)


def test_statistics_by_hand_and_blind_to_the_future() -> None:
    rows = np.array([1, 2, 3, 4])

    def statistics(events: list[tuple[str, str, float, str]] | None = None) -> np.ndarray:
        return user_statistics(small_world.behaviour(events), small_world.entities(), rows, small_world.us(20))

    found = statistics()
    # Purchases of a: tea, milk (food), soap (home), on three days; nothing of d. Roots by purchases: home 4, food 3, none 0.
    np.testing.assert_allclose(found[0, :2], np.log1p([3, 3]), rtol=1e-6)
    np.testing.assert_allclose(found[:, 3:5], [[1 / 3, 2 / 3], [1 / 2, 1 / 2], [1, 0], [0, 0]], rtol=1e-6)
    planted = [*small_world.BEHAVIOUR, ("d", "tea", 20.0, "purchase"), ("a", "book", 33.0, "purchase")]
    np.testing.assert_array_equal(statistics(planted), found)
    assert not np.array_equal(statistics([*small_world.BEHAVIOUR, ("d", "tea", 19.9, "purchase")]), found)


VALUES = {"age": ["35-44", "65+", "under 18"], "home": ["Owner (flat)", "Renter"], "kids": ["1", "3+", "None"], "income": ["50-74K", "250K+"]}


@pytest.mark.parametrize("seed", range(30))
def test_a_struck_profile_is_that_of_someone_of_whom_it_is_not_known(seed: int) -> None:
    rng = random.Random(seed)
    own = {name: rng.choice([*values, UNKNOWN]) for name, values in VALUES.items()}
    hidden = [name for name, value in own.items() if value != UNKNOWN and rng.random() < 0.6]
    line = {"window": 2, "l1": "grocery", "leaf": "fluid milk", "count": 3, "price_power": "low", "recent": True}

    def fields(values: dict[str, str]) -> Fields:
        return fallback({"attributes": [f"{name}: {value}" for name, value in values.items()], "lines": [line], "searches": []})

    text, told = struck(fields(own), [(name, own[name]) for name in hidden])
    assert text == fields(own | dict.fromkeys(hidden, UNKNOWN)).text
    assert told == len(hidden)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Someone with age 35-44, home Renter", "Someone with home Renter"),
        ("Someone with home Renter, age 35-44", "Someone with home Renter"),
        ("Someone with age 35-44", "Someone of whom no attribute is known"),
        ("A renter in the age of 35-44 with two dogs.", "A renter in the with two dogs."),
        ("Probably 35-44, or older.", "Probably, or older."),
        ("Someone with pages 35-44 of it.", "Someone with pages of it."),
        ("Someone with age 135-44, and 35-445", "Someone with age 135-44, and 35-445"),
    ],
)
def test_values_are_struck_where_they_stand(text: str, left: str) -> None:
    assert without(text, "age", "35-44") == left


def test_short_values_are_struck_behind_their_name_only() -> None:
    assert without("Someone with kids 1, buys 1 tea", "kids", "1") == "Someone with buys 1 tea"


def test_spaces_given_anew_stand_where_the_old_ones_did() -> None:
    rng = np.random.default_rng(0)
    spaces = [unit(rng.normal(size=(5, dim)).astype(np.float32)) for dim in (3, 4, 2)]
    spaces[1][2] = 0
    other = unit(rng.normal(size=(5, 6)).astype(np.float32))
    found = replaced(side_by_side(spaces), [3, 4, 2], {1: other})
    np.testing.assert_allclose(found, side_by_side([spaces[0], other, spaces[2]]), atol=1e-6)


class HashedWords:
    """An encoder that gives every word a direction of its own."""

    def __init__(self, settings: object) -> None:
        pass

    def encode(self, texts: list[str]) -> np.ndarray:
        return hashed(texts)


def hashed(texts: list[str]) -> np.ndarray:
    directions = {word: np.random.default_rng(list(word.encode())).normal(size=16) for text in texts for word in text.split()}
    return unit(np.array([np.sum([directions[word] for word in text.split()], axis=0) for text in texts], np.float32))


def planted(folder: Path, name: str, cities: list[str | None]) -> Any:
    """The stage on 120 users whose profiles tell their city."""
    store = planted_artifacts.open_store(folder, name)
    ids = [f"u{row:03d}" for row in range(len(cities))]
    users = pa.table({"user_id": ids, "city": pa.array(cities, pa.string()), "age": [20.0 + row % 40 for row in range(len(ids))]})
    behaviour = [(user, ["tea", "milk", "soap"][row % 3], 5.0, "purchase") for row, user in enumerate(ids)]
    logs = planted_artifacts.commit(
        store, "logs", {"users": users, "items": small_world.ITEMS, "events": small_world.events(behaviour)}, small_world.INFO.model_dump(mode="json")
    )
    attributes = [[f"city: {city or UNKNOWN}", f"age: {20 + row % 40}"] for row, city in enumerate(cities)]
    profiles = [fallback({"attributes": own, "lines": [], "searches": []}) for own in attributes]
    key = {"user_id": ids, "as_of": pa.array([small_world.day(20)] * len(ids), schema.TIMESTAMP)}
    vectors = pa.table(key | {"vector": to_arrow(hashed([one.text for one in profiles]))})
    codes = pa.table(key | {"codes": pa.array([[row % 4, row % 2] for row in range(len(ids))], pa.list_(pa.int32(), 2))})
    columns = {name: [getattr(one, name) for one in profiles] for name in ("identity", "interests", "philosophy")}
    given = [
        logs,
        planted_artifacts.commit(store, "profiles", {"profiles": pa.table(key | columns)}),
        planted_artifacts.commit(store, "user_vectors", {"vectors": vectors}, {"dim": 16}),
        planted_artifacts.commit(store, "item_vectors", {"vectors": vectors}, {"dim": 16}),
        planted_artifacts.commit(store, "user_spaces", {"vectors": vectors}),
        planted_artifacts.commit(store, "user_codes", {"codes": codes}),
    ]
    config: dict[str, object] = {
        "completion": {"num_masks": 2, "bootstrap_rounds": 30},
        "codes": {"user": {"num_stages": 2, "codebook_size": 4}},
        "user_spaces": {"spaces": ["profile"]},
    }
    with work.in_place():
        return planted_artifacts.build(COMPLETION, given, store, config)


def test_the_stage_shows_no_method_what_profiles_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two worlds that differ in nothing but masked cities: profiles and their vectors differ, and what the methods are given does not."""
    monkeypatch.setattr(pipelines.completion, "TextEncoder", HashedWords)
    asked: list[tuple[np.ndarray, np.ndarray, Evidence]] = []

    def recorded(truth_RA: Codes, masked_RA: np.ndarray, sizes: Any, evidence: Evidence, *others: Any) -> Filled:
        asked.append((truth_RA, masked_RA, evidence))
        return fill_in(truth_RA, masked_RA, sizes, evidence, *others)

    monkeypatch.setattr(pipelines.completion, "fill_in", recorded)
    cities: list[str | None] = [None if row % 10 == 0 else ["Bonn", "Ulm"][row % 2] for row in range(120)]
    artifact = planted(tmp_path, "one", cities)
    (truth_RA, masked_RA, evidence), second = asked[0], asked[1]
    assert not np.array_equal(masked_RA, second[1])
    found = CompletionResults.model_validate(artifact.read_json("completion.json"))
    assert list(found.attributes) == ["age", "city"]
    assert found.notes == {"spaces": ["profile"], "telling": ["profile"], "struck": True, "told_frac": 1.0}
    assert "city" in table(found)
    swapped = [{"Bonn": "Ulm", "Ulm": "Bonn"}[city] if city and masked_RA[row, 0] else city for row, city in enumerate(cities)]
    planted(tmp_path, "two", swapped)
    other_RA, same_mask_RA, other = asked[2]
    np.testing.assert_array_equal(masked_RA, same_mask_RA)
    np.testing.assert_array_equal((truth_RA != other_RA)[:, 0], masked_RA[:, 0])
    np.testing.assert_array_equal(evidence.vectors_RD, other.vectors_RD)
    np.testing.assert_array_equal(evidence.codes_RS, other.codes_RS)
    np.testing.assert_array_equal(evidence.statistics_RF, other.statistics_RF)
