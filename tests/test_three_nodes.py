"""The whole line across three Ray nodes with addresses of their own, on an S3-compatible server, the project uploaded with the job and nowhere else."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from longtail.artifacts import Store
from pipelines.cluster import ROOT
from tests.s3_server import BUCKET, CREDENTIALS, s3_server
from tests.three_nodes import HOST, NODES, TOKEN, missing, three_nodes

SETTINGS = ("profiles.generator=deterministic", "tracking.backend=none", 'train.rankers=["base", "choirrec"]', "cluster.address=auto")
#: Stages whose result neither the number of nodes nor the order of their work may change.
DETERMINISTIC = ("logs", "profiles", "item_texts", "item_codes", "user_codes", "groups", "samples", "matches", "lent")


def flags(uri: str, *more: str) -> list[str]:
    return ["--config", "pipelines/configs/test.toml", "--out", uri, *(word for one in (*SETTINGS, *more) for word in ("--set", one))]


def hashes(store: Store) -> dict[str, str]:
    """By stage, the content of its one artifact."""
    from pyarrow.fs import FileSelector

    found = {}
    for entry in store.fs.get_file_info(FileSelector(store.root, recursive=True)):
        if entry.base_name == "manifest.json":
            with store.fs.open_input_stream(entry.path) as stream:
                manifest = json.loads(stream.read())
            found[str(manifest["stage"])] = str(manifest["content_hash"])
    return found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_the_whole_line_runs_across_three_nodes_with_nothing_of_the_project_on_them(tmp_path: Path) -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="lt3-", dir="/tmp") as short, s3_server(HOST_ALL) as end:
        end = end.replace(HOST_ALL, HOST)
        uri = f"s3://{BUCKET}/run?{end}"
        with three_nodes(Path(short), **CREDENTIALS, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false") as cluster:
            alone = subprocess.run([str(cluster.python), "-c", "import ray, longtail"], cwd="/", env=cluster.environment, capture_output=True, text=True)
            assert "No module named 'longtail'" in alone.stderr
            done = cluster.submit(ROOT, "python", "-m", "pipelines.full", *flags(uri), timeout_s=1200)
            log = os.environ.get("LONGTAIL_NODES_LOG")
            if log:
                Path(log).write_text(done.stdout + done.stderr)
            assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
            worked = who_worked(cluster.dashboard, cluster.environment)
        print("tasks by node:", worked)
        assert set(worked) == set(NODES.values()), "every node worked"
        across = hashes(Store.open(uri))
    local = tmp_path / "local"
    single = [sys.executable, "-m", "pipelines.full", *flags(str(local), "cluster.address=local")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}
    done = subprocess.run(single, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    here = hashes(Store.open(str(local)))
    assert set(across) == set(here)
    assert {"base", "choirrec", "evaluation"} <= set(across)
    assert {stage: across[stage] for stage in DETERMINISTIC} == {stage: here[stage] for stage in DETERMINISTIC}


HOST_ALL = "0.0.0.0"


def who_worked(dashboard: str, environment: dict[str, str]) -> Counter[str]:
    """Tasks and actors' calls that have ended, by the node's address."""
    ask = (
        "import json, sys; from ray.util.state import list_nodes, list_tasks\n"
        "nodes = {one.node_id: one.node_ip for one in list_nodes(address=sys.argv[1])}\n"
        "tasks = list_tasks(address=sys.argv[1], limit=10000, detail=True, raise_on_missing_output=False)\n"
        "print(json.dumps([nodes.get(one.node_id) for one in tasks if one.state == 'FINISHED']))\n"
    )
    told = subprocess.run([sys.executable, "-c", ask, dashboard], env={**environment, "RAY_AUTH_TOKEN": TOKEN}, capture_output=True, text=True, check=True)
    return Counter(address for address in json.loads(told.stdout.splitlines()[-1]) if address)
