"""The bench of profiles on a tiny world with an engine of a few lines: its line, and that work that is not the same is refused."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from actors.engine import Feed, Prompt
from bench import profiles
from bench.profiles_checks import UnequalError, compare, compare_ids, shareable
from bench.profiles_households import Households, plant
from longtail.config import parse
from longtail.profile_cache import Answer
from tests.small_world import INFO, day
from tests.test_profile_facts import ITEMS, USERS, events

NUM_USERS = 60
ARGS = argparse.Namespace(rounds=2, round_prompts=4, part_rounds=1, prompts=6, users=NUM_USERS, threads=2, seed=7)


class Llm:
    """Says the same to everybody, one token of which was in the prefix cache."""

    def __init__(self) -> None:
        self.llm_engine = SimpleNamespace(step=lambda: self.pending)
        self.pending: list[Any] = []
        self.asked = 0

    def say(self, texts: Sequence[str]) -> list[Any]:
        self.pending = [
            SimpleNamespace(
                request_id=str(self.asked + number),
                finished=True,
                prompt_token_ids=[*map(ord, text)],
                num_cached_tokens=1,
                outputs=[SimpleNamespace(text="{}", token_ids=[1, 2])],
            )
            for number, text in enumerate(texts)
        ]
        self.asked += len(texts)
        outputs: list[Any] = self.llm_engine.step()
        return outputs

    def chat(self, messages: Sequence[Any], sampling: Sequence[Any], **_: Any) -> list[Any]:
        assert len(messages) == len(sampling)
        return self.say([one[-1]["content"] for one in messages])

    def reset_prefix_cache(self) -> None: ...


class Engine:
    def __init__(self) -> None:
        self.llm = Llm()
        self.feed = Feed(lambda: self.llm)

    def answer(self, prompts: Sequence[Prompt], max_tokens: int | None = None) -> list[Answer]:
        del max_tokens
        return [Answer(output.outputs[0].text, 3, 2) for output in self.llm.say([prompt.facts for prompt in prompts])]

    def sampling(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        return prompts


class Generate:
    """Stands in for transformers."""

    def __init__(self, engine: Engine, settings: Any) -> None:
        del engine, settings
        self.ids: list[list[int]] = []
        self.new_tokens = 0

    def run(self, prompts: Sequence[Prompt]) -> None:
        self.ids += [[*map(ord, prompt.facts)] for prompt in prompts]
        self.new_tokens += 4 * len(prompts)


@pytest.fixture
def homes() -> Households:
    ids = [f"u{number:02d}" for number in range(NUM_USERS)]
    users = pa.table({"user_id": ids, "city": ["Bonn"] * NUM_USERS, "age": [float(number) for number in range(NUM_USERS)]}, schema=USERS.schema)
    log = events([(user, 60 + number / 2, "purchase", "milk", None, 1.0) for number, user in enumerate(ids)])
    info = INFO.model_copy(update={"history_end": day(100)})
    return Households(parse({"profiles": {"generator": "deterministic", "compute": {"batch_size": 4}}}, "test"), users, ITEMS, log, info)


@pytest.fixture
def bench(homes: Households, tmp_path: Path) -> profiles.Bench:
    engine: Any = Engine()
    return profiles.Bench(homes, engine, tmp_path)


def test_the_line_tells_of_every_target(bench: profiles.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "Generate", Generate)
    line = profiles.line(bench, ARGS, {"stage_s": 1.0})
    assert line.keys() == {"bench", "work", "ours_s", "peers", "ratio", "spread", "threads", "quality"}
    assert line["ratio"].keys() == {"vllm_chat", "transformers"}
    assert line["spread"]["rounds"] == 2
    quality = line["quality"]
    assert (quality["texts"], quality["texts_differing"], quality["stage_s"]) == (12, 0, 1.0)  # the warm-up's are compared too
    assert (quality["whole"]["prompts"], quality["whole"]["rerun"]["asked"]) == (6, 1)
    assert (quality["rerun"]["users"], quality["rerun"]["asked"]) == (NUM_USERS, 3)
    assert quality["part"]["new_tokens"] == {"ours": 32, "transformers": 64}
    assert len(quality["reach"]) == 4
    assert all(len(one) == 3 for one in quality["reach"].values())


def test_other_prompts_at_a_peer_raise(bench: profiles.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = bench.engine.llm.chat
    monkeypatch.setattr(bench.engine.llm, "chat", lambda messages, sampling, **_: chat([[{"content": "other"}] for _ in messages], sampling))
    with pytest.raises(UnequalError, match="4 of 4 prompts have other tokens"):
        profiles.line(bench, ARGS, {})


def test_too_few_households_are_refused(bench: profiles.Bench) -> None:
    with pytest.raises(ValueError, match="--users gives 60 prompts: the rounds take 66"):
        profiles.cut(bench.prompts, [33, 33])


def test_a_few_texts_may_differ_and_no_more() -> None:
    same = [["a"] * 8, ["b"] * 8]
    assert compare(same, same) == 0
    assert compare(same, [["a"] * 8, [*"bbbbbbcd"]]) == 2
    with pytest.raises(UnequalError, match="4 of 16 texts differ"):
        compare(same, [["a"] * 8, [*"bbbbcccc"]])
    with pytest.raises(UnequalError, match="1 of 2 prompts have other tokens"):
        compare_ids([[1, 2], [3]], [[1, 2], [4]])


def test_shareable_tokens_by_hand() -> None:
    # Nothing before the first; 1 2 of the second; 1 2 3 4 of the third, whose fifth token is its last; 1 2 5 of the fourth.
    assert shareable([[1, 2, 3, 4, 9], [1, 2, 5, 6], [1, 2, 3, 4, 9], [1, 2, 5, 8]]) == 0 + 2 + 4 + 3


def test_only_buyers_have_other_prompts(homes: Households) -> None:
    before, after = homes.prompts(), homes.after_a_purchase(0.05).prompts()
    changed = pc.not_equal(before.column("facts"), after.column("facts")).to_pylist()
    assert changed == [True] * 3 + [False] * (NUM_USERS - 3)
    assert before.column("user_id").equals(after.column("user_id"))


def test_a_planted_cache_answers_everybody(bench: profiles.Bench, tmp_path: Path) -> None:
    plant(bench.homes, bench.prompts, tmp_path / "planted")
    table = profiles.profiles(bench.engine, bench.homes, bench.prompts, tmp_path / "planted")
    assert table.column("cached").to_pylist() == [True] * NUM_USERS
    assert set(table.column("outcome").to_pylist()) == {"llm"}  # texts that parse and stand
    assert bench.engine.llm.asked == 0
