"""The `profiles` stage: one profile per user and snapshot, with its embedding in the same Ray Data plan.

Reads logs (users, items, events); writes profiles, and with profiles.streaming also user_vectors, which the stage user_vectors takes over.
Run: python -m pipelines.profiles --config …
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from actors.embed import EmbedActor
from actors.profile import ProfileActor, deterministic_profiles
from longtail import schema
from longtail.artifacts import Artifact, Draft
from longtail.config import Config
from longtail.embeddings import encoder_key
from longtail.logs import LogsInfo
from longtail.packaged_models import fingerprint, resolve
from longtail.profile_facts import FACTS, facts_table, render
from longtail.profile_names import known_names
from longtail.profiles import ProfilesSettings, engine_key, snapshot_times
from longtail.schema import EVENTS, ITEMS, USER_KEY, USERS, check, vectors
from longtail.settings import Compute
from longtail.token_count import count_words, token_counter
from pipelines import blocks
from pipelines.logs import LOGS
from pipelines.stage import Context, Result, Stage, main_for

logger = logging.getLogger(__name__)

USER_VECTORS_TABLE = "user_vectors"
BLOCKS_AT_ONCE = 16  # in one profile actor: a twentieth of their prompts is about what an engine takes at once
FACT_ITEM_COLUMNS = ["item_id", "category", "price"]  # of the logs' tables, which may hold pictures
FACT_EVENT_COLUMNS = ["user_id", "ts", "kind", "item_id", "query", "price"]


def build(context: Context, draft: Draft) -> Result:
    """Facts → prompts → language model → validation → profiles (→ embeddings)."""
    config = context.config
    settings, encoder = config.profiles, config.embeddings.user
    facts, kind, names, dropped = facts_of_snapshots(context.inputs["logs"], settings)
    pools: dict[str, Compute] = {"profiles": settings.compute} if settings.generator == "llm" else {}
    pools |= {"embeddings.user": encoder.compute} if settings.streaming else {}
    blocks.check_room(pools, config.cluster, num_steps=2)
    _prepare(config)
    weights = fingerprint(settings.model) if settings.generator == "llm" else ""
    folder = blocks.parts_folder(draft, "profiles")
    plan = blocks.source(facts, settings.compute.batch_size)
    plan = blocks.tasks(plan, add_prompts, settings=settings, kind=kind)
    if settings.generator == "llm":
        key = engine_key(settings, weights)
        plan = asked(plan, settings, cache_uri=context.store.uri, engine_key=key, names=names)
    else:
        plan = blocks.tasks(plan, deterministic_profiles)
    plan = blocks.tasks(plan, blocks.write_part, uri=context.store.uri, folder=folder, columns=schema.PROFILES.names)
    vector_folder = blocks.parts_folder(draft, USER_VECTORS_TABLE) if settings.streaming else None
    if vector_folder is not None:
        plan = blocks.actors(plan, EmbedActor, encoder.compute, settings=encoder)
        plan = blocks.tasks(plan, blocks.write_part, uri=context.store.uri, folder=vector_folder, columns=[*USER_KEY.names, "vector"])
    plan = blocks.tasks(plan, blocks.summarise)
    summaries, statistics = blocks.run(plan, len(facts), "profiles")
    blocks.merge(draft, folder, "profiles", schema.PROFILES, len(facts))
    info = _outcomes(draft) | {"weights": weights, "snapshots": sorted({str(time) for time in facts.column("as_of").unique().to_pylist()})}
    info |= {"plan_statistics": statistics, "profile_pool": blocks.span(summaries, "profile")}
    if vector_folder is not None:
        dim = _merge_vectors(draft, vector_folder, len(facts))
        info |= {"encoder": encoder_key(encoder), "dim": dim, "embed_pool": blocks.span(summaries, "embed")}
        info["overlap_s"] = round(blocks.overlap_s(summaries, "profile", "embed"), 3)
    if settings.generator == "llm":
        loads = [summary["engine_ended"] - summary["engine_started"] for summary in summaries]
        loads = [load for load in loads if not math.isnan(load)]  # NaN: the block found its engine running, or needed none
        info |= {"engines_started": len(loads), "engine_start_s": round(sum(loads), 3)}
    logger.info("profiles: %s, %d of %d from the cache", info["outcomes"], info["cached"], len(facts))
    return Result(len(facts) + sum(dropped.values()), len(facts), dropped, info)


def asked(plan: "ray.data.Dataset", settings: ProfilesSettings, **constructor: Any) -> "ray.data.Dataset":
    """The step of the language model: each actor has several blocks at once, whose prompts share its engine.

    So the engine is as full at a block's end as at its beginning, and in a run in which few users changed, a few prompts of many blocks fill it.
    """
    compute = settings.compute
    pool = blocks.pool(compute, max_tasks_in_flight_per_actor=BLOCKS_AT_ONCE, max_concurrent_calls_per_actor=BLOCKS_AT_ONCE)
    reserved = blocks.options(compute) | {"num_gpus": compute.num_gpus or None}
    constructor |= {"settings": settings}
    return plan.map_batches(ProfileActor, fn_constructor_kwargs=constructor, compute=pool, batch_size=None, batch_format="pyarrow", **reserved)


def facts_of_snapshots(logs: Artifact, settings: ProfilesSettings) -> tuple[pa.Table, str, list[str], dict[str, int]]:
    """Facts of all snapshots, the kind of events that they count, every name of the run, and the users left out by reason."""
    info = LogsInfo.model_validate(logs.info)
    users, items = logs.read("users"), logs.read("items", FACT_ITEM_COLUMNS)
    events = logs.read("events", FACT_EVENT_COLUMNS)
    check(users, USERS, "users")
    check(items, pa.schema([ITEMS.field(name) for name in FACT_ITEM_COLUMNS]), "items")
    check(events, pa.schema([EVENTS.field(name) for name in FACT_EVENT_COLUMNS]), "events")
    tables, dropped = [], Counter[str]()
    for as_of in snapshot_times(settings, info):
        table, left_out = facts_table(users, items, events, info, settings, as_of)
        tables.append(table)
        dropped.update(left_out)
    facts = pa.concat_tables(tables)
    if not len(facts):
        raise ValueError(f"profiles.snapshots = {list(settings.snapshots)}: no user has an event or an attribute by then. Choose a later snapshot.")
    return facts, info.behaviour_kinds[-1], known_names(users, items, info), {reason: number for reason, number in dropped.items() if number}


def add_prompts(block: pa.Table, settings: ProfilesSettings, kind: str) -> pa.Table:
    """A block of FACTS with `facts`, the user's part of the prompt, and `cut_lines`; its other columns keep only what the prompt shows."""
    count = token_counter(settings.model) if settings.generator == "llm" else count_words
    rendered = render(block.select(FACTS.names).to_pylist(), kind, settings, count)
    for name in ("attributes", "lines", "searches"):
        shown = pa.array([part.shown[name] for part in rendered], FACTS.field(name).type)
        block = block.set_column(block.column_names.index(name), FACTS.field(name), shown)
    block = block.append_column("facts", pa.array([part.text for part in rendered], pa.string()))
    return block.append_column("cut_lines", pa.array([part.cut_lines for part in rendered], pa.int32()))


