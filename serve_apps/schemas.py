"""What the Serve application speaks: requests, answers and problem details (RFC 9457) as typed models, with their limits and meanings."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Base64Bytes, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from longtail.explanation import Attention
from longtail.questions import GroupBasis, ItemBasis, Question, StatedItem, StatedUser
from serve_apps.problems import Problem

MOST_EVENTS = 10_000  # in one request

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


def _plausible(time: datetime) -> datetime:
    if not EARLIEST <= time < LATEST:
        raise ValueError(f"times lie between {EARLIEST:%Y} and {LATEST:%Y}")
    return time


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("this is no text that UTF-8 can write") from error
    return text


Id = Annotated[str, StringConstraints(min_length=1, max_length=256)]
AttributeText = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_encodable)]
Time = Annotated[AwareDatetime, AfterValidator(_plausible)]
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
Text = Annotated[str, StringConstraints(max_length=1000)]


class Strict(BaseModel):
    """A request's part: an unknown field is refused, since it would be a misspelt one."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class UserIn(Strict):
    """What the request itself says of its user; of use where the run knows no group of theirs."""

    attributes: dict[Id, AttributeText | bool | Whole | float | None] = Field({}, description="values of the run's user attributes; GET /v1/models lists them")
    profile: Annotated[str, StringConstraints(max_length=4000)] | None = Field(
        None, description="the user in words; without it, a text is made of the attributes by rule"
    )


class ItemIn(Strict):
    """A candidate with its content; the content is read only where the run does not know the item."""

    item_id: Id
    title: Text | None = None
    category: list[Text] = Field([], max_length=16, description="path, root to leaf")
    brand: Text | None = None
    price: float | None = Field(None, ge=0, allow_inf_nan=False)
    first_seen: Time | None = None


class ItemBody(Strict):
    """PUT /v1/items/{item_id}: all that is known of the item; what is left out is unknown."""

    title: Text | None = None
    category: list[Text] = Field([], max_length=16, description="path, root to leaf")
    brand: Text | None = None
    price: float | None = Field(None, ge=0, allow_inf_nan=False)
    first_seen: Time | None = Field(None, description="by default now")
    image: Base64Bytes | None = Field(None, description="a picture, base64; read where the run's item encoder looks at pictures")

    @model_validator(mode="after")
    def _something(self) -> "ItemBody":
        if not (any(text.strip() for text in (self.title or "", self.brand or "", *self.category)) or self.image):
            raise ValueError("nothing to encode: give a title, a category, a brand or an image")
        return self


class EventIn(Strict):
    """Something that a user did."""

    event_id: Id = Field(description="an event that is sent again counts once")
    user_id: Id
    item_id: Id
    kind: Id = Field(description="a kind of the run's logs, such as click or purchase; kinds that histories are not made of have no effect")
    ts: Time
    price: float | None = Field(None, ge=0, allow_inf_nan=False)


class UserEventIn(Strict):
    """Something that the user did."""

    event_id: Id
    item_id: Id
    kind: Id
    ts: Time
    price: float | None = Field(None, ge=0, allow_inf_nan=False)


class UserBody(Strict):
    """PUT /v1/users/{user_id}: attributes replace those told before; events are added."""

    attributes: dict[Id, AttributeText | bool | Whole | float | None] = Field({}, description="values of the run's user attributes; GET /v1/models lists them")
    profile: Annotated[str, StringConstraints(max_length=4000)] | None = Field(None, description="the user in words, instead of a profile made by rule")
    events: Annotated[list[UserEventIn], Field(fail_fast=True, max_length=MOST_EVENTS)] = []


class EventsBody(Strict):
    """POST /v1/events."""

    events: Annotated[list[EventIn], Field(fail_fast=True, min_length=1, max_length=MOST_EVENTS)]


class Told(BaseModel):
    """What was told is durable."""

    number: int = Field(description="of the entry in the application's log")
    replicas: int = Field(description="that are up")
    seen_by: int = Field(description="of them have taken it in; the others will")


class ItemTold(Told):
    """An item is ranked like one of the catalogue from now on."""

    item_id: str
    codes: list[int] = Field(description="its semantic codes, coarse to fine")


class UserTold(Told):
    """A user is ranked with what was told from now on."""

    user_id: str
    profile: str | None = Field(description="the text that led to the group")
    profile_by: Literal["request", "deterministic", "llm", "none"]
    group: list[int] = Field(description="codes; a user whom the run knows keeps the published ones")
    accepted: int = Field(0, description="of the events")
    told_before: int = Field(0, description="of the events, by their event_id")


class EventsTold(Told):
    """Events are in histories and counts of their users from now on."""

    accepted: int
    told_before: int


