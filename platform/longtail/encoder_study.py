"""What a study of the item encoder found: Hit@k of held-out items by arm, in pairs over draws of who is held out, as a page.

Reads the `hits` of item encoders' manifests, one for each arm and seed; pipelines.encoder_study trains them. Every seed holds other items out, trains anew and
asks for other pairs, and all methods of a seed are asked for the same ones: a ratio's interval is Student's over the seeds' log ratios.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from longtail.settings import Settings

Hits = Mapping[str, Any]

#: The slices of the page, as the manifest calls them, and what they are.
SLICES = {
    "held_out_target": "target held out, all items are candidates",
    "among_held_out": "target held out, only held-out items are candidates",
    "hidden_target": "target in no training pair",
    "hidden_query": "query in no training pair",
    "all": "all later pairs",
}
METHODS = ("trained", "frozen", "start", "popularity", "co_occurrence", "chance")


class Ratio(Settings):
    """A ratio of two methods' Hit@k over seeds: the geometric mean with its 95 % interval, which takes two seeds."""

    mean: float | None
    low: float | None = None
    high: float | None = None
    above: int = 0  # seeds with a ratio above one
    seeds: int = 0

    def __str__(self) -> str:
        if self.mean is None:
            return "n/a"
        spread = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.mean:.2f}{spread}, {self.above} of {self.seeds}"


def ratio(over: Sequence[float | None], under: Sequence[float | None]) -> Ratio:
    """`over` / `under`, seed by seed; without a mean where a seed has no value or a value of zero."""
    pairs = list(zip(over, under, strict=True))
    if not pairs or any(not a or not b for a, b in pairs):
        return Ratio(mean=None, seeds=len(pairs))
    logs = np.log([a / b for a, b in pairs if a and b])
    above, mean = int((logs > 0).sum()), float(logs.mean())
    if len(logs) == 1:
        return Ratio(mean=math.exp(mean), above=above, seeds=1)
    half = float(stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs))
    return Ratio(mean=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half), above=above, seeds=len(logs))


def rates(found: Sequence[Hits], part: str, method: str) -> list[float | None]:
    """Hit@k of one method in one slice, seed by seed; None where the slice is empty or the method isn't asked there."""
    return [hits.get(part, {}).get(method) for hits in found]


def table(found: Mapping[str, Sequence[Hits]]) -> str:
    """Markdown of one data set's arms: Hit@k in percent, and the ratio of trained to frozen; where two arms share a method's vectors it stands twice."""
    columns = ["slice", "arm", "queries", *METHODS, "trained / frozen"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * 3 + "|---:" * len(METHODS) + "|---|"]
    for part, title in SLICES.items():
        for arm, hits in found.items():
            queries = [one[part]["queries"] for one in hits if one.get(part, {}).get("queries")]
            if not queries:
                continue
            cells = [title, f"`{arm}`", f"{min(queries):,} to {max(queries):,}" if len(set(queries)) > 1 else f"{queries[0]:,}"]
            cells += [_percent(rates(hits, part, method)) for method in METHODS]
            lines.append("| " + " | ".join([*cells, str(ratio(rates(hits, part, "trained"), rates(hits, part, "frozen")))]) + " |")
    return "\n".join(lines)


def _percent(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ± {100 * np.std(known, ddof=1):.2f}" if len(known) > 1 else ""
    return f"{100 * np.mean(known):.2f}{spread}"
