"""Study: many arms, seeds and data sets in one Ray job, compared in pairs on the same rows; the test window is opened once for each arm that may see it.

What trials share is built first and once, then what is lent to each variant of the samples, then every trial in a Ray task of its own. Finished stages
and trials are found again: a study that was interrupted goes on where it was. Reads the configs that [study.datasets] name; writes
results/<study>_<data set>.json, .md and .html.

Run: python -m pipelines.study --config pipelines/configs/choirrec_study.toml [--set study.form=short]
     ray job submit --working-dir . --runtime-env platform/runtime_env.yaml -- python -m pipelines.study --config …
Last stdout line: one JSON object.
"""

import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from longtail.artifacts import Artifact, Store, source_commit
from longtail.config import Config, load
from longtail.hashing import digest
from longtail.metrics import Floats
from longtail.run_state import load_behaviour, load_entities, logs_info
from longtail.sample_files import Split
from longtail.study import Seed, StudySettings, seeded
from longtail.study_page import markdown, page
from longtail.study_results import StudyResults, Window, by_user, compare
from longtail.study_rows import WindowRows, window_rows
from longtail.times import to_us
from pipelines.cluster import ROOT, ray_session
from pipelines.codes import USER_CODES
from pipelines.embeddings import USER_VECTORS
from pipelines.groups import GROUPS
from pipelines.lent import LENT
from pipelines.logs import LOGS
from pipelines.peers import PEERS
from pipelines.samples import SAMPLES
from pipelines.stage import Stage, arguments, clear_errors, config_from, ensure, open_store, provenance
from pipelines.trial import built_here, trial_stage
from pipelines.user_spaces import USER_SPACES
from pipelines.work import started_in

logger = logging.getLogger(__name__)

#: Where arms and seeds part, in the order of the data: each is built for all of them before the next, so that no two build the same thing at a time.
VARIED = (USER_VECTORS, USER_SPACES, USER_CODES, GROUPS, PEERS, SAMPLES, LENT)


@dataclass(frozen=True)
class Run:
    """One arm with one seed on one data set."""

    dataset: str
    arm: str
    seed: Seed
    ranker: str
    config: Config
    splits: tuple[Split, ...]

    @property
    def stage(self) -> Stage:
        return trial_stage(self.ranker, self.splits)


@dataclass
class Progress:
    """What the study says while it works."""

    started: float = field(default_factory=time.monotonic)

    def say(self, line: str) -> None:
        print(f"{(time.monotonic() - self.started) / 60:5.1f} min  {line}", file=sys.stderr, flush=True)


def arm_config(study: StudySettings, dataset: str, arm: str | None, seed: Seed | None, config: Config) -> Config:
    """The config of an arm with a seed on a data set (None: of what the arms share); the run's URI, cluster and tracking are the study's.

    Raises:
        ValueError: a setting does not exist or refuses its value.
    """
    of_dataset = study.datasets[dataset]
    shared = (*study.common, *of_dataset.set)
    settings: tuple[str, ...] = study.settings_of(arm) if arm is not None else ()
    if seed is not None:
        plain = load(_path(of_dataset.config), (*shared, *settings))
        ranker = study.arms[arm].ranker if arm is not None else "base"
        borrows = ranker == "choirrec" or getattr(plain.rankers, ranker).peer_stats
        settings = seeded(settings, seed, borrows=borrows)
    found = load(_path(of_dataset.config), (*shared, *settings))
    ours = {"cluster": config.cluster, "tracking": config.tracking.model_copy(update={"backend": "none"})}
    return found.model_copy(update={"run": found.run.model_copy(update={"uri": f"{config.run.uri}/{dataset}"}), **ours})


def _path(path: str) -> str:
    return path if Path(path).is_absolute() else str(ROOT / path)


def runs_of(study: StudySettings, dataset: str, config: Config) -> list[Run]:
    """Every trial of a data set, arm by arm."""
    found = []
    for arm, seeds in study.plan(dataset).items():
        settings = study.arms[arm]
        splits: tuple[Split, ...] = ("validation",) if settings.validation_only else ("validation", "test")
        for seed in seeds:
            try:
                found.append(Run(dataset, arm, seed, settings.ranker, arm_config(study, dataset, arm, seed, config), splits))
            except ValueError as error:
                raise ValueError(f"study.arms.{arm} on {dataset}: {error}") from error
    return found


def there(study: StudySettings, dataset: str, config: Config) -> str | None:
    """None where a data set's tables are there; else why it is left out.

    Raises:
        ValueError: they are not there, and the data set is not optional.
    """
    shared = arm_config(study, dataset, None, None, config)
    try:
        LOGS.fingerprint(shared)
    except ValueError as error:
        if not study.datasets[dataset].optional:
            raise ValueError(f"study.datasets.{dataset}: {error}") from error
        return str(error)
    return None


