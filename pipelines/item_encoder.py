"""Item encoder: SaviorEnc, a projection over the items' frozen vectors, trained with Ray Train on behaviour pairs of the history window.

Reads logs (events, items) and item_vectors/vectors; writes for every item (item_id, vector) two tables, trained.parquet and frozen.parquet (the frozen vectors
cut to item_encoder.dim), each with its projection in a folder of that name; item_z makes z of them. The manifest's info has the pairs' counts, the losses,
and Hit@k on later pairs for the trained, the frozen and the starting vectors, and for popularity and co-occurrence.
Run: python -m pipelines.item_encoder --config …
"""

import logging
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray

from actors.images import ImageRows
from longtail import schema
from longtail.artifacts import Artifact, Draft
from longtail.item_encoder import (
    Contents,
    ItemEncoderSettings,
    check_pairs,
    held_out,
    hit_report,
    hits_by_count,
    hits_by_pair,
    hits_by_vector,
    later_queries,
)
from longtail.item_factors import fit_factors, item_factors
from longtail.logs import LogsInfo
from longtail.pairs import EVENT_KIND, Pairs, balanced, build_pairs, sample_pairs
from longtail.projection import ItemEncoder, Projection, ProjectionShape, compose, load_arrays, state_arrays, train_projection
from longtail.settings import own_seed
from longtail.vectors import VectorTable, fingerprints, to_arrow, to_numpy
from pipelines import blocks, work
from pipelines.embeddings import ITEM_VECTORS
from pipelines.logs import LOGS
from pipelines.stage import Context, Result, Stage, main_for

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]


def train_worker(job: dict[str, Any]) -> tuple[dict[str, Floats], list[float]]:
    """What one Ray Train worker does: rank 0's weights and losses are the run's return value."""
    data = ray.get(job["data"])
    device = ray.train.torch.get_device()
    projection = Projection(data["shape"])
    load_arrays(projection, data["start"])
    wrapped = ray.train.torch.prepare_model(projection)
    losses = train_projection(
        wrapped,
        torch.from_numpy(np.array(data["inputs"])).to(device),
        data["pairs"],
        data["settings"],
        data["seed"],
        lambda epoch, loss: ray.train.report({"epoch": epoch + 1, "loss": loss}),
    )
    return state_arrays(projection), losses


def train(start: Projection, inputs_UI: Floats, pairs: Pairs, settings: ItemEncoderSettings, seed: int, draft: Draft) -> tuple[Projection, list[float]]:
    """Train on `compute.num_actors` workers, or in this process (pipelines.work).

    The weights come back as the workers' return value, so a run needs no checkpoints: it takes seconds to minutes, and a worker group that fails starts over.

    Raises:
        ValueError: a batch does not divide among the workers.
    """
    compute = settings.compute
    if work.is_in_place():
        alone = Projection(start.shape)
        load_arrays(alone, state_arrays(start))
        return alone, train_projection(alone, torch.from_numpy(inputs_UI), pairs, settings, seed)
    data = {"shape": start.shape, "start": state_arrays(start), "inputs": inputs_UI, "pairs": pairs, "settings": settings, "seed": seed}
    # Train keeps its own bookkeeping beside the draft: all nodes reach that place if they reach the store at all.
    scratch = draft.path("ray_train")
    trainer = ray.train.torch.TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # annotated as returning None, but what rank 0 returns is the result's return_value
        train_loop_config={"data": ray.put(data)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=compute.num_actors, use_gpu=compute.num_gpus > 0, resources_per_worker=blocks.train_resources(compute)
        ),
        run_config=ray.train.RunConfig(
            name="item_encoder", storage_path=scratch, storage_filesystem=draft.fs, failure_config=ray.train.FailureConfig(max_failures=2)
        ),
    )
    weights, losses = trainer.fit().return_value  # type: ignore[attr-defined]  # Train V2's Result has it, the annotation is V1's
    draft.fs.delete_dir(scratch)
    trained = Projection(start.shape)
    load_arrays(trained, weights)
    return trained, losses


def read_events(logs: Artifact, kinds: list[str], start: datetime | None, end: datetime) -> pa.Table:
    """The events of some kinds with start <= ts < end; only these rows and the five columns are read."""
    chosen = pads.field("kind").isin(kinds) & (pads.field("ts") < pa.scalar(end, schema.TIMESTAMP))
    if start is not None:
        chosen &= pads.field("ts") >= pa.scalar(start, schema.TIMESTAMP)
    events = pads.dataset(logs.path("events.parquet"), filesystem=logs.fs, format="parquet")
    return events.to_table(columns=["user_id", "ts", "kind", "item_id", "request_id"], filter=chosen)


