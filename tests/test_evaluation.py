"""Slices, paired differences and heads, on a simulation whose rankers' strengths are known."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from longtail.evaluation import Activity, EvaluateSettings, Metrics, bins, evaluate, quantile_edges
from longtail.metrics import auc, gauc, log_loss
from longtail.paired import Interval, paired_differences
from tests.simulated_predictions import simulate

RANKERS = ("base", "choirrec", "saviorrec")
SETTINGS = EvaluateSettings(bootstrap_rounds=60)
QUICK = EvaluateSettings(bootstrap_rounds=0)


@pytest.fixture(scope="module")
def predictions() -> pa.Table:
    return simulate()


@pytest.fixture(scope="module")
def metrics(predictions: pa.Table) -> Metrics:
    return evaluate(predictions, SETTINGS, seed=7, rankers=RANKERS)


def columns(table: pa.Table, ranker: str) -> dict[str, np.ndarray]:
    mine = table.filter(pc.equal(table.column("ranker"), ranker))
    return {name: mine.column(name).to_numpy(zero_copy_only=False) for name in mine.column_names if name != "alpha_fusion"}


def test_a_slices_numbers_are_those_of_its_rows(predictions: pa.Table, metrics: Metrics) -> None:
    [head] = metrics.heads
    for ranker in RANKERS:
        rows = columns(predictions, ranker)
        masks = {
            "all": np.ones(4000, dtype=bool),
            "cold": rows["item_events"] < 100,
            "warm": rows["item_events"] >= 100,
            "zero_shot": rows["item_events"] == 0,
            "new_items": rows["item_age_days"] < 20,
            "low_activity": rows["num_purchases"] <= metrics.low_activity_max,
            "high_activity": rows["num_purchases"] >= metrics.high_activity_min,
        }
        for name, mask in masks.items():
            one = head.slice(name)
            labels, scores, users = rows["label"][mask], rows["probability"][mask], rows["user_id"][mask]
            assert (one.rows, one.positives, one.users) == (mask.sum(), labels.sum(), len(set(users)))
            assert one.scores[ranker].auc == pytest.approx(auc(labels, scores))
            assert one.scores[ranker].gauc == pytest.approx(gauc(labels, scores, np.unique(users, return_inverse=True)[1]))
            assert one.scores[ranker].log_loss == pytest.approx(log_loss(labels, scores))


def test_the_planted_strengths_are_found_in_their_slices(metrics: Metrics) -> None:
    [head] = metrics.heads
    assert head.slice("low_activity").differences["choirrec"]["auc"].verdict == "higher"
    assert head.slice("cold").differences["saviorrec"]["auc"].verdict == "higher"
    assert head.slice("cold").differences["saviorrec"]["log_loss"].verdict == "lower"
    assert head.slice("warm").differences["saviorrec"]["auc"].verdict != "higher"
    assert head.slice("high_activity").differences["choirrec"]["auc"].verdict != "higher"
    assert metrics.baseline == "base"
    assert set(head.slice("all").differences) == {"choirrec", "saviorrec"}


def test_popularity_is_at_chance_where_labels_ignore_it_and_has_no_probabilities(metrics: Metrics) -> None:
    one = metrics.heads[0].slice("all").scores["popularity"]
    assert one.auc == pytest.approx(0.5, abs=0.03)
    assert one.log_loss is None
    assert one.calibration_error is None


def test_bins_of_activity_and_item_counts_partition_the_rows(metrics: Metrics) -> None:
    [head] = metrics.heads
    for family in ("activity", "item_events"):
        parts = [one for one in head.slices if one.family == family]
        assert len(parts) > 3
        assert sum(one.rows for one in parts) == head.slice("all").rows
    assert sum(head.slice(name).rows for name in ("cold", "warm")) == head.slice("all").rows


def test_low_activity_counts_users_not_rows(predictions: pa.Table) -> None:
    activity = Activity.of(predictions, SETTINGS)
    assert len(activity.users) == 120
    low = activity.purchases_U <= activity.low_max
    below = activity.purchases_U < activity.low_max
    assert below.mean() < SETTINGS.low_activity_frac <= low.mean()
    assert activity.high_min > activity.low_max


def test_activity_is_what_was_known_before_the_first_test_row() -> None:
    table = simulate(rows=400, num_users=20)
    later = np.arange(len(table)) % 5  # purchases grow within the test window
    grown = table.set_column(9, "num_purchases", pa.array(np.asarray(table.column("num_purchases")) + later, pa.int32()))
    np.testing.assert_array_equal(Activity.of(grown, SETTINGS).purchases_U, Activity.of(table, SETTINGS).purchases_U)


def test_the_order_of_predictions_changes_nothing(predictions: pa.Table) -> None:
    settings = EvaluateSettings(bootstrap_rounds=20)
    shuffled = predictions.take(np.random.default_rng(1).permutation(len(predictions)))
    assert evaluate(shuffled, settings, seed=7, rankers=RANKERS) == evaluate(predictions, settings, seed=7, rankers=RANKERS)


def test_metrics_survive_json_without_nan(metrics: Metrics) -> None:
    text = json.dumps(metrics.model_dump(mode="json"), allow_nan=False)
    assert Metrics.model_validate_json(text) == metrics


def test_small_slices_stay_with_their_reason(predictions: pa.Table) -> None:
    old = predictions.set_column(11, "item_age_days", pa.array(np.full(len(predictions), np.nan, dtype=np.float32)))
    [head] = evaluate(old, QUICK, seed=7, rankers=RANKERS).heads
    empty = head.slice("new_items")
    assert (empty.rows, empty.reason) == (0, "no test row falls into it")
    assert empty.scores["base"].auc is None
    assert empty.differences["choirrec"]["auc"] == Interval(difference=None, low=None, high=None)
    positives = pc.fill_null(pc.and_(pc.equal(predictions.column("label"), 0), pc.equal(predictions.column("item_events"), 0)), False)
    [head] = evaluate(predictions.filter(pc.invert(positives)), QUICK, seed=7, rankers=RANKERS).heads
    one_class = head.slice("zero_shot")
    assert one_class.rows == one_class.positives > 0
    assert one_class.reason == f"one class only: {one_class.rows} positives in {one_class.rows} rows"
    assert one_class.scores["saviorrec"].auc is None
    assert one_class.scores["saviorrec"].log_loss is not None


def test_cvr_is_measured_on_outcomes_only_and_a_head_among_those_that_have_it() -> None:
    table = simulate(heads=("outcome", "cvr", "conversion"), rows=1500)
    without = table.filter(pc.invert(pc.and_(pc.equal(table.column("head"), "conversion"), pc.equal(table.column("ranker"), "choirrec"))))
    found = evaluate(without, QUICK, seed=7, rankers=RANKERS)
    outcome, cvr, conversion = found.heads
    assert (outcome.head, cvr.head, conversion.head) == ("outcome", "cvr", "conversion")
    assert cvr.slice("all").rows == outcome.slice("all").positives
    assert conversion.rankers == ("base", "saviorrec")
    assert set(conversion.slice("all").differences) == {"saviorrec"}


def test_pairs_are_only_rows_that_both_scored(predictions: pa.Table) -> None:
    dropped = pc.and_(pc.equal(predictions.column("ranker"), "saviorrec"), pc.less(predictions.column("example_id"), 2000))
    [head] = evaluate(predictions.filter(pc.invert(dropped)), QUICK, seed=7, rankers=RANKERS).heads
    base, savior = columns(predictions, "base"), columns(predictions, "saviorrec")
    late = base["example_id"] >= 2000
    expected = auc(savior["label"][late], savior["probability"][late]) - auc(base["label"][late], base["probability"][late])
    assert head.slice("all").differences["saviorrec"]["auc"].difference == pytest.approx(expected)


def test_alpha_falls_with_activity_and_only_choirrec_has_it(metrics: Metrics) -> None:
    assert set(metrics.alpha_fusion) == {"choirrec"}
    means = [one.mean for one in metrics.alpha_fusion["choirrec"]]
    assert means[0] > means[-1]
    assert sum(one.rows for one in metrics.alpha_fusion["choirrec"]) == 4000


def test_a_ranker_does_not_differ_from_itself() -> None:
    rng = np.random.default_rng(0)
    labels, users, scores = rng.integers(0, 2, 300), rng.integers(0, 30, 300), rng.random(300)
    for one in paired_differences(labels, users, scores, scores, 40, rng).values():
        assert (one.difference, one.low, one.high) == (0.0, 0.0, 0.0)


def test_the_bootstrap_covers_the_spread_over_repeated_draws() -> None:
    """The interval's width is that of the estimate itself over fresh users."""
    estimates, widths = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels, users = rng.integers(0, 2, 600), np.repeat(np.arange(60), 10)
        base, other = labels + rng.normal(0, 2.0, 600), labels + rng.normal(0, 1.5, 600)
        found = paired_differences(labels, users, 1 / (1 + np.exp(-base)), 1 / (1 + np.exp(-other)), 100, rng)["auc"]
        assert found.low is not None and found.high is not None and found.difference is not None  # noqa: PT018
        estimates.append(found.difference)
        widths.append(found.high - found.low)
    assert np.mean(widths) == pytest.approx(4 * np.std(estimates), rel=0.35)


