"""The profile cache: nothing is asked twice, not even after an interruption."""

import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from actors.profile import ProfileActor, Prompt
from actors.timing import rows_only
from longtail.profile_cache import Answer, ProfileCache
from longtail.profile_facts import FACTS
from longtail.profiles import ProfilesSettings, engine_key, prompt_hash
from longtail.schema import PROFILES
from tests.small_world import day

SETTINGS = ProfilesSettings()
ROOT = Path(__file__).resolve().parent.parent
SAID = '{"identity":"Shopper of whom little is known.","interests":"Mostly tea from the grocery.","philosophy":"Takes low prices and keeps habits."}'


class CountingEngine:
    """Gives one fixed answer, counts what it is asked, and dies without a word at prompt number `dies_at`."""

    def __init__(self, dies_at: int = 10**9) -> None:
        self.asked: list[str] = []
        self._dies_at = dies_at

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        if len(self.asked) + len(prompts) > self._dies_at:
            import os

            os._exit(9)
        self.asked += [prompt.facts for prompt in prompts]
        return [Answer(SAID, 300, 40) for _ in prompts]


def block(first: int, size: int, part: int = 0) -> pa.Table:
    rows = [
        {
            "user_id": f"u{number}",
            "as_of": day(1),
            "attributes": ["age: unknown"],
            "lines": [{"window": 2, "l1": "grocery", "leaf": "tea", "count": number, "price_power": "low", "recent": True}],
            "searches": [],
        }
        for number in range(first, first + size)
    ]
    table = pa.Table.from_pylist(rows, schema=FACTS)
    table = table.append_column("facts", pa.array([f"Purchases in 365 days:\ngrocery (tea - {number} - low)" for number in range(first, first + size)]))
    return table.append_column("cut_lines", pa.array([0] * size, pa.int32())).append_column("part", pa.array([part] * size, pa.int32()))


def actor(uri: Path, engine: CountingEngine, key: str = "k") -> ProfileActor:
    return ProfileActor(SETTINGS, str(uri), key, ["grocery", "tea"], load=lambda _: engine)


def test_found_again_after_reopening(tmp_path: Path) -> None:
    cache = ProfileCache(str(tmp_path), "engine")
    answers = {"a": Answer("one", 3, 4), "b": Answer("", 1, 0)}
    cache.add(answers)
    cache.add({})
    assert cache.find(["a", "c"]) == {"a": answers["a"]}
    assert ProfileCache(str(tmp_path), "engine").find(["a", "b", "c"]) == answers
    assert len(ProfileCache(str(tmp_path), "another engine")) == 0


def test_a_batch_written_twice_is_one_part(tmp_path: Path) -> None:
    for _ in range(2):
        ProfileCache(str(tmp_path), "engine").add({"a": Answer("one", 3, 4)})
    assert len(list((tmp_path / "profile_cache" / "engine").iterdir())) == 1


def test_unchanged_prompts_start_no_engine(tmp_path: Path) -> None:
    engine = CountingEngine()
    first = actor(tmp_path, engine)(block(0, 4))
    assert len(engine.asked) == 4
    assert first.column("outcome").to_pylist() == ["llm"] * 4
    assert first.column("raw_text").to_pylist() == [SAID] * 4
    assert rows_only(first).schema.equals(PROFILES)

    def refuse(_: ProfilesSettings) -> CountingEngine:
        raise AssertionError("an engine was started for cached prompts")

    again = ProfileActor(SETTINGS, str(tmp_path), "k", ["grocery", "tea"], load=refuse)(block(0, 4))
    assert again.column("cached").to_pylist() == [True] * 4
    assert again.column("text").to_pylist() == first.column("text").to_pylist()


def test_one_changed_user_costs_one_prompt(tmp_path: Path) -> None:
    actor(tmp_path, CountingEngine())(block(0, 4))
    engine = CountingEngine()
    table = actor(tmp_path, engine)(block(1, 4))
    assert engine.asked == ["Purchases in 365 days:\ngrocery (tea - 4 - low)"]
    assert table.column("cached").to_pylist() == [True, True, True, False]


