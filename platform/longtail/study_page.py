"""A study's results as Markdown and as one HTML page; both say what was claimed, whether it held, and what the figures cannot tell.

Reads a StudyResults; writes text.
"""

from collections.abc import Sequence
from html import escape

from longtail.evaluation import DEFINITIONS
from longtail.report_page import STYLE, document, figure, section
from longtail.report_plots import GRID, INK, MUTED, ZERO, Canvas, Scale, span
from longtail.study import StudySettings
from longtail.study_results import ArmOnSlice, Arms, Difference, Metric, StudyResults
from longtail.study_rows import RULES
from longtail.training import FEW_STEPS

FAR = 2.0  # times nearly all the others
FEW_USERS, FEW_SEEDS, FEW_ARMS = 50, 3, 4
#: The slices that have columns in the .md, beside the headline's.
SHOWN = {
    "gauc": ("all", "low20", "truncated", "orders_1", "orders_1_3", "no_history", "high20"),
    "auc": ("all", "zero_shot", "cold_1_5", "cold_6_20", "cold_lt100", "warm", "natural_cold", "new_items", "popular_items"),
}
#: The slices that have figures on the page, beside the headline's.
DRAWN = {"gauc": ("all", "low20", "no_history", "high20"), "auc": ("all", "cold_lt100", "zero_shot", "warm")}
QUARTERS = ("quiet_cold", "quiet_warm", "busy_cold", "busy_warm")
SEEDS_BELOW = 7  # pixels under the interval
GOOD, BAD, PLAIN = "#0f766e", "#b91c1c", "#475569"

UNITS = {"gauc": " %", "auc": ""}
BESIDE = {"gauc": "GAUC", "log_loss": "log loss", "calibration_ratio": "predicted / happened", "calibration_error": "calibration error"}
BESIDE_SAID = (
    "Means over seeds. GAUC: of each user's own rows in the slice, weighted by them. Predicted / happened: the sum of the probabilities over the number of "
    "positives. Calibration error: what ten bins of equally many rows are off by, on average."
)


def markdown(found: StudyResults, study: StudySettings) -> str:
    """The results for the repository."""
    logs = found.notes["logs"]
    assert isinstance(logs, dict)
    metric, unit = found.metric.upper(), " in percent of the other's GAUC" if found.metric == "gauc" else " in points (hundredths of AUC)"
    lines = [
        f"# {study.name} on {found.dataset}",
        "",
        f"Commit {found.commit}, config `{found.config}`, form {found.notes.get('form')}, seeds {list(found.seeds)}; {found.notes.get('when', '')}.",
        f"Command: `{found.notes.get('command', '')}`. {found.notes.get('machine', '')} {effort_sentence(found)}",
        "",
        f"{logs['users']:,} users, {logs['items']:,} items, {logs['events']:,} events, examples {logs['examples']}. {logs['exposure']}.",
        "",
        f"**{headline_sentence(found)}**",
        "",
        f"{metric}, and in brackets the difference from the other arm{unit}, on the same rows, with 95 % intervals over seeds and users "
        f"(the .json has the differences in absolute {metric}, and each seed's). Nothing is corrected for how many there are: of twenty that mean nothing, one "
        "leaves zero out.",
        "",
        *(f"- {line}" for line in cautions(found, study)),
    ]
    names = [name for name in shown(found) if name in found.arms.get(study.headline_arms[0], {})]
    heads = " | ".join(f"{name} ({found.arms[study.headline_arms[0]][name].users:,} users)" for name in names)
    for other in study.against:
        lines += ["", f"## Test window: {metric} over `{other}`", "", *_table(found.arms, names, heads, other)]
    if pairs := pairs_of(found.arms, study):
        lines += ["", "## Test window: further pairs", "", "| arm | over | " + heads + " |", "|---|---|" + "---|" * len(names)]
        for arm, other in pairs:
            cells = [relative(found.arms[arm][name].vs[other], found.arms[other][name]) if name in found.arms[arm] else "" for name in names]
            lines.append(f"| `{arm}` | `{other}` | " + " | ".join(cells) + " |")
    lines += ["", "## Validation window: what choices were made on", "", *_table(found.validation, names, " | ".join(names), study.against[0])]
    for head, arms in (found.heads or {}).items():
        lines += ["", f"## Test window, head `{head}`: {metric} over `{study.against[0]}`", "", f"{DEFINITIONS[head]}.", ""]
        there = [name for name in names if name in arms.get(study.headline_arms[0], {})]
        lines += _table(arms, there, " | ".join(f"{name} ({arms[study.headline_arms[0]][name].users:,} users)" for name in there), study.against[0])
    lines += _beside_lines(found, study)
    lines += ["", "## All slices, headline arms", ""]
    every = list(found.arms.get(study.headline_arms[0], {}))
    lines += ["| slice | rule | users | " + " | ".join(study.headline_arms) + " |", "|---|---|---|" + "---|" * len(study.headline_arms)]
    for name in every:
        users = found.arms[study.headline_arms[0]][name].users
        cells = [f"{found.arms[arm][name].mean:.4f}" if name in found.arms.get(arm, {}) else "" for arm in study.headline_arms]
        lines.append(f"| {name} | {RULES[found.metric][name]} | {users:,} | " + " | ".join(cells) + " |")
    meanings = found.notes.get("arms")
    assert isinstance(meanings, dict)
    lines += ["", "## Arms", "", "| arm | what it is |", "|---|---|", *(f"| `{arm}` | {meanings.get(arm, '')} |" for arm in found.validation)]
    return "\n".join(lines) + "\n"


