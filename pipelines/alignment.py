"""Alignment: behaviour drifts under a frozen item encoder for some weeks after the train window, and SaviorRec's codebooks alone are trained on.

Reads what pipelines.train reads, without what is lent, of a world of its own for each seed; writes alignment/<key>/scores.parquet (example_id, week, and a
column of scores for each arm) and results/saviorrec_alignment.json and .md. Each week is scored before anything is trained on it.
Run: python -m pipelines.alignment --config pipelines/configs/synthetic_drift.toml
Last stdout line: one JSON object.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from longtail.artifacts import Artifact, Draft, Store, source_commit
from longtail.config import Config
from longtail.continual import UPDATED, Logits, Weeks, walk, walk_updated
from longtail.continual_results import HALFWAY, AlignmentResults, against, events_before, halfway, has_moved, measured_of_all, page, slices
from longtail.rankers.ranker import Ranker
from longtail.rankers.saviorrec import SaviorRec
from longtail.run_state import load_behaviour, load_entities, logs_info
from longtail.sample_files import SampleFiles
from longtail.storage import local_folder
from longtail.study_results import Measured, compare
from longtail.study_rows import WindowRows
from longtail.times import to_us
from longtail.training_loop import train_ranker
from pipelines import work
from pipelines.cluster import ray_session
from pipelines.errors import clear_errors
from pipelines.lent import LENT
from pipelines.stage import Context, Result, Stage, arguments, config_from, ensure, kept, line, open_store
from pipelines.train import RANKER_STAGES, TrainJob
from pipelines.trial import built_here, is_plan

RANKER = "saviorrec"
INPUTS = tuple(stage for stage in RANKER_STAGES[RANKER].inputs if stage is not LENT)  # nothing here borrows
RETRAINED = "a ranker trained anew on everything up to the week, new IDs included; the item encoder stays"
COLUMNS = ("example_id", "user_id", "item_id", "ts")


def _job(context: Context) -> TrainJob:
    """The training of SaviorRec, of the outcome alone."""
    config = context.config
    settings = config.rankers.saviorrec.model_copy(update={"heads": ("outcome",)})
    config = config.model_copy(update={"rankers": config.rankers.model_copy(update={RANKER: settings})})
    return TrainJob.of(config, context.inputs, RANKER, context.seed)


def _rows(job: TrainJob) -> pa.Table:
    """All labelled rows, in the files' order."""
    parts = [job.files.load(part, split, COLUMNS) for split, counts in job.files.labelled.items() for part, rows in enumerate(counts) if rows]  # type: ignore[arg-type]
    return pa.concat_tables(parts)


def _trained(job: TrainJob, rows: pa.Table) -> SaviorRec:
    """A ranker with fresh weights, trained on `rows`; the last epoch is kept, so that all rows can be trained on."""
    files = SampleFiles.of_table(rows, job.files.spec, job.files.heads)
    ranker = replace(job, files=files).ranker()
    train_ranker(ranker, files, job.config.train.model_copy(update={"keep": "last"}), seed=job.seed)
    assert isinstance(ranker, SaviorRec)
    return ranker


def _build(context: Context, draft: Draft) -> Result:
    """Train once, then walk through the weeks with every arm.

    Raises:
        ValueError: a week has no rows, or the ranker has no codebooks.
    """
    torch.set_num_threads(1)
    job, settings = _job(context), context.config.continual
    weeks = Weeks.split(_rows(job), to_us(logs_info(context.inputs["logs"]).train_end), settings.num_weeks)
    trained, seconds = _timed(lambda: _trained(job, weeks.before))
    times, scores = {"trained": seconds}, {}

    def anew(ranker: Ranker, week: int) -> Ranker:
        return _trained(job, weeks.known(week))

    for name, arm in UPDATED.items():
        if name not in settings.leave_out:
            scores[name], times[name] = _timed(lambda arm=arm: walk_updated(arm, trained, weeks, context.config.train, settings, job.seed))  # type: ignore[misc]
    scores["retrained"], times["retrained"] = _timed(lambda: walk(trained, weeks, anew))
    table = _scored(weeks, scores)
    draft.write("scores", table)
    return Result(len(table), len(table), info={"seconds": {name: round(value, 2) for name, value in times.items()}, "parameters": trained.num_parameters()})


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    started = time.monotonic()
    return function(), time.monotonic() - started


def _scored(weeks: Weeks, scores: Mapping[str, Sequence[Logits]]) -> pa.Table:
    """The weeks' rows and every arm's scores of them."""
    rows = pa.concat_tables(weeks.weeks).select([*COLUMNS, "item_row", "user_row", "outcome"])
    week_N = np.repeat(np.arange(1, len(weeks.weeks) + 1), [len(week) for week in weeks.weeks])
    rows = rows.append_column("week", pa.array(week_N))
    for name, by_week in scores.items():
        rows = rows.append_column(f"score_{name}", pa.array(np.concatenate(by_week)))
    return rows


def _settings(config: Config) -> dict[str, Any]:
    trained = RANKER_STAGES[RANKER]
    return {"ranker_version": trained.version, **trained.settings(config), "continual": config.continual.key_fields()}


