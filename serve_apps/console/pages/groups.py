"""Groups: the tree of user codes by how many of its members hardly act, each group's words, attributes and sequence, and the health of both codebooks."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Query, Request, Response
from starlette.exceptions import HTTPException

from longtail.code_use import CodeUse, code_use
from longtail.group_tree import GroupNode, Prefix, TellingWord, telling_words, word_counts
from longtail.table_rows import first_rows, has_table, rows_with
from serve_apps.console.context import Console

DRAWN = 400  # groups of the treemap; the smallest are left out
COLOUR_BAR = {
    **{"title": {"text": "share of low activity", "side": "top"}, "tickformat": ".0%", "outlinewidth": 0},
    **{"orientation": "h", "thickness": 8, "len": 0.6, "y": -0.01, "yanchor": "top"},
}
HOVER = "<b>%{label}</b><br>%{value} members<br>%{customdata[1]:.0%} of low activity<br>median %{customdata[2]:.0f} purchases<extra></extra>"
WORDS = 16
READ_PROFILES = 20_000  # of everyone, and of a group, whose words are counted
PAGE_ROWS = 40

Number = Annotated[int, Query(ge=0, le=10**7)]


def routes(console: Console) -> APIRouter:
    """GET groups, of all or of one."""
    router = APIRouter()

    @router.get("/groups")
    def groups(request: Request, group: Annotated[str | None, Query(max_length=200)] = None, page: Number = 0) -> Response:
        tree = console.group_tree
        if group is None:
            return console.page(request, "groups.html", **all_groups(console, tree))
        prefix = parsed(group)
        if prefix is None or prefix not in tree:
            raise HTTPException(404, f"No group {group}")
        return console.page(request, "group.html", **one_group(console, tree, prefix, page))

    return router


def parsed(text: str) -> Prefix | None:
    """Codes written as 3-1; the empty text is everyone."""
    parts = text.split("-") if text else []
    return tuple(int(part) for part in parts) if all(part.isdecimal() and len(part) < 8 for part in parts) else None


def all_groups(console: Console, tree: dict[Prefix, GroupNode]) -> dict[str, Any]:
    """The treemap, the groups with the largest share of quiet members, and the codebooks."""
    leaves = [node for node in tree.values() if len(node.prefix) == console.members.codes_RS.shape[1]]
    books = [("users", book(console, "user_codes"), "--choirrec"), ("items", book(console, "item_codes"), "--saviorrec")]
    return {
        "treemap": treemap(tree),
        "num_groups": len(tree),
        "num_leaves": len(leaves),
        "everyone": tree.get(()),
        "low_max": console.activity.low_max,
        "quiet": sorted((node for node in leaves if node.size >= console.config.groups.min_size), key=lambda node: (-node.low_share, -node.size))[:12],
        "books": {name: (use, use_figure(use, tone)) for name, use, tone in books if use is not None},
    }


def treemap(tree: dict[Prefix, GroupNode]) -> dict[str, Any]:
    """The tree as a figure: area by members, colour by the share of them that hardly act."""
    kept = {node.prefix for node in sorted(tree.values(), key=lambda node: (-node.size, node.prefix))[:DRAWN]}
    drawn = [node for node in tree.values() if node.prefix in kept and all(node.prefix[:depth] in kept for depth in range(len(node.prefix)))]
    name = "-".join
    return {
        "data": [
            {
                "type": "treemap",
                "branchvalues": "total",
                "ids": ["g" + name(map(str, node.prefix)) for node in drawn],
                "labels": [name(map(str, node.prefix)) or "everyone" for node in drawn],
                "parents": ["g" + name(map(str, node.prefix[:-1])) if node.prefix else "" for node in drawn],
                "values": [node.size for node in drawn],
                "customdata": [[name(map(str, node.prefix)), node.low_share, node.median_purchases] for node in drawn],
                "marker": {
                    "colors": [node.low_share for node in drawn],
                    "colorscale": [[0, "--high"], [0.5, "--middle"], [1, "--low"]],
                    "cmin": 0,
                    "cmax": 1,
                    "line": {"color": "--paper", "width": 2},
                    "pad": {"t": 24, "l": 4, "r": 4, "b": 4},
                    "colorbar": COLOUR_BAR,
                },
                "texttemplate": "<b>%{label}</b><br>%{value}",
                "hovertemplate": HOVER,
                "tiling": {"pad": 2},
                "pathbar": {"visible": False},
            }
        ],
        "layout": {"margin": {"l": 0, "r": 0, "t": 0, "b": 0}},
    }


def book(console: Console, stage: str) -> CodeUse | None:
    """The use of a codebook, None where the run has no such codes."""
    artifact = console.artifacts.get(stage)
    return None if artifact is None or not has_table(artifact, "codes") else code_use(artifact)


def use_figure(use: CodeUse, tone: str) -> dict[str, Any]:
    """How often each code is used, the most used first, stage by stage."""
    many = max(len(counts) for counts in use.counts_SK) > 24
    data = [
        {
            "type": "scatter" if many else "bar",
            "name": f"stage {stage}",
            "x": list(range(1, len(counts) + 1)),
            "y": sorted(counts, reverse=True),
            "opacity": 1 - 0.28 * (stage - 1),
            "hovertemplate": f"stage {stage}, code %{{x}} by use: %{{y}} rows<extra></extra>",
            **({"mode": "lines", "line": {"color": tone}} if many else {"marker": {"color": tone}}),
        }
        for stage, counts in enumerate(use.counts_SK, start=1)
    ]
    return {"data": data, "layout": {"barmode": "group", "xaxis": {"title": {"text": "codes by use"}}, "yaxis": {"title": {"text": "rows"}}}}


def one_group(console: Console, tree: dict[Prefix, GroupNode], prefix: Prefix, page: int) -> dict[str, Any]:
    """All that the page of a group shows."""
    members, activity = console.members, console.activity
    row = console.groups.rows.get(prefix)
    places = np.flatnonzero(members.within(prefix))
    ids = members.user_ids.take(pa.array(places))
    purchases = activity.of(ids)[0]
    order = np.argsort(purchases, kind="stable")
    shown = order[page * PAGE_ROWS : (page + 1) * PAGE_ROWS]
    sequence = list(zip(row.sequence, row.weights, strict=True)) if row is not None else []
    titles = console.titles([item for item, _ in sequence])
    codings = console.groups.codings
    return {
        "node": tree[prefix],
        "path": [(tree[prefix[:depth]], depth == len(prefix)) for depth in range(len(prefix) + 1)],
        "children": sorted((node for node in tree.values() if node.prefix[:-1] == prefix and node.prefix), key=lambda node: -node.size)[:60],
        "low_max": activity.low_max,
        "min_size": console.config.groups.min_size,
        "words": words_of(console, prefix, ids.to_pylist()),
        "attributes": [
            (coding.name, coding.label(code) if code else None, support)
            for coding, code, support in zip(codings, row.attributes if row else (), row.support if row else (), strict=False)
        ],
        "sequence": [(item, titles[item], weight) for item, weight in sequence],
        "heaviest": max((weight for _, weight in sequence), default=1.0),
        "members": [(ids[int(place)].as_py(), int(purchases[place]), tuple(members.codes_RS[places[place]].tolist())) for place in shown],
        "page": page,
        "last": max(len(places) - 1, 0) // PAGE_ROWS,
    }


def words_of(console: Console, prefix: Prefix, user_ids: Sequence[str]) -> list[TellingWord]:
    """The words that tell the group's profiles from everyone's; none of everyone, and none where there are no profiles."""
    profiles = console.artifacts.get("profiles")
    if not prefix or profiles is None or not has_table(profiles, "profiles"):
        return []
    everyone, total = _everyones_words(profiles)
    some = set(user_ids[:READ_PROFILES])
    texts = rows_with(profiles, "profiles", "user_id", list(some), ["text"]).column("text").to_pylist()
    counts = word_counts(texts)
    return telling_words(counts, len(texts), everyone + (counts - everyone), max(total, len(texts)), WORDS)


@lru_cache(maxsize=2)
def _everyones_words(profiles: Any) -> tuple[Counter[str], int]:
    """Words of the first profiles, and how many those are."""
    texts = first_rows(profiles, "profiles", None, ["text"], 0, READ_PROFILES).column("text").to_pylist()
    return word_counts(texts), len(texts)
