"""The tables of the synthetic world of bench.world: who did what with which item, drawn by a seed, whole arrays at a time.

Users are heavy-tailed, items have skewed popularity, every user prefers a few leaf categories; impressions become clicks, and clicks purchases. Nothing of it
is planted to be found: for the quality of what is learnt there is longtail.sources.synthetic.
Writes users, items, events and user_codes (Parquet), examples (a folder of parts in random order) and info.json.

Letters: E events, U users, I items, P impressions.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from longtail import schema
from longtail.features import fixed
from longtail.logs import LogsInfo
from longtail.schema import SPLITS
from longtail.times import DAY_US, from_us, to_us
from longtail.windows import SplitSettings, Windows

Ints = npt.NDArray[np.int64]

FORM = 1  # of the tables: raised when the same sizes give others
KINDS = ("impression", "click", "purchase")
START_US = to_us(datetime(2025, 1, 1, tzinfo=UTC))
ATTRIBUTES = {"age": (6, 0.5), "income": (9, 0.6), "region": (40, 0.2)}  # number of values, and the share of users whose value nobody knows
FAVOURITES = 4  # leaf categories that a user prefers
UNKNOWN_FRAC = 0.1  # of items, for each of category, brand and price
CENSORED_US = 60 * DAY_US
ROWS_PER_WRITE = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """How large the world is, and its seed."""

    num_events: int = 20_000_000
    num_users: int = 200_000
    num_items: int = 100_000
    num_examples: int = 2_000_000  # drawn from the impressions after the history window
    num_roots: int = 20
    num_leaves: int = 1_000
    num_brands: int = 2_000
    num_stages: int = 3
    codebook_size: int = 16
    num_days: int = 365
    click_frac: float = 0.3  # of the events
    purchase_frac: float = 0.1
    rows_per_file: int = 65_536  # of the examples
    seed: int = 7


def make(sizes: Sizes, folder: Path) -> None:
    """Write all files of a world below `folder`."""
    rng = np.random.default_rng(sizes.seed)
    catalogue = Catalogue.draw(sizes, rng)
    events = Events.draw(sizes, catalogue, rng)
    windows = Windows.of(events.time_E, SplitSettings())
    users, items = _users(sizes, rng), catalogue.table(events)
    pq.write_table(users, folder / "users.parquet", compression="zstd")
    pq.write_table(items, folder / "items.parquet", compression="zstd")
    events.write(folder / "events.parquet", users.column("user_id"), items.column("item_id"), catalogue.price_I)
    _write_codes(sizes, catalogue, windows, users.column("user_id"), folder / "user_codes.parquet", rng)
    num_examples = _write_examples(sizes, events, windows, (users.column("user_id"), items.column("item_id")), folder / "examples.parquet", rng)
    info = LogsInfo(
        source="tables",
        start=from_us(windows.start),
        history_end=from_us(windows.history_end),
        validation_start=from_us(windows.validation_start),
        train_end=from_us(windows.train_end),
        end=from_us(windows.end),
        categorical_attributes=tuple(ATTRIBUTES),
        numeric_attributes=(),
        has_conversion=True,
        behaviour_kinds=KINDS[1:],
        exposure="synthetic impressions",
        num_users=sizes.num_users,
        num_items=sizes.num_items,
        num_events=sizes.num_events,
        num_examples=num_examples,
    )
    (folder / "info.json").write_text(json.dumps(info.model_dump(mode="json"), indent=1))


@dataclass(frozen=True)
class Catalogue:
    """Items by leaf category, and what users prefer among them."""

    leaf_I: Ints
    root_of_leaf: Ints
    brand_I: Ints
    price_I: npt.NDArray[np.float64]  # NaN unknown
    cumulative_I: npt.NDArray[np.float64]  # popularity, summed over the items in the order of their leaves
    by_leaf_I: Ints
    start_L: Ints  # first place of each leaf in by_leaf_I, and the end
    favourite_UF: Ints  # leaves

    @staticmethod
    def draw(sizes: Sizes, rng: np.random.Generator) -> "Catalogue":
        leaf = rng.integers(0, sizes.num_leaves, sizes.num_items)
        popularity = (rng.permutation(sizes.num_items) + 20.0) ** -0.8
        by_leaf = np.argsort(leaf, kind="stable")
        return Catalogue(
            leaf_I=leaf,
            root_of_leaf=rng.integers(0, sizes.num_roots, sizes.num_leaves),
            brand_I=rng.integers(0, sizes.num_brands, sizes.num_items),
            price_I=np.where(rng.random(sizes.num_items) < UNKNOWN_FRAC, np.nan, rng.lognormal(2.0, 1.0, sizes.num_items).round(2)),
            cumulative_I=np.cumsum(popularity[by_leaf]),
            by_leaf_I=by_leaf,
            start_L=np.searchsorted(leaf[by_leaf], np.arange(sizes.num_leaves + 1)),
            favourite_UF=rng.integers(0, sizes.num_leaves, (sizes.num_users, FAVOURITES)),
        )

    def drawn(self, user_P: Ints, rng: np.random.Generator) -> Ints:
        """An item for each user [P]: half of them from the user's favourite leaves, within these and otherwise by popularity."""
        leaf_P = self.favourite_UF[user_P, rng.integers(0, FAVOURITES, len(user_P))]
        ends = np.concatenate([[0.0], self.cumulative_I])
        own_P = rng.random(len(user_P)) < 0.5
        low_P = np.where(own_P, ends[self.start_L[leaf_P]], 0.0)
        high_P = np.where(own_P, ends[self.start_L[leaf_P + 1]], ends[-1])
        place_P = np.searchsorted(self.cumulative_I, low_P + rng.random(len(user_P)) * (high_P - low_P), side="right")
        drawn_P: Ints = self.by_leaf_I[np.minimum(place_P, len(self.by_leaf_I) - 1)]
        return drawn_P

    def table(self, events: "Events") -> pa.Table:
        """The items in the input form; first_seen as the stage logs reads it off the events."""
        num = len(self.leaf_I)
        item, first = np.unique(events.item_E, return_index=True)
        seen = np.full(num, -1)
        seen[item] = events.time_E[first]
        rng = np.random.default_rng(num)
        no_path, no_brand = rng.random(num) < UNKNOWN_FRAC, rng.random(num) < UNKNOWN_FRAC
        steps = np.stack([_texts("root", self.root_of_leaf[self.leaf_I]), _texts("leaf", self.leaf_I)], 1).reshape(-1)
        paths = pa.ListArray.from_arrays(pa.array(np.arange(num + 1, dtype=np.int32) * 2, mask=np.append(no_path, False)), pa.array(steps, pa.string()))
        columns = {
            "item_id": _texts("i", np.arange(num), 7),
            "title": _texts("item ", np.arange(num)),
            "category": paths,
            "brand": pa.array(_texts("brand", self.brand_I), pa.string(), mask=no_brand),
            "price": pa.array(self.price_I, mask=np.isnan(self.price_I)),
            "image": pa.nulls(num, pa.binary()),
            "image_uri": pa.nulls(num, pa.string()),
            "first_seen": _times(seen, mask=seen < events.time_E[0] + CENSORED_US),
        }
        return schema.check(pa.table(columns), schema.ITEMS, "items")


