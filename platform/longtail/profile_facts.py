"""Facts: what a profile prompt says about one user at one time, computed from events strictly before it (ChoirRec, semantic group generation, step 1).

Reads the logs' users, items and events; `facts_table` gives one row of structured facts per user, `render` the lines that fit a token budget.

Letters: E events, G groups of (user, category), U users.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longtail.logs import LogsInfo
from longtail.profiles import ProfilesSettings
from longtail.ranks import rank_within
from longtail.schema import TIMESTAMP
from longtail.times import DAY_US
from longtail.token_count import CountTokens

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MAX_NAME_CHARS = 60
KIND_TITLES = {"purchase": "Purchases", "click": "Clicks", "cart": "Added to cart", "impression": "Seen"}
PRICE_LEVELS = ("lowest", "low", "middle", "high", "highest")
UNKNOWN = "unknown"
NOT_A_FACT = ("none", "not shown")  # bodies of sections without lines

_TITLE = re.compile(rf"(Attributes|(?:{'|'.join(KIND_TITLES.values())}) in \d+ days|Searches):")
_LINE = re.compile(rf"(.*) - (\d+) - ({'|'.join((*PRICE_LEVELS, UNKNOWN))})\)")

LINE = pa.struct(
    [
        pa.field("window", pa.int8()),  # place in profiles.windows_days
        pa.field("l1", pa.string()),
        pa.field("leaf", pa.string()),
        pa.field("count", pa.int32()),
        pa.field("price_power", pa.string()),  # one of PRICE_LEVELS, or unknown
        pa.field("recent", pa.bool_()),  # at least half of the good's count in the longest window lies in this one
    ]
)
FACTS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("as_of", TIMESTAMP, nullable=False),
        pa.field("attributes", pa.list_(pa.string()), nullable=False),  # "name: value"
        pa.field("lines", pa.list_(LINE), nullable=False),  # by window, highest counts first
        pa.field("searches", pa.list_(pa.string()), nullable=False),  # "date query", latest first
    ]
)


def plain(text: object) -> str:
    """A value as it stands in a prompt: one line, lower case where all of it is upper case, no chat markers, at most 60 characters."""
    words = " ".join(str(text).replace("<|", "<").replace("|>", ">").split())[:MAX_NAME_CHARS].strip()
    return words.lower() if words.isupper() else words


def label(attribute: str) -> str:
    """What a prompt calls an attribute."""
    return plain(attribute.replace("_", " "))


def is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def shown_value(value: object) -> str:
    """An attribute's value as a prompt shows it."""
    return UNKNOWN if is_missing(value) else f"{value:g}" if isinstance(value, float) else plain(value)


def category_names(path: Sequence[str] | None) -> tuple[str, str]:
    """First-level and leaf name of a category path; a path of one level is both."""
    names = [plain(part) for part in path or () if part is not None and plain(part)]
    return (names[0], names[-1]) if names else (UNKNOWN, UNKNOWN)


def price_percentile(leaf_E: Ints, price_E: Floats) -> Floats:
    """Mid-rank percentile in [0, 1] of each price among the prices of its leaf category; ties share theirs, a lone price is 0.5, NaN stays NaN."""
    percentile = np.full(len(price_E), np.nan)
    known = np.flatnonzero(~np.isnan(price_E))
    order = known[np.lexsort((price_E[known], leaf_E[known]))]
    if not len(order):
        return percentile
    leaf, price = leaf_E[order], price_E[order]
    place = np.arange(len(order))
    first_of_leaf = np.append(True, leaf[1:] != leaf[:-1])
    first_of_tie = first_of_leaf | np.append(True, price[1:] != price[:-1])
    leaf_start = place[first_of_leaf][np.cumsum(first_of_leaf) - 1]
    leaf_size = np.diff(np.append(place[first_of_leaf], len(order)))[np.cumsum(first_of_leaf) - 1]
    tie_number = np.cumsum(first_of_tie) - 1
    tie_start = place[first_of_tie]
    tie_end = np.append(tie_start[1:], len(order))
    middle = (tie_start + tie_end)[tie_number] / 2
    percentile[order] = (middle - leaf_start) / leaf_size
    return percentile


