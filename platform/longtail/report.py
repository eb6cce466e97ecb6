"""The evaluation report: one self-contained HTML page, and the same numbers as plain text.

`page` takes what a run's artifacts say (`Report`) and returns the page: no script, no network, figures as SVG. `text_table` prints a `Metrics`.
Written by the `evaluate` stage as report.html. Run: python -m pipelines.evaluate --config …
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from longtail import report_plots as plots
from longtail.code_use import CodeUse
from longtail.evaluation import POPULARITY, HeadMetrics, Metrics, SliceMetrics
from longtail.logs import LogsInfo
from longtail.paired import Interval
from longtail.report_page import STYLE, document, figure, section
from longtail.schema import SPLITS

MAIN_SLICES = ("all", "low_activity", "high_activity", "cold", "warm")
METHODS = {"trained": "trained", "frozen": "off the shelf", "start": "before training", "popularity": "popularity"}
OWN_SLICE = {"choirrec": "low_activity", "saviorrec": "cold"}  # what each published method is for


@dataclass(frozen=True)
class StageRecord:
    """One artifact's manifest, as the report shows it."""

    stage: str
    key: str
    seed: int
    commit: str
    rows_in: int
    rows_out: int
    dropped: Mapping[str, int]
    seconds: float
    inputs: Mapping[str, str]  # upstream stage -> key

    @staticmethod
    def of(manifest: Mapping[str, Any]) -> "StageRecord":
        rows = manifest["rows"]
        return StageRecord(
            stage=manifest["stage"],
            key=manifest["key"],
            seed=manifest["seed"],
            commit=manifest["commit"],
            rows_in=rows["in"],
            rows_out=rows["out"],
            dropped=rows["dropped"],
            seconds=manifest["seconds"],
            inputs={name: given["key"] for name, given in manifest["inputs"].items()},
        )


@dataclass(frozen=True)
class Hits:
    """Item-to-item retrieval on later behaviour pairs: the share of pairs whose partner is among the nearest k, by method and slice."""

    k: int
    slices: Sequence[tuple[str, int, Mapping[str, float | None]]]  # title, pairs, method -> share


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    run: str
    date: str
    commit: str
    seed: int
    logs: LogsInfo
    metrics: Metrics
    stages: Sequence[StageRecord]
    profile_outcomes: Mapping[str, int]
    group_sizes: Mapping[int, Sequence[int]]  # by depth
    codes: Mapping[str, CodeUse]  # users, items
    hits: Hits | None
    training: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]  # what is measured -> ranker -> (epoch, value)


def page(report: Report) -> str:
    """The whole report as one HTML document."""
    parts = [_header(report), _findings(report)]
    parts += [_head(head, report.metrics) for head in report.metrics.heads]
    parts += [_groups(report), _items(report), _training(report), _stages(report), _caveats(report)]
    return document(f"Longtail: {report.run}", "".join(part for part in parts if part), STYLE)


def text_table(metrics: Metrics) -> str:
    """AUC and GAUC of every ranker by main slice, one block per head; + and - mark differences from the base whose 95 % interval leaves out zero."""
    blocks = []
    for head in metrics.heads:
        rankers = (*head.rankers, POPULARITY)
        titles = [f"{plots.name(ranker):>17}" for ranker in rankers]
        lines = [
            f"{head.head}: {head.definition}",
            f"{'':<20}{'':>8}{'':>7}" + "".join(titles),
            f"{'slice':<20}{'rows':>8}{'users':>7}" + f"{'AUC':>9}{'GAUC':>8}" * len(rankers),
        ]
        for one in (head.slice(name) for name in MAIN_SLICES):
            cells = []
            for ranker in rankers:
                for metric, width in (("auc", 9), ("gauc", 8)):
                    value = getattr(one.scores[ranker], metric)
                    differs = one.differences.get(ranker, {}).get(metric)
                    mark = {"higher": "+", "lower": "-", "unclear": " "}[differs.verdict] if differs else " "
                    cells.append(f"{'n/a' if value is None else f'{value:.4f}':>{width - 1}}{mark}")
            lines.append(f"{one.title:<20}{one.rows:>8,}{one.users:>7,}" + "".join(cells) + (f"  ({one.reason})" if one.reason else ""))
        blocks.append("\n".join(line.rstrip() for line in lines))
    low, high = metrics.low_activity_max, metrics.high_activity_min
    note = f"low activity: at most {low} purchases before the test rows, high: at least {high}; + and -: 95 % interval of the difference from base leaves out 0"
    return "\n\n".join([*blocks, note])


