"""Serving under load, beside a hand-written FastAPI service of the same ranker on the same cores: throughput, latency, overload, a deploy in the middle.

Both answer the same requests (one user, 200 candidates, histories of 50 events, real features) to the same load generator (bench.load), which shares the cores;
its share is told. Rounds take turns, so that what else the machine does falls on both; on a machine that does much else, the ratios and the CPU time of each
request by process (bench.processes) are what can be compared.
Reads and writes what the run's stages do. Run: python -m bench.serve [--config bench/serve.toml] [--num 2000] [--rounds 5]
Last stdout line: one JSON object (bench.rounds); seconds are those of --num requests.
"""

import argparse
import json
import logging
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import requests
from ray import serve

from bench.processes import cpu_between, cpu_s, memory_bytes
from bench.rounds import OURS, Taken, report
from longtail.artifacts import Artifact
from longtail.config import Config, load
from pipelines.cluster import ROOT, ray_session
from pipelines.errors import clear_errors
from pipelines.logs import LOGS
from pipelines.stage import ensure, find, open_store
from pipelines.study import machine
from pipelines.train import RANKER_STAGES
from serve_apps.access import Access
from serve_apps.client import RankClient
from serve_apps.ranking import APP_NAME, application, deployed, quiet_logs, served_run
from serve_apps.served_run import Served

logger = logging.getLogger(__name__)

CANDIDATES = 200
CONNECTIONS = 4  # that ask again as soon as they are answered: one more than enough to keep a ranker busy, and no more than a replica lets wait
WARM_UP = 200
PHASE_S = 10.0
TOKEN = "of the bench"
ACCESS = Access(TOKEN, False)


