"""Groups as one would write them by hand in polars and in DuckDB: the peers of `bench.groups`.

Both answer for every prefix of the user codes as of the end of the history window: size, majority values and their support, mean statistics of the members, and
the head items of the top categories by mean purchase time, with their shares. Ties go as in longtail.groups: to the smaller value, category and item.
Reads a world's tables; writes one Parquet file, whose rows come in any order.
"""

from pathlib import Path

import duckdb
import polars as pl

from bench.world import World
from bench.world_tables import ATTRIBUTES
from longtail.entities import MAX_CATEGORY_LEVELS
from longtail.features import NEVER_DAYS, USER_STATS
from longtail.groups import GroupsSettings
from longtail.times import DAY_US, to_us

CELL = ("leaf", "item")
MONTH_US = 28 * DAY_US


def polars_groups(world: World, target: Path, settings: GroupsSettings) -> Path:
    """Lazy queries, the events by user and by (code, item) in one pass; what is shorter than the whole codes is rolled up from them."""
    codes = [f"c{place}" for place in range(world.sizes.num_stages)]
    as_of = to_us(world.info.history_end)
    users = pl.scan_parquet(world.path("user_codes")).select("user_id", *(pl.col("codes").arr.get(place).alias(name) for place, name in enumerate(codes)))
    users = users.with_row_index("user")
    attributes = pl.scan_parquet(world.path("users")).with_columns(pl.col(name).rank("dense").cast(pl.Int32) for name in ATTRIBUTES)
    events = _polars_events(world, users.select("user_id", "user", *codes), as_of)
    stats, cells = pl.collect_all([_polars_stats(events, as_of), _polars_cells(events, codes, as_of)])
    members = users.join(attributes, on="user_id", how="left").join(stats.lazy(), on="user", how="left")
    filled = [pl.col(name).fill_null(float(pl.Series([NEVER_DAYS]).log1p()[0]) if name == "log_days_since_last" else 0.0) for name in USER_STATS]
    members = members.with_columns(filled).collect().lazy()
    tables = [_polars_depth(members, cells.lazy(), codes[:depth], settings) for depth in range(len(codes), -1, -1)]
    pl.concat(pl.collect_all(tables)).write_parquet(target, compression="zstd", compression_level=1)
    return target


def _polars_events(world: World, users: pl.LazyFrame, as_of: int) -> pl.LazyFrame:
    """Clicks and purchases before `as_of` with who and what they are of, as numbers."""
    level = pl.col("category").list.len().clip(upper_bound=MAX_CATEGORY_LEVELS).cast(pl.String)
    path = (level + pl.col("category").list.join(" > ")).rank("dense").cast(pl.Int32).fill_null(0)
    items = pl.scan_parquet(world.path("items")).sort("item_id").with_row_index("item").select("item_id", "item", leaf=path, item_price="price")
    events = pl.scan_parquet(world.path("events")).select("user_id", "item_id", "ts", "kind", "price")
    events = events.filter(pl.col("kind").is_in(["click", "purchase"]) & (pl.col("ts") < world.info.history_end))
    joined = events.join(users, on="user_id").join(items, on="item_id")
    price = pl.coalesce("price", "item_price").clip(lower_bound=0).log1p()
    return joined.select(
        pl.exclude("user_id", "item_id", "kind", "price", "item_price", "ts"), ts=pl.col("ts").cast(pl.Int64), bought=pl.col("kind") == "purchase", price=price
    )