def test_one_user_gives_no_interval() -> None:
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    found = paired_differences(labels, np.zeros(4, dtype=int), scores[::-1].copy(), scores, 50, np.random.default_rng(0))
    assert found["auc"].difference is not None
    assert found["auc"].low is None
    assert found["auc"].verdict == "unclear"


def test_bins_by_hand() -> None:
    values = np.array([0, 0, 0, 1, 2, 3, 5, 8, 13, 21])
    edges = quantile_edges(values, 5)
    assert [int(mask.sum()) for _, mask in bins(values, edges)] == [4, 2, 2, 2]
    assert [name for name, _ in bins(values, edges)] == ["0–1", "2–4", "5–12", "≥ 13"]  # noqa: RUF001
    assert quantile_edges(np.zeros(5, dtype=int), 10) == (0,)
    assert [(name, int(mask.sum())) for name, mask in bins(np.zeros(5, dtype=int), (0,))] == [("0", 5)]
    assert list(bins(np.zeros(0, dtype=int), quantile_edges(np.zeros(0, dtype=int), 4))) == []


def test_refusals(predictions: pa.Table) -> None:
    with pytest.raises(ValueError, match="scored an example twice"):
        evaluate(pa.concat_tables([predictions, predictions.slice(0, 5)]), QUICK, seed=7, rankers=RANKERS)
    with pytest.raises(ValueError, match="no test rows were scored"):
        evaluate(predictions.slice(0, 0), QUICK, seed=7, rankers=RANKERS)
    flipped = np.asarray(predictions.column("label")).copy()
    flipped[:3] = 1 - flipped[:3]
    with pytest.raises(ValueError, match="disagree on the labels"):
        evaluate(predictions.set_column(7, "label", pa.array(flipped, pa.int8())), QUICK, seed=7, rankers=RANKERS)
