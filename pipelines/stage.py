"""What every stage's command does: load the config, find the inputs, skip what is finished, run the rest, print one JSON line."""

import argparse
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longtail.artifacts import Artifact, Draft, Store
from longtail.config import Config, load
from longtail.hashing import digest
from pipelines.cluster import in_job, ray_session
from pipelines.errors import clear_errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a stage did with its rows; rows_in = rows_out + the sum of `dropped`."""

    rows_in: int
    rows_out: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    also_read: Mapping[str, Artifact] = field(default_factory=dict)  # finished artifacts beside the stage's inputs; the fingerprint tells their content


@dataclass(frozen=True)
class Context:
    """What a stage's build function gets beside its draft."""

    config: Config
    store: Store
    inputs: Mapping[str, Artifact]  # by stage name

    @property
    def seed(self) -> int:
        return self.config.run.seed


@dataclass(frozen=True)
class Stage:
    """One stage: its name (also its folder), its version (raise it when the same inputs give another result), what it reads, and how it is built."""

    name: str
    version: int
    inputs: tuple["Stage", ...]
    settings: Callable[[Config], Mapping[str, Any]]  # the values that decide its result
    build: Callable[[Context, Draft], Result]
    command: str  # the module that runs it, for error messages
    fingerprint: Callable[[Config], str] = lambda config: ""  # of inputs that no stage wrote


@dataclass(frozen=True)
class Outcome:
    """A finished stage, and whether it was found finished."""

    artifact: Artifact
    skipped: bool
    seconds: float


def kept(setting: str, path: str) -> str:
    """The path or URI of a setting. In a submitted job a relative one is taken below $LONGTAIL_HOME (~/.longtail): the job's working directory goes away."""
    if not in_job() or "://" in path or Path(path).is_absolute():
        return path
    found = str(Path(os.environ.get("LONGTAIL_HOME", "~/.longtail")).expanduser() / path)
    logger.warning("%s = %r is relative; this job keeps it in %s", setting, path, found)
    return found


def open_store(config: Config) -> Store:
    """The run's store."""
    uri = kept("run.uri", config.run.uri)
    store = Store.open(uri)
    try:
        store.fs.create_dir(store.root, recursive=True)
    except OSError as error:
        raise ValueError(f"run.uri = {uri!r} cannot be written to: {error}. Name a folder that is yours, or give access to this one.") from error
    return store


def stage_key(stage: Stage, config: Config, inputs: Mapping[str, Artifact]) -> str:
    """Digest of the stage's version, its own config, the seed, and its inputs' contents."""
    return digest(
        {
            "stage": stage.name,
            "version": stage.version,
            "settings": stage.settings(config),
            "seed": config.run.seed,
            "fingerprint": stage.fingerprint(config),
            "inputs": {name: artifact.content_hash for name, artifact in inputs.items()},
        }
    )


def line(last: Stage) -> list[Stage]:
    """The stage and all that it is made from, each after what it reads."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        for upstream in stage.inputs:
            visit(upstream)
        found.setdefault(stage.name, stage)

    visit(last)
    return list(found.values())


def provenance(last: Stage, config: Config) -> dict[str, str]:
    """By stage of the line, a digest of all that decides its artifact beside the seed: version, settings and fingerprint, its own and those before it."""
    found: dict[str, str] = {}
    for stage in line(last):
        before = [found[upstream.name] for upstream in stage.inputs]
        found[stage.name] = digest([stage.name, stage.version, stage.settings(config), stage.fingerprint(config), before])
    return found


def find(stage: Stage, config: Config, store: Store) -> Artifact | None:
    """The finished artifact for this config, or None if it or anything before it is missing."""
    inputs = {}
    for upstream in stage.inputs:
        artifact = find(upstream, config, store)
        if artifact is None:
            return None
        inputs[upstream.name] = artifact
    return store.find(stage.name, stage_key(stage, config, inputs))


def ensure(stage: Stage, config: Config, store: Store, *, build_inputs: bool = False) -> Outcome:
    """The stage's artifact, found or built.

    Raises:
        ValueError: an input is not finished and `build_inputs` is off.
    """
    inputs = {}
    for upstream in stage.inputs:
        artifact = ensure(upstream, config, store, build_inputs=True).artifact if build_inputs else find(upstream, config, store)
        if artifact is None:
            raise ValueError(
                f"stage {stage.name!r} reads {upstream.name!r}, which is not finished under {store.uri} for this config. "
                f"Run python -m {upstream.command} with the same --config first, or python -m pipelines.full for the whole line."
            )
        inputs[upstream.name] = artifact
    key = stage_key(stage, config, inputs)
    started = time.monotonic()
    existing = store.find(stage.name, key)
    if existing is not None:
        return Outcome(existing, True, time.monotonic() - started)
    store.clear_interrupted(stage.name, key, older_than_s=6 * 3600)
    draft = store.create(stage.name, key)
    logger.info("%s: building %s", stage.name, key)
    try:
        result = stage.build(Context(config, store, inputs), draft)
        artifact = draft.commit(
            config=dict(stage.settings(config)),
            inputs=inputs | dict(result.also_read),
            seed=config.run.seed,
            rows_in=result.rows_in,
            rows_out=result.rows_out,
            dropped=result.dropped,
            info=result.info,
        )
    except BaseException:
        draft.discard()
        raise
    return Outcome(artifact, False, time.monotonic() - started)


def arguments(description: str, add: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.Namespace:
    """The flags that every command shares: --config, --set a.b=value, --out."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", help="TOML file; without it every setting has its default")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value", help="override one setting; may be repeated")
    parser.add_argument("--out", help="override run.uri")
    if add is not None:
        add(parser)
    return parser.parse_args()


def config_from(args: argparse.Namespace) -> Config:
    overrides = list(args.overrides) + ([f"run.uri={json.dumps(args.out)}"] if args.out else [])
    return load(args.config, overrides)


def main_for(description: str, stages: Callable[[Config], Sequence[Stage]]) -> None:
    """A stage module's main: build its stages in order and print one JSON line."""
    with clear_errors():
        args = arguments(description)
        config = config_from(args)
        store = open_store(config)
        with ray_session(config.cluster):
            outcomes = [ensure(stage, config, store) for stage in stages(config)]
        print(json.dumps({o.artifact.stage: summary(o) for o in outcomes}, default=str))


def summary(outcome: Outcome) -> dict[str, Any]:
    """What a command prints of a finished stage."""
    manifest = outcome.artifact.manifest
    return {"path": outcome.artifact.root, "rows": manifest["rows"], "skipped": outcome.skipped, "seconds": round(outcome.seconds, 2)}


def built(stage: Stage, description: str) -> Outcome:
    """The stage with all that it comes from, as its command's flags ask for it."""
    config = config_from(arguments(description))
    store = open_store(config)
    with ray_session(config.cluster):
        return ensure(stage, config, store, build_inputs=True)
