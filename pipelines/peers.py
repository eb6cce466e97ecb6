"""Peers: whom each user borrows statistics of the target item from (ours).

Reads logs, user spaces and user codes; writes the table `peers` (schema.PEERS), empty where peers.form is "none".
Run: python -m pipelines.peers --config …
"""

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longtail import schema
from longtail.artifacts import Artifact, Draft
from longtail.config import Config
from longtail.peers import peer_levels
from longtail.run_state import load_behaviour, load_entities, logs_info
from longtail.settings import own_seed
from longtail.snapshots import as_of_us, of_snapshot
from pipelines import blocks, work
from pipelines.codes import USER_CODES
from pipelines.logs import LOGS
from pipelines.stage import Context, Result, Stage, main_for
from pipelines.user_spaces import USER_SPACES

logger = logging.getLogger(__name__)

MOST_SHARE = 0.2  # of the users as somebody's peers, before it is said to be many


def one_snapshot(inputs: dict[str, Artifact], time: int, config: Config) -> pa.Table:
    """All users' peers at one as_of; only events strictly before it are looked at."""
    entities = load_entities(inputs["logs"], config.samples.numeric_bins)
    past = load_behaviour(inputs["logs"], config.samples.numeric_bins).before(time)
    lender_M = np.zeros(len(entities.users) + 1, bool)
    lender_M[past.user_row_E] = True
    spaces = of_snapshot(inputs["user_spaces"].read("vectors"), time)
    vectors_MD = entities.users.by_code(spaces.column("user_id"), spaces.column("vector"))
    codes = of_snapshot(inputs["user_codes"].read("codes"), time)
    codes_MS = entities.users.by_code(codes.column("user_id"), codes.column("codes"), missing=-1)
    levels = peer_levels(vectors_MD, lender_M, codes_MS, config.peers, own_seed(config.peers.seed, config.run.seed))
    ids = entities.users.values
    rows = np.flatnonzero((levels[0].row_MP > 0).any(axis=1))
    row_RP = np.concatenate([one.row_MP[rows] for one in levels], axis=1)
    weight_RP = np.concatenate([one.weight_MP[rows] for one in levels], axis=1)
    there_RP = row_RP > 0
    lengths_RV = np.stack([(one.row_MP[rows] > 0).sum(axis=1) for one in levels], axis=1)
    named = _by_level(ids.take(pa.array(row_RP[there_RP] - 1)), lengths_RV)
    times = pa.repeat(pa.scalar(time, pa.int64()), len(rows)).cast(schema.TIMESTAMP)
    columns = [ids.take(pa.array(rows - 1)), times, named, _by_level(pa.array(weight_RP[there_RP]), lengths_RV)]
    return pa.table([column.cast(field.type) for column, field in zip(columns, schema.PEERS, strict=True)], schema=schema.PEERS)


def _by_level(values: pa.Array, lengths_RV: npt.NDArray[np.integer]) -> pa.ListArray:
    """One list of V lists for each user, filled from values by user and level."""
    inner = pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(lengths_RV)), pa.int32()), values)
    return pa.ListArray.from_arrays(pa.array(np.arange(len(lengths_RV) + 1) * lengths_RV.shape[1], pa.int32()), inner)


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
    num_users = logs_info(context.inputs["logs"]).num_users
    if settings.num_peers[0] > MOST_SHARE * num_users:
        logger.warning(
            "peers.num_peers = %s, and there are %d users: what most users share tells little of one. A few percent of them are usual.",
            list(settings.num_peers),
            num_users,
        )
    as_of = as_of_us(context.inputs["user_codes"].read("codes", ["as_of"]))
    if not work.is_in_place():
        blocks.check_room({"peers": settings.compute}, context.config.cluster)
    tables = work.tasks(one_snapshot, [(dict(context.inputs), int(time), context.config) for time in np.unique(as_of)], settings.compute)
    table = schema.check(pa.concat_tables(tables), schema.PEERS, "peers")
    draft.write("peers", table)
    return Result(rows_in=len(table), rows_out=len(table), info={"snapshots": len(tables)})


def _settings(config: Config) -> dict[str, Any]:
    """The values that decide who is whose peer: not prior_users, which decides what is made of them, and a seed only where something is drawn."""
    silent = {"prior_users"} if config.peers.form in ("random", "groups") else {"prior_users", "seed"}
    return {name: value for name, value in config.peers.key_fields().items() if name not in silent}


PEERS = Stage("peers", 3, (LOGS, USER_SPACES, USER_CODES), _settings, _build, "pipelines.peers")


def main() -> None:
    main_for(__doc__ or "", lambda config: [PEERS])


if __name__ == "__main__":
    main()
