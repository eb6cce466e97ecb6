"""Samples: own features of examples as known at their time, out of 20 M events of 200,000 users, beside one polars and one DuckDB query.

Ours is longtail.sample_shares in threads of this process, from the logs' Parquet to the samples' parts: every own feature, all columns. The peers answer for
the features that cost most (bench.samples_peers names them) and write one file; what both have is compared value by value. Same files, rows and threads.
Three sides take turns on a tenth of the world, then ours and the faster peer on the whole (--slower: the slower one too, once). Beside them: the Ray stage with
Ray started, and a child that makes all samples in less memory than the events and the rows would take as arrays.

    python -m bench.samples                      about six minutes, of which the world takes half a minute the first time
    python -m bench.samples --num-events 200000 --num-users 2000 --num-items 1000 --num-examples 20000
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from bench import rounds
from bench.samples_peers import LASTS, duckdb_samples, polars_samples
from bench.world import Sizes, World, add_flags, sizes_from, world
from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.features import CROSS_STATS, NEVER_DAYS, USER_STATS
from longtail.run_state import load_behaviour, load_entities
from longtail.sample_shares import SampleShares, num_shares, run_steps
from longtail.times import DAY_US
from pipelines import work
from pipelines.cluster import ray_session
from pipelines.collaborative import COLLABORATIVE
from pipelines.samples import SAMPLES, targets
from pipelines.stage import ensure

SIZE_FLAGS = ("num_events", "num_users", "num_items", "num_examples", "seed")
OWN_COUNTS = {"purchases": "num_purchases", "item_events": "item_events"}  # the peers' name, and ours
BYTES_OF = {"user_id": 12, "item_id": 12, "ts": 8, "kind": 10, "price": 8}  # of one event in Arrow, offsets included
ROW_BYTES = 650  # of one row of samples
SLOWEST = 1.3  # times the faster peer's time
SMALL_MB = 256  # of an actor's events and rows, in the run that is bounded


class Ours:
    """The steps of longtail.sample_shares in threads of this process."""

    def __init__(self, made: World, folder: Path, threads: int, memory_mb: int | None = None) -> None:
        samples = {} if memory_mb is None else {"memory_mb": memory_mb}
        self.config = made.config({"run": {"uri": str(folder)}, "samples": {"compute": {"num_actors": threads}, **samples}})
        self.store, self.threads = Store.open(str(folder)), threads
        self.logs = made.logs(self.config, self.store)
        with work.in_place():
            self.collaborative = ensure(COLLABORATIVE, self.config, self.store).artifact

    def before(self) -> None:
        """Forget what a process keeps of its run."""
        load_entities.cache_clear()
        load_behaviour.cache_clear()

    def run(self) -> str:
        """All samples, from the logs' files; returns the folder of their parts."""
        return made_samples(self.logs, self.collaborative, self.config, self.store, self.threads)


