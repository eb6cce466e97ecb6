"""Lent: what groups and peers lend to the samples, row by row; a change of groups or peers leaves the samples as they are.

Reads logs, user codes, groups, the samples' keys and the peers' lifts; writes lent.parquet/part-*.parquet, whose rows are those of the
samples' parts. Run: python -m pipelines.lent --config pipelines/configs/demo.toml
"""

from actors.features import LentFeatureActor
from longtail.artifacts import Draft, parquet_files
from longtail.config import Config
from longtail.run_state import feature_spec, load_entities, logs_info
from pipelines import work
from pipelines.codes import USER_CODES
from pipelines.groups import GROUPS
from pipelines.lifts import LIFTS
from pipelines.logs import LOGS
from pipelines.samples import SAMPLES, targets
from pipelines.stage import Context, Result, Stage, main_for


def _build(context: Context, draft: Draft) -> Result:
    samples, lifts, logs, config = context.inputs["samples"], context.inputs["lifts"], context.inputs["logs"], context.config
    parts = targets(draft, parquet_files(samples.fs, samples.path("samples.parquet")), "lent")
    jobs = [(source, f"{lifts.path('lifts.parquet')}/{source.rsplit('/', 1)[1]}", target) for source, target in parts]
    said = work.pool(LentFeatureActor, (dict(context.inputs), config), "write_part", jobs, {"samples": config.samples.compute}, config.cluster)
    spec = feature_spec(load_entities(logs, config.samples.numeric_bins), config, logs_info(logs).has_conversion)
    return Result(rows_in=sum(said), rows_out=sum(said), info={"spec": spec.model_dump(mode="json")})


def _settings(config: Config) -> dict[str, object]:
    return {"samples": config.samples.key_fields(), "groups": config.groups.key_fields(), "peers": config.peers.form}


LENT = Stage(name="lent", version=4, inputs=(LOGS, USER_CODES, GROUPS, SAMPLES, LIFTS), settings=_settings, build=_build, command="pipelines.lent")


def main() -> None:
    main_for(__doc__ or "", lambda config: [LENT])


if __name__ == "__main__":
    main()
