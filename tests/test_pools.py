"""Pools of nodes: what a stage asks of Ray, what is refused, and that no artifact's key knows of them."""

from pathlib import Path
from typing import Any

import pytest
import ray
from pydantic import ValidationError

from longtail.config import ClusterSettings, Config, load, parse
from longtail.serving import ServeSettings
from longtail.settings import Compute
from pipelines import blocks, work
from pipelines.cluster import pool_resources
from pipelines.full import stages
from serve_apps.ranking import application, served_run
from tests import small_run
from tests.test_cluster_yaml import asked, computes

OWN, JOINED = ClusterSettings(), ClusterSettings(address="auto")


class Here:
    def say(self) -> str:
        return "here"


def everywhere(config: Config, pool: str) -> Config:
    """The config with every section in one pool."""
    raw = config.model_dump()
    for section in computes(config):
        at = raw
        for name in section.split("."):
            at = at[name]
        at["compute"]["pool"] = pool
    raw["serve"]["pool"] = pool
    return parse(raw, "test")


def test_no_key_knows_of_pools() -> None:
    plain = load(None)
    pooled = everywhere(plain, "far")
    assert len(asked(pooled)) > 8
    assert asked(plain) == {}
    line = stages(plain)
    assert len(line) > 20
    for stage in line:
        assert stage.settings(pooled) == stage.settings(plain), stage.name


def test_an_actor_asks_for_its_pool_and_without_one_for_nothing_more() -> None:
    assert pool_resources(None) == {}
    assert blocks.options(Compute(num_cpus=2)) == {"num_cpus": 2, "num_gpus": 0, "resources": {}}
    assert blocks.options(Compute(pool="embed"))["resources"] == pool_resources("embed")
    assert blocks.train_resources(Compute(num_cpus=2)) == {"CPU": 2}
    assert blocks.train_resources(Compute(num_cpus=2, num_gpus=1, pool="train")) == {"CPU": 2, "GPU": 1} | pool_resources("train")


@pytest.mark.parametrize("name", ["", "Embed", "a-b", "1st"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    for settings in (Compute, ServeSettings):
        with pytest.raises(ValidationError, match="pool"):
            settings.model_validate({"pool": name})


@pytest.mark.ray
def test_a_pool_that_this_ray_lacks_is_refused(ray_cluster: None) -> None:
    jobs: Any = {"samples": Compute(num_cpus=0.5, pool="far")}
    with pytest.raises(ValueError, match=r"\[samples.compute\] pool = 'far': no node of this Ray offers the resource pool_far. Leave pool out"):
        work.pool(dict, (), "get", [("a",)], jobs, OWN)
    with work.in_place():
        assert work.pool(dict, (), "get", [("a",)], jobs, OWN) == [None], "reserves nothing"


@pytest.mark.ray
def test_a_cluster_that_may_grow_is_waited_for(ray_cluster: None, caplog: pytest.LogCaptureFixture) -> None:
    blocks.check_room({"train": Compute(pool="far")}, JOINED)
    assert "[train.compute] pool = 'far': no node of it is up. Waiting" in caplog.text


@pytest.mark.ray
def test_an_actor_runs_nowhere_but_in_its_pool(ray_cluster: None) -> None:
    remote: Any = ray.remote(Here)
    far, anywhere = (remote.options(**blocks.options(Compute(num_cpus=0.1, pool=pool))).remote() for pool in ("far", None))
    assert ray.get(anywhere.say.remote(), timeout=60) == "here"
    done, _ = ray.wait([far.say.remote()], timeout=1)
    assert not done
    ray.kill(far)


def test_all_of_serving_stands_in_its_pool(tmp_path: Path) -> None:
    config = small_run.publish(tmp_path / "run")
    for pool in (None, "serve"):
        wanted = config.model_copy(update={"serve": config.serve.model_copy(update={"pool": pool})})
        app: Any = application(served_run(wanted, small_store(wanted)))
        found = {}
        waiting = [app]
        while waiting:
            bound = waiting.pop()._bound_deployment
            found[bound.name] = bound.ray_actor_options.get("resources") or {}
            waiting += [argument for argument in bound.init_args if hasattr(argument, "_bound_deployment")]
        assert found == dict.fromkeys(("Rankers", "Encoder", "Console"), pool_resources(pool))


def small_store(config: Config) -> Any:
    from longtail.artifacts import Store

    return Store.open(config.run.uri)
