"""The `user_vectors` and `item_vectors` stages: texts through a frozen encoder, as a Ray Data plan.

Reads profiles (user vectors that were made in the profiles' own plan are taken over) and item texts; writes vectors.
Run: python -m pipelines.embeddings --config …
"""

import logging
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.embed import EmbedActor
from longtail.artifacts import Draft
from longtail.embeddings import EncoderSettings, encoder_key
from longtail.packaged_models import fingerprint
from longtail.schema import ITEM_KEY, USER_KEY, vectors
from pipelines import blocks
from pipelines.item_texts import ITEM_TEXTS
from pipelines.profiles import PROFILES, USER_VECTORS_TABLE
from pipelines.stage import Context, Result, Stage, main_for

logger = logging.getLogger(__name__)


def build_user_vectors(context: Context, draft: Draft) -> Result:
    """Take over the vectors of the profiles' plan, or embed the profiles."""
    settings = context.config.embeddings.user
    profiles = context.inputs["profiles"]
    if profiles.info.get("encoder") == encoder_key(settings):
        table = profiles.read(USER_VECTORS_TABLE)
        draft.write("vectors", table)
        return Result(len(table), len(table), info={"dim": profiles.info["dim"], "made_with": "profiles"})
    return _embed(context, draft, profiles.read("profiles", [*USER_KEY.names, "text"]), USER_KEY, "user")


def build_item_vectors(context: Context, draft: Draft) -> Result:
    """Embed every item's text."""
    return _embed(context, draft, context.inputs["item_texts"].read("texts"), ITEM_KEY, "item")


def _embed(context: Context, draft: Draft, table: pa.Table, key: pa.Schema, section: str) -> Result:
    """Embed `table`'s `text` by `section` of [embeddings] and write `key` and `vector`."""
    settings: EncoderSettings = getattr(context.config.embeddings, section)
    blocks.check_room({f"embeddings.{section}": settings.compute}, context.config.cluster, num_steps=2)
    folder = blocks.parts_folder(draft, "vectors")
    plan = blocks.source(table, settings.compute.batch_size)
    plan = blocks.actors(plan, EmbedActor, settings.compute, settings=settings)
    plan = blocks.tasks(plan, blocks.write_part, uri=context.store.uri, folder=folder, columns=[*key.names, "vector"])
    plan = blocks.tasks(plan, blocks.summarise)
    summaries, statistics = blocks.run(plan, len(table), f"{section}_vectors")
    dim = int(pq.read_schema(f"{folder}/part-000000.parquet", filesystem=draft.fs).field("vector").type.list_size)
    blocks.merge(draft, folder, "vectors", vectors(key, dim), len(table))
    distinct = int(pc.count_distinct(table.column("text")).as_py())
    info = {"dim": dim, "made_with": f"{section}_vectors", "distinct_texts": distinct}
    info |= {"embed_pool": blocks.span(summaries, "embed"), "plan_statistics": statistics}
    return Result(len(table), len(table), info=info)


def vectors_stage(section: str, upstream: Stage, build: Callable[[Context, Draft], Result]) -> Stage:
    """The vectors of one kind of entity, by `section` of [embeddings]."""
    return Stage(
        name=f"{section}_vectors",
        version=2,
        inputs=(upstream,),
        settings=lambda config: getattr(config.embeddings, section).key_fields(),
        build=build,
        command="pipelines.embeddings",
        fingerprint=lambda config: fingerprint(getattr(config.embeddings, section).model),
    )


USER_VECTORS = vectors_stage("user", PROFILES, build_user_vectors)
ITEM_VECTORS = vectors_stage("item", ITEM_TEXTS, build_item_vectors)


def main() -> None:
    main_for(__doc__ or "", lambda config: [USER_VECTORS, ITEM_VECTORS])


if __name__ == "__main__":
    main()
