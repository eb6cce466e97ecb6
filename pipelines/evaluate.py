"""Evaluation: scores the test split with every trained ranker, measures it by slice, and writes the report.

Reads samples and the rankers' checkpoints for the numbers; logs, profiles, item_encoder, codes and groups for the report's figures. Writes
predictions.parquet/<ranker>-<part>.parquet (schema.PREDICTIONS), metrics.json (longtail.evaluation) and report.html.
Run: python -m pipelines.evaluate --config pipelines/configs/demo.toml
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from actors import metrics as ray_metrics
from actors.score import Scorer
from longtail import schema
from longtail.artifacts import Artifact, Draft, source_commit
from longtail.code_use import code_use
from longtail.config import Config
from longtail.evaluation import Metrics, evaluate
from longtail.lineage import upstream
from longtail.report import Hits, Report, StageRecord, page
from longtail.run_state import logs_info
from longtail.sample_files import side_by_side
from longtail.samples import FeatureSpec
from pipelines import work
from pipelines.codes import ITEM_CODES, USER_CODES
from pipelines.groups import GROUPS
from pipelines.item_encoder import ITEM_ENCODER
from pipelines.lent import LENT
from pipelines.logs import LOGS
from pipelines.matches import MATCHES
from pipelines.profiles import PROFILES
from pipelines.samples import SAMPLES
from pipelines.stage import Context, Result, Stage, main_for
from pipelines.tracking import describe, record_evaluation
from pipelines.train import RANKER_STAGES, sample_folders

SPLIT = "test"

#: What an epoch's record in a checkpoint has of every head, and what the report calls it.
CURVES = {"auc": "validation AUC", "gauc": "validation GAUC", "log_loss": "validation log loss"}

HIT_SLICES = {"all": "all pairs", "hidden_target": "partner not seen in training"}


def evaluation_stage(config: Config) -> Stage:
    """The stage for `config`: it reads as many rankers as the config trains."""
    rankers = tuple(RANKER_STAGES[name] for name in config.train.rankers)
    return Stage(
        name="evaluation",
        version=1,
        inputs=(LOGS, PROFILES, USER_CODES, ITEM_CODES, GROUPS, ITEM_ENCODER, SAMPLES, MATCHES, LENT, *rankers),
        settings=lambda given: {"evaluate": given.evaluate.key_fields(), "rankers": list(given.train.rankers), "run": given.run.name},
        build=_build,
        command="pipelines.evaluate",
    )


def _build(context: Context, draft: Draft) -> Result:
    rankers = context.config.train.rankers
    rows_in, rows_out = _score_all(context, draft, rankers)
    if rows_in == 0:
        raise ValueError(
            "no test rows were scored: the test window holds no example. Move logs.split.train_frac (or train_end) so that events remain after it."
        )
    parts = Artifact("evaluation", draft.key, {}, draft.fs, draft.root)
    predictions = schema.check(parts.read("predictions"), schema.PREDICTIONS, "predictions")
    metrics = evaluate(predictions, context.config.evaluate, seed=context.seed, rankers=tuple(rankers))
    draft.write_json("metrics.json", metrics.model_dump(mode="json"))
    tell(metrics, context.config.run.name)
    report = Report(
        run=context.config.run.name,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        commit=source_commit(),
        seed=context.seed,
        logs=logs_info(context.inputs["logs"]),
        metrics=metrics,
        stages=[StageRecord.of(artifact.manifest) for artifact in upstream(context.store, context.inputs.values())],
        profile_outcomes=dict(Counter(context.inputs["profiles"].read("profiles", ["outcome"]).column("outcome").to_pylist())),
        group_sizes=_group_sizes(context.inputs["groups"]),
        codes={"users": code_use(context.inputs["user_codes"]), "items": code_use(context.inputs["item_codes"])},
        hits=_hits(context.inputs["item_encoder"].info),
        training=_training({name: context.inputs[name] for name in rankers}),
    )
    written = page(report)
    with draft.fs.open_output_stream(draft.path("report.html")) as stream:
        stream.write(written.encode())
    tracked = describe(context.config, context.store, name="evaluation", job_type="evaluate", key=draft.key, inputs=context.inputs)
    record_evaluation(tracked, metrics, written)
    return Result(rows_in=rows_in, rows_out=rows_out, dropped={"no label for any of the ranker's heads": rows_in - rows_out})


def tell(metrics: Metrics, run: str) -> None:
    """Ray's metrics of an evaluation: scores, differences from the base and the fusion gate."""
    for head in metrics.heads:
        for part in head.slices:
            if part.family != "main":  # the bins are too many for series of their own; the report has them
                continue
            for ranker, scores in part.scores.items():
                for metric in ("auc", "gauc", "log_loss", "calibration_error"):
                    ray_metrics.SCORE.set(getattr(scores, metric), run=run, ranker=ranker, head=head.head, slice=part.name, metric=metric)
            for ranker, differences in part.differences.items():
                for metric, interval in differences.items():
                    for bound, value in interval.model_dump().items():
                        ray_metrics.LIFT.set(value, run=run, ranker=ranker, head=head.head, slice=part.name, metric=metric, bound=bound)
    for ranker, bins in metrics.alpha_fusion.items():
        for one in bins:
            for name in ("mean", "p10", "p90"):
                ray_metrics.ALPHA_FUSION.set(getattr(one, name), run=run, ranker=ranker, activity=one.title, value=name)


