"""Pair wins: numbers keep the order of any scores, and whatever their type, AUC and GAUC are those of all pairs."""

import numpy as np
import numpy.typing as npt
import pytest

from longtail.metrics import auc, user_aucs
from longtail.pair_wins import Order, Ranges, pair_wins

SCORES = {
    "probabilities": lambda rng: rng.random(400, dtype=np.float32),
    "logits": lambda rng: rng.normal(size=400).astype(np.float32) * 1e3,
    "float64 of float32": lambda rng: rng.random(400, dtype=np.float32).astype(np.float64),
    "float64": lambda rng: 1 + rng.integers(0, 9, 400) * 1e-12,  # float32 would call them equal
    "huge": lambda rng: rng.normal(size=400) * 1e300,
    "counts": lambda rng: rng.integers(0, 7, 400),
    "large counts": lambda rng: 2**30 + rng.integers(0, 7, 400),
    "signed zeros": lambda rng: rng.choice(np.array([-0.0, 0.0, 1.0, -1.0], np.float32), 400),
    "constant": lambda rng: np.full(400, 0.25, np.float32),
}


def all_pairs(labels: npt.NDArray[np.int8], scores: npt.NDArray[np.float64]) -> float:
    scores = scores.astype(np.float64)
    above = np.sign(scores[labels == 1][:, None] - scores[labels == 0][None, :])
    return float(((above + 1) / 2).mean()) if above.size else float("nan")


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("threads", [1, 2])
def test_any_scores_give_the_aucs_of_all_pairs(kind: str, threads: int) -> None:
    rng = np.random.default_rng(3)
    scores = SCORES[kind](rng)
    labels, users = (rng.random(400) < 0.3).astype(np.int8), rng.integers(0, 30, 400) ** 2 - 50
    assert auc(labels, scores, threads) == pytest.approx(all_pairs(labels, scores), rel=1e-12)
    found = user_aucs(labels, scores, users, threads)
    assert found.users_U.tolist() == np.unique(users).tolist()
    wanted = [all_pairs(labels[users == user], scores[users == user]) for user in found.users_U]
    np.testing.assert_allclose(found.auc_U, wanted, rtol=1e-12)


@pytest.mark.parametrize("kind", SCORES)
def test_numbers_order_as_the_scores_do(kind: str) -> None:
    scores = SCORES[kind](np.random.default_rng(4))
    number = Order(scores).numbers().astype(np.int64)
    assert number.min() == 0
    np.testing.assert_array_equal(np.sign(number[:, None] - number), np.sign(scores[:, None].astype(np.float64) - scores))


def test_what_is_asked_is_left_as_it_was() -> None:
    rng = np.random.default_rng(5)
    scores, labels, users = rng.normal(size=50).astype(np.float32), (rng.random(50) < 0.5).astype(np.int8), rng.integers(3, 9, 50)
    before = scores.copy(), labels.copy(), users.copy()
    auc(labels, scores), user_aucs(labels, scores, users)
    for one, was in zip((scores, labels, users), before, strict=True):
        np.testing.assert_array_equal(one, was)


def test_users_far_apart_are_numbered() -> None:
    found = user_aucs([0, 1, 1, 0], [0.1, 0.2, 0.3, 0.4], [2**40, 2**40, -5, -5])
    assert (found.users_U.tolist(), found.auc_U.tolist()) == ([-5, 2**40], [0.0, 1.0])


def test_ranges_ascend_and_keep_equal_scores_together() -> None:
    scores = np.random.default_rng(6).random(5_000, dtype=np.float32)
    scores[:3_000] = 0.25
    order = Order(scores)
    ranges = Ranges(order, 5_000, 100)
    found = ranges.of(order.numbers())
    assert set(np.diff(found[np.argsort(scores)])) == {0, 1}
    assert (found.min(), found.max()) == (0, ranges.num - 1)
    assert len(np.unique(found[:3_000])) == 1
    assert ranges.num > 10


@pytest.mark.parametrize("kind", SCORES)
def test_many_small_parts_and_ranges(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtail.pair_wins.PART_ROWS", 30)
    monkeypatch.setattr("longtail.pair_wins.ROWS_PER_RANGE", 20)
    monkeypatch.setattr("longtail.pair_wins.MANY_ROWS", 40)
    rng = np.random.default_rng(8)
    scores, labels = SCORES[kind](rng), (rng.random(400) < 0.3).astype(np.int8)
    assert auc(labels, scores, threads=2) == pytest.approx(all_pairs(labels, scores), rel=1e-12)


@pytest.mark.parametrize("many_rows", [4096, 20])
@pytest.mark.parametrize("part_rows", [1000, 50])
def test_groups_of_all_sizes_in_many_shares(part_rows: int, many_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtail.pair_wins.PART_ROWS", part_rows)
    monkeypatch.setattr("longtail.pair_wins.MANY_ROWS", many_rows)
    monkeypatch.setattr("longtail.pair_wins.SHARE_ROWS", 16)
    rng = np.random.default_rng(7)
    group, labels, scores = rng.integers(0, 40, 300) // 3, rng.integers(0, 2, 300), rng.integers(0, 5, 300).astype(np.float32)
    found = pair_wins(Order(scores), labels, group, threads=2)
    for one in range(14):
        mine = group == one
        assert (found.rows_G[one], found.positives_G[one]) == (mine.sum(), labels[mine].sum())
        assert found.wins_G[one] == pytest.approx(all_pairs(labels[mine], scores[mine]) * (found.positives_G * (found.rows_G - found.positives_G))[one])
