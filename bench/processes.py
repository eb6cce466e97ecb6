"""What the processes of a service take of the machine: CPU seconds by role, and memory.

CPU time is the bench's main yardstick: it hardly moves with what else the machine does, where wall time does.
Reads /proc through psutil; writes nothing.
"""

from collections import defaultdict
from collections.abc import Mapping

import psutil

ROLES = {  # by how a process's command line begins; Ray names its workers by the actor that they hold
    "ray::ServeReplica:longtail:Rankers": "replica",
    "ray::ServeReplica:longtail:Encoder": "encoder",
    "ray::ProxyActor": "proxy",
    "ray::HAProxyManager": "proxy_manager",
    "ray::ServeController": "controller",
}
PROGRAMS = {"haproxy": "proxy", "raylet": "raylet", "gcs_server": "gcs", "bench.peer_service": "peer"}


def role(command: list[str]) -> str | None:
    """What a process does for a service, by its command line; None for what is no part of one."""
    line = " ".join(command)
    for start, name in ROLES.items():
        if line.startswith(start):
            return name
    if line.startswith("ray::"):
        return "other_workers"
    for program, name in PROGRAMS.items():
        if command and program in (command[0].rpartition("/")[2], *command[1:3]):
            return name
    return "dashboard" if "/dashboard/" in line else None


def below() -> list[psutil.Process]:
    """All processes below this one: Ray is a child of whoever started it here."""
    return psutil.Process().children(recursive=True)


def cpu_s() -> dict[str, float]:
    """CPU seconds so far by role."""
    taken: dict[str, float] = defaultdict(float)
    for process in below():
        try:
            name = role(process.cmdline())
            times = process.cpu_times()
        except psutil.Error:
            continue
        if name is not None:
            taken[name] += times.user + times.system
    return dict(taken)


def cpu_between(before: Mapping[str, float], after: Mapping[str, float], num: int) -> dict[str, float]:
    """Milliseconds of CPU by role for each of `num` requests; roles that took next to nothing are left out."""
    taken = {name: 1000 * (after[name] - before.get(name, 0.0)) / num for name in after}
    return {name: round(value, 3) for name, value in sorted(taken.items(), key=lambda entry: -entry[1]) if value >= 0.01}


def memory_bytes() -> int:
    """Resident memory of all processes below this one."""
    total = 0
    for process in below():
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total
