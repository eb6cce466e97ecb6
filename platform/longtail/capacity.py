"""Capacity: what a deployment of given size costs, by documented formulas over rates that were measured or given.

Reads nothing, writes nothing; python -m pipelines.plan prints the plan and measures the rates. Every line of a plan says its formula with the numbers in it.

    profiles      users x (new prompt tokens / prefill rate + answer tokens / decode rate)
    embedding     distinct texts / text rate
    codes         fit: 2 x rows x S x k x d x iterations floating point operations, encode: 2 x rows x S x k x d; both / the machine's rate
    samples       rows / row rate
    training      rows x epochs / row rate
    serving       replicas = requests/s x candidates / (candidate rate x utilisation)
    memory        vectors of a k-means shard: rows / shards x d x 4; ID tables: (users + items) x width x 4 x (1 + optimiser's copies)
    network       k-means: shards x S x iterations x (sums k x d x 8 + counts k x 8 up, centroids k x d x 4 down);
                  training: steps x workers x 2 (n - 1) / n x bytes of the parameters (ring all-reduce)
    storage       rows x measured bytes a row
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from longtail.settings import Settings

GIB = 2**30


class Workload(Settings):
    """What is to be served; counts are of the whole deployment."""

    users: float = Field(gt=0)
    items: float = Field(gt=0)
    events_per_day: float = Field(gt=0)
    daily_active_frac: float = Field(0.1, gt=0, le=1, description="share of the users who act on a day")
    new_items_per_day_frac: float = Field(0.001, ge=0, le=1)
    distinct_text_frac: float = Field(1.0, gt=0, le=1, description="distinct texts over items: identical ones are embedded once")
    rows_per_event: float = Field(1.0, gt=0, description="training rows (exposures) for each event")
    refresh_days: float = Field(7.0, gt=0, description="profiles, user vectors and groups are made anew so often, for users who acted since")
    train_days: float = Field(30.0, gt=0, description="window of the rows that a ranker is trained on")
    retrain_days: float = Field(1.0, gt=0, description="a ranker is trained so often")
    retention_days: float = Field(365.0, gt=0, description="logs are kept so long")
    replication: float = Field(1.0, ge=1, description="copies of what is stored; 1 on an object store that replicates by itself")
    peak_requests_per_s: float = Field(1000.0, gt=0)
    candidates: float = Field(200.0, gt=0, description="items of a request")
    utilisation: float = Field(0.6, gt=0, lt=1, description="of a serving replica at the peak: beyond it queues grow and p99 with them")
    deadline_h: float = Field(8.0, gt=0, description="a refresh, or a training, is to be done within")


class Shape(Settings):
    """What of a config decides the cost."""

    language_model: bool = Field(True, description="off: profiles are a text of the facts, which costs no device")
    prompt_tokens: float = Field(800.0, gt=0)
    shared_prompt_tokens: float = Field(600.0, ge=0, description="of these the prefix cache computes once")
    answer_tokens: float = Field(96.0, gt=0)
    user_dim: int = Field(ge=1, description="d of user vectors")
    item_dim: int = Field(ge=1)
    user_codes: tuple[int, int] = Field(description="S, k")
    item_codes: tuple[int, int]
    iterations: int = Field(ge=1)
    id_dim: int = Field(ge=1)
    dense_parameters: float = Field(100_000, gt=0, description="of the ranker, without its tables")
    optimizer_copies: int = Field(ge=1, description="1 of Adagrad, 2 of Adam")
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    shards: int = Field(1, ge=1)
    workers: int = Field(1, ge=1)


RateName = Literal[
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "user_texts_per_s",
    "item_texts_per_s",
    "kmeans_flop_per_s",
    "sample_rows_per_s",
    "train_rows_per_s",
    "candidates_per_s",
    "event_bytes",
    "profile_bytes",
    "sample_bytes",
]
UNITS: Mapping[RateName, str] = {
    "prefill_tokens_per_s": "prompt tokens/s of one device",
    "decode_tokens_per_s": "answer tokens/s of one device, all requests together",
    "user_texts_per_s": "profiles/s of one device",
    "item_texts_per_s": "item texts/s of one device",
    "kmeans_flop_per_s": "floating point operations/s of one device",
    "sample_rows_per_s": "rows/s of one CPU",
    "train_rows_per_s": "rows/s of one worker",
    "candidates_per_s": "candidates/s of one replica",
    "event_bytes": "bytes of an event in Parquet",
    "profile_bytes": "bytes of a profile in Parquet",
    "sample_bytes": "bytes of a training row in Parquet",
}


class Rate(Settings):
    """One rate and where it comes from."""

    value: float = Field(gt=0)
    origin: str = Field(min_length=1, description='"measured on …", "given", "assumed"')


Rates = Mapping[str, Rate]


@dataclass(frozen=True)
class Line:
    """One line of a plan."""

    part: str
    what: str
    formula: str  # with the numbers in it
    value: float
    unit: str


def needed(rates: Rates, name: RateName) -> float:
    """A rate.

    Raises:
        ValueError: it is not there.
    """
    if name not in rates:
        raise ValueError(f"the rate {name} ({UNITS[name]}) is missing: measure it (leave out --rates), or give [{name}] value and origin in --rates.")
    value: float = rates[name].value
    return value


def refreshed_users(work: Workload) -> float:
    """Users who acted since the last refresh, if each acts on a day with the same probability: users x (1 - (1 - a) ** days)."""
    acted: float = work.users * (1 - (1 - work.daily_active_frac) ** work.refresh_days)
    return acted


def plan(work: Workload, shape: Shape, rates: Rates) -> list[Line]:
    """Every line of the plan.

    Raises:
        ValueError: a rate is missing.
    """
    return [
        *_profiles(work, shape, rates),
        *_vectors(work, rates),
        *_codes(work, shape, rates),
        *_training(work, shape, rates),
        *_serving(work, rates),
        *_storage(work, shape, rates),
    ]


def _hours(part: str, what: str, seconds: float, formula: str, deadline_h: float, device: str = "device") -> list[Line]:
    hours = seconds / 3600
    return [
        Line(part, f"{what}: {device}-hours", f"{formula} / 3600", hours, "h"),
        Line(part, f"{what}: {device}s to be done in {deadline_h:g} h", f"ceil({n(hours)} / {deadline_h:g})", math.ceil(hours / deadline_h), device + "s"),
    ]


def _profiles(work: Workload, shape: Shape, rates: Rates) -> list[Line]:
    refreshed = refreshed_users(work)
    formula = f"{n(work.users)} x (1 - (1 - {work.daily_active_frac:g}) ** {work.refresh_days:g})"
    acted = Line("profiles", "users who acted since the last refresh", formula, refreshed, "users")
    if not shape.language_model:
        return [acted]
    prefill, decode = needed(rates, "prefill_tokens_per_s"), needed(rates, "decode_tokens_per_s")
    fresh = max(0.0, shape.prompt_tokens - shape.shared_prompt_tokens)
    a_user = fresh / prefill + shape.answer_tokens / decode
    words = f"({n(fresh)} / {n(prefill)} + {n(shape.answer_tokens)} / {n(decode)})"
    return [
        *_hours("profiles", "all users, once", work.users * a_user, f"{n(work.users)} x {words}", work.deadline_h),
        acted,
        *_hours("profiles", "a refresh", refreshed * a_user, f"{n(refreshed)} x {words}", work.deadline_h),
    ]


def _vectors(work: Workload, rates: Rates) -> list[Line]:
    users, items = needed(rates, "user_texts_per_s"), needed(rates, "item_texts_per_s")
    refreshed, texts, fresh = refreshed_users(work), work.items * work.distinct_text_frac, work.items * work.new_items_per_day_frac
    return [
        *_hours("embedding", "all users, once", work.users / users, f"{n(work.users)} / {n(users)}", work.deadline_h),
        *_hours("embedding", "a refresh", refreshed / users, f"{n(refreshed)} / {n(users)}", work.deadline_h),
        *_hours("embedding", "all items, once", texts / items, f"{n(work.items)} x {work.distinct_text_frac:g} / {n(items)}", work.deadline_h),
        *_hours("embedding", "a day's new items", fresh / items, f"{n(fresh)} / {n(items)}", work.deadline_h),
    ]


def _codes(work: Workload, shape: Shape, rates: Rates) -> list[Line]:
    flops, lines = needed(rates, "kmeans_flop_per_s"), []
    for side, rows, dim, (stages, size) in (("users", work.users, shape.user_dim, shape.user_codes), ("items", work.items, shape.item_dim, shape.item_codes)):
        one_pass = 2.0 * stages * size * dim
        lines += _hours(
            "codes",
            f"{side}, fit",
            rows * one_pass * shape.iterations / flops,
            f"2 x {n(rows)} x {stages} x {size} x {dim} x {shape.iterations} / {n(flops)}",
            work.deadline_h,
        )
        lines += _hours("codes", f"{side}, encode", rows * one_pass / flops, f"2 x {n(rows)} x {stages} x {size} x {dim} / {n(flops)}", work.deadline_h)
        sent = shape.shards * stages * shape.iterations * (size * dim * 8 + size * 8 + size * dim * 4)
        formula = f"{shape.shards} x {stages} x {shape.iterations} x ({size} x {dim} x 12 + {size} x 8) / 2**30"
        lines.append(Line("codes", f"{side}, fit: network", formula, sent / GIB, "GiB"))
        memory = rows / shape.shards * dim * 4
        lines.append(Line("codes", f"{side}, fit: memory of a shard", f"{n(rows)} / {shape.shards} x {dim} x 4 / 2**30", memory / GIB, "GiB"))
    return lines


def _training(work: Workload, shape: Shape, rates: Rates) -> list[Line]:
    rows = work.events_per_day * work.rows_per_event * work.train_days
    made, trained = needed(rates, "sample_rows_per_s"), needed(rates, "train_rows_per_s")
    daily = work.events_per_day * work.rows_per_event
    table = (work.users + work.items) * shape.id_dim * 4 * (1 + shape.optimizer_copies)
    steps = rows * shape.epochs / shape.batch_size
    dense = shape.dense_parameters * 4
    sent = steps * shape.workers * 2 * (shape.workers - 1) / shape.workers * dense
    return [
        *_hours("samples", "a day's rows", daily / made, f"{n(daily)} / {n(made)}", work.deadline_h, "CPU"),
        Line("training", "rows", f"{n(work.events_per_day)} x {work.rows_per_event:g} x {work.train_days:g}", rows, "rows"),
        *_hours("training", "one ranker", rows * shape.epochs / trained, f"{n(rows)} x {shape.epochs} / {n(trained)}", work.deadline_h),
        Line(
            "training",
            "ID tables and their optimiser's state, on each worker",
            f"({n(work.users)} + {n(work.items)}) x {shape.id_dim} x 4 x (1 + {shape.optimizer_copies}) / 2**30",
            table / GIB,
            "GiB",
        ),
        Line(
            "training",
            "network, all workers",
            f"{n(steps)} x {shape.workers} x 2 x {shape.workers - 1} / {shape.workers} x {n(dense)} / 2**30",
            sent / GIB,
            "GiB",
        ),
    ]


def _serving(work: Workload, rates: Rates) -> list[Line]:
    rate = needed(rates, "candidates_per_s")
    replicas = work.peak_requests_per_s * work.candidates / (rate * work.utilisation)
    formula = f"ceil({n(work.peak_requests_per_s)} x {n(work.candidates)} / ({n(rate)} x {work.utilisation:g}))"
    return [Line("serving", "replicas at the peak", formula, math.ceil(replicas), "replicas")]


def _storage(work: Workload, shape: Shape, rates: Rates) -> list[Line]:
    events, profile, sample = needed(rates, "event_bytes"), needed(rates, "profile_bytes"), needed(rates, "sample_bytes")
    copies = f" x {work.replication:g}" if work.replication != 1 else ""
    parts = [
        ("logs", work.events_per_day * work.retention_days * events, f"{n(work.events_per_day)} x {work.retention_days:g} x {n(events)}"),
        ("profiles, one snapshot", work.users * profile, f"{n(work.users)} x {n(profile)}"),
        ("user vectors, one snapshot", work.users * shape.user_dim * 4, f"{n(work.users)} x {shape.user_dim} x 4"),
        ("item vectors", work.items * shape.item_dim * 4, f"{n(work.items)} x {shape.item_dim} x 4"),
        (
            "training rows",
            work.events_per_day * work.rows_per_event * work.train_days * sample,
            f"{n(work.events_per_day)} x {work.rows_per_event:g} x {work.train_days:g} x {n(sample)}",
        ),
        ("a checkpoint", (work.users + work.items) * shape.id_dim * 4, f"({n(work.users)} + {n(work.items)}) x {shape.id_dim} x 4"),
    ]
    return [Line("storage", what, f"{formula}{copies} / 2**40", size * work.replication / 2**40, "TiB") for what, size, formula in parts]


def warnings_of(work: Workload, shape: Shape, lines: Sequence[Line], device_gib: float, node_gib: float) -> list[str]:
    """What does not fit, with what to do about it, and what dominates."""
    by_name = {line.what: line for line in lines}
    said = []
    table = by_name["ID tables and their optimiser's state, on each worker"].value
    if table > device_gib:
        fits = device_gib * GIB / ((work.users + work.items) * 4 * (1 + shape.optimizer_copies))
        remedy = f"rankers.*.id_dim = {int(fits)} would fit" if fits >= 1 else "no width fits"
        said.append(
            f"ID tables take {table:,.0f} GiB on every worker, a device has {device_gib:g}: {remedy}. Only users and items with training rows need an ID; "
            "tables sharded over workers are not part of this project."
        )
    for side in ("users", "items"):
        shard = by_name[f"{side}, fit: memory of a shard"].value
        if shard > node_gib:
            shards = math.ceil(shape.shards * shard / node_gib)
            said.append(f"a k-means shard of the {side} holds {shard:,.0f} GiB, a node has {node_gib:g}: {shards} shards fit (codes.*.compute.num_actors).")
    hours = {(line.part, line.what): line.value for line in lines}
    repeated = {"training of one ranker": (hours["training", "one ranker: device-hours"], work.retrain_days)}
    for part in ("profiles", "embedding"):
        if (part, "a refresh: device-hours") in hours:
            repeated[f"{part}, a refresh"] = hours[part, "a refresh: device-hours"], work.refresh_days
    daily = {name: hours / days for name, (hours, days) in repeated.items()}
    first = max(daily, key=lambda name: daily[name])
    said.append(f"of what is repeated, {first} costs most: {daily[first]:,.0f} device-hours a day.")
    return said


def n(value: float) -> str:
    """A number as the plan says it: three digits, with an exponent where it is large."""
    return f"{value:.3g}" if value < 1e6 else f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
