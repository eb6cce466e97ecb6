"""A load generator for HTTP services: fixed numbers of requests as fast as they are answered, or arrivals at a given rate whatever the service does.

Raw HTTP/1.1 over kept connections, in a process of its own, so that it takes as little as possible of the cores that it shares with the service.
Run by bench.serve; reads a JSON order on stdin, writes its findings as one JSON line.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import uvloop

MAX_CONNECTIONS = 256


@dataclass
class Findings:
    """What a phase saw."""

    latencies_s: list[float] = field(default_factory=list)  # of answers with status 200, from the time that they were due
    statuses: Counter[str] = field(default_factory=Counter)
    with_retry_after: int = 0
    began: float = field(default_factory=time.perf_counter)
    turned_away: Counter[int] = field(default_factory=Counter)  # by the phase's second

    def told(self, seconds: float, cpu_s: float) -> dict[str, Any]:
        ordered = sorted(self.latencies_s)

        def quantile(share: float) -> float | None:
            return round(1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)], 3) if ordered else None

        return {
            "seconds": seconds,
            "num": sum(self.statuses.values()),
            "statuses": dict(self.statuses),
            "with_retry_after": self.with_retry_after,
            "turned_away_by_second": dict(sorted(self.turned_away.items())),
            "p50_ms": quantile(0.5),
            "p99_ms": quantile(0.99),
            "max_ms": quantile(1.0),
            "generator_cpu_share": round(cpu_s / seconds, 3),  # of one core
        }


class Connection:
    """One kept connection."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> tuple[str, bool]:
        """The status of the answer, and whether it names a time to come back; "lost" where the connection broke."""
        try:
            if self.writer is None or self.writer.is_closing():
                self.reader, self.writer = await asyncio.open_connection(self.host, self.port, limit=1 << 22)
            assert self.reader is not None
            self.writer.write(request)
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            if length:
                await self.reader.readexactly(int(length))
            else:  # chunked
                while (size := int((await self.reader.readline()).split(b";")[0], 16)) > 0:
                    await self.reader.readexactly(size + 2)
                await self.reader.readline()
        except (OSError, asyncio.IncompleteReadError, ValueError):
            self.close()
            return "lost", False
        if b"connection: close" in head:
            self.close()
        return head.split(b" ", 2)[1].decode(), b"retry-after:" in head

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


async def closed_loop(connections: list[Connection], requests: list[bytes], num: int) -> Findings:
    """`num` requests, each connection asking again as soon as it is answered."""
    found, left = Findings(), iter(range(num))

    async def one(connection: Connection) -> None:
        for number in left:
            began = time.perf_counter()
            record(found, *await connection.ask(requests[number % len(requests)]), began)

    await asyncio.gather(*map(one, connections))
    return found


async def open_loop(host: str, port: int, requests: list[bytes], rate: float, seconds: float, seed: int) -> Findings:
    """Arrivals at random times (Poisson), answered or not."""
    draw, found, idle, num_open = random.Random(seed), Findings(), deque[Connection](), 0
    tasks = set()
    start = time.perf_counter()
    due, number = start, 0

    async def one(request: bytes, due: float) -> None:
        nonlocal num_open
        if idle:
            connection = idle.pop()
        elif num_open < MAX_CONNECTIONS:
            connection = Connection(host, port)
            num_open += 1
        else:
            found.statuses["no connection left"] += 1
            return
        record(found, *await connection.ask(request), due)
        idle.append(connection)

    while (due := due + draw.expovariate(rate)) < start + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(one(requests[number % len(requests)], due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return found


def record(found: Findings, status: str, retry_after: bool, began: float) -> None:
    found.statuses[status] += 1
    found.with_retry_after += int(retry_after)
    if status == "200":
        found.latencies_s.append(time.perf_counter() - began)
    else:
        found.turned_away[int(began - found.began)] += 1


def http_request(host: str, path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def run(order: dict[str, Any]) -> dict[str, Any]:
    """One phase."""
    host, port = order["host"], order["port"]
    with open(order["bodies"], "rb") as lines:
        requests = [http_request(host, order["path"], line.strip()) for line in lines]
    cpu, began = time.process_time(), time.perf_counter()
    if "rate" in order:
        found = await open_loop(host, port, requests, order["rate"], order["for_s"], order.get("seed", 0))
    else:
        connections = [Connection(host, port) for _ in range(order["connections"])]
        found = await closed_loop(connections, requests, order["num"])
        for connection in connections:
            connection.close()
    return found.told(time.perf_counter() - began, time.process_time() - cpu)


def main() -> None:
    order = json.loads(sys.stdin.read())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(run(order))))


if __name__ == "__main__":
    main()
