"""How every stage's time and the driver's memory grow: the whole line on a synthetic world of 1, 2, 4 and 8 times the users and items.

Each size runs in a process of its own, which starts one Ray and then builds stage after stage; a stage's time is its own, with its actors' start and without
Ray's. Memory is the driver's: the most that was resident while the stage ran. An exponent p is the slope of log time, or log memory, over log size: work that
is done once a row has 1, a fixed cost draws it below. `last_doubling` is the slope between the two largest sizes alone, where fixed costs weigh least.
The profiles are those by rule: the language model's time is its prompts' number times what bench.profiles measures of one.
Writes runs to a temporary folder. Run: python -m bench.scaling [--users 400]
Last stdout line: one JSON object, whose `ours_s` is the largest size's whole time; there are no peers.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.rounds import rounded, say
from longtail.config import Config, load
from pipelines.cluster import ROOT, ray_session
from pipelines.errors import clear_errors
from pipelines.full import stages
from pipelines.stage import ensure, open_store

FACTORS = (1, 2, 4, 8)
TIME_EXPONENT, MEMORY_EXPONENT = 1.05, 0.2
_STATUS, _CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def config_of(factor: int, users: int, folder: str) -> Config:
    """A synthetic world of `factor` times the users, items and, with them, events."""
    return load(
        "pipelines/configs/test.toml",
        [
            f"run.uri={folder}/times_{factor}",
            f"logs.synthetic.num_users={users * factor}",
            f"logs.synthetic.num_items={users * factor}",
            "profiles.generator=deterministic",
            "tracking.backend=none",
            "train.epochs=1",
        ],
    )


def peak_mib() -> float:
    """The most of this process that was resident since `forget_peak`."""
    (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    """The kernel begins the peak anew at what is resident now."""
    _CLEAR_PEAK.write_text("5")


def one(config: Config) -> dict[str, dict[str, float]]:
    """Seconds, rows and the driver's peak of every stage, in the order of the data."""
    store, found = open_store(config), {}
    with ray_session(config.cluster):
        for stage in stages(config):
            forget_peak()
            outcome = ensure(stage, config, store)
            found[stage.name] = {"seconds": outcome.seconds, "driver_mib": peak_mib(), "rows": outcome.artifact.manifest["rows"]["out"]}
    return found


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log value over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def report(by_factor: dict[int, dict[str, dict[str, float]]], users: int) -> dict[str, Any]:
    """The JSON line."""
    factors = sorted(by_factor)
    found: dict[str, dict[str, Any]] = {}
    for name in by_factor[factors[0]]:
        seconds, memory = ([by_factor[factor][name][what] for factor in factors] for what in ("seconds", "driver_mib"))
        found[name] = {
            "rows": [int(by_factor[factor][name]["rows"]) for factor in factors],
            "seconds": [rounded(value) for value in seconds],
            "time_exponent": round(exponent(factors, seconds), 2),
            "last_doubling": round(math.log2(seconds[-1] / seconds[-2]), 2),
            "driver_mib": [round(value) for value in memory],
            "memory_exponent": round(exponent(factors, memory), 2),
        }
    reach = {
        f"{name}: {what}": [wanted, values[what], values[what] <= wanted]
        for name, values in found.items()
        for what, wanted in (("time_exponent", TIME_EXPONENT), ("memory_exponent", MEMORY_EXPONENT))
    }
    return {
        "bench": "scaling",
        "work": {"users": [users * factor for factor in factors], "source": "synthetic"},
        "ours_s": rounded(sum(values["seconds"] for values in by_factor[factors[-1]].values())),
        "peers": {},
        "ratio": {},
        "spread": {"rounds": 1},
        "threads": 2,
        "quality": {"stages": found, "reach": reach},
    }


def bench(users: int) -> dict[str, Any]:
    """Every size in its own process."""
    by_factor = {}
    with tempfile.TemporaryDirectory(prefix="longtail-bench-") as folder:
        for factor in FACTORS:
            command = [sys.executable, "-m", "bench.scaling", "--users", str(users), "--one", str(factor), "--folder", folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}")
            by_factor[factor] = json.loads(done.stdout.strip().splitlines()[-1])
    return report(by_factor, users)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=400, help="and as many items, at size 1")
    parser.add_argument("--one", type=int, metavar="factor", help="run one size only")
    parser.add_argument("--folder", default="runs", help="where --one keeps its run")
    args = parser.parse_args()
    with clear_errors():
        say(bench(args.users) if args.one is None else one(config_of(args.one, args.users, args.folder)))


if __name__ == "__main__":
    main()
