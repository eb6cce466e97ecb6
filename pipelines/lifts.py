"""Lifts: what peers lend to the samples, row by row (ours): the dear part of `lent`, which a change of groups leaves as it is.

Reads logs, peers, item codes and the samples' keys; writes lifts.parquet/part-*.parquet, whose rows are those of the samples' parts; none where peers.form is
"none". Run: python -m pipelines.lifts --config pipelines/configs/demo.toml
"""

from actors.features import LiftActor
from longtail.artifacts import Draft, parquet_files
from longtail.config import Config
from pipelines import work
from pipelines.codes import ITEM_CODES
from pipelines.logs import LOGS
from pipelines.peers import PEERS
from pipelines.samples import SAMPLES, targets
from pipelines.stage import Context, Result, Stage, main_for

MOST_PARTS = 16  # at once in an actor: some hundred bytes a row


def _build(context: Context, draft: Draft) -> Result:
    samples, config = context.inputs["samples"], context.config
    if config.peers.form == "none":
        draft.write_json("none.json", {"peers.form": "none"})
        return Result(rows_in=0, rows_out=0)
    parts, compute = targets(draft, parquet_files(samples.fs, samples.path("samples.parquet")), "lifts"), config.samples.compute
    at_once = min(-(-len(parts) // (1 if work.is_in_place() else compute.num_actors)), MOST_PARTS)
    jobs = [(parts[start : start + at_once],) for start in range(0, len(parts), at_once)]
    said = work.pool(LiftActor, (dict(context.inputs), config), "write_parts", jobs, {"samples": compute}, config.cluster)
    return Result(rows_in=sum(said), rows_out=sum(said))


def _settings(config: Config) -> dict[str, object]:
    return {"samples": config.samples.key_fields(), "peers": config.peers.key_fields() | {"seed": None}}  # whom the seed drew, the peers' own content says


LIFTS = Stage(name="lifts", version=1, inputs=(LOGS, PEERS, ITEM_CODES, SAMPLES), settings=_settings, build=_build, command="pipelines.lifts")


def main() -> None:
    main_for(__doc__ or "", lambda config: [LIFTS])


if __name__ == "__main__":
    main()
