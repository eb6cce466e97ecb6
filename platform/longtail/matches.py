"""Matches: what a user did with the items of a candidate's cluster, the items with the same leading semantic codes (ours, beside counts by category).

Apart from the other own features: a new codebook leaves those as they are. A request has the same numbers from longtail.online.features.
Letters: B rows, N items, M match statistics.
"""

from dataclasses import dataclass

import numpy as np

from longtail.behaviour import Behaviour, CountIndex
from longtail.entities import Entities
from longtail.features import Columns, Floats, Ints, Rows, item_facts, pair_keys, recency

MATCH_STATS = ("log_same_cluster", "cluster_share", "cluster_recency")


@dataclass(frozen=True)
class MatchState:
    """What match statistics are computed from; built once per process from the artifacts of one run."""

    entities: Entities
    cluster_N: Ints  # of items by their semantic codes, from 1; 0 unknown
    by_user: CountIndex
    by_user_cluster: CountIndex

    @staticmethod
    def build(entities: Entities, behaviour: Behaviour, cluster_N: Ints) -> "MatchState":
        user, item, time = behaviour.user_row_E, behaviour.item_row_E, behaviour.time_E
        return MatchState(entities, cluster_N, CountIndex.build(user, time), CountIndex.build(pair_keys(user, cluster_N[item]), time))

    def of(self, rows: Rows) -> Floats:
        """MATCH_STATS [B, M], as they were known strictly before each row's time; zeros for an item of no cluster."""
        cluster = item_facts(rows.item_row_B, self.entities, self.cluster_N).cluster_B
        same, since = self.by_user_cluster.count_and_days(pair_keys(rows.user_row_B, cluster), rows.time_B)
        share = same / np.maximum(self.by_user.count(rows.user_row_B, rows.time_B), 1)
        last = recency(since)
        return np.where(cluster[:, None] > 0, np.stack([np.log1p(same), share, last], 1), 0.0).astype(np.float32)

    def columns(self, rows: Rows) -> Columns:
        """The rows' match statistics as a column."""
        return {"match_stats": self.of(rows)}
