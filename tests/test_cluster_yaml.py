"""cluster.yaml as `ray up` reads it: filled up with Ray's defaults and validated by Ray's own code; and the pools that configs name."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from longtail.config import Config, load
from longtail.settings import Compute, Settings
from pipelines.cluster import pool_resources

ROOT = Path(__file__).resolve().parent.parent
POOLS = {"profile", "embed", "train", "serve"}
SPOT = {"cpu_worker", "profile_worker", "embed_worker"}


def read() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return config


def commands(config: dict[str, Any]) -> list[str]:
    lists = [value for key, value in config.items() if key.endswith("_commands")]
    lists += [value for node in config["available_node_types"].values() for key, value in node.items() if key.endswith("_commands")]
    return [command for commands_ in lists for command in commands_]


def pools(node: dict[str, Any]) -> set[str]:
    """The pools that a node type belongs to."""
    return {name.removeprefix("pool_") for name in node["resources"] if name.startswith("pool_")}


def computes(settings: Settings, name: str = "") -> dict[str, Compute]:
    """Every Compute of a config, by its section."""
    found = {}
    for field in type(settings).model_fields:
        value = getattr(settings, field)
        if isinstance(value, Compute):
            found[name] = value
        elif isinstance(value, Settings):
            found |= computes(value, f"{name}.{field}".lstrip("."))
    return found


def asked(config: Config) -> dict[str, str]:
    """The pool that each section of a config names."""
    named = {section: compute.pool for section, compute in computes(config).items()} | {"serve": config.serve.pool}
    return {section: pool for section, pool in named.items() if pool is not None}


def test_ray_accepts_it() -> None:
    validate_config(prepare_config(read()))


def test_ray_refuses_a_misspelt_key() -> None:
    config = read()
    config["available_node_types"]["profile_worker"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(config))


def test_head_has_no_gpu_and_all_workers_scale_from_zero_without_keeping_each_other_out() -> None:
    config = prepare_config(read())
    nodes = config["available_node_types"]
    head = nodes.pop(config["head_node_type"])
    assert "GPU" not in head["resources"]
    assert not pools(head), "a stage's actors would run on the head"
    assert {"GPU" in node["resources"] for node in nodes.values()} == {True, False}
    assert all(node["min_workers"] == 0 < node["max_workers"] for node in nodes.values())
    assert sum(node["max_workers"] for node in nodes.values()) <= config["max_workers"]


def test_each_pool_is_one_type_of_gpu_node() -> None:
    nodes = read()["available_node_types"]
    assert {name: pools(node) for name, node in nodes.items() if pools(node)} == {f"{pool}_worker": {pool} for pool in POOLS}
    for pool in POOLS:
        node = nodes[f"{pool}_worker"]["resources"]
        assert node["GPU"] >= 1
        (share,) = pool_resources(pool).values()
        assert node[f"pool_{pool}"] >= share * max(node["CPU"] * 10, 100), "the pool's resource would run out before the CPUs do"


def test_what_must_stay_is_never_spot() -> None:
    market = {name: node["node_config"].get("InstanceMarketOptions") for name, node in read()["available_node_types"].items()}
    assert {name for name, options in market.items() if options == {"MarketType": "spot"}} == SPOT
    assert all(market[name] is None for name in market.keys() - SPOT)


def test_the_gpu_config_uses_the_pools_and_fits_into_their_nodes() -> None:
    config, nodes = load(ROOT / "pipelines/configs/gpu_cluster.toml"), read()["available_node_types"]
    assert asked(config) == {
        "profiles": "profile",
        "embeddings.user": "embed",
        "embeddings.item": "embed",
        "item_encoder": "train",
        "train": "train",
        "serve": "serve",
    }
    for section, compute in computes(config).items():
        if compute.pool is None:
            assert not compute.num_gpus, f"[{section}.compute] takes a GPU of any pool"
            continue
        node = nodes[f"{compute.pool}_worker"]
        assert compute.num_cpus <= node["resources"]["CPU"], section
        at_once = min(node["resources"]["CPU"] // compute.num_cpus, node["resources"]["GPU"] // compute.num_gpus)
        assert compute.num_actors <= node["max_workers"] * at_once, f"[{section}.compute] asks for more than the pool grows to"


def test_every_configs_pools_are_there() -> None:
    for path in sorted((ROOT / "pipelines" / "configs").glob("*.toml")):
        assert set(asked(load(path)).values()) <= POOLS, path.name


def test_setup_installs_files_that_exist() -> None:
    config = read()
    assert config["file_mounts"] == {"/home/ubuntu/longtail": "."}, "the commands below run in ~/longtail"
    calls = [match for command in commands(config) if (match := re.search(r"cd ~/longtail && .* (\S+/setup\.sh) \S+ (\S+)$", command))]
    assert {call[2] for call in calls} == {"requirements/cpu.lock", "requirements/gpu.lock"}
    for call in calls:
        assert (ROOT / call[1]).stat().st_mode & 0o111, call[1]
        assert (ROOT / call[2]).is_file(), call[2]


def test_gpu_nodes_install_the_gpu_lock_and_all_others_the_cpu_lock() -> None:
    config = prepare_config(read())
    for name, node in config["available_node_types"].items():
        # Ray merges setup_commands into the two lists below; a node type's own list replaces both.
        common = config["head_setup_commands" if name == config["head_node_type"] else "worker_setup_commands"]
        setup = node.get("worker_setup_commands", common)
        locks = re.findall(r"requirements/(\w+)\.lock", "\n".join(setup))
        assert locks == (["gpu"] if "GPU" in node["resources"] else ["cpu"]), name


def test_what_is_large_or_local_is_not_copied_to_nodes() -> None:
    excluded = {entry.rstrip("/") for entry in read()["rsync_exclude"]}
    runtime_env = yaml.safe_load((ROOT / "platform" / "runtime_env.yaml").read_text())
    assert set(runtime_env["excludes"]) <= excluded
