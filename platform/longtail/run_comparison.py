"""Two evaluations beside each other: the same ranker of two runs on the rows that both scored, with intervals over users.

Reads the predictions of both (schema.PREDICTIONS); writes nothing. Only runs of the same logs have rows in common. Letters: N rows, U users.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longtail.artifacts import Artifact
from longtail.evaluation import Metrics
from longtail.hashing import stable_uint64
from longtail.paired import Interval, paired_differences
from longtail.table_rows import table

COLUMNS = ["example_id", "user_id", "probability", "label", "num_purchases", "item_events"]
MOST_ROWS = 2_000_000  # of one ranker and head: what a page may take into memory
ROUNDS = 100


@dataclass(frozen=True)
class Compared:
    """One slice of the rows that both runs scored."""

    title: str
    rows: int
    users: int
    differences: dict[str, Interval]  # auc, gauc, log_loss: the second run minus the first


def same_logs(one: Artifact, other: Artifact) -> bool:
    """True where both evaluations were made from the same logs, whose examples have the same numbers."""
    return bool(one.manifest["inputs"]["logs"]["content_hash"] == other.manifest["inputs"]["logs"]["content_hash"])


def compare(first: Artifact, second: Artifact, ranker: str, head: str, metrics: Metrics, cold_item_events: int) -> list[Compared]:
    """Main slices of the rows that both runs' `ranker` scored; slices are as the first run's `metrics` have them.

    Raises:
        ValueError: a run has more predictions than a page may take into memory.
    """
    one, other = _predictions(first, ranker, head), _predictions(second, ranker, head)
    place = pc.index_in(other.column("example_id"), value_set=one.column("example_id").combine_chunks())
    other = other.append_column("place", place).filter(pc.is_valid(place))
    one = one.take(other.column("place"))
    if not len(one):
        return []
    label, base, score = (_floats(values) for values in (one.column("label"), one.column("probability"), other.column("probability")))
    users, user = np.unique(one.column("user_id").to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    purchases_U = np.full(len(users), np.iinfo(np.int64).max)
    np.minimum.at(purchases_U, user, one.column("num_purchases").to_numpy().astype(np.int64))
    found = []
    for title, mask in _slices(purchases_U[user], one.column("item_events").to_numpy(), metrics, cold_item_events):
        rng = np.random.default_rng([7, stable_uint64(title)])
        if mask.any():
            differences = paired_differences(label[mask].astype(np.int64), user[mask], base[mask], score[mask], ROUNDS, rng)
            found.append(Compared(title, int(mask.sum()), len(np.unique(user[mask])), differences))
    return found


def _slices(purchases_N: npt.NDArray[np.int64], events_N: npt.NDArray[np.int32], metrics: Metrics, cold: int) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    yield "all rows", np.ones(len(purchases_N), bool)
    yield "low-activity users", purchases_N <= metrics.low_activity_max
    yield "high-activity users", purchases_N >= metrics.high_activity_min
    yield "cold items", events_N < cold
    yield "warm items", events_N >= cold


def _predictions(evaluation: Artifact, ranker: str, head: str) -> pa.Table:
    found = table(evaluation, "predictions")
    wanted = (pc.field("ranker") == ranker) & (pc.field("head") == head)
    rows = found.count_rows(filter=wanted)
    if rows > MOST_ROWS:
        raise ValueError(f"evaluation {evaluation.key} has {rows:,} predictions of {ranker}, and a page compares {MOST_ROWS:,}. Compare the reports instead.")
    return found.to_table(columns=COLUMNS, filter=wanted)


def _floats(values: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    floats: npt.NDArray[np.float64] = values.to_numpy().astype(np.float64)
    return floats
