"""Complete Journey's households for the bench of profiles: as much of the logs as profiles read, and the same after a few of them bought something more."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.logs import LogsInfo
from longtail.packaged_models import fingerprint
from longtail.profile_cache import Answer, ProfileCache
from longtail.profile_facts import facts_table
from longtail.profile_names import known_names
from longtail.profile_text import fallback
from longtail.profiles import FIELDS, engine_key, prompt_hash
from longtail.schema import EVENTS, ITEMS, TIMESTAMP
from longtail.sources import complete_journey
from longtail.sources.tables import conformed
from longtail.times import DAY_US
from pipelines import blocks
from pipelines.profiles import add_prompts


@dataclass(frozen=True)
class Households:
    """A grocer's users, items and events, as much of them as profiles read."""

    config: Config
    users: pa.Table
    items: pa.Table
    events: pa.Table
    info: LogsInfo

    @property
    def names(self) -> list[str]:
        return known_names(self.users, self.items, self.info)

    @property
    def key(self) -> str:
        return engine_key(self.config.profiles, fingerprint(self.config.profiles.model))

    def some(self, count: int, seed: int) -> "Households":
        """`count` of the households, drawn at random."""
        ids = self.users.column("user_id")
        drawn = pa.array(np.random.default_rng(seed).choice(len(ids), min(count, len(ids)), replace=False))
        return replace(self, users=self.users.take(drawn), events=self.events.filter(pc.is_in(self.events.column("user_id"), value_set=ids.take(drawn))))

    def prompts(self) -> pa.Table:
        """Facts and prompts of all of them."""
        facts, _ = facts_table(self.users, self.items, self.events, self.info, self.config.profiles, self.info.history_end)
        return add_prompts(facts, self.config.profiles, self.info.behaviour_kinds[-1])

    def written(self, store: Store) -> Artifact:
        """The tables as the stage `logs` would leave them."""
        draft = store.create("logs", "bench")
        for name in ("users", "items", "events"):
            draft.write(name, getattr(self, name))
        return draft.commit(config={}, inputs={}, seed=0, rows_in=0, rows_out=0, dropped={}, info=self.info.model_dump(mode="json"))

    def after_a_purchase(self, frac: float) -> "Households":
        """The same, where a share of the households bought four of something a day before the snapshot; nearly all of them, and a few whose price levels that
        moves, have other prompts then."""
        buyers = self.users.column("user_id").slice(0, max(1, round(frac * len(self.users))))
        again = self.events.filter(pc.is_in(self.events.column("user_id"), value_set=buyers))
        first = np.unique(again.column("user_id").to_numpy(zero_copy_only=False), return_index=True)[1]
        bought = again.take(pa.array(first.repeat(4)))
        day_before = pc.cast(pa.scalar(self.info.history_end, TIMESTAMP), pa.int64()).as_py() - DAY_US
        ts = pa.array([day_before] * len(bought), pa.int64()).cast(bought.schema.field("ts").type)
        bought = bought.set_column(bought.column_names.index("ts"), "ts", ts).cast(self.events.schema)
        return replace(self, events=pa.concat_tables([self.events, bought]))


def households(config: Config) -> Households:
    """Complete Journey's households that were seen in the history window of the config, and what they bought in it."""
    raw = complete_journey.read()
    split = config.logs.split
    assert split.history_end is not None
    assert split.train_end is not None
    events = raw.events.filter(pc.less(raw.events.column("ts"), pa.scalar(split.history_end, TIMESTAMP)))
    users = raw.users.filter(pc.is_in(raw.users.column("user_id"), value_set=pc.unique(events.column("user_id")).cast(raw.users.schema.field("user_id").type)))
    info = LogsInfo(
        source="complete_journey",
        start=pc.min(events.column("ts")).as_py(),
        history_end=split.history_end,
        validation_start=split.train_end,
        train_end=split.train_end,
        end=split.train_end,
        categorical_attributes=raw.categorical_attributes,
        numeric_attributes=raw.numeric_attributes,
        has_conversion=False,
        behaviour_kinds=("purchase",),
        exposure="none",
        num_users=len(users),
        num_items=len(raw.items),
        num_events=len(events),
        num_examples={},
    )
    return Households(config, users, conformed(raw.items, ITEMS, "items"), conformed(events, EVENTS, "events"), info)


def plant(homes: Households, prompts: pa.Table, cache: Path) -> None:
    """A cache as a first run of all prompts leaves it, in parts of a block, with answers that need no model."""
    held = ProfileCache(str(cache), homes.key)
    for block in blocks.cut(prompts, homes.config.profiles.compute.batch_size):
        rows = block.to_pylist()
        held.add({prompt_hash(homes.key, row["facts"]): Answer(_said(row), 475, 53) for row in rows})


def _said(row: dict[str, Any]) -> str:
    fields = fallback(row)
    return "{" + ",".join(f'"{name}":"{getattr(fields, name)}"' for name in FIELDS) + "}"
