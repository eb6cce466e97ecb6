"""Peers: whom each user borrows statistics of the target item from (ours).

Reads logs, user vectors, item vectors and user codes; writes the table `peers` (schema.PEERS), empty where peers.form is "none".
Run: python -m pipelines.peers --config …
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from longtail import schema
from longtail.artifacts import Artifact, Draft
from longtail.config import Config
from longtail.peers import Floats, Space, behaviour_vectors, incidence, peer_levels, title_vectors
from longtail.run_state import load_behaviour, load_entities
from pipelines.codes import USER_CODES
from pipelines.embeddings import ITEM_VECTORS, USER_VECTORS
from pipelines.logs import LOGS
from pipelines.stage import Context, Result, Stage, main_for


def one_snapshot(inputs: dict[str, Artifact], as_of_us: int, config: Config) -> pa.Table:
    """All users' peers at one as_of; only events strictly before it are looked at."""
    settings, seed = config.peers, config.run.seed
    entities = load_entities(inputs["logs"], config.samples.numeric_bins)
    past = load_behaviour(inputs["logs"], entities).before(as_of_us)
    met_MN = incidence(past.user_row_E, past.item_row_E, (len(entities.users) + 1, len(entities.items) + 1))
    known_M = met_MN.getnnz(axis=1) > 0

    def vectors(space: Space) -> Floats:
        if space == "behaviour":
            return behaviour_vectors(met_MN, settings.behaviour_dim, seed)
        if space == "titles":
            items = inputs["item_vectors"].read("vectors")
            return title_vectors(met_MN, entities.items.by_code(items.column("item_id"), items.column("vector")))
        profiles = _at(inputs["user_vectors"].read("vectors"), as_of_us)
        return entities.users.by_code(profiles.column("user_id"), profiles.column("vector"))

    codes = _at(inputs["user_codes"].read("codes"), as_of_us)
    codes_MS = entities.users.by_code(codes.column("user_id"), codes.column("codes"), missing=-1)
    spaces = [vectors(space) for space in settings.spaces] if settings.form == "neighbours" else []
    levels = peer_levels(known_M, spaces, codes_MS, settings, seed)
    ids = entities.users.values
    rows = np.flatnonzero(known_M)
    named = [[ids.take(pa.array(level[row][level[row] > 0] - 1)).to_pylist() for level in levels] for row in rows]
    times = pa.array([as_of_us] * len(rows), pa.int64()).cast(schema.TIMESTAMP)
    return pa.Table.from_arrays([ids.take(pa.array(rows - 1)), times, pa.array(named, schema.PEERS.field("peers").type)], schema=schema.PEERS)


def _at(table: pa.Table, as_of_us: int) -> pa.Table:
    """A table's rows of one snapshot."""
    return table.filter(pc.equal(pc.cast(table.column("as_of"), pa.int64()), as_of_us))


def _build(context: Context, draft: Draft) -> Result:
    if context.config.peers.form == "none":
        draft.write("peers", schema.PEERS.empty_table())
        return Result(rows_in=0, rows_out=0)
    settings, num_stages = context.config.peers, context.config.codes.user.num_stages
    if settings.form == "groups" and len(settings.num_peers) > num_stages:
        raise ValueError(
            f"peers.num_peers = {list(settings.num_peers)} has {len(settings.num_peers)} levels, the user codes have codes.user.num_stages = {num_stages}. "
            "Give at most one level for each stage."
        )
    as_of = pc.cast(context.inputs["user_codes"].read("codes", ["as_of"]).column("as_of"), pa.int64()).to_numpy()
    task: Any = ray.remote(num_cpus=1, max_calls=1)(one_snapshot)
    tables = ray.get([task.remote(dict(context.inputs), int(time), context.config) for time in np.unique(as_of)])
    table = schema.check(pa.concat_tables(tables), schema.PEERS, "peers")
    draft.write("peers", table)
    return Result(rows_in=len(table), rows_out=len(table), info={"snapshots": len(tables)})


def _settings(config: Config) -> dict[str, Any]:
    """The values that decide who is whose peer; the others decide what is made of them, in the samples."""
    fields = config.peers.key_fields()
    return {name: value for name, value in fields.items() if name not in ("cluster_depth", "prior_users")}


PEERS = Stage(
    name="peers",
    version=1,
    inputs=(LOGS, USER_VECTORS, ITEM_VECTORS, USER_CODES),
    settings=_settings,
    build=_build,
    command="pipelines.peers",
)


def main() -> None:
    main_for(__doc__ or "", lambda config: [PEERS])


if __name__ == "__main__":
    main()
