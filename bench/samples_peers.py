"""The features of samples that cost most, as one would write them by hand in polars and in DuckDB: the peers of `bench.samples`.

Both answer for every example: the user's purchases so far and the time of the last event, how often and when last the user met the same item and the same leaf
category, how often the same root and brand, the item's events before the week's boundary, and the last items with how many days ago each was.
Reads a world's tables; writes one Parquet file, whose rows come in any order. Unknown categories and brands count as never met, and so say the samples.
"""

from pathlib import Path

import duckdb
import polars as pl

from bench.world import World
from longtail.times import DAY_US, to_us

COUNTS = ("purchases", "same_item", "same_leaf", "same_root", "same_brand", "item_events")
LASTS = ("last", "last_item", "last_leaf")  # microseconds, null where there was nothing


def polars_samples(world: World, target: Path, length: int, snapshot_days: int) -> Path:
    """Lazy queries: windows over events and examples together, an as-of join for the items, and gathers for the history.

    Windows took 12 s where five as-of joins by key took 24 s, and the streaming engine two thirds of the other's time for them (20 M events, 2 threads).
    """
    start, period = to_us(world.info.start), snapshot_days * DAY_US
    both = _polars_windows(world).collect(engine="streaming")
    is_event = pl.col("is_event") == 1
    snapshot = start + (pl.col("ts") - start) // period * period
    counts = pl.col("num").cum_sum().over("item").cast(pl.Int32).alias("item_events")
    weeks = both.lazy().filter(is_event).select("item", snapshot=snapshot + period).group_by("item", "snapshot").len("num").sort("item", "snapshot")
    weeks = weeks.select("item", "snapshot", counts).sort("snapshot")
    rows = both.lazy().filter(~is_event).with_columns(snapshot=snapshot).sort("snapshot")
    rows = rows.join_asof(weeks, on="snapshot", by="item", strategy="backward", check_sortedness=False)
    events = both.filter(is_event)

    def before(name: str, back: int) -> pl.Expr:
        return pl.lit(events[name]).gather(pl.when(pl.col("num_user") > back).then(pl.col("place") - 1 - back))

    history = [before("item", back).fill_null(0) for back in range(length)]
    days = [((pl.col("ts") - before("ts", back)) / float(DAY_US)).cast(pl.Float32).fill_null(0) for back in range(length)]
    columns = [pl.col("example_id"), pl.col("ts"), *(pl.col(name).fill_null(0) for name in COUNTS), *(pl.col(name) for name in LASTS)]
    made = rows.select(*columns, history=pl.concat_arr(history), history_days=pl.concat_arr(days)).collect()
    made.write_parquet(target, compression="zstd", compression_level=1)
    return target


def _polars_windows(world: World) -> pl.LazyFrame:
    """Events and examples by user and time, events after examples of the same time, with what each knows of the events so far."""
    users = pl.scan_parquet(world.path("users")).select("user_id").sort("user_id").with_row_index("user", offset=1)
    items = pl.scan_parquet(world.path("items")).sort("item_id").with_row_index("item", offset=1)
    path = pl.col("category")
    codes = {"leaf": path.list.join(" > "), "root": path.list.first(), "brand": pl.col("brand")}
    items = items.select("item_id", pl.col("item").cast(pl.Int32), **{name: value.rank("dense").cast(pl.Int32) for name, value in codes.items()})

    def coded(table: pl.LazyFrame, is_event: int, example: pl.Expr, purchase: pl.Expr) -> pl.LazyFrame:
        joined = table.join(users.with_columns(pl.col("user").cast(pl.Int32)), on="user_id").join(items, on="item_id")
        flags = [pl.lit(is_event, pl.Int32).alias("is_event"), purchase.cast(pl.Int32).alias("purchase"), example.alias("example_id")]
        return joined.select("user", "item", *codes, pl.col("ts").cast(pl.Int64), *flags)

    events = pl.scan_parquet(world.path("events")).select("user_id", "item_id", "ts", "kind").filter(pl.col("kind").is_in(["click", "purchase"]))
    examples = pl.scan_parquet(f"{world.path('examples')}/*.parquet").select("user_id", "item_id", "ts", "example_id")
    coded_events = coded(events, 1, pl.lit(-1, pl.Int64), pl.col("kind") == "purchase")
    both = pl.concat([coded_events, coded(examples, 0, pl.col("example_id"), pl.lit(0))]).sort("user", "ts", "is_event")
    so_far, last = pl.col("is_event").cum_sum(), pl.when(pl.col("is_event") == 1).then(pl.col("ts")).forward_fill()

    def known(key: str, value: pl.Expr) -> pl.Expr:
        return pl.when(pl.col(key).is_not_null()).then(value.over("user", key))

    return both.with_columns(
        num_user=so_far.over("user"),
        purchases=pl.col("purchase").cum_sum().over("user"),
        last=last.over("user"),
        same_item=so_far.over("user", "item"),
        last_item=last.over("user", "item"),
        same_leaf=known("leaf", so_far),
        last_leaf=known("leaf", last),
        same_root=known("root", so_far),
        same_brand=known("brand", so_far),
        place=so_far,
    )


