"""Calibration: the rates of a capacity plan, measured on this machine with the real parts.

A small synthetic world runs through the stages at two sizes, the second three times the first; what a stage takes is split into a start and a rate. Beside it
encoders, requests, k-means, exact search and updates of ID tables run alone, and the config's language model writes answers of two lengths.
Reads a config; writes into temporary folders alone. Run: python -m pipelines.plan --users 1e9 …
"""

import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
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
from longtail.feature_state import FeatureState
from longtail.online.features import OnlineFeatures
from longtail.online.mapped import MappedStore
from longtail.online.tables import online_tables
from longtail.packaged_models import resolve
from longtail.questions import Question, StatedItem
from longtail.ranking import RequestRanker
from longtail.run_state import load_feature_state, logs_info
from longtail.storage import without_secrets
from pipelines.cluster import ROOT
from pipelines.parts_alone import TABLE_ROWS, Seen, held_bytes, kmeans, language_model, line_through, neighbours, peak_of_logs, table_bytes_per_s, texts
from pipelines.profiles import add_prompts, facts_of_snapshots
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
PROMPTS = 32

#: By the part of a world whose CPU seconds (or bytes) give a rate.
RATES_OF: Mapping[RateName, str] = {
    "user_texts_per_s": "user texts",
    "item_texts_per_s": "item texts",
    "sample_rows_per_s": "samples",
    "train_rows_per_s": "training",
}
BYTES_OF: Mapping[RateName, str] = {"event_bytes": "events", "profile_bytes": "profiles", "sample_bytes": "samples"}
COLUMNS = ("samples", "matches", "lent")  # the tables that a training row lies in


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
    made: dict[str, Artifact] = {}
    cpu_s: dict[str, float] = {}
    for stage in line(trial_stage(config.sweep.ranker, ("validation",), any_head=True)):
        alone, began = not is_plan(stage, config), time.process_time()
        made[stage.name] = built_here(stage, config, store) if alone else ensure(stage, config, store).artifact
        cpu_s[stage.name] = time.process_time() - began
    rows = {one.stage: float(one.manifest["rows"]["out"]) for one in made.values()}
    wall_s = {one.stage: float(one.manifest["seconds"]) for one in made.values()}
    size = {one.stage: _bytes(one) for one in made.values()}
    trained = float(made["samples"].info["rows_by_split"]["train"]) * len(made["trials"].info["epochs"])
    of_a_row = (*COLUMNS, "lifts")
    parts = {
        "events": Seen(rows["logs"], cpu_s["logs"], size["logs"], wall_s["logs"]),
        "profiles": Seen(rows["profiles"], 0.0, _bytes(made["profiles"], "profiles.parquet")),
        "samples": Seen(rows["samples"], sum(cpu_s[one] for one in of_a_row), sum(size[one] for one in COLUMNS), sum(wall_s[one] for one in of_a_row)),
        "training": Seen(trained, cpu_s["trials"], wall_s=wall_s["trials"]),
    }
    return World(config, made, parts)


def texts_of(world: World) -> dict[str, tuple[EncoderSettings, list[str]]]:
    """By part, the encoder and the texts that it meets in the world."""
    embeddings, made = world.config.embeddings, world.made
    users, items = made["profiles"].read("profiles", ["text"]), made["item_texts"].read("texts", ["text"])
    return {"user texts": (embeddings.user, users.column("text").to_pylist()), "item texts": (embeddings.item, items.column("text").to_pylist())}


def _bytes(artifact: Artifact, name: str = "") -> float:
    found = artifact.fs.get_file_info(artifact.path(name)) if name else None
    if found is not None and found.is_file:
        return float(found.size)
    return float(sum(entry.size or 0 for entry in artifact.fs.get_file_info(FileSelector(artifact.path(name).rstrip("/"), recursive=True))))


def feature_state(world: World) -> FeatureState:
    """What a process holds that computes the features of training rows."""
    made = world.made
    return load_feature_state(made["logs"], made["user_codes"], made["groups"], made["peers"], made["item_codes"], made["collaborative"], world.config)


def request_ranker(world: World) -> RequestRanker:
    """What a replica holds, with freshly drawn weights."""
    made, config, name = world.made, world.config, world.config.sweep.ranker
    state = feature_state(world)
    ranker = TrainJob.of(config, made, name, 0).ranker().eval()
    tables = online_tables(state, logs_info(made["logs"]).end)
    return RequestRanker(OnlineFeatures.of(tables, config.serve.max_items), {name: ranker}, config.serve.max_items)


