"""Artifacts: they exist once their manifest does, and only then."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from longtail.artifacts import Artifact, Draft, Store, parquet_files, read_parquet


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "a run"))


def commit(draft: Draft, inputs: Mapping[str, Artifact] | None = None, **overrides: Any) -> Artifact:
    values: dict[str, Any] = {"config": {"k": 8}, "seed": 7, "rows_in": 3, "rows_out": 2, "dropped": {"empty": 1}, "info": {"mse": 0.5}}
    return draft.commit(inputs=inputs or {}, **(values | overrides))


def table(*values: int) -> pa.Table:
    return pa.table({"row": pa.array(values, pa.int64())})


def test_nothing_exists_before_the_manifest(store: Store) -> None:
    draft = store.create("codes", "k1")
    draft.write("codes", table(1, 2))
    assert store.find("codes", "k1") is None
    committed = commit(draft)
    found = store.find("codes", "k1")
    assert found is not None
    assert found.manifest == committed.manifest
    assert found.read("codes").equals(table(1, 2))


def test_manifest_is_the_last_file_written(store: Store) -> None:
    draft = store.create("codes", "k1")
    draft.write("codes", table(1))
    draft.write_json("quality.json", {"dead": 0})
    commit(draft)
    files = [entry for entry in store.fs.get_file_info(pafs.FileSelector(f"{store.root}/codes/k1", recursive=True)) if entry.type == pafs.FileType.File]
    assert {entry.base_name for entry in files} == {"codes.parquet", "quality.json", "manifest.json"}
    manifest = next(entry for entry in files if entry.base_name == "manifest.json")
    assert all(entry.mtime_ns <= manifest.mtime_ns for entry in files)


def test_manifest_tells_what_made_it(store: Store) -> None:
    logs, codes = store.create("logs", "k0"), store.create("codes", "k1")
    logs.write("events", table(1))
    codes.write("codes", table(1))
    upstream = commit(logs)
    manifest = commit(codes, {"logs": upstream}).manifest
    assert manifest["config"] == {"k": 8}
    assert manifest["seed"] == 7
    assert manifest["rows"] == {"in": 3, "out": 2, "dropped": {"empty": 1}}
    assert manifest["inputs"] == {"logs": {"stage": "logs", "key": "k0", "content_hash": upstream.content_hash}}
    assert manifest["commit"]
    assert manifest["info"] == {"mse": 0.5}


@pytest.mark.parametrize(("rows_in", "rows_out", "dropped"), [(3, 3, {"empty": 1}), (3, 1, {}), (3, 2, {})])
def test_rows_must_add_up(store: Store, rows_in: int, rows_out: int, dropped: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"'codes': {rows_in} rows in, {rows_out} out"):
        commit(store.create("codes", "k1"), rows_in=rows_in, rows_out=rows_out, dropped=dropped)
    assert store.find("codes", "k1") is None


def test_interrupted_attempt_is_invisible_and_removed(store: Store) -> None:
    interrupted = store.create("codes", "k1")
    interrupted.write("codes", table(1))
    assert store.find("codes", "k1") is None
    assert store.clear_interrupted("codes", "k1", older_than_s=3600) == 0, "it may still be running"
    assert store.clear_interrupted("codes", "k1", older_than_s=-2) == 1
    assert not Path(interrupted.root).exists()
    assert store.clear_interrupted("codes", "never started") == 0


def test_clearing_never_touches_a_finished_artifact(store: Store) -> None:
    finished = store.create("codes", "k1")
    finished.write("codes", table(1))
    commit(finished)
    assert store.clear_interrupted("codes", "k1", older_than_s=-2) == 0
    assert Path(finished.root).exists()


def test_first_of_two_concurrent_attempts_stays(store: Store) -> None:
    first, second = store.create("codes", "k1"), store.create("codes", "k1")
    assert first.root != second.root
    first.write("codes", table(1))
    second.write("codes", table(2))
    kept = commit(first)
    later = commit(second)
    assert later.manifest == kept.manifest
    assert later.read("codes").equals(table(1))
    assert not Path(second.root).exists()


@pytest.mark.parametrize("hard_links", [True, False])
def test_first_manifest_stays_if_it_comes_between_the_look_and_the_writing(store: Store, monkeypatch: pytest.MonkeyPatch, hard_links: bool) -> None:
    first, second = store.create("codes", "k1"), store.create("codes", "k1")
    first.write("codes", table(1))
    second.write("codes", table(2))
    look, looked = Store.find, []

    def find(self: Store, stage: str, key: str) -> Artifact | None:
        found = look(self, stage, key)
        if not looked:
            looked.append(key)
            commit(first)
        return found

    def no_link(source: Path, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")  # what exFAT says

    if not hard_links:
        monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(Store, "find", find)
    kept = commit(second)
    stays, goes = (first, second) if hard_links else (second, first)  # without hard links the last one stays, and the first's readers keep their data
    assert kept.root == stays.root
    assert Path(stays.root).exists()
    assert Path(goes.root).exists() == (not hard_links)
    assert sorted(path.name for path in Path(stays.root).parent.iterdir() if path.is_file()) == ["manifest.json"]


def test_discarded_draft_leaves_nothing(store: Store) -> None:
    draft = store.create("codes", "k1")
    draft.discard()
    draft.write("codes", table(1))
    draft.discard()
    assert not Path(draft.root).exists()


def content_hash(store: Store, key: str, files: dict[str, pa.Table]) -> str:
    draft = store.create("codes", key)
    for name, rows in files.items():
        draft.write(name, rows)
    return commit(draft).content_hash


def test_content_hash_follows_the_bytes_and_not_the_names(store: Store) -> None:
    one = content_hash(store, "a", {"codes.parquet/part-0": table(1), "codes.parquet/part-1": table(2)})
    assert content_hash(store, "b", {"codes.parquet/x": table(2), "codes.parquet/y": table(1)}) == one
    assert content_hash(store, "c", {"codes.parquet/part-0": table(1), "codes.parquet/part-1": table(3)}) != one
    assert content_hash(store, "d", {"codes.parquet/part-0": table(1)}) != one


def test_parts_are_read_in_name_order(store: Store) -> None:
    draft = store.create("samples", "k1")
    draft.write("samples.parquet/part-00001", table(3, 4))
    draft.write("samples.parquet/part-00000", table(1, 2))
    assert commit(draft).read("samples").column("row").to_pylist() == [1, 2, 3, 4]
    assert read_parquet(draft.fs, draft.path("samples.parquet/part-00001.parquet")).num_rows == 2


def test_folder_without_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(ValueError, match=r"no Parquet file under .*Point the setting at"):
        parquet_files(pafs.LocalFileSystem(), str(tmp_path))


def test_unknown_file_system_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run\.uri = 'gopher://runs'.*Use a local path"):
        Store.open("gopher://runs")


def test_any_pyarrow_file_system_will_do(tmp_path: Path) -> None:
    memory = pafs._MockFileSystem()
    store = Store("mock://run", memory, "run")
    draft = store.create("codes", "k1")
    draft.write("codes", table(1))
    draft.write_json("quality.json", {"dead": 0})
    artifact = commit(draft)
    assert artifact.read_json("quality.json") == {"dead": 0}
    copied = artifact.local_path("quality.json", tmp_path)
    assert json.loads(copied.read_text()) == {"dead": 0}
    assert str(tmp_path) in str(copied)
    assert artifact.local_path("quality.json", tmp_path) == copied


def remote_checkpoint() -> Artifact:
    store = Store("mock://run", pafs._MockFileSystem(), "run")
    draft = store.create("ranker", "k1")
    draft.write_json("checkpoint/ranker.json", {})
    draft.write_json("checkpoint/vocabulary.json", {})
    return commit(draft)


def test_an_interrupted_copy_is_no_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    artifact = remote_checkpoint()

    def interrupted(source: str, target: str, **more: Any) -> None:
        Path(target).mkdir(exist_ok=True)
        (Path(target) / "ranker.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pafs, "copy_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            artifact.local_path("checkpoint", tmp_path)
    folder = artifact.local_path("checkpoint", tmp_path)
    assert {path.name for path in folder.iterdir()} == {"ranker.json", "vocabulary.json"}
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint/ranker.json"])
def test_two_replicas_copy_at_once_and_both_see_the_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    artifact, copy, seen = remote_checkpoint(), pafs.copy_files, []

    def slow(source: str, target: str, **more: Any) -> None:
        if not seen:  # the other replica asks while this one is still copying
            seen.append(target)
            seen.append(artifact.local_path(name, tmp_path))
            assert seen[1].exists()
        copy(source, target, **more)

    monkeypatch.setattr(pafs, "copy_files", slow)
    first = artifact.local_path(name, tmp_path)
    assert first == seen[1]
    assert first.is_file() or {path.name for path in first.iterdir()} == {"ranker.json", "vocabulary.json"}
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_copies_of_two_attempts_at_one_key_are_two(tmp_path: Path) -> None:
    assert remote_checkpoint().local_path("checkpoint", tmp_path) != remote_checkpoint().local_path("checkpoint", tmp_path)


def test_local_artifacts_are_read_in_place(store: Store, tmp_path: Path) -> None:
    draft = store.create("codes", "k1")
    draft.write_json("quality.json", {})
    artifact = commit(draft)
    assert artifact.local_path("quality.json", tmp_path / "copies") == Path(artifact.path("quality.json"))
    assert not (tmp_path / "copies").exists()


def damaged(folder: Path, name: str, text: bytes) -> Store:
    """A store with one finished artifact, `name` of which was replaced."""
    store = Store.open(str(folder))
    draft = store.create("numbers", "k")
    draft.write("table", pa.table({"x": [1, 2, 3]}))
    made = draft.commit(config={}, inputs={}, seed=0, rows_in=3, rows_out=3, dropped={}, info={})
    path = Path(made.root).parent / name if name == "manifest.json" else Path(made.path(name))
    path.write_bytes(text)
    return store


@pytest.mark.parametrize("text", [b"", b'{"data": "2026', b"{}", b"null", b"[1]"])
def test_a_damaged_manifest_is_told_with_its_path_and_what_to_do(tmp_path: Path, text: bytes) -> None:
    store = damaged(tmp_path, "manifest.json", text)
    with pytest.raises(ValueError, match=r"numbers/k/manifest\.json is cut short or no manifest: .* Remove the folder that it lies in and run again"):
        store.find("numbers", "k")


@pytest.mark.parametrize("text", [b"", b"PAR1 and no more"])
def test_a_damaged_table_is_told_with_its_path_and_what_to_do(tmp_path: Path, text: bytes) -> None:
    found = damaged(tmp_path, "table.parquet", text).find("numbers", "k")
    assert found is not None
    with pytest.raises(ValueError, match=r"table\.parquet is cut short or no Parquet file: .* remove the folder of its key and run again"):
        found.read("table")
    Path(found.path("table.parquet")).unlink()
    with pytest.raises(ValueError, match=r"table\.parquet is not there\."):
        found.read("table")