def image_vectors(logs: Artifact, item_ids: pa.Array, settings: ItemEncoderSettings) -> tuple[Floats, dict[str, int]]:
    """Image vectors [N, M] of the items, zeros for those without, by a pool of encoder actors."""
    compute = settings.compute
    rows = (
        ray.data.read_parquet(logs.path("items.parquet"), filesystem=logs.fs)
        .select_columns(["item_id", "image", "image_uri"])
        .map_batches(
            ImageRows,
            fn_constructor_args=(settings.image_encoder,),
            batch_format="pyarrow",
            batch_size=compute.batch_size,
            **blocks.options(compute),
            compute=blocks.pool(compute),
        )
        .to_arrow_refs()
    )
    table = pa.concat_tables(ray.get(rows))
    vectors = to_numpy(table["vector"])
    at = pc.index_in(item_ids, value_set=table["item_id"].combine_chunks())
    if at.null_count:
        raise ValueError(f"item_vectors has {at.null_count} items that the logs' items lack. Build both from the same run.")
    vectors = vectors[at.to_numpy()]
    num_with = int(vectors.any(axis=1).sum())
    unreadable = int(pc.sum(table["unreadable"]).as_py())
    return vectors, {"with_image": num_with, "unreadable_image": unreadable, "without_image": len(vectors) - num_with - unreadable}


def measure(
    context: Context,
    item_ids: pa.Array,
    contents: Contents,
    history: Pairs,
    trained_N: NDArray[np.bool_],
    counts_N: NDArray[np.int64],
    by_name: dict[str, Floats],
    held_N: NDArray[np.bool_],
) -> dict[str, object]:
    """Hit@k on pairs of the train window that the history window does not have.

    Where items were held out, `among_held_out` has them alone as candidates: with all items, a space that merely put them apart from the others would gain.
    """
    settings, info = context.config.item_encoder, LogsInfo.model_validate(context.inputs["logs"].info)
    seed = own_seed(settings.seed, context.seed)
    kinds = sorted({EVENT_KIND[kind] for kind in settings.pairs})
    later = build_pairs(read_events(context.inputs["logs"], kinds, info.history_end, info.train_end), item_ids, settings.rules(), seed)
    unseen = later.take(~np.isin(later.keys(len(item_ids)), history.keys(len(item_ids))))
    query, target = later_queries(sample_pairs(unseen, settings.max_eval_pairs, seed), history, len(item_ids))
    hits = {name: hits_by_vector(vectors, contents, query, target, settings.hit_k) for name, vectors in by_name.items()}
    hits["popularity"] = hits_by_count(counts_N, query, target, settings.hit_k)
    hits["co_occurrence"] = hits_by_pair(history, counts_N, query, target, settings.hit_k)
    report = hit_report(hits, query, target, trained_N, settings.hit_k, held_N if held_N.any() else None)
    if held_N[target].any():
        query, target = query[held_N[target]], target[held_N[target]]
        among = {name: hits_by_vector(vectors, contents, query, target, settings.hit_k, held_N) for name, vectors in by_name.items()}
        among["chance"] = np.minimum(settings.hit_k / (held_N.sum() - held_N[query]), 1.0)
        report["among_held_out"] = {"queries": len(query), **{name: float(values.mean()) for name, values in among.items()}}
    return {"later_pairs": len(later), "unseen_pairs": len(unseen), **report}


