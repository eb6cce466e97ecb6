"""Metrics against slow, obvious versions (all pairs) and against scikit-learn."""

import time

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from longtail.metrics import PresortedAuc, auc, calibration, gauc, log_loss, user_aucs


def all_pairs_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    wins = pairs = 0.0
    for positive in scores[labels == 1]:
        for negative in scores[labels == 0]:
            pairs += 1
            wins += 1.0 if positive > negative else 0.5 if positive == negative else 0.0
    return wins / pairs if pairs else float("nan")


def slow_gauc(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> float:
    total = weight = 0.0
    for user in np.unique(users):
        mine = users == user
        value = all_pairs_auc(labels[mine], scores[mine])
        if not np.isnan(value):
            total += value * mine.sum()
            weight += mine.sum()
    return total / weight if weight else float("nan")


def draw(seed: int, rows: int = 240, num_users: int = 20, levels: int | None = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.random(rows)
    if levels is not None:  # few score values: many ties
        scores = np.round(scores * levels) / levels
    return (rng.random(rows) < 0.2 + 0.5 * scores).astype(np.int8), scores, rng.integers(0, num_users, rows)


def test_auc_by_hand() -> None:
    assert auc([0, 1, 1, 0], [0.1, 0.9, 0.4, 0.4]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert auc([0, 1], [0.3, 0.3]) == 0.5
    assert auc([0, 0, 1], [3.0, 2.0, 1.0]) == 0.0


@pytest.mark.parametrize("levels", [None, 12, 2])
@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_ordered_pairs(seed: int, levels: int | None) -> None:
    labels, scores, _ = draw(seed, levels=levels)
    assert auc(labels, scores) == pytest.approx(all_pairs_auc(labels, scores))
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


def test_auc_keeps_under_monotone_maps_and_mirrors_under_negation() -> None:
    labels, scores, _ = draw(3)
    assert auc(labels, np.exp(3 * scores)) == pytest.approx(auc(labels, scores))
    assert auc(labels, -scores) == pytest.approx(1 - auc(labels, scores))


@pytest.mark.parametrize("labels", [[], [1, 1], [0, 0, 0]])
def test_one_class_has_no_auc(labels: list[int]) -> None:
    assert np.isnan(auc(labels, np.linspace(0, 1, len(labels))))
    assert np.isnan(gauc(labels, np.linspace(0, 1, len(labels)), np.zeros(len(labels), dtype=int)))


def test_weighted_auc_equals_repeated_rows() -> None:
    labels, scores, _ = draw(4)
    counts = np.random.default_rng(0).integers(0, 4, len(labels))
    weighted = PresortedAuc(labels, scores)(counts.astype(float))
    assert weighted == pytest.approx(roc_auc_score(np.repeat(labels, counts), np.repeat(scores, counts)))


def test_gauc_by_hand_leaves_out_users_with_one_class() -> None:
    labels = [1, 0, 1, 0, 0, 1, 1]
    scores = [0.9, 0.1, 0.2, 0.8, 0.7, 0.5, 0.6]
    users = [7, 7, 3, 3, 3, 5, 5]  # user 7: 1.0 on 2 rows; user 3: 0.0 on 3 rows; user 5: positives only
    assert gauc(labels, scores, users) == pytest.approx((2 * 1.0 + 3 * 0.0) / 5)


@pytest.mark.parametrize("num_users", [1, 20, 150])
@pytest.mark.parametrize("seed", range(5))
def test_gauc_equals_the_slow_version(seed: int, num_users: int) -> None:
    labels, scores, users = draw(seed, num_users=num_users)
    assert gauc(labels, scores, users) == pytest.approx(slow_gauc(labels, scores, users))
    each = user_aucs(labels, scores, users)
    assert each.users_U.tolist() == np.unique(users).tolist()
    for user, value, rows, positives in zip(each.users_U, each.auc_U, each.rows_U, each.positives_U, strict=True):
        mine = users == user
        assert (rows, positives) == (mine.sum(), labels[mine].sum())
        assert value == pytest.approx(all_pairs_auc(labels[mine], scores[mine]), nan_ok=True)


def test_gauc_does_not_see_a_users_own_offset() -> None:
    labels, scores, users = draw(6)
    shifted = scores + np.random.default_rng(1).normal(size=20)[users]
    assert gauc(labels, shifted, users) == pytest.approx(gauc(labels, scores, users))
    assert auc(labels, shifted) != pytest.approx(auc(labels, scores))


def test_gauc_of_a_million_rows_takes_a_second() -> None:
    labels, scores, users = draw(0, rows=1_000_000, num_users=50_000, levels=None)
    fastest = float("inf")
    for _ in range(3):
        started = time.process_time()  # not the wall clock: the machine may be busy with other work
        gauc(labels, scores.astype(np.float32), users)
        fastest = min(fastest, time.process_time() - started)
    assert fastest < 3.0, "one sort of 1 M rows takes some 0.4 s; a loop over 50,000 users tens of seconds"


def test_log_loss_equals_sklearn_and_survives_saturation() -> None:
    labels, scores, _ = draw(1, levels=None)
    assert log_loss(labels, scores) == pytest.approx(sklearn_log_loss(labels, scores))
    assert log_loss([0, 1], [0.5, 0.5]) == pytest.approx(np.log(2))
    assert log_loss([1], [0.0]) == pytest.approx(-np.log(1e-7))
    assert np.isnan(log_loss([], []))


def test_calibration_equals_sklearn_on_equal_bins() -> None:
    labels, scores, _ = draw(2, rows=1000, levels=None)
    ours = calibration(labels, scores, 10)
    actual, predicted = calibration_curve(labels, scores, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(ours.actual_Q, actual)
    np.testing.assert_allclose(ours.predicted_Q, predicted)
    assert ours.rows_Q.sum() == 1000
    assert ours.error == pytest.approx(np.abs(actual - predicted) @ ours.rows_Q / 1000)
    assert ours.ratio == pytest.approx(scores.sum() / labels.sum())


def test_calibration_by_hand() -> None:
    ours = calibration([0, 0, 1, 1, 0, 1], [0.2, 0.2, 0.2, 0.8, 0.8, 0.8], 2)
    np.testing.assert_allclose(ours.predicted_Q, [0.2, 0.8])
    np.testing.assert_allclose(ours.actual_Q, [1 / 3, 2 / 3])
    assert ours.error == pytest.approx(0.8 - 2 / 3)
    assert ours.ratio == pytest.approx(1.0)


def test_a_constant_prediction_is_one_bin() -> None:
    ours = calibration([0, 1, 0, 0], [0.25] * 4, 10)
    assert ours.rows_Q.tolist() == [4]
    assert ours.error == pytest.approx(0.0)
    assert np.isnan(calibration([0, 0], [0.1, 0.2]).ratio)


def test_what_cannot_be_measured_is_refused_with_its_reason() -> None:
    with pytest.raises(ValueError, match="shape"):
        auc([0, 1], [0.1])
    with pytest.raises(ValueError, match="only 0 and 1"):
        auc([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="not finite"):
        gauc([0, 1], [0.1, float("nan")], [1, 1])
    with pytest.raises(ValueError, match="sigmoid"):
        log_loss([0, 1], [-2.0, 3.0])
    with pytest.raises(ValueError, match="one user per row"):
        user_aucs([0, 1], [0.1, 0.2], [1])
    with pytest.raises(ValueError, match="num_bins"):
        calibration([0, 1], [0.1, 0.2], 0)