def _score_all(context: Context, draft: Draft, rankers: Sequence[str]) -> tuple[int, int]:
    """Every ranker over every part of the samples, in one pool of actors; returns test rows times rankers, and how many of them got a prediction."""
    samples, lent, compute = context.inputs["samples"], context.inputs["lent"], context.config.evaluate.compute
    spec = FeatureSpec.model_validate(lent.info["spec"])
    sources = side_by_side(samples.fs, sample_folders(context.inputs))
    jobs = [(ranker, source, draft.path(f"predictions.parquet/{ranker}-{source[0].rsplit('/', 1)[1]}"), SPLIT) for ranker in rankers for source in sources]
    checkpoints = {ranker: context.inputs[ranker] for ranker in rankers}
    said = work.pool(Scorer, (checkpoints, samples.fs, spec, compute.batch_size), "score", jobs, {"evaluate": compute}, context.config.cluster)
    return sum(rows for rows, _ in said), sum(predicted for _, predicted in said)


def _group_sizes(groups: Artifact) -> dict[int, list[int]]:
    """Group sizes by depth, at the last snapshot."""
    table = groups.read("groups", ["as_of", "depth", "size"])
    table = table.filter(pc.equal(table.column("as_of"), pc.max(table.column("as_of"))))
    depth, size = table.column("depth").to_numpy(), table.column("size").to_numpy()
    return {int(one): size[depth == one].tolist() for one in np.unique(depth)}


def _hits(info: Mapping[str, Any]) -> Hits | None:
    """Hit@k of the item encoder, None where it had no later pairs to be measured on."""
    found = info["hits"]
    slices = [
        (title, found[name]["queries"], {method: found[name].get(method) for method in ("trained", "frozen", "popularity")})
        for name, title in HIT_SLICES.items()
        if found[name]["queries"]
    ]
    return Hits(found["k"], slices) if slices else None


def _training(rankers: Mapping[str, Artifact]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """What each checkpoint recorded by epoch, by curve and ranker; epochs without a value are left out."""
    told = {name: artifact.read_json("checkpoint/ranker.json") for name, artifact in rankers.items()}
    heads = list(dict.fromkeys(head for one in told.values() for head in one["heads"]))
    titles = {"train/loss": "training loss" + (", summed over a ranker's own heads" if len(heads) > 1 else "")}
    titles |= {f"{head}/{metric}": f"{title}, {head}" for head in heads for metric, title in CURVES.items()}
    curves = {}
    for key, title in titles.items():
        by_ranker = {name: [(epoch["epoch"], epoch[key]) for epoch in one["metrics"] if epoch.get(key) is not None] for name, one in told.items()}
        curves[title] = {name: points for name, points in by_ranker.items() if points}
    return curves


def main() -> None:
    main_for(__doc__ or "", lambda config: [evaluation_stage(config)])


if __name__ == "__main__":
    main()
