"""A seeded simulation of predictions: users of skewed activity, items of skewed counts, rankers of a known strength on known rows."""

import numpy as np
import pyarrow as pa

from longtail import schema


def simulate(seed: int = 0, num_users: int = 120, num_items: int = 150, rows: int = 4000, heads: tuple[str, ...] = ("outcome",)) -> pa.Table:
    """Predictions of base, choirrec (stronger on users with few purchases) and saviorrec (stronger on items with few events)."""
    rng = np.random.default_rng(seed)
    purchases_U = np.floor(rng.lognormal(1.2, 1.3, num_users)).astype(int)
    events_I = np.floor(rng.lognormal(4.0, 1.8, num_items)).astype(int)
    events_I[:6] = 0
    age_I = np.where(rng.random(num_items) < 0.1, np.nan, rng.uniform(1, 400, num_items))
    user, item = rng.integers(0, num_users, rows), rng.integers(0, num_items, rows)
    taste = rng.normal(0, 1.2, rows)  # what the labels are drawn from, and what a ranker sees through noise
    label = (rng.random(rows) < _sigmoid(taste)).astype(np.int8)
    few_purchases, few_events = purchases_U[user] <= 2, events_I[item] < 100
    noise = {
        "base": np.full(rows, 1.5),
        "choirrec": np.where(few_purchases, 0.5, 1.45),
        "saviorrec": np.where(few_events, 0.5, 1.6),
    }
    alpha_N = _sigmoid(1.0 - 0.6 * np.log1p(purchases_U[user]) + rng.normal(0, 0.3, rows))
    tables = []
    for head in heads:
        for ranker, sigma in noise.items():
            logit = (taste + rng.normal(0, 1, rows) * sigma) * 0.6
            kept = label == 1 if head == "cvr" else np.ones(rows, dtype=bool)
            tables.append(
                pa.table(
                    {
                        "example_id": np.arange(rows)[kept],
                        "user_id": [f"u{number}" for number in user[kept]],
                        "item_id": [f"i{number}" for number in item[kept]],
                        "split": ["test"] * int(kept.sum()),
                        "ranker": [ranker] * int(kept.sum()),
                        "head": [head] * int(kept.sum()),
                        "probability": _sigmoid(logit)[kept].astype(np.float32),
                        "label": ((rng_labels(seed, rows) & (label == 1)).astype(np.int8) if head != "outcome" else label)[kept],
                        "alpha_fusion": pa.array(alpha_N[kept].astype(np.float32)) if ranker == "choirrec" else pa.nulls(int(kept.sum()), pa.float32()),
                        "num_purchases": purchases_U[user][kept].astype(np.int32),
                        "item_events": events_I[item][kept].astype(np.int32),
                        "item_age_days": age_I[item][kept].astype(np.float32),
                    },
                    schema=schema.PREDICTIONS,
                )
            )
    return pa.concat_tables(tables)


def rng_labels(seed: int, rows: int) -> np.ndarray:
    """Which outcomes convert."""
    return np.random.default_rng(seed + 1).random(rows) < 0.3


def _sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value))
