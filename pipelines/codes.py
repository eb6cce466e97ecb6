"""Codes: RQ-KMeans over Ray for users and for items.

Reads user_spaces/vectors and item_z/z; writes user_codes and item_codes, each with codes.parquet and codebook.safetensors ([S, k, d] float32); the quality
report stands in the manifest. Users are fitted on their first snapshot, items on those that had an event in the history window; all others are encoded with
that codebook. item_codes has a table `resolved`, too, and goes on from an earlier artifact where codes.item.previous names one (pipelines.code_continuity).
Run: python -m pipelines.codes --config …
"""

import logging
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from actors import metrics
from actors.kmeans import KMeansShard
from longtail import schema
from longtail.artifacts import Draft
from longtail.codes import (
    CodebookSettings,
    ItemCodebookSettings,
    block_ranges,
    check_rows,
    codebook_bytes,
    collisions,
    encode,
    fit_codebook,
    fit_here,
    gather_rows,
    quality,
)
from longtail.kmeans import Assignment, FarRows, Floats, Space, Sums
from longtail.settings import own_seed
from longtail.vectors import VectorTable, fingerprints, to_numpy
from pipelines import blocks, code_continuity, work
from pipelines.item_z import ITEM_Z
from pipelines.stage import Context, Result, Stage, main_for
from pipelines.user_spaces import USER_SPACES

logger = logging.getLogger(__name__)


class RayShards:
    """The rows in actors, `num_actors` of them at most; each owns neighbouring blocks."""

    def __init__(self, table: VectorTable, rows_N: NDArray[np.int64], settings: CodebookSettings) -> None:
        compute = settings.compute
        device = "cuda" if compute.num_gpus > 0 else "cpu"
        parts = block_ranges(len(rows_N), settings.block_rows, compute.num_actors)
        remote = ray.remote(KMeansShard).options(**blocks.options(compute), max_restarts=3, max_task_retries=3)
        self.actors: list[Any] = [remote.remote(table, [(start, rows_N[start:stop]) for start, stop in part], device) for part in parts]
        self._owners = np.array([number for number, part in enumerate(parts) for _ in part])
        self._block_rows = settings.block_rows

    def extents(self) -> list[float]:
        return self._ask("extent")

    def rows_by_bucket(self, space: Space) -> list[NDArray[np.int64]]:
        return self._ask("rows_by_bucket", space)

    def step(self, space: Space, centroids_KD: Floats) -> list[Sums]:
        return self._ask("step", space, centroids_KD)

    def assign(self, space: Space, centroids_KD: Floats) -> list[Assignment]:
        return self._ask("assign", space, centroids_KD)

    def farthest(self, space: Space, centroids_KD: Floats, num: int) -> list[FarRows]:
        return self._ask("farthest", space, centroids_KD, num)

    def residuals(self, space: Space, rows_R: NDArray[np.int64]) -> Floats:
        told = ray.put(space)
        owner_R = self._owners[rows_R // self._block_rows]
        pending = {int(owner): self.actors[owner].residuals.remote(told, rows_R[owner_R == owner]) for owner in np.unique(owner_R)}
        return gather_rows(rows_R, owner_R, lambda owner, rows: ray.get(pending[owner]))

    def _ask(self, question: str, *told: Any) -> list[Any]:
        """Every shard's answer, in row order; what they are told is put into the object store once."""
        references = [ray.put(one) if isinstance(one, (Space, np.ndarray)) else one for one in told]
        return list(ray.get([getattr(actor, question).remote(*references) for actor in self.actors]))

    def encode(self, num_rows: int, codebook_SKD: Floats) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
        """Codes and fingerprints of all rows of the table, in its order, each actor its share."""
        codebook = ray.put(codebook_SKD)
        cuts = [num_rows * number // len(self.actors) for number in range(len(self.actors) + 1)]
        parts = ray.get([actor.encode.remote(low, high, codebook) for actor, low, high in zip(self.actors, cuts, cuts[1:], strict=False)])
        return np.concatenate([codes for codes, _ in parts]), np.concatenate([prints for _, prints in parts])

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


def fit_order(keys: pa.Table, known: pa.Array | None = None) -> NDArray[np.int64]:
    """Row numbers that the codebook is fitted on, in key order: the order does not hang on how the table was written.

    Of users those of the first snapshot; of items those that are `known`.
    """
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names]).to_numpy()
    if "as_of" in keys.column_names:
        first = pc.equal(keys["as_of"], pc.min(keys["as_of"])).to_numpy()
        order = order[first[order]]
    if known is not None:
        order = order[pc.is_in(keys["item_id"].combine_chunks(), value_set=known).to_numpy(zero_copy_only=False)[order]]
    rows: NDArray[np.int64] = order.astype(np.int64)
    return rows