def _prepare(config: Config) -> None:
    """De-quantise a packaged model before many workers ask for it at once; in a task, since the driver has no use for torch."""
    if config.profiles.generator == "llm":
        ray.get(ray.remote(resolve).options(num_cpus=blocks.SMALL_CPUS).remote(config.profiles.model))


def _outcomes(draft: Draft) -> dict[str, Any]:
    """Counts of what the model did, from the finished table."""
    table = pq.read_table(draft.path("profiles.parquet"), filesystem=draft.fs, columns=["outcome", "cached", "cut_lines", "prompt_tokens", "output_tokens"])
    counts = {entry["values"]: entry["counts"] for entry in table.column("outcome").value_counts().to_pylist()}
    return {
        "outcomes": dict(sorted(counts.items())),
        "cached": int(pc.sum(table.column("cached")).as_py() or 0),
        "cut_lines": int(pc.sum(table.column("cut_lines")).as_py() or 0),
        "users_with_cut_lines": int(pc.sum(pc.greater(table.column("cut_lines"), 0)).as_py() or 0),
        "mean_prompt_tokens": round(float(pc.mean(table.column("prompt_tokens")).as_py()), 1),
        "mean_output_tokens": round(float(pc.mean(table.column("output_tokens")).as_py()), 1),
    }


def _merge_vectors(draft: Draft, folder: str, num_rows: int) -> int:
    """Merge the vectors' parts; returns their width."""
    first = pq.read_schema(f"{folder}/part-000000.parquet", filesystem=draft.fs)
    dim = int(first.field("vector").type.list_size)
    blocks.merge(draft, folder, USER_VECTORS_TABLE, vectors(USER_KEY, dim), num_rows)
    return dim


def _settings(config: Config) -> dict[str, Any]:
    """The values that decide the profiles. `streaming` decides only when their vectors are made."""
    fields = config.profiles.key_fields()
    fields.pop("streaming")
    if config.profiles.generator == "deterministic":
        of_the_model = ("model", "max_output_tokens", "max_model_len", "frequency_penalty", "answer_form")
        return {name: value for name, value in fields.items() if name not in of_the_model}
    return fields | {"dtype": config.profiles.compute.dtype}


PROFILES = Stage(
    name="profiles",
    version=2,
    inputs=(LOGS,),
    settings=_settings,
    build=build,
    command="pipelines.profiles",
    fingerprint=lambda config: fingerprint(config.profiles.model) if config.profiles.generator == "llm" else "",
)


def main() -> None:
    """Build the stage, and the user vectors with it where they are one plan."""
    main_for(__doc__ or "", _stages)


def _stages(config: Config) -> Sequence[Stage]:
    from pipelines.embeddings import USER_VECTORS  # embeddings imports this module

    return [PROFILES, USER_VECTORS] if config.profiles.streaming else [PROFILES]


if __name__ == "__main__":
    main()
