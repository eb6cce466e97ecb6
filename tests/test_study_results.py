"""A study's results: GAUC and paired differences against slow obvious versions, intervals that cover what is planted, and the two pages."""

import re
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from longtail.metrics import calibration, gauc, log_loss
from longtail.paired import paired_differences
from longtail.study import StudySettings
from longtail.study_page import headline_sentence, intervals, markdown, page, relative
from longtail.study_results import ArmOnSlice, Difference, Metric, StudyResults, compare, measured
from longtail.study_rows import WindowRows

Scores = dict[str, dict[int, np.ndarray]]


def rows_of(num_users: int, per_user: int, seed: int, slices: dict[str, np.ndarray] | None = None) -> WindowRows:
    """Rows of users in no order, with labels drawn by a coin; some users have one class only."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users) * 3 + 5, rng.integers(1, 2 * per_user, num_users))
    user = rng.permutation(user)
    label = (rng.random(len(user)) < 0.5).astype(np.int8)
    return WindowRows(np.arange(len(user)), user, label, slices or {"all": np.ones(len(user), bool)})


def scores_of(rows: WindowRows, strength: float, seeds: tuple[int, ...], seed: int) -> dict[int, np.ndarray]:
    """Scores that see the label through noise."""
    rng = np.random.default_rng(seed)
    return {number: (strength * rows.label_N + rng.normal(size=len(rows.label_N))).round(1) for number in seeds}  # rounded: there are ties


def compared(
    rows: WindowRows, scores: Scores, against: tuple[str, ...] = ("base",), rounds: int = 200, metric: Metric = "gauc"
) -> dict[str, dict[str, ArmOnSlice]]:
    found = {arm: {seed: measured(rows, given, metric) for seed, given in of_arm.items()} for arm, of_arm in scores.items()}
    return compare(found, lambda arm: against, metric, rounds)


def slow_gauc(rows: WindowRows, scores: np.ndarray, which: np.ndarray) -> float:
    """Every user's share of pairs in the right order, weighted by that user's rows."""
    total = weight = 0.0
    for user in sorted(set(rows.user_N[which].tolist())):
        mine = which & (rows.user_N == user)
        positive, negative = scores[mine & (rows.label_N == 1)], scores[mine & (rows.label_N == 0)]
        if len(positive) and len(negative):
            right = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative)
            total += mine.sum() * right / (len(positive) * len(negative))
            weight += mine.sum()
    return total / weight


def test_gauc_and_differences_are_those_of_a_slow_loop() -> None:
    plain = rows_of(40, 6, seed=0)
    some = np.isin(plain.user_N, plain.user_N[::7])
    one_class = np.isin(plain.user_N, [user for user in set(plain.user_N.tolist()) if len(set(plain.label_N[plain.user_N == user])) == 1])
    rows = rows_of(40, 6, 0, {"all": np.ones(len(some), bool), "some": some, "nobody": np.zeros(len(some), bool), "one_class": one_class})
    scores: Scores = {"base": scores_of(rows, 0.5, (1, 2, 3), 1), "full": scores_of(rows, 1.0, (2, 3), 2), "odd": scores_of(rows, 0.0, (9,), 3)}
    found = compared(rows, scores, ("base", "full"))
    assert one_class.any()
    assert {name for slices in found.values() for name in slices} == {"all", "some"}, "a slice without a user of both classes has no GAUC"
    for name, which in (("all", rows.slices["all"]), ("some", some)):
        slow = {arm: {seed: slow_gauc(rows, given, which) for seed, given in of_arm.items()} for arm, of_arm in scores.items()}
        for arm, of_arm in slow.items():
            one = found[arm][name]
            assert one.gauc == pytest.approx(np.mean(list(of_arm.values())))
            assert one.sd == pytest.approx(np.std(list(of_arm.values()), ddof=1) if len(of_arm) > 1 else 0)
            assert one.rows == which.sum()
            both = [user for user in set(rows.user_N[which].tolist()) if len(set(rows.label_N[rows.user_N == user])) == 2]
            assert one.users == len(both)
        gap = found["full"][name].vs["base"]
        assert gap.per_seed == pytest.approx([slow["full"][seed] - slow["base"][seed] for seed in (2, 3)]), "on the seeds that both have"
        assert gap.mean == pytest.approx(np.mean(gap.per_seed))
        assert gap.lo <= gap.mean <= gap.hi
        assert gap.positive_seeds == sum(one > 0 for one in gap.per_seed)
        assert found["odd"][name].vs == {}
        assert set(found["base"][name].vs) == {"full"}


def test_the_order_of_rows_and_of_arms_means_nothing() -> None:
    rows = rows_of(30, 5, seed=1)
    scores: Scores = {"base": scores_of(rows, 0.2, (1, 2), 1), "full": scores_of(rows, 0.6, (1, 2), 2)}
    order = np.random.default_rng(0).permutation(len(rows.user_N))
    turned = WindowRows(rows.example_id_N[order], rows.user_N[order], rows.label_N[order], {"all": np.ones(len(order), bool)})
    found = compared(rows, scores)
    again = compared(turned, {arm: {seed: given[order] for seed, given in scores[arm].items()} for arm in ("full", "base")})
    one, other = found["full"]["all"].vs["base"], again["full"]["all"].vs["base"]
    assert (other.mean, other.lo, other.hi, *other.per_seed) == pytest.approx((one.mean, one.lo, one.hi, *one.per_seed))


def test_a_difference_looked_at_from_the_other_side_is_its_mirror() -> None:
    rows = rows_of(30, 5, seed=2)
    found = compared(rows, {"base": scores_of(rows, 0.2, (1, 2), 1), "full": scores_of(rows, 0.6, (1, 2), 2)}, ("base", "full"))
    one, other = found["full"]["all"].vs["base"], found["base"]["all"].vs["full"]
    assert (one.mean, one.lo, one.hi) == pytest.approx((-other.mean, -other.hi, -other.lo))


def test_an_arm_that_scores_the_same_differs_by_nothing() -> None:
    rows = rows_of(20, 5, seed=3)
    scores = scores_of(rows, 0.5, (1, 2), 1)
    gap = compared(rows, {"base": scores, "full": scores})["full"]["all"].vs["base"]
    assert (gap.mean, gap.lo, gap.hi, gap.per_seed) == (0, 0, 0, (0, 0))


def test_the_interval_holds_zero_for_two_arms_of_noise_and_not_for_a_planted_gap() -> None:
    noise, planted = [], []
    for world in range(40):
        rows = rows_of(80, 6, seed=100 + world)
        seeds = (1, 2, 3)
        base, same, better = (scores_of(rows, strength, seeds, 1000 + 3 * world + place) for place, strength in enumerate((0.3, 0.3, 1.2)))
        found = compared(rows, {"base": base, "same": same, "better": better})
        noise.append(found["same"]["all"].vs["base"])
        planted.append(found["better"]["all"].vs["base"])
    assert np.mean([gap.lo <= 0 <= gap.hi for gap in noise]) >= 0.85
    assert abs(np.mean([gap.mean for gap in noise])) < 0.01
    assert np.mean([gap.lo > 0 for gap in planted]) >= 0.95
    assert min(gap.positive_seeds for gap in planted) >= 2


def test_seeds_that_disagree_widen_the_interval() -> None:
    """Users alone would not: the arm is far better with one seed and far worse with the other."""
    rows = rows_of(200, 8, seed=5)
    base = scores_of(rows, 0.5, (1, 2), 1)
    torn = {1: scores_of(rows, 3.0, (1,), 2)[1], 2: scores_of(rows, -3.0, (2,), 3)[2]}
    steady = scores_of(rows, 0.5, (1, 2), 4)
    found = compared(rows, {"base": base, "torn": torn, "steady": steady})
    wide, narrow = (found[arm]["all"].vs["base"] for arm in ("torn", "steady"))
    assert wide.lo < -0.3 < 0.2 < wide.hi
    assert wide.hi - wide.lo > 5 * (narrow.hi - narrow.lo)
    assert wide.positive_seeds == 1


def test_users_with_many_rows_weigh_more() -> None:
    user = np.array([1] * 8 + [2] * 2)
    label = np.array([1, 0] * 5, np.int8)
    rows = WindowRows(np.arange(10), user, label, {"all": np.ones(10, bool)})
    right, wrong = label.astype(float), -label.astype(float)
    found = compared(rows, {"base": {1: np.zeros(10)}, "full": {1: np.where(user == 1, right, wrong)}})
    assert found["full"]["all"].gauc == pytest.approx(0.8)
    assert found["full"]["all"].vs["base"].mean == pytest.approx(0.3)


def slow_auc(rows: WindowRows, scores: np.ndarray, which: np.ndarray) -> float:
    positive, negative = scores[which & (rows.label_N == 1)][:, None], scores[which & (rows.label_N == 0)][None]
    return float(((positive > negative) + 0.5 * (positive == negative)).mean())


def test_auc_is_that_of_a_slow_loop_over_all_rows_of_a_slice() -> None:
    plain = rows_of(40, 6, seed=0)
    half, rng = np.arange(len(plain.user_N)) % 2 == 0, np.random.default_rng(1)
    rows = rows_of(40, 6, 0, {"all": np.ones(len(half), bool), "half": half, "positives": plain.label_N == 1, "nothing": np.zeros(len(half), bool)})
    scores: Scores = {"base": scores_of(rows, 0.5, (1, 2), 1), "full": {seed: rng.normal(size=len(half)).round(1) for seed in (1, 2)}}
    found = compared(rows, scores, metric="auc")
    assert {name for slices in found.values() for name in slices} == {"all", "half"}, "of one class there is no AUC"
    for name in ("all", "half"):
        slow = {arm: [slow_auc(rows, of_arm[seed], rows.slices[name]) for seed in (1, 2)] for arm, of_arm in scores.items()}
        assert found["base"][name].auc == pytest.approx(np.mean(slow["base"]))
        assert (found["base"][name].gauc, found["base"][name].rows) == (None, rows.slices[name].sum())
        assert found["full"][name].vs["base"].per_seed == pytest.approx(np.subtract(slow["full"], slow["base"]))


def test_the_interval_of_auc_is_that_of_resampling_its_users() -> None:
    """Users differ in how often they buy at all and in how well they are known, so that rows are far from independent."""
    rng = np.random.default_rng(3)
    user = np.repeat(np.arange(300), 8)
    rate, known = rng.beta(1, 1, 300)[user], rng.normal(1, 1, 300)[user]
    label = (rng.random(len(user)) < rate).astype(np.int8)
    rows = WindowRows(np.arange(len(user)), user, label, {"all": np.ones(len(user), bool)})
    scores = {arm: {1: strength * known * label + rate + rng.normal(size=len(user))} for arm, strength in (("base", 0.5), ("full", 1.0))}
    gap = compared(rows, scores, rounds=4000, metric="auc")["full"]["all"].vs["base"]
    base, full = (1 / (1 + np.exp(-scores[arm][1])) for arm in ("base", "full"))
    exact = paired_differences(label, user, base, full, 4000, np.random.default_rng(0))["auc"]
    assert exact.low is not None
    assert exact.high is not None
    assert gap.mean == pytest.approx(exact.difference)
    assert (gap.lo, gap.hi) == pytest.approx((exact.low, exact.high), abs=0.04 * (exact.high - exact.low))


def test_slices_may_differ_from_seed_to_seed() -> None:
    """As where each seed makes other items cold: an arm and its rival are compared on each seed's own slice."""
    plain = rows_of(60, 8, seed=4)
    rng = np.random.default_rng(5)
    worlds = {seed: WindowRows(plain.example_id_N, plain.user_N, plain.label_N, {"cold": rng.random(len(plain.user_N)) < 0.3}) for seed in (1, 2, 3)}
    base, full = scores_of(plain, 0.5, (1, 2, 3), 1), scores_of(plain, 1.5, (1, 2, 3), 2)
    found = compare(
        {arm: {seed: measured(rows, given[seed], "auc") for seed, rows in worlds.items()} for arm, given in (("base", base), ("full", full))},
        lambda arm: ["base"],
        "auc",
        200,
    )
    slow = [slow_auc(rows, full[seed], rows.slices["cold"]) - slow_auc(rows, base[seed], rows.slices["cold"]) for seed, rows in worlds.items()]
    gap = found["full"]["cold"].vs["base"]
    assert gap.per_seed == pytest.approx(slow)
    assert 0 < gap.lo < gap.mean < gap.hi


