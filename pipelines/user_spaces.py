"""User spaces: one vector per user and snapshot, of the spaces that groups and peers are made in.

Reads logs, user vectors and item vectors; writes vectors.parquet, a row for each row of the user vectors, in user_spaces.spaces.
Run: python -m pipelines.user_spaces --config …
"""

from functools import lru_cache

import numpy as np
import pyarrow as pa

from longtail import schema
from longtail.artifacts import Artifact, Draft
from longtail.config import Config
from longtail.run_state import load_entities, load_incidence
from longtail.settings import own_seed
from longtail.snapshots import as_of_us, of_snapshot
from longtail.user_spaces import Floats, Space, attribute_vectors, behaviour_vectors, shuffled_rows, side_by_side, title_vectors
from longtail.vectors import to_arrow, to_numpy
from pipelines import work
from pipelines.embeddings import ITEM_VECTORS, USER_VECTORS
from pipelines.logs import LOGS
from pipelines.stage import Context, Result, Stage, main_for


def one_snapshot(inputs: dict[str, Artifact], time: int, first: int, config: Config) -> pa.Table:
    """All users' vectors at one as_of; only events strictly before it are looked at. `first` is the first snapshot's, where codebooks are fitted."""
    settings = config.user_spaces
    profiles = of_snapshot(inputs["user_vectors"].read("vectors"), time).sort_by("user_id")
    entities = load_entities(inputs["logs"], config.samples.numeric_bins)
    rows = entities.users.encode(profiles.column("user_id"))

    def vectors(space: Space) -> Floats:
        if space == "profile":
            return to_numpy(profiles.column("vector"))
        if space == "attributes":
            return attribute_vectors(entities.attribute_codes_MA)[rows]
        if space == "behaviour":
            return _behaviour(inputs["logs"], config.samples.numeric_bins, time, first, settings.behaviour_dim, config.run.seed)[rows]
        items, met_MN = inputs["item_vectors"].read("vectors"), load_incidence(inputs["logs"], config.samples.numeric_bins, time)
        return title_vectors(met_MN, entities.items.by_code(items.column("item_id"), items.column("vector")))[rows]

    found = [vectors(space) for space in settings.spaces]
    vectors_RD = found[0] if settings.spaces == ("profile",) else side_by_side(found)
    if settings.shuffled:
        vectors_RD = shuffled_rows(vectors_RD, own_seed(settings.seed, config.run.seed))
    return profiles.select(["user_id", "as_of"]).append_column("vector", to_arrow(vectors_RD))


@lru_cache(maxsize=8)
def _behaviour(logs: Artifact, numeric_bins: int, time: int, first: int, dim: int, seed: int) -> Floats:
    """The behaviour vectors of a snapshot, turned towards the first one's; kept, since a process that makes many variants asks for the same."""
    earlier = None if time == first else _behaviour(logs, numeric_bins, first, first, dim, seed)
    return behaviour_vectors(load_incidence(logs, numeric_bins, time), dim, seed, earlier)


def _build(context: Context, draft: Draft) -> Result:
    logs, bins = context.inputs["logs"], context.config.samples.numeric_bins
    if context.config.user_spaces.spaces == ("attributes",) and not load_entities(logs, bins).attribute_codes_MA.any():
        raise ValueError(
            "user_spaces.spaces = ['attributes']: no attribute of any user is known, so nobody lies anywhere. Declare logs.categorical_attributes or "
            "logs.numeric_attributes, or name another space."
        )
    keys = context.inputs["user_vectors"].read("vectors", ["as_of"])
    as_of = as_of_us(keys)
    table = pa.concat_tables(work.tasks(one_snapshot, [(dict(context.inputs), int(time), int(as_of.min()), context.config) for time in np.unique(as_of)]))
    dim = int(table.schema.field("vector").type.list_size)
    draft.write("vectors", schema.check(table, schema.vectors(schema.USER_KEY, dim), "vectors"))
    return Result(rows_in=len(keys), rows_out=len(table), info={"dim": dim, "spaces": list(context.config.user_spaces.spaces)})


def _settings(config: Config) -> dict[str, object]:
    """The values that decide the vectors; the seed is one of them where they are dealt out anew."""
    spaces = {name: value for name, value in config.user_spaces.key_fields().items() if name != "seed" or config.user_spaces.shuffled}
    return {"user_spaces": spaces, "numeric_bins": config.samples.numeric_bins}


USER_SPACES = Stage("user_spaces", 2, (LOGS, USER_VECTORS, ITEM_VECTORS), _settings, _build, "pipelines.user_spaces")


def main() -> None:
    main_for(__doc__ or "", lambda config: [USER_SPACES])


if __name__ == "__main__":
    main()
