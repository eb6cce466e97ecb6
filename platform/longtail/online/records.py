"""What an online feature store holds of one user: attributes, group codes, events, peers; and where stores are asked for it.

Letters: E events, A attributes, S code stages, V levels of peers, P peers of a level, T meetings of several users.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from longtail.peers import TARGETS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class UserRecord:
    """One user; what a request, or a store, knows of them. Events are in time order."""

    user_row: int  # 0: not in the run
    attributes_A: npt.NDArray[np.int32]  # 0 unknown
    codes_S: npt.NDArray[np.int32]  # from 0; width 0 without a group
    item_row_E: Ints
    time_E: Ints  # microseconds since the epoch
    purchase_E: npt.NDArray[np.bool_]
    log_price_E: npt.NDArray[np.float64]  # NaN unknown
    peer_row_VP: tuple[Ints, ...] = ()  # 0 is nobody
    peer_weight_VP: tuple[Floats, ...] = ()

    @property
    def codes(self) -> tuple[int, ...] | None:
        """Group codes; None without a group."""
        return tuple(self.codes_S.tolist()) or None

    @staticmethod
    def nobody(num_attributes: int) -> "UserRecord":
        """A user of whom nothing is known."""
        none, no_codes = np.zeros(0, np.int64), np.zeros(0, np.int32)
        return UserRecord(0, np.zeros(num_attributes, np.int32), no_codes, none, none, np.zeros(0, bool), np.zeros(0))

    def before(self, time_us: int) -> "UserRecord":
        """Without the events at or after a time."""
        end = int(np.searchsorted(self.time_E, time_us))
        if end == len(self.time_E):
            return self
        events = {name: getattr(self, name)[:end] for name in ("item_row_E", "time_E", "purchase_E", "log_price_E")}
        return replace(self, **events)

    def with_events(self, item_row_E: Ints, time_E: Ints, purchase_E: npt.NDArray[np.bool_], log_price_E: npt.NDArray[np.float64]) -> "UserRecord":
        """With some more events, in any order."""
        order = np.argsort(np.concatenate([self.time_E, time_E]), kind="stable")
        more = {"item_row_E": item_row_E, "time_E": time_E, "purchase_E": purchase_E, "log_price_E": log_price_E}
        return replace(self, **{name: np.concatenate([getattr(self, name), values])[order] for name, values in more.items()})

    def to_bytes(self) -> bytes:
        """For a store that keeps bytes."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "user_row": np.array([self.user_row]),
            "attributes": self.attributes_A,
            "codes": self.codes_S,
            "item_row": self.item_row_E.astype(np.int32),
            "time": self.time_E,
            "purchase": self.purchase_E,
            "log_price": self.log_price_E,
        }
        for level, (rows_P, weights_P) in enumerate(zip(self.peer_row_VP, self.peer_weight_VP, strict=True)):
            arrays[f"peers_{level}"], arrays[f"weights_{level}"] = rows_P.astype(np.int32), weights_P
        content: bytes = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        return content

    @staticmethod
    def from_bytes(content: bytes) -> "UserRecord":
        arrays = load(content)
        levels = range(sum(name.startswith("peers_") for name in arrays))
        return UserRecord(
            int(arrays["user_row"][0]),
            arrays["attributes"],
            arrays["codes"],
            arrays["item_row"].astype(np.int64),
            arrays["time"],
            arrays["purchase"],
            arrays["log_price"],
            tuple(arrays[f"peers_{level}"].astype(np.int64) for level in levels),
            tuple(arrays[f"weights_{level}"] for level in levels),
        )


@dataclass(frozen=True)
class Met:
    """What some users had met by the published snapshot, one after another: for each of peers.TARGETS the columns [T], and whose each is."""

    column_T: tuple[npt.NDArray[np.int32], ...]
    owner_T: tuple[Ints, ...]  # place among the users asked for

    @staticmethod
    def joined(parts: Sequence[Mapping[str, npt.NDArray[np.int32]]]) -> "Met":
        """From each user's columns by target."""
        columns, owners = [], []
        for target in TARGETS:
            mine = [part[target] for part in parts]
            columns.append(np.concatenate(mine) if mine else np.zeros(0, np.int32))
            owners.append(np.repeat(np.arange(len(mine)), [len(one) for one in mine]))
        return Met(tuple(columns), tuple(owners))


class UserStore(Protocol):
    """Where users are looked up, by id or by row; safe to call from several threads."""

    def user(self, user_id: str) -> UserRecord | None:
        """The user's record; None of one whom the run does not know."""

    def met(self, user_rows: Ints) -> Met:
        """What these users had met."""
