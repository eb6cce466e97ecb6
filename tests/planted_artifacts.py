"""Logs and vectors with planted topics as finished artifacts, which the stage tests of item_encoder and codes share."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from longtail import schema
from longtail.artifacts import Artifact, Store
from longtail.config import Config, parse
from longtail.logs import LogsInfo
from longtail.vectors import to_arrow
from pipelines.stage import Context, Result, Stage

START = datetime(2026, 1, 1, tzinfo=UTC)
HISTORY_END, TRAIN_END, END = (START + timedelta(days=days) for days in (50, 80, 100))
NUM_ITEMS, NUM_TOPICS, NUM_USERS, DIM = 240, 6, 60, 24
NUM_MET = 160  # the other items are first bought after the history window

INFO = LogsInfo(
    source="tables",
    start=START,
    history_end=HISTORY_END,
    validation_start=TRAIN_END - timedelta(days=5),
    train_end=TRAIN_END,
    end=END,
    categorical_attributes=(),
    numeric_attributes=(),
    has_conversion=False,
    behaviour_kinds=("purchase",),
    exposure="sampled",
    num_users=NUM_USERS,
    num_items=NUM_ITEMS,
    num_events=0,
    num_examples={},
)


def item_world() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Items' frozen vectors [N, DIM], in which the topic is one part among noise, and their topics."""
    rng = np.random.default_rng(0)
    topic = rng.integers(0, NUM_TOPICS, NUM_ITEMS)
    vectors = np.concatenate([np.eye(NUM_TOPICS)[topic], 0.7 * rng.normal(size=(NUM_ITEMS, DIM - NUM_TOPICS))], axis=1)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), topic


def commit(store: Store, stage: str, tables: dict[str, pa.Table], info: dict[str, object] | None = None) -> Artifact:
    draft = store.create(stage, "planted")
    for name, table in tables.items():
        draft.write(name, table)
    return draft.commit(config={}, inputs={}, seed=7, rows_in=0, rows_out=0, dropped={}, info=info or {})


def logs(store: Store, *, future: int = 0, num_images: int = 0) -> Artifact:
    """Every user buys items of one topic; `future` purchases are planted after the history window."""
    rng = np.random.default_rng(1)
    _, topic = item_world()
    rows: list[tuple[str, str, float]] = []
    for user in range(NUM_USERS):
        mine = np.flatnonzero(topic == user % NUM_TOPICS)
        rows += [(f"u{user}", f"i{item}", day) for item, day in zip(rng.choice(mine[mine < NUM_MET], 15), rng.uniform(0, 50, 15), strict=True)]
        rows += [(f"u{user}", f"i{item}", day) for item, day in zip(rng.choice(mine, 8), rng.uniform(50, 80, 8), strict=True)]
    rows += [(f"u{number % NUM_USERS}", f"i{number % NUM_ITEMS}", 50 + 49 * number / future) for number in range(future)]
    events = pa.table(
        {
            "event_id": [str(number) for number in range(len(rows))],
            "user_id": [user for user, _, _ in rows],
            "ts": pa.array([START + timedelta(days=day) for _, _, day in rows], schema.TIMESTAMP),
            "kind": ["purchase"] * len(rows),
            "item_id": [item for _, item, _ in rows],
            "request_id": pa.nulls(len(rows), pa.string()),
        }
    )
    items = pa.table(
        {
            "item_id": [f"i{number}" for number in range(NUM_ITEMS)],
            "image": pa.array([_png(number) if number < num_images else None for number in range(NUM_ITEMS)], pa.binary()),
            "image_uri": pa.array(["/no/such/picture.png" if number == NUM_ITEMS - 1 else None for number in range(NUM_ITEMS)], pa.string()),
        }
    )
    return commit(store, "logs", {"events": events, "items": items}, INFO.model_dump(mode="json"))


def item_vectors(store: Store) -> Artifact:
    table = pa.table({"item_id": [f"i{number}" for number in range(NUM_ITEMS)], "vector": to_arrow(item_world()[0])})
    return commit(store, "item_vectors", {"vectors": table})


def build(stage: Stage, inputs: list[Artifact], store: Store, config: dict[str, object]) -> Artifact:
    """Build `stage` on the given inputs, whatever stage keys say."""
    by_name = {artifact.stage: artifact for artifact in inputs}
    parsed: Config = parse(config, "test")
    draft = store.create(stage.name, "test")
    result: Result = stage.build(Context(parsed, store, by_name), draft)
    return draft.commit(config={}, inputs=by_name, seed=7, rows_in=result.rows_in, rows_out=result.rows_out, dropped=result.dropped, info=result.info)


def open_store(path: Path, name: str) -> Store:
    return Store.open(str(path / name))


def _png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (20 * number % 256, 90, 200)).save(buffer, "PNG")
    return buffer.getvalue()