def shown(found: StudyResults) -> tuple[str, ...]:
    """The slices that have columns: the headline's among them, and with one of quiet or busy users on cold or warm items all four of these."""
    return tuple(dict.fromkeys((*SHOWN[found.metric], *of_headline(found))))


def of_headline(found: StudyResults) -> tuple[str, ...]:
    """The headline's slice, or the four that it is one of."""
    return QUARTERS if found.headline["slice"] in QUARTERS else (found.headline["slice"],)


def _beside_lines(found: StudyResults, study: StudySettings) -> list[str]:
    """Tables of what was measured beside the metric, a head each."""
    lines = []
    for head, arms in {"outcome": found.arms, **(found.heads or {})}.items():
        rows = [
            f"| `{arm}` | {name} | " + " | ".join(f"{one.beside[key]:.4f}" if key in one.beside else "" for key in BESIDE) + " |"
            for arm in study.headline_arms
            for name, one in arms.get(arm, {}).items()
            if one.beside is not None and name in shown(found)
        ]
        if rows:
            title = f"## Test window, head `{head}`: beside {found.metric.upper()}, headline arms"
            lines += ["", title, "", BESIDE_SAID, "", "| arm | slice | " + " | ".join(BESIDE.values()) + " |", "|---|---|---|---|---|---|", *rows]
    return lines


def headline_sentence(found: StudyResults) -> str:
    """The claim, and what became of it."""
    named = found.headline
    one = found.arms.get(named["arm"], {}).get(named["slice"])
    base = found.arms.get(named["base"], {}).get(named["slice"])
    if one is None or base is None or named["base"] not in one.vs:
        return f"Headline: {named['arm']} over {named['base']} on {named['slice']}: not measured."
    gain = one.vs[named["base"]]
    text = (
        f"Headline: `{named['arm']}` over `{named['base']}` on `{named['slice']}` ({one.users:,} users): {relative(gain, base)}, "
        f"{gain.positive_seeds} of {len(gain.per_seed)} seeds positive"
    )
    control = one.vs.get(named["control"])
    beside = found.arms.get(named["control"], {}).get(named["slice"])
    if control is not None and beside is not None:
        text += f"; over `{named['control']}`: {relative(control, beside)}"
    return text + "."


def effort_sentence(found: StudyResults) -> str:
    """What the trials took."""
    seconds = found.notes.get("seconds_per_trial")
    span_s = f", {min(seconds.values()):.0f} to {max(seconds.values()):.0f} s each," if isinstance(seconds, dict) and seconds else ""
    notes = found.notes
    return (
        f"{notes.get('trials')} trials{span_s} took {notes.get('trials_thread_min')} min of a thread; {notes.get('trained_now')} of them were trained in this "
        f"run, the others found. What all arms share took {notes.get('shared_s')} s, variants and trials of all data sets {notes.get('trials_min')} min."
    )


