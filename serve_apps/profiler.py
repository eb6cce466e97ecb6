"""The language model's replica: it writes the profiles of users whom the application is told of, as the pipeline wrote everyone's (ChoirRec, semantic group
generation). Such a user is ranked with a profile made by rule until it is done.
"""

import asyncio
from dataclasses import dataclass

from actors.profile import ProfileActor
from longtail.newcomers import facts_of
from longtail.packaged_models import fingerprint
from longtail.profile_names import known_names
from longtail.profiles import engine_key
from longtail.questions import StatedUser
from longtail.run_state import logs_info
from serve_apps.served_run import Served


@dataclass(frozen=True)
class Written:
    """A profile, and how it came to be: llm, or fallback:<reason> where the model's answer could not stand."""

    text: str
    outcome: str


class Profiler:
    """One engine; requests are answered one after another."""

    def __init__(self, served: Served) -> None:
        from pipelines.profiles import FACT_ITEM_COLUMNS, add_prompts  # takes Ray Data along, which no other replica needs

        run = served.open()
        logs, self._settings = run.release.parts["logs"], run.config.profiles
        self._info = logs_info(logs)
        items = logs.read("items", FACT_ITEM_COLUMNS)
        self._items = items.select(["item_id", "category"])
        self._add_prompts = add_prompts
        key = engine_key(self._settings, fingerprint(self._settings.model))
        self._actor = ProfileActor(self._settings, served.store.uri, key, known_names(logs.read("users"), items, self._info))
        self._turn = asyncio.Lock()

    async def write(self, user: StatedUser) -> Written | None:
        """The user's profile; None where nothing is known to make one of."""
        async with self._turn:
            return await asyncio.to_thread(self._write, user)

    def _write(self, user: StatedUser) -> Written | None:
        facts = facts_of(user, self._info, self._settings, lambda: self._items)
        if len(facts) == 0:
            return None
        prompts = self._add_prompts(facts, self._settings, self._info.behaviour_kinds[-1])
        (row,) = self._actor(prompts).to_pylist()
        return Written(row["text"], row["outcome"])


def check_language_model(generator: str, wanted: bool) -> None:
    """Only a run whose groups are made of a language model's profiles has newcomers' written by one.

    Raises:
        ValueError: it is not such a run.
    """
    if wanted and generator != "llm":
        raise ValueError(
            f"serve.llm_profiles is on, and the run's profiles.generator is {generator!r}: its groups were found among texts of another kind. "
            'Turn it off, or train with profiles.generator = "llm".'
        )