def made_samples(logs: Artifact, collaborative: Artifact, config: Config, store: Store, threads: int) -> str:
    """All steps in threads; returns the folder of the parts."""
    draft = store.create("samples", "bench")
    folder = Path(draft.path("shares/files")).parent
    info_rows = (logs.info["num_events"], sum(logs.info["num_examples"].values()))
    shares = SampleShares(logs, collaborative, config, str(folder), num_shares(*info_rows, config.samples))
    parts = targets(draft, sorted(str(path) for path in Path(logs.path("examples.parquet")).iterdir()), "samples")
    _ = shares.entities, shares.grid  # made once, and not by every thread
    with ThreadPoolExecutor(threads) as pool:

        def order(step: str, jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
            return list(pool.map(lambda job: getattr(shares, step)(*job), jobs))

        run_steps(order, logs, parts, shares.num_shares)
    shutil.rmtree(folder)
    return str(Path(parts[0][1]).parent)


def compare(ours: str, peer: Path) -> None:
    """Raise where a peer's answer is another than ours.

    Raises:
        ValueError: a column differs; the counts as float32 of log1p, as samples have them.
    """
    mine, theirs = pq.read_table(ours), pq.read_table(peer)
    my_rows, their_rows = (np.argsort(table.column("example_id").to_numpy()) for table in (mine, theirs))
    for name, (own, other) in _pairs(mine, theirs).items():
        differing = int((own[my_rows] != other[their_rows]).sum())
        if differing:
            raise ValueError(f"{peer.stem}: {differing} of {own.size} values of {name!r} differ from ours; one of the two queries is wrong.")


def _pairs(mine: pa.Table, theirs: pa.Table) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Our columns and the peer's by name, in one form."""
    cross, stats = _matrix(mine, "cross_stats"), _matrix(mine, "user_stats")
    days = {name: (theirs.column("ts").to_numpy() - theirs.column(name).to_numpy()) / DAY_US for name in LASTS}  # NaN where there is none
    pairs = {name: (mine.column(column).to_numpy(), theirs.column(name).to_numpy()) for name, column in OWN_COUNTS.items()}
    for name in ("same_item", "same_leaf", "same_root", "same_brand"):
        pairs[name] = cross[:, CROSS_STATS.index(f"log_{name}")], np.log1p(theirs.column(name).to_numpy()).astype(np.float32)
    pairs["last"] = stats[:, USER_STATS.index("log_days_since_last")], np.log1p(np.nan_to_num(days["last"], nan=NEVER_DAYS)).astype(np.float32)
    for name, column in (("last_item", "item_recency"), ("last_leaf", "leaf_recency")):
        own = cross[:, CROSS_STATS.index(column)]
        never = np.float32(1 / (1 + NEVER_DAYS))  # 0 where the leaf is unknown: for the peers it was never met either
        pairs[name] = np.where(own == 0, never, own), (1 / (1 + np.nan_to_num(days[name], nan=NEVER_DAYS))).astype(np.float32)
    return pairs | {name: (_matrix(mine, name), _matrix(theirs, name)) for name in ("history", "history_days")}


def _matrix(table: pa.Table, name: str) -> npt.NDArray[Any]:
    matrix: npt.NDArray[Any] = table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    return matrix


def sides(made: World, folder: Path, threads: int, names: Sequence[str]) -> dict[str, rounds.Side]:
    """The sides of these names over one world, each writing below `folder`."""
    ours, length, days = Ours(made, folder / "ours", threads), made.config().samples.history_length, made.config().samples.snapshot_days
    by_name = {
        rounds.OURS: rounds.Side(ours.run, ours.before),
        "polars": rounds.Side(lambda: polars_samples(made, folder / "polars.parquet", length, days)),
        "duckdb": rounds.Side(lambda: duckdb_samples(made, folder / "duckdb.parquet", length, days, threads)),
    }
    return {name: by_name[name] for name in names}


def timed(made: World, folder: Path, threads: int, names: Sequence[str], num_rounds: int, warm_up: int) -> dict[str, rounds.Taken]:
    """The sides in turns over one world, their results compared."""
    folder.mkdir()
    taken = rounds.in_turns(sides(made, folder, threads, names), num_rounds, warm_up)
    for name in names:
        if name != rounds.OURS:
            compare(taken[rounds.OURS].result, taken[name].result)
    shutil.rmtree(folder)
    return taken


def stage_s(made: World, folder: Path, threads: int) -> float:
    """Seconds of the Ray stage: its actors' start is in it, Ray's is not."""
    sections = {"run": {"uri": str(folder)}, "samples": {"compute": {"num_actors": threads}}, "cluster": {"num_cpus": threads, "dashboard": False}}
    config, store = made.config(sections), Store.open(str(folder))
    made.logs(config, store)
    with ray_session(config.cluster):
        ensure(COLLABORATIVE, config, store)
        return ensure(SAMPLES, config, store).seconds


def bounded(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """A child that makes all samples with SMALL_MB for events and rows: its seconds and its peak, beside what the events and the rows take as arrays."""
    flags = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in SIZE_FLAGS]
    command = [sys.executable, "-m", "bench.samples", "--child", str(folder), "--threads", "1", *flags]
    told: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    return told


def child(made: World, folder: Path) -> dict[str, float]:
    """What `bounded` asks for."""
    ours = Ours(made, folder, 1, SMALL_MB)
    ours.before()
    idle, began = peak_mb(), time.perf_counter()
    ours.run()
    return {"seconds": round(time.perf_counter() - began, 2), "peak_mb": peak_mb(), "before_mb": idle, "input_mb": input_mb(made), "memory_mb": SMALL_MB}


def peak_mb() -> float:
    """The most that was resident of this process; getrusage would name its parent's where that was more when it was started."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 2**10, 0)


def input_mb(made: World) -> float:
    """The columns that are read of the events, as Arrow arrays, plus the samples' rows."""
    events = made.sizes.num_events * sum(BYTES_OF.values())
    return round((events + made.sizes.num_examples * ROW_BYTES) / 2**20, 0)


def main() -> None:
    parser = rounds.arguments(__doc__)
    add_flags(parser, SIZE_FLAGS)
    parser.add_argument("--slower", action="store_true", help="run the slower peer once on the whole too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    pa.set_cpu_count(args.threads)
    whole = sizes_from(args)
    if args.child:
        rounds.say(child(world(whole), Path(args.child)))
        return
    if pl.thread_pool_size() != args.threads:
        raise ValueError(
            f"--threads = {args.threads}: polars has taken {pl.thread_pool_size()}. Set POLARS_MAX_THREADS={args.threads}, or leave --threads out."
        )
    with tempfile.TemporaryDirectory(prefix="bench-samples-") as temporary:
        folder = Path(temporary)
        rounds.say(line(args, whole, folder))


def line(args: argparse.Namespace, whole: Sizes, folder: Path) -> dict[str, Any]:
    """All that is measured."""
    tenth = replace(whole, num_events=whole.num_events // 10, num_users=whole.num_users // 10, num_examples=whole.num_examples // 10)
    part = timed(world(tenth), folder / "tenth", args.threads, (rounds.OURS, "polars", "duckdb"), args.rounds, 1)
    faster, slower = sorted(("polars", "duckdb"), key=lambda name: part[name].median_s)
    # The tenth has warmed up all code; what is left is the files' first reading, which falls on the child's run.
    memory = bounded(args, folder / "bounded")
    taken = timed(world(whole), folder / "whole", args.threads, (rounds.OURS, faster), args.rounds, 0)
    once = timed(world(whole), folder / "once", args.threads, (rounds.OURS, slower), 1, 0) if args.slower else {}
    stage = stage_s(world(whole), folder / "stage", args.threads)
    ratio = taken[rounds.OURS].median_s / taken[faster].median_s
    quality = {
        "equal": "counts, last times and histories, value by value",
        "tenth_s": {name: rounds.rounded(one.median_s) for name, one in part.items()},
        "tenth_spread_s": {name: rounds.least_and_most(one.seconds) for name, one in part.items()},
        "slower_peer_once_s": {name: rounds.rounded(one.median_s) for name, one in once.items()},
        "stage_s": rounds.rounded(stage),
        "bounded": memory,
        "reach": {
            f"time to {faster}'s": [f"<= {SLOWEST}", rounds.rounded(ratio), ratio <= SLOWEST],
            "peak in MB where the input is larger": [f"<= {memory['input_mb']:g}", memory["peak_mb"], memory["peak_mb"] <= memory["input_mb"]],
        },
    }
    work_done = {"events": whole.num_events, "users": whole.num_users, "items": whole.num_items, "examples": whole.num_examples, "history": 50}
    return rounds.report("samples", work_done, taken, threads=args.threads, quality=quality)


if __name__ == "__main__":
    main()
