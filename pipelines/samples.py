"""Samples: examples with features as known at their time, one part per part of the examples.

Reads logs, user codes, groups, peers and item codes; writes samples.parquet/part-*.parquet.
Run: python -m pipelines.samples --config pipelines/configs/demo.toml
"""

from collections import Counter
from typing import Any

import ray
from ray.util.actor_pool import ActorPool

from actors.features import FeatureActor
from longtail.artifacts import Draft, parquet_files
from longtail.config import Config
from pipelines import blocks
from pipelines.codes import ITEM_CODES, USER_CODES
from pipelines.groups import GROUPS
from pipelines.logs import LOGS
from pipelines.peers import PEERS
from pipelines.stage import Context, Result, Stage, main_for


def _build(context: Context, draft: Draft) -> Result:
    logs = context.inputs["logs"]
    sources = parquet_files(logs.fs, logs.path("examples.parquet"))
    targets = [draft.path(f"samples.parquet/{source.rsplit('/', 1)[1]}") for source in sources]
    compute = context.config.samples.compute
    blocks.check_room({"samples": compute}, context.config.cluster)
    actor = ray.remote(num_cpus=compute.num_cpus, num_gpus=compute.num_gpus, max_restarts=2, max_task_retries=2)(FeatureActor)
    actors: list[Any] = [
        actor.remote(logs, *(context.inputs[name] for name in ("user_codes", "groups", "peers", "item_codes")), context.config)
        for _ in range(min(compute.num_actors, len(sources)))
    ]
    counts: Counter[str] = Counter()
    for by_split in ActorPool(actors).map_unordered(lambda a, job: a.write_part.remote(*job), list(zip(sources, targets, strict=True))):
        counts.update(by_split)
    spec = ray.get(actors[0].spec.remote())
    return Result(rows_in=counts.total(), rows_out=counts.total(), info={"spec": spec, "rows_by_split": dict(counts)})


def _settings(config: Config) -> dict[str, object]:
    return {"samples": config.samples.key_fields(), "groups": config.groups.key_fields(), "peers": config.peers.key_fields()}


SAMPLES = Stage("samples", 2, (LOGS, USER_CODES, GROUPS, PEERS, ITEM_CODES), _settings, _build, "pipelines.samples")


def main() -> None:
    main_for(__doc__ or "", lambda config: [SAMPLES])


if __name__ == "__main__":
    main()