def _polars_stats(events: pl.LazyFrame, as_of: int) -> pl.LazyFrame:
    day, bought = pl.col("ts") // DAY_US, pl.col("bought")
    counts = {
        "log_purchases": bought.sum(),
        "log_clicks": (~bought).sum(),
        "log_active_days": day.filter(day < as_of // DAY_US).n_unique(),
        "log_events_28d": (pl.col("ts") >= as_of - MONTH_US).sum(),
        "log_days_since_last": (as_of - pl.col("ts").max()) / DAY_US,
    }
    named = {name: count.cast(pl.Float64).log1p() for name, count in counts.items()}
    return events.group_by("user").agg(mean_log_price=pl.col("price").mean().fill_null(0), **named)


def _polars_cells(events: pl.LazyFrame, codes: list[str], as_of: int) -> pl.LazyFrame:
    return events.filter("bought").group_by(*codes, *CELL).agg(num=pl.len().cast(pl.Int64), age=(as_of - pl.col("ts")).sum())


def _polars_depth(members: pl.LazyFrame, cells: pl.LazyFrame, codes: list[str], settings: GroupsSettings) -> pl.LazyFrame:
    """All groups of one depth."""
    key = codes or ["all"]
    if not codes:
        members, cells = members.with_columns(all=pl.lit(0, pl.Int32)), cells.with_columns(all=pl.lit(0, pl.Int32))
    groups = members.group_by(key).agg(pl.len().alias("size"), *(pl.col(name).mean() for name in USER_STATS))
    for name in ATTRIBUTES:
        votes = members.filter(pl.col(name).is_not_null()).group_by(*key, name).len("votes").sort("votes", name, descending=[True, False])
        best = votes.group_by(key).agg(pl.col(name).first(), known=pl.col("votes").sum(), support=pl.col("votes").first())
        best = best.filter(pl.col("known") >= settings.min_support).select(*key, name, (pl.col("support") / pl.col("known")).alias(f"{name}_support"))
        groups = groups.join(best, on=key, how="left")
    cells = cells.group_by(*key, *CELL).agg(pl.col("num", "age").sum())
    leaves = cells.group_by(*key, "leaf").agg(pl.col("num").sum()).sort("num", "leaf", descending=[True, False])
    leaves = leaves.group_by(key, maintain_order=True).head(settings.sequence_categories)
    total = cells.group_by(key).agg(total=pl.col("num").sum())
    heads = cells.join(leaves, on=[*key, "leaf"], how="semi").sort("num", "item", descending=[True, False])
    heads = heads.group_by(*key, "leaf", maintain_order=True).head(settings.items_per_category)
    heads = heads.join(total, on=key).with_columns(mean=-pl.col("age") / pl.col("num"), weight=pl.col("num") / pl.col("total")).sort("mean", "item")
    groups = groups.join(heads.group_by(key, maintain_order=True).agg(sequence="item", weight="weight"), on=key, how="left")
    prefix = pl.concat_list(codes) if codes else pl.lit([], pl.List(pl.Int32))
    attributes = [
        pl.concat_list(pl.col(f"{name}{end}").fill_null(0) for name in ATTRIBUTES).alias(alias) for end, alias in (("", "attributes"), ("_support", "support"))
    ]
    lists = {"attributes": attributes[0], "support": attributes[1], "stats": pl.concat_list(USER_STATS), "sequence": pl.col("sequence").fill_null([])}
    return groups.select("size", depth=pl.lit(len(codes)), prefix=prefix, sequence_weight=pl.col("weight").fill_null([]), **lists)


def duckdb_groups(world: World, target: Path, settings: GroupsSettings, threads: int) -> Path:
    """SQL: events as numbers once, cells of the whole codes, and grouping by each prefix."""
    codes = [f"c{place}" for place in range(world.sizes.num_stages)]
    as_of = to_us(world.info.history_end)
    names = {
        "world": world.folder,
        "as_of": as_of,
        "day": DAY_US,
        "month": as_of - MONTH_US,
        "never": NEVER_DAYS,
        "levels": MAX_CATEGORY_LEVELS,
        "codes": ", ".join(codes),
        "picked": ", ".join(f"codes[{place + 1}] as c{place}" for place in range(len(codes))),
        "ranks": ", ".join(f"case when {name} is not null then dense_rank() over (order by {name} nulls last) end::int as {name}" for name in ATTRIBUTES),
    }
    with duckdb.connect() as con:
        con.execute(f"set threads = {threads}; set preserve_insertion_order = false; set memory_limit = '5GB'; set temp_directory = '{target}.spill'")
        con.execute(_DUCKDB_TABLES.format(**names))
        parts = [_duckdb_depth(codes[:depth], settings) for depth in range(len(codes) + 1)]
        con.execute(f"copy ({' union all '.join(parts)}) to '{target}' (format parquet, compression zstd)")
    return target


_DUCKDB_TABLES = """
create temp table users as select (row_number() over ())::int as user_row, user_id, {picked} from '{world}/user_codes.parquet';
create temp table items as select item_id, (row_number() over (order by item_id) - 1)::int as item, price,
    case when category is null then 0
      else (dense_rank() over (order by category is null, least(len(category), {levels}), array_to_string(category, ' > ')))::int end as leaf
  from '{world}/items.parquet';
create temp table events as select user_row, {codes}, item, leaf, epoch_us(ts) as ts, kind = 'purchase' as bought,
    case when coalesce(e.price, i.price) is not null then ln(1 + greatest(coalesce(e.price, i.price), 0)) end as price
  from '{world}/events.parquet' e join users using (user_id) join items i using (item_id)
  where kind in ('click', 'purchase') and ts < make_timestamptz({as_of});
create temp table stats as select user_row, ln(1 + count(*) filter (bought)) as log_purchases, ln(1 + count(*) filter (not bought)) as log_clicks,
    ln(1 + count(distinct ts // {day}) filter (ts // {day} < {as_of} // {day})) as log_active_days, ln(1 + count(*) filter (ts >= {month})) as log_events_28d,
    ln(1 + ({as_of} - max(ts)) / {day}) as log_days_since_last, coalesce(avg(price), 0) as mean_log_price from events group by user_row;
create temp table cells as select {codes}, leaf, item, count(*) as num, sum({as_of} - ts) as age from events where bought group by all;
create temp table members as select {codes}, attributes.* exclude (user_id), coalesce(log_purchases, 0) as log_purchases, coalesce(log_clicks, 0) as log_clicks,
    coalesce(log_active_days, 0) as log_active_days, coalesce(log_events_28d, 0) as log_events_28d,
    coalesce(log_days_since_last, ln(1 + {never})) as log_days_since_last, coalesce(mean_log_price, 0) as mean_log_price
  from users left join (select user_id, {ranks} from '{world}/users.parquet') attributes using (user_id) left join stats using (user_row);
"""


def _duckdb_depth(codes: list[str], settings: GroupsSettings) -> str:
    """All groups of one depth, by a key that is the list of their codes."""
    key = f"[{', '.join(codes)}]::int[]"
    votes = "".join(
        f""" left join (select key, arg_max({name}, votes * 1000000 - {name}) as {name}, max(votes) / sum(votes) as {name}_support
        from (select {key} as key, {name}, count(*) as votes from members where {name} is not null group by all)
        group by key having sum(votes) >= {settings.min_support}) using (key)"""
        for name in ATTRIBUTES
    )
    return f"""(with cells_of as (select {key} as key, leaf, item, sum(num) as num, sum(age) as age from cells group by all),
      leaves as (select key, leaf from (select key, leaf, sum(num) as num from cells_of group by all)
        qualify row_number() over (partition by key order by num desc, leaf) <= {settings.sequence_categories}),
      totals as (select key, sum(num) as total from cells_of group by key),
      heads as (select * from cells_of semi join leaves using (key, leaf)
        qualify row_number() over (partition by key, leaf order by num desc, item) <= {settings.items_per_category}),
      sequences as (select key, list(item order by -age / num, item) as sequence, list((num / total)::double order by -age / num, item) as sequence_weight
        from heads join totals using (key) group by key),
      sizes as (select {key} as key, count(*) as size, [{", ".join(f"avg({name})" for name in USER_STATS)}] as stats from members group by key)
    select {len(codes)} as depth, key as prefix, size, [{", ".join(f"coalesce({name}, 0)" for name in ATTRIBUTES)}] as attributes,
      [{", ".join(f"coalesce({name}_support, 0)" for name in ATTRIBUTES)}] as support, stats, coalesce(sequence, []) as sequence,
      coalesce(sequence_weight, []) as sequence_weight from sizes left join sequences using (key){votes})"""
