"""The plan's predictions beside measured runs: rates from two sizes, predictions of three others, ratios of both, losses too.

Seconds are CPU seconds of the process that does a part, which other work on the machine changes least; the stages' manifests tell the time by the clock, and
it stands beside. Every size runs several times in turn and its fastest run counts.
Reads a config; writes plan_check.md. Run: python -m pipelines.plan --check --config pipelines/configs/test.toml --set profiles.generator=deterministic
"""

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail.artifacts import Store, source_commit
from longtail.capacity import n
from longtail.config import Config
from pipelines.calibration import (
    BYTES_OF,
    CALIBRATION_USERS,
    CANDIDATES,
    KMEANS_ROWS,
    NEIGHBOURS,
    RATES_OF,
    item_dim,
    request_ranker,
    requests,
    run_world,
    small_world,
    texts_of,
    user_dim,
)
from pipelines.parts_alone import Seen, kmeans, line_through, neighbours, texts
from pipelines.study import machine

logger = logging.getLogger(__name__)

CHECK_USERS = (600, 1200, 2400)
CHECK_KMEANS = (40_000, 80_000, 160_000)
CHECK_NEIGHBOURS = (8_000, 16_000, 24_000)
CHECK_CANDIDATES = (50, 100, 400)
ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """One prediction and what was measured."""

    part: str
    size: str
    units: float
    kind: str  # seconds | bytes
    predicted: float
    measured: float
    wall_s: float | None = None  # of the manifest

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured


def fastest(runs: Sequence[Mapping[str, Seen]]) -> dict[str, Seen]:
    """Each part as its fastest run had it."""
    return {part: min((run[part] for run in runs), key=lambda one: one.seconds) for part in runs[0]}


def predictions(rates_from: Sequence[Mapping[str, Seen]], others: Mapping[str, Mapping[str, Seen]], timed: Sequence[str], sized: Sequence[str]) -> list[Row]:
    """Of every part and size: seconds by a start and a rate, bytes by what a unit took in the larger of the sizes that rates are from."""
    rows = []
    for size, seen in others.items():
        for part, one in seen.items():
            base = [run[part] for run in rates_from]
            if part in timed:
                start, per_unit = line_through(base)
                rows.append(Row(part, size, one.units, "seconds", start + per_unit * one.units, one.seconds, one.wall_s))
            if part in sized:
                rows.append(Row(part, size, one.units, "bytes", base[-1].size / base[-1].units * one.units, one.size))
    return sorted(rows, key=lambda row: (row.kind, row.part, row.units))


def check(config: Config, out: Path, command: str) -> dict[str, Any]:
    """Run all sizes, write the page, which names the command; returns what the command's last line says."""
    runs: dict[str, dict[int, list[Mapping[str, Seen]]]] = {
        "users": {size: [] for size in sorted((*CALIBRATION_USERS, *CHECK_USERS))},
        "rows": {size: [] for size in sorted((*KMEANS_ROWS, *CHECK_KMEANS))},
        "points": {size: [] for size in sorted((*NEIGHBOURS, *CHECK_NEIGHBOURS))},
        "candidates": {size: [] for size in sorted((*CANDIDATES, *CHECK_CANDIDATES))},
    }
    for number in range(1, ROUNDS + 1):
        for num_users, of_size in runs["users"].items():
            with tempfile.TemporaryDirectory(prefix="longtail-plan-") as folder:
                world = run_world(small_world(config, num_users), Store.open(folder))
                alone = {part: texts(encoder, of_texts, [len(of_texts)])[0] for part, (encoder, of_texts) in texts_of(world).items()}
                of_size.append({**world.parts, **alone})
                if num_users == CALIBRATION_USERS[-1]:
                    sizes = runs["candidates"]
                    for size, one in zip(sizes, requests(request_ranker(world), list(sizes)), strict=True):
                        sizes[size].append({"requests": one})
            logger.info("check: round %d of %d, %d users done", number, ROUNDS, num_users)
        for size, of_size in runs["rows"].items():
            of_size.append({"k-means": kmeans(size, item_dim(config), config.codes.item.codebook_size)})
        for size, of_size in runs["points"].items():
            of_size.append({"exact search": neighbours(size, user_dim(config))})
    rows: list[Row] = []
    rates_from = {"users": CALIBRATION_USERS, "rows": KMEANS_ROWS, "points": NEIGHBOURS, "candidates": CANDIDATES}
    for word, by_size in runs.items():
        seen = {size: fastest(of_size) for size, of_size in by_size.items()}
        base = [seen[size] for size in rates_from[word]]
        others = {f"{size:,} {word}": one for size, one in seen.items() if size not in rates_from[word]}
        rows += predictions(base, others, (*RATES_OF.values(), "k-means", "exact search", "requests"), tuple(BYTES_OF.values()))
    worst = {kind: max(max(row.ratio, 1 / row.ratio) for row in rows if row.kind == kind) for kind in ("seconds", "bytes")}
    out.mkdir(parents=True, exist_ok=True)
    (out / "plan_check.md").write_text(page(rows, worst, command))
    return {"results": str(out / "plan_check.md"), "farthest_off": {kind: round(value, 2) for kind, value in worst.items()}}


def page(rows: Sequence[Row], worst: Mapping[str, float], command: str) -> str:
    """The results as Markdown."""
    table = [
        f"| {row.part} | {row.size} | {row.units:,.3g} | {row.kind} | {n(row.predicted)} | {n(row.measured)} | {row.ratio:.2f} | "
        f"{'' if row.wall_s is None else n(row.wall_s)} |"
        for row in rows
    ]
    sizes = f"worlds of {CALIBRATION_USERS[0]} and {CALIBRATION_USERS[1]} users and as many items, k-means of {KMEANS_ROWS[0]:,} and {KMEANS_ROWS[1]:,} rows, "
    sizes += f"exact search among {NEIGHBOURS[0]:,} and {NEIGHBOURS[1]:,} points, requests of {CANDIDATES[0]} and {CANDIDATES[1]} candidates"
    return "\n".join(
        [
            "# The capacity plan's predictions beside measured runs",
            "",
            f"- command: `{command}`; commit {source_commit()}; {machine()['machine']} {time.strftime('%Y-%m')}",
            f"- rates from {sizes}: seconds by a start and a rate, bytes by those of a unit in the larger size",
            f"- seconds are CPU seconds, the fastest of {ROUNDS} runs of each size; by the clock, which the manifests tell, whatever else ran counts too",
            "- units are rows (texts, events, candidates), operations of k-means and of search",
            f"- farthest off: seconds {worst['seconds']:.2f} times, bytes {worst['bytes']:.2f} times",
            "",
            "| part | size | units | what | predicted | measured | predicted / measured | by the clock, s |",
            "|---|---|---|---|---|---|---|---|",
            *table,
            "",
        ]
    )
