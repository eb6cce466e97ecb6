"""K-means on whole numbers: Lloyd's iterations of one stage, the same bits however the rows are dealt out.

Two things are whole numbers here. Rows and centroids are compared as int8, whose products are exact in int32 whatever multiplies them. And rows lie on a grid
of multiples of a power of two, so that their float64 sums are exact (up to 2^29 rows a centroid) and the order in which they are added changes
nothing. So a shard answers a pass with one sum, for which only the rows that changed their centroid are added and taken away, and any number of shards gives
one codebook. Comparing as int8 errs between centroids that are about as near, which hardly moves their means; the assignment that ends a stage is exact.
Reads vectors, writes nothing; longtail.codes fits codebooks with it. Source: ChoirRec, semantic group generation, step 3 (RQ-KMeans).
Letters: B rows of a block, R rows asked for, M rows that moved, K centroids, D vector width, S stages that are fixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from longtail.int8_products import INT8_MAX, padded_rows, products, to_int8
from longtail.nearest import NearestCentroids

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

_GRID_BITS = 21  # of the largest number; residuals may double three times before float32's 24 bits are full
_BUCKETS = 1 << 10  # of float32 magnitudes: exponent and two bits, a quarter to a fifth of an octave each
_BUCKET_SHIFT = 21
_WIDE_FRAC = 0.01  # of the rows may lie beyond int8's range: they are compared in wider steps
_PIECE_ROWS = 4096  # that are worked on at a time, so that they stay in the cache
_FARTHEST = 1 << 30  # an offset that no product outweighs


@dataclass(frozen=True)
class Space:
    """The residuals that a stage clusters, as every shard must see them."""

    grid: float  # all numbers are multiples of it
    fixed_SKD: Floats
    step: float = 1.0  # of int8, in the rows' unit


@dataclass(frozen=True)
class Sums:
    """The rows' sum and number by centroid; both exact."""

    sums_KD: Doubles
    counts_K: Ints

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.sums_KD + other.sums_KD, self.counts_K + other.counts_K)


@dataclass(frozen=True)
class Assignment:
    """What a shard tells of the exact assignment of its rows."""

    counts_K: Ints
    objective_B: Doubles  # the blocks' sums of squared distances to the nearest centroid


@dataclass(frozen=True)
class FarRows:
    """Rows that lie far from their nearest centroid, farthest first."""

    rows_R: Ints
    squared_R: Doubles

    @staticmethod
    def of(parts: "Sequence[FarRows]", num: int) -> "FarRows":
        """The farthest `num` of all parts, the lower row first where two are as far."""
        rows, squared = np.concatenate([part.rows_R for part in parts]), np.concatenate([part.squared_R for part in parts])
        order = np.lexsort((rows, -squared))[:num]
        return FarRows(rows[order], squared[order])


def grid_of(extent: float) -> float:
    """The grid's step for numbers up to `extent`: the power of two that leaves them 21 bits."""
    return float(2.0 ** (np.frexp(extent)[1] - _GRID_BITS)) if extent > 0 else 1.0


def int8_step(rows_by_bucket: Ints) -> float:
    """The step of int8 that holds all but a hundredth of the rows that are not zero, counted by the bucket of their largest number."""
    counts = rows_by_bucket[1:]
    if counts.sum() == 0:
        return 1.0
    bucket = 1 + int(np.searchsorted(np.cumsum(counts), np.ceil((1 - _WIDE_FRAC) * counts.sum())))
    return float(np.array([(bucket + 1) << _BUCKET_SHIFT], np.int32).view(np.float32)[0]) / INT8_MAX