ALIGNMENT = Stage("alignment", 1, INPUTS, _settings, _build, "pipelines.alignment")


def seeded(config: Config, seed: int) -> Config:
    """The config of one seed: a world, an encoder and a ranker of its own."""
    return config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})


def measure(config: Config, store: Store, artifact: Artifact) -> dict[str, dict[str, Measured]]:
    """By arm and slice, what one seed's scores come to."""
    logs = ensure(ALIGNMENT.inputs[0], config, store).artifact
    table, info, bins = artifact.read("scores"), logs_info(logs), config.samples.numeric_bins
    behaviour, week_N = load_behaviour(logs, bins), table.column("week").to_numpy()
    time_N = table.column("ts").cast(pa.int64()).to_numpy()
    item_N = table.column("item_row").to_numpy().astype(np.int64)
    events_N = events_before(item_N, week_N, behaviour.item_row_E, behaviour.time_E, to_us(info.train_end))
    moved_N = has_moved(logs.read("truth_items"), table.column("item_id").combine_chunks(), time_N) if info.source == "synthetic" else None
    rows = WindowRows(
        table.column("example_id").to_numpy(),
        table.column("user_row").to_numpy().astype(np.int64),
        table.column("outcome").to_numpy().astype(np.int8),
        slices(week_N, events_N, moved_N),
    )
    names = [name.removeprefix("score_") for name in table.column_names if name.startswith("score_")]
    num_users = len(load_entities(logs, bins).users)
    found = {name: measured_of_all(rows, table.column(f"score_{name}").to_numpy().astype(np.float64), num_users) for name in names}
    return found | {HALFWAY: halfway(found["frozen"], found["retrained"])}


def results(config: Config, store: Store, made: Mapping[int, Artifact], notes: dict[str, str]) -> AlignmentResults:
    """All seeds together."""
    by_seed = {seed: measure(seeded(config, seed), store, artifact) for seed, artifact in made.items()}
    names = list(next(iter(by_seed.values())))
    arms = compare({name: {seed: by_seed[seed][name] for seed in by_seed} for name in names}, against, "auc", config.continual.bootstrap_rounds)
    times = [artifact.info["seconds"] for artifact in made.values()]
    meanings = {name: arm.meaning for name, arm in UPDATED.items() if name in names} | {"retrained": RETRAINED}
    seconds = {name: float(np.mean([one[name] for one in times])) for name in times[0]}
    return AlignmentResults(notes=notes, meanings=meanings, seeds=tuple(made), num_weeks=config.continual.num_weeks, arms=arms, seconds=seconds)


def _built(config: Config, store: Store, cwd: str) -> Artifact:
    with work.started_in(cwd):
        return built_here(ALIGNMENT, config, store)


def run(config: Config, store: Store) -> dict[int, Artifact]:
    """Every seed's scores: the worlds' texts one after the other, since embedding takes the CPUs itself, then a Ray task for each seed."""
    seeds, task = config.continual.seeds, ray.remote(num_cpus=1, max_retries=2)(_built)
    with work.in_place():
        for seed in seeds:
            for stage in line(ALIGNMENT):
                if is_plan(stage, config):
                    ensure(stage, seeded(config, seed), store, build_inputs=True)
    limit = config.continual.num_parallel or int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    found: dict[int, Artifact] = {}
    for first in range(0, len(seeds), limit):
        asked = {seed: task.remote(seeded(config, seed), store, os.getcwd()) for seed in seeds[first : first + limit]}
        for seed, one in asked.items():
            found[seed] = ray.get(one)
            print(f"seed {seed}: {found[seed].info['seconds']}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    with clear_errors():
        args = arguments(__doc__ or "")
        config = config_from(args)
        if config.rankers.saviorrec.peer_stats:
            raise ValueError("rankers.saviorrec.peer_stats = true: what peers lend is no part of the study of drift. Leave it out.")
        started, commit = time.monotonic(), source_commit()
        folder = local_folder("continual.results", kept("continual.results", config.continual.results))
        folder.mkdir(parents=True, exist_ok=True)
        store = open_store(config)
        with ray_session(config.cluster):
            cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
            made = run(config, store)
        minutes = (time.monotonic() - started) / 60
        notes = {
            "what": f"{config.continual.num_weeks} weeks after the train window, {len(made)} seeds with a world each; intervals over seeds and users",
            "machine": f"{cpus} CPUs",
            "date": time.strftime("%Y-%m", time.gmtime()),
            "commit": commit,
            "command": f"python -m pipelines.alignment {shlex.join(sys.argv[1:])}",
            "wall time": f"{minutes:.1f} min",
            "settings chosen": config.continual.chosen,
        }
        found = results(config, store, made, notes)
        rounded = found.model_dump(mode="json", exclude_none=True)
        found = AlignmentResults.model_validate(rounded)  # the page says what the .json says, to its last digit
        (folder / f"{config.continual.name}.json").write_text(json.dumps(rounded, indent=1) + "\n")
        (folder / f"{config.continual.name}.md").write_text(page(found))
        print(json.dumps({"results": str(folder / f"{config.continual.name}.md"), "seeds": list(made), "minutes": round(minutes, 1)}))


if __name__ == "__main__":
    main()
