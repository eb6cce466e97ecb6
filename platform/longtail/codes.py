"""RQ-KMeans: vectors become code tuples; each stage clusters the residuals that the last one left (ChoirRec, semantic group generation, step 3).

The rows lie in shards. A shard owns whole blocks of `block_rows` rows and answers with a block's sums and counts; the driver adds block by block in block
order. Float sums depend on how they are grouped, so this, not the shards, decides them: one seed gives one codebook, bit for bit, for any number of shards.
Reads vectors, writes nothing; python -m pipelines.codes runs it.
Letters: N rows, B rows of a block, R rows asked for, K centroids, D vector width, S stages.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import sparse

from longtail.settings import Compute, Settings
from longtail.storage import Place

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
_FARTHEST = 8  # rows that a block offers as new places for dead centroids
_ENCODE_ROWS = 4096


class CodebookSettings(Settings):
    """One residual codebook [num_stages, codebook_size, dim]."""

    num_stages: int = Field(2, ge=1, le=8)
    codebook_size: int = Field(16, ge=2)
    iterations: int = Field(20, ge=1)
    min_rows_per_code: float = Field(4.0, ge=1, description="refused when rows < codebook_size * this")
    init_rows: int = Field(16_384, ge=2, description="k-means++ chooses the first centroids of a stage among this many sampled rows")
    block_rows: int = Field(4096, ge=1, description="rows summed at a time; fixed, so that one seed gives one codebook for any number of shards")
    seed: int | None = Field(None, ge=0, description="of the first centroids; without it run.seed")
    shuffled: bool = Field(False, description="deal the codes out to the wrong rows: the control, with the same number of rows to a code")
    compute: Compute = Compute(num_actors=2, num_cpus=0.5)

    @model_validator(mode="after")
    def _sample_holds_the_codebook(self) -> "CodebookSettings":
        if self.codebook_size > self.init_rows:
            raise ValueError(
                f"codebook_size = {self.codebook_size} must not exceed init_rows = {self.init_rows}: "
                "the first centroids are chosen among those rows. Raise init_rows or lower codebook_size."
            )
        return self


class ItemCodebookSettings(CodebookSettings):
    """The items' codebook, which can go on from an earlier one, and the places that tell items of one tuple apart."""

    previous: Place | None = Field(
        None,
        description="an earlier item_codes artifact, its folder or, below run.uri, its key: the fit starts from its codebook, and codes keep their numbers",
    )
    num_places: int = Field(
        1 << 20, ge=0, description="places within a tuple, for the table `resolved`, whose next digit is as wide; refused where they run out, 0: none are given"
    )
    equal_share_place: bool = Field(False, description="items of equal content share a place, so that a place tells contents apart and not items")

    def key_fields(self) -> dict[str, Any]:
        """All but `previous`: what that artifact holds stands in the stage's fingerprint, wherever it lies."""
        return {name: value for name, value in super().key_fields().items() if name != "previous"}


class CodesSettings(Settings):
    """The `codes` stage: users and items."""

    user: CodebookSettings = CodebookSettings(num_stages=2, codebook_size=8)
    item: ItemCodebookSettings = ItemCodebookSettings(num_stages=3, codebook_size=32)


class TooFewRowsError(ValueError):
    """The rows cannot carry the codebook: the same settings meet it on the same rows every time."""


