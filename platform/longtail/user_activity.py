"""User activity: purchases before the test window by user, and who is of low activity, by the rule that evaluation slices by.

Reads logs' users and events, batch by batch; writes nothing. Letters: M users.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longtail.artifacts import Artifact
from longtail.evaluation import Metrics
from longtail.run_state import logs_info
from longtail.table_rows import table

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UserActivity:
    """Every user of a run, from the quietest to the busiest, equal ones by id."""

    user_ids: pa.Array
    purchases_M: Ints
    events_M: Ints  # behaviour of any kind, purchases included
    low_max: int  # a user with at most so many purchases is of low activity

    @property
    def is_low(self) -> npt.NDArray[np.bool_]:
        """Who is of low activity."""
        low: npt.NDArray[np.bool_] = self.purchases_M <= self.low_max
        return low

    def of(self, user_ids: pa.Array | pa.ChunkedArray) -> tuple[Ints, Ints]:
        """Purchases and events of users; 0 of those whom nobody knows."""
        place = pc.index_in(user_ids, value_set=self.user_ids)
        known = pc.is_valid(place).to_numpy(zero_copy_only=False)
        rows = pc.fill_null(place, 0).to_numpy(zero_copy_only=False).astype(np.int64)
        return np.where(known, self.purchases_M[rows], 0), np.where(known, self.events_M[rows], 0)


def user_activity(logs: Artifact, low_activity_frac: float, metrics: Metrics | None = None) -> UserActivity:
    """Activity before the test window; the limit is what `metrics` sliced by, or without an evaluation the same quantile over all users."""
    info = logs_info(logs)
    users = table(logs, "users").to_table(columns=["user_id"]).column("user_id").combine_chunks()
    purchases, events = np.zeros(len(users), np.int64), np.zeros(len(users), np.int64)
    before = (pc.field("ts") < pa.scalar(info.train_end, pa.timestamp("us", "UTC"))) & pc.field("kind").isin(list(info.behaviour_kinds))
    for batch in table(logs, "events").to_batches(columns=["user_id", "kind"], filter=before):
        place = pc.index_in(batch.column("user_id"), value_set=users)
        known = pc.is_valid(place).to_numpy(zero_copy_only=False)
        rows = pc.fill_null(place, 0).to_numpy(zero_copy_only=False)
        strongest = pc.equal(batch.column("kind"), info.behaviour_kinds[-1]).to_numpy(zero_copy_only=False)
        events += np.bincount(rows[known], minlength=len(users))
        purchases += np.bincount(rows[known & strongest], minlength=len(users))
    order = pc.sort_indices(
        pa.table({"purchases": purchases, "events": events, "user_id": users}),
        sort_keys=[("purchases", "ascending"), ("events", "ascending"), ("user_id", "ascending")],
    ).to_numpy()
    quantile = int(np.quantile(purchases, low_activity_frac, method="lower")) if len(purchases) else 0
    low_max = quantile if metrics is None else metrics.low_activity_max
    return UserActivity(users.take(pa.array(order)), purchases[order], events[order], low_max)
