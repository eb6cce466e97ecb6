"""Calibration: the rates of a capacity plan, measured on this machine with the real parts.

A small synthetic world runs through the stages at two sizes, the second three times the first; what a stage takes is split into a start and a rate. Beside it
the core's k-means, exact search and table updates run alone, and the config's language model writes answers of two lengths.
Reads a config; writes into temporary folders alone. Run: python -m pipelines.plan --users 1e9 … --calibrate
"""

import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from pyarrow.fs import FileSelector

from longtail.artifacts import Artifact, Store
from longtail.capacity import Rate, RateName
from longtail.config import Config, load
from longtail.embeddings import EncoderSettings, TextEncoder
from longtail.packaged_models import resolve
from longtail.ranking import Question, RequestRanker, StatedItem
from longtail.run_state import load_feature_state, logs_info
from pipelines.cluster import ROOT
from pipelines.parts_alone import TABLE_ROWS, Seen, held_bytes, kmeans, language_model, line_through, neighbours, peak_of_logs, table_bytes_per_s
from pipelines.profiles import PROFILES, add_prompts, facts_of_snapshots
from pipelines.stage import ensure, line
from pipelines.study import machine
from pipelines.train import TrainJob
from pipelines.trial import built_here, is_plan, trial_stage

logger = logging.getLogger(__name__)

SMALL_WORLD = ROOT / "pipelines" / "configs" / "test.toml"
CALIBRATION_USERS = (300, 900)
LOGS_USERS = (2_000, 8_000)
KMEANS_ROWS = (20_000, 60_000)
NEIGHBOURS = (4_000, 12_000)
CANDIDATES = (20, 200)
REQUESTS = 40
PROMPTS = 48

#: By the part of a world whose seconds (or bytes) give a rate.
RATES_OF: Mapping[RateName, str] = {
    "user_texts_per_s": "user texts",
    "item_texts_per_s": "item texts",
    "sample_rows_per_s": "samples",
    "train_rows_per_s": "training",
}
BYTES_OF: Mapping[RateName, str] = {"event_bytes": "events", "profile_bytes": "profiles", "sample_bytes": "samples"}


@dataclass(frozen=True)
class World:
    """A small world that ran through the stages, and what its parts took."""

    config: Config
    made: Mapping[str, Artifact]
    parts: Mapping[str, Seen]


def small_world(config: Config, num_users: int) -> Config:
    """The small synthetic world with as many users and items, under the config's encoders, ranker and features."""
    names = ("embeddings", "item_encoder", "item_z", "user_spaces", "samples", "collaborative", "rankers", "train", "sweep")
    world = load(SMALL_WORLD, ["profiles.generator=deterministic", f"logs.synthetic.num_users={num_users}", f"logs.synthetic.num_items={num_users}"])
    return world.model_copy(update={**{name: getattr(config, name) for name in names}, "cluster": config.cluster})


def run_world(config: Config, store: Store) -> World:
    """Run a world through the stages that a ranker is made from, in this process but for what are Ray Data plans."""
    name = config.sweep.ranker
    made: dict[str, Artifact] = {}
    for stage in line(trial_stage(name, ("validation",), any_head=True)):
        alone = not is_plan(stage, config) and stage is not PROFILES
        made[stage.name] = built_here(stage, config, store) if alone else ensure(stage, config, store).artifact
    rows = {one.stage: float(one.manifest["rows"]["out"]) for one in made.values()}
    taken = {one.stage: float(one.manifest["seconds"]) for one in made.values()}
    size = {one.stage: _bytes(one) for one in made.values()}
    columns = ("samples", "matches", "lent")
    trained = made["trials"].info
    parts = {
        "user texts": Seen(rows["profiles"], float(made["profiles"].info["embed_pool"]["busy_s"])),
        "item texts": Seen(float(made["item_vectors"].info["distinct_texts"]), float(made["item_vectors"].info["embed_pool"]["busy_s"])),
        "events": Seen(rows["logs"], taken["logs"], size["logs"]),
        "profiles": Seen(rows["profiles"], 0.0, _bytes(made["profiles"], "profiles.parquet")),
        "samples": Seen(rows["samples"], sum(taken[one] for one in (*columns, "lifts")), sum(size[one] for one in columns)),
        "training": Seen(float(made["samples"].info["rows_by_split"]["train"]) * len(trained["epochs"]), float(trained["seconds"])),
    }
    return World(config, made, parts)


def _bytes(artifact: Artifact, name: str = "") -> float:
    found = artifact.fs.get_file_info(artifact.path(name)) if name else None
    if found is not None and found.is_file:
        return float(found.size)
    return float(sum(entry.size or 0 for entry in artifact.fs.get_file_info(FileSelector(artifact.path(name).rstrip("/"), recursive=True))))


def served(world: World) -> tuple[float, float, float]:
    """Seconds of a request but for its candidates, seconds a candidate, and bytes of the state that features are computed from."""
    made, config, name = world.made, world.config, world.config.sweep.ranker
    state = load_feature_state(made["logs"], made["user_codes"], made["groups"], made["peers"], made["item_codes"], made["collaborative"], config)
    ranker = TrainJob.of(config, made, name, 0).ranker().eval()
    torch.set_num_threads(config.serve.num_threads)
    answers = RequestRanker(state, {name: ranker}, logs_info(made["logs"]).end, config.serve.max_items)
    users, items = state.entities.users.values.to_pylist(), state.entities.items.values.to_pylist()
    seen: list[Seen] = []
    for candidates in CANDIDATES:
        taken = []
        for number in range(REQUESTS):
            asked = Question(users[number * 7 % len(users)], tuple(StatedItem(items[(number + one) % len(items)]) for one in range(candidates)), name)
            began = time.perf_counter()
            answers.rank(asked)
            taken.append(time.perf_counter() - began)
        seen.append(Seen(candidates, statistics.median(taken[5:])))
    start, per_candidate = line_through(seen)
    return max(start, 1e-6), per_candidate, held_bytes(state)


