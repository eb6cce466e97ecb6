"""Samples: examples with their users' and items' own features as known at their time, one part per part of the examples.

Reads logs and collaborative scores; writes samples.parquet/part-*.parquet. For the same rows the stage `matches` writes what hangs on semantic codes, the
stage `lent` what groups and peers lend.
Run: python -m pipelines.samples --config pipelines/configs/demo.toml
"""

from collections import Counter
from collections.abc import Sequence

from actors.features import OwnFeatureActor
from longtail.artifacts import Draft, parquet_files
from longtail.config import Config
from longtail.run_state import logs_info
from longtail.sample_shares import num_shares, run_steps
from pipelines import blocks, work
from pipelines.collaborative import COLLABORATIVE
from pipelines.logs import LOGS
from pipelines.stage import Context, Result, Stage, main_for


def targets(draft: Draft, sources: Sequence[str], name: str) -> list[tuple[str, str]]:
    """Each of `sources` with the part of the table `name` that is made of it."""
    return [(source, draft.path(f"{name}.parquet/{source.rsplit('/', 1)[1]}")) for source in sources]


def _build(context: Context, draft: Draft) -> Result:
    logs, config = context.inputs["logs"], context.config
    parts = targets(draft, parquet_files(logs.fs, logs.path("examples.parquet")), "samples")
    info = logs_info(logs)
    shares = num_shares(info.num_events, sum(info.num_examples.values()), config.samples)
    folder = blocks.parts_folder(draft, "shares")
    with work.staff(OwnFeatureActor, (dict(context.inputs), config, folder, shares), {"samples": config.samples.compute}, config.cluster, most=shares) as order:
        said = run_steps(order, logs, parts, shares)
    draft.fs.delete_dir(folder)
    counts: Counter[str] = Counter()
    for by_split in said:
        counts.update(by_split)
    return Result(rows_in=counts.total(), rows_out=counts.total(), info={"rows_by_split": dict(counts)})


def own_fields(config: Config) -> dict[str, object]:
    """The section's values that decide own features: not what decides the clusters of semantic codes."""
    return {name: value for name, value in config.samples.key_fields().items() if name != "cluster_depth"}


def _settings(config: Config) -> dict[str, object]:
    return {"samples": own_fields(config), "scores": list(config.collaborative.scores)}


SAMPLES = Stage("samples", 4, (LOGS, COLLABORATIVE), _settings, _build, "pipelines.samples")


def main() -> None:
    main_for(__doc__ or "", lambda config: [SAMPLES])


if __name__ == "__main__":
    main()
