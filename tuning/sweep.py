"""Sweep: a search over codebooks, gates, encoders, widths and rates with Ray Tune, judged on the validation window under a constraint over all rows.

Trials share what comes before the point where their settings part (tuning.sharing); each fits the ranker with Ray Train (tuning.trial). The best are
trained again with several seeds, and one of them meets the test window, once (tuning.finalists). A point that our own rules refuse has its reason in the
table. Every trial is in the journal when it begins and when it ends: a sweep whose driver was killed goes on where it was, and one in which trials
failed does so too, when the cause is mended.
Reads what pipelines.full reads; writes the artifact `sweeps`: results.json, sweep.md, sweep.html, best.toml.

Run: python -m tuning.sweep --config pipelines/configs/demo.toml [--show]
     ray job submit --working-dir . --runtime-env platform/runtime_env.yaml -- python -m tuning.sweep --config pipelines/configs/demo.toml
Last stdout line: one JSON object.
"""

import argparse
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow.fs as pafs
import ray
from ray import tune
from ray.actor import ActorHandle

from longtail.artifacts import Draft, Store, source_commit
from longtail.config import Config
from longtail.hashing import digest
from longtail.rankers.heads import TWO_OUTCOME_HEADS
from longtail.rankers.settings import Head
from longtail.run_state import logs_info
from longtail.sweep_journal import Journal, Numbers, Phase, Plan, numbers_of, settings_digest
from longtail.sweep_page import best_of, best_toml, markdown, page, table
from longtail.sweep_results import Goal, SweepResults, Trial, ranked
from longtail.sweeping import Range
from pipelines.cluster import ray_session, submission_id
from pipelines.errors import clear_errors
from pipelines.logs import LOGS
from pipelines.stage import Context, Result, Stage, arguments, config_from, ensure, find, line, open_store, provenance, stage_key, summary
from pipelines.study import machine
from pipelines.tracking import record_sweep, tune_callbacks
from pipelines.train import RANKER_STAGES
from tuning.finalists import Ground, run_finals
from tuning.importance import importance
from tuning.recording import Recorded, why
from tuning.searchers import check_pbt, random_searcher, scheduler_of, tpe_searcher
from tuning.sharing import ensure_shared, start_builders
from tuning.spaces import Parameter, Point, current, draw, in_words, show, space_of, with_point
from tuning.trial import Search

logger = logging.getLogger(__name__)

# A trial only waits: stages and training workers reserve their own CPUs. Tune wants something to reserve for it: a byte.
TRIAL_RESOURCES = {"CPU": 0.0, "memory": 1.0}

Trainable = Callable[[dict[str, Any]], dict[str, Any]]


def search(
    trainable: Trainable,
    space: Sequence[Parameter],
    start: Point,
    config: Config,
    goal: Goal,
    journal: Journal,
    storage: tuple[pafs.FileSystem, str],
    callbacks: Sequence[Any] = (),
) -> list[Trial]:
    """Run what is left of `sweep.num_trials` trials, `sweep.max_concurrent` at a time; returns all of them. Needs a running Ray.

    Raises:
        ValueError: trials failed, or died with a worker or a node; after the others are done.
    """
    fs, folder = storage
    settings, records = config.sweep, journal.read()
    known = [one for one in records if one.state != "begun"]
    first = [one.point for one in records if one.state == "begun"] or ([start] if not records else [])
    searcher: Any
    if settings.searcher == "random":
        points = [one for one in draw(space, start, settings.num_trials, config.run.seed) if one not in [trial.point for trial in known]]
        points = points[: max(0, settings.num_trials - len(known))]  # population based training changes points
        searcher, num_left = random_searcher(points, settings.max_concurrent), len(points)
    else:
        searcher, num_left = tpe_searcher(space, start, first, known, config), settings.num_trials - len(known)
    if records:
        logger.info("sweep: %d trials are in the journal, %d of them ended; %d are left", len(records), len(known), num_left)
    if num_left <= 0:
        return known

    def trial(point: dict[str, Any]) -> dict[str, Any]:  # Tune takes functions only
        return trainable(point)

    written = Recorded(journal, goal, Numbers.after(records, start), settings.num_trials)
    tuner = tune.Tuner(
        tune.with_resources(trial, TRIAL_RESOURCES),
        param_space={one.setting: tune.choice([start[one.setting]]) for one in space} if settings.searcher == "random" else None,
        tune_config=tune.TuneConfig(num_samples=num_left, search_alg=searcher, scheduler=scheduler_of(config, space, start)),
        run_config=tune.RunConfig(name="tune", storage_path=folder, storage_filesystem=fs, callbacks=[written, *callbacks], verbose=0),
    )
    tuner.fit()
    written.explain()
    if written.failed:
        failures = [f"trial {number} ({in_words(one.config)}): {why(one)}" for number, one in sorted(written.failed.items())]
        raise ValueError(
            f"{len(failures)} of {settings.num_trials} trials failed, and a sweep is finished when all have a result:\n  "
            + "\n  ".join(failures)
            + "\nThe log above has their tracebacks. Mend the cause, or take the value out of sweep.space, and run the sweep again with the same settings: "
            "what is finished is found, and only the others are run."
        )
    return [one for one in journal.read() if one.state != "begun"]