def price_level(mean_percentile: float) -> str:
    """A mean percentile in one of five steps, so that one purchase by one user leaves (nearly) all other prompts as they were."""
    if np.isnan(mean_percentile):
        return UNKNOWN
    return PRICE_LEVELS[min(int(mean_percentile * len(PRICE_LEVELS)), len(PRICE_LEVELS) - 1)]


def facts_table(
    users: pa.Table, items: pa.Table, events: pa.Table, info: LogsInfo, settings: ProfilesSettings, as_of: datetime
) -> tuple[pa.Table, dict[str, int]]:
    """Facts (schema FACTS, by user_id) of every user with an event before `as_of` or a known attribute, and the users left out by reason.

    Counts are of events of the source's strongest behaviour kind; events at or after `as_of` have no effect.
    """
    until = int(pc.cast(pa.scalar(as_of, TIMESTAMP), pa.int64()).as_py())
    users = users.take(pc.sort_indices(users.column("user_id")))
    user_ids = users.column("user_id").combine_chunks()
    events = events.filter(pc.less(pc.cast(events.column("ts"), pa.int64()), until))
    lines = _window_lines(user_ids, items, events, info.behaviour_kinds[-1], settings, until)
    searches = _searches(user_ids, events, settings.max_searches)
    attributes, any_known = _attributes(users, (*info.categorical_attributes, *info.numeric_attributes))
    seen = pc.is_in(user_ids, value_set=pc.unique(events.column("user_id")).cast(pa.string())).to_numpy(zero_copy_only=False)
    keep = np.flatnonzero(seen | any_known)
    table = pa.Table.from_arrays(
        [
            user_ids.take(pa.array(keep)),
            pa.array([until] * len(keep), pa.int64()).cast(TIMESTAMP),
            pa.array([attributes[row] for row in keep], FACTS.field("attributes").type),
            lines.take(pa.array(keep)),
            pa.array([searches.get(int(row), []) for row in keep], FACTS.field("searches").type),
        ],
        schema=FACTS,
    )
    return table, {"not_seen_before_as_of": len(user_ids) - len(keep)}


def _window_lines(user_ids: pa.Array, items: pa.Table, events: pa.Table, kind: str, settings: ProfilesSettings, until: int) -> pa.ListArray:
    """Per user the lines of all windows, as list<LINE>."""
    item_ids = items.column("item_id").combine_chunks()
    paths = items.column("category").to_pylist() if "category" in items.column_names else [None] * len(items)
    pair_names, pair_of_item = _numbered([category_names(path) for path in paths])
    l1_names, l1_of_pair = _numbered([names[0] for names in pair_names])
    events = events.filter(pc.equal(events.column("kind"), kind))
    user_E = _index(events.column("user_id"), user_ids)
    item_E = _index(events.column("item_id"), item_ids)
    known = (user_E >= 0) & (item_E >= 0)
    user_E, item_E = user_E[known], item_E[known]
    age_E = until - pc.cast(events.column("ts"), pa.int64()).to_numpy()[known]
    pair_E = pair_of_item[item_E] if len(pair_of_item) else np.zeros(0, np.int64)
    percentile_E = price_percentile(pair_E, _paid(events, items, item_E, known))
    columns: list[tuple[Ints, Ints, Ints, Ints, Floats]] = []
    for window, days in enumerate(settings.windows_days):
        inside = age_E <= days * DAY_US
        columns.append(_top_lines(window, user_E[inside], pair_E[inside], percentile_E[inside], l1_of_pair, settings.max_l1, settings.max_leaves))
    user, window_number, pair, count = (np.concatenate([column[part] for column in columns]) for part in range(4))
    mean = np.concatenate([column[4] for column in columns])
    order = np.lexsort((pair, -count, window_number, user))
    user, pair = user[order], pair[order]
    # Counted over everything, and not over the lines that were kept: a staple whose yearly line is cut is not a recent good.
    in_longest = age_E <= max(settings.windows_days) * DAY_US
    num_pairs = max(len(pair_names), 1)
    keys, total = np.unique(user_E[in_longest] * num_pairs + pair_E[in_longest], return_counts=True)
    recent = total[np.searchsorted(keys, user * num_pairs + pair)] <= 2 * count[order] if len(keys) else np.zeros(0, np.bool_)
    structs = pa.StructArray.from_arrays(
        [
            pa.array(window_number[order].astype(np.int8)),
            pa.array(l1_names, pa.string()).take(pa.array(l1_of_pair[pair] if len(pair) else pair)),
            pa.array([names[1] for names in pair_names], pa.string()).take(pa.array(pair)),
            pa.array(count[order].astype(np.int32)),
            pa.array([price_level(value) for value in mean[order]], pa.string()),
            pa.array(recent),
        ],
        fields=list(LINE),
    )
    offsets = np.searchsorted(user, np.arange(len(user_ids) + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), structs)


