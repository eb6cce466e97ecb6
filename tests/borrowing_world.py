"""Logs, vectors and item codes with planted tastes, as finished artifacts under their true keys; what groups and peers lend is built from them by its stages.

Users u00 … u35 buy items of one taste; u36 … u39 are known by their attributes and profiles, and never act.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longtail import schema
from longtail.artifacts import Artifact, Draft, Store
from longtail.config import Config
from longtail.vectors import to_arrow
from pipelines.codes import ITEM_CODES
from pipelines.embeddings import ITEM_VECTORS, USER_VECTORS
from pipelines.item_encoder import ITEM_ENCODER
from pipelines.item_texts import ITEM_TEXTS
from pipelines.item_z import ITEM_Z
from pipelines.logs import LOGS
from pipelines.profiles import PROFILES
from pipelines.stage import Stage, stage_key
from tests import planted_artifacts
from tests.planted_artifacts import HISTORY_END, START, TRAIN_END

NUM_USERS, NUM_ITEMS, NUM_TASTES, DIM = 40, 30, 3, 8
USERS = [f"u{row:02d}" for row in range(NUM_USERS)]
ITEMS = [f"i{row:02d}" for row in range(NUM_ITEMS)]
SILENT = USERS[36:]
INFO = planted_artifacts.INFO.model_copy(update={"num_users": NUM_USERS, "num_items": NUM_ITEMS, "categorical_attributes": ("city",)})

Event = tuple[str, str, float]  # user, item, day


def config(uri: str, **sections: dict[str, Any]) -> Config:
    one = {"num_actors": 2, "num_cpus": 0.25}
    values: dict[str, dict[str, Any]] = {
        "run": {"uri": uri, "name": "borrowing"},
        "logs": {"source": "synthetic"},
        "profiles": {"generator": "deterministic", "snapshots": ["history_end", "train_end"]},
        "user_spaces": {"spaces": ["profile", "titles", "behaviour", "attributes"], "behaviour_dim": 4},
        "codes": {"user": {"num_stages": 2, "codebook_size": 3, "block_rows": 16, "compute": one}, "item": {"num_stages": 1, "codebook_size": 3}},
        "groups": {"sequence_categories": 2, "items_per_category": 2},
        "peers": {"form": "neighbours", "num_peers": [12, 4], "sharpness": 1.0},
        "collaborative": {"scores": ["ease", "svd"], "ease_l2": 2.0, "svd_dim": 3},
        "samples": {"history_length": 4, "compute": one},
        "tracking": {"backend": "none"},
    }
    return Config.model_validate({name: values.get(name, {}) | sections.get(name, {}) for name in values.keys() | sections.keys()})


def events() -> list[Event]:
    """Six purchases of one's own taste and two of others in each of the history and the train window."""
    rng = np.random.default_rng(0)
    found: list[Event] = []
    for row, user in enumerate(USERS):
        mine = [item for number, item in enumerate(ITEMS) if number % NUM_TASTES == row % NUM_TASTES]
        for low, high in ((0, 50), (50, 80)):
            days = rng.uniform(low, high, 8)
            items = [*rng.choice(mine, 6), *rng.choice(ITEMS, 2)]
            found += [(user, str(item), float(day)) for item, day in zip(items, days, strict=True) if user not in SILENT]
    return found


def examples(conversion: bool = False) -> list[pa.Table]:
    """Two parts of rows in all windows, of all users; some of the positive ones are conversions too, where the source has any."""
    rng = np.random.default_rng(1)
    parts = []
    for number, rows in enumerate((70, 50)):
        days = rng.uniform(51, 99, rows)
        columns = {
            "example_id": pa.array(np.arange(rows) + 1000 * number),
            "user_id": pa.array([str(user) for user in rng.choice(USERS, rows)]),
            "item_id": pa.array([str(item) for item in rng.choice(ITEMS, rows)]),
            "ts": pa.array([START + timedelta(days=day) for day in days], schema.TIMESTAMP),
            "split": pa.array(["train" if day < 75 else "validation" if day < 80 else "test" for day in days]),
            "origin": pa.array(["logged"] * rows),
            "request_id": pa.nulls(rows, pa.string()),
            "outcome": pa.array(rng.integers(0, 2, rows).astype(np.int8)),
        }
        columns["conversion"] = pa.array(columns["outcome"].to_numpy() * (np.arange(rows) % 2), pa.int8()) if conversion else pa.nulls(rows, pa.int8())
        parts.append(pa.table(columns, schema=schema.EXAMPLES))
    return parts