def metric_of(config: Config) -> str:
    """The sweep's metric under the name that a reader knows."""
    return config.sweep.metric if config.sweep.head is None else f"{config.sweep.head}/{config.sweep.metric}"


def head_of(config: Config, store: Store) -> Head:
    """The head that is judged: the sweep's, or the ranker's primary one on this source.

    Raises:
        ValueError: the ranker has no such head.
    """
    name = config.sweep.ranker
    chosen = getattr(config.rankers, name).heads
    if chosen is None:
        two = logs_info(ensure(LOGS, config, store).artifact).has_conversion
        chosen = TWO_OUTCOME_HEADS[name] if two else ("outcome",)
    if config.sweep.head is not None and config.sweep.head not in chosen:
        raise ValueError(f"sweep.head = {config.sweep.head!r}: {name} has {list(chosen)} on this source. Name one of them, or set rankers.{name}.heads.")
    head: Head = config.sweep.head or chosen[0]
    return head


def goal_of(config: Config, store: Store, builders: ActorHandle[Any], head: Head) -> tuple[Goal, dict[str, float]]:
    """What the sweep looks for, and the base ranker's metrics; that is trained for it, once, where it is not there yet, and where there is a constraint.

    Raises:
        ValueError: the base lacks the head.
    """
    settings = config.sweep
    metric, whole = f"{head}/{settings.metric}", f"{head}/{settings.whole}"
    if settings.max_loss == 1:
        return Goal(metric, whole), {}
    stage = RANKER_STAGES["base"]
    ensure_shared(stage.inputs[-1], config, store, builders, os.getcwd())
    base = ensure(stage, config, store, build_inputs=True).artifact
    kept = base.info["epochs"][base.info["best_epoch"] - 1]
    if kept.get(whole) is None:
        raise ValueError(
            f"sweep.max_loss = {settings.max_loss} compares {whole} with the base ranker's, which has none: its heads are {base.info['heads']}. "
            "Give it the head (rankers.base.heads), or set sweep.max_loss = 1 for no constraint."
        )
    return Goal(metric, whole, kept[whole] - settings.max_loss), numbers_of(kept)


def plan_of(config: Config, space: Sequence[Parameter], commit: str) -> Plan:
    """What a sweep sets out to do, as whoever watches it reads it."""
    settings = config.sweep
    return Plan(
        phase="base",
        ranker=settings.ranker,
        metric=metric_of(config),
        whole=settings.whole,
        space={one.setting: one.values if isinstance(one.values, Range) else one.choices(own) for one, own in zip(space, current(config, space).values())},
        start=current(config, space),
        num_trials=settings.num_trials,
        max_concurrent=settings.max_concurrent,
        epochs=config.train.epochs,
        searcher=settings.searcher,
        scheduler=settings.scheduler,
        num_finalists=settings.finalists.num_trials,
        seeds=settings.finalists.seeds,
        run=config.run.name,
        settings=settings_digest(config),
        command=_command(),
        commit=commit,
        job=submission_id(),
        began=time.time(),
    )


def _command() -> str:
    return f"python -m tuning.sweep {shlex.join(sys.argv[1:])}".rstrip()


def _build(context: Context, draft: Draft) -> Result:
    journal = Journal.of(context.store, draft.key)
    with journal.alive():
        return _swept(context, draft, journal)


def _swept(context: Context, draft: Draft, journal: Journal) -> Result:
    config, store, settings = context.config, context.store, context.config.sweep
    space = space_of(config)
    start = current(config, space)
    commit, builders, began = source_commit(), start_builders(), time.monotonic()
    plan = plan_of(config, space, commit)
    journal.write_plan(plan)

    def enter(phase: Phase) -> None:
        journal.write_plan(plan.model_copy(update={"phase": phase, "metric": goal.metric, "whole": goal.whole, "floor": goal.floor, "base": base}))

    try:
        head = head_of(config, store)
        goal, base = goal_of(config, store, builders, head)
        scratch = draft.path("scratch/tune").rsplit("/", 1)[0]
        callbacks = tune_callbacks(config, store, _group(config, draft.key))
        enter("search")
        trials = ranked(search(Search(config, store, os.getcwd(), builders, goal), space, start, config, goal, journal, (draft.fs, scratch), callbacks))
        draft.fs.delete_dir(scratch)
        _clear_stopped(trials, config, store)
        searched, began = time.monotonic() - began, time.monotonic()
        finals = None
        if settings.finalists.num_trials:
            enter("finalists")
            finals = run_finals(config, trials, Ground(store, builders, os.getcwd(), head, settings.max_concurrent))
        found = SweepResults(
            ranker=settings.ranker,
            metric=goal.metric,
            whole=goal.whole,
            floor=goal.floor,
            commit=commit,
            command=plan.command,
            machine=machine()["machine"].rstrip("."),
            searcher=settings.searcher,
            scheduler=settings.scheduler,
            minutes={"search": round(searched / 60, 1), "finals": round((time.monotonic() - began) / 60, 1)},
            trials=tuple(trials),
            importance=importance(space, start, trials, config.run.seed),
            finals=finals,
        )
    finally:
        ray.kill(builders)
    _write(found, config, draft)
    without = sum(trial.score is None for trial in trials)
    dropped = {"refused or without a score": without} if without else {}
    return Result(len(trials), len(trials) - without, dropped, {"metric": goal.metric, "opened": finals.opened if finals else None})


