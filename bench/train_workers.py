"""Two workers of one thread beside one: processes that train under DDP as the stage's workers do, kept from round to round."""

import multiprocessing
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Self

import torch
import torch.distributed as dist

from bench import train_rows
from longtail.gradients import distributed
from longtail.rankers.factory import build_ranker
from longtail.rankers.ranker import Ranker
from longtail.rankers.settings import RankersSettings
from longtail.sample_files import ALONE, GlobalBatch, SampleFiles, Workers
from longtail.training import TrainSettings
from longtail.training_loop import train_ranker

SIZE = 2


@dataclass(frozen=True)
class Some(SampleFiles):
    """The first steps of an epoch alone."""

    num_steps: int = 0

    def epoch(self, *args: Any) -> Iterator[GlobalBatch]:
        for _, share in zip(range(self.num_steps), super().epoch(*args)):
            yield share


class Pair:
    """Two processes; `one` trains in the first alone, `apart` in each for itself, `two` in both; each has the settings' batch size to itself."""

    def __init__(self, world: train_rows.World, files: SampleFiles, settings: TrainSettings, num_steps: int) -> None:
        self.num_steps, self.batch_size = num_steps, settings.batch_size
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        spawn = multiprocessing.get_context("spawn")
        ends = [spawn.Pipe() for _ in range(SIZE)]
        self.pipes: list[Connection] = [here for here, _ in ends]
        args = [(rank, port, there, world.catalogue(), Some(**vars(files), num_steps=num_steps), settings) for rank, (_, there) in enumerate(ends)]
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for a worker of one CPU
        self.processes = [spawn.Process(target=_work, args=one, daemon=True) for one in args]
        for process in self.processes:
            process.start()
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes:
            with suppress(BrokenPipeError):
                pipe.send(None)
        for process in self.processes:
            process.join(timeout=30)
            process.kill()

    def one(self) -> None:
        """Train in one process."""
        self._run(self.pipes[:1], 1)

    def apart(self) -> None:
        """Train in both, which know nothing of each other: what the machine's memory allows two workers at most."""
        self._run(self.pipes, 1)

    def two(self) -> None:
        """Train in both, under DDP."""
        self._run(self.pipes, SIZE)

    def rows(self, name: str) -> int:
        """Rows of a run, by its method's name."""
        return self.num_steps * self.batch_size * (1 if name == "one" else SIZE)

    def _run(self, pipes: list[Connection], size: int) -> None:
        for pipe in pipes:
            pipe.send(size)
        for pipe in pipes:
            pipe.recv()


def _work(rank: int, port: int, pipe: Connection, catalogue: Any, files: Some, settings: TrainSettings) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=SIZE)
    rows = files.first_batch()

    def fresh() -> Ranker:
        torch.manual_seed(0)
        ranker = build_ranker("base", files.spec, catalogue, RankersSettings())
        ranker.fit_statistics(rows)
        return ranker

    device = torch.device("cpu")
    while (size := pipe.recv()) is not None:
        workers = ALONE if size == 1 else Workers(rank, size)
        global_batch = settings.model_copy(update={"batch_size": settings.batch_size * size})
        wrap = None if size == 1 else lambda ranker, apart: distributed(ranker, apart, device)
        train_ranker(fresh(), files, global_batch, seed=0, workers=workers, fitted=True, wrap=wrap)
        pipe.send(None)
    dist.destroy_process_group()
