"""Logs: a source's raw logs become users, items, events and labelled examples, split by time.

Reads a source adapter (longtail.sources.*) or three Parquet tables; writes users, items, events, examples.
Where logs.truncate is on, also writes truncated, where logs.cold_start is, cold_items. Run: python -m pipelines.logs --config …

Letters: E events, U users, I items, K examples.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from longtail import schema
from longtail.artifacts import Draft
from longtail.cold_start import HIDDEN as COLD_HIDDEN
from longtail.cold_start import ColdStartSettings, cold_start
from longtail.examples import Labelled, build_examples
from longtail.labels import CodedEvents, Examples, Labels, LabelSettings
from longtail.log_check import check_tables
from longtail.negatives import NegativeSettings
from longtail.schema import EVENT_KINDS, SPLITS
from longtail.settings import Settings
from longtail.sources import complete_journey, movielens, synthetic, tables
from longtail.sources.installed import package_folder
from longtail.sources.raw import RawLogs
from longtail.sources.synthetic import SyntheticSettings
from longtail.sources.tables import TablesSettings
from longtail.strata import stratified
from longtail.times import DAY_US, from_us
from longtail.truncation import HIDDEN, TruncateSettings, truncate
from longtail.windows import SplitSettings, Windows

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class SampleSettings(Settings):
    """A stratified sample of the users (all activity levels), of the items, and of their examples; None keeps all."""

    num_users: int | None = Field(None, ge=1, description="equal shares of each tenth of the users by activity before the test window")
    num_items: int | None = Field(None, ge=1, description="of the items that the kept users meet, equal shares of each tenth by popularity")
    max_positives_per_user: int | None = Field(None, ge=1, description="per split, drawn by a seeded hash")


class LogsSettings(Settings):
    """The `logs` stage."""

    source: Literal["complete_journey", "movielens_100k", "movielens_1m", "synthetic", "tables"] = "complete_journey"
    tables: TablesSettings | None = None
    categorical_attributes: tuple[str, ...] | None = Field(None, description="user columns; None: the adapter's own")
    numeric_attributes: tuple[str, ...] | None = None
    split: SplitSettings = SplitSettings()
    labels: LabelSettings = LabelSettings()
    negatives: NegativeSettings = NegativeSettings()
    sample: SampleSettings = SampleSettings()
    truncate: TruncateSettings = TruncateSettings()
    cold_start: ColdStartSettings = ColdStartSettings()
    synthetic: SyntheticSettings = SyntheticSettings()
    censored_days: float = Field(60.0, ge=0, le=36_500, description="an item first seen this soon after the logs begin may be older: its age is unknown")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.source == "tables") != (self.tables is not None):
            raise ValueError('source = "tables" and the section [logs.tables] (users, items, events) go together: give both or neither')
        if self.truncate.users_frac and self.cold_start.items_frac:
            raise ValueError(
                f"truncate.users_frac = {self.truncate.users_frac:g} and cold_start.items_frac = {self.cold_start.items_frac:g}: one at a time, or what an "
                "item keeps might be a truncated user's. Set one of them to 0"
            )
        both = set(self.categorical_attributes or ()) & set(self.numeric_attributes or ())
        if both:
            raise ValueError(f"{sorted(both)} stand in both categorical_attributes and numeric_attributes; name each in one of them")
        for setting in ("categorical_attributes", "numeric_attributes"):
            names = getattr(self, setting) or ()
            if "user_id" in names or len(set(names)) < len(names):
                raise ValueError(f"{setting} = {list(names)}: name each attribute once, and not user_id, which every ranker has anyway")
        if self.source == "tables" and self.negatives.policy == "available":
            raise ValueError('negatives.policy = "available" needs a source that knows what was on offer, and three tables do not; set "popularity_matched"')
        return self

    def key_fields(self) -> dict[str, Any]:
        """The values that decide the stage's result; those of `truncate` and `cold_start` decide nothing while they are off.

        The synthetic world's later settings stand in the key only where they change it, so that finished runs of older worlds are found again.
        """
        off = {"truncate": self.truncate.users_frac == 0, "cold_start": self.cold_start.items_frac == 0}
        fields = {name: value for name, value in super().key_fields().items() if not off.get(name, False)}
        before = SyntheticSettings().key_fields()
        later = {name for name in ("drift", "launch_frac") if fields["synthetic"][name] == before[name]}
        return fields | {"synthetic": {name: value for name, value in fields["synthetic"].items() if name not in later}}


class LogsInfo(Settings):
    """What every later stage must know of the logs; it stands in the manifest's `info`."""

    source: str
    start: datetime  # first event
    history_end: datetime
    validation_start: datetime
    train_end: datetime
    end: datetime  # just after the last event
    categorical_attributes: tuple[str, ...]
    numeric_attributes: tuple[str, ...]
    has_conversion: bool
    behaviour_kinds: tuple[str, ...]  # event kinds that make histories and counts, strongest last, e.g. ("click", "purchase")
    exposure: str  # one sentence that every report repeats: "logged impressions" or the sampling policy in words
    num_users: int
    num_items: int
    num_events: int
    num_examples: dict[str, int]  # by split
    positives_left_out: dict[str, int] = Field({}, description="outcomes after the history window that are no example, by reason")
    num_truncated: int = Field(0, description="users whose events were cut to a few baskets: logs.truncate")
    num_cold: int = Field(0, description="items whose events were cut to a few: logs.cold_start")


