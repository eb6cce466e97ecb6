"""Items: each with its codes, its neighbours before and after behaviour taught the encoder, and what alignment moves; and an item that is not there yet."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from longtail.alignment_drift import AlignmentDrift, load_alignment_drift
from longtail.packaged_models import cache_dir
from longtail.questions import StatedItem
from longtail.table_rows import by_key, contains, first_rows, has_table, rows_with, starts_with, table
from longtail.vector_search import VectorIndex, load_vector_index
from serve_apps.console.context import Console, NothingToShowError
from serve_apps.problems import RequestProblemError

PAGE_ROWS = 40
NEIGHBOURS = 10
CANDIDATES = 40  # among which a new item is ranked
FACTS = ("title", "category", "brand", "price", "first_seen")
SPACES = {"before": ("item_vectors", "vectors"), "after": ("item_z", "z")}

Text = Annotated[str, Query(max_length=1000)]
Id = Annotated[str, Query(max_length=256)]
Number = Annotated[int, Query(ge=0, le=10**6)]
Price = Annotated[float | None, Query(ge=0, le=1e9, allow_inf_nan=False)]


def routes(console: Console) -> APIRouter:
    """GET items, of all, of one and of one that is not there yet."""
    router = APIRouter()

    @router.get("/items")
    def items(request: Request, item: Id | None = None, find: Text = "", page: Number = 0) -> Response:
        if item:
            return console.page(request, "item.html", **one_item(console, item))
        found = item_list(console, find.strip(), page)
        return console.page(request, "items.html", find=find, page=page, rows=found[:PAGE_ROWS], more=len(found) > PAGE_ROWS, drift=drift_figure(console))

    @router.get("/items/new")
    def new(request: Request) -> Response:
        users = console.activity.user_ids
        user = users[len(users) // 2].as_py() if len(users) else ""
        roots = first_rows(console.logs, "items", None, ["category", "brand"], 0, 2000)
        known = {name: sorted({value for value in values if value})[:200] for name, values in _suggestions(roots).items()}
        return console.page(request, "new_item.html", user=user, known=known)

    @router.get("/items/try")
    async def tried(title: Text = "", category: Text = "", brand: Text = "", price: Price = None) -> Response:
        path = tuple(part.strip() for part in category.split(">") if part.strip())
        item = StatedItem("an item that is not there yet", title.strip() or None, path, brand.strip() or None, price)
        if not item.described:
            detail = "title, category and brand are all empty, and codes are made of them."
            raise RequestProblemError(422, "nothing-to-encode", "Nothing to encode", detail, "Give the item a title.")
        if console.place_items is None:
            raise RequestProblemError(503, "no-encoder", "No text encoder", "the console has no encoder to ask.", "Serve the run with serve_apps.up.")
        placed = await console.place_items([item])
        return JSONResponse(await asyncio.to_thread(_told, console, placed.codes_NS[0].tolist(), placed.text_NT[0], placed.z_ND[0]))

    return router


def item_list(console: Console, find: str, page: int) -> list[Mapping[str, Any]]:
    """One page of the items whose id is `find`, or whose title has its words; one more where there are more."""
    exact = rows_with(console.logs, "items", "item_id", [find], ["item_id", *FACTS]).to_pylist() if find and page == 0 else []
    wanted = (contains("title", find) | starts_with("item_id", find)) if find else None
    rows = first_rows(console.logs, "items", wanted, ["item_id", *FACTS], page * PAGE_ROWS, PAGE_ROWS + 1).to_pylist()
    found = list({row["item_id"]: row for row in [*exact, *rows]}.values())
    codes = _codes(console, [row["item_id"] for row in found])
    return [{**dict.fromkeys(FACTS), **row, "codes": codes.get(row["item_id"], ())} for row in found]


def one_item(console: Console, item_id: str) -> dict[str, Any]:
    """All that the page of an item shows.

    Raises:
        NothingToShowError: the run does not have it.
    """
    found = by_key(console.logs, "items", "item_id", [item_id], FACTS).get(item_id)
    if found is None:
        raise NothingToShowError(f"No item {item_id}", "This run's logs do not have it. An item that is not there yet can be tried all the same.")
    codes, drift = _codes(console, [item_id]).get(item_id, ()), alignment(console)
    vectors = {space: None if (index := index_of(console, space)) is None else index.vector(item_id) for space in SPACES}
    near = _near(console, vectors, item_id)
    return {
        "item": {**dict.fromkeys(FACTS), **found},
        "events": events_of(console, item_id),
        "codes": codes,
        "sharing": _sharing(console, codes),
        "near": near,
        "stayed": len({one["item_id"] for one in near["before"]} & {one["item_id"] for one in near["after"]}),
        "drift": drift.by_code(codes) if drift is not None and codes else [],
        "drift_norm": float(np.linalg.norm(drift.of(codes))) if drift is not None and codes else None,
    }


def events_of(console: Console, item_id: str) -> dict[str, int]:
    """How many events of each kind an item has in the logs."""
    events = rows_with(console.logs, "events", "item_id", [item_id], ["kind"])
    return {row["values"]: row["counts"] for row in pc.value_counts(events.column("kind")).to_pylist()}


def warm(console: Console) -> None:
    """Lay out both spaces."""
    for space in SPACES:
        index_of(console, space)


def alignment(console: Console) -> AlignmentDrift | None:
    """What SaviorRec's alignment learnt, or Duet's; None where neither is served, or its alignment is off."""
    for name in ("saviorrec", "duet"):
        artifact = console.artifacts.get(name)
        if artifact is not None:
            return load_alignment_drift(artifact.local_path("checkpoint", cache_dir() / "artifacts"))
    return None


def drift_figure(console: Console) -> dict[str, Any] | None:
    """How far each code moves its items, the farthest first, stage by stage."""
    drift = alignment(console)
    if drift is None:
        return None
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"stage {stage}",
            "x": list(range(1, len(norms_K) + 1)),
            "y": np.sort(norms_K)[::-1].round(5).tolist(),
            "line": {"color": tone, "width": 2},
            "marker": {"size": 5},
            "hovertemplate": f"stage {stage}, place %{{x}}: moved by %{{y:.3f}}<extra></extra>",
        }
        for stage, (norms_K, tone) in enumerate(zip(drift.norms(), ["--saviorrec", "--duet", "--other", "--base"] * 2, strict=False), start=1)
    ]
    return {
        "data": data,
        "layout": {"xaxis": {"title": {"text": "codes, the farthest moved first"}}, "yaxis": {"title": {"text": "length of A(code)"}, "rangemode": "tozero"}},
    }


def _told(console: Console, codes: Sequence[int], text_T: npt.NDArray[np.float32], z_D: npt.NDArray[np.float32]) -> dict[str, Any]:
    """A new item's place among the others, and candidates beside which it may be ranked."""
    near = _near(console, {"before": text_T, "after": z_D}, "")
    some = first_rows(console.logs, "items", None, ["item_id", "title"], 0, CANDIDATES).to_pylist()
    beside = {one["item_id"]: one["title"] for one in [*near["after"], *some]}
    drift = alignment(console)
    return {
        "codes": list(codes),
        "sharing": _sharing(console, codes),
        "near": near,
        "drift": None if drift is None else float(np.linalg.norm(drift.of(codes))),
        "candidates": [{"id": item_id, "title": title} for item_id, title in list(beside.items())[:CANDIDATES]],
    }


