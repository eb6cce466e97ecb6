"""Work: jobs in place and on Ray give the same, and stages the same artifacts under the same keys."""

import os
from pathlib import Path
from typing import Any

import pytest

from longtail.artifacts import Artifact
from longtail.config import ClusterSettings
from longtail.settings import Compute
from pipelines import work
from pipelines.codes import USER_CODES
from pipelines.collaborative import COLLABORATIVE
from pipelines.groups import GROUPS
from pipelines.lent import LENT
from pipelines.lifts import LIFTS
from pipelines.peers import PEERS
from pipelines.samples import SAMPLES
from pipelines.stage import Stage, ensure, find
from pipelines.user_spaces import USER_SPACES
from tests import borrowing_world

CLUSTER = ClusterSettings(num_cpus=2)


def named(number: int, name: str = "") -> tuple[int, str, int]:
    if number < 0:
        raise ValueError(f"{number} is below zero")
    return number, name, os.getpid()


class Counter:
    """Counts its calls from `start`."""

    def __init__(self, start: int) -> None:
        self.calls = start

    def add(self, number: int, name: str) -> tuple[int, str, int]:
        self.calls += 1
        return number, name, self.calls


def test_in_place_ends_with_its_block() -> None:
    assert not work.is_in_place()
    with work.in_place():
        with work.in_place():
            assert work.is_in_place()
        assert work.is_in_place()
    assert not work.is_in_place()
    with pytest.raises(RuntimeError, match="stop"), work.in_place():
        raise RuntimeError("stop")
    assert not work.is_in_place()


def test_jobs_in_place_run_here_one_after_the_other() -> None:
    with work.in_place():
        assert work.tasks(named, [(2, "b"), (1,)]) == [(2, "b", os.getpid()), (1, "", os.getpid())]
        assert work.tasks(named, []) == []
        too_much = {"samples": Compute(num_actors=99, num_cpus=99)}  # reserves nothing
        assert work.pool(Counter, (10,), "add", [(1, "a"), (2, "b")], too_much, CLUSTER) == [(1, "a", 11), (2, "b", 12)]
        with pytest.raises(ValueError, match="-1 is below zero"):
            work.tasks(named, [(1,), (-1,)])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_jobs_on_ray_run_elsewhere_and_come_back_in_order() -> None:
    def place(number: int, name: str) -> tuple[int, str, int]:  # here, so that no worker imports this module
        return number, name, os.getpid()

    class Places:
        def __init__(self, start: int) -> None:
            self.calls = start

        def add(self, number: int, name: str) -> tuple[int, str, int]:
            self.calls += 1
            return number, name, self.calls

    got = work.tasks(place, [(number, "x") for number in range(3)])
    assert [one[:2] for one in got] == [(number, "x") for number in range(3)]
    assert os.getpid() not in {one[2] for one in got}
    jobs = [(number, "y") for number in range(5)]
    done = work.pool(Places, (0,), "add", jobs, {"samples": Compute(num_actors=2, num_cpus=0.5)}, CLUSTER)
    assert sorted(one[:2] for one in done) == jobs
    assert max(one[2] for one in done) < 5, "two actors share them"
    with pytest.raises(ValueError, match=r"samples.*num_cpus"):
        work.pool(Places, (0,), "add", jobs, {"samples": Compute(num_actors=4, num_cpus=1)}, CLUSTER)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("last", "stages"),
    [
        ((GROUPS, PEERS), (USER_CODES, GROUPS, PEERS)),
        pytest.param((LENT,), (USER_SPACES, USER_CODES, GROUPS, PEERS, COLLABORATIVE, SAMPLES, LIFTS, LENT), marks=pytest.mark.slow),
    ],
    ids=["groups and peers", "all"],
)
def test_stages_in_place_and_on_ray_give_the_same_artifacts_under_the_same_keys(tmp_path: Path, last: tuple[Stage, ...], stages: tuple[Stage, ...]) -> None:
    def built(name: str, shared: tuple[Stage, ...]) -> dict[str, Artifact]:
        settings, store = borrowing_world.publish(tmp_path / name)
        with work.in_place():
            for stage in shared:
                ensure(stage, settings, store)
        for stage in last:
            ensure(stage, settings, store, build_inputs=True)
        found = {stage.name: find(stage, settings, store) for stage in stages}
        return {stage: artifact for stage, artifact in found.items() if artifact is not None}

    shared = () if USER_SPACES in stages else (USER_SPACES,)
    with work.in_place():
        here = built("here", shared)
    there = built("there", shared)
    assert list(here) == list(there) == [stage.name for stage in stages]
    for stage, artifact in here.items():
        assert (artifact.key, artifact.content_hash) == (there[stage].key, there[stage].content_hash), stage
        assert told(artifact) == told(there[stage]), stage


def told(artifact: Artifact) -> dict[str, Any]:
    return {name: artifact.manifest[name] for name in ("rows", "info", "seed", "config")}
