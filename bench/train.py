"""Training: rows a second of our DIN-style base, ChoirRec and SaviorRec beside FuxiCTR's DIN, on the same rows, widths, optimiser and threads.

Ours reads its rows from Parquet as the stage does, which is timed with it; FuxiCTR's DIN gets its batches ready in memory, which is better than any loader of
its own. Each run is `--steps` steps from fresh weights; the held-out AUC of ours must not fall short of FuxiCTR's, and the tables must be as large. Beside it:
the loader alone over all rows, the share of time that training waits for it, two workers of one thread beside one, the stage under Ray Train.

Run: python -m bench.train
"""

import argparse
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import fuxictr_din, train_rows
from bench.rounds import OURS, Side, Taken, arguments, in_turns, least_and_most, report, rounded, say
from bench.train_stage import stage_rows_per_s
from bench.train_workers import Pair
from longtail.metrics import auc
from longtail.rankers.base import Base
from longtail.rankers.batch import Batch
from longtail.rankers.factory import build_ranker
from longtail.rankers.ranker import Ranker, predict_rows
from longtail.rankers.settings import RankersSettings
from longtail.sample_files import ALONE, GlobalBatch, SampleFiles, Workers
from longtail.training import TrainSettings
from longtail.training_loop import train_ranker

SEED = 7
PEER = "fuxictr_din"
WANTED = {"base": 2.0, "choirrec": 1.0, "saviorrec": 1.0}  # rows/s over FuxiCTR's DIN
WANTED_PAIR = 1.7
WAIT_FRAC = 0.1  # a loader for which training waits longer is a bottleneck
AUC_SLACK = 0.01  # two draws of the weights differ by as much after 200 steps
RATES = {"adagrad": 0.05, "adam": 0.001}  # held all along, as FuxiCTR does


@dataclass(frozen=True)
class Timed(SampleFiles):
    """Sample files that take the time for which their reader waits."""

    waited_s: list[float] = field(default_factory=list)

    def epoch(self, epoch: int, batch_size: int, seed: int, workers: Workers, device: torch.device | str = "cpu") -> Iterator[GlobalBatch]:
        shares, waited = super().epoch(epoch, batch_size, seed, workers, device), 0.0
        while True:
            began = time.perf_counter()
            share = next(shares, None)
            waited += time.perf_counter() - began
            if share is None:
                self.waited_s.append(waited)
                return
            yield share


class Ours:
    """One of our rankers, trained from fresh weights in every run."""

    def __init__(self, name: str, world: train_rows.World, files: SampleFiles, settings: TrainSettings) -> None:
        self.name, self.world, self.settings = name, world, settings
        self.files = Timed(**vars(files))
        self.rows = files.first_batch()
        self.ranker = self.fresh()

    def fresh(self) -> Ranker:
        torch.manual_seed(SEED)
        self.ranker = build_ranker(self.name, self.world.spec, self.world.catalogue(), RankersSettings())
        self.ranker.fit_statistics(self.rows)
        return self.ranker

    def run(self) -> list[float]:
        """The losses by step."""
        losses: list[float] = []
        train_ranker(self.ranker, self.files, self.settings, seed=SEED, fitted=True, on_step=lambda step, loss: losses.append(loss))
        return losses

    def auc(self, held: Batch) -> float:
        return auc(held.outcome_B.numpy().astype(np.int64), predict_rows(self.ranker, held).probabilities_BH[:, 0].numpy())

    def side(self) -> Side:
        return Side(self.run, before=lambda: void(self.fresh()))


class Theirs:
    """FuxiCTR's DIN with the base's widths, on the very batches that ours reads, ready in memory."""

    def __init__(self, ours: Ours) -> None:
        assert isinstance(ours.ranker, Base)
        self.base, self.settings = ours.ranker, ours.settings
        convert = partial(fuxictr_din.to_fuxictr, catalogue=self.base.catalogue, attributes=self.base.spec.attributes)
        self.convert = convert
        self.batches = [convert(share.batch) for share in ours.files.epoch(0, ours.settings.batch_size, SEED, ALONE)]
        self.fresh()

    def fresh(self) -> None:
        name = {"adagrad": "Adagrad", "adam": "Adam"}[self.settings.optimizer]
        self.model = fuxictr_din.build(self.base, SEED, self.settings.learning_rate, name)

    def run(self) -> None:
        self.model.train_epoch(self.batches)

    def auc(self, held: Batch) -> float:
        parts = [self.convert(held.rows(slice(at, at + 4096))) for at in range(0, len(held), 4096)]
        return auc(held.outcome_B.numpy().astype(np.int64), fuxictr_din.probabilities(self.model, parts))

    def side(self) -> Side:
        return Side(self.run, before=self.fresh)


def compare(ours: Ours, theirs: Theirs, held: Batch) -> dict[str, Any]:
    """AUC on held-out rows after the last round, and the sizes of both.

    Raises:
        ValueError: ours ranks worse, or trains smaller tables.
    """
    mine, other = ours.ranker.num_parameters(), fuxictr_din.parameters(theirs.model)
    found, wanted = ours.auc(held), theirs.auc(held)
    if mine["tables"] != other["tables"]:
        raise ValueError(f"embedding tables of {mine['tables']} numbers beside FuxiCTR's {other['tables']}: the widths must be the same.")
    if not found >= wanted - AUC_SLACK:
        raise ValueError(f"held-out AUC {found:.4f} beside FuxiCTR's {wanted:.4f}: faster must not be worse.")
    return {"auc": {OURS: rounded(found), PEER: rounded(wanted)}, "parameters": {OURS: mine, PEER: other}}


