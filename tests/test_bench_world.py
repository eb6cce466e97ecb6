"""The world that benches share: of the form that a user brings, the same each time, and read by the stages as it stands."""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bench.world import KINDS, Sizes, World, world
from longtail import schema
from longtail.artifacts import Store
from longtail.log_check import check_tables
from longtail.run_state import load_behaviour, load_entities

SIZES = Sizes(num_events=3_000, num_users=60, num_items=40, num_examples=200, num_leaves=8, num_roots=3, rows_per_file=64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(SIZES, tmp_path_factory.mktemp("worlds"))


def test_the_tables_are_what_a_user_brings(made: World) -> None:
    users, items, events = (pq.read_table(made.path(name)) for name in ("users", "items", "events"))
    settings = made.config().logs
    report = check_tables(
        users, items, events, attributes=(tuple(made.info.categorical_attributes), ()), split=settings.split, labels=settings.labels, unknown_ids="refuse"
    )
    assert not report.errors
    assert len(events) == SIZES.num_events
    assert pc.value_counts(events.column("kind")).to_pylist() == [
        {"values": kind, "counts": round(share * SIZES.num_events)} for kind, share in zip(KINDS, (0.6, 0.3, 0.1), strict=True)
    ]
    assert 0 < users.column("age").null_count < len(users)


def test_few_users_do_most(made: World) -> None:
    counts = np.sort([row["counts"] for row in pc.value_counts(pq.read_table(made.path("events"), columns=["user_id"]).column(0)).to_pylist()])[::-1]
    assert counts[: SIZES.num_users // 5].sum() > counts.sum() / 2


def test_a_world_is_made_once_and_is_the_same_elsewhere(made: World, tmp_path: Path) -> None:
    before = made.folder.stat().st_mtime_ns
    assert world(SIZES, made.folder.parent) == made
    assert made.folder.stat().st_mtime_ns == before
    other = world(SIZES, tmp_path)
    for name in ("users", "items", "events", "user_codes"):
        assert pq.read_table(other.path(name)).equals(pq.read_table(made.path(name)))


def test_stages_read_it_as_finished_logs(made: World, tmp_path: Path) -> None:
    config = made.config({"run": {"uri": str(tmp_path)}})
    logs = made.logs(config, Store.open(str(tmp_path)))
    assert made.logs(config, Store.open(str(tmp_path))).root == logs.root
    entities, behaviour = load_entities(logs, 8), load_behaviour(logs, 8)
    assert len(entities.users) == SIZES.num_users
    assert len(behaviour.time_E) == 0.4 * SIZES.num_events
    examples = schema.check(logs.read("examples"), schema.EXAMPLES, "examples")
    assert len(examples) == SIZES.num_examples == sum(made.info.num_examples.values())
    assert 0 < pc.sum(examples.column("conversion")).as_py() < pc.sum(examples.column("outcome")).as_py() < len(examples)