@dataclass(frozen=True)
class Logs:
    """What the stage writes: the tables by name (with the planted truth of a synthetic source), and the events' bookkeeping."""

    tables: Mapping[str, pa.Table]
    info: LogsInfo
    rows_in: int
    dropped: Mapping[str, int]

    def write(self, draft: Draft, rows_per_file: int) -> None:
        """Write every table; the examples as a folder of parts of at most `rows_per_file` rows, in their (seeded random) order."""
        for name, table in self.tables.items():
            if name != "examples":
                draft.write(name, table)
                continue
            for part, start in enumerate(range(0, max(len(table), 1), rows_per_file)):
                path = draft.path(f"examples.parquet/part-{part:05d}.parquet")
                pq.write_table(table.slice(start, rows_per_file), path, filesystem=draft.fs, compression="zstd")


def fingerprint(settings: LogsSettings) -> str:
    """What decides the source's content beside the settings: the bytes of the user's tables, or the version of the package that holds the data."""
    if settings.source == "tables":
        assert settings.tables is not None
        return tables.fingerprint(settings.tables)
    distribution = {"complete_journey": complete_journey.DISTRIBUTION, **movielens.DISTRIBUTIONS}.get(settings.source)
    if distribution is None:
        return ""
    package_folder(distribution.replace("-", "_"))  # a clear error where it is not installed
    return version(distribution)


def read_source(settings: LogsSettings, seed: int) -> RawLogs:
    """The source's logs.

    Raises:
        ValueError: the source is not installed, or the user's tables are missing or have errors (all of them are listed).
    """
    if settings.source == "tables":
        assert settings.tables is not None
        users, items, events = tables.read(settings.tables)
        report = check_tables(
            users,
            items,
            events,
            attributes=((settings.categorical_attributes or ()), (settings.numeric_attributes or ())),
            split=settings.split,
            labels=settings.labels,
            unknown_ids=settings.tables.unknown_ids,
        )
        report.raise_errors()
        return tables.raw_logs(users, items, events, settings.categorical_attributes or (), settings.numeric_attributes or ())
    if settings.source == "synthetic":
        raw = synthetic.build(settings.synthetic, settings.split, seed)
    elif settings.source == "complete_journey":
        raw = complete_journey.read()
    else:
        raw = movielens.read(settings.source)
    return _with_attributes(raw, settings)


def build_logs(settings: LogsSettings, seed: int) -> Logs:
    """All tables of the stage; raises ValueError where the source, the split or the labels do not work out."""
    return logs_from(read_source(settings, seed), settings, seed)


