"""Questions and rankings: what is asked of a release and what it answers, between the web side, the replicas' service and the core's ranking.

Letters: N described items, D semantic width, S code stages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from longtail.explanation import GroupStep, ItemExplanation
from longtail.online.added import SeenEvent

ItemBasis = Literal["catalogue", "added", "content", "none"]
GroupBasis = Literal["published", "added", "request", "everyone"]


class UnanswerableError(ValueError):
    """A request that this release cannot answer as it stands; another one may."""


@dataclass(frozen=True)
class StatedUser:
    """What a request says of its user."""

    attributes: Mapping[str, str | bool | float | None] = field(default_factory=dict)
    profile: str | None = None  # in words; None: the deterministic profile of attributes and events
    events: tuple[SeenEvent, ...] = ()


class StatedItem(NamedTuple):  # hundreds are made for a request, in a third of a dataclass' time
    """A candidate, and what the request says of it; read only where the run does not know the item."""

    item_id: str
    title: str | None = None
    category: tuple[str, ...] = ()  # root -> leaf
    brand: str | None = None
    price: float | None = None
    first_seen: datetime | None = None
    image: bytes | None = None

    @property
    def described(self) -> bool:
        """True where there is something to encode."""
        return bool(self.title or self.category or self.brand or self.image)


@dataclass(frozen=True)
class Question:
    """One request."""

    user_id: str
    items: tuple[StatedItem, ...]
    ranker: str
    heads: tuple[str, ...] | None = None  # None: all of the ranker's; the first one decides the order
    now: datetime | None = None  # None: the end of the run's logs, or just after the user's last event that came since
    user: StatedUser | None = None
    explain: bool = False
    release: str | None = None  # None: the application's choice


@dataclass(frozen=True)
class Unknowns:
    """What of a request must be encoded from text before it can be ranked."""

    user: StatedUser | None
    items: tuple[StatedItem, ...]  # in the order of the request

    def __bool__(self) -> bool:
        return self.user is not None or bool(self.items)


@dataclass(frozen=True)
class Encoded:
    """Unknowns as the text encoder and the run's codebooks see them."""

    user_codes: tuple[int, ...] | None  # by stage, from 0
    item_z_ND: npt.NDArray[np.float32]
    item_codes_NS: npt.NDArray[np.int32]  # from 0


class RankedItem(NamedTuple):
    """One candidate in the answer."""

    item_id: str
    scores: tuple[float, ...]  # probabilities by head, in the answer's order of heads
    basis: ItemBasis
    explanation: ItemExplanation | None = None  # where the question asked for it


@dataclass(frozen=True)
class Ranking:
    """The answer: candidates by the first head's probability, best first; equal ones in the request's order."""

    heads: tuple[str, ...]
    items: tuple[RankedItem, ...]
    now: datetime
    user_known: bool
    group: tuple[int, ...]  # the codes that the ranker saw, from 0; empty: none
    group_basis: GroupBasis
    num_purchases: int  # the user's before the request's time
    alpha_fusion: float | None  # ChoirRec: weight of the group channel, mean over the candidates
    group_path: tuple[GroupStep, ...] = ()  # where the question asked for explanations
    release: str = ""
    version: str = ""  # key of the checkpoint that scored


@dataclass(frozen=True)
class Knowledge:
    """What a caller may ask for."""

    heads: Mapping[str, tuple[str, ...]]  # by ranker
    attributes: Mapping[str, tuple[str, ...] | None]  # some of each attribute's values; None for a numeric one
    now: datetime
    since: datetime  # requests of an earlier time would see what came later
    num_users: int
    num_items: int
    user_ids: tuple[str, ...]  # a few of them, for examples
    item_ids: tuple[str, ...]