STUDY = StudySettings.model_validate(
    {
        "name": "trial",
        "chosen": "Chosen on the validation window.",
        "headline_arms": ["base", "full", "random"],
        "against": ["base", "random"],
        "datasets": {"shop": {"config": "shop.toml", "headline": {"arm": "full", "slice": "low20", "base": "base", "control": "random"}}},
        "arms": {"base": {"ranker": "base", "meaning": "own counts"}, "full": {"meaning": "groups & <peers>"}, "random": {}, "weak": {"validation_only": True}},
    }
)


def arm(gauc: float, **over: tuple[float, float, float]) -> ArmOnSlice:
    vs = {other: Difference(mean=mean, lo=low, hi=high, per_seed=(mean - 0.001, mean + 0.001)) for other, (mean, low, high) in over.items()}
    return ArmOnSlice(gauc=gauc, sd=0.002, rows=4_000, users=1_234, vs=vs)


def results(**changes: Any) -> StudyResults:
    arms = {
        "base": {name: arm(0.6, random=(-0.01, -0.02, 0.005)) for name in ("all", "low20", "decile_1")},
        "full": {name: arm(0.63, base=(0.03, 0.018, 0.042), random=(0.02, 0.012, 0.03)) for name in ("all", "low20", "decile_1")},
        "random": {name: arm(0.61, base=(0.01, -0.005, 0.02)) for name in ("all", "low20", "decile_1")},
    }
    logs = {"exposure": "logged <impressions>", "users": 12_345, "items": 678, "events": 90_123, "examples": {"train": 1, "test": 2}}
    given: dict[str, Any] = {
        "dataset": "shop",
        "config": "shop.toml",
        "commit": "abc123",
        "seeds": (1, 2),
        "headline": STUDY.datasets["shop"].headline.model_dump(),
        "window": "test",
        "arms": arms,
        "validation": {**arms, "weak": {"all": arm(0.55, base=(-0.05, -0.07, -0.03))}},
        "notes": {
            **{
                "form": "full",
                "when": "2026-11-22",
                "command": "python -m pipelines.study --config study.toml",
                "machine": "2 CPUs, 4 GiB.",
                "trials": 14,
                "trained_now": 3,
                "trials_thread_min": 12.5,
                "trials_min": 9.5,
                "shared_s": 21,
                "seconds_per_trial": {"base": 5.2, "full": 9.8},
                "steps": {"base": 400, "full": 4},
                "openings": [
                    {"when": "2026-11-21T10:00:00Z", "trained": 11, "commit": "aaa111", "settings": "5e77"},
                    {"when": "2026-11-22T11:00:00Z", "trained": 3, "commit": "abc123", "settings": "5e78"},
                ],
            },
            **{"logs": logs, "arms": {name: one.meaning for name, one in STUDY.arms.items()}},
        },
        **changes,
    }
    return StudyResults.model_validate(given)


