"""The formulas of a capacity plan; every line of it says its own with the numbers put in.

    profiles      users x (new prompt tokens / prefill rate + answer tokens / decode rate)
    embedding     distinct texts / text rate
    codes         a pass finds each row's nearest of k centroids: 2 x k x d operations a row. A fit makes S x (iterations + 1) passes, as int8
                  but for the last of each stage; encoding makes S. A shard answers a pass of a fit with sums (k x d x 8 bytes) and counts (k x 8) of its
                  rows: that is what goes through the driver
    peers         exact search: 2 x users x users x d operations a snapshot (neighbours), users x leaf groups x d (leaves)
    samples       rows / row rate
    training      rows x epochs / row rate + steps x bytes that a step moves in the ID tables / memory rate. Gradients of the tables are dense: a step writes
                  and reads weights, gradients and optimiser's state of every ID, and workers exchange them all: 2 (n - 1) / n x bytes of all parameters
                  (ring all-reduce), for each worker and step. What a step moves is a lower bound: each of these once read and once written
    serving       a request takes 1 / request rate + candidates / candidate rate of a replica. Replicas: the fewest that are busy for no more than
                  `utilisation` of the time and for which a request, arriving at random, waits longer than max_wait_ms in one case of a hundred (M/M/c)
    memory        what one process holds: a k-means shard (twice while it starts), the logs' events at the stage's peak, the state of a
                  process that computes training rows' features (a replica maps published files, and holds what requests touch)
    storage       rows x measured bytes a row; vectors d x 4
    totals        all of it times the runs, but for items' texts, which are embedded once for all runs of one run.uri

Every line before the totals is of one run (Workload.runs = 1: of all).
Reads nothing, writes nothing. Letters: S stages, k centroids, d width.
"""

import math
from collections.abc import Sequence

from scipy import stats

from longtail.capacity import GIB, TIB, Line, RateName, Rates, Shape, Unit, Workload, n, needed, refreshed_users

_NUMBER = 8  # bytes of a sum or of a count


def plan(work: Workload, shape: Shape, rates: Rates) -> list[Line]:
    """Every line of the plan, but for costs.

    Raises:
        ValueError: a rate is missing.
    """
    one = work.of_one_run()
    lines = [
        Line("run", "users of a run", f"{n(work.users)} / {n(work.runs)}", one.users, "users"),
        Line("run", "events of a run", f"{n(work.events_per_day)} / {n(work.runs)} x {n(work.log_days)}", one.events_per_day * one.log_days, "events"),
        *_profiles(one, shape, rates),
        *_vectors(one, rates),
        *_codes(one, shape, rates),
        *_peers(one, shape, rates),
        *_training(one, shape, rates),
        *_serving(one, rates),
        *_memory(one, shape, rates),
        *_storage(one, shape, rates),
    ]
    return [*lines, *_totals(work, lines)]


def passes(stages: int, iterations: int) -> int:
    """Passes over all rows that a fit makes at most: it stops where the centroids stay."""
    return stages * (iterations + 1)


