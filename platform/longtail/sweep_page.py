"""A sweep's results as text: the ranked table, Markdown, one HTML page with figures, and the best config with its figures in the head.

Reads a SweepResults; writes text.
"""

from collections.abc import Mapping, Sequence
from html import escape

from longtail.config import Config
from longtail.config_text import as_toml
from longtail.report_page import STYLE, document, figure, section
from longtail.report_plots import GRID, INK, MUTED, ZERO, Canvas, Scale, span
from longtail.study_page import relative
from longtail.study_results import Arms
from longtail.study_rows import RULES
from longtail.sweep_results import Finals, SweepResults, Trial, pareto, ranked
from longtail.sweeping import Value

GOOD, BAD, PLAIN, FRONT = "#0f766e", "#b91c1c", "#94a3b8", "#c2410c"
LABELS = {"base": "the base ranker", "start": "the config as it stood"}


def in_word(value: Value) -> str:
    """A value as --set takes it, floats to four digits."""
    return str(value).lower() if isinstance(value, bool) else f"{value:.4g}" if isinstance(value, float) else str(value)


def changes(trial: Trial, start: Trial | None) -> str:
    """What a trial has that the config as it stood has not."""
    if trial.number == 0:
        return "the config as it stands"
    changed = {name: value for name, value in trial.point.items() if start is None or value != start.point.get(name)}
    return ", ".join(f"{name}={in_word(value)}" for name, value in changed.items())


def status(trial: Trial) -> str:
    """Why a trial cannot win; empty where it can."""
    if trial.refused:
        return trial.refused.splitlines()[0]
    if trial.state == "stopped":
        return f"stopped after epoch {trial.epochs}"
    return f"{trial.shortfall:.4f} below the constraint" if trial.shortfall else ""


def _row(trial: Trial, start: Trial | None) -> tuple[str, str, str, str]:
    known = trial.score is not None and start is not None and start.score is not None and trial.number != 0
    return (
        "-" if trial.score is None else f"{trial.score:.4f}",
        f"{trial.score - start.score:+.4f}" if known else "",  # type: ignore[operator, union-attr]
        "-" if trial.whole is None else f"{trial.whole:.4f}",
        f"{trial.seconds:.0f}",
    )


def table(trials: Sequence[Trial], metric: str, whole: str) -> str:
    """The ranked trials as text: score, difference from the config as it stood, score over all rows, seconds, what each changed."""
    start = next((trial for trial in trials if trial.number == 0), None)
    lines = [f"{'rank':>4}  {'trial':>5}  {metric:>10}  {'vs config':>9}  {whole:>10}  {'seconds':>7}  changes"]
    for place, trial in enumerate(ranked(trials), start=1):
        score, against, over_all, seconds = _row(trial, start)
        said = f"  [{status(trial)}]" if status(trial) else ""
        lines.append(f"{place:>4}  {trial.number:>5}  {score:>10}  {against:>9}  {over_all:>10}  {seconds:>7}  {changes(trial, start)}{said}")
    return "\n".join(lines)


def finals_sentences(finals: Finals | None) -> list[str]:
    """What became of the finalists."""
    if finals is None:
        return ["No finalists were trained again (sweep.finalists.num_trials = 0): the first of the table is the best of many with one seed: flattered."]
    seeds = f"{len(finals.seeds)} seeds, slice `{finals.slice}` ({RULES[finals.metric][finals.slice]})"
    if finals.test is None:
        return [f"On the validation window, {seeds}, no finalist is better than the config as it stood: it stays, and the test window was not opened."]
    gain, start = finals.gain, finals.test["start"][finals.slice]
    assert gain is not None
    clear = "above" if gain.lo > 0 else "below" if gain.hi < 0 else "not clear of"
    whole = finals.test[finals.winner]["all"]
    said = [
        f"`{finals.winner}` won on the validation window. On the test window, {seeds}: {relative(gain, start)} over the config as it stood, "
        f"{gain.positive_seeds} of {len(gain.per_seed)} seeds positive; the interval is {clear} zero.",
        f"Over all rows: {relative(whole.vs['start'], finals.test['start']['all'])} over the config as it stood, "
        f"{relative(whole.vs['base'], finals.test['base']['all'])} over the base ranker.",
    ]
    if finals.earlier_openings:
        said.append(f"Sweeps of this store had opened a test window {finals.earlier_openings} time(s) before.")
    return said


