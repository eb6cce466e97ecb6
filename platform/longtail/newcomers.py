"""Newcomers: users and items that only a request describes, brought into a run's groups and semantics by its own encoders and codebooks.

    user: attributes -> deterministic profile -> text encoder -> user codebook -> group        (ChoirRec, semantic group generation)
    item: title, category, brand -> text encoder -> SaviorEnc's projection -> item codebook    (SaviorRec, steps 1 and 2: codes from content alone)

Reads codebooks and projection of a finished run, and the text model; writes nothing. serve_apps keeps it alive in a replica of its own.

Letters: N items, D width of z, S code stages.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longtail import schema
from longtail.codes import encode, load_codebook
from longtail.embeddings import EmbeddingsSettings, EncoderSettings, TextEncoder, item_texts
from longtail.images import ImageEncoder, encode_images, load_image_encoder
from longtail.kmeans import Floats
from longtail.logs import LogsInfo
from longtail.profile_facts import facts_table
from longtail.profile_text import fallback
from longtail.profiles import ProfilesSettings
from longtail.projection import ItemEncoder
from longtail.questions import Encoded, StatedItem, StatedUser, Unknowns
from longtail.times import from_us
from longtail.user_spaces import of_profile_alone


def facts_of(user: StatedUser, info: LogsInfo, settings: ProfilesSettings, read_items: Callable[[], pa.Table] | None = None) -> pa.Table:
    """The facts (profile_facts.FACTS) of attributes and events, one row; none where nothing is known.

    Prices are left out: a price's level is its place among everybody's, which one user's events do not tell.
    """
    columns: dict[str, pa.Array] = {"user_id": pa.array(["newcomer"])}
    for name in info.categorical_attributes:
        columns[name] = pc.cast(pa.array([user.attributes.get(name)]), pa.string())
    for name in info.numeric_attributes:
        columns[name] = pc.cast(pa.array([user.attributes.get(name)]), pa.float64())
    items = pa.table({"item_id": pa.array([], pa.string())})
    if user.events and read_items is not None:
        known = read_items()
        items = known.filter(pc.is_in(known.column("item_id"), value_set=pa.array([event.item_id for event in user.events], pa.string())))
    events = pa.table(
        {
            "event_id": pa.array([str(number) for number in range(len(user.events))], pa.string()),
            "user_id": pa.array(["newcomer"] * len(user.events), pa.string()),
            "ts": pa.array([event.time_us for event in user.events], pa.int64()).cast(schema.TIMESTAMP),
            "kind": pa.array([event.kind for event in user.events], pa.string()),
            "item_id": pa.array([event.item_id for event in user.events], pa.string()),
        }
    )
    as_of = from_us(max((event.time_us for event in user.events), default=0) + 1) if user.events else datetime.now(UTC)
    return facts_table(pa.table(columns), items, events, info, settings, as_of)[0]


def profile_of(user: StatedUser, info: LogsInfo, settings: ProfilesSettings, read_items: Callable[[], pa.Table] | None = None) -> str | None:
    """The text that stands for a user: the one the request brings, or the deterministic profile of attributes and events; None where it says nothing."""
    if user.profile and user.profile.strip():
        return user.profile.strip()
    facts = facts_of(user, info, settings, read_items)
    return fallback(facts.to_pylist()[0]).text if len(facts) else None


def stated_items(items: Sequence[StatedItem]) -> pa.Table:
    """What requests say of items, in the form of the items table."""
    return pa.table(
        {
            "item_id": pa.array([item.item_id for item in items], pa.string()),
            "title": pa.array([item.title or "" for item in items], pa.string()),
            "category": pa.array([list(item.category) for item in items], pa.list_(pa.string())),
            "brand": pa.array([item.brand for item in items], pa.string()),
        }
    )


@dataclass(frozen=True)
class Placed:
    """Described items as the run's encoders and codebook see them. T width of the text encoder."""

    text_NT: Floats  # frozen
    z_ND: Floats
    codes_NS: npt.NDArray[np.int32]  # from 0


