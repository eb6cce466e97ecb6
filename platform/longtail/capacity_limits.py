"""What of a plan does not fit, with the setting that helps or plainly without one; what dominates; and what it costs.

Reads nothing, writes nothing; python -m pipelines.plan prints it below the plan's lines.
"""

import math
from collections.abc import Iterator, Sequence

from longtail.capacity import GIB, TIB, Line, Prices, Room, Shape, Workload, n
from longtail.capacity_plan import repeated_hours

DAYS_A_MONTH = 30


def limits(work: Workload, shape: Shape, lines: Sequence[Line], room: Room) -> list[str]:
    """One sentence for each thing that does not fit, in one of the runs."""
    found, one = {line.name: line.value for line in lines}, work.of_one_run()
    return [
        *_one_process(work, found, room),
        *_tables(one, shape, found, room),
        *_training(one, shape, found),
        *_peers(one, shape, found),
        *_codes(shape, found, room),
    ]


def _one_process(work: Workload, found: dict[str, float], room: Room) -> Iterator[str]:
    peak, state = found["memory: the logs stage, one process"], found["memory: a process that computes features"]
    most = max(peak, state)
    if most > room.node_gib:
        runs = math.ceil(work.runs * most / room.node_gib)
        yield (
            f"logs, groups, peers and features each hold the events of a whole run in one process: {n(peak)} GiB at the logs stage's peak, "
            f"{n(state)} GiB where features are computed, and a node has {room.node_gib:g}. Split the users into {runs:,} runs (their own "
            f"logs.tables, one run.uri; --workload runs={runs}), shorten log_days, or keep a sample (logs.sample.num_users = {n(work.users / runs)})."
        )
    facts, store = found["memory: facts of all users, in the object store"], room.object_store_gib * room.nodes
    if facts > store:
        yield (
            f"the facts of all users of a run ({n(facts)} GiB) go into the object store at once, and {room.nodes:g} nodes' hold {n(store)} GiB: Ray spills the "
            f"rest to disk. Split the users into {n(math.ceil(work.runs * facts / store))} runs, or lower profiles.max_l1 and profiles.max_leaves."
        )


def _tables(work: Workload, shape: Shape, found: dict[str, float], room: Room) -> Iterator[str]:
    tables, frozen = found["training: ID tables, gradients and optimiser's state, on each worker"], found["training: items' frozen vectors, on each worker"]
    left = room.device_gib - frozen
    if left <= 0:
        yield (
            f"items' frozen vectors ({n(frozen)} GiB) lie whole on every worker, and a device has {room.device_gib:g} GiB: z of "
            f"{int(room.device_gib / frozen * shape.item_dim)} numbers or fewer fits (item_encoder.dim and factor_dim, item_z.spaces), beside no ID table yet."
        )
    if tables > left:
        an_id = 4 * (2 + shape.optimizer_copies)
        width = int(max(left, 0) * GIB / ((work.users + work.items) * an_id))
        remedy = f"rankers.*.id_dim = {width} would fit" if width >= 1 else f"{n(left * GIB / (shape.id_dim * an_id))} IDs would"
        room_left = f"a device has {n(left)} GiB beside the frozen vectors: {remedy}" if left > 0 else "the frozen vectors leave a device no room for any"
        yield (
            f"ID tables of {n(work.users + work.items)} users and items lie whole on every worker, {n(tables)} GiB with gradients and optimiser's state, and "
            f"{room_left}. Only users and items with training rows have an ID: fewer train days, fewer IDs. Tables that are sharded over workers, or hashed to "
            "fewer rows, are not part of this project."
        )


def _training(work: Workload, shape: Shape, found: dict[str, float]) -> Iterator[str]:
    hours, least = found["training: one ranker: hours, but for the network"], found["training: one ranker: hours, with tables that cost nothing"]
    if hours > work.deadline_h:
        batch = math.ceil(shape.batch_size * max(hours - least, 0) / least)
        raised = f" Raise train.batch_size (now {shape.batch_size:,}): from {n(batch)} on the tables take no longer than the rows." if hours > 2 * least else ""
        workers = math.ceil(shape.workers * least / work.deadline_h)
        more = f" {workers} workers (train.compute.num_actors) read the rows in time." if workers > shape.workers else ""
        yield (
            f"one ranker trains for {n(hours)} h with {shape.workers} worker(s), the deadline is {work.deadline_h:g} h; {n(hours - least)} h of it are "
            f"steps that write the whole ID tables.{raised}{more}"
        )
    network = found.get("training: one ranker: hours on the network", 0.0)
    if network > work.deadline_h:
        yield (
            f"workers exchange dense gradients of all ID tables in every step: {n(network)} h on the network. Raise train.batch_size, or train with one worker "
            "(train.compute.num_actors = 1)."
        )