def rows_of(config: Config, store: Store, split: Split) -> WindowRows:
    """The rows and slices of one window of a data set."""
    logs, samples = ensure(LOGS, config, store).artifact, ensure(SAMPLES, config, store).artifact
    info = logs_info(logs)
    table = samples.read("samples", ["example_id", "user_id", "split", "outcome"])
    table = table.filter(pc.equal(table.column("split"), split))
    truncated = logs.read("truncated", ["user_id"]).column("user_id").combine_chunks() if info.num_truncated else None
    opens = to_us(info.train_end if split == "test" else info.validation_start)
    bins = config.samples.numeric_bins
    return window_rows(table, load_entities(logs, bins), load_behaviour(logs, bins), opens, truncated)


def measure(rows: WindowRows, trials: Mapping[str, Mapping[Seed, Artifact]], split: Split) -> dict[str, dict[Seed, Floats]]:
    """By arm and seed, the AUC of each user of the window; arms without scores there are left out."""
    found: dict[str, dict[Seed, Floats]] = {}
    order = pa.array(rows.example_id_N)
    for arm, by_seed in trials.items():
        for seed, artifact in by_seed.items():
            if split in artifact.info["splits"]:
                scores = artifact.read("scores")
                scores = scores.filter(pc.equal(scores.column("split"), split))
                place = pc.index_in(order, value_set=scores.column("example_id").combine_chunks())
                found.setdefault(arm, {})[seed] = by_user(rows, scores.column("score").take(place).to_numpy())
    return found


def run_all(runs: Sequence[Run], store_of: Mapping[str, Store], num_parallel: int, progress: Progress) -> dict[str, dict[str, dict[Seed, Artifact]]]:
    """Every trial's artifact by data set, arm and seed; what several of them are made of is built once, before them.

    Raises:
        ValueError: trials failed; after the others are done, so that the next attempt finds them.
    """
    progress.say(f"{len(runs)} trials, {num_parallel} at a time")
    for stage in VARIED:
        variants: dict[tuple[str, str], Run] = {}
        for run in runs:
            variants.setdefault((run.dataset, provenance(stage, run.config)[stage.name]), run)
        jobs = [(run, stage) for run in variants.values()]
        failed = [result for _, result in _each(jobs, store_of, num_parallel) if isinstance(result, str)]
        progress.say(f"{stage.name}: {len(jobs)} variants")
        if failed:
            logger.warning("%d variants of %s failed, their trials will say so: %s", len(failed), stage.name, failed[0])
    found: dict[str, dict[str, dict[Seed, Artifact]]] = {}
    failures = []
    done = {}
    for number, (run, result) in enumerate(_each([(run, run.stage) for run in runs], store_of, num_parallel), start=1):
        if isinstance(result, Artifact):
            done[run.dataset, run.arm, run.seed] = result
        else:
            failures.append(f"{run.dataset}, {run.arm}, seed {run.seed}: {result}")
        if number % 10 == 0 or number == len(runs):
            progress.say(f"trial {number}/{len(runs)}")
    if failures:
        raise ValueError(f"{len(failures)} of {len(runs)} trials failed:\n  " + "\n  ".join(failures) + "\nMend the cause and run the study again: it goes on.")
    for run in runs:
        found.setdefault(run.dataset, {}).setdefault(run.arm, {})[run.seed] = done[run.dataset, run.arm, run.seed]
    return found


def _each(jobs: Sequence[tuple[Run, Stage]], store_of: Mapping[str, Store], num_parallel: int) -> Iterator[tuple[Run, Artifact | str]]:
    """Each run with the artifact of its stage, or why it failed, as they end; at most `num_parallel` at a time, with a CPU each."""
    task: Any = ray.remote(num_cpus=1, max_retries=2)(_built)
    cwd, waiting = os.getcwd(), list(reversed(jobs))
    pending: dict[Any, Run] = {}
    while waiting or pending:
        while waiting and len(pending) < num_parallel:
            run, stage = waiting.pop()
            pending[task.remote(stage, run.config, store_of[run.dataset], cwd)] = run
        (ready,), _ = ray.wait(list(pending), num_returns=1)
        run = pending.pop(ready)
        try:
            yield run, ray.get(ready)
        except Exception as error:
            logger.info("failed: %s", error)
            yield run, str(error).strip().splitlines()[-1]


def _built(stage: Stage, config: Config, store: Store, cwd: str) -> Artifact:
    with started_in(cwd):
        return built_here(stage, config, store)


