"""Samples: examples with their users' and items' own features as known at their time, one part per part of the examples.

Reads logs, item codes and collaborative scores; writes samples.parquet/part-*.parquet. The stage `lent` writes what groups and peers lend to the same rows.
Run: python -m pipelines.samples --config pipelines/configs/demo.toml
"""

from collections import Counter
from collections.abc import Sequence

from actors.features import OwnFeatureActor
from longtail.artifacts import Draft, parquet_files
from longtail.config import Config
from pipelines import work
from pipelines.codes import ITEM_CODES
from pipelines.collaborative import COLLABORATIVE
from pipelines.logs import LOGS
from pipelines.stage import Context, Result, Stage, main_for


def targets(draft: Draft, sources: Sequence[str], name: str) -> list[tuple[str, str]]:
    """Each of `sources` with the part of the table `name` that is made of it."""
    return [(source, draft.path(f"{name}.parquet/{source.rsplit('/', 1)[1]}")) for source in sources]


def _build(context: Context, draft: Draft) -> Result:
    logs, config = context.inputs["logs"], context.config
    parts = targets(draft, parquet_files(logs.fs, logs.path("examples.parquet")), "samples")
    said = work.pool(OwnFeatureActor, (dict(context.inputs), config), "write_part", parts, {"samples": config.samples.compute}, config.cluster)
    counts: Counter[str] = Counter()
    for by_split in said:
        counts.update(by_split)
    return Result(rows_in=counts.total(), rows_out=counts.total(), info={"rows_by_split": dict(counts)})


def _settings(config: Config) -> dict[str, object]:
    return {"samples": config.samples.key_fields(), "scores": list(config.collaborative.scores)}


SAMPLES = Stage("samples", 3, (LOGS, ITEM_CODES, COLLABORATIVE), _settings, _build, "pipelines.samples")


def main() -> None:
    main_for(__doc__ or "", lambda config: [SAMPLES])


if __name__ == "__main__":
    main()