@dataclass(frozen=True)
class Events:
    """All events in time order, and for impressions what became of them."""

    user_E: npt.NDArray[np.int32]
    item_E: npt.NDArray[np.int32]
    time_E: Ints
    kind_E: npt.NDArray[np.int8]
    clicked_E: npt.NDArray[np.bool_]
    bought_E: npt.NDArray[np.bool_]

    @staticmethod
    def draw(sizes: Sizes, catalogue: Catalogue, rng: np.random.Generator) -> "Events":
        num_clicks, num_purchases = round(sizes.num_events * sizes.click_frac), round(sizes.num_events * sizes.purchase_frac)
        num_shown = sizes.num_events - num_clicks - num_purchases
        activity = np.cumsum(rng.lognormal(0.0, 1.5, sizes.num_users))
        user = np.minimum(np.searchsorted(activity, rng.random(num_shown) * activity[-1]), sizes.num_users - 1).astype(np.int32)
        item = catalogue.drawn(user, rng).astype(np.int32)
        time = START_US + rng.integers(0, sizes.num_days * DAY_US, num_shown)
        clicked = np.zeros(num_shown, bool)
        clicks = rng.choice(num_shown, num_clicks, replace=False, shuffle=False)
        clicked[clicks] = True
        bought = np.zeros(num_shown, bool)
        purchases = clicks[rng.choice(num_clicks, num_purchases, replace=False, shuffle=False)]
        bought[purchases] = True
        source = np.concatenate([np.arange(num_shown), clicks, purchases])
        click_s, bought_s = rng.integers(1, 60, num_shown), rng.integers(60, 3_600, num_purchases)
        whole = np.concatenate([time, time[clicks] + click_s[clicks] * 1_000_000, time[purchases] + (click_s[purchases] + bought_s) * 1_000_000])
        kind = np.repeat(np.arange(3, dtype=np.int8), [num_shown, num_clicks, num_purchases])
        order = np.argsort(whole, kind="stable")
        source = source[order]
        return Events(user[source], item[source], whole[order], kind[order], clicked[source], bought[source])

    def write(self, path: Path, user_ids: pa.ChunkedArray, item_ids: pa.ChunkedArray, price_I: npt.NDArray[np.float64]) -> None:
        """The events in the input form, a piece at a time; impressions have no price, and other events the item's."""
        users, items, kinds = user_ids.combine_chunks(), item_ids.combine_chunks(), pa.array(KINDS)
        with pq.ParquetWriter(path, schema.EVENTS, compression="zstd") as writer:
            for start in range(0, len(self.time_E), ROWS_PER_WRITE):
                some = slice(start, start + ROWS_PER_WRITE)
                user, item, kind = self.user_E[some], self.item_E[some], self.kind_E[some]
                price, empty = price_I[item], pa.nulls(len(user), pa.string())
                columns = [
                    pa.array(np.arange(start, start + len(user))).cast(pa.string()),
                    users.take(pa.array(user)),
                    _times(self.time_E[some]),
                    kinds.take(pa.array(kind)),
                    items.take(pa.array(item)),
                    empty,
                    pa.array(price, mask=np.isnan(price) | (kind == 0)),
                    pa.nulls(len(user), pa.float64()),
                    empty,
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema.EVENTS))


