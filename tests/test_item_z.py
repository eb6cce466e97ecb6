"""Item z: spaces side by side, controls, and which items codebooks may be fitted on."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from longtail.artifacts import Artifact, Store
from longtail.item_z import ItemZSettings, controlled, side_by_side
from longtail.projection import ItemEncoder, Projection, ProjectionShape, load_projection
from longtail.user_spaces import unit
from longtail.vectors import to_arrow, to_numpy
from pipelines.item_z import ITEM_Z
from tests import planted_artifacts as planted

Floats = NDArray[np.float32]
SHAPE = ProjectionShape(16, 0, 4, 0, None, True)


def texts(num: int = planted.NUM_ITEMS) -> Floats:
    return unit(np.random.default_rng(1).normal(size=(num, 16)))


def encoders() -> dict[str, ItemEncoder]:
    return {name: ItemEncoder(Projection.start(SHAPE, texts()[:rows], 7)) for name, rows in (("trained", 20), ("frozen", 60))}


def written(store: Store) -> Artifact:
    """What the item encoder leaves behind."""
    draft = store.create("item_encoder", "test")
    ids = [f"i{number}" for number in range(planted.NUM_ITEMS)]
    for name, encoder in encoders().items():
        draft.write(name, pa.table({"item_id": ids, "vector": to_arrow(encoder.project(texts()))}))
        for file, content in encoder.files().items():
            with draft.fs.open_output_stream(draft.path(f"{name}/{file}")) as stream:
                stream.write(content)
    return draft.commit(config={}, inputs={}, seed=7, rows_in=1, rows_out=1, dropped={}, info={})


def test_spaces_side_by_side_multiply_to_the_mean_of_their_products() -> None:
    first, second = unit(np.array([[1.0, 0.0], [0.6, 0.8]])), unit(np.array([[0.0, 1.0], [0.0, 1.0]]))
    joined = side_by_side([first, second])
    np.testing.assert_allclose(joined @ joined.T, [[1.0, 0.8], [0.8, 1.0]], atol=1e-6)
    np.testing.assert_array_equal(side_by_side([first]), first)


def test_a_control_keeps_the_vectors_or_their_length_and_nothing_else() -> None:
    z = texts(50)
    assert controlled(z, "none", 1) is z
    dealt, drawn = controlled(z, "shuffled", 1), controlled(z, "random", 1)
    assert sorted(map(tuple, dealt)) == sorted(map(tuple, z))
    assert (dealt == z).all(axis=1).sum() < 5
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-6)
    assert abs((drawn * z).sum(axis=1)).mean() < 0.4
    assert not np.array_equal(dealt, controlled(z, "shuffled", 2))
    np.testing.assert_array_equal(dealt, controlled(z, "shuffled", 1))


def test_a_space_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="name each once"):
        ItemZSettings(spaces=("frozen", "frozen"))


@pytest.mark.parametrize("spaces", [["trained"], ["frozen"], ["trained", "frozen"]])
def test_the_stage_writes_what_its_own_projection_gives(tmp_path: Path, spaces: list[str]) -> None:
    store = planted.open_store(tmp_path, "run")
    found = planted.build(ITEM_Z, [planted.logs(store), written(store)], store, {"item_z": {"spaces": spaces}})
    z = to_numpy(found.read("z")["vector"])
    np.testing.assert_allclose(z, side_by_side([encoders()[name].project(texts()) for name in spaces]), atol=1e-6)
    np.testing.assert_allclose(load_projection(found.fs, found.root).project(texts()), z, atol=1e-6)


def test_codebooks_see_no_item_that_nobody_had_met_when_the_history_window_ended(tmp_path: Path) -> None:
    store = planted.open_store(tmp_path, "run")
    logs = planted.logs(store)
    events = logs.read("events")
    first, end = events.slice(0, 3), planted.INFO.history_end
    late = pa.array([end, end + timedelta(days=1), end - timedelta(microseconds=1)], events.schema.field("ts").type)
    ids = pa.array(["i1", "i2", "i3"])
    few = first.set_column(first.schema.get_field_index("ts"), "ts", late).set_column(first.schema.get_field_index("item_id"), "item_id", ids)
    store = planted.open_store(tmp_path, "few")
    logs = planted.commit(store, "logs", {"events": few, "items": logs.read("items")}, planted.INFO.model_dump(mode="json"))
    assert planted.build(ITEM_Z, [logs, written(store)], store, {}).read("known")["item_id"].to_pylist() == ["i3"]
