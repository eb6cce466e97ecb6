"""A trial of a study: one ranker trained in one process, and its scores of the validation and test rows, as an artifact that is found again.

Reads what pipelines.train reads; writes trials/<key>/scores.parquet (example_id, split, score). What its samples are made of is built in this process too
where it is missing (pipelines.work), so that hundreds of trials fill a machine without starting hundreds of processes.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from longtail.artifacts import Artifact, Draft, Store, parquet_files
from longtail.config import Config
from longtail.rankers.batch import Batch
from longtail.rankers.ranker import Ranker, predict_rows
from longtail.sample_files import Split
from longtail.settings import own_seed
from longtail.training_loop import train_ranker
from longtail.validation import Validation
from pipelines import work
from pipelines.stage import Context, Result, Stage, ensure
from pipelines.train import RANKER_STAGES, TrainJob

TRIAL_VERSION = 2


def trial_stage(ranker: str, splits: tuple[Split, ...]) -> Stage:
    """The trial of `ranker` as a stage; its scores are of `splits` alone."""
    trained = RANKER_STAGES[ranker]

    def settings(config: Config) -> dict[str, Any]:
        return {"name": ranker, "ranker_version": trained.version, "splits": list(splits), **trained.settings(config)}

    return Stage("trials", TRIAL_VERSION, trained.inputs, settings, partial(_build, ranker=ranker, splits=splits), "pipelines.study")


def built_here(stage: Stage, config: Config, store: Store) -> Artifact:
    """A stage and all that it comes from, found or built in this process and with one thread."""
    torch.set_num_threads(1)
    with work.in_place():
        return ensure(stage, config, store, build_inputs=True).artifact


def _build(context: Context, draft: Draft, ranker: str, splits: Sequence[Split]) -> Result:
    """Train one ranker and score its rows.

    Raises:
        ValueError: the ranker's first head is not the outcome, or a score is not finite.
    """
    config, inputs, started = context.config, context.inputs, time.monotonic()
    job = TrainJob.of(config, inputs, ranker, own_seed(config.train.seed, config.run.seed))
    if job.files.heads[0] != "outcome":
        raise ValueError(
            f"rankers.{ranker}.heads = {list(job.files.heads)} on this source: a study compares scores of the outcome, on every row. "
            f'Set rankers.{ranker}.heads=["outcome"] for the data set or the arm.'
        )
    job = replace(job, files=replace(job.files, kept=_in_memory(inputs["samples"], inputs["lent"])))
    made = job.ranker()
    state = train_ranker(made, job.files, config.train, seed=job.seed, validate=Validation(job.files, config.evaluate))
    made.load_state_dict(state.best_weights)
    tables = [scored for split in splits for part in range(len(job.files.parts)) if (scored := _scores(job, made, part, split)) is not None]
    scores = pa.concat_tables(tables)
    draft.write("scores", scores)
    info = {"parameters": made.num_parameters(), "best_epoch": state.best_epoch, "epochs": state.metrics, "splits": list(splits)}
    return Result(len(scores), len(scores), info={**info, "seconds": round(time.monotonic() - started, 2)})


@lru_cache(maxsize=1)
def _tables(samples: Artifact) -> tuple[pa.Table, ...]:
    """The samples' parts; kept, since most arms of a data set differ in what is lent alone."""
    return tuple(pq.read_table(path, filesystem=samples.fs) for path in parquet_files(samples.fs, samples.path("samples.parquet")))


def _in_memory(samples: Artifact, lent: Artifact) -> tuple[pa.Table, ...]:
    """The parts with all their columns: a trial reads them some ten times."""
    found = []
    for own, path in zip(_tables(samples), parquet_files(lent.fs, lent.path("lent.parquet")), strict=True):
        borrowed = pq.read_table(path, filesystem=lent.fs)
        found.append(pa.table({name: table.column(name) for table in (own, borrowed) for name in table.column_names}))
    return tuple(found)


def _scores(job: TrainJob, ranker: Ranker, part: int, split: Split) -> pa.Table | None:
    """Logits of the primary head for one part's rows of `split`, None where it has none."""
    if not job.files.labelled[split][part]:
        return None
    rows = job.files.load(part, split, ["example_id"])
    logits = predict_rows(ranker, Batch.from_table(rows, job.files.spec)).logits_BH[:, 0].numpy()
    if not np.isfinite(logits).all():
        raise ValueError(f"{job.name}: {int((~np.isfinite(logits)).sum())} of {len(logits)} scores are not finite. Lower train.learning_rate.")
    return pa.table({"example_id": rows.column("example_id"), "split": pa.array([split] * len(rows)), "score": pa.array(logits.astype(np.float32))})
