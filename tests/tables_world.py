"""Three small tables in the documented form, for tests of the logs stage and its checker."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longtail import schema

START = datetime(2024, 3, 1, tzinfo=UTC)


def at(hours: float) -> datetime:
    """A time `hours` after the tables' start."""
    return START + timedelta(hours=hours)


def events_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Events from rows of user, item, hour, kind (and request, price); ids are numbered."""
    columns = {
        "event_id": [f"e{place}" for place in range(len(rows))],
        "user_id": [row["user"] for row in rows],
        "ts": [at(row["hour"]) for row in rows],
        "kind": [row["kind"] for row in rows],
        "item_id": [row.get("item") for row in rows],
        "query": [row.get("query") for row in rows],
        "price": [row.get("price") for row in rows],
        "quantity": [None for _ in rows],
        "request_id": [row.get("request") for row in rows],
    }
    return pa.table(columns, schema=schema.EVENTS)


def shop(num_users: int = 60, num_items: int = 40, num_days: int = 100, seed: int = 3) -> dict[str, pa.Table]:
    """A shop's purchases without exposures: baskets of two to five items, some items far more popular than others."""
    rng = np.random.default_rng(seed)
    rows = []
    for basket in range(900):
        user, hour = int(rng.integers(num_users)), float(rng.uniform(0, num_days * 24))
        items = np.unique((rng.random(int(rng.integers(2, 6))) ** 3 * num_items).astype(int))
        rows += [{"user": f"u{user}", "item": f"i{item}", "hour": hour, "kind": "purchase", "request": f"b{basket}", "price": 1.0 + item} for item in items]
    users = pa.table({"user_id": [f"u{row}" for row in range(num_users)], "city": [None if row % 3 else f"c{row % 4}" for row in range(num_users)]})
    items = pa.table({"item_id": [f"i{row}" for row in range(num_items)], "title": [f"thing {row}" for row in range(num_items)]})
    return {"users": users, "items": items, "events": events_table(rows)}


def write(tables: Mapping[str, pa.Table], folder: Path) -> dict[str, str]:
    """Write the tables below `folder`; returns logs.tables."""
    paths = {}
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
        paths[name] = str(folder / f"{name}.parquet")
    return paths
