"""The nearest centroid: equal to all float64 distances, whatever multiplies, and ties to the lowest number."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.codes import CodebookSettings, encode, fit_here
from longtail.int8_products import INT8_MAX, float_products, padded_rows, products, to_int8
from longtail.kmeans import CoarseCentroids, Space, VectorShard, grid_of, int8_step
from longtail.nearest import NearestCentroids
from longtail.nearest_device import DeviceCentroids

Made = Callable[[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]
MADE = [NearestCentroids, partial(DeviceCentroids, dtype=torch.float32), partial(DeviceCentroids, dtype=torch.bfloat16)]


def by_all_distances(rows: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    return (rows.double()[:, None] - centroids.double()[None]).square().sum(2).argmin(1)


@pytest.mark.parametrize("made", MADE)
@given(
    seed=st.integers(0, 2**16),
    size=st.integers(1, 40),
    dim=st.integers(1, 50),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    shift=st.sampled_from([0.0, 30.0]),
)
@settings(max_examples=40, deadline=None)
def test_it_is_that_of_all_distances(made: Made, seed: int, size: int, dim: int, scale: float, shift: float) -> None:
    """Near ties too: half of the centroids lie within a millionth of another."""
    draw = torch.Generator().manual_seed(seed)
    centroids = torch.randn(size, dim, generator=draw) + shift
    centroids[size // 2 :] = centroids[: size - size // 2] * (1 + 1e-6)
    rows = centroids[torch.randint(size, (60,), generator=draw)] + 0.3 * torch.randn(60, dim, generator=draw)
    rows[0] = 0.0
    rows, centroids = rows * scale, centroids * scale
    torch.testing.assert_close(made(centroids[None])(rows)[:, 0], by_all_distances(rows, centroids), rtol=0, atol=0)


@pytest.mark.parametrize("made", MADE)
@given(
    seed=st.integers(0, 2**16),
    num_stages=st.integers(2, 4),
    size=st.integers(1, 30),
    dim=st.integers(1, 40),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    shrink=st.sampled_from([1.0, 0.1, 1e-3]),
)
@settings(max_examples=40, deadline=None)
def test_each_stage_has_the_nearest_to_what_the_last_left(made: Made, seed: int, num_stages: int, size: int, dim: int, scale: float, shrink: float) -> None:
    """Stages much smaller than the rows too, where a residual is a small difference of large numbers; near ties in each of them."""
    draw = torch.Generator().manual_seed(seed)
    codebook = torch.randn(num_stages, size, dim, generator=draw) * torch.tensor([shrink**stage for stage in range(num_stages)])[:, None, None]
    codebook[:, size // 2 :] = codebook[:, : size - size // 2] * (1 + 1e-6)
    picked = torch.randint(size, (num_stages, 60), generator=draw)
    rows = sum(codebook[stage][picked[stage]] for stage in range(num_stages)) + 0.3 * shrink**num_stages * torch.randn(60, dim, generator=draw)
    rows, codebook = rows * scale, codebook * scale
    found, left = made(codebook)(rows), rows.clone()
    for stage, centroids in enumerate(codebook):
        torch.testing.assert_close(found[:, stage], by_all_distances(left, centroids), rtol=0, atol=0)
        left -= centroids[found[:, stage]]


def test_ties_go_to_the_lowest_number() -> None:
    centroids = torch.tensor([[0.0, 2.0], [0.0, -2.0], [0.0, 2.0], [5.0, 0.0]])
    rows = torch.tensor([[0.0, 0.0], [0.0, 2.0], [1.0, 0.0], [4.9, 0.0]])
    assert NearestCentroids(centroids[None])(rows)[:, 0].tolist() == [0, 0, 0, 3]


def test_a_row_has_one_code_whatever_stands_beside_it() -> None:
    draw = torch.Generator().manual_seed(0)
    rows, centroids = torch.randn(5000, 24, generator=draw), torch.randn(64, 24, generator=draw)
    whole = NearestCentroids(centroids[None])(rows)[:, 0]
    order = torch.randperm(5000, generator=draw)
    assert torch.equal(NearestCentroids(centroids[None])(rows[order])[:, 0], whole[order])
    assert torch.equal(NearestCentroids(centroids[None])(rows[4999:])[:, 0], whole[4999:])
    assert len(NearestCentroids(centroids[None])(rows[:0])[:, 0]) == 0


def test_codes_are_the_same_without_int8_units_and_for_rows_that_lie_apart_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(1)
    rows, codebook = torch.randn(3000, 40, generator=draw), torch.randn(2, 32, 40, generator=draw)
    found = NearestCentroids(codebook)(rows)
    assert torch.equal(NearestCentroids(codebook)(rows.t().contiguous().t()), found)
    monkeypatch.setattr("longtail.int8_products.has_int8_units", lambda: False)
    assert torch.equal(NearestCentroids(codebook)(rows), found)
    assert torch.equal(DeviceCentroids(codebook, torch.bfloat16)(rows), found)


def test_many_parts_and_threads_say_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty centroids, which products pad to 24."""
    draw = torch.Generator().manual_seed(3)
    rows, codebook = torch.randn(3000, 30, generator=draw), torch.randn(3, 20, 30, generator=draw)
    shard, space = VectorShard([(0, rows.numpy().copy())]), Space(grid_of(6.0), np.zeros((0, 20, 30), np.float32), 0.04)
    found, sums = NearestCentroids(codebook)(rows), shard.step(space, codebook[0].numpy())
    small = {"nearest_cpu._PART_BLOCKS": 1, "nearest_cpu._BLOCK_SCORES": 1 << 12, "kmeans_cpu._PART_ROWS": 64, "kmeans_cpu._BLOCK_SCORES": 1 << 10}
    for name, value in small.items():
        monkeypatch.setattr(f"longtail.{name}", value)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(NearestCentroids(codebook)(rows), found)
        in_parts = VectorShard([(0, rows.numpy().copy())]).step(space, codebook[0].numpy())
    finally:
        torch.set_num_threads(before)
    assert in_parts.sums_KD.tobytes() == sums.sums_KD.tobytes()
    assert in_parts.counts_K.tolist() == sums.counts_K.tolist()
    assert sums.counts_K.sum() == 3000