def logs_from(raw: RawLogs, settings: LogsSettings, seed: int) -> Logs:
    """All tables of the stage, from a source's logs."""
    labels, negatives = raw.labels.overridden(settings.labels), raw.negatives.overridden(settings.negatives)
    events = _coded(raw)
    windows = Windows.of(events.time_E, settings.split)
    kinds = _behaviour_kinds(events, labels)

    dropped = dict(raw.dropped)
    keep = _user_sample(events, kinds, windows, len(raw.users), settings.sample, seed)[events.user_E]
    if settings.sample.num_users is not None:
        dropped["user not in the sample"] = int((~keep).sum())
    item_kept = _item_sample(events.take(keep), kinds, windows, len(raw.items), settings.sample, seed)
    item_dropped = keep & (events.item_E >= 0) & ~item_kept[events.item_E]
    if settings.sample.num_items is not None:
        dropped["item not in the sample"] = int(item_dropped.sum())
    keep &= ~item_dropped
    kept = events.take(keep)

    pools = None if raw.pools is None else replace(raw.pools, event_pool=raw.pools.event_pool[keep])
    labelled = build_examples(kept, pools, item_kept, kinds, windows, labels, negatives, settings.sample.max_positives_per_user, seed)
    # A truncated user keeps labels of events that nothing below may see.
    truncated = truncate(kept, labelled, kinds, windows, settings.truncate, len(raw.users), seed)
    cold = cold_start(kept, truncated.labelled, kinds, windows, settings.cold_start, len(raw.items), seed)
    labelled = cold.labelled
    _require_outcomes(labelled.examples, windows, labels)
    hidden = np.zeros(len(events), bool)
    hidden[keep] = truncated.hidden_E | cold.hidden_E
    dropped[HIDDEN] = int(truncated.hidden_E.sum())
    dropped[COLD_HIDDEN] = int(hidden.sum()) - dropped[HIDDEN]
    keep &= ~hidden
    kept = events.take(keep)
    first_seen = _first_seen(raw.items, events, hidden, windows, settings.censored_days)
    price = _history_price(raw, events, hidden, windows) if raw.price_from_history else None

    # Shuffled, so that any run of rows is a fair sample.
    examples = labelled.examples.take(np.random.default_rng([seed, 0xE8]).permutation(len(labelled.examples)))

    sampled = settings.sample.num_users is not None
    met_U, met_I = _met(kept.user_E, examples.user_K, len(raw.users)), _met(kept.item_E, examples.item_K, len(raw.items))
    whole_U = met_U if sampled else np.ones(len(raw.users), bool)
    whole_I = met_I if sampled or settings.sample.num_items is not None or settings.source == "complete_journey" else np.ones(len(raw.items), bool)
    items = _with_column(raw.items, "first_seen", first_seen)
    items = items if price is None else _with_column(items, "price", price)
    written = {
        "users": raw.users.filter(pa.array(whole_U)),
        "items": schema.check(tables.conformed(items, schema.ITEMS, "items").filter(pa.array(whole_I)), schema.ITEMS, "items"),
        "events": schema.check(raw.events.filter(pa.array(keep)), schema.EVENTS, "events"),
        "examples": _example_table(replace(labelled, examples=examples), raw),
    }
    if settings.truncate.users_frac > 0:
        written["truncated"] = _cut_table("truncated", schema.TRUNCATED, raw.users, truncated.user_T, truncated.num_baskets_T)
    if settings.cold_start.items_frac > 0:
        written["cold_items"] = _cut_table("cold_items", schema.COLD_ITEMS, raw.items, cold.item_C, cold.num_events_C)
    info = LogsInfo(
        source=settings.source,
        start=from_us(windows.start),
        history_end=from_us(windows.history_end),
        validation_start=from_us(windows.validation_start),
        train_end=from_us(windows.train_end),
        end=from_us(windows.end),
        categorical_attributes=raw.categorical_attributes,
        numeric_attributes=raw.numeric_attributes,
        has_conversion=labels.conversion is not None,
        behaviour_kinds=kinds,
        exposure=labelled.exposure,
        num_users=len(written["users"]),
        num_items=len(written["items"]),
        num_events=len(written["events"]),
        num_examples={name: int((examples.split_K == place).sum()) for place, name in enumerate(SPLITS)},
        positives_left_out={reason: count for reason, count in labelled.left_out.items() if count},
        num_truncated=len(truncated.user_T),
        num_cold=len(cold.item_C),
    )
    logger.info("logs: %d events, %s examples, positives left out: %s; %s", info.num_events, info.num_examples, info.positives_left_out, info.exposure)
    return Logs(written | _truth(raw, written), info, raw.rows_in, {reason: count for reason, count in dropped.items() if count})