def best_of(found: SweepResults) -> Trial | None:
    """The trial whose settings the sweep recommends: the finalists' winner, or without finalists the first of the table; None where no trial may win."""
    if found.finals is not None:
        number = 0 if found.finals.winner == "start" else int(found.finals.winner.removeprefix("trial_"))
        return next(one for one in found.trials if one.number == number)
    return next((one for one in found.trials if one.feasible), None)


def best_toml(found: SweepResults, config: Config) -> str:
    """The recommended config, its figures in the head."""
    best = best_of(found)
    assert best is not None
    start = next((one for one in found.trials if one.number == 0), None)
    said = [
        f"Best of {len(found.trials)} trials of a sweep over {found.ranker}, {found.searcher}, scheduler {found.scheduler}.",
        f"{found.command}",
        f"Commit {found.commit}; {found.machine}; {sum(found.minutes.values()):.1f} minutes.",
        f"Trial {best.number}: {changes(best, start)}",
        f"Validation window, one seed: {found.metric} {best.score:.4f}" + (f" (the config as it stood {start.score:.4f})" if start and start.score else ""),
        *finals_sentences(found.finals),
    ]
    return "".join(f"# {line}\n" for line in said) + "\n" + as_toml(config, leave_out=("sweep", "study"))


def markdown(found: SweepResults) -> str:
    """The results for a repository."""
    start = next((one for one in found.trials if one.number == 0), None)
    rows = [
        f"| {place} | {one.number} | {' | '.join(_row(one, start))} | {status(one)} | {changes(one, start)} |"
        for place, one in enumerate(found.trials, start=1)
    ]
    minutes = ", ".join(f"{name} {value:.1f}" for name, value in found.minutes.items())
    lines = [
        f"# Sweep over {found.ranker}",
        "",
        f"- command: `{found.command}`",
        f"- commit {found.commit}; {found.machine}; minutes: {minutes}",
        f"- searcher {found.searcher}, scheduler {found.scheduler}, {len(found.trials)} trials",
        f"- goal: {found.metric} on the validation window{_floor(found)}",
        "",
        *[f"{line}\n" for line in finals_sentences(found.finals)],
        *_finals_lines(found.finals),
        "## Trials",
        "",
        f"| rank | trial | {found.metric} | vs config | {found.whole} | seconds | | changes |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "## Pareto front",
        "",
        f"Trials that no other beats in {found.metric} without losing in {found.whole}.",
        "",
        f"| trial | {found.metric} | {found.whole} |",
        "|---|---|---|",
        *(f"| {one.number} | {one.score:.4f} | {one.whole:.4f} |" for one in pareto(found.trials)),
    ]
    if found.importance:
        lines += ["", "## Importance", "", "Share of the score's variance over the space that a setting explains (fANOVA); it says nothing of a direction.", ""]
        lines += ["| setting | share |", "|---|---|", *(f"| `{name}` | {share:.2f} |" for name, share in found.importance.items())]
    return "\n".join(lines) + "\n"


def _floor(found: SweepResults) -> str:
    return f", {found.whole} not below {found.floor:.4f} (the base ranker's less sweep.max_loss)" if found.floor is not None else ""


def _finals_lines(finals: Finals | None) -> list[str]:
    if finals is None:
        return []
    lines = []
    windows: Mapping[str, Arms | None] = {"Validation": finals.validation, "Test": finals.test}
    for window, arms in windows.items():
        if arms is None:
            continue
        lines += [f"## {window} window, finalists", "", f"| | {finals.slice} | all rows |", "|---|---|---|"]
        for label, slices in arms.items():
            cells = []
            for name in (finals.slice, "all"):
                gap = f" ({relative(slices[name].vs['start'], arms['start'][name])})" if "start" in slices[name].vs else ""
                cells.append(f"{slices[name].mean:.4f}{gap}")
            lines.append(f"| {LABELS.get(label, label)} | {' | '.join(cells)} |")
        lines += ["", f"{finals.metric.upper()}, in brackets the difference from the config as it stood, intervals of 95 % over seeds and users.", ""]
    return lines