@pytest.mark.parametrize("num_rows", [5, 500])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_refused(num_rows: int, number: float) -> None:
    rows = np.random.default_rng(0).standard_normal((num_rows, 12)).astype(np.float32)
    codebook = rows[None, :4].copy()
    rows[3, 7] = number
    with pytest.raises(ValueError, match="not finite"):
        encode(rows, codebook)
    with pytest.raises(ValueError, match="not finite"):
        fit_here(rows, CodebookSettings(num_stages=1, codebook_size=4), 1)


@pytest.mark.parametrize("dim", [3, 384, 3000])
def test_products_are_exact_whatever_multiplies(dim: int) -> None:
    draw = torch.Generator().manual_seed(dim)
    rows = to_int8(torch.randint(-INT8_MAX, INT8_MAX + 1, (9, dim), generator=draw).float())
    others = padded_rows(to_int8(torch.full((5, dim), float(INT8_MAX))))
    exact = rows.long() @ others.long().t()
    assert others.shape == (8, -(-dim // 8) * 8)
    assert torch.equal(products(rows, others).long(), exact)
    assert torch.equal(float_products(rows, others).long(), exact)


def test_int8_holds_all_but_a_hundredth() -> None:
    rows = np.random.default_rng(0).standard_normal((1000, 16)).astype(np.float32)
    rows[:5] *= 1000.0
    rows[-200:] = 0.0
    shard = VectorShard([(0, rows)])
    space = Space(grid_of(shard.extent()), np.zeros((0, 4, 16), np.float32))
    step = int8_step(shard.rows_by_bucket(space))
    wide = np.abs(rows).max(1) > step * INT8_MAX
    assert 5 <= wide.sum() <= 8
    assert step * INT8_MAX < 1.3 * np.abs(rows[5:-200]).max()
    assert int8_step(VectorShard([(0, np.zeros((3, 16), np.float32))]).rows_by_bucket(space)) == 1.0


def test_rows_beyond_int8_find_their_centroids() -> None:
    """A few rows a thousand times as long as the others, and centroids among them: a step as wide as theirs would leave nothing of the rest."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((2000, 16)).astype(np.float32)
    rows[:10] *= 1000.0
    centroids = np.concatenate([rows[:2], rows[10:40]])
    shard = VectorShard([(0, rows)])
    space = Space(grid_of(shard.extent()), np.zeros((0, 32, 16), np.float32))
    space = Space(space.grid, space.fixed_SKD, int8_step(shard.rows_by_bucket(space)))
    exact = shard.assign(space, centroids).counts_K
    assert np.abs(shard.step(space, centroids).counts_K - exact).sum() < 0.06 * len(rows)
    assert (shard.step(space, centroids).counts_K[:2] == exact[:2]).all()


def test_sums_are_exact_after_many_moves() -> None:
    """Rows are added and taken away pass by pass; a shard that begins with the last pass says the same bits."""
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((3000, 12)).astype(np.float32)
    shard, space = VectorShard([(0, rows[:1000]), (1000, rows[1000:])]), Space(grid_of(6.0), np.zeros((0, 20, 12), np.float32), 0.04)
    for _ in range(6):
        centroids = rows[rng.choice(3000, 20, replace=False)]
        told = shard.step(space, centroids)
    fresh = VectorShard([(0, rows)]).step(space, centroids)
    assert told.sums_KD.tobytes() == fresh.sums_KD.tobytes()
    assert told.counts_K.tolist() == fresh.counts_K.tolist()
    on_grid = np.rint(rows / space.grid) * space.grid
    codes = CoarseCentroids(centroids, space.step, torch.device("cpu")).nearest(to_int8(torch.tensor(on_grid / space.step)))
    for number in range(20):
        np.testing.assert_array_equal(told.sums_KD[number], on_grid[codes.numpy() == number].astype(np.float64).sum(0))
