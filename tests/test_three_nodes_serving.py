"""Serving across three Ray nodes with addresses of their own: a replica on each behind one HAProxy, features in Redis, what is told known to all of them."""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import requests

from pipelines.cluster import ROOT
from serve_apps.client import RankClient
from tests import redis_server
from tests.s3_server import BUCKET, CREDENTIALS, s3_server
from tests.three_nodes import HOST, NODES, TOKEN, Cluster, flags, missing, three_nodes

PORT = 8123
SETTINGS = (
    *("profiles.generator=deterministic", "tracking.backend=none", 'train.rankers=["choirrec"]', "cluster.address=auto"),
    *("serve.feature_store=redis", "serve.host=0.0.0.0", f"serve.port={PORT}", "serve.num_replicas=3", "serve.num_cpus=0.6", "serve.told_wait_s=30"),
)


@contextmanager
def up(cluster: Cluster, words: list[str], log: Path) -> Iterator[RankClient]:
    """The application as a submitted job, for the length of a block; the client has its token."""
    command = cluster.submission("python", "-m", "serve_apps.up", *words, job=log.stem)
    with log.open("w") as said, subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=said, stderr=said) as job:
        try:
            limit = time.monotonic() + 300
            while not (token := re.search(r"^token +(\S+)$", log.read_text(), re.MULTILINE)) or "Ctrl-C ends it" not in log.read_text():
                assert job.poll() is None, log.read_text()[-6000:]
                assert time.monotonic() < limit, log.read_text()[-6000:]
                time.sleep(1)
            yield RankClient(f"http://{NODES['lt-head']}:{PORT}", token=token.group(1), timeout_s=60)
        finally:
            stop = [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", log.stem, "--address", cluster.dashboard]
            subprocess.run(stop, cwd=ROOT, env=cluster.environment, capture_output=True, timeout=120)


def nodes_of_replicas(cluster: Cluster) -> list[str]:
    """The addresses of the nodes that the rankers' replicas run on."""
    told = requests.get(f"{cluster.dashboard}/api/serve/applications/", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
    told.raise_for_status()
    replicas = told.json()["applications"]["longtail"]["deployments"]["Rankers"]["replicas"]
    return sorted(str(one["node_ip"]) for one in replicas if one["state"] == "RUNNING")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2400)
def test_replicas_on_three_nodes_share_their_features_and_what_they_are_told(tmp_path: Path) -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with (
        tempfile.TemporaryDirectory(prefix="lt3s-", dir="/tmp") as short,
        s3_server("0.0.0.0") as end,
        redis_server.running(tmp_path, "0.0.0.0") as local_redis,
    ):
        uri = f"s3://{BUCKET}/run?{end.replace('0.0.0.0', HOST)}"
        words = flags(uri, (*SETTINGS, f"serve.redis_url={local_redis.replace('127.0.0.1', HOST)}"))
        with three_nodes(Path(short), **CREDENTIALS, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false") as cluster:
            done = cluster.submit(ROOT, "python", "-m", "pipelines.publish", "--build", *words, timeout_s=1200)
            assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
            assert redis.Redis.from_url(local_redis).dbsize() > 10, "users' records lie in Redis"
            with up(cluster, words, tmp_path / "first.log") as client:
                assert nodes_of_replicas(cluster) == sorted(NODES.values())
                user, item = "nobody in the logs", "told on three nodes"
                told = client.put_item(item, {"title": "Organic oat drink", "price": 2.5})
                assert (told["seen_by"], told["replicas"]) == (3, 3)
                answers = answers_of_many(client, {"user_id": user, "item_ids": [item, "never heard of"]})
                assert {answer["items"][place]["basis"] for answer in answers for place in (0, 1)} == {"added", "none"}
                scores = {one["score"] for answer in answers for one in answer["items"] if one["item_id"] == item}
                assert len(scores) == 1, "every replica has the same codes of it"
            with up(cluster, words, tmp_path / "second.log") as client:
                (again,) = {one["score"] for one in client.rank({"user_id": user, "item_ids": [item, "never heard of"]})["items"] if one["item_id"] == item}
                assert again in scores, "what was told is there after a restart of everything"
    if os.environ.get("LONGTAIL_NODES_LOG"):
        Path(os.environ["LONGTAIL_NODES_LOG"]).write_text((tmp_path / "first.log").read_text() + (tmp_path / "second.log").read_text())


def answers_of_many(client: RankClient, body: dict[str, object], callers: int = 3, times: int = 8) -> list[dict[str, object]]:
    """Answers to callers that ask at the same time, so that HAProxy turns to all replicas."""
    found: list[dict[str, object]] = []

    def ask() -> None:
        found.extend(client.rank(body) for _ in range(times))

    threads = [threading.Thread(target=ask) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == callers * times
    return found
