"""Profile actors: blocks of facts become blocks of profiles, with what a language model says to each.

`ProfileActor` looks prompts up in the cache first and loads its engine when the first is not there, so that a run in which nobody changed starts none.
Several blocks may be with one actor at once: their prompts share the engine (actors.engine), and a prompt that two of them have is asked once.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import pyarrow as pa

from actors import metrics
from actors.engine import Engine, Prompt, VllmEngine
from actors.timing import with_span, with_times
from longtail.profile_cache import Answer, ProfileCache
from longtail.profile_form import answer_pattern
from longtail.profile_text import REASONS, Fields, KnownNames, RefusedError, check, fallback, parse
from longtail.profiles import ProfilesSettings, prompt_hash
from longtail.schema import PROFILES

__all__ = ["OUTCOMES", "Engine", "ProfileActor", "Prompt", "VllmEngine", "deterministic_profiles", "profile_row"]

logger = logging.getLogger(__name__)

OUTCOMES = ("llm", *(f"fallback:{reason}" for reason in REASONS))


class ProfileActor:
    """Maps blocks of prompts to blocks of profiles (columns of PROFILES, and those that tell where and when); safe to call from several threads."""

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
        self._asked: dict[str, Future[Answer]] = {}  # by prompt hash, what is on its way
        self._looking, self._loading = threading.Lock(), threading.Lock()
        for outcome in OUTCOMES:
            metrics.PROFILES.add(0, outcome=outcome, source="engine")

    def __call__(self, prompts: pa.Table) -> pa.Table:
        """Profiles of `prompts` (FACTS and the columns `facts`, `cut_lines`, `part`), in their order."""
        started = time.time()
        rows = prompts.to_pylist()
        keys = [prompt_hash(self._engine_key, row["facts"]) for row in rows]
        answers, coming, missing = self._look_up(rows, keys)
        cached = answers.keys() | coming.keys()
        load_started = load_ended = float("nan")
        if missing:
            try:
                engine, load_started, load_ended = self._loaded()
                started = time.time()  # the block's own work begins here
                answers |= self._ask(engine, missing)
            except BaseException as error:
                failed = error
                self._settle(missing, lambda _, future: future.set_exception(failed))
                raise
        answers |= {key: answer.result() for key, answer in coming.items()}
        done = [self._profile(row, key, answers[key], key in cached) for row, key in zip(rows, keys, strict=True)]
        _count_profiles(done)
        table = with_times(pa.Table.from_pylist(done, schema=PROFILES), prompts, "profile", started)
        return with_span(table, "engine", load_started, load_ended)

    def _look_up(self, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> tuple[dict[str, Answer], dict[str, Future[Answer]], dict[str, Prompt]]:
        """By prompt hash: the answers that are there, those that another block has asked for, and the prompts that nobody has, now asked by this one."""
        with self._looking:
            answers = self._cache.find(keys)
            coming = {key: self._asked[key] for key in keys if key in self._asked and key not in answers}
            missing = {
                key: Prompt(row["facts"], answer_pattern(self._settings, row))
                for key, row in zip(keys, rows, strict=True)
                if key not in answers and key not in coming
            }
            self._asked |= {key: Future() for key in missing}
        return answers, coming, missing

    def _loaded(self) -> tuple[Engine, float, float]:
        """The engine, and when its loading began and ended where it was this block's."""
        began = ended = float("nan")
        with self._loading:
            if self._engine is None:
                began = time.time()
                self._engine = self._load(self._settings)
                ended = time.time()
        return self._engine, began, ended

    def _ask(self, engine: Engine, missing: Mapping[str, Prompt]) -> dict[str, Answer]:
        fresh = dict(zip(missing, engine.answer(list(missing.values())), strict=True))
        _count_tokens(fresh.values())
        self._cache.add(fresh)
        self._settle(fresh, lambda key, future: future.set_result(fresh[key]))
        return fresh

    def _settle(self, keys: Iterable[str], tell: Callable[[str, Future[Answer]], None]) -> None:
        """Tell the blocks that wait for these prompts."""
        with self._looking:
            asked = {key: self._asked.pop(key) for key in keys if key in self._asked}
        for key, future in asked.items():
            tell(key, future)

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


def _count_tokens(answers: Iterable[Answer]) -> None:
    told = list(answers)
    metrics.PROFILE_TOKENS.add(sum(answer.prompt_tokens for answer in told), kind="prompt")
    metrics.PROFILE_TOKENS.add(sum(answer.output_tokens for answer in told), kind="generated")


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
