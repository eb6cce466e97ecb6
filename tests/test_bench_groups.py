"""The bench of groups on a tiny world: the peers' answers are ours, and another answer is refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("polars")
pytest.importorskip("duckdb")

from bench import groups, rounds
from bench.world import Sizes, World, world


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    sizes = Sizes(num_events=3_000, num_users=60, num_items=40, num_examples=20, num_leaves=8, num_roots=3, codebook_size=3)
    return world(sizes, tmp_path_factory.mktemp("worlds"))


def test_all_sides_give_the_same_and_make_a_line(made: World, tmp_path: Path) -> None:
    taken = groups.timed(made, tmp_path / "timed", 2, 1, 0)
    line = rounds.report("groups", {}, taken, threads=2, quality={})
    assert line["peers"].keys() == {"polars", "duckdb"}
    told = groups.child(made, tmp_path / "child")
    assert told.keys() == {"seconds", "peak_mb", "before_mb", "input_mb", "memory_mb"}
    groups.compare(tmp_path / "child/groups.parquet", taken["polars"].result)


def test_another_answer_raises(made: World, tmp_path: Path) -> None:
    ours = groups.sides(made, tmp_path, 2)[rounds.OURS].run()
    table = pq.read_table(ours)
    items = [[int(one[1:]) for one in sequence] for sequence in table.column("sequence").to_pylist()]
    peer = table.set_column(table.column_names.index("sequence"), "sequence", pa.array(items))
    pq.write_table(peer, tmp_path / "wrong.parquet")
    groups.compare(ours, tmp_path / "wrong.parquet")
    for name in ("size", "support", "stats", "sequence"):
        values = peer.column(name).to_pylist()
        values[3] = values[3] + 1 if name == "size" else [value + 1 for value in values[3][:1]] + values[3][1:]
        changed = peer.set_column(peer.column_names.index(name), name, pa.array(values, peer.column(name).type))
        pq.write_table(changed, tmp_path / "wrong.parquet")
        with pytest.raises(ValueError, match=f"wrong: {name} of 1 of {len(table)} groups differs"):
            groups.compare(ours, tmp_path / "wrong.parquet")
    pq.write_table(peer.slice(1), tmp_path / "wrong.parquet")
    with pytest.raises(ValueError, match="other prefixes"):
        groups.compare(ours, tmp_path / "wrong.parquet")
