"""The stage tables as Arrow schemas, and the check at each stage's door.

Vectors and code tuples are fixed-size lists whose width the config decides, so those schemas are functions of it.
"""

import pyarrow as pa

TIMESTAMP = pa.timestamp("us", tz="UTC")

EVENT_KINDS = ("impression", "click", "cart", "purchase", "search")

#: What a user brings (design: "Input tables"). Fields marked non-nullable are required; the others may be missing.
USERS = pa.schema([pa.field("user_id", pa.string(), nullable=False)])
ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("category", pa.list_(pa.string())),  # root -> leaf
        pa.field("brand", pa.string()),
        pa.field("price", pa.float64()),
        pa.field("image", pa.binary()),
        pa.field("image_uri", pa.string()),
        pa.field("first_seen", TIMESTAMP),
    ]
)
EVENTS = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("ts", TIMESTAMP, nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # one of EVENT_KINDS
        pa.field("item_id", pa.string()),  # null only for search
        pa.field("query", pa.string()),
        pa.field("price", pa.float64()),
        pa.field("quantity", pa.float64()),
        pa.field("request_id", pa.string()),  # what was shown or bought together
    ]
)

#: One row per labelled exposure. Written by `logs` in seeded random order, so that any run of rows is a fair sample.
EXAMPLES = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("ts", TIMESTAMP, nullable=False),  # features may use events strictly before it
        pa.field("split", pa.string(), nullable=False),  # train | validation | test
        pa.field("origin", pa.string(), nullable=False),  # logged: the exposure is in the logs | sampled: a declared policy made it
        pa.field("request_id", pa.string()),
        pa.field("outcome", pa.int8(), nullable=False),  # 0 | 1
        pa.field("conversion", pa.int8()),  # 0 | 1; null where the source has one outcome only
    ]
)
SPLITS = ("train", "validation", "test")

#: One row per truncated user; written by `logs` where logs.truncate is on.
TRUNCATED = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("num_baskets", pa.int32(), nullable=False),  # what the user keeps, the last before history_end
    ]
)

#: One row per item that was made cold; written by `logs` where logs.cold_start is on.
COLD_ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("num_events", pa.int32(), nullable=False),  # what the item keeps, before validation starts
    ]
)

#: One row per (user_id, as_of).
PROFILES = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("as_of", TIMESTAMP, nullable=False),
        pa.field("prompt_hash", pa.string(), nullable=False),
        pa.field("facts", pa.string(), nullable=False),  # the user's part of the prompt
        pa.field("raw_text", pa.string(), nullable=False),  # what the model said, "" where it was not asked
        pa.field("identity", pa.string(), nullable=False),
        pa.field("interests", pa.string(), nullable=False),
        pa.field("philosophy", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),  # the three fields as they are embedded
        pa.field("outcome", pa.string(), nullable=False),  # llm | deterministic | fallback:<reason>
        pa.field("cached", pa.bool_(), nullable=False),
        pa.field("cut_lines", pa.int32(), nullable=False),  # fact lines that did not fit max_fact_tokens
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("output_tokens", pa.int32(), nullable=False),
    ]
)

#: One row per (as_of, group prefix); the empty prefix (depth 0) is everyone and serves unknown users.
GROUPS = pa.schema(
    [
        pa.field("as_of", TIMESTAMP, nullable=False),
        pa.field("depth", pa.int8(), nullable=False),
        pa.field("prefix", pa.list_(pa.int32()), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("attributes", pa.list_(pa.int32()), nullable=False),  # majority value per attribute, 0 unknown
        pa.field("support", pa.list_(pa.float32()), nullable=False),  # share of the members who have a value and agree with it
        pa.field("stats", pa.list_(pa.float32()), nullable=False),  # mean of the members' statistical features
        pa.field("sequence", pa.list_(pa.string()), nullable=False),  # item_ids, ordered by mean purchase time
        pa.field("sequence_weight", pa.list_(pa.float32()), nullable=False),
    ]
)

#: One row per (user_id, as_of) of a user who has peers; empty where peers.form is "none".
PEERS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("as_of", TIMESTAMP, nullable=False),
        pa.field("peers", pa.list_(pa.list_(pa.string())), nullable=False),  # user_ids by level, widest first; within a level nearest first
        pa.field("weights", pa.list_(pa.list_(pa.float32())), nullable=False),  # how much each of them counts, 1 the most
    ]
)

#: One row per (as_of, method, source item, target item) whose weight is kept; empty where collaborative.scores is.
COLLABORATIVE = pa.schema(
    [
        pa.field("as_of", TIMESTAMP, nullable=False),
        pa.field("method", pa.string(), nullable=False),  # ease | svd
        pa.field("source_item_id", pa.string(), nullable=False),  # what a user has met …
        pa.field("target_item_id", pa.string(), nullable=False),  # … adds the weight to this item's score
        pa.field("weight", pa.float32(), nullable=False),
    ]
)

PREDICTIONS = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("ranker", pa.string(), nullable=False),
        pa.field("head", pa.string(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("alpha_fusion", pa.float32()),  # ChoirRec only
        pa.field("num_purchases", pa.int32(), nullable=False),  # the user's, before the row
        pa.field("item_events", pa.int32(), nullable=False),  # the item's, before the row's snapshot
        pa.field("item_age_days", pa.float32(), nullable=False),  # at the snapshot, 0 where not seen by then, NaN where the first sight is unknown
    ]
)


def vectors(key: pa.Schema, dim: int) -> pa.Schema:
    """`key`'s columns plus `vector`, an L2-normalised fixed_size_list<float32>[dim]."""
    return key.append(pa.field("vector", pa.list_(pa.float32(), dim), nullable=False))


def codes(key: pa.Schema, num_stages: int) -> pa.Schema:
    """`key`'s columns plus `codes`, a fixed_size_list<int32>[num_stages] of centroid numbers from 0."""
    return key.append(pa.field("codes", pa.list_(pa.int32(), num_stages), nullable=False))


USER_KEY = pa.schema([pa.field("user_id", pa.string(), nullable=False), pa.field("as_of", TIMESTAMP, nullable=False)])
ITEM_KEY = pa.schema([pa.field("item_id", pa.string(), nullable=False)])

#: One row per item: with its code tuple the place names the item alone; empty where codes.item.num_places is 0.
RESOLVED = ITEM_KEY.append(pa.field("place", pa.int32(), nullable=False))


def check(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """`table` with exactly `schema`'s columns, in its order and types; raises ValueError that names what is missing and what is there."""
    missing = [field.name for field in schema if field.name not in table.column_names]
    if missing:
        raise ValueError(f"table {name!r} lacks {missing}; it has {table.column_names}. Write it with the stage that owns it, or bring the columns.")
    columns = []
    for field in schema:
        column = table.column(field.name)
        if column.type != field.type:
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ValueError(f"table {name!r}: column {field.name!r} is {column.type} and does not cast to {field.type}: {error}") from error
        if not field.nullable and column.null_count:
            raise ValueError(f"table {name!r}: column {field.name!r} has {column.null_count} nulls and may have none. Drop or fill those rows.")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)
