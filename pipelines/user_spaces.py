"""User spaces: one vector per user and snapshot, of the spaces that groups and peers are made in.

Reads logs, user vectors and item vectors; writes vectors.parquet, a row for each row of the user vectors, in user_spaces.spaces.
Run: python -m pipelines.user_spaces --config …
"""

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from longtail import schema
from longtail.artifacts import Artifact, Draft
from longtail.behaviour import incidence
from longtail.config import Config
from longtail.run_state import load_behaviour, load_entities
from longtail.user_spaces import Floats, Space, attribute_vectors, behaviour_vectors, shuffled_rows, side_by_side, title_vectors
from longtail.vectors import to_arrow, to_numpy
from pipelines import work
from pipelines.embeddings import ITEM_VECTORS, USER_VECTORS
from pipelines.logs import LOGS
from pipelines.stage import Context, Result, Stage, main_for


def one_snapshot(inputs: dict[str, Artifact], as_of_us: int, first_us: int, config: Config) -> pa.Table:
    """All users' vectors at one as_of; only events strictly before it are looked at. `first_us` is the first snapshot's, where codebooks are fitted."""
    settings = config.user_spaces
    seed = config.run.seed if settings.seed is None else settings.seed
    profiles = inputs["user_vectors"].read("vectors")
    profiles = profiles.filter(pc.equal(pc.cast(profiles.column("as_of"), pa.int64()), as_of_us)).sort_by("user_id")
    entities = load_entities(inputs["logs"], config.samples.numeric_bins)
    rows = entities.users.encode(profiles.column("user_id"))

    def vectors(space: Space) -> Floats:
        if space == "profile":
            return to_numpy(profiles.column("vector"))
        if space == "attributes":
            return attribute_vectors(entities.attribute_codes_MA)[rows]
        if space == "behaviour":
            return _behaviour(inputs["logs"], config.samples.numeric_bins, as_of_us, first_us, settings.behaviour_dim, config.run.seed)[rows]
        items = inputs["item_vectors"].read("vectors")
        return title_vectors(
            _met(inputs["logs"], config.samples.numeric_bins, as_of_us), entities.items.by_code(items.column("item_id"), items.column("vector"))
        )[rows]

    found = [vectors(space) for space in settings.spaces]
    vectors_RD = found[0] if settings.spaces == ("profile",) else side_by_side(found)
    if settings.shuffled:
        vectors_RD = shuffled_rows(vectors_RD, seed)
    return profiles.select(["user_id", "as_of"]).append_column("vector", to_arrow(vectors_RD))


def _met(logs: Artifact, numeric_bins: int, before_us: int) -> sparse.csr_matrix:
    """Who had met what before a time."""
    entities, past = load_entities(logs, numeric_bins), load_behaviour(logs, numeric_bins).before(before_us)
    return incidence(past.user_row_E, past.item_row_E, (len(entities.users) + 1, len(entities.items) + 1))


@lru_cache(maxsize=8)
def _behaviour(logs: Artifact, numeric_bins: int, as_of_us: int, first_us: int, dim: int, seed: int) -> Floats:
    """The behaviour vectors of a snapshot, turned towards the first one's; kept, since a process that makes many variants asks for the same."""
    earlier = None if as_of_us == first_us else _behaviour(logs, numeric_bins, first_us, first_us, dim, seed)
    return behaviour_vectors(_met(logs, numeric_bins, as_of_us), dim, seed, earlier)


def _build(context: Context, draft: Draft) -> Result:
    keys = context.inputs["user_vectors"].read("vectors", ["as_of"])
    as_of = pc.cast(keys.column("as_of"), pa.int64()).to_numpy()
    table = pa.concat_tables(work.tasks(one_snapshot, [(dict(context.inputs), int(time), int(as_of.min()), context.config) for time in np.unique(as_of)]))
    dim = int(table.schema.field("vector").type.list_size)
    draft.write("vectors", schema.check(table, schema.vectors(schema.USER_KEY, dim), "vectors"))
    return Result(rows_in=len(keys), rows_out=len(table), info={"dim": dim, "spaces": list(context.config.user_spaces.spaces)})


def _settings(config: Config) -> dict[str, object]:
    return {"user_spaces": config.user_spaces.key_fields(), "numeric_bins": config.samples.numeric_bins}


USER_SPACES = Stage("user_spaces", 2, (LOGS, USER_VECTORS, ITEM_VECTORS), _settings, _build, "pipelines.user_spaces")


def main() -> None:
    main_for(__doc__ or "", lambda config: [USER_SPACES])


if __name__ == "__main__":
    main()
