"""PUT /v1/items/{item_id}, PUT /v1/users/{user_id}, POST /v1/events: what came since the logs ended, ranked from the next request on."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from PIL import Image

from longtail.images import open_image
from longtail.online.entries import EventEntry
from longtail.questions import StatedItem
from longtail.times import to_us
from serve_apps.problems import RequestProblemError
from serve_apps.rank_routes import PROBLEMS, check_attributes
from serve_apps.schemas import EventIn, EventsBody, EventsTold, ItemBody, ItemTold, UserBody, UserEventIn, UserTold
from serve_apps.service_info import GetInfo, ServiceInfo
from serve_apps.teller import Teller, stated_user

ItemId = Annotated[str, Path(min_length=1, max_length=256)]


def told_routes(info: GetInfo, teller: Teller, require: Callable[..., Any]) -> APIRouter:
    """The routes that tell; `require` says who may."""
    routes = APIRouter(tags=["day one"], dependencies=[Depends(require)])

    @routes.put("/v1/items/{item_id:path}", responses=PROBLEMS, summary="Tell of an item, or what is new of one")
    async def put_item(item_id: ItemId, body: ItemBody) -> ItemTold:
        if body.image is not None:
            await asyncio.to_thread(_check_picture, body.image)
        item = StatedItem(item_id, body.title, tuple(body.category), body.brand, body.price, body.first_seen, body.image)
        return ItemTold(item_id=item_id, **await teller.put_item(item))

    @routes.put("/v1/users/{user_id:path}", responses=PROBLEMS, summary="Tell of a user: attributes, and what they did")
    async def put_user(user_id: ItemId, body: UserBody) -> UserTold:
        now = info()
        check_attributes(body.attributes, now)
        events = [_entry(event, user_id, now) for event in body.events]
        if not (body.attributes or body.profile or events):
            raise RequestProblemError(422, "nothing-told", "Nothing is told", "the user has no attribute, profile or event.", "Send at least one.")
        told: dict[str, Any] = await teller.put_user(user_id, stated_user(body.attributes, body.profile, events), events)
        return UserTold(user_id=user_id, **told)

    @routes.post("/v1/events", responses=PROBLEMS, summary="Tell what users did")
    async def post_events(body: EventsBody) -> EventsTold:
        now = info()
        return EventsTold(**await teller.add_events([_entry(event, event.user_id, now) for event in body.events]))

    return routes


def _check_picture(image: bytes) -> None:
    """Decode a picture.

    Raises:
        RequestProblemError: it is none, or one that is too large or too long.
    """
    try:
        open_image(image, None)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        said = str(error) if isinstance(error, ValueError) else "the bytes are no picture that can be read"
        raise RequestProblemError(422, "no-picture", "The picture cannot be read", f"image: {said}.", "Send a PNG, JPEG or WebP as base64.") from error


def _entry(event: EventIn | UserEventIn, user_id: str, info: ServiceInfo) -> EventEntry:
    """The event as the log has it.

    Raises:
        RequestProblemError: it lies before the logs' end, and is in them or has been missed; or in the future.
    """
    latest = max(datetime.now(UTC), info.knowledge.now) + timedelta(days=1)
    if event.ts > latest:
        detail = f"event {event.event_id!r} is of {event.ts.isoformat()}, after {latest.isoformat(timespec='seconds')}."
        raise RequestProblemError(422, "event-too-late", "The event is of the future", detail, "Send the time at which it happened: it sets the user's clock.")
    if event.ts < info.knowledge.now:
        detail = f"event {event.event_id!r} is of {event.ts.isoformat()}, and the logs of the serving release go on until {info.knowledge.now.isoformat()}."
        raise RequestProblemError(422, "event-too-early", "The event is too early", detail, "Send what came after that; earlier events come in by the logs.")
    return EventEntry(event_id=event.event_id, user_id=user_id, item_id=event.item_id, event=event.kind, ts_us=to_us(event.ts), price=event.price)
