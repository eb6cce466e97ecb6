"""Capacity: the inputs of a plan, each with its unit; what a deployment of given size costs is worked out of them in longtail.capacity_plan.

Workload    what is to be served: users, items, events a day, how often what is made anew, requests a second
Shape       what of a config decides the cost: tokens, vector widths, codebooks, the ranker's numbers
Rates       how fast, and how large, one thing is: each a number with its unit and where it comes from
Room        what one device and one node hold
Prices      what an hour and a stored byte cost; without them a plan has no cost lines
Reads nothing, writes nothing; python -m pipelines.plan prints the plan and measures the rates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from longtail.settings import Settings

GIB = 2**30
TIB = 2**40
OBJECT_STORE_SHARE = 0.3  # of a node's memory, Ray's default
LEAST = 1e-12  # of any rate
MOST = 1e15  # of any count: beyond it formulas would leave the numbers that a plan can say


class Workload(Settings):
    """What is to be served; counts are of the whole deployment."""

    users: float = Field(ge=1, le=MOST)
    items: float = Field(ge=1, le=MOST)
    events_per_day: float = Field(ge=1, le=MOST)
    daily_active_frac: float = Field(0.1, gt=0, le=1, description="share of the users who act on a day")
    new_items_per_day_frac: float = Field(0.001, ge=0, le=1)
    distinct_text_frac: float = Field(1.0, gt=0, le=1, description="distinct texts over items: identical ones are embedded once")
    rows_per_event: float = Field(1.0, ge=1e-6, le=MOST, description="training rows (exposures) for each event")
    refresh_days: float = Field(7.0, ge=1e-6, le=MOST, description="profiles, user vectors and groups are made anew so often, for users who acted since")
    log_days: float = Field(90.0, ge=1e-6, le=MOST, description="days of logs that one run reads: history, training and test windows")
    train_days: float = Field(30.0, ge=1e-6, le=MOST, description="window of the rows that a ranker is trained on")
    retrain_days: float = Field(1.0, ge=1e-6, le=MOST, description="a ranker is trained so often")
    retention_days: float = Field(365.0, ge=1e-6, le=MOST, description="logs are kept so long")
    snapshots_kept: float = Field(4.0, ge=1, le=MOST, description="snapshots of profiles, vectors, codes and peers that are kept")
    checkpoints_kept: float = Field(7.0, ge=1, le=MOST)
    runs: float = Field(1.0, ge=1, le=MOST, description="runs that the users are split into, under one run.uri; each has all the items and its own rankers")
    replication: float = Field(1.0, ge=1, le=MOST, description="copies of what is stored; 1 on an object store that replicates by itself")
    peak_requests_per_s: float = Field(1000.0, ge=1e-6, le=1e9)
    candidates: float = Field(200.0, ge=1e-6, le=1e6, description="items of a request")
    utilisation: float = Field(0.6, ge=0.01, lt=1, description="of serving replicas at the peak, at most")
    max_wait_ms: float = Field(20.0, ge=1e-6, le=MOST, description="99 % of the requests wait no longer than this for a replica")
    deadline_h: float = Field(8.0, ge=1e-6, le=MOST, description="a refresh, or a training, is to be done within")

    @model_validator(mode="after")
    def _windows(self) -> Self:
        if self.train_days > self.log_days:
            raise ValueError(f"train_days = {self.train_days:g} must not exceed log_days = {self.log_days:g}: a run trains on the logs that it reads")
        return self

    def of_one_run(self) -> "Workload":
        """What one of the runs has: its share of users, events and requests, and all the items."""
        shared = {name: getattr(self, name) / self.runs for name in ("users", "events_per_day", "peak_requests_per_s")}
        return self.model_copy(update={**shared, "runs": 1.0})


class Shape(Settings):
    """What of a config decides the cost."""

    language_model: bool = Field(True, description="profiles.generator is llm")
    prompt_tokens: float = Field(800.0, gt=0)
    shared_prompt_tokens: float = Field(600.0, ge=0, description="of these the prefix cache computes once: whole blocks of profiles.compute.kv_block_size")
    answer_tokens: float = Field(96.0, gt=0)
    user_dim: int = Field(ge=1, description="d of the vectors that users are grouped by")
    profile_dim: int = Field(ge=1, description="d of the profiles' embeddings")
    text_dim: int = Field(ge=1, description="d of the items' text embeddings")
    item_dim: int = Field(ge=1, description="d of z, the vector that rankers read")
    user_codes: tuple[int, int] = Field(description="S, k")
    item_codes: tuple[int, int]
    user_shards: int = Field(1, ge=1, description="codes.user.compute.num_actors")
    item_shards: int = Field(1, ge=1)
    user_iterations: int = Field(ge=1)
    item_iterations: int = Field(ge=1)
    peers: Literal["none", "neighbours", "leaves", "groups", "random"] = "neighbours"
    id_dim: int = Field(ge=1)
    dense_parameters: float = Field(100_000, gt=0, description="of the ranker, without its ID tables")
    optimizer_copies: int = Field(ge=1, description="1 of Adagrad, 2 of Adam")
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="global, over all workers")
    workers: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _shared_of_all(self) -> Self:
        if self.language_model and self.shared_prompt_tokens > self.prompt_tokens:
            raise ValueError(f"shared_prompt_tokens = {self.shared_prompt_tokens:g} are part of prompt_tokens = {self.prompt_tokens:g}: give both, or neither")
        return self


RateName = Literal[
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "user_texts_per_s",
    "item_texts_per_s",
    "user_kmeans_flop_per_s",
    "item_kmeans_flop_per_s",
    "neighbour_flop_per_s",
    "sample_rows_per_s",
    "train_rows_per_s",
    "table_bytes_per_s",
    "requests_per_s",
    "candidates_per_s",
    "network_bytes_per_s",
    "event_bytes",
    "profile_bytes",
    "sample_bytes",
    "event_memory_bytes",
    "event_state_bytes",
    "facts_bytes",
]
UNITS: Mapping[RateName, str] = {
    "prefill_tokens_per_s": "prompt tokens/s of one device",
    "decode_tokens_per_s": "answer tokens/s of one device, all requests together",
    "user_texts_per_s": "profiles/s of one device",
    "item_texts_per_s": "item texts/s of one device",
    "user_kmeans_flop_per_s": "floating point operations/s of one CPU, at the users' k and d",
    "item_kmeans_flop_per_s": "floating point operations/s of one CPU, at the items' k and d",
    "neighbour_flop_per_s": "floating point operations/s of one CPU in exact search",
    "sample_rows_per_s": "rows/s of one CPU, own, matched and lent columns together",
    "train_rows_per_s": "rows/s of one worker, whose ID tables are small",
    "table_bytes_per_s": "bytes/s that a training device moves in its memory",
    "requests_per_s": "requests/s of one replica, but for their candidates",
    "candidates_per_s": "candidates/s of one replica",
    "network_bytes_per_s": "bytes/s into or out of one node",
    "event_bytes": "bytes of an event in Parquet, with its share of users, items and examples",
    "profile_bytes": "bytes of a profile in Parquet",
    "sample_bytes": "bytes of a training row in Parquet, own, matched and lent columns",
    "event_memory_bytes": "bytes of an event at the peak of the logs stage",
    "event_state_bytes": "bytes of an event in the state that features are computed from",
    "facts_bytes": "bytes of a user's facts in memory",
}
OPTIONAL: frozenset[RateName] = frozenset({"network_bytes_per_s"})  # one machine cannot measure it; without it the plan says bytes and no hours
LANGUAGE_MODEL: tuple[RateName, ...] = ("prefill_tokens_per_s", "decode_tokens_per_s")


class Rate(Settings):
    """One rate and where it comes from."""

    value: float = Field(gt=0, le=1e24)
    origin: str = Field(min_length=1, description='"measured here on N rows", "given", "assumed: why"')

    @model_validator(mode="after")
    def _of_this_world(self) -> Self:
        if self.value < LEAST:
            raise ValueError(f"value = {self.value:g} is below {LEAST:g}: no machine is so slow, and a plan could not say what it leads to")
        return self


Rates = Mapping[RateName, Rate]


class Room(Settings):
    """What one device and one node hold."""

    device_gib: float = Field(80.0, gt=0, description="memory of a training device")
    node_gib: float = Field(256.0, gt=0, description="memory of a node: one process of a stage, one k-means shard, one replica")
    nodes: float = Field(8.0, ge=1, description="nodes whose object stores hold what is in flight")

    @property
    def object_store_gib(self) -> float:
        return OBJECT_STORE_SHARE * self.node_gib


class Prices(Settings):
    """What is paid, in any one currency; what has no price has no cost line."""

    device_hour: float | None = Field(None, ge=0, le=MOST)
    cpu_hour: float | None = Field(None, ge=0, le=MOST)
    replica_hour: float | None = Field(None, ge=0, le=MOST)
    gb_month: float | None = Field(None, ge=0, le=MOST, description="10**9 bytes stored for a month")


Unit = Literal["h", "devices", "CPUs", "users", "events", "rows", "GiB", "TiB", "replicas", "ms", "a day", "once", "a month"]


@dataclass(frozen=True)
class Line:
    """One line of a plan: what it is, its formula with the numbers put in, the result and its unit."""

    part: str
    what: str
    formula: str
    value: float
    unit: Unit

    @property
    def name(self) -> str:
        return f"{self.part}: {self.what}"


def needed(rates: Rates, name: RateName) -> float:
    """A rate.

    Raises:
        ValueError: it is not there.
    """
    if name not in rates:
        raise ValueError(
            f"the rate {name} ({UNITS[name]}) is missing. Write [{name}] with value and origin into the file of --rates, or add --calibrate to measure "
            "on this machine what the file does not give."
        )
    value: float = rates[name].value
    return value


def refreshed_users(work: Workload) -> float:
    """Users who acted since the last refresh, if each acts on a day with the same probability: users x (1 - (1 - a) ** days)."""
    acted: float = work.users * (1 - (1 - work.daily_active_frac) ** work.refresh_days)
    return acted


def n(value: float) -> str:
    """A number as a plan says it: three digits, thousands in groups, an exponent from a million on."""
    if 1e3 <= abs(value) < 1e6:
        return f"{float(f'{value:.4g}'):,.0f}"
    return f"{value:.3g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