def _hours(part: str, what: str, seconds: float, formula: str, deadline_h: float, cpu: bool = False) -> list[Line]:
    hours, unit, name = seconds / 3600, "CPUs" if cpu else "devices", "CPU" if cpu else "device"
    counted: Unit = "CPUs" if cpu else "devices"
    return [
        Line(part, f"{what}: {name}-hours", f"({formula}) / 3600", hours, "h"),
        Line(part, f"{what}: {unit} to be done in {deadline_h:g} h", f"ceil({n(hours)} / {deadline_h:g})", math.ceil(hours / deadline_h), counted),
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
    lines: list[Line] = []
    sides: Sequence[tuple[str, float, int, tuple[int, int], int, int, RateName]] = (
        ("users", work.users, shape.user_dim, shape.user_codes, shape.user_iterations, shape.user_shards, "user_kmeans_flop_per_s"),
        ("items", work.items, shape.item_dim, shape.item_codes, shape.item_iterations, shape.item_shards, "item_kmeans_flop_per_s"),
    )
    for side, rows, dim, (stages, size), iterations, shards, name in sides:
        flops, all_passes = needed(rates, name), passes(stages, iterations)
        a_pass = f"2 x {n(rows)} x {size} x {dim}"
        lines += _hours("codes", f"{side}, fit", 2.0 * rows * size * dim * all_passes / flops, f"{a_pass} x {all_passes} / {n(flops)}", work.deadline_h, True)
        lines += _hours("codes", f"{side}, encode", 2.0 * rows * size * dim * stages / flops, f"{a_pass} x {stages} / {n(flops)}", work.deadline_h, True)
        at_once = shards * (size * dim * _NUMBER + size * _NUMBER)
        told = f"{shards} x ({size} x {dim} x {_NUMBER} + {size} x {_NUMBER})"
        total = all_passes * (at_once + shards * size * dim * 4)
        formula = f"({all_passes} x {told} + {all_passes} x {shards} x {size} x {dim} x 4) / 2**30"
        lines.append(Line("codes", f"{side}, fit: through the driver", formula, total / GIB, "GiB"))
        lines.append(Line("codes", f"{side}, fit: answers to one pass, in the object store", f"{told} / 2**30", at_once / GIB, "GiB"))
        lines += _network("codes", f"{side}, fit", total, rates)
    return lines


def _peers(work: Workload, shape: Shape, rates: Rates) -> list[Line]:
    if shape.peers not in ("neighbours", "leaves"):
        return []
    flops, leaves = needed(rates, "neighbour_flop_per_s"), min(float(shape.user_codes[1]) ** shape.user_codes[0], work.users)
    others = work.users if shape.peers == "neighbours" else leaves
    operations = 2.0 * work.users * others * shape.user_dim
    formula = f"2 x {n(work.users)} x {n(others)} x {shape.user_dim} / {n(flops)}"
    return _hours("peers", f"a snapshot's {shape.peers}", operations / flops, formula, work.deadline_h, True)


def _training(work: Workload, shape: Shape, rates: Rates) -> list[Line]:
    daily, made, trained = work.events_per_day * work.rows_per_event, needed(rates, "sample_rows_per_s"), needed(rates, "train_rows_per_s")
    moved_per_s = needed(rates, "table_bytes_per_s")
    rows, ids = daily * work.train_days, work.users + work.items
    steps, table = rows * shape.epochs / shape.batch_size, ids * shape.id_dim * 4
    a_step, copies = 2 * (2 + shape.optimizer_copies) * table, 2 + shape.optimizer_copies
    table_text = f"({n(work.users)} + {n(work.items)}) x {shape.id_dim} x 4"
    # Every worker updates its own copy of the tables in every step, however few rows of the batch are its own.
    seconds = rows * shape.epochs / trained + steps * shape.workers * a_step / moved_per_s
    formula = f"{n(rows)} x {shape.epochs} / {n(trained)} + {n(steps)} x {shape.workers} x {n(a_step)} / {n(moved_per_s)}"
    around, weights = 2 * (shape.workers - 1) / shape.workers, shape.dense_parameters * 4 + table
    exchange = f"2 x {shape.workers - 1} / {shape.workers} x ({n(shape.dense_parameters)} x 4 + {n(table)})"
    least = rows * shape.epochs / trained / shape.workers / 3600
    least_text = f"{n(rows)} x {shape.epochs} / {n(trained)} / {shape.workers} / 3600"
    return [
        *_hours("samples", "a day's rows", daily / made, f"{n(daily)} / {n(made)}", work.deadline_h, True),
        Line("training", "rows", f"{n(work.events_per_day)} x {work.rows_per_event:g} x {work.train_days:g}", rows, "rows"),
        Line("training", "what a step moves in the ID tables of each worker", f"2 x {copies} x {table_text} / 2**30", a_step / GIB, "GiB"),
        Line("training", "one ranker: device-hours", f"({formula}) / 3600", seconds / 3600, "h"),
        Line("training", "one ranker: hours, with tables that cost nothing", least_text, least, "h"),
        Line("training", "one ranker: hours, but for the network", f"{n(seconds / 3600)} / {shape.workers}", seconds / 3600 / shape.workers, "h"),
        Line("training", "ID tables, gradients and optimiser's state, on each worker", f"{copies} x {table_text} / 2**30", copies * table / GIB, "GiB"),
        Line(
            "training", "items' frozen vectors, on each worker", f"{n(work.items)} x {shape.item_dim} x 4 / 2**30", work.items * shape.item_dim * 4 / GIB, "GiB"
        ),
        Line("training", "network of each worker, a step", f"{exchange} / 2**30", around * weights / GIB, "GiB"),
        *_network("training", "one ranker", steps * around * weights, rates),
    ]


def _network(part: str, what: str, sent: float, rates: Rates) -> list[Line]:
    if "network_bytes_per_s" not in rates or sent == 0:
        return []
    rate = needed(rates, "network_bytes_per_s")
    return [Line(part, f"{what}: hours on the network", f"{n(sent)} / {n(rate)} / 3600", sent / rate / 3600, "h")]


def _serving(work: Workload, rates: Rates) -> list[Line]:
    requests, candidates = needed(rates, "requests_per_s"), needed(rates, "candidates_per_s")
    service_s = 1 / requests + work.candidates / candidates
    load = work.peak_requests_per_s * service_s
    busy = math.ceil(load / work.utilisation)
    replicas = fewest_replicas(load, service_s, work.utilisation, work.max_wait_ms / 1000)
    wait_ms = 1000 * wait_p99_s(replicas, load, service_s)
    return [
        Line("serving", "a request, without waiting", f"1000 x (1 / {n(requests)} + {n(work.candidates)} / {n(candidates)})", 1000 * service_s, "ms"),
        Line("serving", "replicas by utilisation", f"ceil({n(work.peak_requests_per_s)} x {n(service_s)} / {work.utilisation:g})", busy, "replicas"),
        Line("serving", "replicas at the peak, by the wait too", f"{n(busy)} + {n(replicas - busy)}", replicas, "replicas"),
        Line("serving", "99 % of the requests wait no longer than", _wait_text(replicas, load, service_s), wait_ms, "ms"),
    ]


def erlang_c(replicas: int, load: float) -> float:
    """The share of requests that wait, of `load` (arrivals x service time) at `replicas` (M/M/c); load < replicas."""
    blocked = float(stats.poisson.pmf(replicas, load) / stats.poisson.cdf(replicas, load))  # Erlang B
    return blocked / (1 - load / replicas * (1 - blocked))


def wait_p99_s(replicas: int, load: float, service_s: float) -> float:
    """Seconds that 99 of 100 requests wait at most: log(C / .01) x service / (replicas - load), 0 where fewer than one of a hundred waits at all."""
    waiting = erlang_c(replicas, load)
    return max(0.0, math.log(waiting / 0.01)) * service_s / (replicas - load) if waiting > 0 else 0.0


def fewest_replicas(load: float, service_s: float, utilisation: float, max_wait_s: float) -> int:
    """The fewest replicas that keep to the utilisation and to the wait."""
    replicas = max(1, math.ceil(load / utilisation))
    while wait_p99_s(replicas, load, service_s) > max_wait_s:
        replicas += 1
    return replicas


def _wait_text(replicas: int, load: float, service_s: float) -> str:
    waiting = erlang_c(replicas, load)
    if waiting <= 0.01:
        return "0"
    return f"1000 x log({n(waiting)} / 0.01) x {n(service_s)} / ({n(replicas)} - {n(load)})"


def _memory(work: Workload, shape: Shape, rates: Rates) -> list[Line]:
    events = work.events_per_day * work.log_days
    text = f"{n(work.events_per_day)} x {work.log_days:g}"
    sides = (("users", work.users, shape.user_dim, shape.user_shards), ("items", work.items, shape.item_dim, shape.item_shards))
    held = [
        Line("memory", f"a k-means shard of the {side}", f"2 x {n(rows)} / {shards} x {dim} x 4 / 2**30", 2 * rows / shards * dim * 4 / GIB, "GiB")
        for side, rows, dim, shards in sides
    ]
    peak, state, facts = (needed(rates, name) for name in ("event_memory_bytes", "event_state_bytes", "facts_bytes"))
    return [
        *held,
        Line("memory", "the logs stage, one process", f"{text} x {n(peak)} / 2**30", events * peak / GIB, "GiB"),
        Line("memory", "a process that computes features", f"{text} x {n(state)} / 2**30", events * state / GIB, "GiB"),
        Line("memory", "facts of all users, in the object store", f"{n(work.users)} x {n(facts)} / 2**30", work.users * facts / GIB, "GiB"),
    ]


def _storage(work: Workload, shape: Shape, rates: Rates) -> list[Line]:
    events, profile, sample = needed(rates, "event_bytes"), needed(rates, "profile_bytes"), needed(rates, "sample_bytes")
    copies = f" x {work.replication:g}" if work.replication != 1 else ""
    kept, user_widths = f"{work.snapshots_kept:g} x {n(work.users)}", shape.profile_dim + shape.user_dim
    item_widths = shape.text_dim + shape.item_dim
    ids, rows = work.users + work.items, work.events_per_day * work.rows_per_event * work.train_days
    checkpoint = ids * shape.id_dim * 4 + work.items * shape.item_dim * 4
    parts = [
        ("logs", work.events_per_day * work.retention_days * events, f"{n(work.events_per_day)} x {work.retention_days:g} x {n(events)}"),
        ("profiles", work.snapshots_kept * work.users * profile, f"{kept} x {n(profile)}"),
        ("user vectors, of profiles and of all spaces", work.snapshots_kept * work.users * user_widths * 4, f"{kept} x {user_widths} x 4"),
        ("user codes", work.snapshots_kept * work.users * shape.user_codes[0] * 4, f"{kept} x {shape.user_codes[0]} x 4"),
        ("item vectors, of texts and z", work.items * item_widths * 4, f"{n(work.items)} x {item_widths} x 4"),
        ("item codes", work.items * shape.item_codes[0] * 4, f"{n(work.items)} x {shape.item_codes[0]} x 4"),
        ("training rows", rows * sample, f"{n(work.events_per_day)} x {work.rows_per_event:g} x {work.train_days:g} x {n(sample)}"),
        (
            "checkpoints",
            work.checkpoints_kept * checkpoint,
            f"{work.checkpoints_kept:g} x (({n(work.users)} + {n(work.items)}) x {shape.id_dim} + {n(work.items)} x {shape.item_dim}) x 4",
        ),
    ]
    return [Line("storage", what, f"{formula}{copies} / 2**40", size * work.replication / TIB, "TiB") for what, size, formula in parts]


def _totals(work: Workload, lines: Sequence[Line]) -> list[Line]:
    found: list[Line] = []
    for kind, repeated in repeated_hours(work, lines).items():
        text = " + ".join(f"{n(hours)} / {n(days)}{_times(runs)}" for hours, days, runs in repeated.values())
        found.append(Line("totals", f"{kind}-hours a day", text, sum(hours / days * runs for hours, days, runs in repeated.values()), "h"))
    by_name = {line.name: line.value for line in lines}
    profiles, users = (
        by_name.get(f"{part}: all users, once: device-hours", 0.0) for part in ("profiles", "embedding")
    )  # no language model: no profiles' hours
    items, replicas = by_name["embedding: all items, once: device-hours"], by_name["serving: replicas at the peak, by the wait too"]
    once = f"({n(profiles)} + {n(users)}){_times(work.runs)} + {n(items)}"
    found.append(Line("totals", "device-hours once, at the start", once, (profiles + users) * work.runs + items, "h"))
    found.append(Line("totals", "replicas", f"{n(replicas)}{_times(work.runs)}", replicas * work.runs, "replicas"))
    stored = [line.value for line in lines if line.part == "storage"]
    found.append(Line("totals", "storage", f"({' + '.join(map(n, stored))}){_times(work.runs)}", sum(stored) * work.runs, "TiB"))
    return found


def _times(runs: float) -> str:
    return f" x {n(runs)}" if runs != 1 else ""


def repeated_hours(work: Workload, lines: Sequence[Line]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By device and CPU, what is done again and again: hours of a run each time, the days between, and the runs that do it."""
    by_name = {line.name: line.value for line in lines}
    devices = {
        "profiles": (by_name.get("profiles: a refresh: device-hours", 0.0), work.refresh_days, work.runs),
        "embedding of users": (by_name["embedding: a refresh: device-hours"], work.refresh_days, work.runs),
        "embedding of new items": (by_name["embedding: a day's new items: device-hours"], 1.0, 1.0),
        "training of one ranker": (by_name["training: one ranker: device-hours"], work.retrain_days, work.runs),
    }
    cpus = {
        "codes of users": (by_name["codes: users, encode: CPU-hours"], work.refresh_days, work.runs),
        "samples": (by_name["samples: a day's rows: CPU-hours"], 1.0, work.runs),
    }
    search = [line.value for line in lines if line.part == "peers" and line.unit == "h"]
    if search:
        cpus["search for peers"] = sum(search), work.refresh_days, work.runs
    return {"device": devices, "CPU": cpus}