def _near(console: Console, spaces: Mapping[str, npt.NDArray[np.float32] | None], without: str) -> dict[str, list[dict[str, Any]]]:
    """By space the items nearest to a vector, with titles and codes; none where the run has no such vectors."""
    indexes = {space: index_of(console, space) for space in spaces}
    found = {
        space: [] if vector_D is None or (index := indexes[space]) is None else index.nearest(vector_D, NEIGHBOURS, without)
        for space, vector_D in spaces.items()
    }
    ids = list({item_id: None for near in found.values() for item_id, _ in near})
    titles, codes = console.titles(ids), _codes(console, ids)
    return {
        space: [{"item_id": item_id, "title": titles[item_id], "cosine": cosine, "codes": list(codes.get(item_id, ()))} for item_id, cosine in near]
        for space, near in found.items()
    }


def index_of(console: Console, space: str) -> VectorIndex | None:
    """The vectors of a space; None where the run has none."""
    stage, name = SPACES[space]
    artifact = console.artifacts.get(stage)
    return load_vector_index(artifact, name, console.scratch) if artifact is not None and has_table(artifact, name) else None


def _codes(console: Console, item_ids: Sequence[str]) -> dict[str, tuple[int, ...]]:
    artifact = console.artifacts.get("item_codes")
    if artifact is None or not has_table(artifact, "codes") or not item_ids:
        return {}
    return {item_id: tuple(row["codes"]) for item_id, row in by_key(artifact, "codes", "item_id", item_ids, ["codes"]).items()}  # type: ignore[arg-type]


def _sharing(console: Console, codes: Sequence[int]) -> list[int]:
    """How many items share the first code, the first two, …"""
    artifact = console.artifacts.get("item_codes")
    if artifact is None or not has_table(artifact, "codes") or not codes:
        return []
    counts = np.zeros(len(codes), np.int64)
    for batch in table(artifact, "codes").to_batches(columns=["codes"]):
        codes_BS = batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, len(codes))
        counts += np.logical_and.accumulate(codes_BS == np.array(codes), axis=1).sum(axis=0)
    return counts.tolist()


def _suggestions(rows: Any) -> dict[str, list[str]]:
    """Categories and brands to choose from."""
    columns = rows.column_names
    paths = rows.column("category").to_pylist() if "category" in columns else []
    brands = rows.column("brand").to_pylist() if "brand" in columns else []
    return {"categories": [" > ".join(path) for path in paths if path], "brands": brands}
