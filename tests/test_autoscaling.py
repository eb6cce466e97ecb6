"""A pipeline on a cluster that grows: nodes of the pools that it asks for come, are replaced when they are lost in the middle, and go again."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longtail.artifacts import Store
from longtail.config import load
from pipelines.embeddings import ITEM_VECTORS
from pipelines.full import stages
from pipelines.stage import find
from tests.fake_cluster import ROOT, FakeCluster, fake_cluster

CONFIG = ROOT / "pipelines/configs/test.toml"
EMBED, TRAIN = "embed_worker", "train_worker"


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with (
        tempfile.TemporaryDirectory(prefix="fk-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        fake_cluster(Path(folder), head_cpus=1, cpus=1) as started,
    ):
        yield started


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_nodes_come_with_the_work_are_replaced_when_lost_and_go_again(cluster: FakeCluster, tmp_path: Path) -> None:
    plain = [f"run.uri={tmp_path / 'run'}", "profiles.generator=deterministic", 'train.rankers=["base"]', "embeddings.item.compute.batch_size=2"]
    pools = {"embeddings.user": "embed", "embeddings.item": "embed", "item_encoder": "train", "train": "train"}
    pooled = [*plain, f"cluster.address={cluster.address}", *(f"{section}.compute.pool={pool}" for section, pool in pools.items())]
    flags = [flag for setting in pooled for flag in ("--set", setting)]
    assert len(cluster.nodes()) == 1, "a cluster begins with its head alone"

    seen: dict[str, str] = {}  # every node that was ever there, by id
    lost: set[str] = set()
    log = tmp_path / "log"
    with open(log, "wb") as out:
        driver = subprocess.Popen(
            [sys.executable, "-m", "pipelines.full", "--config", str(CONFIG), *flags],
            env=cluster.environment,
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            while driver.poll() is None:
                seen |= cluster.nodes()
                if not lost and len(list((tmp_path / "run" / ITEM_VECTORS.name).rglob("part-*.parquet"))) > 5:
                    lost = {node for node, kind in seen.items() if kind == EMBED}
                    assert cluster.lose(EMBED) == 1
                time.sleep(0.2)
        finally:
            driver.kill()
            driver.wait()
    assert driver.returncode == 0, log.read_text()[-4000:]

    assert lost, "no embedding node was up while items were embedded"
    assert {node for node, kind in seen.items() if kind == EMBED} > lost, "nobody took the lost node's place"
    assert TRAIN in seen.values()
    assert not set(seen.values()) & {"profile_worker", "serve_worker"}, "nobody asked for these"

    config, store = load(CONFIG, plain), Store.open(str(tmp_path / "run"))
    assert all(find(stage, config, store) for stage in stages(config)), "a config without pools finds the same artifacts"
    cluster.wait(lambda nodes: len(nodes) == 1, "the workers are gone", 240)
