"""The bench of samples on a tiny world: the peers' answers are ours, and another answer is refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("polars")
pytest.importorskip("duckdb")

from bench import rounds, samples
from bench.world import Sizes, World, world

NAMES = (rounds.OURS, "polars", "duckdb")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    sizes = Sizes(num_events=3_000, num_users=30, num_items=40, num_examples=200, num_leaves=8, num_roots=3, rows_per_file=64)
    return world(sizes, tmp_path_factory.mktemp("worlds"))


def test_all_sides_give_the_same_and_make_a_line(made: World, tmp_path: Path) -> None:
    taken = samples.timed(made, tmp_path / "timed", 2, NAMES, 1, 0)
    line = rounds.report("samples", {}, taken, threads=2, quality={})
    assert line["peers"].keys() == {"polars", "duckdb"}
    assert not (tmp_path / "timed").exists()


def test_another_answer_raises(made: World, tmp_path: Path) -> None:
    taken = rounds.in_turns(samples.sides(made, tmp_path, 2, NAMES[:2]), 1, 0)
    ours, peer = taken[rounds.OURS].result, taken["polars"].result
    samples.compare(ours, peer)
    table = pq.read_table(peer)
    for name in ("same_brand", "item_events", "last_leaf"):
        values = table.column(name).to_pylist()
        values[7] = (values[7] or 0) + 1
        changed = table.set_column(table.column_names.index(name), name, pa.array(values, table.column(name).type))
        pq.write_table(changed, tmp_path / "wrong.parquet")
        with pytest.raises(ValueError, match=f"wrong: 1 of 200 values of '{name}' differ"):
            samples.compare(ours, tmp_path / "wrong.parquet")


def test_a_child_tells_its_peak(made: World, tmp_path: Path) -> None:
    told = samples.child(made, tmp_path)
    assert told.keys() == {"seconds", "peak_mb", "before_mb", "input_mb", "memory_mb"}
    assert told["peak_mb"] >= told["before_mb"] > 0
