"""The profiles and embeddings stages as they run: a real language model and a real encoder in one Ray Data plan."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longtail import schema
from longtail.artifacts import Artifact, Store
from longtail.config import Config, parse
from longtail.profiles import FIELDS
from longtail.sources.tables import conformed
from pipelines.embeddings import ITEM_VECTORS, USER_VECTORS
from pipelines.item_texts import ITEM_TEXTS
from pipelines.profiles import PROFILES
from pipelines.stage import Context, Stage, stage_key
from tests.small_world import INFO, day
from tests.test_profile_facts import ITEMS, LOG, USERS

pytestmark = pytest.mark.ray
LOGS_INFO = INFO.model_copy(update={"history_end": day(100), "train_end": day(120)})


def config(uri: Path, **profiles: Any) -> Config:
    compute = {"threads": 1, "max_num_seqs": 4, "kv_cache_gib": 0.25, "batch_size": 2}
    own = {"max_fact_tokens": 160, "compute": compute} | profiles
    return parse({"run": {"uri": str(uri)}, "profiles": own, "embeddings": {"item": {"compute": {"batch_size": 3}}}}, "test")


def logs(uri: Path) -> Artifact:
    draft = Store.open(str(uri)).create("logs", "planted")
    for name, table in {"users": USERS, "items": conformed(ITEMS, schema.ITEMS, "items"), "events": conformed(LOG, schema.EVENTS, "events")}.items():
        draft.write(name, table)
    return draft.commit(config={}, inputs={}, seed=7, rows_in=0, rows_out=0, dropped={}, info=LOGS_INFO.model_dump(mode="json"))


def build(stage: Stage, config: Config, inputs: dict[str, Artifact], key: str) -> Artifact:
    store = Store.open(config.run.uri)
    draft = store.create(stage.name, key)
    result = stage.build(Context(config, store, inputs), draft)
    return draft.commit(config={}, inputs=inputs, seed=7, rows_in=result.rows_in, rows_out=result.rows_out, dropped=result.dropped, info=result.info)


def unit_vectors(table: pa.Table, dim: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    vectors: np.ndarray[Any, np.dtype[np.float32]] = table.column("vector").combine_chunks().flatten().to_numpy().reshape(-1, dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    return vectors


@pytest.mark.timeout(900)  # half a minute on an idle machine; the first run on a machine also converts the model
def test_logs_to_profiles_to_vectors_in_one_plan(ray_cluster: None, tmp_path: Path) -> None:
    """The real engine: structured answers of the real model, embedded as they come, and a second run that starts none."""
    settings = config(tmp_path, snapshots=("history_end", "train_end"))
    source = {"logs": logs(tmp_path)}
    profiles = build(PROFILES, settings, source, "one")
    table = schema.check(profiles.read("profiles"), schema.PROFILES, "profiles")
    rows = table.to_pylist()
    assert [(row["as_of"], row["user_id"]) for row in rows] == [
        *((day(100), user) for user in "abc"),
        *((day(120), user) for user in ("a", "b", "c", "late")),  # who came later has one at the next snapshot
    ]
    assert profiles.manifest["rows"] == {"in": 8, "out": 7, "dropped": {"not_seen_before_as_of": 1}}
    for row in rows:
        assert row["raw_text"].startswith('{"identity":"')
        assert row["text"] == "\n".join(row[name] for name in FIELDS)
        assert all(len(row[name]) > 10 for name in FIELDS)
        assert row["outcome"] == "llm"  # the grounded form leaves no room for the refused kinds
        assert 200 < row["prompt_tokens"] < 700
        assert 20 < row["output_tokens"] <= 96
    assert "milk" in rows[0]["interests"] or "cream" in rows[0]["interests"] or "Home" in rows[0]["interests"]
    info = profiles.info
    assert info["outcomes"] == {"llm": 7}
    assert (info["engines_started"], info["cached"]) == (1, 1)  # nothing happened to c between the snapshots: one prompt, asked once
    assert info["profile_pool"]["busy_s"] > 0
    assert info["embed_pool"]["first_started"] > info["profile_pool"]["first_started"]
    assert info["overlap_s"] >= 0
    assert "ProfileActor" in info["plan_statistics"]
    assert "EmbedActor" in info["plan_statistics"]

    taken = build(USER_VECTORS, settings, {"profiles": profiles}, "one")
    assert taken.info["made_with"] == "profiles"
    vectors = taken.read("vectors")
    assert vectors.schema.equals(schema.vectors(schema.USER_KEY, 384))
    assert vectors.select(["user_id", "as_of"]).to_pylist() == table.select(["user_id", "as_of"]).to_pylist()
    apart = config(tmp_path, snapshots=("history_end", "train_end"), streaming=False)
    assert stage_key(PROFILES, apart, source) == stage_key(PROFILES, settings, source)  # the same profiles
    again = build(PROFILES, apart, source, "two")
    assert (again.info["engines_started"], again.info["cached"]) == (0, 7)
    assert again.read("profiles", ["text"]).to_pylist() == table.select(["text"]).to_pylist()
    later = build(USER_VECTORS, apart, {"profiles": again}, "two")
    assert later.info["made_with"] == "user_vectors"
    # bfloat16, and other texts in a batch
    np.testing.assert_allclose(unit_vectors(later.read("vectors"), 384), unit_vectors(vectors, 384), atol=0.01)


def test_without_a_model(ray_cluster: None, tmp_path: Path) -> None:
    settings = config(tmp_path, generator="deterministic", streaming=False)
    profiles = build(PROFILES, settings, {"logs": logs(tmp_path)}, "one").read("profiles")
    assert profiles.column("outcome").to_pylist() == ["deterministic"] * 3
    assert profiles.column("raw_text").to_pylist() == [""] * 3
    assert profiles.column("identity").to_pylist()[0] == "Shopper with city: Bonn, age: 31."


def test_item_vectors(ray_cluster: None, tmp_path: Path) -> None:
    texts = build(ITEM_TEXTS, config(tmp_path), {"logs": logs(tmp_path)}, "texts")
    items = build(ITEM_VECTORS, config(tmp_path), {"item_texts": texts}, "items")
    vectors = items.read("vectors")
    assert vectors.schema.equals(schema.vectors(schema.ITEM_KEY, 384))
    assert sorted(vectors.column("item_id").to_pylist()) == ["cream", "milk", "odd", "soap"]
    near = dict(zip(vectors.column("item_id").to_pylist(), unit_vectors(vectors, 384), strict=True))
    assert near["milk"] @ near["cream"] > near["milk"] @ near["soap"]


def test_a_snapshot_before_anyone_is_refused(tmp_path: Path) -> None:
    nobody = USERS.set_column(1, "city", pa.nulls(4, pa.string())).set_column(2, "age", pa.nulls(4, pa.float64()))
    draft = Store.open(str(tmp_path)).create("logs", "nobody")
    for name, table in {"users": nobody, "items": ITEMS, "events": LOG}.items():
        draft.write(name, table)
    source = draft.commit(config={}, inputs={}, seed=7, rows_in=0, rows_out=0, dropped={}, info=LOGS_INFO.model_dump(mode="json"))
    with pytest.raises(ValueError, match="no user has an event or an attribute by then"):
        build(PROFILES, config(tmp_path, snapshots=("2026-01-02",)), {"logs": source}, "one")
