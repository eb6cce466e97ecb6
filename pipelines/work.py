"""Work: a stage's jobs as Ray tasks and actors, or in place, one after the other, in a process that is itself a task.

A study trains hundreds of rankers on as many variants of small tables. There the start of a process (seconds) costs more than a job, and the machine is
already full of trials: inside `in_place` the same functions run in the process that asks, and give the same artifacts under the same keys.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import ray
from ray.util.actor_pool import ActorPool
from tqdm import tqdm

from longtail.config import ClusterSettings
from longtail.settings import Compute
from pipelines import blocks

ONE_CPU = Compute()

_IN_PLACE: ContextVar[bool] = ContextVar("in_place", default=False)


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """Within this block jobs run in this process."""
    token = _IN_PLACE.set(True)
    try:
        yield
    finally:
        _IN_PLACE.reset(token)


def started_in(cwd: str) -> contextlib.AbstractContextManager[None]:
    """Within this block a task works in the folder that its driver was started in, where relative paths begin; on a node without that folder, in its own."""
    return contextlib.chdir(cwd if os.path.isdir(cwd) else ".")


def is_in_place() -> bool:
    return _IN_PLACE.get()


def tasks(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], compute: Compute = ONE_CPU) -> list[Any]:
    """What `function` returns for each job, in their order, each with what `compute` reserves for an actor; a task's memory goes back when it ends."""
    if is_in_place():
        return [function(*job) for job in jobs]
    task: Any = ray.remote(**blocks.options(compute), max_calls=1)(function)
    return list(ray.get([task.remote(*job) for job in jobs]))


#: Runs one method of the pool's actors for each job, and returns what it said, in any order.
Order = Callable[[str, Sequence[tuple[Any, ...]]], list[Any]]


def pool(
    actor: Callable[..., Any],
    arguments: tuple[Any, ...],
    method: str,
    jobs: Sequence[tuple[Any, ...]],
    compute: Mapping[str, Compute],
    cluster: ClusterSettings,
) -> list[Any]:
    """What `method` returns for each job, in any order, in a pool of actors made with `arguments`; `compute` is the pool's, by its config section."""
    with staff(actor, arguments, compute, cluster, most=len(jobs)) as order:
        return order(method, jobs)


@contextlib.contextmanager
def staff(actor: Callable[..., Any], arguments: tuple[Any, ...], compute: Mapping[str, Compute], cluster: ClusterSettings, *, most: int) -> Iterator[Order]:
    """For the length of a block a pool of actors, at most `most` of them, that does one kind of job after another."""
    if is_in_place():
        alone = actor(*arguments)
        yield lambda method, jobs: [getattr(alone, method)(*job) for job in jobs]
        return
    blocks.check_room(compute, cluster)
    ((name, settings),) = compute.items()
    remote = ray.remote(**blocks.options(settings), max_restarts=2, max_task_retries=2)(actor)
    actors: list[Any] = [remote.remote(*arguments) for _ in range(min(settings.num_actors, most))]

    def order(method: str, jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
        done = ActorPool(actors).map_unordered(lambda one, job: getattr(one, method).remote(*job), list(jobs))
        return list(tqdm(done, total=len(jobs), desc=name, unit="job", mininterval=1, delay=5))

    try:
        yield order
    finally:
        for one in actors:
            ray.kill(one)
