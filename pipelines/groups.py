"""Groups: per group prefix and as_of, what the members have in common.

Reads logs and user codes; writes the table `groups` (schema.GROUPS). Run: python -m pipelines.groups --config pipelines/configs/demo.toml
"""

import numpy as np
import pyarrow as pa

from longtail import schema
from longtail.artifacts import Artifact, Draft
from longtail.config import Config
from longtail.group_totals import Question, totals
from longtail.groups import Prefixes, build_groups
from longtail.run_state import load_entities, logs_info
from longtail.sample_shares import row_groups
from longtail.snapshots import as_of_us, of_snapshot
from longtail.times import to_us
from pipelines import work
from pipelines.codes import USER_CODES
from pipelines.logs import LOGS
from pipelines.stage import Context, Result, Stage, main_for


def one_snapshot(logs: Artifact, user_codes: Artifact, time: int, config: Config) -> pa.Table:
    """All groups of one as_of."""
    entities, settings, info = load_entities(logs, config.samples.numeric_bins), config.groups, logs_info(logs)
    codes = of_snapshot(user_codes.read("codes"), time)
    user_row = entities.users.encode(codes.column("user_id")).astype(np.int64)
    codes_RS = codes.column("codes").combine_chunks().flatten().to_numpy().reshape(len(codes), -1).astype(np.int64)
    leaf_group_M = np.full(len(entities.users) + 1, -1)
    leaf_group_M[user_row] = Prefixes.by_depth(codes_RS)[-1].group_R
    question = Question(entities, info.behaviour_kinds, to_us(info.start), time, leaf_group_M, settings.half_life_days)
    stats_MU, cells = totals(logs.fs, row_groups(logs.fs, logs.path("events.parquet")), question, settings.threads, settings.memory_mb)
    return build_groups(codes_RS, user_row, stats_MU[user_row], cells, entities, time, settings)


def _build(context: Context, draft: Draft) -> Result:
    logs, user_codes = context.inputs["logs"], context.inputs["user_codes"]
    as_of = as_of_us(user_codes.read("codes", ["as_of"]))
    tables = work.tasks(one_snapshot, [(logs, user_codes, int(time), context.config) for time in np.unique(as_of)])
    table = schema.check(pa.concat_tables(tables), schema.GROUPS, "groups")
    draft.write("groups", table)
    depth, size = table.column("depth").to_numpy(), table.column("size").to_numpy()
    info = {
        "num_groups": len(table),
        "sizes_by_depth": {
            str(d): {"groups": int((depth == d).sum()), "median_size": float(np.median(size[depth == d])), "max_size": int(size[depth == d].max())}
            for d in np.unique(depth)
        },
    }
    return Result(rows_in=len(table), rows_out=len(table), info=info)


def _settings(config: Config) -> dict[str, object]:
    return {"groups": config.groups.key_fields(), "numeric_bins": config.samples.numeric_bins}


GROUPS = Stage("groups", 2, (LOGS, USER_CODES), _settings, _build, "pipelines.groups")


def main() -> None:
    main_for(__doc__ or "", lambda config: [GROUPS])


if __name__ == "__main__":
    main()
