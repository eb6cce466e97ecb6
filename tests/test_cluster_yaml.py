"""cluster.yaml as `ray up` reads it: filled up with Ray's defaults and validated by Ray's own code."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

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
    config["available_node_types"]["gpu_worker"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(config))


def test_head_has_no_gpu_and_both_kinds_of_worker_scale_from_zero() -> None:
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
