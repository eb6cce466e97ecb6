"""Study: many arms, seeds and data sets in one Ray job, compared in pairs on the same rows; the test window is opened once for each arm that may see it.

What trials share is built first and once, then what is lent to each variant of the samples, then every trial in a Ray task of its own. Finished stages
and trials are found again: a study that was interrupted goes on where it was. Reads the configs that [study.datasets] name; writes
results/<study>_<data set>.json, .md and .html, the short form <data set>_short.

Run: python -m pipelines.study --config pipelines/configs/choirrec_study.toml [--set study.form=short]
     ray job submit --working-dir . --runtime-env platform/runtime_env.yaml -- python -m pipelines.study --config …
Last stdout line: one JSON object.
"""

import argparse
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from longtail.artifacts import Artifact, Store, source_commit
from longtail.config import Config
from longtail.hashing import digest
from longtail.study import Seed, StudySettings
from longtail.study_page import headline_sentence
from pipelines.cluster import ray_session
from pipelines.codes import ITEM_CODES, USER_CODES
from pipelines.collaborative import COLLABORATIVE
from pipelines.embeddings import ITEM_VECTORS, USER_VECTORS
from pipelines.errors import clear_errors
from pipelines.groups import GROUPS
from pipelines.item_encoder import ITEM_ENCODER
from pipelines.item_texts import ITEM_TEXTS
from pipelines.item_z import ITEM_Z
from pipelines.lent import LENT
from pipelines.lifts import LIFTS
from pipelines.logs import LOGS
from pipelines.matches import MATCHES
from pipelines.peers import PEERS
from pipelines.samples import SAMPLES
from pipelines.stage import Stage, arguments, config_from, ensure, line, open_store, provenance
from pipelines.study_arms import Run, arm_config, check, runs_of, there, worlds
from pipelines.study_measures import earlier_openings, files_of, results, results_folder, write
from pipelines.trial import built_here, is_plan
from pipelines.user_spaces import USER_SPACES
from pipelines.work import started_in

logger = logging.getLogger(__name__)

#: Where arms and seeds part, in the order of the data: each is built for all of them before the next, so that no two build the same thing at a time.
VARIED = (
    *(LOGS, ITEM_TEXTS, ITEM_VECTORS, ITEM_ENCODER, ITEM_Z, ITEM_CODES, COLLABORATIVE),
    *(USER_VECTORS, USER_SPACES, USER_CODES, GROUPS, PEERS, SAMPLES, MATCHES, LIFTS, LENT),
)


@dataclass
class Progress:
    """What the study says while it works."""

    started: float = field(default_factory=time.monotonic)

    def say(self, line: str) -> None:
        print(f"{(time.monotonic() - self.started) / 60:5.1f} min  {line}", file=sys.stderr, flush=True)


def run_all(runs: Sequence[Run], store_of: Mapping[str, Store], num_parallel: int, progress: Progress) -> dict[str, dict[str, dict[Seed, Artifact]]]:
    """Every trial's artifact by data set, arm and seed; what several of them are made of is built once, before them.

    Raises:
        ValueError: a Ray Data plan failed; or trials did, after the others are done, so that the next attempt finds them.
    """
    progress.say(f"{len(runs)} trials, {num_parallel} at a time")
    for stage in VARIED:
        variants: dict[tuple[str, str], Run] = {}
        for run in runs:
            if stage in line(run.stage):
                variants.setdefault((run.dataset, provenance(stage, run.config)[stage.name]), run)
        planned = [(run, stage) for run in variants.values() if is_plan(stage, run.config)]
        jobs = [(run, stage) for run in variants.values() if not is_plan(stage, run.config)]
        for run, result in _each(planned, store_of, 1, num_cpus=0):
            if isinstance(result, str):  # later stages would start the plan again, several at a time
                raise ValueError(f"{stage.name} of {run.dataset}: {result}\nMend the cause and run the study again: it goes on.")
        failed = [result for _, result in _each(jobs, store_of, num_parallel) if isinstance(result, str)]
        if variants:
            progress.say(f"{stage.name}: {len(variants)} variants")
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


def _each(jobs: Sequence[tuple[Run, Stage]], store_of: Mapping[str, Store], num_parallel: int, num_cpus: int = 1) -> Iterator[tuple[Run, Artifact | str]]:
    """Each run with the artifact of its stage, or why it failed, as they end; at most `num_parallel` at a time, with `num_cpus` each."""
    task: Any = ray.remote(num_cpus=num_cpus, max_retries=2)(_built)
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


def main() -> None:
    def add_check(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--check", action="store_true", help="check settings and tables, print what would run, and write nothing")

    with clear_errors():
        args = arguments(__doc__ or "", add_check)
        config = config_from(args)
        study = config.study
        if not study.arms or not study.datasets:
            raise ValueError("the config has no [study] with arms and datasets. pipelines/configs/choirrec_study.toml is one.")
        print(json.dumps(check(study, config) if args.check else run_study(study, config)))


def run_study(study: StudySettings, config: Config) -> dict[str, object]:
    """Run the whole study and write its results; returns what the command says at its end."""
    progress, started = Progress(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    commit = source_commit()  # now: the first results that are written change the working tree
    left_out = {name: reason for name in study.chosen_datasets if (reason := there(study, name, config)) is not None}
    for name, reason in left_out.items():
        progress.say(f"{name} is left out: {reason}")
    names = [name for name in study.chosen_datasets if name not in left_out]
    if not names:
        raise ValueError(f"every data set of the study is left out: {left_out}. Bring the tables of one, or choose others in study.datasets.")
    runs = [run for name in names for run in runs_of(study, name, config)]
    folder = results_folder(study, names)
    with ray_session(config.cluster):
        stores, seconds = {}, {}
        for name in names:
            began = time.monotonic()
            stores[name] = open_store(arm_config(study, name, None, None, config))
            borrowing = any(USER_SPACES in line(run.stage) for run in runs if run.dataset == name)
            build_shared(arm_config(study, name, None, worlds(study, name)[0], config), stores[name], borrowing=borrowing)
            seconds[name] = time.monotonic() - began
            progress.say(f"{name}: what all arms share, {seconds[name]:.0f} s")
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
            paths = files_of(study, name, folder)
            notes = {**about, "shared_s": round(seconds[name]), "openings": earlier_openings(study, name, folder)}
            found = results(study, name, config, stores[name], trials[name], commit, notes)
            write(found, study, folder)
            written[name] = str(paths["md"])
            progress.say(f"{name}: {headline_sentence(found)}\n           {paths['md']}, {paths['html']}")
    return {"study": study.name, "form": study.form, "trials": len(runs), "results": written, "left_out": left_out, **minutes}


def machine() -> dict[str, str]:
    """What the trials ran on, as the results tell it."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = f", {have['GPU']:g} GPU" if have.get("GPU") else ""
    return {"machine": f"{have.get('CPU', 0):g} CPUs{gpus}, {have.get('memory', 0) / 2**30:.0f} GiB for tasks."}


def build_shared(shared: Config, store: Store, *, borrowing: bool) -> None:
    """Build what all arms of a data set share, the language model's and the text encoder's work in it; with user spaces where some arm borrows."""
    for stage in (*([USER_SPACES] if borrowing else []), SAMPLES):
        ensure(stage, shared, store, build_inputs=True)


if __name__ == "__main__":
    main()
