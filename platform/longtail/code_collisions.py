"""Collisions resolved: a place within its code tuple for every item, so that tuple and place name the item alone (TIGER and GRID append such a digit).

Places are stable: an item that keeps its tuple keeps its place, whoever comes; who comes takes the lowest place that is free. The places of items that are gone
stay empty as long as the assignment that is gone on from has them.
Reads codes and item ids in memory; pipelines.codes writes the table `resolved` of item_codes. No ranker reads it.
Letters: N items, S code stages.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int32]
Tuple = tuple[int, ...]


class NoPlaceError(ValueError):
    """More items have one tuple than there are places: the same settings meet it on the same items every time."""


@dataclass(frozen=True)
class Places:
    """An assignment: items, their tuples and their places."""

    item_ids: Sequence[str]
    codes_NS: Codes
    place_N: Codes


def resolve(
    codes_NS: Codes,
    item_ids: Sequence[str],
    *,
    num_places: int,
    previous: Places | None = None,
    content_N: NDArray[np.uint64] | None = None,
    section: str = "codes.item",
) -> Codes:
    """A place int32 [N], from 0, for every item within its tuple; the order in which items are given does not matter.

    Args:
        codes_NS: the items' tuples.
        item_ids: whose they are, each once.
        num_places: places within a tuple.
        previous: an earlier assignment to go on from.
        content_N: a number that items of equal content have in common: they share a place, unless `previous` tells them apart. Without it none do.
        section: of the config, for error messages.

    Raises:
        NoPlaceError: a tuple has more items than places.
        ValueError: an item comes twice.
    """
    if len(set(item_ids)) < len(item_ids):
        raise ValueError(f"{len(item_ids)} items, but only {len(set(item_ids))} different item_ids: a place belongs to one item. Pass each item once.")
    tuples = [tuple(row) for row in codes_NS.tolist()]
    owners: Sequence[Hashable] = list(item_ids) if content_N is None else content_N.tolist()
    held = {} if previous is None else _held(previous)
    place_N = np.full(len(tuples), -1, np.int32)
    members: dict[Tuple, list[int]] = {}
    for row in sorted(range(len(tuples)), key=item_ids.__getitem__):
        members.setdefault(tuples[row], []).append(row)
    for code, rows in members.items():
        before = held.get(code, {})
        place_N[rows] = _places([item_ids[row] for row in rows], [owners[row] for row in rows], before)
    _check(place_N, tuples, members, num_places, section, shared=content_N is not None)
    return place_N


def _held(previous: Places) -> dict[Tuple, dict[str, int]]:
    """Places by tuple and item."""
    held: dict[Tuple, dict[str, int]] = {}
    for code, item, place in zip(previous.codes_NS.tolist(), previous.item_ids, previous.place_N.tolist(), strict=True):
        held.setdefault(tuple(code), {})[item] = place
    return held


def _places(items: Sequence[str], owners: Sequence[Hashable], before: Mapping[str, int]) -> list[int]:
    """Places of one tuple's items, in their order; two items share a place only if they have one owner."""
    owner_of: dict[int, Hashable] = {}
    place_of: dict[Hashable, int] = {}
    kept: list[int | None] = []
    for item, owner in zip(items, owners, strict=True):
        place = before.get(item)
        if place is not None and owner_of.setdefault(place, owner) != owner:
            place = None  # shared until now, and by another owner's item first
        if place is not None:
            place_of[owner] = min(place, place_of.get(owner, place))
        kept.append(place)
    free = _free({*owner_of, *before.values()})
    for number, owner in enumerate(owners):
        if kept[number] is None:
            if owner not in place_of:
                place_of[owner] = next(free)
            kept[number] = place_of[owner]
    return [place for place in kept if place is not None]


def _free(taken: set[int]) -> Iterator[int]:
    """Places that nobody has, lowest first."""
    place = 0
    while True:
        if place not in taken:
            yield place
        place += 1


def _check(place_N: Codes, tuples: Sequence[Tuple], members: Mapping[Tuple, Sequence[int]], num_places: int, section: str, *, shared: bool) -> None:
    if not len(place_N) or place_N.max() < num_places:
        return
    fullest = tuples[int(place_N.argmax())]
    share = "" if shared else f", set {section}.equal_share_place if items of equal content may share one"
    raise NoPlaceError(
        f"{section}.num_places = {num_places}: tuple {list(fullest)} has {len(members[fullest])} items and needs {int(place_N.max()) + 1} places. "
        f"Raise {section}.num_places{share}, enlarge the codebook, or set num_places = 0 to go without places."
    )