def _top_lines(
    window: int, user_E: Ints, pair_E: Ints, percentile_E: Floats, l1_of_pair: Ints, max_l1: int, max_leaves: int
) -> tuple[Ints, Ints, Ints, Ints, Floats]:
    """(user, window, pair, count, mean percentile), for each user's `max_l1` most frequent first levels and in each the `max_leaves` most frequent leaves."""
    num_pairs = max(len(l1_of_pair), 1)
    keys_G, group_E, count_G = np.unique(user_E * num_pairs + pair_E, return_inverse=True, return_counts=True)
    user_G, pair_G = keys_G // num_pairs, keys_G % num_pairs
    priced = ~np.isnan(percentile_E)
    num_priced = np.bincount(group_E[priced], minlength=len(keys_G))
    total = np.bincount(group_E[priced], weights=percentile_E[priced], minlength=len(keys_G))
    mean_G = np.where(num_priced > 0, total / np.maximum(num_priced, 1), np.nan)
    l1_G = l1_of_pair[pair_G] if len(pair_G) else pair_G
    leaf_rank = rank_within(user_G * num_pairs + l1_G, -count_G, pair_G)
    l1_keys, l1_number = np.unique(user_G * num_pairs + l1_G, return_inverse=True)
    l1_count = np.bincount(l1_number, weights=count_G, minlength=len(l1_keys)).astype(np.int64)
    l1_rank = rank_within(l1_keys // num_pairs, -l1_count, l1_keys)
    keep = (leaf_rank < max_leaves) & (l1_rank[l1_number] < max_l1) if len(keys_G) else np.zeros(0, np.bool_)
    return user_G[keep], np.full(int(keep.sum()), window), pair_G[keep], count_G[keep].astype(np.int64), mean_G[keep]


def _paid(events: pa.Table, items: pa.Table, item_E: Ints, known: npt.NDArray[np.bool_]) -> Floats:
    """The price of each known event, the item's own where the event has none, NaN where neither is known."""
    listed = pc.cast(items.column("price"), pa.float64()).to_numpy() if "price" in items.column_names else np.full(len(items), np.nan)
    price: Floats = listed[item_E].astype(np.float64) if len(items) else np.zeros(0)
    if "price" in events.column_names:
        paid = pc.cast(events.column("price"), pa.float64()).to_numpy()[known]
        price = np.where(np.isnan(paid), price, paid)
    return price


def _searches(user_ids: pa.Array, events: pa.Table, limit: int) -> dict[int, list[str]]:
    """By user row, the latest `limit` searches as "date query", latest first."""
    found: dict[int, list[str]] = {}
    if limit == 0 or "query" not in events.column_names:
        return found
    searches = events.filter(pc.and_(pc.equal(events.column("kind"), "search"), pc.is_valid(events.column("query"))))
    times = pc.cast(searches.column("ts"), pa.int64()).to_numpy()
    rows = _index(searches.column("user_id"), user_ids)
    dates = pc.strftime(searches.column("ts"), "%Y-%m-%d").to_pylist()
    queries = searches.column("query").to_pylist()
    for place in np.lexsort((np.arange(len(times)), -times, rows)):
        own = found.setdefault(int(rows[place]), [])
        if len(own) < limit:
            own.append(f"{dates[place]} {plain(queries[place])}")
    return found


def _attributes(users: pa.Table, names: Sequence[str]) -> tuple[list[list[str]], npt.NDArray[np.bool_]]:
    """Per user "name: value" in the declared order, and whether any value is known."""
    rows: list[list[str]] = [[] for _ in range(len(users))]
    any_known = np.zeros(len(users), np.bool_)
    for name in names:
        own = label(name)
        for row, value in enumerate(users.column(name).to_pylist()):
            any_known[row] |= not is_missing(value)
            rows[row].append(f"{own}: {shown_value(value)}")
    return rows, any_known


def _numbered(values: Sequence[Any]) -> tuple[list[Any], Ints]:
    """Distinct values in sorted order, and each value's place among them."""
    distinct = sorted(set(values))
    place = {value: number for number, value in enumerate(distinct)}
    return distinct, np.array([place[value] for value in values], np.int64)


def _index(values: pa.ChunkedArray, among: pa.Array) -> Ints:
    """Place of each value in `among`, -1 where it is not there."""
    found = pc.fill_null(pc.index_in(values.cast(among.type), value_set=among), -1)
    places: Ints = found.to_numpy().astype(np.int64)
    return places


def stable_goods(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The lines of a row's longest window that has any, highest counts first."""
    longest = max((line["window"] for line in facts["lines"]), default=0)
    return sorted((line for line in facts["lines"] if line["window"] == longest), key=lambda line: -line["count"])


def recent_goods(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The lines of a row's shortest window that has any, of goods that are rare in the longest one: at least half of their count is recent."""
    windows = {line["window"] for line in facts["lines"]}
    return [line for line in facts["lines"] if line["window"] == min(windows) and line["recent"]] if len(windows) > 1 else []


@dataclass(frozen=True)
class Rendered:
    """The user's part of a prompt, how many lines did not fit, and the facts that it shows (attributes, lines, searches as in FACTS)."""

    text: str
    cut_lines: int
    shown: Mapping[str, list[Any]]


def render(rows: Sequence[Mapping[str, Any]], kind: str, settings: ProfilesSettings, count_tokens: CountTokens) -> list[Rendered]:
    """The facts of each row (FACTS) as text of at most profiles.max_fact_tokens tokens.

    Attributes come first; then the sections give one line each in turn, longest window first, until nothing more fits: the highest counts of
    every window stay. `count_tokens` counts the tokens of texts; lines are counted one by one and the whole once more.
    """
    sections = [_sections(row, kind, settings.windows_days) for row in rows]
    distinct = sorted({line for own in sections for _, lines in own for line in lines})
    cost = dict(zip(distinct, count_tokens([line + "\n" for line in distinct]), strict=True))
    kept = [_select(own, cost, settings.max_fact_tokens, count_tokens) for own in sections]
    return [_fitted(row, own, counts, settings.max_fact_tokens, count_tokens) for row, own, counts in zip(rows, sections, kept, strict=True)]


def _sections(row: Mapping[str, Any], kind: str, windows_days: Sequence[int]) -> list[tuple[str, list[str]]]:
    noun = KIND_TITLES[kind]
    sections = [("Attributes", list(row["attributes"]))]
    for window, days in enumerate(windows_days):
        lines = [f"{line['l1']} ({line['leaf']} - {line['count']} - {line['price_power']})" for line in row["lines"] if line["window"] == window]
        sections.append((f"{noun} in {days} days", lines))
    return [*sections, ("Searches", list(row["searches"]))]


def _select(sections: Sequence[tuple[str, list[str]]], cost: Mapping[str, int], budget: int, count_tokens: CountTokens) -> list[int]:
    """How many lines of each section stay."""
    kept = [0] * len(sections)
    left = budget - count_tokens([_text(sections, kept)])[0]
    for line in sections[0][1]:
        if cost[line] > left:
            break
        kept[0] += 1
        left -= cost[line]
    turn = [*reversed(range(1, len(sections) - 1)), len(sections) - 1]  # windows from the longest to the shortest, then searches
    while turn:
        for section in list(turn):
            lines = sections[section][1]
            if kept[section] == len(lines) or cost[lines[kept[section]]] > left:
                turn.remove(section)  # a line that does not fit ends its section, so that what is cut never has a higher count than what stays
                continue
            left -= cost[lines[kept[section]]]
            kept[section] += 1
    return kept


def _fitted(row: Mapping[str, Any], sections: Sequence[tuple[str, list[str]]], kept: list[int], budget: int, count_tokens: CountTokens) -> Rendered:
    """The text; where the whole has more tokens than its lines had one by one, the longest section gives up lines.

    Raises:
        ValueError: the section titles alone do not fit.
    """
    while count_tokens([_text(sections, kept)])[0] > budget:
        longest = max(range(len(kept)), key=lambda section: kept[section])
        if kept[longest] == 0:
            raise ValueError(f"profiles.max_fact_tokens = {budget} does not even hold the section titles. Raise it to 64 or more.")
        kept[longest] -= 1
    lines = [line for window, number in enumerate(kept[1:-1]) for line in [own for own in row["lines"] if own["window"] == window][:number]]
    shown = {"attributes": list(row["attributes"][: kept[0]]), "lines": lines, "searches": list(row["searches"][: kept[-1]])}
    return Rendered(_text(sections, kept), sum(len(own) for _, own in sections) - sum(kept), shown)


def _text(sections: Sequence[tuple[str, list[str]]], kept: Sequence[int]) -> str:
    parts = []
    for (title, lines), number in zip(sections, kept, strict=True):
        body = lines[:number] or [NOT_A_FACT[bool(lines)]]
        parts.append("\n".join([f"{title}:", *body]))
    return "\n".join(parts)


def line_heads(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """How lines begin, by the (first-level, leaf) names of every category of a run: where one name ends, whatever brackets the names have."""
    return {f"{l1} ({leaf}": (l1, leaf) for l1, leaf in (*pairs, (UNKNOWN, UNKNOWN))}


def read_back(text: str, heads: Mapping[str, tuple[str, str]]) -> dict[str, list[Any]]:
    """The facts that a text of `render` shows: attributes, lines (all of LINE but `recent`, which no prompt shows) and searches, as in FACTS."""
    facts: dict[str, list[Any]] = {"attributes": [], "lines": [], "searches": []}
    window = -1
    section = "attributes"
    for line in text.splitlines():
        title = None if section == "searches" else _TITLE.fullmatch(line)
        if title is not None:
            section = {"Attributes": "attributes", "Searches": "searches"}.get(title[1], "lines")
            window += section == "lines"
        elif line in NOT_A_FACT:
            continue
        elif section == "lines":
            parts = _LINE.fullmatch(line)
            assert parts is not None, f"not a line of facts: {line!r}"
            l1, leaf = heads[parts[1]]
            facts["lines"].append({"window": window, "l1": l1, "leaf": leaf, "count": int(parts[2]), "price_power": parts[3]})
        else:
            facts[section].append(line)
    return facts