def build(context: Context, draft: Draft) -> Result:
    """Pairs, training, z of every item, Hit@k."""
    settings, seed = context.config.item_encoder, own_seed(context.config.item_encoder.seed, context.seed)
    logs, source = context.inputs["logs"], context.inputs["item_vectors"]
    if settings.pair_batch_size % settings.compute.num_actors:
        raise ValueError(
            f"item_encoder.pair_batch_size = {settings.pair_batch_size} must be a multiple of item_encoder.compute.num_actors = {settings.compute.num_actors}, "
            "or the result would depend on the number of workers. Change either."
        )
    if not work.is_in_place():
        blocks.check_room({"item_encoder": settings.compute}, context.config.cluster)
    info = LogsInfo.model_validate(logs.info)
    table = VectorTable(source.fs, source.path("vectors.parquet"))
    item_ids = table.keys(schema.ITEM_KEY)["item_id"].combine_chunks()
    text = table.read(np.arange(len(item_ids)))
    images, image_counts = image_vectors(logs, item_ids, settings) if settings.image_encoder else (None, {})
    frozen = text if images is None else np.concatenate([text, images], axis=1)
    contents = Contents.of(fingerprints(frozen))

    kinds = sorted({EVENT_KIND[kind] for kind in settings.pairs})
    events = read_events(logs, kinds, None, info.history_end)
    held_N = held_out(len(contents.first_U), settings.held_out_frac, seed)[contents.content_N]
    events = events.filter(pc.invert(pc.is_in(events["item_id"], value_set=item_ids.filter(pa.array(held_N)))))
    history = build_pairs(events, item_ids, settings.rules(), seed)
    different = contents.of_pairs(history)
    by_kind = {entry["values"]: entry["counts"] for entry in pc.value_counts(events["kind"]).to_pylist()}
    enough = check_pairs(settings, len(different), by_kind)
    pairs = sample_pairs(balanced(different, len(contents.first_U), settings.balance), settings.max_pairs, seed)

    shape = ProjectionShape(text.shape[1], 0 if images is None else images.shape[1], settings.dim, settings.hidden_dim, settings.image_encoder, enough)
    inputs = compose(text[contents.first_U], None if images is None else images[contents.first_U], shape)
    start = Projection.start(shape, inputs, seed)
    logger.info("%d pairs of %d, %d distinct contents of %d items", len(pairs), len(history), len(inputs), len(item_ids))
    projection, losses = train(start, inputs, pairs, settings, seed, draft) if enough else (start, [])
    if enough and settings.factor_dim:
        factors, mass = item_factors(different, len(inputs), settings.factor_dim, seed)
        projection = projection.beside(fit_factors(inputs, factors, mass, settings.kernel_width, settings.kernel_ridge, settings.max_landmarks, seed))

    z_of = {name: _written(draft, name, ItemEncoder(one), item_ids, text, images) for name, one in (("trained", projection), ("frozen", start))}

    trained_content = np.zeros(len(inputs), bool)
    taught = different if settings.factor_dim else pairs  # factors are made of all pairs, before any are drawn
    trained_content[np.concatenate([taught.left_P, taught.right_P])] = True
    known = pc.index_in(events["item_id"], value_set=item_ids).drop_null().to_numpy()
    norms = np.linalg.norm(frozen[contents.first_U], axis=1, keepdims=True)
    by_name = {
        "frozen": (frozen[contents.first_U] / np.maximum(norms, 1e-12)).astype(np.float32),
        "start": z_of["frozen"][contents.first_U],
        "trained": z_of["trained"][contents.first_U],
    }
    hits = measure(context, item_ids, contents, history, trained_content[contents.content_N], np.bincount(known, minlength=len(item_ids)), by_name, held_N)
    report = {
        "projection": "trained" if enough else "frozen",
        "pairs": {"history": len(history), "different_contents": len(different), "trained": len(pairs), "dropped_events": dict(history.dropped)},
        "contents": len(inputs),
        "held_out_items": int(held_N.sum()),
        "images": image_counts,
        "losses": losses,
        "hits": hits,
    }
    return Result(rows_in=len(item_ids), rows_out=len(item_ids), info=report)


def _written(draft: Draft, name: str, encoder: ItemEncoder, item_ids: pa.Array, text: Floats, images: Floats | None) -> Floats:
    """z of every item by an encoder, written as the table `name` with the encoder in the folder `name`."""
    z = encoder.project(text, images)
    draft.write(name, pa.table({"item_id": item_ids, "vector": to_arrow(z)}, schema=schema.vectors(schema.ITEM_KEY, encoder.dim)))
    draft.fs.create_dir(draft.path(name))
    for file, content in encoder.files().items():
        with draft.fs.open_output_stream(draft.path(f"{name}/{file}")) as stream:
            stream.write(content)
    return z


ITEM_ENCODER = Stage(
    name="item_encoder",
    version=2,
    inputs=(LOGS, ITEM_VECTORS),
    settings=lambda config: config.item_encoder.key_fields(),
    build=build,
    command="pipelines.item_encoder",
)


def main() -> None:
    main_for(__doc__ or "", lambda config: [ITEM_ENCODER])


if __name__ == "__main__":
    main()