class VectorShard:
    """Whole blocks of rows in memory, as residuals after the stages that are already fixed.

    `blocks` are (number of the first row, float32 [B, D]). A shard that was lost and made anew derives what it knew from the space in the call.
    """

    def __init__(self, blocks: Sequence[tuple[int, Floats]], device: str = "cpu") -> None:
        self._starts = np.array([first for first, _ in blocks])
        self._sizes = [len(rows) for _, rows in blocks]
        self._rows_ND = torch.cat([torch.as_tensor(rows, dtype=torch.float32) for _, rows in blocks]).to(device)
        self._num_fixed = -1  # not yet on the grid
        self._coarse: _CoarseRows | None = None
        self._assigned: tuple[Floats, torch.Tensor] | None = None

    def extent(self) -> float:
        """The largest magnitude of any number."""
        low, high = torch.aminmax(self._rows_ND)
        return max(abs(float(low)), abs(float(high)))

    def rows_by_bucket(self, space: Space) -> Ints:
        """How many rows have their largest number in each bucket of magnitudes."""
        self._come_to(space)
        return _rows_by_bucket(_largest(self._rows_ND))

    def step(self, space: Space, centroids_KD: Floats) -> Sums:
        """The rows' sums by the nearest centroid, compared as int8."""
        self._come_to(space)
        if self._coarse is None:
            self._coarse = _CoarseRows(self._rows_ND, space.step, len(centroids_KD))
        return self._coarse.step(centroids_KD)

    def assign(self, space: Space, centroids_KD: Floats) -> Assignment:
        """Every row's nearest centroid, exactly."""
        self._come_to(space)
        codes_N = self._nearest(centroids_KD)
        self._assigned = centroids_KD, codes_N
        by_block = np.split(self._squared(centroids_KD, codes_N), np.cumsum(self._sizes)[:-1])
        return Assignment(torch.bincount(codes_N, minlength=len(centroids_KD)).cpu().numpy(), np.array([block.sum() for block in by_block]))

    def farthest(self, space: Space, centroids_KD: Floats, num: int) -> FarRows:
        """The `num` rows that lie farthest from their centroid."""
        self._come_to(space)
        rows_N = np.concatenate([np.arange(first, first + size) for first, size in zip(self._starts, self._sizes, strict=True)])
        return FarRows.of([FarRows(rows_N, self._squared(centroids_KD, self._nearest(centroids_KD)))], num)

    def residuals(self, space: Space, rows_R: Ints) -> Floats:
        """float32 [R, D]; every row must lie in this shard."""
        self._come_to(space)
        block_R = np.searchsorted(self._starts, rows_R, side="right") - 1
        place_R = rows_R - self._starts[block_R] + np.cumsum([0, *self._sizes])[block_R]
        found: Floats = self._rows_ND[torch.from_numpy(place_R)].cpu().numpy()
        return found

    def _nearest(self, centroids_KD: Floats) -> torch.Tensor:
        return NearestCentroids(torch.tensor(centroids_KD, device=self._rows_ND.device)[None])(self._rows_ND)[:, 0]

    def _squared(self, centroids_KD: Floats, codes_N: torch.Tensor) -> Doubles:
        """Squared distances float64 [N] of rows from their centroids; each row's numbers are added in one order, whatever rows stand beside it."""
        centroids = torch.tensor(centroids_KD, device=self._rows_ND.device)
        pieces = zip(torch.split(self._rows_ND, _PIECE_ROWS), torch.split(codes_N, _PIECE_ROWS), strict=True)
        squared: Doubles = torch.cat([(rows - centroids.index_select(0, codes)).square_().sum(1) for rows, codes in pieces]).double().cpu().numpy()
        return squared

    def _come_to(self, space: Space) -> None:
        """Leave of the rows what the stages fixed by now do not explain."""
        assert len(space.fixed_SKD) >= self._num_fixed, "a shard serves one fit"
        if self._num_fixed < 0:
            self._rows_ND.div_(space.grid).round_().mul_(space.grid)
            self._num_fixed = 0
        for centroids_KD in space.fixed_SKD[self._num_fixed :]:
            known = self._assigned is not None and np.array_equal(self._assigned[0], centroids_KD)
            codes_N = self._assigned[1] if self._assigned is not None and known else self._nearest(centroids_KD)
            centroids = torch.tensor(centroids_KD, device=self._rows_ND.device)
            for rows, codes in zip(torch.split(self._rows_ND, _PIECE_ROWS), torch.split(codes_N, _PIECE_ROWS), strict=True):
                rows -= centroids.index_select(0, codes)
            self._coarse = self._assigned = None
        self._num_fixed = len(space.fixed_SKD)


