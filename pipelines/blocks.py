"""Blocks: how the stages that run as Ray Data plans cut tables, write them on the way, and put the parts together again.

Every block has its number in a column `part`, and every step handles whole blocks: what a part file holds depends on neither the schedule nor a retry.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray

from actors.timing import carried
from longtail.artifacts import Draft, Store
from longtail.config import ClusterSettings
from longtail.settings import Compute
from pipelines.cluster import may_grow, pool_resources

logger = logging.getLogger(__name__)

#: What the small steps between the pools reserve: without it they would wait for the CPUs that the actors hold.
SMALL_CPUS = 0.05
PROGRESS_EVERY_S = 10.0
_ROW_GROUP = 65_536


def cut(table: pa.Table, size: int) -> list[pa.Table]:
    """`table` in blocks of `size` rows, each with its number in `part`."""
    blocks = [table.slice(start, size) for start in range(0, len(table), size)]
    return [block.append_column("part", pa.array([number] * len(block), pa.int32())) for number, block in enumerate(blocks)]


def source(table: pa.Table, size: int) -> "ray.data.Dataset":
    """The first step of a plan: `table` in blocks of `size` rows."""
    # Ray Data warns every half minute of a step that uses more memory than it reserved; what these steps hold does not grow with the data.
    ray.data.DataContext.get_current().issue_detectors_config.high_memory_detector_config.detection_time_interval_s = -1
    dataset: ray.data.Dataset = ray.data.from_arrow(cut(table, size))
    return dataset


def check_room(pools: Mapping[str, Compute], cluster: ClusterSettings, num_steps: int = 0) -> None:
    """Refuse actor pools that this machine's Ray cannot hold side by side; it would wait for them without a word.

    A cluster that was joined may grow: there, what its nodes lack now is only said.

    Args:
        pools: the pools by config section.
        cluster: the Ray that they are in.
        num_steps: the small steps of a Ray Data plan that run between them.

    Raises:
        ValueError: their CPUs or GPUs are more than there are, or no node is in the pool of nodes that a section names.
    """
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it without annotations
    for resource, wanted in (
        ("CPU", sum(pool.num_actors * pool.num_cpus for pool in pools.values()) + num_steps * SMALL_CPUS),
        ("GPU", sum(pool.num_actors * pool.num_gpus for pool in pools.values())),
    ):
        if wanted > have.get(resource, 0.0):
            sections = ", ".join(f"[{name}.compute]" for name in pools)
            beside = " together with the steps between them" if num_steps else ""
            short = f"{sections} reserve {wanted:g} {resource}s{beside}, the cluster has {have.get(resource, 0.0):g}."
            if may_grow(cluster):
                logger.warning("%s Waiting for it to grow; a cluster of fixed size never will.", short)
                continue
            raise ValueError(f"{short} Lower num_actors or num_{resource.lower()}s there (fractions are fine), or raise cluster.num_cpus.")

    for name, compute in pools.items():
        absent = pool_resources(compute.pool).keys() - have.keys()
        if absent and may_grow(cluster):
            logger.warning("[%s.compute] pool = %r: no node of it is up. Waiting for one; a cluster without such nodes never has one.", name, compute.pool)
        elif absent:
            raise ValueError(
                f"[{name}.compute] pool = {compute.pool!r}: no node of this Ray offers the resource {absent.pop()}. "
                'Leave pool out on a machine of your own, or set cluster.address to a cluster that has such nodes (cluster.yaml, "auto" on its head).'
            )


def options(compute: Compute) -> dict[str, Any]:
    """What Ray reserves for one actor of a stage."""
    return {"num_cpus": compute.num_cpus, "num_gpus": compute.num_gpus, "resources": pool_resources(compute.pool)}


def train_resources(compute: Compute) -> dict[str, float]:
    """What Ray Train reserves for one worker."""
    return {"CPU": compute.num_cpus} | ({"GPU": compute.num_gpus} if compute.num_gpus else {}) | pool_resources(compute.pool)


def pool(compute: Compute, **more: Any) -> "ray.data.ActorPoolStrategy":
    """Actors whose calls run in the thread that made them; by default they run in a second one, with a team of OpenMP threads of its own (longtail.threads)."""
    return ray.data.ActorPoolStrategy(size=compute.num_actors, enable_true_multi_threading=True, **more)


def actors(dataset: "ray.data.Dataset", actor: Any, compute: Compute, **constructor: Any) -> "ray.data.Dataset":
    """The next step of a plan: a pool of actors of one class, each taking whole blocks."""
    reserved = options(compute) | {"num_gpus": compute.num_gpus or None}
    return dataset.map_batches(actor, fn_constructor_kwargs=constructor, compute=pool(compute), batch_size=None, batch_format="pyarrow", **reserved)


def tasks(dataset: "ray.data.Dataset", function: Any, **arguments: Any) -> "ray.data.Dataset":
    """The next step of a plan: a light function of whole blocks, one at a time."""
    # At so small a reservation Ray would start a worker process for every block at once, and each costs seconds to start.
    one = ray.data.TaskPoolStrategy(size=1)
    return dataset.map_batches(function, fn_kwargs=arguments, compute=one, num_cpus=SMALL_CPUS, batch_size=None, batch_format="pyarrow")


def write_part(block: pa.Table, uri: str, folder: str, columns: Sequence[str]) -> pa.Table:
    """Write `columns` of a block to its part below `folder` and pass the block on; written twice, a part is the same."""
    path = f"{folder}/part-{block.column('part')[0].as_py():06d}.parquet"
    pq.write_table(block.select(list(columns)).combine_chunks(), path, filesystem=Store.open(uri).fs, compression="zstd")
    return block


def summarise(block: pa.Table) -> pa.Table:
    """One row of a block that is done: how many rows, and what it carried."""
    return pa.table({"rows": [len(block)], **{name: [block.column(name)[0].as_py()] for name in block.column_names if carried(name)}})


def run(dataset: "ray.data.Dataset", num_rows: int, what: str) -> tuple[list[dict[str, Any]], str]:
    """Execute a plan that ends in `summarise`; logs its progress, returns the summaries and Ray Data's own statistics."""
    started, done, summaries = time.monotonic(), 0, []
    said = started - PROGRESS_EVERY_S
    for summary in dataset.iter_rows():
        summaries.append(summary)
        done += summary["rows"]
        now = time.monotonic()
        if now - said >= PROGRESS_EVERY_S or done == num_rows:
            said = now
            logger.info("%s: %d of %d rows, %.0f s", what, done, num_rows, now - started)
    if done != num_rows:
        raise RuntimeError(f"{what}: {done} rows came out of a plan that was given {num_rows}")
    return summaries, dataset.stats()


