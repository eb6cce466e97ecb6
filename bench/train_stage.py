"""The stage under Ray Train for the bench of training: rows a second of its workers within the epoch, apart from what starts and ends them."""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bench import train_rows
from longtail import schema
from longtail.artifacts import Artifact, Store
from longtail.config import Config, parse
from longtail.sample_files import GlobalBatch, SampleFiles, Workers
from longtail.training import TrainSettings
from pipelines.cluster import ray_session
from pipelines.train import TrainJob, fit

WARM_STEPS = 10  # of each epoch, not counted


@dataclass(frozen=True)
class Stopwatched(SampleFiles):
    """Sample files that write how long the steps of an epoch took, by worker."""

    folder: str = ""

    def epoch(self, epoch: int, batch_size: int, seed: int, workers: Workers, device: torch.device | str = "cpu") -> Iterator[GlobalBatch]:
        began, rows = 0.0, 0
        for step, share in enumerate(super().epoch(epoch, batch_size, seed, workers, device)):
            began = time.perf_counter() if step == WARM_STEPS else began
            rows += share.num_rows if step >= WARM_STEPS else 0
            yield share
        found = {"seconds": time.perf_counter() - began, "rows": rows}
        (Path(self.folder) / f"{workers.rank}.json").write_text(json.dumps(found))


def stage_rows_per_s(world: train_rows.World, files: SampleFiles, settings: TrainSettings, threads: int) -> dict[str, float]:
    """Rows a second of one worker with all threads, and of as many workers of one thread, each with a batch of its own."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="longtail-bench-stage-") as folder:
        store = Store.open(folder)
        inputs = _inputs(store, world, files)
        for name, num_actors, num_cpus in (("one_worker", 1, threads), (f"{threads}_workers_of_one_thread", threads, 1)):
            config = _config(folder, settings, num_actors, num_cpus, threads)
            with ray_session(config.cluster):
                job = TrainJob.of(config, inputs, "base", 0)
                watch = Path(folder) / name
                watch.mkdir()
                job = replace(job, files=Stopwatched(**vars(job.files), folder=str(watch)))
                began = time.perf_counter()
                fit(job, (store.fs, f"{store.root}/storage/{name}"))
                found[f"{name}_whole_fit_s"] = round(time.perf_counter() - began, 1)
            by_worker = [json.loads(path.read_text()) for path in watch.iterdir()]
            found[name] = round(by_worker[0]["rows"] / max(one["seconds"] for one in by_worker))
    return found


def _config(folder: str, settings: TrainSettings, num_actors: int, num_cpus: int, threads: int) -> Config:
    train = settings.model_dump(mode="json") | {
        "rankers": ["base"],
        "batch_size": settings.batch_size * num_actors,
        "compute": {"num_actors": num_actors, "num_cpus": num_cpus},
    }
    cluster = {"num_cpus": threads, "dashboard": False, "object_store_mb": 256}
    return parse({"run": {"uri": folder}, "train": train, "cluster": cluster, "tracking": {"backend": "none"}}, "bench.train")


def _inputs(store: Store, world: train_rows.World, files: SampleFiles) -> dict[str, Artifact]:
    """What the stage reads, as its upstream stages write it."""
    spec, catalogue = world.spec, world.catalogue()
    users, items = ([f"{kind}{row:08d}" for row in range(1, num + 1)] for kind, num in (("u", spec.num_users), ("i", spec.num_items)))
    dates = dict.fromkeys(("start", "history_end", "validation_start", "train_end", "end"), "2026-01-01T00:00:00Z")
    info: dict[str, Any] = {
        "source": "tables",
        **dates,
        "categorical_attributes": [],
        "numeric_attributes": [],
        "has_conversion": False,
        "behaviour_kinds": ["click"],
        "exposure": "logged impressions",
        "num_users": len(users),
        "num_items": len(items),
        "num_events": 0,
        "num_examples": {},
    }
    roots, leaves = (catalogue.category_NC[1:, level].tolist() for level in (0, 1))
    known = {
        "category": pa.array([[f"r{root}", f"l{leaf}"] for root, leaf in zip(roots, leaves, strict=True)]),
        "brand": pa.array([f"b{brand}" for brand in catalogue.brand_N[1:].tolist()]),
    }
    unknown = {field.name: known.get(field.name, pa.nulls(len(items), field.type)) for field in list(schema.ITEMS)[2:]}
    item_table = pa.table({"item_id": items, "title": items, **unknown}, schema=schema.ITEMS)
    vectors, codes = catalogue.vector_ND[1:].numpy(), catalogue.codes_NS[1:].numpy().astype("int32") - 1
    parts: dict[str, dict[str, pa.Table]] = {name: {} for name in train_rows.FOLDERS}
    for number, paths in enumerate(files.parts):
        for name, path in zip(train_rows.FOLDERS, paths, strict=True):
            parts[name][f"{name}.parquet/part-{number:05d}"] = pq.read_table(path)
    codebook = [len(train_rows.ITEM_CODES), train_rows.ITEM_CODES[0], train_rows.VECTOR_DIM]
    written = {
        "logs": ({"users": pa.table({"user_id": users}), "items": item_table}, info),
        "item_z": ({"z": pa.table({"item_id": items, "vector": train_rows.lists(vectors)})}, {}),
        "item_codes": ({"codes": pa.table({"item_id": items, "codes": train_rows.lists(codes)})}, {"shape": codebook}),
        "samples": (parts["samples"], {}),
        "matches": (parts["matches"], {}),
        "lent": (parts["lent"], {"spec": spec.model_dump(mode="json")}),
    }
    return {name: _artifact(store, name, tables, about) for name, (tables, about) in written.items()}


def _artifact(store: Store, stage: str, tables: dict[str, pa.Table], info: dict[str, Any]) -> Artifact:
    draft = store.create(stage, "bench")
    for name, table in tables.items():
        draft.write(name, table)
    return draft.commit(config={}, inputs={}, seed=0, rows_in=0, rows_out=0, dropped={}, info=info)
