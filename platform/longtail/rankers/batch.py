"""The one typed batch that every ranker takes.

Letters: B rows, L history length, G group history length, A attributes, U user statistics, X user-by-item statistics, M match statistics, I item statistics,
F collaborative scores, P peer statistics, S code stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
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
        """On `device`; to a GPU from pinned memory, so that the copy runs beside what the GPU computes."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        if torch.device(device).type == "cuda":
            columns = {name: column.pin_memory() for name, column in columns.items() if not column.is_cuda} | {
                name: column for name, column in columns.items() if column.is_cuda
            }
        return Batch(**{name: column.to(device, non_blocking=True) for name, column in columns.items()})

    def rows(self, index: torch.Tensor | slice) -> "Batch":
        """The rows that `index` picks."""
        if isinstance(index, slice):
            return Batch(**{f.name: getattr(self, f.name)[index] for f in fields(self)})
        return Batch(**{f.name: getattr(self, f.name).index_select(0, index) for f in fields(self)})

    @property
    def one_owner(self) -> bool:
        """A request: all rows are of one user at one time, whose features are one row in memory and are seen B times."""
        return is_shared(self.user_row_B)

    @staticmethod
    def from_table(table: pa.Table, spec: FeatureSpec) -> "Batch":
        """Tensors from sample rows (longtail.samples writes them); label columns may be missing (serving) and are then 0 and -1.

        Raises:
            ValueError: a column has another width than the spec says.
        """
        wanted = {*_widths(spec), "user_row", "item_row", "outcome", "conversion"}
        columns = {name: _array(table.column(name).combine_chunks()) for name in table.column_names if name in wanted}
        return Batch.from_columns(columns, len(table), spec)

    @staticmethod
    def from_columns(columns: Mapping[str, npt.NDArray[Any]], num_rows: int, spec: FeatureSpec) -> "Batch":
        """The same from arrays [B, ..]; one of [1, ..] stands in all rows and is not copied.

        Raises:
            ValueError: as for from_table.
        """
        widths = _widths(spec)

        def seen(values: npt.NDArray[Any], dtype: type) -> torch.Tensor:
            array: npt.NDArray[Any] = np.ascontiguousarray(values, dtype)
            tensor = torch.from_numpy(array if array.flags.writeable else array.copy())  # torch wants no memory of Arrow's, which nobody may write to
            return tensor.expand(num_rows, *tensor.shape[1:]) if len(tensor) == 1 else tensor

        def wide(name: str, dtype: type) -> torch.Tensor:
            width = widths[name]
            if width == 0 or num_rows == 0:  # Parquet cannot hold lists of width 0, so such a column may be missing
                return torch.from_numpy(np.zeros((num_rows, width), dtype))
            values = columns[name]
            if values.shape[1] != width:
                raise ValueError(f"samples: {name!r} is {values.shape[1]} wide, the spec says {width}. Rebuild the samples with this config.")
            return seen(values, dtype)

        def label(name: str, missing: float) -> torch.Tensor:
            return seen(columns[name], np.float32) if name in columns else torch.full((num_rows,), missing)

        return Batch(
            user_row_B=seen(columns["user_row"], np.int64),
            item_row_B=seen(columns["item_row"], np.int64),
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


def is_shared(rows: torch.Tensor) -> bool:
    """All rows of a batch see one row in memory (Batch.one_owner)."""
    return len(rows) > 1 and rows.stride(0) == 0


def once(rows: torch.Tensor) -> torch.Tensor:
    """Rows that what is made of them is made of: one [1, ..] where all see one, else all [B, ..]; `concatenated` shows it to all of them again."""
    return rows[:1] if is_shared(rows) else rows


def concatenated(parts: Sequence[torch.Tensor], num_rows: int) -> torch.Tensor:
    """Features [B, F] of parts [B, ..] and, of what is the same for all rows, [1, ..]."""
    return torch.cat([part.expand(num_rows, -1) if len(part) == 1 else part for part in parts], dim=1)


def _widths(spec: FeatureSpec) -> dict[str, int]:
    """Widths of the list columns."""
    lent = int(spec.lent)
    return {
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


def _array(column: pa.Array) -> npt.NDArray[Any]:
    """A column of numbers [B], nulls as -1, or of lists of one length [B, width]."""
    if pa.types.is_fixed_size_list(column.type):
        values: npt.NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), column.type.list_size)
    filled: npt.NDArray[Any] = (column.fill_null(-1) if column.null_count else column).to_numpy(zero_copy_only=False)
    return filled
