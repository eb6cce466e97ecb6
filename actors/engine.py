"""Profile engines: what writes answers to prompts, a vLLM engine above all.

A step of an engine takes few sequences hardly faster than many, so whoever waited for the last answer of a block before the next one is handed over
would have it half empty most of the time. `Feed` steps an engine for all who ask it: what one block leaves free, the next one's prompts take at once.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from actors import metrics
from longtail.packaged_models import resolve
from longtail.profile_cache import Answer
from longtail.profiles import SYSTEM_PROMPT, ProfilesSettings, decoding

Result = TypeVar("Result")


@dataclass(frozen=True)
class Prompt:
    """What differs between users: the facts as text, and the pattern that the answer is decoded under."""

    facts: str
    pattern: str


class Engine(Protocol):
    """What writes answers, one for each prompt, in order; several threads may ask at once."""

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]: ...


class VllmEngine:
    """A vLLM engine with prefix caching, in this process on CPU.

    Raises:
        ValueError: prompt and answer do not fit profiles.max_model_len.
    """

    def __init__(self, settings: ProfilesSettings) -> None:
        compute = settings.compute
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        arguments: dict[str, Any] = {"tensor_parallel_size": compute.tensor_parallel_size, "gpu_memory_utilization": compute.gpu_memory_utilization}
        if compute.num_gpus == 0:
            # In process the engine starts in 5 s instead of 20 and takes 3.7 GB instead of 5.4; by default every engine of a node would bind the same core.
            os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(compute.threads)}
            from actors.cpu_norms import in_place_norms

            arguments = {
                "enforce_eager": True,  # compiling takes a minute at every start, saves less than a twentieth of a second a prompt, and rounds otherwise
                "kv_cache_memory_bytes": int(compute.kv_cache_gib * 2**30),
                "block_size": compute.kv_block_size,  # 128 by default: the end of the shared prompt would miss the cache
                **in_place_norms(),
            }

        def make() -> Any:
            import torch

            if compute.num_gpus == 0:
                torch.set_num_threads(compute.threads)
            from vllm import LLM

            return LLM(
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

        self.feed = Feed(make)
        self.llm = self.feed.llm
        self._decoding = decoding(settings)
        shared = len(self.llm.get_tokenizer().encode(SYSTEM_PROMPT))
        if shared + settings.max_fact_tokens + settings.max_output_tokens + 64 > settings.max_model_len:
            raise ValueError(
                f"profiles.max_model_len = {settings.max_model_len} does not hold the shared prompt ({shared} tokens), max_fact_tokens = "
                f"{settings.max_fact_tokens} and max_output_tokens = {settings.max_output_tokens}. Raise it, or lower max_fact_tokens."
            )

    def answer(self, prompts: Sequence[Prompt], max_tokens: int | None = None) -> list[Answer]:
        """One answer a prompt, in order; `max_tokens` stands in for the settings' own."""
        outputs = self.feed.ask([conversation(prompt) for prompt in prompts], self.sampling(prompts, max_tokens))
        metrics.PROFILE_TOKENS.add(sum(out.num_cached_tokens or 0 for out in outputs), kind="prompt_cached")
        return [Answer(out.outputs[0].text, len(out.prompt_token_ids or ()), len(out.outputs[0].token_ids)) for out in outputs]

    def sampling(self, prompts: Sequence[Prompt], max_tokens: int | None = None) -> list[Any]:
        """vLLM's SamplingParams of each prompt."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        decode = self._decoding
        return [
            SamplingParams(
                temperature=decode["temperature"],
                frequency_penalty=decode["frequency_penalty"],
                max_tokens=max_tokens or decode["max_tokens"],
                structured_outputs=StructuredOutputsParams(regex=prompt.pattern),
            )
            for prompt in prompts
        ]


def conversation(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as the messages that a chat template takes."""
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": prompt.facts}]


@dataclass
class Asked:
    """Conversations that were asked together, and what has come back of them."""

    messages: Sequence[Any]
    sampling: Sequence[Any]
    requests: Sequence[str] = ()
    outputs: dict[str, Any] = field(default_factory=dict)  # by request
    done: Future[list[Any]] = field(default_factory=Future)  # in the order of the conversations

    def take(self, output: Any) -> None:
        """Keep the output of one request; the last one makes `done`."""
        self.outputs[output.request_id] = output
        if len(self.outputs) == len(self.requests):
            self.done.set_result([self.outputs[request] for request in self.requests])


class Feed:
    """A vLLM engine, made and stepped in one thread for all who wait for it; what is asked meanwhile joins the running requests.

    That thread alone multiplies (longtail.threads), and libraries prepare matrix products for each thread by itself.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._thread = ThreadPoolExecutor(1, "profile-engine")
        self._asked = threading.Lock()  # of the two below
        self._inbox: list[Asked] = []
        self._stepping = False
        self._of_request: dict[str, Asked] = {}  # the thread's own
        self.llm = self.call(make)

    def call(self, work: Callable[[], Result]) -> Result:
        """Something else that multiplies, in the engine's thread, once nobody waits for an answer; not from within it."""
        return self._thread.submit(work).result()

    def ask(self, messages: Sequence[Any], sampling: Sequence[Any]) -> list[Any]:
        """vLLM's RequestOutput of each conversation, in order; an engine that fails raises for all who wait."""
        if not messages:
            return []
        asked = Asked(messages, sampling)
        with self._asked:
            self._inbox.append(asked)
            if not self._stepping:
                self._stepping = True
                self._thread.submit(self._run)
        return asked.done.result()

    def _run(self) -> None:
        while True:
            with self._asked:
                fresh, self._inbox = self._inbox, []
                self._stepping = bool(fresh or self._of_request)
                if not self._stepping:
                    return
            began = time.monotonic()
            try:
                for asked in fresh:
                    self._hand_over(asked)
                self._step()
            except Exception as error:  # what was running is lost, and nobody waits for it
                for asked in [*fresh, *self._of_request.values()]:
                    if not asked.done.done():
                        asked.done.set_exception(error)
                self._of_request.clear()
            metrics.ENGINE_SECONDS.add(time.monotonic() - began)

    def _hand_over(self, asked: Asked) -> None:
        try:
            ids = self.llm.enqueue_chat(asked.messages, asked.sampling, use_tqdm=False, chat_template_kwargs={"enable_thinking": False})
        except Exception as error:  # refused before it runs, such as a prompt that is too long: the others go on
            asked.done.set_exception(error)
            return
        asked.requests = [name.rpartition("-")[0] or name for name in ids]  # an output has the name without the random ending that vLLM adds inside
        self._of_request |= dict.fromkeys(asked.requests, asked)

    def _step(self) -> None:
        outputs = self.llm.llm_engine.step() if self._of_request else []
        for output in outputs:
            asked = self._of_request.pop(output.request_id, None) if output.finished else None
            if asked is not None:  # an engine may go on with what was lost in a step that failed
                asked.take(output)