class _CoarseRows:
    """A shard's rows as int8, each row's centroid of the last pass, and the sums that follow from them."""

    def __init__(self, rows_ND: torch.Tensor, step: float, num_centroids: int) -> None:
        self._rows_ND, self._step = rows_ND, step
        self._int8_ND = torch.cat([to_int8(rows / step) for rows in torch.split(rows_ND, _PIECE_ROWS)])
        self._wide = _wide_rows(rows_ND, step)
        self._codes_N = torch.full((len(rows_ND),), -1, device=rows_ND.device)
        self._tally = _Tally(num_centroids, rows_ND.shape[1], rows_ND.device)

    def step(self, centroids_KD: Floats) -> Sums:
        now_N = CoarseCentroids(centroids_KD, self._step, self._rows_ND.device).nearest(self._int8_ND)
        for doublings, (place_R, int8_RD) in self._wide.items():
            now_N[place_R] = CoarseCentroids(centroids_KD, self._step * 2**doublings, self._rows_ND.device).nearest(int8_RD)
        self._tally.move(self._rows_ND, self._codes_N, now_N)
        self._codes_N = now_N
        return self._tally.sums()


def _wide_rows(rows_ND: torch.Tensor, step: float) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """The rows beyond int8's range, by how often the step must be doubled for them: their places and themselves as int8."""
    most_N = _largest(rows_ND)
    place_R = (most_N > INT8_MAX * step).nonzero().flatten()
    doublings_R = torch.frexp(most_N[place_R] / (INT8_MAX * step)).exponent
    groups = {int(doublings): place_R[doublings_R == doublings] for doublings in torch.unique(doublings_R)}
    return {doublings: (place, to_int8(rows_ND[place] / (step * 2**doublings))) for doublings, place in groups.items()}


class _Tally:
    """Sums and counts by centroid, between which rows move; exact, and so the same in any order."""

    def __init__(self, num_centroids: int, dim: int, device: torch.device) -> None:
        self._sums_KD = torch.zeros(num_centroids, dim, dtype=torch.float64, device=device)
        self._counts_K = torch.zeros(num_centroids, dtype=torch.int64, device=device)

    def move(self, rows_ND: torch.Tensor, before_N: torch.Tensor, now_N: torch.Tensor) -> None:
        """`before_N` is -1 for rows that are new."""
        if not rows_ND.is_cuda:
            from longtail import kmeans_cpu

            sums_KD, counts_K = kmeans_cpu.moves(rows_ND.numpy(), before_N.numpy(), now_N.numpy(), len(self._counts_K))
            self._sums_KD += torch.from_numpy(sums_KD)
            self._counts_K += torch.from_numpy(counts_K)
            return
        for moved_M in torch.split((now_N != before_N).nonzero().flatten(), _PIECE_ROWS):
            self._count(rows_ND, moved_M, now_N, 1)
            self._count(rows_ND, moved_M[before_N[moved_M] >= 0], before_N, -1)

    def sums(self) -> Sums:
        return Sums(self._sums_KD.cpu().numpy().copy(), self._counts_K.cpu().numpy().copy())

    def _count(self, rows_ND: torch.Tensor, moved_M: torch.Tensor, codes_N: torch.Tensor, sign: int) -> None:
        codes_M = codes_N[moved_M]
        self._sums_KD.index_add_(0, codes_M, rows_ND[moved_M].double(), alpha=sign)
        self._counts_K.index_add_(0, codes_M, torch.ones_like(codes_M), alpha=sign)