def _header(report: Report) -> str:
    logs = report.logs
    facts = [
        ("data", f"{logs.source}: {logs.num_users:,} users, {logs.num_items:,} items, {logs.num_events:,} events"),
        ("time", f"history to {logs.history_end:%Y-%m-%d}, train to {logs.train_end:%Y-%m-%d}, test to {logs.end:%Y-%m-%d}"),
        ("examples", ", ".join(f"{logs.num_examples.get(split, 0):,} {split}" for split in SPLITS)),
        ("exposure", logs.exposure),
        ("left out", "; ".join(f"{count:,} positives: {reason}" for reason, count in logs.positives_left_out.items()) or "no positive"),
        ("run", f"seed {report.seed}, commit {report.commit}, {report.date}"),
    ]
    cells = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f'<header><p class="kicker">Longtail evaluation</p><h1>{escape(report.run)}</h1><dl class="facts">{cells}</dl></header>'


def _findings(report: Report) -> str:
    """Each ranker on the slice that it is for, over all rows, and every slice in which it is clearly worse."""
    cards = []
    for head in report.metrics.heads:
        for ranker in head.rankers:
            if ranker == report.metrics.baseline or ranker not in head.slice("all").differences:
                continue
            own = head.slice(OWN_SLICE.get(ranker, "all"))
            found = own.differences[ranker]["gauc"]
            lines = [
                f"<li><span>{escape(one.title)}</span><span>{_interval(one.differences[ranker]['gauc'])}</span></li>"
                for one in _main(head)
                if one.name != own.name
            ]
            suffix = f" <small>{head.head}</small>" if len(report.metrics.heads) > 1 else ""
            cards.append(
                f'<div class="card" style="--tone:{plots.colour(ranker)}"><h3>{plots.name(ranker)}{suffix}</h3>'
                f'<p class="big">{_big(found)}</p><p>GAUC points against base on <b>{escape(own.title)}</b><br>{_range(found)}</p>'
                f"<ul>{''.join(lines)}</ul></div>"
            )
    if not cards:
        return '<p class="note">No base ranker was scored beside another one, so there are no differences to show.</p>'
    return f'<div class="cards">{"".join(cards)}</div>'


def _head(head: HeadMetrics, metrics: Metrics) -> str:
    others = [ranker for ranker in head.rankers if ranker != metrics.baseline] if metrics.baseline in head.rankers else []
    body = [_table(head, others)]
    if others:
        rows = [(one.title, f"{one.rows:,} rows, {one.users:,} users", _of(one, "gauc")) for one in _main(head)]
        body.append(figure("Who gains, who loses", plots.differences_by_slice(rows, others, "GAUC"), _HOLLOW))
        by_activity = [(one.title, one.rows, _of(one, "auc")) for one in head.slices if one.family == "activity"]
        by_count = [(one.title, one.rows, _of(one, "auc")) for one in head.slices if one.family == "item_events"]
        pair = [
            figure("Lift by user activity", plots.differences_by_bin(by_activity, others, "AUC minus base", "purchases before the test rows"), _FILLED),
            figure("Lift by item count", plots.differences_by_bin(by_count, others, "AUC minus base", "item's events before the snapshot"), _FILLED),
        ]
        body.append(f'<div class="two">{"".join(pair)}</div>')
    curves = {ranker: (curve.predicted, curve.actual, curve.rows) for ranker, curve in head.calibration.items()}
    alpha = [
        figure(
            f"{plots.name(ranker)}: α_fusion by activity",  # noqa: RUF001
            plots.alpha_by_activity([(one.title, one.rows, one.mean, one.p10, one.p90) for one in found], ranker),
            "How much of the score the group channel decides: high where a user's own signals are few, if the trunk has learned to trust them less.",
        )
        for ranker, found in metrics.alpha_fusion.items()
        if ranker in head.rankers
    ]
    calibrated = figure("Calibration", plots.calibration_curves(curves), "Bins of equally many rows; on the dashed line, predictions are what happens.")
    body.append(f'<div class="two">{calibrated}{"".join(alpha)}</div>{_calibration_table(head)}')
    return section(f"Head: {head.head}", f"Predicts {head.definition}.", "".join(body))


_HOLLOW = "Dot: difference on rows that both scored; line: 95 % interval over users. Hollow: the interval holds zero."
_FILLED = "Bins of about equally many users (left) or rows (right), ties together. Filled: the interval leaves out zero."


