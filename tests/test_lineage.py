"""Lineage: what artifacts come from, what else the store has, and where each stands in the drawing."""

from pathlib import Path

from longtail.artifacts import Artifact, Store
from longtail.lineage import drawing, made_from, stored, upstream


def commit(store: Store, stage: str, *inputs: Artifact, key: str = "k") -> Artifact:
    draft = store.create(stage, key)
    draft.write_json("stage.json", stage)
    return draft.commit(config={}, inputs={one.stage: one for one in inputs}, seed=1, rows_in=0, rows_out=0, dropped={}, info={})


def test_upstream_has_every_artifact_once_after_what_it_reads(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    logs = commit(store, "logs")
    left, right = commit(store, "left", logs), commit(store, "right", logs)
    last = commit(store, "last", left, right, logs)
    assert [one.stage for one in upstream(store, [last, right])] == ["logs", "left", "right", "last"]
    assert made_from(last, [left, logs])
    assert not made_from(left, [right])


def test_stored_has_what_is_finished_and_leaves_out_the_damaged(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    commit(store, "evaluation", key="a")
    store.create("evaluation", "unfinished").write_json("x.json", 1)
    commit(store, "evaluation", key="b")
    (tmp_path / "evaluation" / "b" / "manifest.json").write_text("{")
    assert [one.key for one in stored(store, "evaluation")] == ["a"]
    assert stored(store, "nothing") == []


def test_the_drawing_leaves_out_lines_that_longer_ways_imply(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    logs = commit(store, "logs")
    left, right = commit(store, "left", logs), commit(store, "right", logs)
    last = commit(store, "last", left, right, logs)
    drawn = drawing(upstream(store, [last]))
    assert [(node.artifact.stage, node.column, node.row) for node in drawn.nodes] == [("logs", 0, 0), ("left", 1, -0.5), ("right", 1, 0.5), ("last", 2, 0)]
    assert [(edge.source, edge.target) for edge in drawn.edges] == [(0, 1), (0, 2), (1, 3), (2, 3)], "logs -> last goes by way of both"
    assert drawing([]).nodes == ()