class CoarseCentroids:
    """Centroids as int8, to be compared with rows in steps of `row_step`."""

    def __init__(self, centroids_KD: Floats, row_step: float, device: torch.device) -> None:
        # What centroids have in common tells none of them apart, and without it the rest is rounded finer. One that lies far beyond the rows is nobody's
        # nearest, and must not make the others' steps wider.
        reach = 2 * row_step * INT8_MAX
        near_K = np.abs(centroids_KD).max(axis=1) <= reach
        apart_KD = centroids_KD - centroids_KD.mean(axis=0, where=near_K[:, None], dtype=np.float64) if near_K.any() else centroids_KD.astype(np.float64)
        step = min(float(np.abs(apart_KD).max()), reach) / INT8_MAX or 1.0
        self._int8_KD = padded_rows(to_int8(torch.tensor(apart_KD / step))).to(device)
        self._num = len(centroids_KD)
        squares_K = np.einsum("kd,kd->k", centroids_KD, centroids_KD, dtype=np.float64)
        offset_K = np.full(len(self._int8_KD), _FARTHEST, np.float64)
        offset_K[: len(squares_K)] = np.minimum(np.rint((squares_K - squares_K.min()) / (2 * row_step * step)), _FARTHEST - 1)
        self._offset_K = torch.tensor(offset_K, dtype=torch.int32, device=device)

    def nearest(self, int8_BD: torch.Tensor) -> torch.Tensor:
        """int64 [B]: each row's nearest centroid, the lowest where several are as near."""
        if not int8_BD.is_cuda:
            from longtail import kmeans_cpu  # which compiles loops: whoever only reads settings does not import it

            return torch.from_numpy(kmeans_cpu.nearest(int8_BD, self._int8_KD, self._offset_K[: self._num]))
        return torch.cat([products(piece, self._int8_KD).sub_(self._offset_K).argmax(1) for piece in torch.split(int8_BD, _PIECE_ROWS)])


def kmeans_plus_plus(rows_ND: Floats, size: int, rng: np.random.Generator) -> Floats:
    """`size` rows [K, D], each drawn with chance proportional to its squared distance from those before, the best of a few draws; distances are int8's.

    Where there are fewer distinct rows than `size`, the first row fills the rest; those centroids stay dead.
    """
    from longtail import kmeans_cpu

    rows = torch.from_numpy(rows_ND)
    int8_ND = to_int8(rows / int8_step(_rows_by_bucket(_largest(rows))))
    squares_N = int8_ND.float().square().sum(1, dtype=torch.float64).numpy()
    tries = 8 * -(-(2 + int(np.log(size))) // 8)  # at least those of scikit-learn's greedy k-means++, and a number that the product likes

    def between(chosen: Ints) -> NDArray[np.int32]:
        found: NDArray[np.int32] = products(int8_ND, int8_ND[torch.from_numpy(chosen)]).numpy()
        return found

    def closer(row: int, between_N: NDArray[np.int32]) -> Doubles:
        found: Doubles = np.minimum(closest_N, squares_N - 2.0 * between_N + squares_N[row])
        return found

    picked, closest_N, left_T = [int(rng.integers(len(rows_ND)))], np.full(len(rows_ND), np.inf), np.empty(tries)
    closest_N = closer(picked[0], between(np.repeat(picked, 8))[:, 0])
    while len(picked) < size:
        cumulative = np.cumsum(closest_N)
        if cumulative[-1] == 0:
            break
        draws = np.minimum(np.searchsorted(cumulative, rng.random(tries) * cumulative[-1], side="right"), len(rows_ND) - 1)
        between_NT = between(draws)
        kmeans_cpu.closer_by(closest_N, squares_N, between_NT, squares_N[draws], left_T)
        best = int(left_T.argmin())
        picked.append(int(draws[best]))
        closest_N = closer(picked[-1], between_NT[:, best])
    picked += [picked[0]] * (size - len(picked))
    return rows_ND[picked].astype(np.float32)


def _largest(rows_ND: torch.Tensor) -> torch.Tensor:
    """float32 [N]: each row's largest magnitude."""
    return torch.cat([rows.abs().amax(1) for rows in torch.split(rows_ND, _PIECE_ROWS)])


def _rows_by_bucket(largest_N: torch.Tensor) -> Ints:
    counts: Ints = torch.bincount(largest_N.view(torch.int32) >> _BUCKET_SHIFT, minlength=_BUCKETS).cpu().numpy()
    return counts