def _table(head: HeadMetrics, others: Sequence[str]) -> str:
    rankers = (*head.rankers, POPULARITY)
    groups = "".join(f'<th colspan="2" class="group" style="--tone:{plots.colour(ranker)}">{plots.name(ranker)}</th>' for ranker in rankers)
    names = "".join(f'<th rowspan="2"{more}>{name}</th>' for name, more in (("slice", " class='name'"), ("rows", ""), ("users", ""), ("positives", "")))
    body = []
    for one in _main(head):
        cells = f"<td>{one.rows:,}</td><td>{one.users:,}</td><td>{one.positives:,}</td>"
        for ranker in rankers:
            for metric in ("auc", "gauc"):
                below = f"<br>{_interval(one.differences[ranker][metric])}" if ranker in others else ""
                cells += f"<td>{_value(getattr(one.scores[ranker], metric))}{below}</td>"
        reason = f'<em class="reason">{escape(one.reason)}</em>' if one.reason else ""
        body.append(f'<tr><th scope="row" class="name">{escape(one.title)}<small>{escape(one.rule)}</small>{reason}</th>{cells}</tr>')
    top = f"<tr>{names}{groups}</tr><tr>{'<th>AUC</th><th>GAUC</th>' * len(rankers)}</tr>"
    legend = (
        "Below a value: its difference from base on the same rows, in points of 0.01, with the 95 % interval over users. "
        "<b class='higher'>▲</b> the whole interval lies above zero, <b class='lower'>▼</b> below. "
        "<b>popularity</b> ranks by the item's count alone: near .5 where negatives are matched to it."
    )
    table = f'<table class="metrics"><thead>{top}</thead><tbody>{"".join(body)}</tbody></table>'
    return f'<div class="wide">{table}</div><p class="note">{legend}</p>'


def _calibration_table(head: HeadMetrics) -> str:
    rows = []
    for one in _main(head):
        for ranker in head.rankers:
            scores = one.scores[ranker]
            cells = f"<td>{_value(scores.log_loss)}</td><td>{_value(scores.calibration_ratio, 3)}</td><td>{_value(scores.calibration_error)}</td>"
            differs = one.differences.get(ranker, {}).get("log_loss")
            cells += f"<td>{_interval(differs, lower_is_better=True) if differs else ''}</td><td>{scores.gauc_users:,}</td>"
            rows.append(f'<tr><th scope="row" class="name">{escape(one.title)}</th><td class="left">{plots.name(ranker)}</td>{cells}</tr>')
    titles = "<th class='name'>slice</th><th class='left'>ranker</th><th>log loss</th><th>predicted / actual</th><th>calibration error</th>"
    titles += "<th>log loss − base, points</th><th>users in GAUC</th>"  # noqa: RUF001
    table = f'<table class="metrics"><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<details><summary>Log loss and calibration by slice</summary><div class="wide">{table}</div></details>'


def _groups(report: Report) -> str:
    figures = _code_figures(report.codes["users"], "user codes", plots.colour("choirrec")) if "users" in report.codes else []
    for depth, sizes in sorted(report.group_sizes.items()):
        if depth <= 1:  # everyone, and what the codes of the first stage show
            continue
        ordered = sorted(sizes)
        note = f"{len(sizes):,} groups, median {ordered[len(ordered) // 2]:,} members, largest {ordered[-1]:,}"
        figures.append(plots.ranked_bars(sizes, f"group sizes, depth {depth}", note, plots.colour("choirrec")))
    outcomes = sorted(report.profile_outcomes.items(), key=lambda pair: (pair[0] != "llm", -pair[1]))
    total = sum(report.profile_outcomes.values())
    rows = [
        (name, float(count), f"{count:,} ({count / total:.0%})", plots.colour("choirrec") if name == "llm" else plots.colour(POPULARITY))
        for name, count in outcomes
    ]
    profiles = ""
    if rows:
        note = "llm: the model's answer passed every check; fallback: made from the facts, with the reason; deterministic: made from the facts, no model asked."
        profiles = figure("Where profiles come from", plots.bars(rows, 1010, 260), note)
    grid = f'<div class="three">{"".join(f"<figure>{one}</figure>" for one in figures)}</div>' if figures else ""
    return section("Users: profiles and groups", "ChoirRec's groups are the code prefixes of embedded profiles.", grid + profiles)


def _items(report: Report) -> str:
    body = ""
    if report.hits is not None:
        drawn = []
        for title, pairs, found in report.hits.slices:
            rows = []
            for method, share in found.items():
                fill = plots.colour("saviorrec" if method == "trained" else POPULARITY)
                rows.append((METHODS.get(method, method), share or 0.0, "n/a" if share is None else f"{share:.1%}", fill))
            drawn.append(figure(f"Hit@{report.hits.k}: {title}", plots.bars(rows, 505, 150), f"{pairs:,} later pairs that the encoder was not taught."))
        body += f'<div class="two">{"".join(drawn)}</div>'
    if "items" in report.codes:
        figures = _code_figures(report.codes["items"], "item codes", plots.colour("saviorrec"))
        body += f'<div class="three">{"".join(f"<figure>{one}</figure>" for one in figures)}</div>'
    return section("Items: encoder and semantic IDs", "SaviorRec's codes come from the trained encoder's vectors.", body) if body else ""