def test_equal_prompts_of_a_block_are_asked_once(tmp_path: Path) -> None:
    engine = CountingEngine()
    twins = pa.concat_tables([block(0, 2), block(0, 2)])
    assert len(actor(tmp_path, engine)(twins)) == 4
    assert len(engine.asked) == 2


class SlowEngine(CountingEngine):
    """Answers when it is told to, or fails."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.begun, self.go, self._fails = threading.Event(), threading.Event(), fails

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        self.begun.set()
        assert self.go.wait(10)
        if self._fails:
            raise RuntimeError("no memory")
        return super().answer(prompts)


def test_blocks_at_once_ask_for_a_common_prompt_once(tmp_path: Path) -> None:
    engine = SlowEngine()
    run = actor(tmp_path, engine)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, block(0, 3))
        engine.begun.wait(10)
        second = pool.submit(run, block(2, 2))  # the first of them is on its way
        while len(run._asked) < 4:
            assert not second.done()
        engine.go.set()
        assert first.result(10).column("cached").to_pylist() == [False] * 3
        assert second.result(10).column("cached").to_pylist() == [True, False]
    assert len(engine.asked) == 4
    assert not run._asked


def test_blocks_that_wait_for_a_failed_one_fail_too_and_leave_nothing_behind(tmp_path: Path) -> None:
    engine = SlowEngine(fails=True)
    run = actor(tmp_path, engine)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(run, block(0, 2)), pool.submit(run, block(0, 2))]
        engine.begun.wait(10)
        engine.go.set()
        for one in waiting:
            with pytest.raises(RuntimeError, match="no memory"):
                one.result(10)
    assert not run._asked


def test_another_key_asks_anew(tmp_path: Path) -> None:
    actor(tmp_path, CountingEngine())(block(0, 3))
    engine = CountingEngine()
    actor(tmp_path, engine, key="other")(block(0, 3))
    assert len(engine.asked) == 3


@pytest.mark.parametrize("changes", [{"max_output_tokens": 80}, {"frequency_penalty": 0.3}, {"answer_form": "free"}, {"compute": {"dtype": "float32"}}])
def test_what_decides_an_answer_is_in_the_key(changes: dict[str, object]) -> None:
    changed = ProfilesSettings.model_validate(SETTINGS.model_dump() | {"compute": SETTINGS.compute.model_dump()} | _merged(changes))
    assert engine_key(changed, "w") != engine_key(SETTINGS, "w")
    assert engine_key(SETTINGS, "w") != engine_key(SETTINGS, "other weights")
    assert prompt_hash("e", "facts") != prompt_hash("e", "other facts")
    assert engine_key(SETTINGS.model_copy(update={"max_fact_tokens": 100}), "w") == engine_key(SETTINGS, "w")  # the facts themselves tell


def _merged(changes: dict[str, object]) -> dict[str, object]:
    return {name: SETTINGS.compute.model_dump() | value if isinstance(value, dict) else value for name, value in changes.items()}


def test_a_killed_run_resumes_with_the_rest(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from tests.test_profile_cache import CountingEngine, actor, block\n"
        f"run = actor(Path({str(tmp_path)!r}), CountingEngine(dies_at=7))\n"
        "for part in range(3): run(block(3 * part, 3, part))\n"
    )
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}", "PATH": "/usr/bin:/bin"}
    assert subprocess.run([sys.executable, "-c", script], env=env, cwd=ROOT, check=False).returncode == 9
    engine = CountingEngine()
    run = actor(tmp_path, engine)
    tables = [run(block(3 * part, 3, part)) for part in range(3)]
    assert len(engine.asked) == 3
    assert [sum(table.column("cached").to_pylist()) for table in tables] == [3, 3, 0]
