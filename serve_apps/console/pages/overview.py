"""Overview: what is serving, what it was made from, and what else lies in the store."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from longtail.artifacts import Artifact
from longtail.evaluation import Metrics
from longtail.lineage import Drawing, drawing
from serve_apps.console.context import Console

REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"  # the report has its styles in itself, and no script


@dataclass(frozen=True)
class OtherRun:
    """An evaluation in the store, as the list of runs shows it."""

    artifact: Artifact
    name: str
    rankers: tuple[str, ...]
    gauc: Mapping[str, float | None]  # by ranker, all rows of its first head
    served: bool


def routes(console: Console) -> APIRouter:
    """GET / and what it links to."""
    router = APIRouter()

    @router.get("/")
    def overview(request: Request) -> Response:
        artifacts = list(console.artifacts.values())
        drawn = drawing(artifacts)
        evaluation = console.evaluation()
        served = None if evaluation is None else evaluation.key
        return console.page(
            request,
            "overview.html",
            drawn=picture(drawn),
            artifacts=[(artifact, key_facts(artifact)) for artifact in artifacts],
            logs=console.info,
            runs=[_run(artifact, artifact.key == served) for artifact in console.evaluations()],
            report=served,
            dashboard=console.dashboard,
        )

    @router.get("/report/{key}")
    def report(key: str) -> Response:
        artifact = console.store.find("evaluation", key) if key.isalnum() else None
        if artifact is None:
            raise HTTPException(404, "No such evaluation")
        with artifact.fs.open_input_stream(artifact.path("report.html")) as stream:
            return Response(stream.read(), media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": REPORT_POLICY})

    return router


def _run(artifact: Artifact, served: bool) -> OtherRun:
    settings = artifact.manifest["config"]
    metrics = Metrics.model_validate(artifact.read_json("metrics.json"))
    rankers = tuple(settings.get("rankers", ()))
    firsts = {name: next((head for head in metrics.heads if name in head.rankers), None) for name in rankers}
    scores = {name: None if head is None else head.slice("all").scores[name].gauc for name, head in firsts.items()}
    return OtherRun(artifact, str(settings.get("run", "")), rankers, scores, served)


BOX_WIDTH, BOX_HEIGHT, COLUMN_GAP, ROW_GAP = 118, 48, 26, 14


def picture(drawn: Drawing) -> dict[str, Any]:
    """Boxes and lines of the lineage in the units of an SVG."""
    top = min((node.row for node in drawn.nodes), default=0.0)
    at = [(node.column * (BOX_WIDTH + COLUMN_GAP), (node.row - top) * (BOX_HEIGHT + ROW_GAP)) for node in drawn.nodes]
    lines = []
    for edge in drawn.edges:
        x1, y1 = at[edge.source][0] + BOX_WIDTH, at[edge.source][1] + BOX_HEIGHT / 2
        x2, y2 = at[edge.target][0], at[edge.target][1] + BOX_HEIGHT / 2
        bend = min((x2 - x1) / 2, 60)
        lines.append({"d": f"M{x1:g} {y1:g}C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}", "source": edge.source, "target": edge.target})
    return {
        "boxes": [{"x": x, "y": y, "artifact": node.artifact} for node, (x, y) in zip(drawn.nodes, at, strict=True)],
        "lines": lines,
        "box": (BOX_WIDTH, BOX_HEIGHT),
        "width": max((x for x, _ in at), default=0) + BOX_WIDTH,
        "height": max((y for _, y in at), default=0) + BOX_HEIGHT,
    }


def key_facts(artifact: Artifact) -> list[tuple[str, str]]:
    """What an artifact's manifest says that a reader wants first, as names and values."""
    info = artifact.info
    facts: list[tuple[str, str]] = []
    if "quality" in info:
        quality = info["quality"]
        facts.append(("dead codes", ", ".join(map(str, quality["dead_codes"]))))
        facts.append(("perplexity", ", ".join(f"{value:.1f}" for value in quality["perplexity"])))
        facts.append(("collisions", f"{quality['collision_rate']:.0%}"))
    if "outcomes" in info:
        facts += [(outcome, f"{count:,}") for outcome, count in info["outcomes"].items()]
    if "num_groups" in info:
        facts.append(("groups", f"{info['num_groups']:,}"))
    if "hits" in info and info["hits"]["all"]["queries"]:
        hits = info["hits"]
        facts.append((f"Hit@{hits['k']}", f"{hits['all']['trained']:.1%}"))
        facts.append(("frozen", f"{hits['all']['frozen']:.1%}"))
    if "rows_by_split" in info:
        facts += [(split, f"{rows:,}") for split, rows in info["rows_by_split"].items()]
    if "spaces" in info:
        facts.append(("spaces", ", ".join(info["spaces"])))
    if "dim" in info:
        facts.append(("width", f"{info['dim']:,}"))
    return facts