def cautions(found: StudyResults, study: StudySettings) -> list[str]:
    """What a reader must know of how the figures came about and what they cannot tell, a sentence or two each."""
    lines = [study.chosen] if study.chosen else []
    of_dataset = study.datasets.get(found.dataset)
    if of_dataset is not None:
        own = {"Set over its config": of_dataset.set, "by each seed": of_dataset.seeded, "over the arms too": of_dataset.over}
        words = [f"{name}: {', '.join(f'`{one}`' for one in settings)}" for name, settings in own.items() if settings]
        lines += ["; ".join(words) + "."] if words else []
    openings = found.notes.get("openings")
    if isinstance(openings, list) and openings:
        told = "; ".join(f"{one['when']}, {one['trained']} trials trained, commit {one['commit']}, settings {one['settings']}" for one in openings)
        lines.append(f"Runs that trained trials and scored this test window, as far as this file was there to record them: {told}.")
    if len(found.seeds) < FEW_SEEDS:
        lines.append(f"{len(found.seeds)} seed(s): the intervals know next to nothing of what training again would change.")
    slices = found.arms.get(study.headline_arms[0], {}) if study.headline_arms else {}
    small = [f"{name} ({one.users})" for name, one in slices.items() if one.users < FEW_USERS]
    if small:
        lines.append(f"Slices of fewer than {FEW_USERS} users tell nothing but large differences: {', '.join(small)}.")
    steps = found.notes.get("steps")
    few = {arm: number for arm, number in steps.items() if number < FEW_STEPS} if isinstance(steps, dict) else {}
    if few:
        lines.append(
            f"**Hardly trained: {min(few.values())} to {max(few.values())} optimiser steps for {', '.join(few)}.** Some hundred at least make a ranker: lower "
            "train.batch_size or raise train.epochs."
        )
    return lines


def pairs_of(arms: Arms, study: StudySettings) -> list[tuple[str, str]]:
    """Arms and what they are compared with beside study.against, as far as both were measured."""
    wanted = [(arm, other) for arm in arms for other in study.arms[arm].against if other not in study.against]
    return [(arm, other) for arm, other in wanted if any(other in one.vs for one in arms[arm].values())]


def relative(gap: Difference, base: ArmOnSlice) -> str:
    """A difference as a share of the other's GAUC, or in points of AUC, with its interval; absolute where the other orders every user's rows wrongly."""
    if base.gauc == 0:
        return f"{gap.mean:+.4f} [{gap.lo:+.4f}, {gap.hi:+.4f}] absolute"
    mean, low, high = (100 * value / one_of(base) for value in (gap.mean, gap.lo, gap.hi))
    return f"{mean:+.2f}{UNITS[base.metric]} [{low:+.2f}, {high:+.2f}]"


def one_of(base: ArmOnSlice) -> float:
    """What a difference is told in hundredths of: the other's GAUC, or AUC's whole range."""
    return 1.0 if base.gauc is None else base.gauc


def _table(arms: Arms, names: Sequence[str], heads: str, other: str) -> list[str]:
    """Lines of a table: a line an arm, a column a slice."""
    lines = ["| arm | " + heads + " |", "|---|" + "---|" * len(names)]
    for arm, slices in arms.items():
        cells = []
        for name in names:
            one = slices.get(name)
            if one is None:
                cells.append("")
            elif other in one.vs:
                cells.append(f"{one.mean:.4f} ({relative(one.vs[other], arms[other][name])})")
            else:
                cells.append(f"{one.mean:.4f} ± {one.sd:.4f}")
        lines.append(f"| `{arm}` | " + " | ".join(cells) + " |")
    return lines


def page(found: StudyResults, study: StudySettings) -> str:
    """One page with a figure of intervals for each slice that matters."""
    logs = found.notes["logs"]
    assert isinstance(logs, dict)
    lead = (
        f'<p class="kicker">study {escape(study.name)}</p><h1>{escape(found.dataset)}</h1><p>{escape(_plain(headline_sentence(found)))}</p>'
        f'<p class="note">{escape(str(logs["exposure"]))}. Commit {escape(found.commit)}, {escape(str(found.notes.get("form")))} form, '
        f"seeds {list(found.seeds)}. <code>{escape(str(found.notes.get('command', '')))}</code></p>"
        f"<ul>{''.join(f'<li>{escape(_plain(line))}</li>' for line in cautions(found, study))}</ul>"
    )
    said = "GAUC relative to" if found.metric == "gauc" else "points of AUC over"
    parts = [lead]
    slices = [name for name in (*of_headline(found), *DRAWN[found.metric]) if name in found.arms.get(study.headline_arms[0], {})]
    for other in study.against:
        pairs = [(arm, other, arm) for arm in found.arms]
        parts.append(_figures(found, pairs, slices, f"Over {other}", other, f"{said} it, 95 % intervals over seeds and users; a dot for each seed."))
    pairs = [(arm, other, f"{arm} over {other}") for arm, other in pairs_of(found.arms, study)]
    parts.append(_figures(found, pairs, slices, "Further pairs", "the other", f"{said} the second arm of each pair."))
    for head, arms in (found.heads or {}).items():
        of_head = found.model_copy(update={"arms": arms})
        pairs = [(arm, study.against[0], arm) for arm in arms]
        parts.append(_figures(of_head, pairs, slices, f"Head {head}, over {study.against[0]}", study.against[0], f"{DEFINITIONS[head]}; {said} it."))
    every = list(found.arms.get(study.headline_arms[0], {}))
    parts.append(
        section(
            f"{found.metric.upper()} by slice", "Mean over seeds, test window.", f'<div class="wide">{_html_table(found, study.headline_arms, every)}</div>'
        )
    )
    return document(f"{study.name}: {found.dataset}", "".join(parts), STYLE)