def _group(config: Config, key: str) -> str:
    """What the tracked runs of a sweep's trials have in common."""
    return f"{config.tracking.group or config.run.name}-sweep-{key[:6]}"


def _write(found: SweepResults, config: Config, draft: Draft) -> None:
    draft.write_json("results.json", found.model_dump(mode="json"))
    texts = {"sweep.md": markdown(found), "sweep.html": page(found)}
    best = best_of(found)
    if best is not None:
        texts["best.toml"] = best_toml(found, with_point(config, best.point))
    for name, text in texts.items():
        with draft.fs.open_output_stream(draft.path(name)) as stream:
            stream.write(text.encode())


def _clear_stopped(trials: Sequence[Trial], config: Config, store: Store) -> None:
    """Remove what trials that the scheduler stopped had begun to write."""
    stage = RANKER_STAGES[config.sweep.ranker]
    for trial in trials:
        if trial.state == "stopped":
            own = with_point(config, trial.point)
            inputs = {upstream.name: found for upstream in stage.inputs if (found := find(upstream, own, store)) is not None}
            store.clear_interrupted(stage.name, stage_key(stage, own, inputs))


def _settings(config: Config) -> Mapping[str, Any]:
    """The sweep's own, and those of every stage of a trial as the config stands."""
    sweep = config.sweep.model_dump(mode="json", exclude={"max_concurrent", "in_place"})
    return {"sweep": sweep, "stages": {stage.name: stage.settings(config) for stage in line(RANKER_STAGES[config.sweep.ranker])}}


def _fingerprint(config: Config) -> str:
    """What trials' results can depend on beside the settings: versions of the stages, fingerprints of models and logs, of every value that is listed."""
    ranker, space = RANKER_STAGES[config.sweep.ranker], space_of(config)
    points: list[Point] = [{}]
    points += [{one.setting: value} for one in space if not isinstance(one.values, Range) for value in one.values]
    found = []
    for point in points:
        with suppress(ValueError):  # it contradicts the others as they stand
            found.append(provenance(ranker, with_point(config, point))[ranker.name])
    return digest(found)


SWEEP = Stage("sweeps", 2, (), _settings, _build, "tuning.sweep", _fingerprint)


def main() -> None:
    with clear_errors():
        args = arguments(__doc__ or "", _add_show)
        config = config_from(args)
        space = space_of(config)
        if config.sweep.scheduler == "pbt":
            check_pbt(config, space)
        if args.show:
            print(show(space, current(config, space)))
            return
        store = open_store(config)
        # Where the scheduler stops a trial, Ray Train's cleaner gives back what its workers had reserved; it asks the dashboard whether they are gone.
        stops = config.sweep.scheduler != "none"
        with ray_session(config.cluster.model_copy(update={"dashboard": config.cluster.dashboard or stops})):
            outcome = ensure(SWEEP, config, store)
        found = SweepResults.model_validate(outcome.artifact.read_json("results.json"))
        if not outcome.skipped:
            rows = [one.model_dump(include={"number", "score", "whole", "state", "epochs", "seconds"}) | one.point for one in found.trials]
            record_sweep(config, store, _group(config, outcome.artifact.key), rows, outcome.artifact)
        print(table(found.trials, found.metric, found.whole))
        best, told = best_of(found), {"results": outcome.artifact.path("sweep.md"), "page": outcome.artifact.path("sweep.html")}
        if best is None:
            print("\nNo trial was trained to the end within the constraint: raise sweep.max_loss, widen sweep.space, or run more trials.")
        else:
            told["best"] = outcome.artifact.path("best.toml")
            print(f"\nTrain it, evaluate it and publish it for Serve:  python -m pipelines.full --config {shlex.quote(told['best'])}")
        print(
            json.dumps(
                {
                    "sweeps": summary(outcome),
                    "metric": metric_of(config),
                    "best": None if best is None else {"trial": best.number, "score": best.score, "set": best.point},
                    **told,
                }
            )
        )


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--show", action="store_true", help="print the search space and stop")


if __name__ == "__main__":
    main()