def build(context: Context, draft: Draft, *, upstream: str, table: str, key: pa.Schema, section: str) -> Result:
    """Fit on what was known when the history window ended, encode all rows, write codes and codebook."""
    settings: CodebookSettings = getattr(context.config.codes, section)
    source = context.inputs[upstream]
    vectors = VectorTable(source.fs, source.path(f"{table}.parquet"))
    keys = schema.check(vectors.keys(key), key, upstream)
    rows = fit_order(keys, source.read("known").column("item_id").combine_chunks() if section == "item" else None)
    check_rows(
        settings, len(rows), f"codes.{section}", f"stage {upstream!r}" + (" at its first as_of" if "as_of" in key.names else " known in the history window")
    )
    seed = own_seed(settings.seed, context.seed)
    earlier = code_continuity.open_earlier(context.config, vectors.dim()) if isinstance(settings, ItemCodebookSettings) else None
    initial_SKD = earlier.codebook_SKD if earlier is not None else None
    if work.is_in_place():
        whole_ND = to_numpy(source.read(table, ["vector"]).column("vector"))
        fit = fit_here(whole_ND[rows], settings, seed, initial_SKD)
        fit, codes, prints = code_continuity.settled(fit, earlier, rows, lambda codebook: (encode(whole_ND, codebook), fingerprints(whole_ND)))
    else:
        blocks.check_room({f"codes.{section}": settings.compute}, context.config.cluster)
        shards = RayShards(vectors, rows, settings)
        try:
            fit = fit_codebook(shards, len(rows), vectors.dim(), settings, seed, initial_SKD)
            fit, codes, prints = code_continuity.settled(fit, earlier, rows, lambda codebook: shards.encode(len(keys), codebook))
        finally:
            shards.close()
    report = quality(fit, codes[rows], prints[rows])
    for stage, dead in enumerate(report["dead_codes"], start=1):
        metrics.CODEBOOK_CODES.set(settings.codebook_size, run=context.config.run.name, side=section, stage=str(stage))
        metrics.DEAD_CODES.set(dead, run=context.config.run.name, side=section, stage=str(stage))
    if any(report["dead_codes"]):
        logger.warning(
            "codes.%s: dead codes by stage %s; %d distinct vectors among %d rows", section, report["dead_codes"], report["distinct_vectors"], len(rows)
        )
    if settings.shuffled:
        codes = np.random.default_rng([seed, 0xC0DE]).permutation(codes)
    column = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), settings.num_stages)
    draft.write("codes", schema.check(keys.append_column("codes", column), schema.codes(key, settings.num_stages), "codes"))
    with draft.fs.open_output_stream(draft.path("codebook.safetensors")) as stream:
        stream.write(codebook_bytes(fit.codebook_SKD))
    info: dict[str, Any] = {"quality": report, "shape": list(fit.codebook_SKD.shape)}
    if not isinstance(settings, ItemCodebookSettings):
        return Result(rows_in=len(keys), rows_out=len(keys), info=info)
    info["all_items"] = collisions(codes, prints, settings.codebook_size)  # whether the codebook was fitted on them or not
    info |= code_continuity.write_places(draft, settings, keys, codes, prints, earlier)
    also_read = {}
    if earlier is not None:
        info["previous"] = earlier.said(keys, codes, source)
        also_read["previous"] = earlier.artifact
    return Result(rows_in=len(keys), rows_out=len(keys), info=info, also_read=also_read)


def codes_stage(section: str, upstream: Stage, table: str, key: pa.Schema) -> Stage:
    """The codes of one kind of entity: `section` of [codes] is fitted on `table` of `upstream`, whose rows `key` names."""
    return Stage(
        name=f"{section}_codes",
        version=3,
        inputs=(upstream,),
        settings=lambda config: {name: value for name, value in getattr(config.codes, section).key_fields().items() if name != "shuffled" or value},
        build=partial(build, upstream=upstream.name, table=table, key=key, section=section),
        command="pipelines.codes",
        fingerprint=code_continuity.fingerprint if section == "item" else lambda config: "",
    )


USER_CODES = codes_stage("user", USER_SPACES, "vectors", schema.USER_KEY)
ITEM_CODES = codes_stage("item", ITEM_Z, "z", schema.ITEM_KEY)


def main() -> None:
    main_for(__doc__ or "", lambda config: [USER_CODES, ITEM_CODES])


if __name__ == "__main__":
    main()
