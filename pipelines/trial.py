"""A trial of a study: one ranker trained in one process, and its scores of the validation and test rows, as an artifact that is found again.

Reads what pipelines.train reads; writes trials/<key>/scores.parquet (example_id, split, score: the outcome's logit, and score_<head> of each further head).
What its samples are made of is built in this process too where it is missing (pipelines.work), so that hundreds of trials fill a machine without starting
hundreds of processes.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from longtail.artifacts import Artifact, Draft, Store, parquet_files
from longtail.config import Config
from longtail.rankers.batch import Batch
from longtail.rankers.ranker import Ranker, predict_rows
from longtail.sample_files import Split
from longtail.settings import own_seed
from longtail.training_loop import Metrics, train_ranker
from longtail.validation import Validation
from pipelines import work
from pipelines.embeddings import ITEM_VECTORS, USER_VECTORS
from pipelines.item_encoder import ITEM_ENCODER
from pipelines.profiles import PROFILES
from pipelines.stage import Context, Result, Stage, ensure
from pipelines.train import RANKER_STAGES, TrainJob

TRIAL_VERSION = 3

Logits = npt.NDArray[np.float32]


def trial_stage(ranker: str, splits: tuple[Split, ...], unread: Sequence[Stage] = (), *, any_head: bool = False) -> Stage:
    """The trial of `ranker` as a stage; its scores are of `splits` alone.

    `unread` are stages that it does not read under its settings: it is not made of them, nor of what they alone are made of. Without `any_head` a ranker
    whose first head is not the outcome is refused.
    """
    trained = RANKER_STAGES[ranker]
    inputs = tuple(stage for stage in trained.inputs if stage not in unread)

    def settings(config: Config) -> dict[str, Any]:
        return {"name": ranker, "ranker_version": trained.version, "splits": list(splits), **trained.settings(config)}

    return Stage("trials", TRIAL_VERSION, inputs, settings, partial(_build, ranker=ranker, splits=splits, any_head=any_head), "pipelines.study")


def is_plan(stage: Stage, config: Config) -> bool:
    """Whether a stage is a Ray Data plan: it takes the CPUs itself, and two of them in tasks that hold these would wait for each other for ever."""
    # By name: a stage that was sent to another process is equal to none of this one's.
    if stage.name == ITEM_ENCODER.name:
        return config.item_encoder.image_encoder is not None
    return stage.name in (PROFILES.name, ITEM_VECTORS.name, USER_VECTORS.name)


def built_here(stage: Stage, config: Config, store: Store) -> Artifact:
    """A stage and all that it comes from, found or built in this process and with one thread."""
    torch.set_num_threads(1)
    with work.in_place():
        return ensure(stage, config, store, build_inputs=True).artifact


def _build(context: Context, draft: Draft, ranker: str, splits: Sequence[Split], any_head: bool) -> Result:
    """Train one ranker and score its rows.

    Raises:
        ValueError: the ranker's first head is not the outcome, or a score is not finite.
    """
    config, inputs, started = context.config, context.inputs, time.monotonic()
    job = TrainJob.of(config, inputs, ranker, own_seed(config.train.seed, config.run.seed))
    if job.files.heads[0] != "outcome" and not any_head:
        raise ValueError(
            f"rankers.{ranker}.heads = {list(job.files.heads)} on this source: a study compares scores of the outcome, on every row. "
            f'Set rankers.{ranker}.heads=["outcome"] for the data set or the arm.'
        )
    job = replace(job, files=replace(job.files, kept=_in_memory(inputs["samples"], [inputs[name] for name in ("matches", "lent") if name in inputs])))
    made = job.ranker()
    validation, by_epoch = Validation(job.files, config.evaluate), []

    def validate(ranker: Ranker) -> Metrics:
        scored = validation.scored(ranker)
        by_epoch.append(scored["logit"])
        return validation.measure(scored, ranker.heads)

    there = [split for split, rows in job.files.labelled.items() if any(rows)]
    state = train_ranker(made, job.files, config.train, seed=job.seed, validate=validate if "validation" in there else None)
    made.load_state_dict(state.best_weights)
    logits = {split: by_epoch[state.best_epoch - 1] if split == "validation" else _logits(job, made, split) for split in splits if split in there}
    scores = pa.concat_tables([_scores(job, split, logits_NH) for split, logits_NH in logits.items()])
    draft.write("scores", scores)
    info = {"parameters": made.num_parameters(), "best_epoch": state.best_epoch, "epochs": state.metrics, "splits": list(splits), "heads": list(made.heads)}
    return Result(len(scores), len(scores), info={**info, "seconds": round(time.monotonic() - started, 2)})


@lru_cache(maxsize=1)
def _tables(samples: Artifact) -> tuple[pa.Table, ...]:
    """The samples' parts; kept, since most arms of a data set differ in what is lent alone."""
    return tuple(pq.read_table(path, filesystem=samples.fs) for path in parquet_files(samples.fs, samples.path("samples.parquet")))


def _in_memory(samples: Artifact, beside: Sequence[Artifact]) -> tuple[pa.Table, ...]:
    """The parts with all their columns, those of other stages `beside` the samples' own: a trial reads them some ten times."""
    found = _tables(samples)
    for one in beside:
        parts = [pq.read_table(path, filesystem=one.fs) for path in parquet_files(one.fs, one.path(f"{one.stage}.parquet"))]
        found = tuple(
            pa.table({name: table.column(name) for table in (own, more) for name in table.column_names}) for own, more in zip(found, parts, strict=True)
        )
    return found


def _logits(job: TrainJob, ranker: Ranker, split: Split) -> Logits:
    """Of every head [N, H], for the rows of `split` in the files' order."""
    parts = [Batch.from_table(job.files.load(part, split), job.files.spec) for part, rows in enumerate(job.files.labelled[split]) if rows]
    return np.concatenate([predict_rows(ranker, rows).logits_BH.numpy() for rows in parts])


def score_column(head: str) -> str:
    """Where a head's scores stand; the outcome's are plainly the score."""
    return "score" if head == "outcome" else f"score_{head}"


def _scores(job: TrainJob, split: Split, logits_NH: Logits) -> pa.Table:
    """The scores of the rows of `split`, which are in the files' order."""
    if not np.isfinite(logits_NH).all():
        raise ValueError(f"{job.name}: {int((~np.isfinite(logits_NH)).sum())} of {logits_NH.size} scores are not finite. Lower train.learning_rate.")
    examples = pa.concat_tables(
        [job.files.load(part, split, ["example_id"]).select(["example_id"]) for part, rows in enumerate(job.files.labelled[split]) if rows]
    )
    examples = examples.append_column("split", pa.array([split] * len(examples)))
    for place, head in enumerate(job.files.heads):
        examples = examples.append_column(score_column(head), pa.array(logits_NH[:, place].astype(np.float32)))
    return examples
