"""Code drift's results as the JSON that its stage writes and as the Markdown that its command writes.

Means are over seeds, ± is their standard deviation; the errors' are of the ratio to the cold refits (both seeds' mean) of the same day and first codebook.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from longtail.code_drift import CHAINS, WAYS, Identified, Refit
from longtail.settings import Settings

COLD = ("cold", "cold_reseeded")


class CodeDriftResults(Settings):
    """What code_drift.json holds."""

    items: int
    days: tuple[int, ...]  # the first is 0, the end of the history window
    known: tuple[int, ...]  # items, by day
    refits: tuple[Refit, ...]
    identified: tuple[Identified, ...]
    reports: tuple[dict[str, object], ...]  # of the first codebooks, by seed
    settings: dict[str, object]  # of codes.item


def page(found: CodeDriftResults, about: Mapping[str, str]) -> str:
    """The Markdown; `about` is what the command knows of itself: dataset, when, machine, commit, command."""
    stages, size = found.settings["num_stages"], found.settings["codebook_size"]
    lines = [
        f"# Item codes over refits, {about['dataset']}",
        "",
        f"Residual k-means codes (S = {stages}, k = {size}) of {found.items:,} items, {found.known[0]:,} of them known at `history_end`. A codebook is",
        "fitted on these and refitted at later days until `train_end` on the items known by then; the vectors of `item_z` stay. Means over",
        f"{len(found.reports)} first codebooks, ± their standard deviation. {about['machine']}, {about['when']}, commit {about['commit']}. Command:",
        "",
        "```",
        about["command"],
        "```",
        "",
        "Kept: of the items known at `history_end`, the share whose codes are what they were, and the same weighted by the items' events until",
        "the refit. MSE: of the items known at the refit, and of the others in the catalogue (later), over the mean of the cold refits of that day.",
        "Confused: the share of the known items whose tuple an item of other content has too. `platform/longtail/code_drift.py` defines all measures.",
        "",
        *_quality(found),
    ]
    for day in _shown(found.days):
        lines += ["", f"## One refit after {day} days", "", f"{found.known[found.days.index(day)]:,} items known.", "", *_once(found, day)]
    lines += ["", f"## A refit at each of the days {', '.join(map(str, found.days[1:]))}, each from the one before", "", *_chain(found)]
    lines += ["", "## Places within a tuple", "", *_places(found), "", "## Read plainly", "", *plainly(found)]
    return "\n".join(lines) + "\n"


def _shown(days: Sequence[int]) -> list[int]:
    """The first two refits and the last."""
    return sorted({*days[1:3], days[-1]})


def _quality(found: CodeDriftResults) -> list[str]:
    """The first codebooks' reports, by prefix."""
    stages = len(found.reports[0]["mse_frac"])  # type: ignore[arg-type]
    lines = ["## The first codebook", "", "| | " + " | ".join(_codes(stage) for stage in range(stages)) + " |", "|---|" + "---|" * stages]

    def row(name: str, values: Sequence[Sequence[float]], form: str) -> None:
        means = np.mean(np.array(values, float), axis=0)
        lines.append(f"| {name} | " + " | ".join(format(mean, form) for mean in means) + " |")

    row("MSE over variance", [one["mse_frac"] for one in found.reports], ".3f")  # type: ignore[misc]
    row("dead codes of the stage", [one["dead_codes"] for one in found.reports], ".1f")  # type: ignore[misc]
    for which, of in (("fitted", "fitted items"), ("all", "all items")):
        for name, key, form in (
            ("distinct", "tuples", ",.0f"),
            ("share of the possible ones in use", "used_frac", ".4f"),
            ("largest", "largest_size", ",.0f"),
            ("Gini", "gini", ".3f"),
            ("perplexity", "perplexity", ",.1f"),
            ("shared with any item", "collision_rate", ".3f"),
            ("shared with an item of other content", "different_content_rate", ".3f"),
        ):
            row(f"{of}: {name}", [[depth[key] for depth in one[which]] for one in found.reports], form)  # type: ignore[attr-defined]
    return lines


def _codes(stage: int) -> str:
    return "code 1" if stage == 0 else f"codes 1 to {stage + 1}"


def _pick(found: CodeDriftResults, way: str, day: int) -> list[Refit]:
    return sorted((one for one in found.refits if one.way == way and one.day == day), key=lambda one: one.seed)


def _ratio(found: CodeDriftResults, way: str, day: int, field: str) -> np.ndarray | None:
    """Of each seed, the error over the cold refits'; None where there is none."""
    values = [getattr(one, field) for one in _pick(found, way, day)]
    cold = [[getattr(one, field) for one in _pick(found, name, day)] for name in COLD]
    return None if any(value is None for value in values) else np.array(values) / np.mean(np.array(cold, float), axis=0)