def test_the_headline_says_what_was_claimed_and_whether_it_held() -> None:
    said = headline_sentence(results())
    assert said == (
        "Headline: `full` over `base` on `low20` (1,234 users): +5.00 % [+3.00, +7.00], 2 of 2 seeds positive; over `random`: +3.28 % [+1.97, +4.92]."
    )
    assert relative(Difference(mean=-0.01, lo=-0.02, hi=0.005, per_seed=(-0.01,)), arm(0.5)) == "-2.00 % [-4.00, +1.00]"


@pytest.mark.parametrize("change", [{"arms": {}}, {"headline": {"arm": "full", "slice": "orders_1", "base": "base", "control": "random"}}])
def test_a_headline_that_was_not_measured_says_so(change: dict[str, Any]) -> None:
    assert "not measured" in headline_sentence(results(**change))


def table_after(text: str, heading: str) -> dict[str, list[str]]:
    """Cells by the name in the first column."""
    lines = text.split(f"## {heading}")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|") and not line.startswith("|---")]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_markdown_has_the_headline_every_arm_and_what_is_needed_to_run_it_again() -> None:
    text = markdown(results(), STUDY)
    assert text.startswith("# trial on shop\n")
    assert headline_sentence(results()) in text
    told = [
        "abc123",
        "shop.toml",
        "python -m pipelines.study --config study.toml",
        "2026-11-22",
        "2 CPUs",
        "14 trials, 5 to 10 s each, took 12.5 min of a thread; 3 of them were trained in this run",
        "took 21 s, variants and trials of all data sets 9.5 min",
        "2026-11-21T10:00:00Z, 11 trials trained, commit aaa111, settings 5e77; 2026-11-22T11:00:00Z, 3 trials trained",
        "Chosen on the validation window.",
        "2 seed(s): the intervals know next to nothing of what training again would change",
        "Hardly trained: 4 to 4 optimiser steps for full.",
        "12,345 users",
        "seeds [1, 2]",
    ]
    for words in told:
        assert words in text, words
    over_base = table_after(text, "Test window: GAUC over `base`")
    assert over_base["arm"] == ["all (1,234 users)", "low20 (1,234 users)"]
    assert list(over_base) == ["arm", "base", "full", "random"]
    assert over_base["full"] == ["0.6300 (+5.00 % [+3.00, +7.00])"] * 2
    assert over_base["base"] == ["0.6000 ± 0.0020"] * 2
    assert table_after(text, "Test window: GAUC over `random`")["full"] == ["0.6300 (+3.28 % [+1.97, +4.92])"] * 2
    validation = table_after(text, "Validation window")
    assert validation["weak"] == ["0.5500 (-8.33 % [-11.67, -5.00])", ""]
    assert list(table_after(text, "All slices, headline arms")) == ["slice", "all", "low20", "decile_1"]
    assert table_after(text, "Arms")["base"] == ["own counts"]
    assert "weak" not in over_base