def duckdb_samples(world: World, target: Path, length: int, snapshot_days: int, threads: int) -> Path:
    """SQL: windows over events and examples together, an as-of join for the items, and the history out of lists of `length` events each.

    A list of all events per user, cut for each example, took four times as long and 8 GB: busy users' lists are copied for every example.
    """
    start, period = to_us(world.info.start), snapshot_days * DAY_US
    with duckdb.connect() as con:
        con.execute(f"set threads = {threads}; set preserve_insertion_order = false; set memory_limit = '5GB'; set temp_directory = '{target}.spill'")
        con.execute(_DUCKDB_TABLES.format(world=world, start=start, period=period, length=length))
        con.execute(f"create temp table counted as {_DUCKDB_WINDOWS}")
        con.execute(f"copy ({_DUCKDB_ROWS.format(start=start, period=period, length=length)}) to '{target}' (format parquet, compression zstd)")
    return target


_DUCKDB_TABLES = """
create temp table users as select user_id, (row_number() over (order by user_id))::int as user_row from '{world.folder}/users.parquet';
create temp table items as select item_id, (row_number() over (order by item_id))::int as item_row,
    case when category is not null then (dense_rank() over (order by array_to_string(category, ' > ')))::int end as leaf,
    case when category is not null then (dense_rank() over (order by category[1]))::int end as root,
    case when brand is not null then (dense_rank() over (order by brand))::int end as brand
  from '{world.folder}/items.parquet';
create temp table events as select user_row, item_row, leaf, root, brand, epoch_us(ts) as ts, (kind = 'purchase')::int as purchase
  from '{world.folder}/events.parquet' join users using (user_id) join items using (item_id) where kind in ('click', 'purchase');
create temp table examples as select example_id, user_row, item_row, leaf, root, brand, epoch_us(ts) as ts
  from '{world.folder}/examples.parquet/*.parquet' join users using (user_id) join items using (item_id);
create temp table weeks as select item_row, snapshot, (sum(num) over (partition by item_row order by snapshot))::int as item_events
  from (select item_row, {start} + ((ts - {start}) // {period} + 1) * {period} as snapshot, count(*) as num from events group by all);
create temp table blocks as select user_row, place // {length} as block, list(item_row order by place desc) as items, list(ts order by place desc) as times
  from (select user_row, item_row, ts, row_number() over (partition by user_row order by ts) - 1 as place from events) group by all;
"""

_FRAME = "order by ts, is_event rows between unbounded preceding and current row"
_DUCKDB_WINDOWS = f"""
select * from (select user_row, item_row, ts, is_event, example_id,
    (sum(is_event) over of_user)::int as num_user, (sum(purchase) over of_user)::int as purchases, max(event_ts) over of_user as last,
    (sum(is_event) over of_item)::int as same_item, max(event_ts) over of_item as last_item,
    case when leaf is null then 0 else (sum(is_event) over of_leaf)::int end as same_leaf,
    case when leaf is not null then max(event_ts) over of_leaf end as last_leaf,
    case when root is null then 0 else (sum(is_event) over of_root)::int end as same_root,
    case when brand is null then 0 else (sum(is_event) over of_brand)::int end as same_brand
  from (select user_row, item_row, leaf, root, brand, ts, 1 as is_event, purchase, ts as event_ts, -1 as example_id from events
        union all select user_row, item_row, leaf, root, brand, ts, 0, 0, null, example_id from examples)
  window of_user as (partition by user_row {_FRAME}), of_item as (partition by user_row, item_row {_FRAME}),
    of_leaf as (partition by user_row, leaf {_FRAME}), of_root as (partition by user_row, root {_FRAME}), of_brand as (partition by user_row, brand {_FRAME}))
where is_event = 0"""

_DUCKDB_ROWS = """
select example_id, asked.ts, purchases, same_item, same_leaf, same_root, same_brand, coalesce(weeks.item_events, 0) as item_events, last, last_item, last_leaf,
    list_resize(recent, {length}, 0) as history,
    list_resize(list_transform(recent_ts, lambda one: ((asked_ts - one) / 86400000000)::float), {length}, 0) as history_days
  from (select counted.*, counted.ts as asked_ts,
      list_concat(own.items[len(own.items) - num_user % {length} + 1 :], earlier.items)[: {length}] as recent,
      list_concat(own.times[len(own.times) - num_user % {length} + 1 :], earlier.times)[: {length}] as recent_ts
    from counted left join blocks own on own.user_row = counted.user_row and own.block = num_user // {length}
      left join blocks earlier on earlier.user_row = counted.user_row and earlier.block = num_user // {length} - 1) asked
  asof left join weeks on asked.item_row = weeks.item_row and {start} + (asked.ts - {start}) // {period} * {period} >= weeks.snapshot"""