def _head(found: CodeDriftResults, *more: str) -> list[str]:
    stages = len(found.refits[0].kept_items)
    columns = [*(f"{_codes(stage)}, items" for stage in range(stages)), *(f"{_codes(stage)}, events" for stage in range(stages)), *more]
    columns += ["MSE, known", "MSE, later", "confused"]
    return ["| refit | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]


def _line(found: CodeDriftResults, name: str, way: str, day: int, more: Sequence[str] = ()) -> str:
    chosen = _pick(found, way, day)
    shares = [_share([one.kept_items for one in chosen]), _share([one.kept_events for one in chosen])]
    errors = [_error(_ratio(found, way, day, field)) for field in ("mse", "mse_later")]
    return "| " + " | ".join([name, *shares[0], *shares[1], *more, *errors, f"{np.mean([one.confused for one in chosen]):.3f}"]) + " |"


def _share(values: Sequence[Sequence[float]]) -> list[str]:
    array = np.array(values)
    return [f"{mean:.3f} ±{spread:.3f}" for mean, spread in zip(array.mean(axis=0), _spread(array), strict=True)]


def _spread(array: np.ndarray) -> np.ndarray:
    return np.asarray(array.std(axis=0, ddof=1) if len(array) > 1 else np.zeros(array.shape[1:]))


def _error(ratio: np.ndarray | None) -> str:
    return "" if ratio is None else f"{100 * (ratio.mean() - 1):+.2f} % ±{100 * float(_spread(ratio)):.2f}"


def _once(found: CodeDriftResults, day: int) -> list[str]:
    return _head(found) + [_line(found, name, way, day) for way, name in WAYS.items()]


def _chain(found: CodeDriftResults) -> list[str]:
    """At the last day; what a step keeps is the mean over steps."""
    lines = _head(found, "all codes, items, a step")
    for way, name in CHAINS.items():
        steps = [one.kept_step[-1] for one in found.refits if one.way == way and one.kept_step is not None]
        lines.append(_line(found, name, way, found.days[-1], [f"{np.mean(steps):.3f}"]))
    return lines


def _places(found: CodeDriftResults) -> list[str]:
    mean = {name: float(np.mean([getattr(one, name) for one in found.identified])) for name in ("beyond_first", "kept_anew", "kept_going_on")}
    most = max(one.num_places for one in found.identified)
    return [
        f"With the first codebook and the items of day {found.days[-1]}, {mean['beyond_first']:.1%} of the items have a place beyond the first, and up to",
        f"{most} places of a tuple are taken. Of the items of day 0, {mean['kept_anew']:.1%} would keep tuple and place if places were dealt anew by item id,",
        f"{mean['kept_going_on']:.1%} keep them where the assignment goes on from the earlier one.",
    ]


def plainly(found: CodeDriftResults) -> list[str]:
    """What the last refit says, gains and losses alike, as sentences made from the figures."""
    day = found.days[-1]

    def share(way: str, code: int = -1, field: str = "kept_items") -> str:
        return f"{np.mean([getattr(one, field)[code] for one in _pick(found, way, day)]):.1%}"

    def error(way: str, field: str = "mse") -> str:
        ratio = _ratio(found, way, day, field)
        return "no figure" if ratio is None else f"{100 * (ratio.mean() - 1):+.2f} %"

    by_side: dict[int, list[str]] = {-1: [], 0: [], 1: []}
    for way in (*WAYS, *CHAINS):
        if not way.startswith(("cold_distance", "cold_overlap", "chain_cold")) and way not in COLD:  # those have the cold refits' own errors
            by_side[_side(_ratio(found, way, day, "mse"))].append(WAYS[way] if way in WAYS else f"chained {CHAINS[way]}")
    return [
        f"After {day} days, all codes of an item, and MSE against cold refits:",
        "",
        f"- **Cold refit**: {share('cold')} of the items keep their codes with the same seed, {share('cold_reseeded')} with another.",
        f"- **Cold refit, matched**: code 1 goes from {share('cold_reseeded', 0)} to {share('cold_overlap', 0)} of the items (by distance",
        f"  {share('cold_distance', 0)}), all codes to {share('cold_overlap')}: the refit is another local optimum, and no permutation mends that.",
        f"- **Warm start**: {share('warm', 0)} keep code 1, {share('warm')} all codes ({share('warm', field='kept_events')} of the events);",
        f"  MSE {error('warm')}, where a cold refit with twice the iterations has {error('cold_longer')}. Matched as well: {share('warm_overlap')}.",
        f"- **Fewer iterations from a warm start**: five keep {share('warm_5')} at {error('warm_5')}, one keeps {share('warm_1')} at {error('warm_1')}.",
        f"- **No refit** keeps all, at {error('none')}; on the items that are not known by then {error('none', 'mse_later')},",
        f"  a warm start {error('warm', 'mse_later')}.",
        f"- **Chained**, warm starts keep {share('chain_warm')} since the first day, with one iteration each",
        f"  {share('chain_warm_1')}, cold and matched refits {share('chain_cold')}.",
        f"- MSE lower than the cold refits' by more than two standard errors: {_named(by_side[-1])}.",
        f"- Higher by as much: {_named(by_side[1])}.",
        f"- No clear difference: {_named(by_side[0])}.",
    ]


def _side(ratio: np.ndarray | None) -> int:
    """Whether the seeds' mean lies below or above 1 by more than two standard errors: -1, 1, or 0 for neither."""
    if ratio is None or len(ratio) < 2:
        return 0
    gap, error = float(ratio.mean()) - 1, float(_spread(ratio)) / len(ratio) ** 0.5
    return 0 if abs(gap) <= 2 * error else int(np.sign(gap))


def _named(ways: Sequence[str]) -> str:
    return "; ".join(ways) or "none"
