"""Lent: what groups and peers lend to the samples, row by row; a change of groups or peers leaves the samples as they are.

Reads logs, user codes, groups, peers, item codes and the samples' keys; writes lent.parquet/part-*.parquet, whose rows are those of the samples' parts.
Run: python -m pipelines.lent --config pipelines/configs/demo.toml
"""

from actors.features import LentFeatureActor
from longtail.artifacts import Draft, parquet_files
from longtail.config import Config
from longtail.run_state import feature_spec, load_entities, logs_info
from pipelines import work
from pipelines.codes import ITEM_CODES, USER_CODES
from pipelines.groups import GROUPS
from pipelines.logs import LOGS
from pipelines.peers import PEERS
from pipelines.samples import SAMPLES, targets
from pipelines.stage import Context, Result, Stage, main_for

MOST_PARTS = 16  # at once in an actor: some hundred bytes a row


def _build(context: Context, draft: Draft) -> Result:
    samples, logs, config = context.inputs["samples"], context.inputs["logs"], context.config
    parts, compute = targets(draft, parquet_files(samples.fs, samples.path("samples.parquet")), "lent"), config.samples.compute
    at_once = min(-(-len(parts) // (1 if work.is_in_place() else compute.num_actors)), MOST_PARTS)
    jobs = [(parts[start : start + at_once],) for start in range(0, len(parts), at_once)]
    said = work.pool(LentFeatureActor, (dict(context.inputs), config), "write_parts", jobs, {"samples": compute}, config.cluster)
    spec = feature_spec(load_entities(logs, config.samples.numeric_bins), config, logs_info(logs).has_conversion)
    return Result(rows_in=sum(said), rows_out=sum(said), info={"spec": spec.model_dump(mode="json")})


def _settings(config: Config) -> dict[str, object]:
    return {"samples": config.samples.key_fields(), "groups": config.groups.key_fields(), "peers": config.peers.key_fields()}


LENT = Stage("lent", 2, (LOGS, USER_CODES, GROUPS, PEERS, ITEM_CODES, SAMPLES), _settings, _build, "pipelines.lent")


def main() -> None:
    main_for(__doc__ or "", lambda config: [LENT])


if __name__ == "__main__":
    main()
