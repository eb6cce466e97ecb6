"""Collaborative filtering: item-item weights of EASE and PureSVD at each snapshot of the profiles.

Reads logs; writes the table `collaborative` (schema.COLLABORATIVE), empty where collaborative.scores is. Run: python -m pipelines.collaborative --config …
"""

from typing import Any

import pyarrow as pa

from longtail import schema
from longtail.artifacts import Artifact, Draft
from longtail.collaborative import fit
from longtail.config import Config
from longtail.profiles import snapshot_times
from longtail.run_state import load_entities, load_incidence, logs_info
from longtail.times import to_us
from pipelines import work
from pipelines.logs import LOGS
from pipelines.stage import Context, Result, Stage, main_for


def one_snapshot(logs: Artifact, as_of_us: int, config: Config) -> pa.Table:
    """The weights at one as_of; only events strictly before it are looked at."""
    bins = config.samples.numeric_bins
    return fit(load_incidence(logs, bins, as_of_us), load_entities(logs, bins).items, as_of_us, config.collaborative, config.run.seed)


def _build(context: Context, draft: Draft) -> Result:
    if not context.config.collaborative.scores:
        draft.write("collaborative", schema.COLLABORATIVE.empty_table())
        return Result(rows_in=0, rows_out=0)
    logs = context.inputs["logs"]
    times = snapshot_times(context.config.profiles, logs_info(logs))
    tables = work.tasks(one_snapshot, [(logs, to_us(time), context.config) for time in times])
    table = schema.check(pa.concat_tables(tables), schema.COLLABORATIVE, "collaborative")
    draft.write("collaborative", table)
    return Result(rows_in=len(table), rows_out=len(table), info={"snapshots": len(tables)})


def _settings(config: Config) -> dict[str, Any]:
    """The values that decide the weights; none of them where there are none."""
    if not config.collaborative.scores:
        return {"scores": []}
    return config.collaborative.key_fields() | {"snapshots": list(config.profiles.snapshots)}


COLLABORATIVE = Stage(
    name="collaborative",
    version=1,
    inputs=(LOGS,),
    settings=_settings,
    build=_build,
    command="pipelines.collaborative",
)


def main() -> None:
    main_for(__doc__ or "", lambda config: [COLLABORATIVE])


if __name__ == "__main__":
    main()
