"""Profile actors: one vLLM engine each, fed with prompts by Ray Data.

`ProfileActor` maps a block of facts to a block of profiles; it looks prompts up in the cache first and loads its engine when the first is not there,
so that a run in which nobody changed starts none.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from actors import metrics
from actors.timing import with_span, with_times
from longtail.packaged_models import resolve
from longtail.profile_cache import Answer, ProfileCache
from longtail.profile_form import answer_pattern
from longtail.profile_text import REASONS, Fields, KnownNames, RefusedError, check, fallback, parse
from longtail.profiles import SYSTEM_PROMPT, ProfilesSettings, decoding, prompt_hash
from longtail.schema import PROFILES

logger = logging.getLogger(__name__)

OUTCOMES = ("llm", *(f"fallback:{reason}" for reason in REASONS))


@dataclass(frozen=True)
class Prompt:
    """What differs between users: the facts as text, and the pattern that the answer is decoded under."""

    facts: str
    pattern: str


class Engine(Protocol):
    """What writes answers, one for each prompt, in order."""

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]: ...


class VllmEngine:
    """A vLLM engine with prefix caching, in this process on CPU.

    Raises:
        ValueError: prompt and answer do not fit profiles.max_model_len.
    """

    def __init__(self, settings: ProfilesSettings) -> None:
        compute = settings.compute
        arguments: dict[str, Any] = {"tensor_parallel_size": compute.tensor_parallel_size, "gpu_memory_utilization": compute.gpu_memory_utilization}
        if compute.num_gpus == 0:
            # In process the engine starts in 5 s instead of 20 and takes 3.7 GB instead of 5.4; by default every engine of a node would bind the same core.
            os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(compute.threads)}
            # Compiling takes 100 s at every start and saves about 0.1 s a prompt.
            arguments = {
                "enforce_eager": True,
                "kv_cache_memory_bytes": int(compute.kv_cache_gib * 2**30),
                "block_size": compute.kv_block_size,  # 128 by default: the end of the shared prompt would miss the cache
            }
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        import torch

        if compute.num_gpus == 0:
            torch.set_num_threads(compute.threads)
        from vllm import LLM

        self._llm = LLM(
            resolve(settings.model),
            dtype=compute.dtype,
            max_model_len=settings.max_model_len,
            max_num_seqs=compute.max_num_seqs,
            enable_prefix_caching=True,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            structured_outputs_config={"backend": "guidance"},  # computes masks as they are asked for: a pattern of one's own for every user is cheap
            **arguments,
        )
        self._decoding = decoding(settings)
        shared = len(self._llm.get_tokenizer().encode(SYSTEM_PROMPT))
        if shared + settings.max_fact_tokens + settings.max_output_tokens + 64 > settings.max_model_len:
            raise ValueError(
                f"profiles.max_model_len = {settings.max_model_len} does not hold the shared prompt ({shared} tokens), max_fact_tokens = "
                f"{settings.max_fact_tokens} and max_output_tokens = {settings.max_output_tokens}. Raise it, or lower max_fact_tokens."
            )

    def answer(self, prompts: Sequence[Prompt], max_tokens: int | None = None) -> list[Answer]:
        """One answer a prompt, in order; `max_tokens` stands in for the settings' own."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        decode = self._decoding
        sampling = [
            SamplingParams(
                temperature=decode["temperature"],
                frequency_penalty=decode["frequency_penalty"],
                max_tokens=max_tokens or decode["max_tokens"],
                structured_outputs=StructuredOutputsParams(regex=prompt.pattern),
            )
            for prompt in prompts
        ]
        messages = [[{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": prompt.facts}] for prompt in prompts]
        outputs = self._llm.chat(messages, sampling, use_tqdm=False, chat_template_kwargs={"enable_thinking": False})
        metrics.PROFILE_TOKENS.add(sum(out.num_cached_tokens or 0 for out in outputs), kind="prompt_cached")
        return [Answer(out.outputs[0].text, len(out.prompt_token_ids or ()), len(out.outputs[0].token_ids)) for out in outputs]


class ProfileActor:
    """Maps blocks of prompts to blocks of profiles (columns of PROFILES, and those that tell where and when)."""

    def __init__(
        self,
        settings: ProfilesSettings,
        cache_uri: str,
        engine_key: str,
        names: Sequence[str],
        load: Callable[[ProfilesSettings], Engine] = VllmEngine,
    ) -> None:
        self._settings = settings
        self._engine_key = engine_key
        self._known = KnownNames(names)
        self._load = load
        self._engine: Engine | None = None
        self._cache = ProfileCache(cache_uri, engine_key)
        for outcome in OUTCOMES:
            metrics.PROFILES.add(0, outcome=outcome, source="engine")

    def __call__(self, prompts: pa.Table) -> pa.Table:
        """Profiles of `prompts` (FACTS and the columns `facts`, `cut_lines`, `part`), in their order."""
        started = time.time()
        rows = prompts.to_pylist()
        keys = [prompt_hash(self._engine_key, row["facts"]) for row in rows]
        answers = self._cache.find(keys)
        cached = frozenset(answers)
        missing = {key: Prompt(row["facts"], answer_pattern(self._settings, row)) for key, row in zip(keys, rows, strict=True) if key not in cached}
        engine_started = engine_ended = float("nan")
        if missing:
            if self._engine is None:
                engine_started = time.time()
                self._engine = self._load(self._settings)
                started = engine_ended = time.time()  # the block's own work begins here
            asked = time.monotonic()
            fresh = dict(zip(missing, self._engine.answer(list(missing.values())), strict=True))
            _count_tokens(fresh.values(), time.monotonic() - asked)
            self._cache.add(fresh)
            answers |= fresh
        done = [self._profile(row, key, answers[key], key in cached) for row, key in zip(rows, keys, strict=True)]
        _count_profiles(done)
        table = with_times(pa.Table.from_pylist(done, schema=PROFILES), prompts, "profile", started)
        return with_span(table, "engine", engine_started, engine_ended)

    def _profile(self, row: Mapping[str, Any], key: str, answer: Answer, cached: bool) -> dict[str, Any]:
        try:
            fields = parse(answer.raw_text, self._settings.max_output_tokens)
            check(fields, row["facts"], [name for line in row["lines"] for name in (line["l1"], line["leaf"])], self._known)
            outcome = "llm"
        except RefusedError as refused:
            fields, outcome = fallback(row), f"fallback:{refused.reason}"
        return profile_row(row, key, fields, outcome, answer, cached)


def deterministic_profiles(prompts: pa.Table) -> pa.Table:
    """The same block without a model (profiles.generator = "deterministic")."""
    started = time.time()
    rows = [
        profile_row(row, prompt_hash("deterministic", row["facts"]), fallback(row), "deterministic", Answer("", 0, 0), False) for row in prompts.to_pylist()
    ]
    _count_profiles(rows)
    return with_times(pa.Table.from_pylist(rows, schema=PROFILES), prompts, "profile", started)


def _count_profiles(rows: Sequence[Mapping[str, Any]]) -> None:
    for (outcome, cached), number in Counter((row["outcome"], row["cached"]) for row in rows).items():
        metrics.PROFILES.add(number, outcome=outcome, source="cache" if cached else "engine" if outcome != "deterministic" else "rule")


def _count_tokens(answers: Iterable[Answer], seconds: float) -> None:
    told = list(answers)
    metrics.PROFILE_TOKENS.add(sum(answer.prompt_tokens for answer in told), kind="prompt")
    metrics.PROFILE_TOKENS.add(sum(answer.output_tokens for answer in told), kind="generated")
    metrics.ENGINE_SECONDS.add(seconds)


def profile_row(row: Mapping[str, Any], key: str, fields: Fields, outcome: str, answer: Answer, cached: bool) -> dict[str, Any]:
    """One row of PROFILES."""
    return {
        "user_id": row["user_id"],
        "as_of": row["as_of"],
        "prompt_hash": key,
        "facts": row["facts"],
        "raw_text": answer.raw_text,
        "identity": fields.identity,
        "interests": fields.interests,
        "philosophy": fields.philosophy,
        "text": fields.text,
        "outcome": outcome,
        "cached": cached,
        "cut_lines": row["cut_lines"],
        "prompt_tokens": answer.prompt_tokens,
        "output_tokens": answer.output_tokens,
    }
