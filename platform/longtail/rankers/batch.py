"""The one typed batch that every ranker takes.

Letters: B rows, L history length, G group history length, A attributes, U user statistics, X user-by-item statistics, M match statistics, I item statistics,
F collaborative scores, P peer statistics, S code stages.
"""

from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import torch

from longtail.samples import FeatureSpec


@dataclass(frozen=True)
class Batch:
    """Features and labels of B rows; every tensor's first dimension is B."""

    user_row_B: torch.Tensor  # int64, 0 unknown
    item_row_B: torch.Tensor  # int64, 0 unknown
    history_BL: torch.Tensor  # int64 item rows, most recent first, 0 padding
    history_days_BL: torch.Tensor  # float32, days before the row's time
    attributes_BA: torch.Tensor  # int64, 0 unknown
    completed_BA: torch.Tensor  # int64, own value or the group's majority
    user_stats_BU: torch.Tensor  # float32
    cross_stats_BX: torch.Tensor  # float32
    match_stats_BM: torch.Tensor  # float32, width 0 where no counts by semantic codes are read
    item_stats_BI: torch.Tensor  # float32
    collaborative_stats_BF: torch.Tensor  # float32, width 0 without collaborative scores
    group_stats_BU: torch.Tensor  # float32
    peer_stats_BP: torch.Tensor  # float32, width 0 without peers
    user_codes_BS: torch.Tensor  # int64, code plus one, 0 no group
    group_history_BG: torch.Tensor  # int64 item rows, 0 padding
    group_weight_BG: torch.Tensor  # float32, share of the group's purchases
    activity_B3: torch.Tensor  # float32: purchases, clicks, active days before the row, raw counts
    outcome_B: torch.Tensor  # float32, 0 | 1
    conversion_B: torch.Tensor  # float32, 0 | 1, -1 where the source has none

    def __len__(self) -> int:
        return len(self.user_row_B)

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def rows(self, index: torch.Tensor | slice) -> "Batch":
        """The rows that `index` picks."""
        return Batch(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @staticmethod
    def from_table(table: pa.Table, spec: FeatureSpec) -> "Batch":
        """Tensors from sample rows (longtail.samples writes them); label columns may be missing (serving) and are then 0 and -1."""
        table = table.combine_chunks()
        lent = int(spec.lent)
        widths = {
            "history": spec.history_length,
            "history_days": spec.history_length,
            "attributes": len(spec.attributes),
            "completed": len(spec.attributes) * lent,
            "user_stats": len(spec.user_stats),
            "cross_stats": len(spec.cross_stats),
            "match_stats": len(spec.match_stats),
            "item_stats": len(spec.item_stats),
            "collaborative_stats": len(spec.collaborative_stats),
            "group_stats": len(spec.user_stats) * lent,
            "peer_stats": len(spec.peer_stats),
            "user_codes": len(spec.code_sizes) * lent,
            "group_history": spec.group_history_length * lent,
            "group_weight": spec.group_history_length * lent,
            "activity": 3,
        }

        def ints(name: str) -> torch.Tensor:
            return torch.from_numpy(table.column(name).to_numpy().astype(np.int64))

        def wide(name: str, dtype: type) -> torch.Tensor:
            width = widths[name]
            if width == 0 or len(table) == 0:  # Parquet cannot hold lists of width 0, so such a column may be missing
                return torch.from_numpy(np.zeros((len(table), width), dtype))
            values = table.column(name).chunk(0).flatten().to_numpy(zero_copy_only=False)
            if len(values) != len(table) * width:
                raise ValueError(f"samples: {name!r} is {len(values) // len(table)} wide, the spec says {width}. Rebuild the samples with this config.")
            return torch.from_numpy(values.astype(dtype).reshape(len(table), width))

        def label(name: str, missing: float) -> torch.Tensor:
            if name not in table.column_names:
                return torch.full((len(table),), missing)
            return torch.from_numpy(table.column(name).fill_null(int(missing)).to_numpy().astype(np.float32))

        return Batch(
            user_row_B=ints("user_row"),
            item_row_B=ints("item_row"),
            history_BL=wide("history", np.int64),
            history_days_BL=wide("history_days", np.float32),
            attributes_BA=wide("attributes", np.int64),
            completed_BA=wide("completed", np.int64),
            user_stats_BU=wide("user_stats", np.float32),
            cross_stats_BX=wide("cross_stats", np.float32),
            match_stats_BM=wide("match_stats", np.float32),
            item_stats_BI=wide("item_stats", np.float32),
            collaborative_stats_BF=wide("collaborative_stats", np.float32),
            group_stats_BU=wide("group_stats", np.float32),
            peer_stats_BP=wide("peer_stats", np.float32),
            user_codes_BS=wide("user_codes", np.int64),
            group_history_BG=wide("group_history", np.int64),
            group_weight_BG=wide("group_weight", np.float32),
            activity_B3=wide("activity", np.float32),
            outcome_B=label("outcome", 0.0),
            conversion_B=label("conversion", -1.0),
        )
