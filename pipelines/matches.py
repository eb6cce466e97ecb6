"""Matches: what users did with the items of a candidate's cluster, row by row of the samples; a change of codebooks leaves the samples as they are.

Reads logs, item codes and the samples' keys; writes matches.parquet/part-*.parquet, whose rows are those of the samples' parts.
Run: python -m pipelines.matches --config pipelines/configs/demo.toml
"""

from actors.features import MatchActor
from longtail.artifacts import Draft, parquet_files
from longtail.config import Config
from pipelines import work
from pipelines.codes import ITEM_CODES
from pipelines.logs import LOGS
from pipelines.samples import SAMPLES, targets
from pipelines.stage import Context, Result, Stage, main_for


def _build(context: Context, draft: Draft) -> Result:
    samples, config = context.inputs["samples"], context.config
    parts = targets(draft, parquet_files(samples.fs, samples.path("samples.parquet")), "matches")
    said = work.pool(MatchActor, (dict(context.inputs), config), "write_part", parts, {"samples": config.samples.compute}, config.cluster)
    return Result(rows_in=sum(said), rows_out=sum(said))


def _settings(config: Config) -> dict[str, object]:
    return {"cluster_depth": config.samples.cluster_depth, "numeric_bins": config.samples.numeric_bins}


MATCHES = Stage("matches", 1, (LOGS, ITEM_CODES, SAMPLES), _settings, _build, "pipelines.matches")


def main() -> None:
    main_for(__doc__ or "", lambda config: [MATCHES])


if __name__ == "__main__":
    main()
