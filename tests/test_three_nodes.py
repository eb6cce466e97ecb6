"""The whole line across three Ray nodes with addresses of their own, on an S3-compatible server, the project uploaded with the job and nowhere else."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import FileSelector, FileType

from longtail.artifacts import Store
from pipelines.cluster import ROOT
from tests.s3_server import BUCKET, CREDENTIALS, s3_server
from tests.three_nodes import HOST, NODES, TOKEN, flags, missing, three_nodes

SETTINGS = ("profiles.generator=deterministic", "tracking.backend=none", 'train.rankers=["base", "choirrec"]', "train.compute.num_actors=3")
#: Stages whose result neither the number of nodes nor the order of their work may change.
DETERMINISTIC = ("logs", "profiles", "item_texts", "item_codes", "user_codes", "groups", "samples", "matches", "lent")


def manifests(store: Store) -> dict[str, Any]:
    """By stage, the manifest of its one artifact."""
    found = {}
    for entry in store.fs.get_file_info(FileSelector(store.root, recursive=True)):
        if entry.base_name == "manifest.json":
            with store.fs.open_input_stream(entry.path) as stream:
                manifest = json.loads(stream.read())
            assert manifest["stage"] not in found
            found[str(manifest["stage"])] = manifest
    return found


def settled(store: Store) -> set[str]:
    """What lies beside the data of finished artifacts, by its last name."""
    stages = [entry for entry in store.fs.get_file_info(FileSelector(store.root)) if entry.type == FileType.Directory]
    keys = [entry for stage in stages for entry in store.fs.get_file_info(FileSelector(stage.path)) if entry.type == FileType.Directory]
    return {entry.base_name for key in keys for entry in store.fs.get_file_info(FileSelector(key.path)) if entry.type == FileType.File}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2400)
def test_the_whole_line_runs_across_three_nodes_with_nothing_of_the_project_on_them(tmp_path: Path) -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="lt3-", dir="/tmp") as short, s3_server("0.0.0.0") as end:
        uri = f"s3://{BUCKET}/run?{end.replace('0.0.0.0', HOST)}"
        with three_nodes(Path(short), **CREDENTIALS, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false") as cluster:
            alone = subprocess.run([str(cluster.python), "-c", "import ray, longtail"], cwd="/", env=cluster.environment, capture_output=True, text=True)
            assert "No module named 'longtail'" in alone.stderr
            done = cluster.submit(ROOT, "python", "-m", "pipelines.full", *flags(uri, (*SETTINGS, "cluster.address=auto")), timeout_s=1800)
            log = os.environ.get("LONGTAIL_NODES_LOG")
            if log:
                Path(log).write_text(done.stdout + done.stderr)
            assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
            tasks = finished_tasks(cluster.dashboard, cluster.environment)
            store = Store.open(uri)
            across = manifests(store)
            assert settled(store) == {"manifest.json"}, "neither claims nor announcements are left"
            told = where_table(tasks, across)
    print(told)
    if log:
        with open(log, "a") as file:
            file.write(told)
    assert {task["node"] for task in tasks} == set(NODES.values()), "every node worked"
    assert len({task["node"] for task in tasks if task["name"].startswith("RayTrainWorker")}) == 3, "a ranker has a worker on each node"
    local = tmp_path / "local"
    single = [sys.executable, "-m", "pipelines.full", *flags(str(local), (*SETTINGS, "cluster.address=local", "cluster.num_cpus=3"))]
    # Ray gives a submitted driver one thread for its sums, and their rounding depends on it.
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(single, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    here = manifests(Store.open(str(local)))
    assert set(across) == set(here)
    assert {"base", "choirrec", "evaluation"} <= set(across)
    same = {stage: across[stage]["content_hash"] == here[stage]["content_hash"] for stage in across}
    print("content as of one node:", ", ".join(f"{stage}: {'equal' if equal else 'other'}" for stage, equal in same.items()))
    assert [stage for stage in DETERMINISTIC if not same[stage]] == []


def finished_tasks(dashboard: str, environment: dict[str, str]) -> list[dict[str, Any]]:
    """Tasks and actors' calls that have ended: name, begin in seconds and the node's address."""
    ask = (
        "import json, sys; from ray.util.state import list_nodes, list_tasks\n"
        "nodes = {one.node_id: one.node_ip for one in list_nodes(address=sys.argv[1])}\n"
        "tasks = list_tasks(address=sys.argv[1], filters=[('state', '=', 'FINISHED')], limit=10000, detail=True, raise_on_missing_output=False)\n"
        "told = [{'name': one.name, 'begin': (one.start_time_ms or 0) / 1000, 'node': nodes.get(one.node_id)} for one in tasks]\n"
        "print(json.dumps([one for one in told if one['node']]))\n"
    )
    told = subprocess.run([sys.executable, "-c", ask, dashboard], env={**environment, "RAY_AUTH_TOKEN": TOKEN}, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    found: list[dict[str, Any]] = json.loads(told.stdout.splitlines()[-1])
    return found


def where_table(tasks: list[dict[str, Any]], made: dict[str, Any]) -> str:
    """Tasks by stage and node: a task is of the stage that was being built when it began."""
    lines = [f"{'stage':<14} {'seconds':>8} " + " ".join(f"{name + ' ' + address:>20}" for name, address in NODES.items())]
    for stage, manifest in sorted(made.items(), key=lambda one: one[1]["finished"]):
        ended = datetime.fromisoformat(manifest["finished"]).timestamp()
        counts = Counter(task["node"] for task in tasks if ended - manifest["seconds"] <= task["begin"] < ended)
        lines.append(f"{stage:<14} {manifest['seconds']:>8.1f} " + " ".join(f"{counts[address]:>20}" for address in NODES.values()))
    total = Counter(task["node"] for task in tasks)
    lines.append(f"{'all':<14} {'':>8} " + " ".join(f"{total[address]:>20}" for address in NODES.values()))
    return "\n" + "\n".join(lines) + "\n"
