"""Blocks of a Ray Data plan: cut, put together, and what their times tell."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtail.artifacts import Store
from longtail.config import ClusterSettings
from longtail.settings import Compute
from pipelines import blocks

OWN = ClusterSettings()
SCHEMA = pa.schema([pa.field("user_id", pa.string(), nullable=False), pa.field("n", pa.int64())])


def table(rows: int) -> pa.Table:
    return pa.table({"user_id": [f"u{row}" for row in range(rows)], "n": list(range(rows))})


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_parts_make_the_table_again_whatever_the_block_size_and_order(size: int, tmp_path: Path) -> None:
    draft = Store.open(str(tmp_path)).create("profiles", "k")
    folder = blocks.parts_folder(draft, "t")
    cut = blocks.cut(table(7), size)
    for block in [*reversed(cut), cut[0]]:  # any order, and one of them twice as after a retry
        assert blocks.write_part(block, str(tmp_path), folder, SCHEMA.names) is block
    blocks.merge(draft, folder, "t", SCHEMA, 7)
    written = pq.read_table(draft.path("t.parquet"))
    assert written.schema.equals(SCHEMA)
    assert written.to_pylist() == table(7).to_pylist()
    assert not Path(folder).exists()


def test_merging_is_the_same_bytes_for_any_block_size(tmp_path: Path) -> None:
    files = []
    for size in (2, 5):
        draft = Store.open(str(tmp_path)).create("profiles", "k")
        folder = blocks.parts_folder(draft, "t")
        for block in blocks.cut(table(11), size):
            blocks.write_part(block, str(tmp_path), folder, SCHEMA.names)
        blocks.merge(draft, folder, "t", SCHEMA, 11)
        files.append(Path(draft.path("t.parquet")).read_bytes())
    assert files[0] == files[1]


def test_a_lost_part_is_noticed(tmp_path: Path) -> None:
    draft = Store.open(str(tmp_path)).create("profiles", "k")
    folder = blocks.parts_folder(draft, "t")
    for block in blocks.cut(table(11), 5)[1:]:
        blocks.write_part(block, str(tmp_path), folder, SCHEMA.names)
    with pytest.raises(RuntimeError, match="the parts hold 6 rows, the plan was given 11"):
        blocks.merge(draft, folder, "t", SCHEMA, 11)


def span(first: tuple[float, float], second: tuple[float, float]) -> dict[str, float]:
    return {"a_started": first[0], "a_ended": first[1], "b_started": second[0], "b_ended": second[1]}


def test_overlap_by_hand() -> None:
    one_after_the_other = [span((0, 10), (10, 14)), span((14, 20), (20, 21))]
    assert blocks.overlap_s(one_after_the_other, "a", "b") == 0
    side_by_side = [span((0, 10), (10, 14)), span((10, 20), (20, 25)), span((20, 22), (26, 27))]
    assert blocks.overlap_s(side_by_side, "a", "b") == 4 + 2
    assert blocks.span(side_by_side, "b") == {"first_started": 10, "last_ended": 27, "busy_s": 10}


def test_a_summary_is_one_row_with_the_blocks_times() -> None:
    block = blocks.cut(table(3), 3)[0].append_column("a_started", pa.array([1.5] * 3))
    assert blocks.summarise(block).to_pylist() == [{"rows": 3, "part": 0, "a_started": 1.5}]


@pytest.mark.ray
def test_pools_that_do_not_fit_are_refused(ray_cluster: None) -> None:
    blocks.check_room({"profiles": Compute(num_cpus=1), "embeddings.user": Compute(num_cpus=0.5)}, OWN, num_steps=2)
    with pytest.raises(ValueError, match=r"\[profiles.compute\], \[embeddings.user.compute\] reserve 2.1 CPUs .* the cluster has 2"):
        blocks.check_room({"profiles": Compute(num_cpus=1), "embeddings.user": Compute(num_cpus=1)}, OWN, num_steps=2)
    with pytest.raises(ValueError, match="Lower num_actors or num_gpus"):
        blocks.check_room({"profiles": Compute(num_gpus=1)}, OWN)
    blocks.check_room({"samples": Compute(num_actors=2)}, OWN)  # all of the CPUs, where nothing runs between


@pytest.mark.ray
def test_a_cluster_that_may_grow_is_waited_for(ray_cluster: None, caplog: pytest.LogCaptureFixture) -> None:
    blocks.check_room({"profiles": Compute(num_gpus=1)}, ClusterSettings(address="auto"))
    assert "Waiting for it to grow" in caplog.text