def _peers(work: Workload, shape: Shape, found: dict[str, float]) -> Iterator[str]:
    hours = found.get(f"peers: a snapshot's {shape.peers}: CPU-hours", 0.0)
    if hours > work.deadline_h:
        yield (
            f'exact search for peers.form = "{shape.peers}" takes {n(hours)} CPU-hours a snapshot, in one process. In runs of fewer users it falls with the '
            'square of their number; peers.form = "groups" takes the members of a group and needs no search.'
        )


def _codes(shape: Shape, found: dict[str, float], room: Room) -> Iterator[str]:
    sides = (
        ("user", shape.user_dim, shape.user_codes[1], shape.user_shards),
        ("item", shape.item_dim, shape.item_codes[1], shape.item_shards),
    )
    for side, dim, size, shards in sides:
        shard = found[f"memory: a k-means shard of the {side}s"]
        if shard > room.node_gib:
            yield (
                f"a k-means shard of the {side}s needs {n(shard)} GiB, a node has {room.node_gib:g}: set codes.{side}.compute.num_actors = "
                f"{math.ceil(shards * shard / room.node_gib)} or more."
            )
        answers, store = found[f"codes: {side}s, fit: answers to one pass, in the object store"], room.object_store_gib * room.nodes
        if answers > store:
            yield (
                f"the {side}s' k-means shards answer each pass with {n(answers)} GiB in all ({shards} shards of {size} x {dim} sums), and the object stores "
                f"hold {n(store)} GiB: set codes.{side}.compute.num_actors = {math.floor(shards * store / answers)} or fewer."
            )


def dominant(work: Workload, lines: Sequence[Line]) -> list[str]:
    """What takes most of what is repeated, by device and CPU, and what takes most of the storage."""
    said = []
    for kind, repeated in repeated_hours(work, lines).items():
        daily = {what: hours / days * runs for what, (hours, days, runs) in repeated.items()}
        total, first = sum(daily.values()), max(daily, key=lambda what: daily[what])
        if total > 0:
            said.append(f"of the {kind}-hours that are spent again and again, {first} takes {daily[first] / total:.0%}: {n(daily[first])} a day.")
    stored = {line.what: line.value for line in lines if line.part == "storage"}
    first = max(stored, key=lambda what: stored[what])
    return [*said, f"of the storage, {first} takes {stored[first] / sum(stored.values()):.0%}: {n(stored[first] * work.runs)} TiB."]


def costs(lines: Sequence[Line], prices: Prices) -> list[Line]:
    """Lines of what is paid, for what has a price."""
    found = {line.name: line.value for line in lines}
    made: list[Line] = []

    def add(what: str, amount: float, words: str, price: float | None, unit: str) -> None:
        if price is not None:
            made.append(Line("cost", what, f"{words} x {price:g}", amount * price, unit))  # type: ignore[arg-type]  # one of Unit

    once, daily = found["totals: device-hours once, at the start"], found["totals: device-hours a day"]
    cpus, replicas = found["totals: CPU-hours a day"], found["totals: replicas"]
    add("devices, at the start", once, n(once), prices.device_hour, "once")
    add("devices", daily, n(daily), prices.device_hour, "a day")
    add("CPUs", cpus, n(cpus), prices.cpu_hour, "a day")
    add("replicas, all of them all day", 24 * replicas, f"24 x {n(replicas)}", prices.replica_hour, "a day")
    stored = found["totals: storage"]
    add("storage", stored * TIB / 1e9, f"{n(stored)} x 2**40 / 10**9", prices.gb_month, "a month")
    a_month = [(one.value, 1 if one.unit == "a month" else DAYS_A_MONTH) for one in made if one.unit != "once"]
    if a_month:
        text = " + ".join(f"{n(value)} x {days}" for value, days in a_month)
        made.append(Line("cost", f"all of it, {DAYS_A_MONTH} days", text, sum(value * days for value, days in a_month), "a month"))
    return made