def _plain(text: str) -> str:
    """Markdown without its marks, with the minus sign that the figures have."""
    return text.replace("`", "").replace("**", "").replace(" -", " \u2212").replace("[-", "[\u2212")


def _figures(found: StudyResults, pairs: Sequence[tuple[str, str, str]], slices: Sequence[str], title: str, other: str, about: str) -> str:
    """A section with a figure for each slice, a line in it for each pair of arms and its name; "" where no pair was measured."""
    figures = []
    for name in dict.fromkeys(slices):
        measured = [
            (words, one.vs[against], one_of(found.arms[against][name]))
            for arm, against, words in pairs
            if (one := found.arms[arm].get(name)) and against in one.vs
        ]
        rows = [(words, gap, base) for words, gap, base in measured if base]
        if rows:
            figures.append(figure(f"{name}: {RULES[found.metric][name]}", intervals(rows, other, found.metric)))
    return section(title, f"Test window, {about}", "".join(figures)) if figures else ""


def intervals(rows: Sequence[tuple[str, Difference, float]], other: str, metric: Metric = "gauc") -> str:
    """One line per name, difference and what it is told in hundredths of: the difference, its interval, and a small dot for each seed.

    Differences several times as large as nearly all the others are told in words alone, with an arrow at the edge: they would leave the others no room.
    """
    step, left, right, top = 26, 250, 850, 12
    bottom = top + step * len(rows)
    unit = UNITS[metric]
    canvas = Canvas(1040, bottom + 30, f"difference from {other}, " + ("percent of its GAUC" if metric == "gauc" else "points of AUC"))
    sizes = sorted(abs(gap.mean) / base for _, gap, base in rows)
    most = FAR * max(sizes[int(0.9 * (len(sizes) - 1)) if len(sizes) >= FEW_ARMS else -1], max(gap.hi - gap.lo for _, gap, _ in rows) / 2)
    ends = [value * 100 / base for _, gap, base in rows if abs(gap.mean) / base <= most for value in (gap.lo, gap.hi, *gap.per_seed)]
    scale = Scale(*span(ends, zero=True), left, right)
    for tick in scale.ticks(8):
        canvas.line(scale(tick), top, scale(tick), bottom, GRID)
        canvas.text(scale(tick), bottom + 17, f"{tick:+g}{unit}".replace("-", "\u2212") if tick else "0", "middle")
    canvas.line(scale(0), top - 4, scale(0), bottom, ZERO, 1.6)
    for place, (name, gap, base) in enumerate(rows):
        y, percent = top + step * (place + 0.5), 100 / base
        tone = GOOD if gap.lo > 0 else BAD if gap.hi < 0 else PLAIN
        canvas.text(left - 12, y + 4, name, "end", INK, 12.5, 600)
        words = f"{gap.mean * percent:+.2f}{unit} [{gap.lo * percent:+.2f}, {gap.hi * percent:+.2f}]".replace("-", "\u2212")
        canvas.text(right + 12, y + 4, words, fill=tone, size=11.5)
        if abs(gap.mean) / base > most:
            canvas.text(left if gap.mean < 0 else right, y + 4, "\u25c2" if gap.mean < 0 else "\u25b8", "start" if gap.mean < 0 else "end", tone, 14)
            continue
        canvas.line(scale(gap.lo * percent), y, scale(gap.hi * percent), y, tone, 2.6)
        for seed in gap.per_seed:
            canvas.dot(scale(seed * percent), y + SEEDS_BELOW, MUTED, radius=2.6)
        canvas.dot(scale(gap.mean * percent), y, tone, f"{name}: {words}", 5, gap.lo <= 0 <= gap.hi)
    return canvas.svg()


def _html_table(found: StudyResults, names: Sequence[str], slices: Sequence[str]) -> str:
    arms = found.arms
    head = "".join(f"<th>{escape(arm)}</th>" for arm in names)
    rows = []
    for name in slices:
        cells = "".join(
            f"<td>{arms[arm][name].mean:.4f}<small>± {arms[arm][name].sd:.4f}</small></td>" if name in arms.get(arm, {}) else "<td></td>" for arm in names
        )
        users = arms[names[0]][name].users
        rows.append(f'<tr><th class="name">{escape(name)}<small>{escape(RULES[found.metric][name])}</small></th><td>{users:,}</td>{cells}</tr>')
    return f'<table class="metrics"><thead><tr><th class="name">slice</th><th>users</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
