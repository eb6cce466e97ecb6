"""The speed and the size of single parts on this machine, each run alone: encoders, k-means, exact search, table updates, the language model, the logs' memory.

What runs on CPUs is timed in CPU seconds of this process: what a machine takes that does nothing else. The language model is timed by the clock.
Reads nothing, writes nothing; pipelines.calibration puts them together, pipelines.plan_check holds predictions against them.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from longtail.capacity import RateName
from longtail.capacity_plan import passes
from longtail.codes import CodebookSettings, fit_here
from longtail.config import Config
from longtail.embeddings import EncoderSettings, TextEncoder
from longtail.logs import build_logs
from longtail.peers import nearest
from longtail.profiles import SYSTEM_PROMPT
from longtail.token_count import token_counter
from longtail.training import TrainSettings

TABLE_ROWS = 2_000_000


@dataclass(frozen=True)
class Seen:
    """What a part took for so many units of its work."""

    units: float
    seconds: float  # of one device or CPU
    size: float = 0.0  # bytes
    wall_s: float | None = None  # of the stage's manifest, where there is one


def line_through(seen: Sequence[Seen]) -> tuple[float, float]:
    """Start and seconds a unit of what was seen at two sizes; without a start where they would make it negative."""
    small, large = sorted(seen, key=lambda one: one.units)
    if large.units == small.units:
        return 0.0, large.seconds / large.units
    per_unit = (large.seconds - small.seconds) / (large.units - small.units)
    start = small.seconds - per_unit * small.units
    return (start, per_unit) if start >= 0 and per_unit > 0 else (0.0, large.seconds / large.units)


def kmeans(rows: int, dim: int, size: int, stages: int = 2, iterations: int = 5) -> Seen:
    """The core's fit on random rows, on one CPU; units are floating point operations as the plan counts them."""
    vectors = np.random.default_rng(0).standard_normal((rows, dim), dtype=np.float32)
    with threadpool_limits(1):
        began = time.process_time()
        fit = fit_here(vectors, CodebookSettings(num_stages=stages, codebook_size=size, iterations=iterations), seed=0)
        seconds = time.process_time() - began
    made = sum(one + 1 for one in fit.iterations_S)
    assert made <= passes(stages, iterations)
    return Seen(2.0 * rows * size * dim * made, seconds)


def neighbours(rows: int, dim: int) -> Seen:
    """Exact search among random rows, on one CPU; units are floating point operations."""
    import faiss

    vectors, everyone = np.random.default_rng(0).standard_normal((rows, dim), dtype=np.float32), np.ones(rows, bool)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        began = time.process_time()
        nearest(vectors, everyone, everyone, 20)
        return Seen(2.0 * rows * rows * dim, time.process_time() - began)
    finally:
        faiss.omp_set_num_threads(threads)


def texts(settings: EncoderSettings, of_texts: Sequence[str], sizes: Sequence[int]) -> list[Seen]:
    """An encoder on some of the texts, as many as `sizes` say; its start is left out. Seconds of one device: a GPU, or the CPUs of its threads."""
    gpu, encoder = settings.compute.num_gpus > 0, TextEncoder(settings)
    clock, found = (time.perf_counter if gpu else time.process_time), []
    distinct = list(dict.fromkeys(of_texts))
    encoder.encode(distinct[: settings.compute.forward_size])
    for size in sizes:
        began = clock()
        encoder.encode(distinct[:size])
        found.append(Seen(float(min(size, len(distinct))), (clock() - began) / (1 if gpu else settings.compute.threads)))
    return found


def table_bytes_per_s(train: TrainSettings, rows: int = TABLE_ROWS, dim: int = 16) -> float:
    """Bytes a second that steps of an ID table move, as the plan counts them: weights, gradient and optimiser's state, each read and written once."""
    torch.set_num_threads(1)
    table = torch.nn.Embedding(rows, dim)
    # As longtail.training_loop makes them.
    stepper = torch.optim.Adam(table.parameters(), fused=True) if train.optimizer == "adam" else torch.optim.Adagrad(table.parameters())
    picked, taken = torch.randint(rows, (1024,)), []
    for _ in range(4):
        began = time.process_time()
        stepper.zero_grad(set_to_none=True)
        table(picked).sum().backward()
        torch.nn.utils.clip_grad_norm_(table.parameters(), train.max_grad_norm)
        stepper.step()
        taken.append(time.process_time() - began)
    return 2 * (2 + optimizer_copies(train)) * rows * dim * 4 / statistics.median(taken[1:])


def optimizer_copies(train: TrainSettings) -> int:
    """Numbers that the optimiser keeps for each of the ranker's."""
    return 2 if train.optimizer == "adam" else 1


def held_bytes(held: Any) -> float:
    """Bytes of the arrays and tables that an object of dataclasses, sequences and mappings holds, each once."""
    met: set[int] = set()

    def of(one: Any) -> float:
        if id(one) in met:
            return 0.0
        met.add(id(one))
        if isinstance(one, np.ndarray | pa.Array | pa.ChunkedArray | pa.Table):
            return float(one.nbytes)
        if is_dataclass(one):
            return sum(of(getattr(one, part.name)) for part in fields(one))
        if isinstance(one, Mapping):
            return sum(of(part) for part in one.values())
        return sum(of(part) for part in one) if isinstance(one, tuple | list) else 0.0

    return of(held)


def peak_of_logs(config: Config) -> Seen:
    """Events of a world and the peak memory of the process that builds its logs."""
    logs = build_logs(config.logs, config.run.seed)
    with open("/proc/self/status") as status:
        peak_kb = next(int(row.split()[1]) for row in status if row.startswith("VmHWM"))
    return Seen(float(logs.info.num_events), 0.0, peak_kb * 1024)


def language_model(config: Config, facts: Sequence[str]) -> dict[RateName, float]:
    """Prompt and answer tokens a second of the config's model: profiles of the same users, answers of one token and of many."""
    from actors.profile import Prompt, VllmEngine

    engine = VllmEngine(config.profiles)
    prompts = [Prompt(text, "[a-z ]{200,400}") for text in facts]
    engine.answer(prompts[:2])  # the shared prompt is in the cache
    took = {}
    for tokens in (1, config.profiles.max_output_tokens):
        began = time.monotonic()
        answers = engine.answer([Prompt(f"{tokens}. {one.facts}", one.pattern) for one in prompts], tokens)  # none of it was computed before
        took[tokens] = time.monotonic() - began, answers
    shared = shared_tokens(config)
    (short_s, short), (long_s, long) = took.values()
    fresh = sum(max(1, one.prompt_tokens - shared) for one in short)
    more = sum(one.output_tokens for one in long) - sum(one.output_tokens for one in short)
    return {"prefill_tokens_per_s": fresh / short_s, "decode_tokens_per_s": more / max(long_s - short_s, 1e-3)}


def shared_tokens(config: Config) -> int:
    """Tokens of the shared prompt that the prefix cache keeps: whole blocks."""
    return int(token_counter(config.profiles.model)([SYSTEM_PROMPT])[0]) // config.profiles.compute.kv_block_size * config.profiles.compute.kv_block_size
