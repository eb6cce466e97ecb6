"""What an application was told since its logs ended: the entries of its log, one JSON line each, and the events among them.

An entry keeps what was told (texts, attributes) beside what the encoder of one release made of it: a release with another encoder has it made anew.
"""

import base64
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, TypeAdapter

from longtail.online.added import SeenEvent
from longtail.rollouts import Rollout


class ItemEntry(BaseModel):
    """PUT /v1/items/{item_id}."""

    kind: Literal["item"] = "item"
    told_us: int
    item_id: str
    title: str | None = None
    category: list[str] = []
    brand: str | None = None
    price: float | None = None
    first_seen_us: int | None = None
    image: str | None = None  # base64
    encoder: str  # the release's encoder digest
    vector: str  # z as float32, base64
    codes: list[int]

    @property
    def vector_D(self) -> npt.NDArray[np.float32]:  # noqa: N802
        return np.frombuffer(base64.b64decode(self.vector), np.float32)

    @property
    def image_bytes(self) -> bytes | None:
        return base64.b64decode(self.image) if self.image is not None else None

    @staticmethod
    def packed(vector_D: npt.NDArray[np.float32]) -> str:
        """z as the entry holds it."""
        return base64.b64encode(np.ascontiguousarray(vector_D, np.float32).tobytes()).decode()


class UserEntry(BaseModel):
    """PUT /v1/users/{user_id}."""

    kind: Literal["user"] = "user"
    told_us: int
    user_id: str
    attributes: dict[str, Any] = {}
    profile: str | None = None  # the text that was embedded; None: nothing to make one of
    profile_by: Literal["request", "deterministic", "llm", "none"]
    encoder: str
    codes: list[int] | None = None
    of_us: int | None = None  # told_us of the entry that this one completes; without effect if the user was told of again meanwhile


class EventEntry(BaseModel):
    """One event of POST /v1/events."""

    event_id: str
    user_id: str
    item_id: str
    event: str  # kind
    ts_us: int
    price: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What an event that is sent again is known by."""
        return self.user_id, self.event_id

    def seen(self) -> SeenEvent:
        return SeenEvent(self.user_id, self.item_id, self.event, self.ts_us, self.price)


class EventsEntry(BaseModel):
    """POST /v1/events."""

    kind: Literal["events"] = "events"
    told_us: int
    events: list[EventEntry]


class RolloutEntry(BaseModel):
    """A change of what answers."""

    kind: Literal["rollout"] = "rollout"
    told_us: int
    rollout: Rollout


Entry = Annotated[ItemEntry | UserEntry | EventsEntry | RolloutEntry, Field(discriminator="kind")]
_ENTRY: TypeAdapter[ItemEntry | UserEntry | EventsEntry | RolloutEntry] = TypeAdapter(Entry)


def parse(line: str) -> ItemEntry | UserEntry | EventsEntry | RolloutEntry:
    """An entry from its line."""
    return _ENTRY.validate_json(line)