def loader_rows_per_s(files: SampleFiles, batch_size: int) -> float:
    """Rows a second of the loader with nobody to wait for."""
    began = time.perf_counter()
    rows = sum(len(share.batch) for share in files.epoch(0, batch_size, SEED, ALONE))
    return rows / (time.perf_counter() - began)


def ratios(taken: dict[str, Taken], name: str, peer: str = PEER) -> list[float]:
    """Rows a second of `name` over the peer's, round by round."""
    return [theirs / own for theirs, own in zip(taken[peer].seconds, taken[name].seconds, strict=True)]


def reach(wanted: float, found: float) -> list[Any]:
    return [wanted, rounded(found), found >= wanted]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The bench's line, with its rows below `folder`."""
    torch.set_num_threads(options.threads)
    world = train_rows.World.of(options.users, options.items, options.history, SEED)
    rows_per_part = options.batch_size * options.steps_per_part
    num_parts = max(math.ceil(options.rows / rows_per_part), math.ceil(options.steps / options.steps_per_part))
    train_rows.write(world, folder, num_parts, rows_per_part, SEED, options.held_out)
    everything = train_rows.scan(folder, world.spec)
    files = train_rows.first_parts(everything, math.ceil(options.steps / options.steps_per_part))
    rate = RATES[options.optimizer]
    settings = TrainSettings(epochs=1, batch_size=options.batch_size, optimizer=options.optimizer, learning_rate=rate, final_learning_rate=rate, keep="last")

    rankers = {name: Ours(name, world, files, settings) for name in WANTED}
    theirs = Theirs(rankers["base"])
    sides = {OURS: rankers["base"].side(), PEER: theirs.side(), **{name: rankers[name].side() for name in WANTED if name != "base"}}
    taken = in_turns(sides, options.rounds)
    named = {**taken, "base": taken[OURS]}
    rows = sum(files.labelled["train"])
    held = Batch.from_table(everything.load(0, "validation"), world.spec)
    waits = {name: statistics.median(one.files.waited_s[-options.rounds :]) / named[name].median_s for name, one in rankers.items()}
    quality: dict[str, Any] = {
        **compare(rankers["base"], theirs, held),
        "loss": {name: [rounded(statistics.fmean(part)) for part in np.array_split(named[name].result, 4)] for name in rankers},
        "rows_per_s": {name: rounded(rows / one.median_s) for name, one in named.items() if name != OURS},
        "waits_for_batches": {name: rounded(share) for name, share in waits.items()},
        "loader_rows_per_s": rounded(loader_rows_per_s(everything, options.batch_size)),
        "loader_rows": sum(everything.labelled["train"]),
    }
    for name in ("choirrec", "saviorrec"):
        quality["auc"][name] = rounded(rankers[name].auc(held))
    over_peer = {name: ratios(named, name) for name in WANTED}
    quality["ratio"] = {name: {"median": rounded(statistics.median(found)), "spread": least_and_most(found)} for name, found in over_peer.items()}
    goals = {name: reach(WANTED[name], statistics.median(found)) for name, found in over_peer.items()}
    goals["waits_for_batches"] = [f"<= {WAIT_FRAC}", rounded(max(waits.values())), max(waits.values()) <= WAIT_FRAC]
    del theirs, sides
    if options.pair_steps:
        with Pair(world, files, settings, options.pair_steps) as pair:
            found = in_turns({"one": Side(pair.one), "apart": Side(pair.apart), "two": Side(pair.two)}, options.rounds)
        speed_up, apart = ([2 * ratio for ratio in ratios(found, name, "one")] for name in ("two", "apart"))
        per_s = {name: rounded(pair.rows(name) / one.median_s) for name, one in found.items()}
        quality["two_workers"] = {"rows_per_s": per_s, "ratio": least_and_most(speed_up)}
        quality["two_workers"] |= {"apart_ratio": rounded(statistics.median(apart)), "apart_spread": least_and_most(apart)}
        goals["two_workers"] = reach(WANTED_PAIR, statistics.median(speed_up))
    if options.stage:
        quality["stage_rows_per_s"] = stage_rows_per_s(world, files, settings, options.threads)
    quality["reach"] = goals
    work = {name: getattr(options, name) for name in ("rows", "steps", "batch_size", "users", "items", "history", "optimizer")}
    return report("train", work, {OURS: taken[OURS], PEER: taken[PEER]}, threads=options.threads, quality=quality)


def void(_: object) -> None:
    """A value that nobody reads."""


def parse(arguments_: list[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000, help="of the table, which the loader reads once")
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--steps-per-part", type=int, default=50, help="batches in one file of rows")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--held-out", type=int, default=51_200, help="rows that AUC is measured on")
    parser.add_argument("--optimizer", choices=sorted(RATES), default="adagrad", help="of both")
    parser.add_argument("--pair-steps", type=int, default=100, help="of one worker beside two; 0: they are left out")
    parser.add_argument("--no-stage", dest="stage", action="store_false", help="leave Ray Train out")
    return parser.parse_args(arguments_)


def main() -> None:
    logging.disable(logging.WARNING)  # a run of few steps says so every time
    with tempfile.TemporaryDirectory(prefix="longtail-bench-train-") as folder:
        say(measure(parse(), Path(folder)))


if __name__ == "__main__":
    main()