def test_an_arm_far_off_is_told_in_words_and_leaves_the_others_room() -> None:
    close = [
        (f"arm{number}", Difference(mean=number / 100, lo=number / 100 - 0.005, hi=number / 100 + 0.005, per_seed=(number / 100,)), 0.5) for number in (1, 2, 3)
    ]
    far = ("weak", Difference(mean=-0.4, lo=-0.41, hi=-0.39, per_seed=(-0.4,)), 0.5)
    svg = intervals([*close, far], "base")
    assert "\u25c2" in svg
    assert "\u221280.00 % [\u221282.00, \u221278.00]" in svg
    assert "\u221220 %" not in svg, "no tick of the axis is far off"
    assert "\u25c2" not in intervals(close, "base")
    assert "\u25c2" not in intervals([close[0], far], "base"), "of two arms none is the rule"


def test_small_slices_are_named_and_a_base_that_orders_all_the_wrong_way_round_divides_nothing() -> None:
    arms = results().arms
    few = {"orders_1": ArmOnSlice(gauc=0.0, sd=0.0, rows=4, users=2, vs={})}
    gap = {"orders_1": ArmOnSlice(gauc=0.5, sd=0.0, rows=4, users=2, vs={"base": Difference(mean=0.5, lo=0.5, hi=0.5, per_seed=(0.5,))})}
    found = results(arms={"base": arms["base"] | few, "full": arms["full"] | gap, "random": arms["random"] | few})
    text = markdown(found, STUDY)
    assert "0.5000 (+0.5000 [+0.5000, +0.5000] absolute)" in text
    assert "fewer than 50 users tell nothing but large differences: orders_1 (2)." in text
    assert "orders_1 (2)" in page(found, STUDY)