def _with_attributes(raw: RawLogs, settings: LogsSettings) -> RawLogs:
    """The source with the attributes that the config names instead of its own."""
    categorical = raw.categorical_attributes if settings.categorical_attributes is None else settings.categorical_attributes
    numeric = raw.numeric_attributes if settings.numeric_attributes is None else settings.numeric_attributes
    unknown = [name for name in (*categorical, *numeric) if name not in raw.users.column_names]
    if unknown:
        raise ValueError(f"logs.categorical_attributes / numeric_attributes name {unknown}; the users of {settings.source} have {raw.users.column_names[1:]}.")
    return replace(raw, categorical_attributes=categorical, numeric_attributes=numeric, users=raw.users.select(["user_id", *categorical, *numeric]))


def _coded(raw: RawLogs) -> CodedEvents:
    """The events as numbers: rows of the users and items tables."""

    def places(column: str, values: pa.ChunkedArray | pa.Array) -> Ints:
        found = pc.index_in(raw.events.column(column), value_set=values, skip_nulls=True)
        rows: Ints = pc.fill_null(found, -1).combine_chunks().to_numpy(zero_copy_only=False).astype(np.int64)
        return rows

    requests = raw.events.column("request_id")
    return CodedEvents(
        user_E=places("user_id", raw.users.column("user_id").combine_chunks()),
        item_E=places("item_id", raw.items.column("item_id").combine_chunks()),
        time_E=raw.events.column("ts").cast(pa.int64()).to_numpy(),
        kind_E=places("kind", pa.array(EVENT_KINDS)).astype(np.int8),
        request_E=places("request_id", pc.unique(requests).drop_null()),
    )


def _behaviour_kinds(events: CodedEvents, labels: Labels) -> tuple[str, ...]:
    """Kinds that make histories and counts: whatever a user does with an item of their own accord, in this source."""
    there = {EVENT_KINDS[kind] for kind in np.unique(events.kind_E)}
    wanted = {labels.outcome, labels.conversion, *(("click", "cart", "purchase"))} & there
    return tuple(kind for kind in EVENT_KINDS if kind in wanted)


def _user_sample(events: CodedEvents, kinds: tuple[str, ...], windows: Windows, num_users: int, sample: SampleSettings, seed: int) -> Bools:
    """Which users are kept [U]."""
    if sample.num_users is None:
        return np.ones(num_users, bool)
    behaviour = events.of_kind(*kinds)
    activity = np.bincount(behaviour.user_E[behaviour.time_E < windows.train_end], minlength=num_users)
    present = np.bincount(events.user_E, minlength=num_users) > 0
    return stratified(activity, present, sample.num_users, np.random.default_rng([seed, 0xA1]))


def _item_sample(events: CodedEvents, kinds: tuple[str, ...], windows: Windows, num_items: int, sample: SampleSettings, seed: int) -> Bools:
    """Which items are kept [I]."""
    if sample.num_items is None:
        return np.ones(num_items, bool)
    behaviour = events.of_kind(*kinds)
    popularity = np.bincount(behaviour.item_E[behaviour.time_E < windows.train_end], minlength=num_items)
    present = np.bincount(events.item_E[events.item_E >= 0], minlength=num_items) > 0
    return stratified(popularity, present, sample.num_items, np.random.default_rng([seed, 0xA2]))


