"""Quality: what an evaluation found, by slice, by activity and by how known an item is; one run against another; and the ablations of a study."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from longtail.artifacts import Artifact
from longtail.evaluation import HeadMetrics, Metrics, SliceMetrics
from longtail.paired import Interval
from longtail.report import OWN_SLICE
from longtail.report_plots import name as ranker_name
from longtail.run_comparison import Compared, compare, same_logs
from longtail.study_results import StudyResults
from serve_apps.console.context import Console, NothingToShowError

logger = logging.getLogger(__name__)

Key = Annotated[str | None, Query(max_length=64, pattern="^[0-9a-z]*$")]
Name = Annotated[str | None, Query(max_length=100)]
CHECKOUT = Path(__file__).resolve().parents[3]
EVALUATE = "python -m pipelines.evaluate --config …"

Metric = Literal["gauc", "auc"]


def routes(console: Console) -> APIRouter:
    """GET quality."""
    router = APIRouter()

    @router.get("/quality")
    def quality(request: Request, run: Key = None, against: Key = None, head: Name = None, metric: Metric = "gauc", study: Name = None) -> Response:
        evaluations = {artifact.key: artifact for artifact in console.evaluations()}
        served = console.evaluation()
        chosen = evaluations.get(run or "") or served or next(iter(evaluations.values()), None)
        studies = studies_of(console)
        if chosen is None and not studies:
            raise NothingToShowError(
                "Quality", "The store holds no evaluation: nothing was measured on a test window yet.", "python -m pipelines.evaluate --config …"
            )
        shown: dict[str, Any] = {"evaluations": list(evaluations.values()), "chosen": chosen, "against": None, "metric": metric, "metrics": None}
        if chosen is not None:
            metrics = _metrics(chosen)
            at = next((one for one in metrics.heads if one.head == head), metrics.heads[0])
            other = evaluations.get(against or "")
            shown |= {
                "metrics": metrics,
                "head": at,
                "cards": [(name, at.slice(OWN_SLICE.get(name, "all"))) for name in beside_base(at, metrics)],
                "charts": charts(at, metrics, metric),
                "against": other,
                "comparisons": comparisons(console, chosen, other, at, metrics) if other is not None else [],
                "comparable": other is None or same_logs(chosen, other),
                "other": _metrics(other) if other is not None else None,
            }
        chosen_study = next((one for one in studies if one[0] == study), studies[0] if studies else None)
        table = study_table(chosen_study[1]) if chosen_study is not None else None
        return console.page(request, "quality.html", **shown, studies=[name for name, _ in studies], study=chosen_study, ablations=table)

    return router


@lru_cache(maxsize=16)
def _metrics(evaluation: Artifact) -> Metrics:
    return Metrics.model_validate(evaluation.read_json("metrics.json"))


def beside_base(head: HeadMetrics, metrics: Metrics) -> list[str]:
    """The rankers of a head that differences from base are told of."""
    return [name for name in head.rankers if name != metrics.baseline] if metrics.baseline in head.rankers else []


def charts(head: HeadMetrics, metrics: Metrics, metric: Metric) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Figures of one head: id, title, what it says, and the figure."""
    others = beside_base(head, metrics)
    said = "Difference from base on the same rows in points of 0.01, with the 95 % interval over users."
    found = []
    if others:
        for family, title, axis in (
            ("activity", "Lift by user activity", "purchases before the first test row"),
            ("item_events", "Lift by how known the item is", "the item's events before the snapshot"),
        ):
            slices = [one for one in head.slices if one.family == family]
            found.append((f"lift-{family}", title, said, lifts(slices, others, metric, axis)))
    found.append(("calibration", "Calibration", "Bins of equally many rows; on the dotted line, predictions are what happens.", calibration(head)))
    for name, bins in metrics.alpha_fusion.items():
        if name in head.rankers and bins:
            found.append(
                (f"alpha-{name}", "Share of the group channel by activity", "Mean of the fusion gate, from its 10th to its 90th percentile.", gate(name, bins))
            )
    return found


