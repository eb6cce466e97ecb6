"""Samples in shares of the users: the same rows for any number of shares, as many shares as the memory asks for, and nothing left behind."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bench.world import Sizes, World, world
from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.feature_state import own_rows
from longtail.run_state import load_own_state
from longtail.sample_shares import num_shares, run_steps
from longtail.samples import SamplesSettings
from pipelines import work
from pipelines.collaborative import COLLABORATIVE
from pipelines.samples import SAMPLES
from pipelines.stage import ensure

SCORES = {"scores": ["svd"], "svd_dim": 4, "num_items": 32, "num_weights": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    sizes = Sizes(num_events=3_000, num_users=60, num_items=40, num_examples=300, num_leaves=8, num_roots=3, rows_per_file=64)
    return world(sizes, tmp_path_factory.mktemp("worlds"))


def built(made: World, folder: Path, samples: dict[str, Any]) -> tuple[Artifact, Config, Store]:
    config = made.config({"run": {"uri": str(folder)}, "samples": {"history_length": 7, **samples}, "collaborative": SCORES})
    store = Store.open(str(folder))
    made.logs(config, store)
    with work.in_place():
        ensure(COLLABORATIVE, config, store)
        return ensure(SAMPLES, config, store).artifact, config, store


def same(ours: pa.Table, other: pa.Table) -> bool:
    """As text where NaN is not equal to itself."""
    return all(ours[name].equals(other[name]) or str(ours[name].to_pylist()) == str(other[name].to_pylist()) for name in other.column_names)


@pytest.mark.parametrize("num_actors", [1, 2, 30])
def test_any_number_of_shares_gives_what_one_state_of_everything_gives(made: World, tmp_path: Path, num_actors: int) -> None:
    samples, config, store = built(made, tmp_path, {"compute": {"num_actors": num_actors}})
    logs = made.logs(config, store)
    with work.in_place():
        collaborative = ensure(COLLABORATIVE, config, store).artifact
    examples = logs.read("examples")
    expected = own_rows(load_own_state(logs, collaborative, config), examples)
    table = samples.read("samples")
    assert table.schema.equals(expected.schema)
    assert table.column("example_id").equals(examples.column("example_id"))
    assert same(table, expected)
    assert samples.manifest["info"]["rows_by_split"] == made.info.num_examples


def test_what_lay_between_the_steps_is_gone(made: World, tmp_path: Path) -> None:
    samples, _, _ = built(made, tmp_path, {})
    assert [path.name for path in Path(samples.root).iterdir()] == ["samples.parquet"]


def test_shares_follow_from_the_memory_and_memory_decides_no_value() -> None:
    small, large = (SamplesSettings(memory_mb=memory) for memory in (256, 4096))
    assert num_shares(1_000, 1_000, large) == large.compute.num_actors
    assert num_shares(20_000_000, 2_000_000, small) > 8 * num_shares(20_000_000, 2_000_000, large) > 8
    assert small.key_fields() == large.key_fields()


def test_steps_come_in_their_order(made: World, tmp_path: Path) -> None:
    logs = made.logs(made.config({"run": {"uri": str(tmp_path)}}), Store.open(str(tmp_path)))
    asked: list[tuple[str, int]] = []

    def order(step: str, jobs: Any) -> list[Any]:
        asked.append((step, len(jobs)))
        return [[0.0, 1.0]] if step == "totals" else [{}] * len(jobs)

    run_steps(order, logs, [("a", "b"), ("c", "d")], 2)
    assert asked == [("deal", 3), ("sort_share", 2), ("totals", 1), ("make_rows", 2), ("write_part", 2)]