@dataclass
class NewcomerEncoder:
    """The run's encoders for what requests describe; each text model is loaded once, by `warm` or with the first text that needs it."""

    info: LogsInfo
    profiles: ProfilesSettings
    embeddings: EmbeddingsSettings
    user_codebook_SKD: Floats | None  # None: profiles are not the first of user_spaces.spaces, so that a described user cannot be placed
    item_codebook_SKD: Floats
    projection: ItemEncoder
    read_items: Callable[[], pa.Table] | None = None  # item_id and category of the run's items, for profiles that speak of events
    make_encoder: Callable[[EncoderSettings], TextEncoder] = TextEncoder
    _encoders: dict[EncoderSettings, TextEncoder] = field(default_factory=dict)
    _image_encoder: ImageEncoder | None = None
    _known_items: pa.Table | None = None
    _loading: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def load(
        info: LogsInfo,
        profiles: ProfilesSettings,
        embeddings: EmbeddingsSettings,
        user_codebook: Path | None,
        item_codebook: Path,
        projection: ItemEncoder,
        read_items: Callable[[], pa.Table] | None = None,
    ) -> "NewcomerEncoder":
        """From what a run keeps: both codebooks, and the item encoder."""
        users = load_codebook(user_codebook) if user_codebook is not None else None
        return NewcomerEncoder(info, profiles, embeddings, users, load_codebook(item_codebook), projection, read_items)

    def warm(self) -> None:
        """Load both text models and send a text through each: what a first request would wait for otherwise (6 s with a model of 22 M on two cores)."""
        self.encode(Unknowns(StatedUser(profile="a user"), (StatedItem("an item", title="an item"),)))

    def encode(self, unknowns: Unknowns) -> Encoded:
        """Codes of the described user (None where the request says nothing of them), z and codes of the described items."""
        user_codes = self.codes_of_profile(self.profile_of(unknowns.user)) if unknowns.user is not None else None
        if not unknowns.items:
            return Encoded(user_codes, np.zeros((0, self.item_codebook_SKD.shape[2]), np.float32), np.zeros((0, self.item_codebook_SKD.shape[0]), np.int32))
        placed = self.place(unknowns.items)
        return Encoded(user_codes, placed.z_ND, placed.codes_NS)

    def place(self, items: Sequence[StatedItem]) -> Placed:
        """Text vectors, z and codes of described items."""
        text_NT = self._encoder(self.embeddings.item).encode(item_texts(stated_items(items)))
        z_ND = self.projection.project(text_NT, self._images(items))
        return Placed(text_NT, z_ND, encode(z_ND, self.item_codebook_SKD))

    def profile_of(self, user: StatedUser) -> str | None:
        """The text that stands for a user (newcomers.profile_of)."""
        return profile_of(user, self.info, self.profiles, self._items)

    def codes_of_profile(self, text: str | None) -> tuple[int, ...] | None:
        """Group codes of a profile; None without one, and where the run's groups are not found by profiles first."""
        if text is None or self.user_codebook_SKD is None:
            return None
        vector_1D = of_profile_alone(self._encoder(self.embeddings.user).encode([text]), self.user_codebook_SKD.shape[2])
        return tuple(int(code) for code in encode(vector_1D, self.user_codebook_SKD)[0])

    def _images(self, items: Sequence[StatedItem]) -> Floats | None:
        """Vectors of the items' pictures, zeros for those without; None where none has one, or the run's items are encoded by text alone."""
        name = self.projection.shapes[0].image_encoder
        if name is None or not any(item.image for item in items):
            return None
        with self._loading:
            if self._image_encoder is None:
                self._image_encoder = load_image_encoder(name)
        return encode_images(self._image_encoder, [item.image for item in items], [None] * len(items))[0]

    def _items(self) -> pa.Table:
        """The run's items, read once."""
        with self._loading:
            if self._known_items is None:
                self._known_items = self.read_items() if self.read_items is not None else pa.table({"item_id": pa.array([], pa.string())})
        return self._known_items

    def _encoder(self, settings: EncoderSettings) -> TextEncoder:
        with self._loading:  # requests come from several threads
            if settings not in self._encoders:
                self._encoders[settings] = self.make_encoder(settings)
            return self._encoders[settings]