def merge(draft: Draft, folder: str, name: str, schema: pa.Schema, num_rows: int) -> None:
    """Put the parts below `folder` together as the table `name` of the draft, in their order, one part in memory at a time.

    Raises:
        RuntimeError: they do not hold `num_rows` rows together.
    """
    fs, written = draft.fs, 0
    parts = sorted(entry.path for entry in fs.get_file_info(pafs.FileSelector(folder)) if entry.path.endswith(".parquet"))
    with pq.ParquetWriter(draft.path(f"{name}.parquet"), schema, filesystem=fs, compression="zstd") as writer:
        held: list[pa.Table] = []
        for path in parts:
            held.append(pq.read_table(path, filesystem=fs).cast(schema))
            written += len(held[-1])
            while sum(len(table) for table in held) >= _ROW_GROUP:
                whole = pa.concat_tables(held)
                writer.write_table(whole.slice(0, _ROW_GROUP))
                held = [whole.slice(_ROW_GROUP)]
        if held:
            writer.write_table(pa.concat_tables(held))
    if written != num_rows:
        raise RuntimeError(f"{name}: the parts hold {written} rows, the plan was given {num_rows}; one was lost or written over. Run the stage again.")
    fs.delete_dir(folder)


def parts_folder(draft: Draft, name: str) -> str:
    """A fresh folder below the draft for a table's parts; `merge` removes it."""
    folder = f"{draft.root}/{name}.parts"
    draft.fs.create_dir(folder, recursive=True)
    return folder


def overlap_s(summaries: Sequence[Mapping[str, Any]], first: str, second: str) -> float:
    """Seconds in which at least one block was in step `first` while another was in step `second`."""
    edges: list[tuple[float, int, int]] = []
    for step, name in enumerate((first, second)):
        for summary in summaries:
            edges += [(summary[f"{name}_started"], step, 1), (summary[f"{name}_ended"], step, -1)]
    busy, last, total = [0, 0], 0.0, 0.0
    for at, step, change in sorted(edges):
        if all(busy):
            total += at - last
        busy[step] += change
        last = at
    return total


def span(summaries: Sequence[Mapping[str, Any]], step: str) -> dict[str, float]:
    """First start and last end of a step, in seconds since the epoch, and the seconds that its actors were at work."""
    return {
        "first_started": min(summary[f"{step}_started"] for summary in summaries),
        "last_ended": max(summary[f"{step}_ended"] for summary in summaries),
        "busy_s": sum(summary[f"{step}_ended"] - summary[f"{step}_started"] for summary in summaries),
    }