def lifts(slices: Sequence[SliceMetrics], rankers: Sequence[str], metric: Metric, axis: str) -> dict[str, Any]:
    """Differences from base by bin, in points, with their intervals."""
    data = []
    for name in rankers:
        bins = [
            (one, *points(one.differences[name][metric])) for one in slices if name in one.differences and one.differences[name][metric].difference is not None
        ]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": ranker_name(name),
                "x": [one.title for one, *_ in bins],
                "y": [middle for _, middle, _, _ in bins],
                "customdata": [[one.rows, one.users, low, high] for one, _, low, high in bins],
                "hovertemplate": "%{x}: %{y:+.2f} [%{customdata[2]:+.2f}, %{customdata[3]:+.2f}]<br>%{customdata[0]:,} rows, %{customdata[1]:,} users",
                "line": {"color": f"--{name}", "width": 2},
                "marker": {"size": 8},
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - middle for _, middle, _, high in bins],
                    "arrayminus": [middle - low for _, middle, low, _ in bins],
                    "thickness": 1.4,
                    "width": 3,
                },
            }
        )
    axes = {"xaxis": {"type": "category", "title": {"text": axis}}, "yaxis": {"title": {"text": f"{metric.upper()} points"}, "zerolinewidth": 2}}
    return {"data": data, "layout": axes}


def points(found: Interval) -> tuple[float, float, float]:
    """A difference and its interval in points of 0.01; without an interval, the difference alone."""
    middle = found.difference or 0.0
    low, high = (middle if end is None else end for end in (found.low, found.high))
    return 100 * middle, 100 * low, 100 * high


def calibration(head: HeadMetrics) -> dict[str, Any]:
    """Predicted beside actual shares."""
    curves = {name: curve for name, curve in head.calibration.items() if curve.predicted}
    most = max((max(*curve.predicted, *curve.actual) for curve in curves.values()), default=1.0)
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [0, most],
            "y": [0, most],
            "line": {"color": "--muted", "dash": "dot", "width": 1},
            "showlegend": False,
            "hoverinfo": "skip",
        }
    ]
    data += [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": ranker_name(name),
            "x": curve.predicted,
            "y": curve.actual,
            "line": {"color": f"--{name}", "width": 2},
            "hovertemplate": "predicted %{x:.3f}, happened %{y:.3f}",
        }
        for name, curve in curves.items()
    ]
    return {"data": data, "layout": {"xaxis": {"title": {"text": "predicted"}}, "yaxis": {"title": {"text": "happened"}}}}


def gate(name: str, bins: Sequence[Any]) -> dict[str, Any]:
    """Mean and spread of the group channel's share."""
    spread = {"array": [one.p90 - one.mean for one in bins], "arrayminus": [one.mean - one.p10 for one in bins]}
    data = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [one.title for one in bins],
        "y": [one.mean for one in bins],
        "line": {"color": f"--{name}", "width": 2},
        "marker": {"size": 8},
        "error_y": {"type": "data", "symmetric": False, "width": 3, **spread},
        "hovertemplate": "%{x}: %{y:.3f}<extra></extra>",
    }
    axes = {"xaxis": {"type": "category", "title": {"text": "purchases"}}, "yaxis": {"title": {"text": "share"}, "rangemode": "tozero"}}
    return {"data": [data], "layout": axes}


def comparisons(console: Console, one: Artifact, other: Artifact, head: HeadMetrics, metrics: Metrics) -> list[tuple[str, list[Compared]]]:
    """Every ranker that both runs have of the head, on the rows that both scored; none where the logs differ."""
    if not same_logs(one, other):
        return []
    theirs = next((found.rankers for found in _metrics(other).heads if found.head == head.head), ())
    cold = int(one.manifest["config"]["evaluate"].get("cold_item_events", console.config.evaluate.cold_item_events))
    return [(name, _compare(one, other, name, head.head, cold)) for name in head.rankers if name in theirs]


@lru_cache(maxsize=64)
def _compare(one: Artifact, other: Artifact, ranker: str, head: str, cold: int) -> list[Compared]:
    return compare(one, other, ranker, head, _metrics(one), cold)


def studies_of(console: Console) -> list[tuple[str, StudyResults]]:
    """Results of studies in the folder of the setting, of this directory or else of the checkout, those on the run's own source first."""
    folder = next((place for place in (Path(console.config.study.results), CHECKOUT / console.config.study.results) if place.is_dir()), None)
    found = _studies(folder.resolve()) if folder is not None else []
    return sorted(found, key=lambda one: (not one[1].dataset.startswith(console.info.source), one[0]))


@lru_cache(maxsize=2)
def _studies(folder: Path) -> list[tuple[str, StudyResults]]:
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append((path.stem, StudyResults.model_validate_json(path.read_bytes())))
        except ValidationError:  # another kind of results
            logger.debug("%s holds no study", path)
    return found


def study_table(found: StudyResults) -> dict[str, Any]:
    """Arms of the headline's slice, each beside the headline's base, the best first."""
    slice_name, base = found.headline["slice"], found.headline["base"]
    rows = [(name, slices[slice_name], slices[slice_name].vs.get(base)) for name, slices in found.arms.items() if slice_name in slices]
    return {"slice": slice_name, "base": base, "rows": sorted(rows, key=lambda row: -row[1].mean)}
