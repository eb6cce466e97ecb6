"""RQ-KMeans: vectors become code tuples; each stage clusters the residuals that the last one left (ChoirRec, semantic group generation, step 3).

The rows lie in shards (longtail.kmeans), which answer a pass with exact sums: one seed gives one codebook, bit for bit, for any number of shards.
Reads vectors, writes nothing; python -m pipelines.codes runs it.
Letters: N rows, R rows asked for, K centroids, D vector width, S stages.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from longtail.kmeans import Assignment, FarRows, Floats, Space, Sums, VectorShard, grid_of, int8_step, kmeans_plus_plus
from longtail.nearest import NOT_FINITE, NearestCentroids, among
from longtail.settings import Compute, Settings
from longtail.storage import Place

logger = logging.getLogger(__name__)

_FAR_ROWS = 8  # that are looked at for each dead centroid, since some may be equal
_ENCODE_ROWS = 1 << 18
_FEW_ROWS = 32  # whose distances cost less than a codebook's tables


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


class Shards(Protocol):
    """All rows, wherever they lie; lists have one entry a shard, in row order. longtail.kmeans.VectorShard says what each answers."""

    def extents(self) -> list[float]: ...

    def rows_by_bucket(self, space: Space) -> list[NDArray[np.int64]]: ...

    def step(self, space: Space, centroids_KD: Floats) -> list[Sums]: ...

    def assign(self, space: Space, centroids_KD: Floats) -> list[Assignment]: ...

    def farthest(self, space: Space, centroids_KD: Floats, num: int) -> list[FarRows]: ...

    def residuals(self, space: Space, rows_R: NDArray[np.int64]) -> Floats: ...


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

    def extents(self) -> list[float]:
        return [shard.extent() for shard in self._shards]

    def rows_by_bucket(self, space: Space) -> list[NDArray[np.int64]]:
        return [shard.rows_by_bucket(space) for shard in self._shards]

    def step(self, space: Space, centroids_KD: Floats) -> list[Sums]:
        return [shard.step(space, centroids_KD) for shard in self._shards]

    def assign(self, space: Space, centroids_KD: Floats) -> list[Assignment]:
        return [shard.assign(space, centroids_KD) for shard in self._shards]

    def farthest(self, space: Space, centroids_KD: Floats, num: int) -> list[FarRows]:
        return [shard.farthest(space, centroids_KD, num) for shard in self._shards]

    def residuals(self, space: Space, rows_R: NDArray[np.int64]) -> Floats:
        return gather_rows(rows_R, self._owners[rows_R // self._block_rows], lambda owner, rows: self._shards[owner].residuals(space, rows))


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


def encode(vectors_ND: Floats, codebook_SKD: Floats) -> NDArray[np.int32]:
    """Code tuples int32 [N, S] of vectors: the nearest centroid, then the nearest to what it leaves, and so on.

    Raises:
        ValueError: the vectors' width is not the codebook's, or a number of theirs is not finite.
    """
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != codebook_SKD.shape[2]:
        raise ValueError(
            f"vectors of shape {vectors_ND.shape} do not fit a codebook of width {codebook_SKD.shape[2]}. Encode with the model that it was fitted on."
        )
    codebook = torch.from_numpy(np.asarray(codebook_SKD, np.float32))
    codes_NS = np.empty((len(vectors_ND), len(codebook)), np.int32)
    if len(vectors_ND) <= _FEW_ROWS:
        if not np.isfinite(vectors_ND).all():
            raise ValueError(NOT_FINITE)
        left_RD = torch.tensor(vectors_ND, dtype=torch.float32)
        row_P, code_P = (places.flatten() for places in torch.meshgrid(torch.arange(len(left_RD)), torch.arange(codebook.shape[1]), indexing="ij"))
        for stage, centroids_KD in enumerate(codebook):
            codes_R = among(left_RD, centroids_KD, row_P, code_P)
            codes_NS[:, stage] = codes_R.numpy()
            left_RD -= centroids_KD[codes_R]
        return codes_NS
    nearest = NearestCentroids(codebook)
    for start in range(0, len(vectors_ND), _ENCODE_ROWS):
        rows = torch.as_tensor(vectors_ND[start : start + _ENCODE_ROWS], dtype=torch.float32)
        codes_NS[start : start + len(rows)] = nearest(rows).numpy()
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

    Raises:
        ValueError: a number of the vectors is not finite.
    """
    rng = np.random.default_rng([seed, settings.num_stages, settings.codebook_size])
    extents = shards.extents()
    if not np.isfinite(extents).all():
        raise ValueError(NOT_FINITE)
    space = Space(grid_of(max(extents)), np.zeros((0, settings.codebook_size, dim), np.float32))
    whole = shards.assign(space, np.zeros((1, dim), np.float32))
    stages: list[_StageFit] = []
    for number in range(settings.num_stages):
        space = replace(space, step=int8_step(np.sum(shards.rows_by_bucket(space), axis=0)))
        if initial_SKD is not None:
            centroids = np.array(initial_SKD[number], np.float32)
        else:
            sample = np.sort(rng.choice(num_rows, size=min(num_rows, settings.init_rows), replace=False))
            centroids = kmeans_plus_plus(shards.residuals(space, sample), settings.codebook_size, rng)
        stages.append(_fit_stage(shards, space, centroids, settings.iterations, num_rows))
        space = replace(space, fixed_SKD=np.concatenate([space.fixed_SKD, stages[-1].centroids_KD[None]]))
        logger.info("stage %d of %d: %d iterations, mean squared residual %.5f", number + 1, settings.num_stages, stages[-1].iterations, stages[-1].mse)
    mean_D = stages[0].sum_D / num_rows
    return Fit(
        codebook_SKD=space.fixed_SKD,
        counts_SK=np.stack([stage.counts_K for stage in stages]),
        mse_S=np.array([stage.mse for stage in stages]),
        variance=max(_objective(whole) / num_rows - float(mean_D @ mean_D), 0.0),
        iterations_S=[stage.iterations for stage in stages],
        num_reseeded=sum(stage.num_reseeded for stage in stages),
    )