def test_the_page_draws_every_arm_and_escapes_what_it_is_told() -> None:
    html = page(results(), STUDY)
    assert html.count("<svg") == 4, "two slices for each of the arms that are compared with"
    for words in (
        "Headline: full over base on low20",
        "Over base",
        "Over random",
        "abc123",
        "logged &lt;impressions&gt;",
        "+5.00 % [+3.00, +7.00]",
        "Hardly trained: 4 to 4",
    ):
        assert words in html, words
    assert "<impressions>" not in html
    assert not re.search(r"https?://(?!www\.w3\.org)", html), "it needs no network"
    for name in ("base", "full", "random"):
        assert f">{name}<" in html
    assert "weak" not in html, "what only chooses is not in the test window"


def test_a_study_whose_test_window_is_empty_still_has_its_pages() -> None:
    empty = results(arms={})
    assert "not measured" in markdown(empty, STUDY)
    assert "not measured" in page(empty, STUDY)


def test_differences_of_auc_are_told_in_points() -> None:
    def in_auc(one: ArmOnSlice) -> dict[str, Any]:
        return {**one.model_dump(exclude={"gauc"}), "auc": one.gauc}

    study = StudySettings.model_validate(STUDY.model_dump() | {"metric": "auc", "datasets": {}})
    arms = {
        arm: {name: in_auc(one) for name, one in slices.items() if name == "all"} | {"zero_shot": in_auc(slices["all"])}
        for arm, slices in results().arms.items()
    }
    headline = {"arm": "full", "slice": "zero_shot", "base": "base", "control": "random"}
    found = results(arms=arms, validation=arms, metric="auc", headline=headline)
    assert headline_sentence(found).startswith("Headline: `full` over `base` on `zero_shot` (1,234 users): +3.00 [+1.80, +4.20], 2 of 2 seeds positive")
    text = markdown(found, study)
    assert table_after(text, "Test window: AUC over `base`")["full"] == ["0.6300 (+3.00 [+1.80, +4.20])"] * 2
    assert "in points (hundredths of AUC)" in text
    assert "GAUC" not in text
    html = page(found, study)
    assert "points of AUC" in html
    assert "items with no event before the window opened" in html
    assert "GAUC" not in html