def user_vectors() -> pa.Table:
    """Profiles by taste, a little different at the second snapshot; rows in no order."""
    rng = np.random.default_rng(2)
    taste = np.arange(NUM_USERS) % NUM_TASTES
    both = np.concatenate([np.eye(NUM_TASTES, DIM)[taste] + 0.2 * rng.normal(size=(NUM_USERS, DIM)) for _ in range(2)])
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    order = rng.permutation(2 * NUM_USERS)
    times = pa.array([HISTORY_END] * NUM_USERS + [TRAIN_END] * NUM_USERS, schema.TIMESTAMP)
    table = pa.table({"user_id": [*USERS, *USERS], "as_of": times, "vector": to_arrow(both.astype(np.float32))})
    return schema.check(table.take(pa.array(order)), schema.vectors(schema.USER_KEY, DIM), "user_vectors")


def item_vectors() -> pa.Table:
    rng = np.random.default_rng(3)
    vectors = np.eye(NUM_TASTES, DIM)[np.arange(NUM_ITEMS) % NUM_TASTES] + 0.2 * rng.normal(size=(NUM_ITEMS, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return pa.table({"item_id": ITEMS[::-1], "vector": to_arrow(vectors[::-1].astype(np.float32))})


def publish(
    folder: Path, more: list[Event] | None = None, conversion: bool = False, *, cities: bool = True, **sections: dict[str, Any]
) -> tuple[Config, Store]:
    """Write what the stages of groups and peers read below `folder`, with `more` events, and users' `cities` known or not; the config finds it."""
    settings = config(str(folder), **sections)
    store = Store.open(settings.run.uri)
    done: dict[str, Artifact] = {}

    def commit(stage: Stage, write: Callable[[Draft], None], info: dict[str, Any] | None = None) -> None:
        inputs = {upstream.name: done[upstream.name] for upstream in stage.inputs}
        draft = store.create(stage.name, stage_key(stage, settings, inputs))
        write(draft)
        done[stage.name] = draft.commit(config={}, inputs=inputs, seed=settings.run.seed, rows_in=1, rows_out=1, dropped={}, info=info or {})

    def write_logs(draft: Draft) -> None:
        happened = events() + (more or [])
        draft.write(
            "users",
            pa.table({"user_id": USERS, "city": pa.array([f"c{row % 2}" if cities and row % 5 != 4 else None for row in range(NUM_USERS)], pa.string())}),
        )
        items = {"item_id": ITEMS, "category": pa.array([[f"k{row % 2}", f"l{row % 4}"] for row in range(NUM_ITEMS)], pa.list_(pa.string()))}
        unknown = {name: pa.nulls(NUM_ITEMS, schema.ITEMS.field(name).type) for name in ("brand", "price", "first_seen")}
        draft.write("items", pa.table({**items, **unknown}))
        columns = {
            "user_id": [user for user, _, _ in happened],
            "item_id": [item for _, item, _ in happened],
            "ts": pa.array([START + timedelta(days=day) for _, _, day in happened], schema.TIMESTAMP),
            "kind": ["purchase"] * len(happened),
            "price": pa.nulls(len(happened), pa.float64()),
        }
        draft.write("events", pa.table(columns))
        for number, part in enumerate(examples(conversion)):
            draft.write(f"examples.parquet/part-{number:05d}", part)

    def nothing(draft: Draft) -> None:
        draft.write_json("read_by_nobody.json", {})

    taste = np.arange(NUM_ITEMS) % NUM_TASTES
    item_codes = pa.table({"item_id": ITEMS, "codes": pa.array([[int(one)] for one in taste], pa.list_(pa.int32(), 1))})
    commit(LOGS, write_logs, INFO.model_copy(update={"has_conversion": conversion}).model_dump(mode="json"))
    commit(PROFILES, nothing)
    commit(USER_VECTORS, lambda draft: draft.write("vectors", user_vectors()))
    commit(ITEM_TEXTS, nothing)
    commit(ITEM_VECTORS, lambda draft: draft.write("vectors", item_vectors()))
    commit(ITEM_ENCODER, nothing)
    commit(ITEM_Z, lambda draft: draft.write("z", item_vectors()))
    commit(ITEM_CODES, lambda draft: draft.write("codes", item_codes), {"shape": [1, NUM_TASTES, DIM]})
    return settings, store