def _code_figures(use: CodeUse, title: str, fill: str) -> list[str]:
    figures = []
    for stage, (counts, perplexity) in enumerate(zip(use.counts_SK, use.perplexity_S, strict=True), start=1):
        note = f"perplexity {perplexity:.1f} of {len(counts)}, {sum(count == 0 for count in counts)} unused"
        if stage == len(use.counts_SK):
            note += f", {use.collision_rate:.0%} share a tuple"
        figures.append(plots.ranked_bars(counts, f"{title}, stage {stage}", note, fill))
    return figures


def _training(report: Report) -> str:
    drawn = [figure(what, plots.curves_by_epoch(curves, what)) for what, curves in report.training.items() if any(curves.values())]
    return section("Training", _same_training(report.metrics), f'<div class="two">{"".join(drawn)}</div>') if drawn else ""


def _same_training(metrics: Metrics) -> str:
    """What the rankers' training had in common, and what not."""
    if len(metrics.heads) == 1:
        return "Every ranker had the same rows, epochs, batches and schedule."
    trained = {name: [head.head for head in metrics.heads if name in head.rankers] for name in metrics.rankers}
    told = "; ".join(f"{plots.NAMES.get(name, name)}: {', '.join(heads)}" for name, heads in trained.items() if heads)
    return (
        f"Every ranker had the same epochs, batch size and schedule, and learned its own heads ({told}) on the rows that carry their labels, so that a "
        "difference between two rankers is also one of heads. rankers.<name>.heads gives them the same."
    )


def _stages(report: Report) -> str:
    rows = []
    for one in report.stages:
        dropped = "<br>".join(f"{count:,} {escape(reason)}" for reason, count in one.dropped.items()) or "none"
        links = " ".join(f'<a href="#{stage}-{key}"><code>{escape(stage)}</code></a>' for stage, key in one.inputs.items())
        cells = f"<td>{one.seconds:,.1f}</td><td>{one.rows_in:,}</td><td>{one.rows_out:,}</td><td class='left'>{dropped}</td><td>{one.seed}</td>"
        cells += f"<td><code>{one.key}</code></td><td><code>{escape(one.commit)}</code></td><td class='left'>{links}</td>"
        rows.append(f'<tr id="{escape(one.stage)}-{one.key}"><th scope="row" class="name">{escape(one.stage)}</th>{cells}</tr>')
    titles = "<th class='name'>stage</th><th>seconds</th><th>rows in</th><th>rows out</th><th class='left'>dropped</th>"
    titles += "<th>seed</th><th>key</th><th>commit</th><th class='left'>reads</th>"
    table = f'<table class="metrics"><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    total = sum(one.seconds for one in report.stages)
    intro = f"{total:,.0f} s in all, counting a reused stage with the time that it once took. The same key is the same code version, config, seed and input."
    return section("Stages and where their inputs come from", intro, f'<div class="wide">{table}</div>')


def _caveats(report: Report) -> str:
    lines = [
        "One seed: another draw of weights and batches moves these numbers too, by an amount that this page cannot know.",
        "Intervals resample the test users only. Items, time and training are taken as they are; many slices are shown, so some intervals miss zero by luck.",
        f"Exposure: {report.logs.exposure}",
        "Where negatives are sampled, AUC ranks positives against those draws, not against all that a person might have seen.",
        "GAUC leaves out users with one class in a slice; the table of log loss counts those that are left.",
    ]
    return section("Caveats", "", "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>")


def _main(head: HeadMetrics) -> list[SliceMetrics]:
    return [one for one in head.slices if one.family == "main"]


def _of(one: SliceMetrics, metric: str) -> dict[str, Interval]:
    return {ranker: found[metric] for ranker, found in one.differences.items()}


def _value(value: float | None, digits: int = 4) -> str:
    return "<span class='none'>n/a</span>" if value is None else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "\u2212")


def _big(found: Interval) -> str:
    if found.difference is None:
        return "n/a"
    mark = {"higher": "▲", "lower": "▼", "unclear": ""}[found.verdict]
    return f'<span class="{found.verdict}">{_signed(found.difference)} {mark}</span>'


def _range(found: Interval) -> str:
    return "no interval" if found.low is None or found.high is None else f"95 % interval {_signed(found.low)} to {_signed(found.high)}"


def _interval(found: Interval, *, lower_is_better: bool = False) -> str:
    """A difference in points with its interval, marked where the interval leaves out zero."""
    if found.difference is None:
        return "<span class='none'>n/a</span>"
    verdict = found.verdict
    good = {"higher": "lower", "lower": "higher"}.get(verdict, verdict) if lower_is_better else verdict
    mark = {"higher": "▲", "lower": "▼", "unclear": ""}[verdict]
    ends = "" if found.low is None or found.high is None else f" <small>{_signed(found.low)} to {_signed(found.high)}</small>"
    return f'<span class="{good}">{_signed(found.difference)}&nbsp;{mark}</span>{ends}'