@dataclass(frozen=True)
class _StageFit:
    centroids_KD: Floats
    counts_K: NDArray[np.int64]
    mse: float
    iterations: int
    num_reseeded: int
    sum_D: NDArray[np.float64]  # of all rows


def _fit_stage(shards: Shards, space: Space, centroids_KD: Floats, iterations: int, num_rows: int) -> _StageFit:
    reseeded = 0
    for num_iterations in range(1, iterations + 1):  # noqa: B007  # read after the loop
        sums = sum(shards.step(space, centroids_KD), start=Sums(np.zeros(centroids_KD.shape), np.zeros(len(centroids_KD), np.int64)))
        moved_KD, num_dead = _move(shards, space, centroids_KD, sums)
        reseeded += num_dead
        settled = np.array_equal(moved_KD, centroids_KD)
        centroids_KD = moved_KD
        if settled:
            break
    final = shards.assign(space, centroids_KD)
    counts_K = np.sum([one.counts_K for one in final], axis=0)
    return _StageFit(centroids_KD, counts_K, _objective(final) / num_rows, num_iterations, reseeded, sums.sums_KD.sum(axis=0))


def _objective(assignments: Sequence[Assignment]) -> float:
    """The sum over all blocks, in row order: a float sum hangs on how it is grouped, and blocks are the same for any number of shards."""
    return float(np.concatenate([one.objective_B for one in assignments]).sum())


def fit_here(vectors_ND: Floats, settings: CodebookSettings, seed: int, initial_SKD: Floats | None = None) -> Fit:
    """`fit_codebook` on vectors in this process."""
    return fit_codebook(LocalShards.split(vectors_ND, settings.block_rows), len(vectors_ND), vectors_ND.shape[1], settings, seed, initial_SKD)


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


def _move(shards: Shards, space: Space, centroids_KD: Floats, sums: Sums) -> tuple[Floats, int]:
    """The means of the centroids' rows, on the grid; centroids without rows go to the farthest rows, each to another vector, as far as there are any."""
    moved_KD = centroids_KD.copy()
    live = sums.counts_K > 0
    means_KD = sums.sums_KD[live] / sums.counts_K[live, None]
    moved_KD[live] = (np.rint(means_KD / space.grid) * space.grid).astype(np.float32)
    dead = np.flatnonzero(~live)
    if not len(dead):
        return moved_KD, 0
    num = _FAR_ROWS * len(dead)
    far = FarRows.of(shards.farthest(space, centroids_KD, num), num)
    rows_R = far.rows_R[far.squared_R > 0]
    if not len(rows_R):
        return moved_KD, 0
    places = list({row.tobytes(): row for row in shards.residuals(space, rows_R)}.values())[: len(dead)]
    moved_KD[dead[: len(places)]] = places
    return moved_KD, len(places)