def _users(sizes: Sizes, rng: np.random.Generator) -> pa.Table:
    columns: dict[str, Any] = {"user_id": pa.array(_texts("u", np.arange(sizes.num_users), 7), pa.string())}
    for name, (num_values, unknown_frac) in ATTRIBUTES.items():
        values = _texts(name, rng.integers(0, num_values, sizes.num_users))
        columns[name] = pa.array(values, pa.string(), mask=rng.random(sizes.num_users) < unknown_frac)
    return pa.table(columns)


def _write_codes(sizes: Sizes, catalogue: Catalogue, windows: Windows, user_ids: pa.ChunkedArray, path: Path, rng: np.random.Generator) -> None:
    """Codes of every user as of the end of the history window: the first from a favourite category, the others drawn unevenly."""
    codes_US = (sizes.codebook_size * rng.random((sizes.num_users, sizes.num_stages)) ** 1.5).astype(np.int32)
    codes_US[:, 0] = catalogue.root_of_leaf[catalogue.favourite_UF[:, 0]] % sizes.codebook_size
    as_of = _times(np.full(sizes.num_users, windows.history_end))
    table = pa.Table.from_arrays([user_ids.combine_chunks(), as_of, fixed(codes_US, pa.int32())], schema=schema.codes(schema.USER_KEY, sizes.num_stages))
    pq.write_table(table, path, compression="zstd")


def _write_examples(
    sizes: Sizes, events: Events, windows: Windows, ids: tuple[pa.ChunkedArray, pa.ChunkedArray], folder: Path, rng: np.random.Generator
) -> dict[str, int]:
    """Impressions after the history window in random order, at most as many as asked for; returns their number by split."""
    first = int(np.searchsorted(events.time_E, windows.history_end))
    shown = first + np.flatnonzero(events.kind_E[first:] == 0)
    chosen = rng.permutation(shown)[: sizes.num_examples]
    split = windows.split_of(events.time_E[chosen])
    table = pa.Table.from_arrays(
        [
            pa.array(np.arange(len(chosen))),
            ids[0].combine_chunks().take(pa.array(events.user_E[chosen])),
            ids[1].combine_chunks().take(pa.array(events.item_E[chosen])),
            _times(events.time_E[chosen]),
            pa.array(SPLITS).take(pa.array(split)),
            pa.repeat("logged", len(chosen)),
            pa.nulls(len(chosen), pa.string()),
            pa.array(events.clicked_E[chosen].astype(np.int8)),
            pa.array(events.bought_E[chosen].astype(np.int8)),
        ],
        schema=schema.EXAMPLES,
    )
    folder.mkdir()
    for part, start in enumerate(range(0, len(table), sizes.rows_per_file)):
        pq.write_table(table.slice(start, sizes.rows_per_file), folder / f"part-{part:05d}.parquet", compression="zstd")
    return {name: int((split == place).sum()) for place, name in enumerate(SPLITS)}


def _texts(prefix: str, numbers: Ints, width: int = 0) -> npt.NDArray[np.object_]:
    texts = np.empty(len(numbers), object)
    texts[:] = [f"{prefix}{number:0{width}d}" for number in numbers.tolist()]
    return texts


def _times(times: Ints, mask: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    return pa.array(times, pa.int64(), mask=mask).cast(schema.TIMESTAMP)
