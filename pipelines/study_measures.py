"""A study's measures: reads the trials' scores, compares the arms, and writes what was found as JSON, Markdown and one HTML page.

Reads logs, samples and trials; writes results/<study>_<data set>.json, .md and .html, the short form <data set>_short. python -m pipelines.study calls it
when the trials are done.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.rankers.heads import has_label
from longtail.rankers.settings import Head
from longtail.run_state import load_behaviour, load_entities, logs_info
from longtail.sample_files import LABEL_COLUMNS, Split
from longtail.storage import local_folder
from longtail.study import Form, Seed, StudySettings
from longtail.study_page import markdown, page
from longtail.study_results import Arms, Measured, Metric, StudyResults, compare, measured
from longtail.study_rows import WindowRows, item_rows, window_rows
from longtail.times import to_us
from pipelines.logs import LOGS
from pipelines.samples import SAMPLES
from pipelines.stage import ensure, kept
from pipelines.study_arms import arm_config, worlds
from pipelines.trial import score_column


def windows_of(config: Config, store: Store, metric: Metric, heads: Sequence[Head]) -> dict[tuple[Split, Head], WindowRows]:
    """The rows and slices of both windows of a world, by window and head: for each head those with a label for it, in the slices of the whole window."""
    logs, samples = ensure(LOGS, config, store).artifact, ensure(SAMPLES, config, store).artifact
    info, bins = logs_info(logs), config.samples.numeric_bins
    known, found = (load_entities(logs, bins), load_behaviour(logs, bins)), {}
    if metric == "auc":
        chosen = logs.read("cold_items", ["item_id"]).column("item_id").combine_chunks() if info.num_cold else None
    else:
        chosen = logs.read("truncated", ["user_id"]).column("user_id").combine_chunks() if info.num_truncated else None
    table = samples.read("samples", ["example_id", "user_id", "item_id", *LABEL_COLUMNS, "item_age_days"])
    table = table.append_column("label", table.column("outcome"))
    windows: tuple[tuple[Split, datetime], ...] = (("validation", info.validation_start), ("test", info.train_end))
    for split, opens in windows:
        mine = table.filter(pc.equal(table.column("split"), split))
        rows = (item_rows if metric == "auc" else window_rows)(mine, *known, to_us(opens), chosen)
        conversion_N = pc.fill_null(mine.column("conversion"), -1).to_numpy().astype(np.int8)
        for head in heads:
            of_head = rows if head == "outcome" else replace(rows, label_N=conversion_N)
            found[split, head] = of_head.where(has_label([head], rows.label_N, conversion_N))
    return found


def measure(
    rows_of_world: Mapping[Seed | None, WindowRows], trials: Mapping[str, Mapping[Seed, Artifact]], split: Split, metric: Metric, head: Head = "outcome"
) -> dict[str, dict[Seed, dict[str, Measured]]]:
    """By arm, seed and slice, what the window's scores come to; arms without scores there are left out.

    Args:
        rows_of_world: the window's rows by the seed that has a world of its own; None for all seeds that share one.
        trials: by arm and seed.
        split: the window.
        metric: what to measure.
        head: whose scores; a trial without them is left out.

    Raises:
        ValueError: a trial's scores are not those of the rows.
    """
    found: dict[str, dict[Seed, dict[str, Measured]]] = {}
    for arm, by_seed in trials.items():
        for seed, artifact in by_seed.items():
            if split in artifact.info["splits"] and head in artifact.info["heads"]:
                rows = rows_of_world[seed if seed in rows_of_world else None]
                order = pa.array(rows.example_id_N)
                scores = artifact.read("scores")
                scores = scores.filter(pc.equal(scores.column("split"), split))
                place = pc.index_in(order, value_set=scores.column("example_id").combine_chunks())
                if place.null_count or (head == "outcome" and len(scores) != len(order)):
                    raise ValueError(
                        f"{arm}, seed {seed}: {artifact.root} has {len(scores)} scores of the {split} window for {len(order)} rows, and none for "
                        f"{place.null_count} of them. Remove that folder's parent and run the study again: the trial is made anew."
                    )
                found.setdefault(arm, {})[seed] = measured(rows, scores.column(score_column(head)).take(place).to_numpy(), metric)
    return found


def results(
    study: StudySettings, dataset: str, config: Config, store: Store, trials: Mapping[str, Mapping[Seed, Artifact]], commit: str, notes: dict[str, Any]
) -> StudyResults:
    """What the study found on one data set; `commit` is the code's when it began."""
    config_of = {world: arm_config(study, dataset, None, world, config) for world in worlds(study, dataset)}
    shared = next(iter(config_of.values()))
    heads = tuple(dict.fromkeys(("outcome", *(head for of_arm in trials.values() for one in of_arm.values() for head in one.info["heads"]))))
    rows_of = {world: windows_of(of_world, store, study.metric, heads) for world, of_world in config_of.items()}

    def compared(split: Split, head: Head) -> Arms:
        rows = {world: windows[split, head] for world, windows in rows_of.items()}
        return compare(measure(rows, trials, split, study.metric, head), study.against_of, study.metric, study.bootstrap_rounds)

    seconds = {arm: sum(float(one.info["seconds"]) for one in of_arm.values()) / len(of_arm) for arm, of_arm in trials.items()}
    parameters = {arm: next(iter(of_arm.values())).info["parameters"] for arm, of_arm in trials.items()}
    info = logs_info(ensure(LOGS, shared, store).artifact)
    done, opened = effort(trials, str(notes["started"])), list(notes["openings"])
    if done["trained_now"]:
        opened.append({"when": notes["started"], "trained": done["trained_now"], "commit": commit, "settings": str(notes["study_sha256"])[:12]})
    facts = {"exposure": info.exposure, "users": info.num_users, "items": info.num_items, "events": info.num_events, "examples": info.num_examples}
    return StudyResults(
        dataset=dataset,
        config=study.datasets[dataset].config,
        commit=commit,
        seeds=tuple(dict.fromkeys(seed for of_arm in trials.values() for seed in of_arm)),
        headline=study.datasets[dataset].headline.model_dump(),
        window="test",
        metric=study.metric,
        arms=compared("test", "outcome"),
        validation=compared("validation", "outcome"),
        heads={head: compared("test", head) for head in heads[1:]} or None,
        notes={
            **notes,
            **done,
            "openings": opened,
            "logs": facts,
            "steps": {arm: next(iter(of_arm.values())).info["epochs"][-1]["step"] for arm, of_arm in trials.items()},
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


def files_of(study: StudySettings, dataset: str, folder: Path) -> dict[str, Path]:
    """The files of a data set's results, by kind; the short form, which is of fewer arms and seeds, has its own."""
    suffix = "_short" if study.form == "short" else ""
    return {kind: folder / f"{study.name}_{dataset}{suffix}.{kind}" for kind in ("json", "md", "html")}


def results_folder(study: StudySettings, datasets: Sequence[str]) -> Path:
    """The folder of the results, which can be written to.

    Raises:
        ValueError: it can't.
    """
    folder = local_folder("study.results", kept("study.results", study.results))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"study.results = {study.results!r} cannot be written to: {error.strerror}. Name a folder that is yours.") from error
    in_the_way = [str(path) for name in datasets for path in files_of(study, name, folder).values() if path.is_dir()]
    if in_the_way:
        raise ValueError(f"study.results = {study.results!r}: {in_the_way} are folders, and files of that name are to be written. Move them, or name another.")
    return folder


def earlier_openings(study: StudySettings, dataset: str, folder: Path) -> list[dict[str, object]]:
    """The openings of the test window that the results of either form tell of: a new run's results replace the figures, not the record."""
    found: list[dict[str, object]] = []
    for form in get_args(Form):
        try:
            told = json.loads(files_of(study.model_copy(update={"form": form}), dataset, folder)["json"].read_text())["notes"]["openings"]
            found += [one for one in told if one not in found]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda one: str(one["when"]))


def write(found: StudyResults, study: StudySettings, folder: Path) -> None:
    """The data set's files below `folder`, all or none of them anew."""
    rounded = found.model_dump(mode="json", exclude_none=True)
    found = StudyResults.model_validate(rounded)  # the pages say what the .json says, to its last digit
    texts = {"json": json.dumps(rounded, indent=1) + "\n", "md": markdown(found, study), "html": page(found, study)}
    paths = files_of(study, found.dataset, folder)
    for kind, text in texts.items():
        paths[kind].with_name(f".{paths[kind].name}").write_text(text)
    for path in paths.values():
        path.with_name(f".{path.name}").replace(path)
