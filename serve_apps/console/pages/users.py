"""Users: one beside another by activity, and each with what is known, what is lent and how candidates are ranked for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, Query, Request, Response

from longtail.lent_view import last_events
from longtail.table_rows import by_key, first_rows, has_table, rows_with
from longtail.times import to_us
from serve_apps.console.context import Console

PAGE_ROWS = 40
CANDIDATES = 20
HISTORY = 40
NEWCOMER = "somebody-new"
PROFILE_COLUMNS = ("as_of", "facts", "raw_text", "identity", "interests", "philosophy", "outcome", "cut_lines")

Text = Annotated[str, Query(max_length=256)]
Number = Annotated[int, Query(ge=0, le=10**7)]
Order = Literal["quietest", "busiest"]


@dataclass(frozen=True)
class UserRow:
    """A user in the list."""

    user_id: str
    purchases: int
    events: int
    low: bool
    codes: tuple[int, ...]
    outcome: str | None  # of the profile


def routes(console: Console) -> APIRouter:
    """GET users, of everyone or of one."""
    router = APIRouter()

    @router.get("/users")
    def users(request: Request, user: Text | None = None, find: Text = "", order: Order = "quietest", page: Number = 0) -> Response:
        if user is not None and user.strip():
            return console.page(request, "user.html", **one_user(console, user.strip()))
        rows, total = user_list(console, find.strip(), order, page)
        if len(rows) == 1 and total == 1 and find.strip() == rows[0].user_id:
            return console.page(request, "user.html", **one_user(console, rows[0].user_id))
        shown: dict[str, Any] = {"rows": rows, "total": total, "page": page, "last": max(total - 1, 0) // PAGE_ROWS, "find": find, "order": order}
        return console.page(request, "users.html", **shown, picks=picks(console), low_max=console.activity.low_max, newcomer=NEWCOMER)

    return router


def user_list(console: Console, find: str, order: Order, page: int) -> tuple[list[UserRow], int]:
    """One page of the users whose id begins with `find`, and how many there are."""
    activity = console.activity
    places = np.flatnonzero(pc.starts_with(activity.user_ids, find).to_numpy(zero_copy_only=False)) if find else np.arange(len(activity.user_ids))
    places = places[::-1] if order == "busiest" else places
    shown = places[page * PAGE_ROWS : (page + 1) * PAGE_ROWS]
    ids = activity.user_ids.take(pa.array(shown)).to_pylist()
    codes, profiles = codes_of(console, ids), console.artifacts.get("profiles")
    outcomes = by_key(profiles, "profiles", "user_id", ids, ["outcome"]) if profiles is not None and has_table(profiles, "profiles") and ids else {}
    low = activity.is_low
    rows = [
        UserRow(
            user_id=user_id,
            purchases=int(activity.purchases_M[place]),
            events=int(activity.events_M[place]),
            low=bool(low[place]),
            codes=codes.get(user_id, ()),
            outcome=str(outcomes[user_id]["outcome"]) if user_id in outcomes else None,
        )
        for place, user_id in zip(shown, ids, strict=True)
    ]
    return rows, len(places)


def picks(console: Console) -> list[tuple[str, str]]:
    """Users to begin with, by what they are."""
    activity = console.activity
    if not len(activity.user_ids):
        return []
    quiet_with_events = np.flatnonzero(activity.events_M > 0)
    found = [("the quietest", 0), ("the busiest", len(activity.user_ids) - 1), ("in the middle", len(activity.user_ids) // 2)]
    found += [("the quietest who did anything", int(quiet_with_events[0]))] if len(quiet_with_events) and quiet_with_events[0] else []
    return [(title, activity.user_ids[place].as_py()) for title, place in found]


def codes_of(console: Console, user_ids: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Group codes of those who have any."""
    members = console.members
    place = pc.index_in(pa.array(user_ids, pa.string()), value_set=members.user_ids).to_pylist()
    return {user_id: tuple(members.codes_RS[at].tolist()) for user_id, at in zip(user_ids, place, strict=True) if at is not None}


def one_user(console: Console, user_id: str) -> dict[str, Any]:
    """All that the page of a user shows."""
    logs, info = console.logs, console.info
    facts = rows_with(logs, "users", "user_id", [user_id]).to_pylist()
    codes = codes_of(console, [user_id]).get(user_id, ())
    path = console.groups.path(codes)
    lender = next((row for _, row, lends in path if lends), None)
    events = last_events(logs, user_id, HISTORY).to_pylist()
    sequence = list(zip(lender.sequence, lender.weights, strict=True)) if lender is not None else []
    candidates, source = candidates_of(console, user_id, [item for item, _ in sequence])
    titles = console.titles(list(dict.fromkeys([*(event["item_id"] for event in events), *(item for item, _ in sequence), *candidates])))
    purchases, num_events = (int(counts[0]) for counts in console.activity.of(pa.array([user_id])))
    end = to_us(info.end)
    return {
        "user_id": user_id,
        "known": bool(facts),
        "purchases": purchases,
        "events": num_events,
        "low": bool(facts) and purchases <= console.activity.low_max,
        "low_max": console.activity.low_max,
        "profile": profile_of(console, user_id),
        "codes": codes,
        "path": path,
        "attributes": console.groups.attributes(codes, facts[0] if facts else {}),
        "history": [{**event, "title": titles[event["item_id"]], "days": (end - to_us(event["ts"])) / 86_400e6} for event in events],
        "sequence": [{"item_id": item, "title": titles[item], "weight": weight} for item, weight in sequence],
        "heaviest": max((weight for _, weight in sequence), default=1.0),
        "candidates_from": source,
        "ranking": {"user": user_id, "candidates": [{"id": item, "title": titles[item]} for item in candidates], "titles": titles},
    }


def profile_of(console: Console, user_id: str) -> Mapping[str, Any] | None:
    """The latest profile and the facts that it was made from."""
    profiles = console.artifacts.get("profiles")
    if profiles is None or not has_table(profiles, "profiles"):
        return None
    found = rows_with(profiles, "profiles", "user_id", [user_id], list(PROFILE_COLUMNS)).sort_by("as_of").to_pylist()
    return found[-1] if found else None


def candidates_of(console: Console, user_id: str, sequence: Sequence[str]) -> tuple[list[str], str]:
    """Items to rank for a user, and where they come from: the user's own test examples, else the group's sequence, filled up with any items."""
    logs = console.logs
    if has_table(logs, "examples"):
        mine = (pc.field("user_id") == user_id) & (pc.field("split") == "test")
        items = list(dict.fromkeys(first_rows(logs, "examples", mine, ["item_id"], 0, 4 * CANDIDATES).column("item_id").to_pylist()))
        if items:
            return items[:CANDIDATES], "examples of the test window"
    some = first_rows(logs, "items", None, ["item_id"], 0, CANDIDATES).column("item_id").to_pylist()
    return list(dict.fromkeys([*sequence, *some]))[:CANDIDATES], "the group's sequence and some items beside"
