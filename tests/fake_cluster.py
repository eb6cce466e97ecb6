"""A cluster that grows and shrinks on this machine: Ray's autoscaler and its fake node provider, whose nodes are further raylets here.

Its node types are cluster.yaml's: names, pools and limits as they stand there, CPUs scaled down, GPUs left out. `ray.cluster_utils.AutoscalingCluster` does the
same, but begins and ends with `ray stop --force`, which would end every other Ray of the machine, and its template is not part of Ray's wheel (2.60).
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

ROOT = Path(__file__).resolve().parent.parent
IDLE_S = 12.0  # Ray's own bookkeeping of what is idle lags by some seconds

WATCH = """
import json, sys, time
from ray.autoscaler.v2.sdk import get_cluster_status
status = get_cluster_status(sys.argv[1])
nodes = status.active_nodes + status.idle_nodes
print(json.dumps({"nodes": {node.node_id: node.ray_node_type_name for node in nodes}, "pending": len(status.pending_launches) + len(status.pending_nodes)}))
"""


def node_types(cpus: int) -> dict[str, Any]:
    """cluster.yaml's workers with `cpus` CPUs each."""
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    types.pop("head")
    pools = {name: {key: value for key, value in node["resources"].items() if key.startswith("pool_")} for name, node in types.items()}
    limits = {name: {key: node[key] for key in ("min_workers", "max_workers")} for name, node in types.items()}
    return {name: {"resources": {"CPU": cpus} | pools[name], "node_config": {}, **limits[name]} for name in types}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class FakeCluster:
    """A head without room for a pool's actors, and whatever the autoscaler starts beside it."""

    def __init__(self, folder: Path, head_cpus: int, cpus: int) -> None:
        self.port = free_port()
        self.address = f"{get_node_ip_address()}:{self.port}"
        self._temp = folder
        head = {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0}
        config = {
            "cluster_name": "fake",
            "max_workers": 4,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": IDLE_S / 60,
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "gcs_address": self.address,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "launch_multiple": True,
            },
            "available_node_types": node_types(cpus) | {FAKE_HEAD_NODE_TYPE: head},
            "head_node_type": FAKE_HEAD_NODE_TYPE,
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
            "cluster_synced_files": [],
        }
        steps = ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray", "initialization")
        config |= {f"{step}_commands": [] for step in steps}
        self._config = folder / "autoscaler.json"
        self._config.write_text(json.dumps(config))
        self._head_cpus = head_cpus
        self._head: subprocess.Popen[bytes] | None = None
        self.environment = os.environ | {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
            "RAY_AUTH_MODE": "disabled",
            "RAY_ADDRESS": self.address,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")]),
            "PYTHONWARNINGS": "ignore",
        }

    def start(self) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        flags = {
            "port": self.port,
            "autoscaling-config": self._config,
            "temp-dir": self._temp,
            "num-cpus": self._head_cpus,
            "object-store-memory": 256 * 2**20,
            "include-dashboard": "false",
            "dashboard-agent-listen-port": free_port(),
            "dashboard-agent-grpc-port": free_port(),
            "metrics-export-port": free_port(),
            "ray-client-server-port": free_port(),
            "disable-usage-stats": None,
            "block": None,
        }
        command = [ray, "start", "--head", *(f"--{name}" if value is None else f"--{name}={value}" for name, value in flags.items())]
        with open(self._temp / "head.log", "wb") as log:
            self._head = subprocess.Popen(command, env=self.environment, cwd=self._temp, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.wait(lambda nodes: len(nodes) == 1, "the head answers", 180)

    def nodes(self) -> dict[str, str]:
        """The nodes that are up, by id: their type, as the autoscaler sees them."""
        told = subprocess.run([sys.executable, "-c", WATCH, self.address], env=self.environment, capture_output=True, text=True, timeout=180)
        return dict(json.loads(told.stdout.splitlines()[-1])["nodes"]) if told.returncode == 0 else {}

    def wait(self, wanted: Callable[[dict[str, str]], bool], what: str, timeout_s: float) -> dict[str, str]:
        """The nodes, once they are as wanted."""
        end = time.monotonic() + timeout_s
        while not wanted(nodes := self.nodes()):
            assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}; there are {sorted(nodes.values())}"
            time.sleep(1)
        return nodes

    def processes(self) -> list[psutil.Process]:
        """The head's and every node's."""
        if self._head is None:
            return []
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid == self._head.pid or str(self._temp) in " ".join(process.cmdline()) or process.environ().get("RAY_ADDRESS") == self.address:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def lose(self, node_type: str) -> int:
        """End all nodes of a type at once, as a cloud does that takes spot nodes back; returns how many there were."""
        lost = 0
        for process in self.processes():
            try:
                environment = process.environ()
                if process.name() == "raylet" and environment.get("RAY_NODE_TYPE_NAME") == node_type:
                    children = process.children(recursive=True)
                    for one in [process, *children]:
                        one.send_signal(signal.SIGKILL)
                    lost += 1
            except psutil.NoSuchProcess:
                continue
        return lost

    def stop(self) -> None:
        for ask in (signal.SIGTERM, signal.SIGKILL):
            mine = self.processes()
            for process in mine:
                try:
                    process.send_signal(ask)
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(mine, timeout=10)
        if self._head is not None:
            self._head.wait(timeout=10)


@contextmanager
def fake_cluster(folder: Path, head_cpus: int, cpus: int) -> Iterator[FakeCluster]:
    """A fake cluster for the length of a block; `folder` must be short, Ray's sockets lie below it."""
    cluster = FakeCluster(folder, head_cpus, cpus)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
