"""Sharing between trials: every artifact upstream of the rankers is built once, also when several trials ask for it at the same time.

Reads what the stages read, writes their artifacts. An artifact's key is of its inputs' content and its own settings, so that trials share all stages up to
where their settings part.
"""

from typing import Any

import ray
from ray.actor import ActorHandle

from longtail.artifacts import Artifact, Store
from longtail.code_collisions import NoPlaceError
from longtail.codes import TooFewRowsError
from longtail.config import Config
from longtail.training_loop import NonFiniteLossError
from pipelines.stage import Stage, ensure, find, line, stage_key
from pipelines.train import ContradictionError
from pipelines.trial import built_here, is_plan
from pipelines.work import started_in

#: Our own refusals of a point: the same settings meet them every time. Whatever else ends a trial is a failure, which may be mended.
REFUSALS = (TooFewRowsError, NoPlaceError, ContradictionError, NonFiniteLossError)


class Builders:
    """An actor that starts each build once: who asks for an artifact that is being built waits for the same task."""

    def __init__(self) -> None:
        self._begun: dict[str, Any] = {}

    def ask(self, key: str, stage: Stage, config: Config, store: Store, cwd: str) -> list[Any]:
        """The task that builds the stage, in a list so that Ray hands it on unfinished. A build that has ended is not asked for again, unless it failed."""
        running = self._begun.get(key)
        if running is None or ray.wait([running], timeout=0)[0]:
            # The actor is no part of a trial's reservation, and so its tasks are not confined to it.
            alone = config.sweep.in_place and not is_plan(stage, config)
            task = ray.remote(num_cpus=1 if alone else 0, max_retries=2)(_built)
            self._begun[key] = task.remote(stage, config, store, cwd, alone)
        return [self._begun[key]]


def _built(stage: Stage, config: Config, store: Store, cwd: str, alone: bool) -> str | None:
    """Build a stage whose inputs are there; returns our refusal, which is no failure of the task."""
    with started_in(cwd):
        try:
            if alone:
                built_here(stage, config, store)
            else:
                ensure(stage, config, store)
        except REFUSALS as error:
            return str(error)
    return None


def start_builders() -> ActorHandle[Any]:
    """The sweep's one actor of this kind; its tasks end with it."""
    actor: Any = ray.remote(num_cpus=0)(Builders)
    handle: ActorHandle[Any] = actor.remote()
    return handle


class RefusedError(ValueError):
    """A stage refused the point's settings."""


def ensure_inputs(last: Stage, config: Config, store: Store, builders: ActorHandle[Any], cwd: str) -> None:
    """Everything that `last` is made of, each stage found or built by whoever asked first.

    Raises:
        RefusedError: one of REFUSALS met the settings.
    """
    with started_in(cwd):
        for stage in line(last)[:-1]:
            _ensure(stage, config, store, builders, cwd)


def ensure_shared(last: Stage, config: Config, store: Store, builders: ActorHandle[Any], cwd: str) -> Artifact:
    """The same, and `last` itself."""
    ensure_inputs(last, config, store, builders, cwd)
    with started_in(cwd):
        return _ensure(last, config, store, builders, cwd)


def _ensure(stage: Stage, config: Config, store: Store, builders: ActorHandle[Any], cwd: str) -> Artifact:
    """A stage whose inputs are there."""
    inputs = {upstream.name: found for upstream in stage.inputs if (found := find(upstream, config, store)) is not None}
    key = stage_key(stage, config, inputs)
    found = store.find(stage.name, key)
    if found is None:
        running: list[Any] = ray.get(builders.ask.remote(f"{stage.name}/{key}", stage, config, store, cwd))
        refused: str | None = ray.get(running[0])
        if refused is not None:
            raise RefusedError(refused)
        found = store.find(stage.name, key)
        assert found is not None
    return found