def facts_bytes(world: World) -> float:
    """Bytes of a user's facts in memory."""
    facts = facts_of_snapshots(world.made["logs"], world.config.profiles)[0]
    return float(facts.nbytes / len(facts))


def apart(function: Callable[..., Any], *arguments: Any, num_cpus: float = 1, num_gpus: float = 0) -> Any:
    """What a function returns in a process of its own, whose memory goes back with it."""
    return ray.get(ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_calls=1)(function).remote(*arguments))


def calibrate(config: Config) -> dict[RateName, Rate]:
    """Every rate but the network's, measured on this machine; needs a running Ray."""
    worlds, widths = [], (user_dim(config), item_dim(config))
    with tempfile.TemporaryDirectory(prefix="longtail-plan-") as folder:
        for num_users in CALIBRATION_USERS:
            worlds.append(run_world(small_world(config, num_users), Store.open(f"{folder}/{num_users}")))
            logger.info("calibration: a world of %d users done", num_users)
        large = worlds[-1]
        request_s, candidate_s, state = served(large)
        facts = facts_bytes(large)
        found: dict[RateName, tuple[float, str]] = {}
        for name, part in RATES_OF.items():
            found[name] = (
                1 / line_through([one.parts[part] for one in worlds])[1],
                f"{worlds[0].parts[part].units:,.0f} and {large.parts[part].units:,.0f} rows",
            )
        for name, part in BYTES_OF.items():
            found[name] = large.parts[part].size / large.parts[part].units, f"{large.parts[part].units:,.0f} rows"
        requests, events = f"{REQUESTS} requests of {CANDIDATES[0]} and {CANDIDATES[1]} candidates, without HTTP", large.parts["events"].units
        found |= {"requests_per_s": (1 / request_s, requests), "candidates_per_s": (1 / candidate_s, requests)}
        found |= {"event_state_bytes": (state / events, f"{events:,.0f} events"), "facts_bytes": (facts, f"{CALIBRATION_USERS[-1]} users")}
        if config.profiles.generator == "llm":
            of_users, kind, _, _ = facts_of_snapshots(large.made["logs"], config.profiles)
            texts = add_prompts(of_users.slice(0, PROMPTS), config.profiles, kind)
            compute = config.profiles.compute
            rates = apart(language_model, config, texts.column("facts").to_pylist(), num_cpus=min(compute.num_cpus, 1), num_gpus=compute.num_gpus)
            found |= {name: (value, f"{PROMPTS} prompts, answers of 1 and {config.profiles.max_output_tokens} tokens") for name, value in rates.items()}
    logger.info("calibration: k-means, search, tables and the logs' memory")
    for side, dim, codes in (("user", widths[0], config.codes.user), ("item", widths[1], config.codes.item)):
        rate = 1 / line_through([kmeans(rows, dim, codes.codebook_size) for rows in KMEANS_ROWS])[1]
        found[f"{side}_kmeans_flop_per_s"] = rate, f"{KMEANS_ROWS[0]:,} and {KMEANS_ROWS[1]:,} rows, k = {codes.codebook_size}, d = {dim}"  # type: ignore[index]
    found["neighbour_flop_per_s"] = 1 / line_through([neighbours(rows, widths[0]) for rows in NEIGHBOURS])[1], f"{NEIGHBOURS[0]:,} and {NEIGHBOURS[1]:,} rows"
    found["table_bytes_per_s"] = table_bytes_per_s(config), f"a table of {TABLE_ROWS:,} IDs, {config.train.optimizer}"
    small, big = (apart(peak_of_logs, small_world(config, users)) for users in LOGS_USERS)
    found["event_memory_bytes"] = (big.size - small.size) / (big.units - small.units), f"{small.units:,.0f} and {big.units:,.0f} events"
    where = machine()["machine"].rstrip(".")
    return {name: Rate(value=value, origin=f"measured here ({where}, {time.strftime('%Y-%m')}) on {rows}") for name, (value, rows) in found.items()}


def text_dim(settings: EncoderSettings) -> int:
    """Width of an encoder's vectors; it is asked where the config does not cut them."""
    if settings.dim is not None:
        return settings.dim
    described = Path(resolve(settings.model)) / "config.json"
    if not described.is_file():
        return TextEncoder(settings).dim
    return int(json.loads(described.read_text())["hidden_size"])


def item_dim(config: Config) -> int:
    """Width of z."""
    trained = config.item_encoder.dim + config.item_encoder.factor_dim
    return sum(trained if space == "trained" else config.item_encoder.dim for space in config.item_z.spaces)


def user_dim(config: Config) -> int:
    """Width of the users' vectors side by side, as far as the config tells: attributes are left out."""
    widths = {"profile": text_dim(config.embeddings.user), "titles": text_dim(config.embeddings.item), "behaviour": config.user_spaces.behaviour_dim}
    return sum(widths.get(space, 0) for space in config.user_spaces.spaces) or 1
