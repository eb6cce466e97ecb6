"""Items and users that came after a run's logs: what replicas hold of them beside the published tables.

Rows of added items lie behind the catalogue's own and behind those that a request may describe; a row, once given, stays.
Letters: K added items.
"""

import threading
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from longtail.features import ItemFacts
from longtail.online.records import UserRecord

FACTS = {"leaf_B": np.int64, "root_B": np.int64, "brand_B": np.int64, "cluster_B": np.int64, "log_price_B": np.float32, "first_seen_B": np.int64}


@dataclass
class AddedItems:
    """Facts of added items by row from `first_row` on, in arrays that grow."""

    first_row: int
    ids: list[str] = field(default_factory=list)
    row_of: dict[str, int] = field(default_factory=dict)
    facts: dict[str, npt.NDArray[Any]] = field(default_factory=lambda: {name: np.zeros(0, kind) for name, kind in FACTS.items()})

    def new_row(self) -> int:
        """A row with room for its facts; nobody finds it before it is named."""
        place = len(self.ids)
        if place >= len(self.facts["leaf_B"]):
            size = max(2 * place, 64)
            self.facts = {name: np.concatenate([old, np.zeros(size - len(old), old.dtype)]) for name, old in self.facts.items()}
        return self.first_row + place

    def name(self, row: int, item_id: str) -> None:
        """Let a new row be found under its id."""
        assert row == self.first_row + len(self.ids)
        self.ids.append(item_id)
        self.row_of[item_id] = row

    def put(self, row: int, facts: ItemFacts) -> None:
        """Set what is known of an added item; `facts` has one row. Of two times of the first sight the earlier one stays."""
        place = row - self.first_row
        earlier = self.facts["first_seen_B"][place] if place < len(self.ids) else facts.first_seen_B[0]
        for name, values in self.facts.items():
            values[place] = getattr(facts, name)[0]
        self.facts["first_seen_B"][place] = min(earlier, facts.first_seen_B[0])


@dataclass(frozen=True)
class SeenEvent:
    """An event that came after the logs."""

    user_id: str
    item_id: str
    kind: str
    time_us: int
    price: float | None = None


@dataclass
class AddedUser:
    """What was told of one user since the logs ended."""

    told_us: int = 0  # when, of attributes and codes
    attributes_A: npt.NDArray[np.int32] | None = None
    codes_S: npt.NDArray[np.int32] | None = None
    events: list[tuple[int, int, bool, float]] = field(default_factory=list)  # item row, time, purchase, log price

    def over(self, record: UserRecord) -> UserRecord:
        """The user's record with all that."""
        if self.attributes_A is not None:
            record = replace(record, attributes_A=np.where(self.attributes_A > 0, self.attributes_A, record.attributes_A))
        if self.codes_S is not None and record.codes is None:
            record = replace(record, codes_S=self.codes_S)
        if not self.events:
            return record
        rows, times, purchases, prices = zip(*self.events, strict=True)
        return record.with_events(np.array(rows, np.int64), np.array(times, np.int64), np.array(purchases, bool), np.array(prices, np.float64))


@dataclass
class AddedUsers:
    """Users of whom something was told since; safe to read while it is written."""

    _users: dict[str, AddedUser] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, user_id: str) -> AddedUser | None:
        """What was told of a user, as it is now."""
        with self._lock:
            found = self._users.get(user_id)
            return None if found is None else replace(found, events=list(found.events))

    def told_us(self, user_id: str) -> int:
        """When a user was told of last; 0 for never."""
        with self._lock:
            return self._users[user_id].told_us if user_id in self._users else 0

    def put(self, user_id: str, attributes_A: npt.NDArray[np.int32], codes_S: npt.NDArray[np.int32], told_us: int = 0) -> None:
        """Replace a user's attributes and codes; events stay."""
        with self._lock:
            user = self._users.setdefault(user_id, AddedUser())
            user.attributes_A, user.codes_S, user.told_us = attributes_A, codes_S, told_us

    def add_event(self, user_id: str, item_row: int, time_us: int, purchase: bool, log_price: float) -> None:
        with self._lock:
            self._users.setdefault(user_id, AddedUser()).events.append((item_row, time_us, purchase, log_price))
