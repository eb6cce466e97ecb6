"""Item z: one vector for every item, of the spaces that rankers and codebooks are to see.

Reads logs (which items had an event in the history window) and item_encoder; writes z.parquet (item_id, vector) for every item, known.parquet (item_id) of
the items that codebooks may be fitted on, and projection.safetensors with its .json, from which a server encodes items that came later.
Run: python -m pipelines.item_z --config …
"""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from longtail import schema
from longtail.artifacts import Artifact, Draft
from longtail.item_z import controlled, side_by_side
from longtail.projection import ItemEncoder, load_projection
from longtail.run_state import logs_info
from longtail.settings import own_seed
from longtail.vectors import to_arrow, to_numpy
from pipelines.item_encoder import ITEM_ENCODER
from pipelines.logs import LOGS
from pipelines.stage import Context, Result, Stage, main_for


def known_items(logs: Artifact) -> pa.Table:
    """The items that had an event before the history window ended (item_id): codebooks see no item that nobody had met then."""
    before = pads.field("ts") < pa.scalar(logs_info(logs).history_end, schema.TIMESTAMP)
    events = pads.dataset(logs.path("events.parquet"), filesystem=logs.fs, format="parquet").to_table(columns=["item_id"], filter=before)
    return pa.table({"item_id": pc.unique(events.column("item_id")).drop_null().sort()}, schema=schema.ITEM_KEY)


def _build(context: Context, draft: Draft) -> Result:
    encoder, settings = context.inputs["item_encoder"], context.config.item_z
    parts = [encoder.read(space) for space in settings.spaces]
    z = controlled(side_by_side([to_numpy(part.column("vector")) for part in parts]), settings.control, own_seed(settings.seed, context.seed))
    draft.write("z", pa.table({"item_id": parts[0].column("item_id"), "vector": to_arrow(z)}, schema=schema.vectors(schema.ITEM_KEY, z.shape[1])))
    known = known_items(context.inputs["logs"])
    draft.write("known", known)
    projections = [load_projection(encoder.fs, encoder.path(space)) for space in settings.spaces]
    for file, content in ItemEncoder.side_by_side(projections).files().items():
        with draft.fs.open_output_stream(draft.path(file)) as stream:
            stream.write(content)
    return Result(rows_in=len(z), rows_out=len(z), info={"spaces": list(settings.spaces), "control": settings.control, "known": len(known)})


def _settings_without_idle_seed(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name != "seed" or fields["control"] != "none"}


ITEM_Z = Stage(
    name="item_z",
    version=2,
    inputs=(LOGS, ITEM_ENCODER),
    settings=lambda config: _settings_without_idle_seed(config.item_z.key_fields()),
    build=_build,
    command="pipelines.item_z",
)


def main() -> None:
    main_for(__doc__ or "", lambda config: [ITEM_Z])


if __name__ == "__main__":
    main()