class RankRequest(Strict):
    """One user and their candidates."""

    user_id: Id
    item_ids: Annotated[list[Id], Field(fail_fast=True)] | None = Field(None, description="candidates by id; either these or `items`")
    items: Annotated[list[ItemIn], Field(fail_fast=True)] | None = Field(
        None, description="candidates with their content, for items that the run does not know"
    )
    ranker: Id | None = Field(None, description="base, choirrec, saviorrec or duet, as far as the run trained them; by default the application's choice")
    heads: list[Id] | None = Field(
        None, min_length=1, max_length=16, description="probabilities wanted, the one to sort by first; by default all of the ranker's"
    )
    now: Time | None = Field(None, description="the time of the request; by default the end of the run's logs, or just after the user's last event since")
    user: UserIn | None = None
    release: Id | None = Field(None, description="a release that is loaded, by key; by default the rollout decides")
    explain: bool = Field(False, description="tell how each score came to be: channels, gate, group path, what attention weighed most")

    @model_validator(mode="after")
    def _one_list_of_distinct_items(self) -> "RankRequest":
        if (self.item_ids is None) == (self.items is None):
            raise ValueError("give either item_ids (ids alone) or items (objects with item_id and content), and not both")
        ids = self.ids
        if not ids:
            raise ValueError("no candidates: give at least one item")
        if len(set(ids)) < len(ids):
            raise ValueError(f"{len(ids) - len(set(ids))} candidate(s) stand in the list more than once: send each item_id once")
        if self.heads is not None and len(set(self.heads)) < len(self.heads):
            raise ValueError("a head stands in the list more than once: name each once")
        return self

    @property
    def ids(self) -> list[str]:
        return self.item_ids if self.item_ids is not None else [item.item_id for item in self.items or ()]

    def question(self, ranker: str) -> Question:
        """The request as longtail.ranking takes it."""
        return Question(
            user_id=self.user_id,
            items=(
                tuple(map(StatedItem, self.item_ids))
                if self.item_ids is not None
                else tuple(StatedItem(i.item_id, i.title, tuple(i.category), i.brand, i.price, i.first_seen) for i in self.items or ())
            ),
            ranker=ranker,
            heads=tuple(self.heads) if self.heads is not None else None,
            now=self.now,
            user=StatedUser(self.user.attributes, self.user.profile) if self.user is not None else None,
            explain=self.explain,
            release=self.release,
        )


class BatchRequest(Strict):
    """Several requests, answered one by one."""

    requests: Annotated[list[RankRequest], Field(fail_fast=True)] = Field(min_length=1)


class UserOut(BaseModel):
    """How the user was taken."""

    user_id: str
    known: bool = Field(description="the run's logs have this user, or PUT /v1/users and POST /v1/events told of them")
    group: list[int] = Field(description="codes of the user's group, coarse to fine; empty: none, and everyone's features stand in")
    group_basis: GroupBasis = Field(
        description="published: from the run's snapshot | added: by PUT /v1/users | request: from what the request states | everyone: the root group"
    )
    group_path: list["GroupStepOut"] = Field([], description="with explain: the prefixes of the user's codes from the root on, and which of them lends")


class GroupStepOut(BaseModel):
    """One group on the user's path."""

    prefix: list[int]
    size: int = Field(description="members at the snapshot; 0: no such group there")
    lends: bool = Field(description="whose attributes, statistics and sequence a ranker with a group channel sees")


class AttendedOut(BaseModel):
    """An item that attention weighed much."""

    item_id: str
    weight: float = Field(description="share of the whole sequence's attention")
    days: float | None = Field(description="before the request; null in a group's sequence")


class ExplanationOut(BaseModel):
    """How one score came to be."""

    logits: dict[str, float] = Field(description="by head; the probability is their sigmoid")
    individual: dict[str, float] | None = Field(description="logits of the individual channel; null of a ranker without channels")
    group: dict[str, float] | None = Field(description="logits of the group channel")
    alpha_fusion: float | None = Field(description="share of the group channel: logits = (1 - share) x individual + share x group")
    attended: dict[Attention, list[AttendedOut]] = Field(
        description="history: of the user | group: of the group's sequence | semantic, behaviour: SaviorRec's attention across the two spaces"
    )


class ItemOut(BaseModel):
    """One candidate, scored."""

    item_id: str
    score: float = Field(description="probability under the first head; the list is sorted by it")
    scores: dict[str, float] = Field(description="probability under every head asked for")
    known: bool = Field(description="the run's catalogue has this item, or PUT /v1/items told of it")
    basis: ItemBasis = Field(
        description="catalogue: known | added: by PUT /v1/items | content: unknown, ranked by the content given | none: unknown, nothing but an id"
    )
    explanation: ExplanationOut | None = Field(None, description="with explain")


class RankResponse(BaseModel):
    """Candidates, best first."""

    ranker: str
    version: str = Field(description="key of the checkpoint that scored")
    release: str = Field(description="key of the release that it belongs to")
    run: str
    now: AwareDatetime
    user: UserOut
    heads: list[str]
    items: list[ItemOut]
    seconds: float = Field(description="time taken behind the HTTP server")


class BatchAnswer(BaseModel):
    """The answer to one request of several: either `answer` or `problem`."""

    status: int = Field(description="what the request alone would have got")
    answer: RankResponse | None = None
    problem: Problem | None = None


class BatchResponse(BaseModel):
    """Answers in the order of the requests."""

    answers: list[BatchAnswer]


class ModelOut(BaseModel):
    """One ranker that is serving."""

    name: str
    version: str = Field(description="key of its checkpoint")
    heads: list[str] = Field(description="what it predicts; outcome: the exposure's outcome | cvr: conversion given the outcome | conversion: both")
    default: bool
    release: str = Field(description="key of the release that it belongs to; the stable one's come first")
    trained: str = Field(description="when its training ended, UTC")
    commit: str


class ModelsResponse(BaseModel):
    """What is serving, and what it knows."""

    run: str
    release: str = Field(description="key of the stable release")
    source: str = Field(description="of the logs")
    exposure: str = Field(description="what the labels speak of")
    now: AwareDatetime = Field(description="end of the run's logs, the default time of a request")
    since: AwareDatetime = Field(description="earliest time of a request: the published features know what came until then")
    num_users: int
    num_items: int
    attributes: dict[str, list[str] | None] = Field(description="user attributes, with some of their values; null for a numeric one")
    max_items: int = Field(description="candidates in one request")
    max_batch: int = Field(description="requests in one batch, users in one call of /v2")
    max_body_bytes: int
    models: list[ModelOut]


class Health(BaseModel):
    """The application answers."""

    status: str
    run: str
    rankers: list[str]