def _first_seen(items: pa.Table, events: CodedEvents, hidden_E: Bools, windows: Windows, censored_days: float) -> pa.Array:
    """When each item was first seen: the given time, or else its first event, null where that is too close to the logs' start to mean anything.

    A given time on the day of the first event, a hidden one too, is taken for one that was read off the events. Otherwise hidden events count for nothing.
    A first event may lie after an example's time: features look at it as of their snapshot, like at every other fact about items.
    """
    first, first_of_all = _first_event(events, ~hidden_E, len(items)), _first_event(events, np.ones(len(events), bool), len(items))
    happened = first < np.iinfo(np.int64).max
    trusted = np.zeros(len(items), bool)
    if "first_seen" in items.column_names:
        given = items.column("first_seen").combine_chunks().cast(schema.TIMESTAMP)
        there = given.is_valid().to_numpy(zero_copy_only=False)
        given_us = pc.fill_null(given.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        trusted = there & (given_us // DAY_US < first_of_all // DAY_US)
        happened |= there
        first = np.where(there, given_us, first)
    censored = first < windows.start + round(censored_days * DAY_US)
    return pa.array(first, mask=~happened | (censored & ~trusted)).cast(pa.timestamp("us")).cast(schema.TIMESTAMP)


def _first_event(events: CodedEvents, which_E: Bools, num_items: int) -> Ints:
    """Time of each item's [I] first event among `which_E`; the largest integer where there is none."""
    first = np.full(num_items, np.iinfo(np.int64).max)
    named = which_E & (events.item_E >= 0)
    np.minimum.at(first, events.item_E[named], events.time_E[named])
    return first


def _history_price(raw: RawLogs, events: CodedEvents, hidden_E: Bools, windows: Windows) -> pa.Array:
    """Median paid unit price of each item [I] in the history window; null where nobody bought it then."""
    price = raw.events.column("price").to_numpy()
    rows = np.flatnonzero((events.time_E < windows.history_end) & (events.item_E >= 0) & np.isfinite(price) & ~hidden_E)
    rows = rows[np.lexsort((price[rows], events.item_E[rows]))]
    item, start, count = np.unique(events.item_E[rows], return_index=True, return_counts=True)
    low, high = price[rows[start + (count - 1) // 2]], price[rows[start + count // 2]]
    median = np.full(len(raw.items), np.nan)
    median[item] = (low + high) / 2
    return pa.array(median, mask=np.isnan(median))


def _require_outcomes(examples: Examples, windows: Windows, labels: Labels) -> None:
    """Refuse a split without examples of both outcomes: nothing could be learnt from it or measured on it."""
    for place, name in enumerate(SPLITS):
        if name == "validation" and windows.validation_start == windows.train_end:
            continue
        outcome = examples.outcome_K[examples.split_K == place]
        if len(outcome) == 0 or outcome.min() == outcome.max():
            raise ValueError(
                f"the {name} window has {len(outcome)} examples, {int(outcome.sum())} of them with the outcome {labels.outcome!r}; it needs both kinds. "
                "Move logs.split, choose another logs.labels.outcome or a longer outcome_window_h, or sample (or truncate) fewer users away."
            )


def _met(of_events: Ints, of_examples: Ints, size: int) -> Bools:
    met = np.zeros(size, bool)
    met[of_events[of_events >= 0]] = True
    met[of_examples] = True
    return met


def _with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values) if name in table.column_names else table.append_column(name, values)


def _example_table(labelled: Labelled, raw: RawLogs) -> pa.Table:
    """schema.EXAMPLES, numbered in the order of its rows."""
    examples = labelled.examples
    requests = pc.unique(raw.events.column("request_id")).drop_null()
    if labelled.visits is not None:
        assert raw.pools is not None
        user_V, pool_V = labelled.visits
        users = raw.users.column("user_id").take(pa.array(user_V))
        requests = pc.binary_join_element_wise(users, pa.array(raw.pools.names(pool_V), pa.string()), " ")
    columns = {
        "example_id": pa.array(np.arange(len(examples))),
        "user_id": raw.users.column("user_id").take(pa.array(examples.user_K)),
        "item_id": raw.items.column("item_id").take(pa.array(examples.item_K)),
        "ts": pa.array(examples.time_K).cast(pa.timestamp("us")).cast(schema.TIMESTAMP),
        "split": pa.array(SPLITS).take(pa.array(examples.split_K)),
        "origin": pa.repeat(labelled.origin, len(examples)),
        "request_id": requests.take(pa.array(examples.request_K, mask=examples.request_K < 0)),
        "outcome": pa.array(examples.outcome_K),
        "conversion": pa.array(examples.conversion_K, mask=examples.conversion_K < 0),
    }
    return schema.check(pa.table(columns), schema.EXAMPLES, "examples")


def _cut_table(name: str, layout: pa.Schema, owners: pa.Table, rows: Ints, left: Ints) -> pa.Table:
    """Who was cut, by rows of the owners' table and in its order, and what each keeps, in `layout`."""
    columns = [owners.column(layout.names[0]).take(pa.array(rows)), pa.array(left, layout.types[1])]
    return schema.check(pa.Table.from_arrays(columns, names=layout.names), layout, name)


def _truth(raw: RawLogs, written: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """The planted truth of the users and items that were written."""
    truth = {}
    for name, table in raw.truth.items():
        key, owner = ("user_id", "users") if "user_id" in table.column_names else ("item_id", "items")
        truth[name] = table.filter(pc.is_in(table.column(key), value_set=written[owner].column(key).combine_chunks()))
    return truth
