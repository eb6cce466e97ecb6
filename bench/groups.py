"""Groups: every prefix of three codes of 200,000 users, out of 20 M events, beside one polars and one DuckDB query.

Ours is what the stage's task does, pipelines.groups.one_snapshot: from the logs' and the codes' Parquet to the table of groups, users and items numbered
anew each time. The peers read the same files and answer the same (bench.groups_peers); all write one file. Results are compared value by value: sizes,
majorities and sequences are equal, statistics, supports and weights to float32's last digits. Three sides take turns on a tenth of the world and on the whole.
Beside them: the Ray stage with Ray started, and a child that has less memory than the events take as arrays.

    python -m bench.groups                       about three minutes, of which the world takes half a minute the first time
    python -m bench.groups --num-events 200000 --num-users 2000 --num-items 1000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("POLARS_MAX_THREADS", "2")  # before polars starts its threads
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from bench import rounds
from bench.groups_peers import duckdb_groups, polars_groups
from bench.samples import BYTES_OF, peak_mb
from bench.world import Sizes, World, add_flags, planted, sizes_from, world
from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.run_state import load_entities
from longtail.times import to_us
from pipelines.cluster import ray_session
from pipelines.codes import USER_CODES
from pipelines.groups import GROUPS, one_snapshot
from pipelines.stage import Stage, ensure, find

SIZE_FLAGS = ("num_events", "num_users", "num_items", "num_examples", "seed")
SLOWEST = 1.3  # times the faster peer's time
SMALL_MB = 16  # of the users' totals, in the run that is bounded
CLOSE = 1e-6  # of values near 1


class Ours:
    """The stage's work on one snapshot, in this process."""

    def __init__(self, made: World, folder: Path, threads: int, memory_mb: int | None = None) -> None:
        groups = {"threads": threads} | ({} if memory_mb is None else {"memory_mb": memory_mb})
        cluster = {"num_cpus": threads, "dashboard": False}
        self.config = made.config({"run": {"uri": str(folder)}, "groups": groups, "cluster": cluster})
        self.store, self.made, self.target = Store.open(str(folder)), made, folder / "groups.parquet"
        self.logs = made.logs(self.config, self.store)
        self.user_codes = plant(USER_CODES, self.config, self.store, {"codes.parquet": Path(made.path("user_codes"))})

    def before(self) -> None:
        """Forget what a process keeps of its run."""
        load_entities.cache_clear()

    def run(self) -> Path:
        """All groups, from the files; returns the file that they are in."""
        table = one_snapshot(self.logs, self.user_codes, to_us(self.made.info.history_end), self.config)
        pq.write_table(table, self.target, compression="zstd")
        return self.target

    def stage_s(self) -> float:
        """Seconds of the Ray stage: its task's process starts in them, Ray does not."""
        with ray_session(self.config.cluster):
            return ensure(GROUPS, self.config, self.store).seconds


def plant(stage: Stage, config: Config, store: Store, files: Mapping[str, Path]) -> Artifact:
    """A finished artifact of `stage`, and of what it would have been made from, which nobody reads, the same."""
    for upstream in stage.inputs:
        if find(upstream, config, store) is None:
            plant(upstream, config, store, files)
    return planted(stage, config, store, files, {})


def compare(ours: Path, peer: Path) -> None:
    """Raise where a peer's answer is another than ours.

    Raises:
        ValueError: other prefixes, or a column differs.
    """
    mine, theirs = _by_prefix(pq.read_table(ours)), _by_prefix(pq.read_table(peer))
    if mine.keys() != theirs.keys():
        raise ValueError(f"{peer.stem}: {len(theirs)} groups, ours are {len(mine)}, or other prefixes; one of the two is wrong.")
    for name in ("size", "attributes", "support", "stats", "sequence", "sequence_weight"):
        differing = [prefix for prefix in mine if not _alike(mine[prefix][name], theirs[prefix][name])]
        if differing:
            raise ValueError(f"{peer.stem}: {name} of {len(differing)} of {len(mine)} groups differs from ours, as of {differing[0]}; one of the two is wrong.")


def _by_prefix(groups: pa.Table) -> dict[tuple[int, ...], dict[str, Any]]:
    return {tuple(row["prefix"]): row for row in groups.select([name for name in groups.column_names if name != "as_of"]).to_pylist()}