def check_rows(settings: CodebookSettings, num_rows: int, section: str, source: str) -> None:
    """Refuse a codebook that the rows cannot carry.

    Raises:
        TooFewRowsError: num_rows < codebook_size * min_rows_per_code, with the largest codebook_size that would pass.
    """
    needed = settings.codebook_size * settings.min_rows_per_code
    if num_rows < needed:
        largest = int(num_rows // settings.min_rows_per_code)
        remedy = f"Lower {section}.codebook_size to at most {largest}" if largest >= 2 else f"Lower {section}.min_rows_per_code and codebook_size"
        raise TooFewRowsError(
            f"{section}.codebook_size = {settings.codebook_size} needs at least codebook_size * {section}.min_rows_per_code "
            f"({settings.min_rows_per_code:g}) = {needed:g} rows to fit on, and {source} has {num_rows}. {remedy}, or bring more rows."
        )


@dataclass(frozen=True)
class BlockSums:
    """What a block tells the driver about one assignment of its rows."""

    sums_KD: NDArray[np.float64]
    counts_K: NDArray[np.int64]
    objective: float  # sum of squared distances to the nearest centroid
    far_rows: NDArray[np.int64]  # the block's rows that lie farthest from their centroid, farthest first
    far_distances: NDArray[np.float64]


class Shards(Protocol):
    """All rows, wherever they lie."""

    def step(self, fixed_SKD: Floats, centroids_KD: Floats) -> Iterator[BlockSums]:
        """Assign the residuals that `fixed_SKD` leaves to `centroids_KD`; one answer per block, in block order."""
        ...

    def residuals(self, fixed_SKD: Floats, rows_R: NDArray[np.int64]) -> Floats:
        """The residuals [R, D] of some rows, in the order asked for."""
        ...


class VectorShard:
    """Whole blocks of rows in memory, as residuals after the stages that are already fixed.

    `blocks` are (number of the first row, float32 [B, D]). A shard that was lost and made anew derives its residuals again from the codebook in the call.
    """

    def __init__(self, blocks: Sequence[tuple[int, Floats]]) -> None:
        self._blocks = [(first, np.array(rows, dtype=np.float32)) for first, rows in blocks]
        self._num_fixed = 0

    def step(self, fixed_SKD: Floats, centroids_KD: Floats) -> list[BlockSums]:
        """One BlockSums per block, in block order."""
        self._subtract(fixed_SKD)
        return [_block_sums(first, rows, centroids_KD) for first, rows in self._blocks]

    def residuals(self, fixed_SKD: Floats, rows_R: NDArray[np.int64]) -> Floats:
        """float32 [R, D]; every row must lie in this shard."""
        self._subtract(fixed_SKD)
        starts = np.array([first for first, _ in self._blocks])
        block_R = np.searchsorted(starts, rows_R, side="right") - 1
        out = np.empty((len(rows_R), self._blocks[0][1].shape[1]), np.float32)
        for number in np.unique(block_R):
            mine = block_R == number
            first, rows = self._blocks[number]
            out[mine] = rows[rows_R[mine] - first]
        return out

    def _subtract(self, fixed_SKD: Floats) -> None:
        assert len(fixed_SKD) >= self._num_fixed, "a shard serves one fit"
        for centroids_KD in fixed_SKD[self._num_fixed :]:
            for _, rows in self._blocks:
                rows -= centroids_KD[nearest(rows, centroids_KD)]
        self._num_fixed = len(fixed_SKD)


class LocalShards:
    """Shards in this process."""

    def __init__(self, shards: Sequence[VectorShard], owners: Sequence[int], block_rows: int) -> None:
        self._shards, self._owners, self._block_rows = shards, np.asarray(owners), block_rows

    @staticmethod
    def split(vectors_ND: Floats, block_rows: int, num_shards: int = 1) -> "LocalShards":
        """`vectors_ND` in blocks, dealt to `num_shards` shards."""
        parts = block_ranges(len(vectors_ND), block_rows, num_shards)
        shards = [VectorShard([(start, vectors_ND[start:stop]) for start, stop in part]) for part in parts]
        return LocalShards(shards, [number for number, part in enumerate(parts) for _ in part], block_rows)

    def step(self, fixed_SKD: Floats, centroids_KD: Floats) -> Iterator[BlockSums]:
        for shard in self._shards:
            yield from shard.step(fixed_SKD, centroids_KD)

    def residuals(self, fixed_SKD: Floats, rows_R: NDArray[np.int64]) -> Floats:
        return gather_rows(rows_R, self._owners[rows_R // self._block_rows], lambda owner, rows: self._shards[owner].residuals(fixed_SKD, rows))


def gather_rows(rows_R: NDArray[np.int64], owner_R: NDArray[np.int64], ask: Any) -> Floats:
    """The rows from their owners, `ask(owner, rows)` each, put back into the order asked for."""
    order = np.argsort(owner_R, kind="stable")
    owners = np.unique(owner_R)
    parts = [ask(int(owner), rows_R[owner_R == owner]) for owner in owners]
    out = np.concatenate(parts)
    result: Floats = np.empty_like(out)
    result[order] = out
    return result


def block_ranges(num_rows: int, block_rows: int, num_shards: int) -> list[list[tuple[int, int]]]:
    """The blocks (start, stop) of each shard: neighbours together, never a shard without any."""
    blocks = [(start, min(start + block_rows, num_rows)) for start in range(0, num_rows, block_rows)]
    num_shards = min(num_shards, len(blocks))
    cuts = [len(blocks) * number // num_shards for number in range(num_shards + 1)]
    return [blocks[low:high] for low, high in pairwise(cuts)]


def nearest(rows_BD: Floats, centroids_KD: Floats) -> NDArray[np.int64]:
    """The number of each row's nearest centroid, the lowest where several are as near."""
    scores_BK = rows_BD @ centroids_KD.T
    scores_BK *= -2.0
    scores_BK += np.einsum("kd,kd->k", centroids_KD, centroids_KD)
    codes: NDArray[np.int64] = scores_BK.argmin(axis=1)
    return codes


def encode(vectors_ND: Floats, codebook_SKD: Floats) -> NDArray[np.int32]:
    """Code tuples int32 [N, S] of vectors: the nearest centroid, then the nearest to what it leaves, and so on.

    Raises:
        ValueError: the vectors' width is not the codebook's.
    """
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != codebook_SKD.shape[2]:
        raise ValueError(
            f"vectors of shape {vectors_ND.shape} do not fit a codebook of width {codebook_SKD.shape[2]}. Encode with the model that it was fitted on."
        )
    codes_NS = np.empty((len(vectors_ND), len(codebook_SKD)), np.int32)
    for start in range(0, len(vectors_ND), _ENCODE_ROWS):
        rows = np.array(vectors_ND[start : start + _ENCODE_ROWS], dtype=np.float32)
        for stage, centroids_KD in enumerate(codebook_SKD):
            codes = nearest(rows, centroids_KD)
            codes_NS[start : start + len(rows), stage] = codes
            rows -= centroids_KD[codes]
    return codes_NS


@dataclass(frozen=True)
class Fit:
    """A fitted codebook and what it left of the rows it was fitted on."""

    codebook_SKD: Floats
    counts_SK: NDArray[np.int64]
    mse_S: NDArray[np.float64]  # mean squared norm of the residual after each stage
    variance: float  # mean squared distance of the rows from their mean
    iterations_S: list[int]
    num_reseeded: int


def fit_codebook(shards: Shards, num_rows: int, dim: int, settings: CodebookSettings, seed: int, initial_SKD: Floats | None = None) -> Fit:
    """Fit [num_stages, codebook_size, dim] by Lloyd's iterations, stage by stage on residuals; `initial_SKD` replaces k-means++.

    The mean squared residual never grows from stage to stage: a stage's centroids are the means of their rows, or lie nearer than those.
    """
    rng = np.random.default_rng([seed, settings.num_stages, settings.codebook_size])
    size = settings.codebook_size
    fixed = np.zeros((0, size, dim), np.float32)
    counts, mse, iterations, reseeded = [], [], [], 0
    whole = _merge(shards.step(fixed, np.zeros((1, dim), np.float32)))
    mean_D = whole.sums_KD[0] / num_rows
    variance = whole.objective / num_rows - float(mean_D @ mean_D)
    for stage in range(settings.num_stages):
        if initial_SKD is not None:
            centroids = np.array(initial_SKD[stage], np.float32)
        else:
            sample = np.sort(rng.choice(num_rows, size=min(num_rows, settings.init_rows), replace=False))
            centroids = kmeans_plus_plus(shards.residuals(fixed, sample), size, rng)
        for num_iterations in range(1, settings.iterations + 1):  # noqa: B007  # read after the loop
            merged = _merge(shards.step(fixed, centroids))
            moved, num_dead = _move(shards, fixed, centroids, merged)
            reseeded += num_dead
            settled = np.array_equal(moved, centroids)
            centroids = moved
            if settled:
                break
        iterations.append(num_iterations)
        final = _merge(shards.step(fixed, centroids))
        counts.append(final.counts_K)
        mse.append(final.objective / num_rows)
        fixed = np.concatenate([fixed, centroids[None]])
        logger.info("stage %d of %d: %d iterations, mean squared residual %.5f", stage + 1, settings.num_stages, num_iterations, mse[-1])
    return Fit(fixed, np.stack(counts), np.array(mse), max(variance, 0.0), iterations, reseeded)


def fit_here(vectors_ND: Floats, settings: CodebookSettings, seed: int, initial_SKD: Floats | None = None) -> Fit:
    """`fit_codebook` on vectors in this process."""
    return fit_codebook(LocalShards.split(vectors_ND, settings.block_rows), len(vectors_ND), vectors_ND.shape[1], settings, seed, initial_SKD)


def kmeans_plus_plus(rows_ND: Floats, size: int, rng: np.random.Generator) -> Floats:
    """`size` rows [K, D], each drawn with chance proportional to its squared distance from those before, the best of a few draws.

    Where there are fewer distinct rows than `size`, the first row fills the rest; those centroids stay dead.
    """
    rows = rows_ND.astype(np.float64)
    norms = np.einsum("nd,nd->n", rows, rows)
    floor = 1e-12 * max(float(norms.max()), 1e-30)  # what rounding leaves of a zero distance
    tries = 2 + int(np.log(size))

    def distances(chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        d = norms[:, None] - 2.0 * (rows @ rows[chosen].T) + norms[chosen]
        return np.where(d > floor, d, 0.0)

    picked = [int(rng.integers(len(rows)))]
    closest = distances(np.array(picked))[:, 0]
    while len(picked) < size and closest.sum() > 0:
        cumulative = np.cumsum(closest)
        draws = np.minimum(np.searchsorted(cumulative, rng.random(tries) * cumulative[-1], side="right"), len(rows) - 1)
        left = np.minimum(closest[:, None], distances(draws))
        best = int(left.sum(axis=0).argmin())
        picked.append(int(draws[best]))
        closest = left[:, best]
    picked += [picked[0]] * (size - len(picked))
    return rows_ND[picked].astype(np.float32)


def quality(fit: Fit, codes_NS: NDArray[np.int32], fingerprint_N: NDArray[np.uint64]) -> dict[str, Any]:
    """The report on a codebook over the rows it was fitted on; Gini and perplexity are of the use of the codes, by stage. The leaf_ and collision entries
    are of whole tuples; `prefixes` has them, and more, for codes 1 … s."""
    prefixes = collisions(codes_NS, fingerprint_N, fit.counts_SK.shape[1])
    leaves = prefixes[-1]
    return {
        "rows": len(codes_NS),
        "distinct_vectors": len(np.unique(fingerprint_N)),
        "variance": fit.variance,
        "mse": fit.mse_S.tolist(),
        "mse_frac": [float(m / fit.variance) if fit.variance > 0 else 0.0 for m in fit.mse_S],
        "dead_codes": (fit.counts_SK == 0).sum(axis=1).tolist(),
        "gini": [gini(counts) for counts in fit.counts_SK],
        "perplexity": [perplexity(counts) for counts in fit.counts_SK],
        "collision_rate": leaves["collision_rate"],
        "num_leaves": leaves["tuples"],
        "median_leaf_size": leaves["median_size"],
        "largest_leaf_size": leaves["largest_size"],
        "prefixes": prefixes,
        "iterations": fit.iterations_S,
        "reseeded": fit.num_reseeded,
    }


def collisions(codes_NS: NDArray[np.int32], content_N: NDArray[np.uint64], codebook_size: int) -> list[dict[str, float]]:
    """For codes 1 … s of rows, s by s, how they share tuples; content is a number that rows of equal content have in common (longtail.vectors.fingerprints).

    collision_rate                of the rows, the share whose tuple another row has too
    different_content_rate        the same where the other row's content differs: what the codes confuse although they could tell it apart
    used_frac                     of the codebook_size**s tuples that there are, the share that any row has
    gini, perplexity              of the sizes of the tuples in use
    """
    same_N = np.unique(content_N, return_inverse=True)[1].reshape(-1)
    tuple_N = np.zeros(len(codes_NS), np.int64)
    found = []
    for depth, codes_N in enumerate(codes_NS.T, start=1):  # renumbered at each depth: codebook_size**s may not fit any integer
        tuple_N, sizes = np.unique(tuple_N * codebook_size + codes_N, return_inverse=True, return_counts=True)[1:]
        pairs = np.unique(np.stack([tuple_N, same_N]), axis=1)
        contents = np.bincount(pairs[0], minlength=len(sizes))
        found.append(
            {
                "tuples": len(sizes),
                "used_frac": len(sizes) / float(codebook_size) ** depth,
                "largest_size": int(sizes.max()),
                "median_size": float(np.median(sizes)),
                "collision_rate": float((sizes[tuple_N] > 1).mean()),
                "different_content_rate": float((contents[tuple_N] > 1).mean()),
                "gini": gini(sizes),
                "perplexity": perplexity(sizes),
            }
        )
    return found


def perplexity(counts_K: NDArray[np.int64]) -> float:
    """exp of the entropy of non-negative counts: as many codes, used evenly, would be as hard to guess."""
    share = counts_K[counts_K > 0] / counts_K.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def gini(counts_K: NDArray[np.int64]) -> float:
    """Gini coefficient of non-negative counts: 0 all equal, towards 1 all in one."""
    ascending = np.sort(counts_K).astype(np.float64)
    n = len(ascending)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ascending / (n * ascending.sum()))


def codebook_bytes(codebook_SKD: Floats) -> bytes:
    """The codebook as safetensors, tensor "codebook" [S, K, D] float32."""
    data: bytes = safetensors.numpy.save({"codebook": np.ascontiguousarray(codebook_SKD, dtype=np.float32)})
    return data


def load_codebook(path: Path) -> Floats:
    """The codebook [S, K, D] from codebook.safetensors."""
    codebook: Floats = safetensors.numpy.load_file(path)["codebook"]
    return codebook


def _block_sums(first: int, rows_BD: Floats, centroids_KD: Floats) -> BlockSums:
    codes = nearest(rows_BD, centroids_KD)
    gaps = rows_BD - centroids_KD[codes]
    distances = np.einsum("bd,bd->b", gaps, gaps, dtype=np.float64)
    members = sparse.csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(len(centroids_KD), len(codes)))
    far = np.argsort(-distances, kind="stable")[:_FARTHEST]
    counts = np.bincount(codes, minlength=len(centroids_KD))
    return BlockSums(members @ rows_BD.astype(np.float64), counts, float(distances.sum()), first + far, distances[far])


def _merge(blocks: Iterator[BlockSums]) -> BlockSums:
    total = next(blocks)
    sums, counts, objective = total.sums_KD.copy(), total.counts_K.copy(), total.objective
    rows, distances = [total.far_rows], [total.far_distances]
    for block in blocks:
        sums += block.sums_KD
        counts += block.counts_K
        objective += block.objective
        rows.append(block.far_rows)
        distances.append(block.far_distances)
    all_rows, all_distances = np.concatenate(rows), np.concatenate(distances)
    order = np.lexsort((all_rows, -all_distances))
    return BlockSums(sums, counts, objective, all_rows[order], all_distances[order])


def _move(shards: Shards, fixed_SKD: Floats, centroids_KD: Floats, merged: BlockSums) -> tuple[Floats, int]:
    """The means of the centroids' rows; centroids without rows go to the farthest rows, each to another vector, as far as there are any."""
    moved = centroids_KD.copy()
    live = merged.counts_K > 0
    moved[live] = (merged.sums_KD[live] / merged.counts_K[live, None]).astype(np.float32)
    dead = np.flatnonzero(~live)
    far = merged.far_rows[merged.far_distances > 1e-12 * max(merged.objective, 1e-30)][: 4 * len(dead)]
    if not len(dead) or not len(far):
        return moved, 0
    places = list({row.tobytes(): row for row in shards.residuals(fixed_SKD, far)}.values())[: len(dead)]
    moved[dead[: len(places)]] = places
    return moved, len(places)
