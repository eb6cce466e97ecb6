"""Behaviour factors: by hand, against scikit-learn's kernel ridge, what landmarks may leave out, and how they reach contents without pairs."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.kernel_ridge import KernelRidge

from longtail.item_factors import fit_factors, item_factors, kernel
from longtail.pairs import Pairs
from longtail.projection import ItemEncoder, Projection, ProjectionShape

Floats = NDArray[np.float32]


def unit(vectors: NDArray[np.floating]) -> Floats:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def families(num: int = 20, size: int = 6, seed: int = 0) -> tuple[Floats, NDArray[np.int64], Pairs]:
    """Contents near their family's centre, which family goes with which (two by two), and pairs of the contents but each family's last."""
    rng = np.random.default_rng(seed)
    family = np.repeat(np.arange(num), size)
    vectors = unit(unit(rng.normal(size=(num, 16)))[family] + 0.1 * rng.normal(size=(num * size, 16)))
    left, right = np.triu_indices(num * size, 1)
    met = (np.arange(num * size) % size != size - 1)[np.stack([left, right])].all(axis=0)
    tied = met & (family[left] // 2 == family[right] // 2) & (rng.random(len(left)) < 0.6)
    return vectors, family // 2, Pairs(left[tied], right[tied], np.ones(int(tied.sum())))


def test_factors_by_hand() -> None:
    # Two couples who meet nobody else, and one content whom nobody meets: each couple shares a direction of its own.
    factors, mass = item_factors(Pairs(np.array([0, 2]), np.array([1, 3]), np.array([2.0, 1.0])), 5, 4, 0)
    np.testing.assert_array_equal(mass, [2, 2, 1, 1, 0])
    np.testing.assert_array_equal(factors[4], 0)
    np.testing.assert_allclose(np.linalg.norm(factors[:4], axis=1), 1, atol=1e-6)
    assert abs(factors[0] @ factors[2]) < 1e-6


def test_the_regression_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    inputs, factors, mass = unit(rng.normal(size=(80, 8))), unit(rng.normal(size=(80, 5))), rng.integers(1, 20, 80).astype(float)
    found = fit_factors(inputs, factors, mass, 0.7, 0.4, 80, 0)
    sure = np.sqrt(mass / np.median(mass)).clip(0.2, 5)
    peer = KernelRidge(alpha=0.4, kernel="rbf", gamma=1 / 0.7).fit(inputs.astype(np.float64), factors - factors.mean(axis=0), sample_weight=sure)
    asked = unit(rng.normal(size=(30, 8)))
    mine = kernel(asked, found.landmarks_LI, found.width) @ found.coefficients_LF + found.mean_F
    np.testing.assert_allclose(mine, peer.predict(asked.astype(np.float64)) + factors.mean(axis=0), atol=1e-3)


def test_contents_without_pairs_find_the_family_that_goes_with_theirs() -> None:
    vectors, couple, pairs = families()
    factors, mass = item_factors(pairs, len(vectors), 16, 0)
    unmet = mass == 0
    assert unmet.sum() == 20

    def together(space: Floats) -> float:
        likeness = space @ space.T
        np.fill_diagonal(likeness, -9)
        nearest = np.argsort(-likeness[unmet], axis=1)[:, :10]
        return float((couple[nearest] == couple[unmet][:, None]).mean())

    start = Projection.start(ProjectionShape(16, 0, 16, 0, None, True), vectors, 0)
    by_landmarks = [ItemEncoder(start.beside(fit_factors(vectors, factors, mass, 0.5, 0.1, num, 0))).project(vectors) for num in (200, 60)]
    assert by_landmarks[0].shape == (120, 32)
    assert together(by_landmarks[0][:, 16:]) > together(vectors) + 0.3
    assert together(by_landmarks[0]) > together(vectors) + 0.2
    assert together(by_landmarks[1]) == pytest.approx(together(by_landmarks[0]), abs=0.1)
    dealt = factors.copy()
    dealt[~unmet] = factors[~unmet][np.random.default_rng(1).permutation(int((~unmet).sum()))]
    control = ItemEncoder(start.beside(fit_factors(vectors, dealt, mass, 0.5, 0.1, 200, 0))).project(vectors)
    assert together(control[:, 16:]) < together(by_landmarks[0][:, 16:]) - 0.3


def test_both_parts_weigh_the_same_and_length_is_one() -> None:
    vectors, _, pairs = families()
    factors, mass = item_factors(pairs, len(vectors), 8, 0)
    start = Projection.start(ProjectionShape(16, 0, 16, 4, None, True), vectors, 0)
    whole = start.beside(fit_factors(vectors, factors, mass, 0.5, 0.1, 50, 0))
    assert (whole.shape.dim, whole.shape.own_dim, whole.shape.num_landmarks) == (24, 16, 50)
    assert len(list(whole.parameters())) == len(list(start.parameters()))  # what was solved for is not trained
    z = ItemEncoder(whole).project(vectors)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(z[:, :16] * 2**0.5, ItemEncoder(start).project(vectors), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(z[:, 16:], axis=1), 0.5**0.5, atol=1e-5)
