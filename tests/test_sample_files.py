"""Samples in two tables: a part's columns side by side, whichever of its files has them, and what does not fit together is refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from longtail.rankers.batch import Batch
from longtail.sample_files import ALONE, SampleFiles, feature_columns, read_part, side_by_side
from tests.ranker_data import World, by_stage, folders_of, scan, spec_of, write_parts, write_samples

FS = pafs.LocalFileSystem()
WORLD = World.of(spec_of(collaborative_stats=2, peer_stats=5))


def files(folder: Path, **tables: dict[str, list[int]]) -> tuple[str, ...]:
    """One part, of a file for each of `tables`."""
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return tuple(str(folder / f"{name}.parquet") for name in tables)


def test_each_column_comes_from_the_file_that_has_it_in_the_order_asked_for(tmp_path: Path) -> None:
    part = files(tmp_path, own={"a": [1, 2], "b": [3, 4]}, lent={"c": [5, 6], "b": [0, 0]})
    assert read_part(FS, part, ["c", "a", "b"]).to_pydict() == {"c": [5, 6], "a": [1, 2], "b": [3, 4]}  # b of the first that has it
    assert read_part(FS, part, ["c"]).to_pydict() == {"c": [5, 6]}
    assert read_part(FS, part[:1], ["a"]).to_pydict() == {"a": [1, 2]}


def test_a_missing_column_is_refused_by_name(tmp_path: Path) -> None:
    part = files(tmp_path, own={"a": [1]}, lent={"c": [5]})
    with pytest.raises(ValueError, match=r"own\.parquet and the files beside it lack \['d', 'e'\]\. Build the samples again"):
        read_part(FS, part, ["a", "d", "c", "e"])


def test_unequal_rows_are_refused(tmp_path: Path) -> None:
    part = files(tmp_path, own={"a": [1, 2]}, lent={"c": [5]})
    with pytest.raises(ValueError, match=r"own\.parquet.*lent\.parquet.* have different numbers of rows\. Build the samples and what is lent"):
        read_part(FS, part, ["a", "c"])


def test_parts_lie_side_by_side_by_name(tmp_path: Path) -> None:
    for folder in ("samples.parquet", "lent.parquet"):
        write_parts(tmp_path / folder, [pa.table({"a": [1]})] * 2)
    samples, _, lent = folders_of(tmp_path)
    names = ("part-00000.parquet", "part-00001.parquet")
    assert side_by_side(FS, [samples, lent]) == tuple((f"{samples}/{name}", f"{lent}/{name}") for name in names)
    assert side_by_side(FS, [lent]) == tuple((f"{lent}/{name}",) for name in names)


@pytest.mark.parametrize("lent", [1, 3])
def test_different_parts_are_refused(tmp_path: Path, lent: int) -> None:
    for name in ("samples", "matches"):
        write_parts(tmp_path / f"{name}.parquet", [pa.table({"a": [1]})] * 2)
    write_parts(tmp_path / "lent.parquet", [pa.table({"c": [1]})] * lent)
    with pytest.raises(ValueError, match=rf"lent\.parquet and .*samples\.parquet hold different parts: {lent} and 2\. Build them again"):
        scan(tmp_path, WORLD.spec)
    (tmp_path / "lent.parquet" / "part-00000.parquet").rename(tmp_path / "lent.parquet" / "other.parquet")
    with pytest.raises(ValueError, match="hold different parts"):
        side_by_side(FS, folders_of(tmp_path))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    for name, parts in (("samples", [pa.table({"a": [1]})]), ("matches", [pa.table({"a": [1]})]), ("lent", [])):
        write_parts(tmp_path / f"{name}.parquet", parts)
    with pytest.raises(ValueError, match=r"no Parquet file under .*lent\.parquet"):
        side_by_side(FS, folders_of(tmp_path))


def test_batches_of_two_tables_are_those_of_one(tmp_path: Path) -> None:
    tables = [WORLD.rows(80, seed=1), WORLD.rows(50, seed=2)]
    apart = scan(write_samples(tmp_path / "apart", tables), WORLD.spec)
    whole = SampleFiles.scan(FS, [str(write_parts(tmp_path / "whole", tables))], WORLD.spec, ("outcome",))
    assert (apart.labelled, apart.num_rows) == (whole.labelled, whole.num_rows)
    for index in range(2):
        assert apart.load(index, "train", ("example_id",)).equals(whole.load(index, "train", ("example_id",)))
    assert all((mine == other).all() for mine, other in zip(apart.trained_rows(), whole.trained_rows(), strict=True))
    mine, other = apart.first_batch(), whole.first_batch()
    assert all((getattr(mine, name) == getattr(other, name)).all() for name in vars(mine))
    assert mine.peer_stats_BP.shape == (80, 5)
    assert mine.collaborative_stats_BF.shape == (80, 2)


def test_columns_of_width_zero_are_not_asked_for() -> None:
    bare = spec_of(attributes=0)
    assert not {"attributes", "completed", "peer_stats", "collaborative_stats"} & set(feature_columns(bare))
    assert {"attributes", "completed", "peer_stats", "collaborative_stats"} <= set(feature_columns(WORLD.spec))


def test_samples_of_another_config_are_refused(tmp_path: Path) -> None:
    """Built without peers, read by a ranker that asks for them; and the other way round nothing is missed."""
    folder = write_samples(tmp_path, [World.of(spec_of()).rows(30)])
    with pytest.raises(ValueError, match=r"lack \['collaborative_stats', 'peer_stats'\]"):
        scan(folder, WORLD.spec).first_batch()
    rich = write_samples(tmp_path / "rich", [WORLD.rows(30)])
    assert scan(rich, spec_of()).first_batch().peer_stats_BP.shape == (30, 0)


def test_rows_of_a_part_that_was_cut_short_are_refused(tmp_path: Path) -> None:
    own, matches, lent = by_stage(WORLD.rows(30))
    write_parts(tmp_path / "samples.parquet", [own])
    write_parts(tmp_path / "matches.parquet", [matches])
    write_parts(tmp_path / "lent.parquet", [lent.slice(0, 29)])
    with pytest.raises(ValueError, match="different numbers of rows"):
        Batch.from_table(scan(tmp_path, WORLD.spec).load(0, "train"), WORLD.spec)


def test_rows_in_memory_are_trained_on_whatever_split_they_say() -> None:
    rows = pa.concat_tables([WORLD.rows(30), WORLD.rows(20, seed=2, split="test")])
    files = SampleFiles.of_table(rows, WORLD.spec, ("outcome",))
    assert files.labelled == {"train": (50,), "validation": (0,), "test": (0,)}
    users, items = files.trained_rows()
    assert set(np.flatnonzero(users)) == set(rows.column("user_row").to_pylist())
    assert set(np.flatnonzero(items)) == set(rows.column("item_row").to_pylist())
    assert users.sum() == items.sum() == 50
    seen = [one for share in files.epoch(0, 16, 0, ALONE) for one in share.batch.user_stats_BU[:, 0].tolist()]
    assert sorted(seen) == sorted(one[0] for one in rows.column("user_stats").to_pylist())


def test_rows_in_memory_without_a_label_are_refused() -> None:
    with pytest.raises(ValueError, match="none of 0 rows has a label"):
        SampleFiles.of_table(WORLD.rows(5).slice(0, 0), WORLD.spec, ("outcome",))
