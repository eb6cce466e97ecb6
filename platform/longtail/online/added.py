"""Items and users that came after a run's logs: what replicas hold of them beside the published tables.

Rows of added items lie behind the catalogue's own and behind those that a request may describe; a row, once given, stays.
Letters: K added items.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from longtail.features import ItemFacts

FACTS = {"leaf_B": np.int64, "root_B": np.int64, "brand_B": np.int64, "cluster_B": np.int64, "log_price_B": np.float32, "first_seen_B": np.int64}


@dataclass
class AddedItems:
    """Facts of added items by row from `first_row` on, in arrays that grow."""

    first_row: int
    ids: list[str] = field(default_factory=list)
    row_of: dict[str, int] = field(default_factory=dict)
    facts: dict[str, npt.NDArray[Any]] = field(default_factory=lambda: {name: np.zeros(0, kind) for name, kind in FACTS.items()})

    def row(self, item_id: str) -> int:
        """The item's row, a new one where it has none yet."""
        if item_id not in self.row_of:
            self.row_of[item_id] = self.first_row + len(self.ids)
            self.ids.append(item_id)
            if len(self.ids) > len(self.facts["leaf_B"]):
                size = max(2 * len(self.ids), 64)
                self.facts = {name: np.concatenate([old, np.zeros(size - len(old), old.dtype)]) for name, old in self.facts.items()}
        return self.row_of[item_id]

    def put(self, row: int, facts: ItemFacts) -> None:
        """Set what is known of an added item; `facts` has one row."""
        for name, values in self.facts.items():
            values[row - self.first_row] = getattr(facts, name)[0]