def test_an_arm_is_measured_in_one_metric() -> None:
    for values in ({}, {"gauc": 0.5, "auc": 0.5}):
        with pytest.raises(ValidationError, match="one metric"):
            ArmOnSlice.model_validate({**values, "sd": 0, "rows": 1, "users": 1, "vs": {}})


def test_what_is_measured_beside_auc_is_that_of_the_slices_rows() -> None:
    """GAUC, log loss and calibration of each slice by their own functions, means over seeds; in GAUC's studies there is nothing beside."""
    plain = rows_of(40, 8, seed=5)
    odd = np.arange(len(plain.user_N)) % 2 == 1
    rows = rows_of(40, 8, 5, {"all": np.ones(len(odd), bool), "odd": odd, "positives": plain.label_N == 1})
    scores: Scores = {"base": scores_of(rows, 0.5, (1, 2), 1)}
    found = compared(rows, scores, metric="auc")["base"]
    assert set(found) == {"all", "odd"}
    for name, which in (("all", rows.slices["all"]), ("odd", odd)):
        beside = found[name].beside
        assert beside is not None
        label, user = rows.label_N[which], rows.user_N[which]
        given = [scores["base"][seed][which] for seed in (1, 2)]
        chances = [1 / (1 + np.exp(-one)) for one in given]
        assert beside["gauc"] == pytest.approx(np.mean([gauc(label, one, user) for one in given]))
        assert beside["log_loss"] == pytest.approx(np.mean([log_loss(label, one) for one in chances]))
        assert beside["calibration_ratio"] == pytest.approx(np.mean([one.sum() / label.sum() for one in chances]))
        assert beside["calibration_error"] == pytest.approx(np.mean([calibration(label, one).error for one in chances]))
    assert compared(rows, scores)["base"]["all"].beside is None


def test_the_page_says_what_a_data_set_sets_over_its_config_and_its_arms() -> None:
    shop = STUDY.datasets["shop"].model_copy(update={"set": ("logs.source=tables",), "seeded": ("logs.cold_start.seed",), "over": ("train.epochs=3",)})
    text = markdown(results(), STUDY.model_copy(update={"datasets": {"shop": shop}}))
    assert "- Set over its config: `logs.source=tables`; by each seed: `logs.cold_start.seed`; over the arms too: `train.epochs=3`." in text
    assert "Set over its config" not in markdown(results(), STUDY.model_copy(update={"datasets": {}}))