def results(
    study: StudySettings, dataset: str, config: Config, store: Store, trials: Mapping[str, Mapping[Seed, Artifact]], notes: dict[str, object]
) -> StudyResults:
    """What the study found on one data set."""
    shared = arm_config(study, dataset, None, None, config)
    compared = {}
    windows: tuple[Split, ...] = ("validation", "test")
    for split in windows:
        rows = rows_of(shared, store, split)
        compared[split] = compare(Window.of(rows), measure(rows, trials, split), study.against_of, study.bootstrap_rounds)
    seconds = {arm: sum(float(one.info["seconds"]) for one in of_arm.values()) / len(of_arm) for arm, of_arm in trials.items()}
    parameters = {arm: next(iter(of_arm.values())).info["parameters"] for arm, of_arm in trials.items()}
    info = logs_info(ensure(LOGS, shared, store).artifact)
    opened = sorted(str(one.manifest["finished"]) for of_arm in trials.values() for one in of_arm.values() if "test" in one.info["splits"])
    facts = {"exposure": info.exposure, "users": info.num_users, "items": info.num_items, "events": info.num_events, "examples": info.num_examples}
    return StudyResults(
        dataset=dataset,
        config=study.datasets[dataset].config,
        commit=source_commit(),
        seeds=tuple(dict.fromkeys(seed for of_arm in trials.values() for seed in of_arm)),
        headline=study.datasets[dataset].headline.model_dump(),
        window="test",
        arms=compared["test"],
        validation=compared["validation"],
        notes={
            **notes,
            **effort(trials, str(notes["started"])),
            "test_opened": f"{opened[0]} to {opened[-1]}" if opened else "",
            "logs": facts,
            "seconds_per_trial": seconds,
            "parameters": parameters,
            "arms": {name: arm.meaning for name, arm in study.arms.items()},
        },
    )


def effort(trials: Mapping[str, Mapping[Seed, Artifact]], started: str) -> dict[str, object]:
    """How many trials there are, how many of them were trained since `started` and not found, and what all of them took, a thread each."""
    every = {one.key: one for of_arm in trials.values() for one in of_arm.values()}.values()
    trained = sum(str(one.manifest["finished"]) >= started for one in every)
    return {"trials": len(every), "trained_now": trained, "trials_thread_min": round(sum(float(one.info["seconds"]) for one in every) / 60, 1)}


def machine() -> dict[str, str]:
    """What the trials ran on, as the results tell it."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = f", {have['GPU']:g} GPU" if have.get("GPU") else ""
    return {"machine": f"{have.get('CPU', 0):g} CPUs{gpus}, {have.get('memory', 0) / 2**30:.0f} GiB for tasks."}


def write(found: StudyResults, study: StudySettings, folder: Path) -> None:
    """The data set's files below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{study.name}_{found.dataset}"
    stem.with_suffix(".json").write_text(json.dumps(found.model_dump(mode="json"), indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(found, study))
    stem.with_suffix(".html").write_text(page(found, study))


def main() -> None:
    with clear_errors():
        config = config_from(arguments(__doc__ or ""))
        study = config.study
        if not study.arms or not study.datasets:
            raise ValueError("the config has no [study] with arms and datasets. pipelines/configs/choirrec_study.toml is one.")
        progress, started = Progress(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        left_out = {name: reason for name in study.chosen_datasets if (reason := there(study, name, config)) is not None}
        for name, reason in left_out.items():
            progress.say(f"{name} is left out: {reason}")
        names = [name for name in study.chosen_datasets if name not in left_out]
        runs = [run for name in names for run in runs_of(study, name, config)]
        with ray_session(config.cluster):
            stores, seconds = {}, {}
            for name in names:
                shared = arm_config(study, name, None, None, config)
                stores[name], began = open_store(shared), time.monotonic()
                for stage in (USER_SPACES, SAMPLES):
                    outcome = ensure(stage, shared, stores[name], build_inputs=True)
                seconds[name] = time.monotonic() - began
                progress.say(f"{name}: what all arms share, {outcome.artifact.manifest['rows']['out']:,} rows of samples, {seconds[name]:.0f} s")
            began = time.monotonic()
            cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
            trials = run_all(runs, stores, study.num_parallel or cpus, progress)
            minutes = {"trials_min": round((time.monotonic() - began) / 60, 1)}
            about = {
                "form": study.form,
                "when": time.strftime("%Y-%m-%d", time.gmtime()),
                "started": started,
                "command": f"python -m pipelines.study {shlex.join(sys.argv[1:])}",
                "study_sha256": digest(study.model_dump(mode="json"), 64),
                **machine(),
                **minutes,
            }
            written = {}
            for name in names:
                found = results(study, name, config, stores[name], trials[name], {**about, "shared_s": round(seconds[name])})
                write(found, study, Path(study.results))
                written[name] = str(Path(study.results) / f"{study.name}_{name}.md")
                progress.say(f"{name}: {written[name]}")
        print(json.dumps({"study": study.name, "form": study.form, "trials": len(runs), "results": written, "left_out": left_out, **minutes}))


if __name__ == "__main__":
    main()