def page(found: SweepResults) -> str:
    """The HTML page; no script, nothing from elsewhere."""
    start = next((one for one in found.trials if one.number == 0), None)
    goal = f"Goal: {found.metric} on the validation window{_floor(found)}."
    parts = [
        f'<p class="kicker">Longtail sweep</p><h1>{escape(found.ranker)}</h1>',
        *(f"<p>{escape(line.replace('`', ''))}</p>" for line in finals_sentences(found.finals)),
        section("Trials by score", goal, figure(f"{found.metric} against {found.whole}", _scatter(found), _DOTS)),
        section("The search", "", figure(f"{found.metric} in the order begun", _history(found), "The line is the best trial so far that may win.")),
    ]
    if found.importance:
        shares = figure("Share of the score's variance that a setting explains (fANOVA)", _bars(found.importance), "It says nothing of a direction.")
        parts.append(section("Importance", "", shares))
    head = "".join(f'<th class="left">{escape(one)}</th>' for one in ("rank", "trial", found.metric, "vs config", found.whole, "s", "", "changes"))
    rows = "".join(
        "<tr>"
        + "".join(f'<td class="left">{escape(cell)}</td>' for cell in (str(place), str(one.number), *_row(one, start), status(one), changes(one, start)))
        + "</tr>"
        for place, one in enumerate(found.trials, start=1)
    )
    parts.append(section("Ranked", "", f'<div class="wide"><table class="metrics"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'))
    return document(f"Longtail sweep: {found.ranker}", "".join(parts), STYLE)


_DOTS = "Each dot is a trial, the hollow one the config as it stood; the line joins the Pareto front, left of the dashed line lie those below the constraint."


def _colour(trial: Trial) -> str:
    return GOOD if trial.feasible else BAD if trial.state == "finished" else PLAIN


def _tip(trial: Trial) -> str:
    return (
        f"trial {trial.number}: {trial.score:.4f}, over all rows {trial.whole:.4f}"
        if trial.score is not None and trial.whole is not None
        else f"trial {trial.number}"
    )


def _grid(canvas: Canvas, x: Scale, y: Scale) -> None:
    """Lines and numbers at the round values of both scales."""
    for value in y.ticks():
        canvas.line(x.start, y(value), x.end, y(value), GRID)
        canvas.text(x.start - 8, y(value) + 4, f"{value:g}", "end")
    for value in x.ticks():
        canvas.text(x(value), y.start + 18, f"{value:g}", "middle")


def _scatter(found: SweepResults) -> str:
    known = [one for one in found.trials if one.score is not None and one.whole is not None]
    canvas = Canvas(760, 400, f"{found.metric} against {found.whole}, a dot a trial")
    if not known:
        canvas.text(380, 200, "no trial has a score", "middle")
        return canvas.svg()
    x = Scale(*span([one.whole for one in known]), 80, 740)  # type: ignore[misc]  # all have one
    y = Scale(*span([one.score for one in known]), 350, 20)  # type: ignore[misc]
    _grid(canvas, x, y)
    if found.floor is not None and x.low < found.floor < x.high:
        canvas.line(x(found.floor), 350, x(found.floor), 20, ZERO, dash="4 4")
    front = [(x(one.whole), y(one.score)) for one in pareto(found.trials)]  # type: ignore[arg-type]
    if len(front) > 1:
        canvas.path(front, FRONT, 1.6)
    for one in known:
        canvas.dot(x(one.whole), y(one.score), _colour(one), _tip(one), hollow=one.number == 0)  # type: ignore[arg-type]
    canvas.text(410, 390, found.whole, "middle", INK)
    canvas.text(16, 185, found.metric, "middle", INK, rotate=-90)
    return canvas.svg()


def _history(found: SweepResults) -> str:
    known = sorted((one for one in found.trials if one.score is not None), key=lambda one: one.number)
    canvas = Canvas(760, 300, f"{found.metric} by trial")
    if not known:
        canvas.text(380, 150, "no trial has a score", "middle")
        return canvas.svg()
    x = Scale(0, max(1, known[-1].number), 80, 740)
    y = Scale(*span([one.score for one in known]), 250, 20)  # type: ignore[misc]  # all have one
    _grid(canvas, x, y)
    best, line = None, []
    for one in known:
        if one.feasible and (best is None or one.score > best):  # type: ignore[operator]
            best = one.score
        if best is not None:
            line.append((x(one.number), y(best)))
    if len(line) > 1:
        canvas.path(line, GOOD, 1.6)
    for one in known:
        canvas.dot(x(one.number), y(one.score), _colour(one), _tip(one), hollow=one.number == 0)  # type: ignore[arg-type]
    canvas.text(410, 292, "trial", "middle", INK)
    return canvas.svg()


def _bars(shares: Mapping[str, float]) -> str:
    canvas = Canvas(760, 24 * len(shares) + 12, "importance by setting")
    for place, (name, share) in enumerate(shares.items()):
        top = 24 * place + 6
        canvas.text(330, top + 13, name, "end", INK)
        canvas.rect(340, top + 2, 350 * share, 14, GOOD, f"{name}: {share:.3f}")
        canvas.text(346 + 350 * share, top + 13, f"{share:.2f}", fill=MUTED)
    return canvas.svg()