def _alike(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, list) and mine and isinstance(mine[0], str):
        return bool([int(one[1:]) for one in mine] == theirs)  # the peers tell items by their place
    own, other = np.atleast_1d(mine), np.atleast_1d(theirs)
    return own.shape == other.shape and bool(np.allclose(own, other, rtol=CLOSE, atol=CLOSE))


def sides(made: World, folder: Path, threads: int) -> dict[str, rounds.Side]:
    """All sides over one world, each writing below `folder`."""
    folder.mkdir(exist_ok=True)
    ours = Ours(made, folder / "ours", threads)
    settings = ours.config.groups
    return {
        rounds.OURS: rounds.Side(ours.run, ours.before),
        "polars": rounds.Side(lambda: polars_groups(made, folder / "polars.parquet", settings)),
        "duckdb": rounds.Side(lambda: duckdb_groups(made, folder / "duckdb.parquet", settings, threads)),
    }


def timed(made: World, folder: Path, threads: int, num_rounds: int, warm_up: int = 1) -> dict[str, rounds.Taken]:
    """The sides in turns over one world, their results compared."""
    taken = rounds.in_turns(sides(made, folder, threads), num_rounds, warm_up)
    for name, one in taken.items():
        if name != rounds.OURS:
            compare(taken[rounds.OURS].result, one.result)
    return taken


def bounded(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """A child that makes all groups with SMALL_MB for the users' totals: its seconds and its peak, beside what the events take as arrays."""
    flags = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in SIZE_FLAGS]
    command = [sys.executable, "-m", "bench.groups", "--child", str(folder), "--threads", "1", *flags]
    environment = os.environ | {"POLARS_MAX_THREADS": "1"}
    told: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.splitlines()[-1])
    return told


def child(made: World, folder: Path) -> dict[str, float]:
    """What `bounded` asks for."""
    ours = Ours(made, folder, 1, SMALL_MB)
    idle, began = peak_mb(), time.perf_counter()
    ours.run()
    input_mb = round(made.sizes.num_events * sum(BYTES_OF.values()) / 2**20, 0)
    return {"seconds": round(time.perf_counter() - began, 2), "peak_mb": peak_mb(), "before_mb": idle, "input_mb": input_mb, "memory_mb": SMALL_MB}


def line(args: argparse.Namespace, whole: Sizes, folder: Path) -> dict[str, Any]:
    """All that is measured."""
    tenth = replace(whole, num_events=whole.num_events // 10, num_users=whole.num_users // 10, num_examples=whole.num_examples // 10)
    part = timed(world(tenth), folder / "tenth", args.threads, args.rounds)
    taken = timed(world(whole), folder / "whole", args.threads, args.rounds)
    faster = min(("polars", "duckdb"), key=lambda name: taken[name].median_s)
    memory, stage = bounded(args, folder / "bounded"), Ours(world(whole), folder / "stage", args.threads).stage_s()
    ratio = 1 / rounds.report("groups", {}, taken, threads=args.threads, quality={})["ratio"][faster]
    quality = {
        "equal": "sizes, majorities and sequences; statistics, supports and weights to float32's last digits",
        "groups": pq.read_metadata(taken[rounds.OURS].result).num_rows,
        "tenth_s": {name: rounds.rounded(one.median_s) for name, one in part.items()},
        "stage_s": rounds.rounded(stage),
        "bounded": memory,
        "reach": {
            f"time to {faster}'s": [f"<= {SLOWEST}", rounds.rounded(ratio), ratio <= SLOWEST],
            "peak in MB where the input is larger": [f"<= {memory['input_mb']:g}", memory["peak_mb"], memory["peak_mb"] <= memory["input_mb"]],
        },
    }
    work = {"events": whole.num_events, "users": whole.num_users, "items": whole.num_items, "stages": whole.num_stages}
    return rounds.report("groups", work, taken, threads=args.threads, quality=quality)


def main() -> None:
    parser = rounds.arguments(__doc__)
    add_flags(parser, SIZE_FLAGS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    pa.set_cpu_count(args.threads)
    whole = sizes_from(args)
    if args.child:
        rounds.say(child(world(whole), Path(args.child)))
        return
    if pl.thread_pool_size() != args.threads:
        raise ValueError(f"--threads = {args.threads}: polars has taken {pl.thread_pool_size()}. Set POLARS_MAX_THREADS={args.threads} too.")
    with tempfile.TemporaryDirectory(prefix="bench-groups-") as temporary:
        rounds.say(line(args, whole, Path(temporary)))


if __name__ == "__main__":
    main()
