"""The plan's predictions beside measured runs: rates from two sizes, predictions of three others, ratios of both, losses too.

Every size runs several times in turn and its fastest run counts: other work on the machine only adds to a run.
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
from pipelines.calibration import BYTES_OF, CALIBRATION_USERS, KMEANS_ROWS, NEIGHBOURS, RATES_OF, item_dim, run_world, small_world, user_dim
from pipelines.parts_alone import Seen, kmeans, line_through, neighbours
from pipelines.study import machine

logger = logging.getLogger(__name__)

CHECK_USERS = (600, 1200, 2400)
CHECK_KMEANS = (40_000, 80_000, 160_000)
CHECK_NEIGHBOURS = (8_000, 16_000, 24_000)
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
                rows.append(Row(part, size, one.units, "seconds", start + per_unit * one.units, one.seconds))
            if part in sized:
                rows.append(Row(part, size, one.units, "bytes", base[-1].size / base[-1].units * one.units, one.size))
    return sorted(rows, key=lambda row: (row.kind, row.part, row.units))


def check(config: Config, out: Path) -> dict[str, Any]:
    """Run all sizes, write the page; returns what the command's last line says."""
    worlds: dict[int, list[Mapping[str, Seen]]] = {num_users: [] for num_users in sorted((*CALIBRATION_USERS, *CHECK_USERS))}
    codes: dict[int, list[Mapping[str, Seen]]] = {rows: [] for rows in sorted((*KMEANS_ROWS, *CHECK_KMEANS))}
    search: dict[int, list[Mapping[str, Seen]]] = {rows: [] for rows in sorted((*NEIGHBOURS, *CHECK_NEIGHBOURS))}
    for number in range(1, ROUNDS + 1):
        for num_users, runs in worlds.items():
            with tempfile.TemporaryDirectory(prefix="longtail-plan-") as folder:
                runs.append(run_world(small_world(config, num_users), Store.open(folder)).parts)
            logger.info("check: round %d of %d, %d users done", number, ROUNDS, num_users)
        for num_rows, runs in codes.items():
            runs.append({"k-means": kmeans(num_rows, item_dim(config), config.codes.item.codebook_size)})
        for num_rows, runs in search.items():
            runs.append({"exact search": neighbours(num_rows, user_dim(config))})
    rows: list[Row] = []
    for runs_of, small, large, word in (
        (worlds, CALIBRATION_USERS, CHECK_USERS, "users"),
        (codes, KMEANS_ROWS, CHECK_KMEANS, "rows"),
        (search, NEIGHBOURS, CHECK_NEIGHBOURS, "rows"),
    ):
        timed = (*RATES_OF.values(), "k-means", "exact search")
        seen = {size: fastest(runs) for size, runs in runs_of.items()}
        rows += predictions([seen[size] for size in small], {f"{size:,} {word}": seen[size] for size in large}, timed, list(BYTES_OF.values()))
    worst = {kind: max(max(row.ratio, 1 / row.ratio) for row in rows if row.kind == kind) for kind in ("seconds", "bytes")}
    out.mkdir(parents=True, exist_ok=True)
    (out / "plan_check.md").write_text(page(rows, worst))
    return {"results": str(out / "plan_check.md"), "farthest_off": {kind: round(value, 2) for kind, value in worst.items()}}


def page(rows: Sequence[Row], worst: Mapping[str, float]) -> str:
    """The results as Markdown."""
    table = [
        f"| {row.part} | {row.size} | {row.units:,.0f} | {row.kind} | {n(row.predicted)} | {n(row.measured)} | {row.ratio:.2f} |"
        for row in rows
    ]  # fmt: skip
    return "\n".join(
        [
            "# The capacity plan's predictions beside measured runs",
            "",
            f"- command: `python -m pipelines.plan --check`; commit {source_commit()}; {machine()['machine']} {time.strftime('%Y-%m')}",
            f"- seconds by a start and a rate, bytes by bytes a unit; both from worlds of {CALIBRATION_USERS[0]} and {CALIBRATION_USERS[1]} users and as many "
            f"items (k-means of {KMEANS_ROWS[0]:,} and {KMEANS_ROWS[1]:,} rows, exact search of {NEIGHBOURS[0]:,} and {NEIGHBOURS[1]:,})",
            f"- the fastest of {ROUNDS} runs of each size, since other work only adds; units are rows, and operations of k-means and of search",
            f"- farthest off: seconds {worst['seconds']:.2f} times, bytes {worst['bytes']:.2f} times",
            "",
            "| part | size | units | what | predicted | measured | predicted / measured |",
            "|---|---|---|---|---|---|---|",
            *table,
            "",
        ]
    )
