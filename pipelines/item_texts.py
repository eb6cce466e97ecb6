"""Item texts: what the text encoder is shown of every item.

Reads logs' items; writes texts.parquet (item_id, text), ordered by text. A stage of its own, so that logs that differ in their events alone share the
vectors, which are dear.
Run: python -m pipelines.item_texts --config …
"""

import pyarrow as pa
import pyarrow.compute as pc

from longtail.artifacts import Draft
from longtail.embeddings import ITEM_TEXT_COLUMNS, item_texts
from pipelines.logs import LOGS
from pipelines.stage import Context, Result, Stage, main_for


def _build(context: Context, draft: Draft) -> Result:
    items = context.inputs["logs"].read("items", ["item_id", *ITEM_TEXT_COLUMNS])
    table = pa.table({"item_id": items.column("item_id"), "text": pa.array(item_texts(items), pa.string())})
    order = pc.sort_indices(table, sort_keys=[("text", "ascending"), ("item_id", "ascending")])  # equal texts meet in one block and are embedded once
    draft.write("texts", table.take(order).combine_chunks())
    return Result(rows_in=len(table), rows_out=len(table))


ITEM_TEXTS = Stage("item_texts", 1, (LOGS,), lambda config: {}, _build, "pipelines.item_texts")


def main() -> None:
    main_for(__doc__ or "", lambda config: [ITEM_TEXTS])


if __name__ == "__main__":
    main()
