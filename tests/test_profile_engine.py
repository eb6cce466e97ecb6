"""The profile engine: conversations of several callers share its steps, failures come to those who wait, and the config decides what vLLM is told."""

import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from actors.engine import Feed, VllmEngine
from longtail.profiles import ProfilesSettings


class FakeLlm:
    """Answers a conversation, a text, after as many steps as it has letters; "refused" is not taken and "broken" breaks a step."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.llm_engine = SimpleNamespace(step=self.step)
        self.running: dict[str, list[Any]] = {}
        self.met: list[set[str]] = []  # by step
        self.taken = 0
        self.go = threading.Event()
        self.go.set()

    def enqueue_chat(self, messages: Sequence[str], sampling: Sequence[Any], **_: Any) -> list[str]:
        if "refused" in messages:
            raise ValueError("too long")
        names = [f"{self.taken + number}-ab12cd34" for number in range(len(messages))]
        self.running |= {name: [text, len(text)] for name, text in zip(names, messages, strict=True)}
        self.taken += len(messages)
        return names

    def step(self) -> list[Any]:
        self.go.wait(10)
        self.met.append({text for text, _ in self.running.values()})
        if "broken" in self.met[-1]:
            self.running.clear()
            raise RuntimeError("out of memory")
        for entry in self.running.values():
            entry[1] -= 1
        ended = [name for name, (_, left) in self.running.items() if left == 0]
        return [SimpleNamespace(request_id=name.split("-")[0], finished=True, text=self.running.pop(name)[0]) for name in ended]

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(encode=str.split)


def texts(feed: Feed, *asked: str) -> list[str]:
    return [output.text for output in feed.ask(asked, asked)]


def test_answers_come_in_order_and_to_whom_they_belong() -> None:
    feed = Feed(FakeLlm)
    assert texts(feed) == []
    assert texts(feed, "long", "a", "mid") == ["long", "a", "mid"]
    with ThreadPoolExecutor(8) as pool:
        asked = [("x" * size, "y" * (9 - size)) for size in range(1, 9)]
        assert list(pool.map(lambda one: tuple(texts(feed, *one)), asked)) == asked


def test_what_is_asked_meanwhile_joins_the_running() -> None:
    llm = FakeLlm()
    feed = Feed(lambda: llm)
    llm.go.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(texts, feed, "first block")
        while not llm.running:
            pass
        second = pool.submit(texts, feed, "second")
        while not feed._inbox:
            pass
        llm.go.set()
        assert (first.result(10), second.result(10)) == (["first block"], ["second"])
    assert {"first block", "second"} in llm.met
    assert len(llm.met) == len("first block")  # and not the sum of both


def test_one_thread_steps_whoever_asks_and_whenever() -> None:
    llm, threads = FakeLlm(), set()
    feed, step = Feed(lambda: llm), llm.llm_engine.step
    llm.llm_engine.step = lambda: threads.add(threading.get_ident()) or step()
    assert texts(feed, "once") == ["once"]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda text: texts(feed, text), ["again", "beside"])) == [["again"], ["beside"]]
    assert threads == {feed.call(threading.get_ident)}
    assert threading.get_ident() not in threads


def test_the_thread_that_steps_an_engine_made_it_and_an_engine_that_cannot_be_made_says_why() -> None:
    feed = Feed(threading.get_ident)
    assert feed.llm == feed.call(threading.get_ident) != threading.get_ident()
    with pytest.raises(MemoryError, match="no room"):
        Feed(lambda: (_ for _ in ()).throw(MemoryError("no room")))


def test_a_refused_block_leaves_the_others_alone_and_a_broken_step_tells_everybody() -> None:
    feed = Feed(FakeLlm)
    with pytest.raises(ValueError, match="too long"):
        texts(feed, "fine", "refused")
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(texts, feed, "broken", "beside"), pool.submit(texts, feed, "broken")]
        for one in waiting:
            with pytest.raises(RuntimeError, match="out of memory"):
                one.result(10)
    assert texts(feed, "later") == ["later"]


def test_what_an_engine_goes_on_with_after_a_step_that_failed_hurts_nobody() -> None:
    llm = FakeLlm()
    feed, step = Feed(lambda: llm), llm.llm_engine.step
    failing = [True]

    def fails_once() -> list[Any]:
        if failing.pop() if failing else False:
            raise RuntimeError("out of memory")
        return step()

    llm.llm_engine.step = fails_once
    with pytest.raises(RuntimeError, match="out of memory"):
        texts(feed, "lost")
    assert texts(feed, "longer than it") == ["longer than it"]
    assert {"lost", "longer than it"} in llm.met


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[FakeLlm]:
    """The engines that are made, in place of vLLM's."""
    made: list[FakeLlm] = []

    def make(model: str, **arguments: Any) -> FakeLlm:
        made.append(FakeLlm(model=model, **arguments))
        return made[-1]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=make))
    monkeypatch.setattr("actors.cpu_norms.in_place_norms", lambda: {"ir_op_priority": "in place"})
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "before")
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    return made


def test_on_gpus_the_config_says_how_many_and_how_much_of_their_memory(told: list[FakeLlm]) -> None:
    compute = {"num_gpus": 2, "tensor_parallel_size": 2, "gpu_memory_utilization": 0.7, "max_num_seqs": 512, "dtype": "float16"}
    VllmEngine(ProfilesSettings.model_validate({"model": "some/model", "compute": compute}))
    arguments = told[0].arguments
    assert {name: arguments[name] for name in ("model", "tensor_parallel_size", "gpu_memory_utilization", "max_num_seqs", "dtype")} == {
        "model": "some/model",
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.7,
        "max_num_seqs": 512,
        "dtype": "float16",
    }
    assert arguments["enable_prefix_caching"]
    assert not arguments.keys() & {"enforce_eager", "kv_cache_memory_bytes", "block_size", "ir_op_priority"}  # what is for CPUs
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "before"


def test_on_cpus_it_runs_in_this_process(told: list[FakeLlm]) -> None:
    VllmEngine(ProfilesSettings.model_validate({"model": "some/model", "compute": {"threads": 3, "kv_cache_gib": 0.5, "kv_block_size": 64}}))
    arguments = told[0].arguments
    assert (arguments["enforce_eager"], arguments["kv_cache_memory_bytes"], arguments["block_size"]) == (True, 2**29, 64)
    assert arguments["ir_op_priority"] == "in place"
    assert not arguments.keys() & {"tensor_parallel_size", "gpu_memory_utilization"}
    assert (os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"], os.environ["OMP_NUM_THREADS"]) == ("0", "3")


def test_a_model_too_short_for_the_prompt_is_refused(told: list[FakeLlm]) -> None:
    with pytest.raises(ValueError, match=r"profiles.max_model_len = 300 does not hold the shared prompt"):
        VllmEngine(ProfilesSettings.model_validate({"model": "some/model", "max_model_len": 300}))
    assert told