def requests(answers: RequestRanker, sizes: Sequence[int], num: int = REQUESTS) -> list[Seen]:
    """A request of each size, on one CPU and without HTTP: the median; units are candidates."""
    torch.set_num_threads(1)
    (name,) = answers.rankers
    store = answers.features.users
    assert isinstance(store, MappedStore)
    users, items = store.user_ids.to_pylist(), answers.features.entities.items.values.to_pylist()
    found = []
    for size in sizes:
        taken = []
        for number in range(num):
            asked = Question(users[number * 7 % len(users)], tuple(StatedItem(items[(number + one) % len(items)]) for one in range(size)), name)
            began = time.process_time()
            answers.rank(asked)
            taken.append(time.process_time() - began)
        found.append(Seen(float(size), statistics.median(taken[num // 8 :])))
    return found


def facts_bytes(world: World) -> float:
    """Bytes of a user's facts in memory."""
    facts = facts_of_snapshots(world.made["logs"], world.config.profiles)[0]
    return float(facts.nbytes / len(facts))


def apart(function: Callable[..., Any], *arguments: Any, num_cpus: float = 1, num_gpus: float = 0) -> Any:
    """What a function returns in a process of its own, whose memory goes back with it."""
    return ray.get(ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_calls=1)(function).remote(*arguments))


def calibrate(config: Config) -> dict[RateName, Rate]:
    """Every rate but the network's, measured on this machine; needs a running Ray."""
    with tempfile.TemporaryDirectory(prefix="longtail-plan-") as folder:
        worlds = []
        for num_users in CALIBRATION_USERS:
            worlds.append(run_world(small_world(config, num_users), Store.open(f"{folder}/{num_users}")))
            logger.info("calibration: a world of %d users done", num_users)
        found = _of_worlds(worlds) | _of_requests(worlds[-1]) | _language_model(config, worlds[-1])
    found |= _alone(config)
    where = machine()["machine"].rstrip(".")
    return {name: Rate(value=value, origin=f"measured here ({where}, {time.strftime('%Y-%m')}) on {rows}") for name, (value, rows) in found.items()}


Measured = dict[RateName, tuple[float, str]]  # with what it was measured on


def _of_worlds(worlds: Sequence[World]) -> Measured:
    large, found = worlds[-1], Measured()
    seen = {part: [one.parts[part] for one in worlds] for part in large.parts}
    for part, (encoder, of_texts) in texts_of(large).items():
        distinct = len(set(of_texts))
        seen[part] = texts(encoder, of_texts, [max(distinct // 3, 1), distinct])
    for name, part in RATES_OF.items():
        found[name] = 1 / line_through(seen[part])[1], f"{seen[part][0].units:,.0f} and {seen[part][1].units:,.0f} rows"
    for name, part in BYTES_OF.items():
        found[name] = seen[part][-1].size / seen[part][-1].units, f"{seen[part][-1].units:,.0f} rows"
    found["facts_bytes"] = facts_bytes(large), f"{CALIBRATION_USERS[-1]} users"
    logger.info("calibration: encoders done")
    return found


def _of_requests(world: World) -> Measured:
    answers, events = request_ranker(world), world.parts["events"].units
    held = held_bytes(feature_state(world))
    start, per_candidate = line_through(requests(answers, CANDIDATES))
    on = f"{REQUESTS} requests each of {CANDIDATES[0]} and {CANDIDATES[1]} candidates, without HTTP"
    return {
        "requests_per_s": (1 / max(start, 1e-6), on),
        "candidates_per_s": (1 / per_candidate, on),
        "event_state_bytes": (held / events, f"{events:,.0f} events"),
    }


def _language_model(config: Config, world: World) -> Measured:
    """In a process of its own: the engine's memory goes back with it."""
    if config.profiles.generator != "llm":
        return {}
    facts, kind, _, _ = facts_of_snapshots(world.made["logs"], config.profiles)
    prompts = add_prompts(facts.slice(0, PROMPTS), config.profiles, kind).column("facts").to_pylist()
    compute = config.profiles.compute
    rates: dict[RateName, float] = apart(language_model, config, prompts, num_cpus=min(compute.num_cpus, 1), num_gpus=compute.num_gpus)
    logger.info("calibration: language model done")
    return {name: (value, f"{PROMPTS} prompts, answers of 1 and {config.profiles.max_output_tokens} tokens") for name, value in rates.items()}


def _alone(config: Config) -> Measured:
    """Rates of what runs without a world."""

    def of_kmeans(dim: int, size: int) -> tuple[float, str]:
        seen = [kmeans(rows, dim, size) for rows in KMEANS_ROWS]
        return 1 / line_through(seen)[1], f"{KMEANS_ROWS[0]:,} and {KMEANS_ROWS[1]:,} rows, k = {size}, d = {dim}"

    found: Measured = {
        "user_kmeans_flop_per_s": of_kmeans(user_dim(config), config.codes.user.codebook_size),
        "item_kmeans_flop_per_s": of_kmeans(item_dim(config), config.codes.item.codebook_size),
    }
    search = line_through([neighbours(rows, user_dim(config)) for rows in NEIGHBOURS])[1]
    found["neighbour_flop_per_s"] = 1 / search, f"{NEIGHBOURS[0]:,} and {NEIGHBOURS[1]:,} rows, d = {user_dim(config)}"
    found["table_bytes_per_s"] = table_bytes_per_s(config.train), f"a table of {TABLE_ROWS:,} IDs, {config.train.optimizer}"
    small, large = (apart(peak_of_logs, small_world(config, users)) for users in LOGS_USERS)
    found["event_memory_bytes"] = (large.size - small.size) / (large.units - small.units), f"{small.units:,.0f} and {large.units:,.0f} events"
    return found


def text_dim(settings: EncoderSettings) -> int:
    """Width of an encoder's vectors; it is asked where the config does not cut them.

    Raises:
        ValueError: the model is not on this machine.
    """
    if settings.dim is not None:
        return settings.dim
    try:
        described = Path(resolve(settings.model)) / "config.json"
        if not described.is_file():
            return TextEncoder(settings).dim
        return int(json.loads(described.read_text())["hidden_size"])
    except (OSError, ValueError) as error:
        named = without_secrets(settings.model)
        raise ValueError(f"embeddings.*.model = {named!r} is not on this machine, and the width of its vectors unknown. Install it, or set dim.") from error


def item_dim(config: Config) -> int:
    """Width of z."""
    trained = config.item_encoder.dim + config.item_encoder.factor_dim
    return sum(trained if space == "trained" else config.item_encoder.dim for space in config.item_z.spaces)


def user_dim(config: Config) -> int:
    """Width of the users' vectors side by side, as far as the config tells: attributes are left out."""
    widths = {"profile": text_dim(config.embeddings.user), "titles": text_dim(config.embeddings.item), "behaviour": config.user_spaces.behaviour_dim}
    return sum(widths.get(space, 0) for space in config.user_spaces.spaces) or 1
