"""cluster.yaml as `ray up` reads it: filled up with Ray's defaults and validated by Ray's own code."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from longtail.config import load

ROOT = Path(__file__).resolve().parent.parent


def read() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return config


def commands(config: dict[str, Any]) -> list[str]:
    lists = [value for key, value in config.items() if key.endswith("_commands")]
    lists += [value for node in config["available_node_types"].values() for key, value in node.items() if key.endswith("_commands")]
    return [command for commands_ in lists for command in commands_]


def test_ray_accepts_it() -> None:
    validate_config(prepare_config(read()))


def test_ray_refuses_a_misspelt_key() -> None:
    config = read()
    config["available_node_types"]["profile"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(config))


def test_head_has_no_gpu_and_all_kinds_of_worker_scale_from_zero() -> None:
    config = prepare_config(read())
    nodes = config["available_node_types"]
    head = nodes.pop(config["head_node_type"])
    assert "GPU" not in head["resources"]
    assert {"GPU" in node["resources"] for node in nodes.values()} == {True, False}
    assert all(node["min_workers"] == 0 < node["max_workers"] <= config["max_workers"] for node in nodes.values())


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


def test_every_pool_of_the_gpu_config_has_nodes_that_can_hold_what_it_asks_for() -> None:
    config = load(ROOT / "pipelines" / "configs" / "gpu_cluster.toml")
    nodes = read()["available_node_types"]
    computes = {"profiles": config.profiles.compute, "user": config.embeddings.user.compute, "item": config.embeddings.item.compute}
    computes |= {"item_encoder": config.item_encoder.compute, "train": config.train.compute}
    assert {one.pool for one in computes.values()} | {config.serve.pool} == {"profile", "embed", "train", "serve"}
    for name, one in computes.items():
        of_pool = [node for node in nodes.values() if f"pool_{one.pool}" in node["resources"]]
        a_node = of_pool[0]
        fit = min(a_node["resources"]["GPU"] // max(one.num_gpus, 1e-9), a_node["resources"]["CPU"] // max(one.num_cpus, 1e-9))
        assert fit * a_node["max_workers"] >= one.num_actors, name


def test_only_what_is_safe_to_lose_is_on_spot() -> None:
    spot = {name for name, node in read()["available_node_types"].items() if node["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}}
    assert spot == {"cpu_worker", "profile", "embed", "train"}
    assert load(ROOT / "pipelines" / "configs" / "gpu_cluster.toml").train.max_failures > 0


def test_a_pool_is_no_part_of_a_stages_key() -> None:
    before, after = (load(None, ["profiles.generator=deterministic", *more]) for more in ((), ("train.compute.pool=train", "codes.user.compute.pool=x")))
    assert before.train.key_fields() == after.train.key_fields()
    assert before.codes.user.key_fields() == after.codes.user.key_fields()
    assert after.train.compute.reserved_by_worker() == {"CPU": 1.0, "pool_train": 0.001}