def bodies(logs: Artifact, num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Requests of users as they act in the test window, with candidates that somebody has met."""
    draw = np.random.default_rng(seed)
    examples = logs.read("examples", ["user_id", "split"])
    users = examples.filter(pc.equal(examples.column("split"), "test")).column("user_id").to_pylist()
    items = pc.unique(logs.read("events", ["item_id"]).column("item_id")).drop_null().to_pylist()
    asked = [users[place] for place in draw.integers(len(users), size=num)]
    return [{"user_id": user, "item_ids": [items[place] for place in draw.choice(len(items), CANDIDATES, replace=False)]} for user in asked]


def phase(url: str, path: Path, **order: Any) -> dict[str, Any]:
    """One phase of the load generator, in its own process."""
    host, port = url.removeprefix("http://").split(":")
    told = {"host": host, "port": int(port), "path": "/v1/rank", "bodies": str(path), **order}
    done = subprocess.run([sys.executable, "-m", "bench.load"], input=json.dumps(told), capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(f"the load generator failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def counted(url: str, path: Path, **order: Any) -> dict[str, Any]:
    """One phase, and the milliseconds of CPU that each of its requests took, by process."""
    before = cpu_s()
    found = phase(url, path, **order)
    return {**found, "cpu_ms": cpu_between(before, cpu_s(), max(found["num"], 1))}


def timed(url: str, path: Path, num: int) -> dict[str, Any]:
    """As fast as they are answered."""
    phase(url, path, connections=CONNECTIONS, num=WARM_UP)
    found = counted(url, path, connections=CONNECTIONS, num=num)
    if found["statuses"] != {"200": num}:  # a refusal is faster than an answer
        raise RuntimeError(f"{url} did not answer all requests: {found['statuses']}")
    return found


@contextmanager
def peer(config_path: str, overrides: Sequence[str], workers: int) -> Iterator[str]:
    """The hand-written service with as many workers as we have replicas, for the length of a block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [word for one in overrides for word in ("--set", one)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.peer_service", "--config", config_path, "--port", str(port), "--workers", str(workers), *flags], cwd=ROOT
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                requests.get(f"{url}/healthz", timeout=2)
                break
            except requests.RequestException:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the peer does not start") from None
                time.sleep(0.3)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def same_scores(ours: str, peers: str, asked: Sequence[dict[str, Any]]) -> float:
    """The greatest difference between what both answer."""
    worst = 0.0
    for body in asked:
        scores = [{item["item_id"]: item["score"] for item in requests.post(f"{url}/v1/rank", json=body, timeout=30).json()["items"]} for url in (ours, peers)]
        assert scores[0].keys() == scores[1].keys()
        worst = max(worst, *(abs(scores[0][item] - scores[1][item]) for item in scores[0]))
    return worst


def overload(url: str, path: Path, rate: float) -> dict[str, Any]:
    """Twice the saturating rate: what is accepted, what is turned away, and memory before and after."""
    before = memory_bytes()
    found = counted(url, path, rate=2 * rate, for_s=PHASE_S)
    return {**found, "memory_before_gib": round(before / 2**30, 3), "memory_after_gib": round(memory_bytes() / 2**30, 3)}


def deploy_under_load(config: Config, url: str, path: Path, rate: float) -> dict[str, Any]:
    """Half the saturating rate, and in the middle of it every replica is replaced by one of another version."""
    changed = config.model_copy(update={"serve": config.serve.model_copy(update={"max_items": config.serve.max_items + 1})})
    ready = served_run(changed, open_store(changed))  # what whoever deploys does on a machine of their own
    with ThreadPoolExecutor(1) as threads:
        load_phase = threads.submit(phase, url, path, rate=rate / 2, for_s=6 * PHASE_S)
        took = _redeploy(config, ready)
        found = load_phase.result()
    now = requests.get(f"{url}/v1/models", timeout=30).json()["max_items"]
    return {**found, "deploy_s": round(took, 1), "version_changed": now == changed.serve.max_items}


def switch_under_load(url: str, path: Path, rate: float, releases: Sequence[str]) -> dict[str, Any]:
    """Half the saturating rate, and in the middle of it the other of two releases becomes the stable one."""
    stable = RankClient(url).models()["release"]
    release = next(one for one in releases if one != stable)  # an earlier bench may have promoted it

    def promote() -> float:
        time.sleep(PHASE_S / 2)
        began = time.monotonic()
        RankClient(url, token=TOKEN).change_rollout({"action": "promote", "release": release})
        return time.monotonic() - began

    with ThreadPoolExecutor(1) as threads:
        promoting = threads.submit(promote)
        found = phase(url, path, rate=rate / 2, for_s=2 * PHASE_S)
    changed = requests.get(f"{url}/v1/models", timeout=30).json()["release"] == release
    return {**found, "switch_s": round(promoting.result(), 2), "release_changed": changed}


def _redeploy(config: Config, changed: Served) -> float:
    """Replace the application's replicas after a while; returns the seconds that it took."""
    time.sleep(PHASE_S)
    began = time.monotonic()
    serve.run(application(changed, ACCESS), name=APP_NAME, route_prefix=config.serve.route_prefix, logging_config=quiet_logs())
    return time.monotonic() - began


def in_turns(rounds: int, ours: str, peers: str, run: Callable[[str], dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What `run` finds of both services, round by round, each of them first in every other one."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for number in range(rounds):
        pair = [("ours", ours), ("peer", peers)]
        for name, url in pair if number % 2 == 0 else reversed(pair):
            found[name].append(run(url))
    return found


def spread(values: Sequence[float]) -> list[float]:
    return [round(min(values), 3), round(statistics.median(values), 3), round(max(values), 3)]


def bench(config_path: str, overrides: Sequence[str], num: int, rounds: int) -> dict[str, Any]:
    """The whole comparison."""
    config = load(config_path, list(overrides))
    store = open_store(config)
    with ray_session(config.cluster), tempfile.TemporaryDirectory(prefix="longtail-bench-") as folder:
        for name in config.train.rankers:
            ensure(RANKER_STAGES[name], config, store, build_inputs=True)
        logs = find(LOGS, config, store)
        assert logs is not None
        where = machine()["machine"]
        asked, path = bodies(logs, 512), Path(folder) / "bodies"
        path.write_text("\n".join(json.dumps(body) for body in asked))
        again = config.model_copy(update={"run": config.run.model_copy(update={"name": f"{config.run.name} again"})})
        runs = [served_run(one, store) for one in (again, config)]
        with deployed(runs[1], ACCESS) as served, peer(config_path, overrides, config.serve.num_replicas) as peer_url:
            differ = same_scores(served.url, peer_url, asked[:20])
            fast = in_turns(rounds, served.url, peer_url, lambda url: timed(url, path, num))
            rate = num / statistics.median(run["seconds"] for run in fast["ours"])
            half = in_turns(rounds, served.url, peer_url, lambda url: counted(url, path, rate=rate / 2, for_s=PHASE_S))
            switch = switch_under_load(served.url, path, rate, [run.release for run in runs])
            beyond = overload(served.url, path, rate)
            deploy = deploy_under_load(config, served.url, path, rate)
    return line_of(config, where, num, differ, Phases(fast, half, switch, beyond, deploy))


@dataclass(frozen=True)
class Phases:
    """What the phases of the comparison found."""

    fast: dict[str, list[dict[str, Any]]]
    half: dict[str, list[dict[str, Any]]]
    switch: dict[str, Any]
    beyond: dict[str, Any]
    deploy: dict[str, Any]


def line_of(config: Config, where: str, num: int, differ: float, found: Phases) -> dict[str, Any]:
    """The JSON line: seconds for `num` requests, and the rest under `quality`."""
    ours, peers = found.fast["ours"], found.fast["peer"]
    half = {name: spread([run["p99_ms"] for run in runs]) for name, runs in found.half.items()}
    ratios = [mine["p99_ms"] / theirs["p99_ms"] for mine, theirs in zip(found.half["ours"], found.half["peer"], strict=True)]
    candidates = {name: spread([num * CANDIDATES / run["seconds"] for run in runs]) for name, runs in found.fast.items()}
    line = report(
        "serve",
        {"requests": num, "candidates": CANDIDATES, "replicas": config.serve.num_replicas, "connections": CONNECTIONS, "machine": where},
        {OURS: Taken([run["seconds"] for run in ours]), "fastapi_uvicorn": Taken([run["seconds"] for run in peers])},
        threads=config.serve.num_replicas,
        quality={
            "greatest_score_difference": differ,
            "candidates_per_s": candidates,
            "closed_loop_p99_ms": {name: spread([run["p99_ms"] for run in runs]) for name, runs in found.fast.items()},
            "generator_cpu_share": {name: spread([run["generator_cpu_share"] for run in runs]) for name, runs in found.fast.items()},
            "cpu_ms_per_request": {name: [run["cpu_ms"] for run in runs] for name, runs in found.fast.items()},
            "half_of_our_saturating_rate": {"p99_ratio": spread(ratios), **found.half},
            "twice": found.beyond,
            "release_switch_under_load": found.switch,
            "deploy_under_load": found.deploy,
        },
    )
    throughput, per_s = line["ratio"]["fastapi_uvicorn"], candidates["ours"][1]
    grown = found.beyond["memory_after_gib"] - found.beyond["memory_before_gib"]
    line["quality"]["reach"] = {
        "throughput_to_the_peers": [0.9, throughput, throughput >= 0.9],
        "candidates_per_s": [50_000, per_s, per_s >= 50_000],
        "p99_ms_at_half_rate": [25.0, half["ours"][1], half["ours"][1] <= 25.0],
        "p99_ms_of_accepted_at_twice": [50.0, found.beyond["p99_ms"], found.beyond["p99_ms"] <= 50.0],
        "memory_gib_grown_at_twice": [0.05, round(grown, 3), grown <= 0.05],
        "answered_while_a_release_is_promoted": [1.0, answered(found.switch), answered(found.switch) == 1.0],
        "answered_while_replicas_are_replaced": [1.0, answered(found.deploy), answered(found.deploy) == 1.0],
    }
    return line


def answered(found: dict[str, Any]) -> float:
    """The share of a phase's requests that was answered with scores."""
    return round(int(found["statuses"].get("200", 0)) / max(int(found["num"]), 1), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="bench/serve.toml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value")
    parser.add_argument("--num", type=int, default=2000, help="requests of a round")
    parser.add_argument("--rounds", type=int, default=5)
    with clear_errors():
        args = parser.parse_args()
        print(json.dumps(bench(args.config, args.overrides, args.num, args.rounds)))


if __name__ == "__main__":
    main()
