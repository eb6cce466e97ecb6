"""No leak through the whole line: what happens after a time changes nothing that was made for the time before it."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from longtail.artifacts import Artifact, Store, parquet_files
from longtail.config import Config
from longtail.sample_files import read_part, side_by_side
from longtail.sources import synthetic
from longtail.windows import SplitSettings
from pipelines import work
from pipelines.full import SHARED_STAGES
from pipelines.stage import ensure
from pipelines.train import sample_folders
from tests.tables_world import write

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

SPLIT = SplitSettings(history_end=datetime(2024, 2, 20, tzinfo=UTC), train_end=datetime(2024, 3, 20, tzinfo=UTC))
PLANTED_FROM = datetime(2024, 3, 25, tzinfo=UTC)  # days into the test window
WORLD = synthetic.SyntheticSettings(num_users=60, num_items=90, num_groups=3, num_topics=6, num_days=90, sessions_per_user=8)
LABELS = ("outcome", "conversion")


def planted_events(raw: Any) -> pa.Table:
    """Every kind of event after PLANTED_FROM, by every user, busy and silent, on every item, seen and unseen; none outlasts the logs."""
    rng = np.random.default_rng(0)
    number = 600
    span_s = (pc.max(raw.events.column("ts")).as_py() - PLANTED_FROM).total_seconds() - 60
    kinds = rng.choice(["impression", "click", "cart", "purchase", "search"], number)
    columns = {
        "event_id": [f"planted-{row}" for row in range(number)],
        "user_id": [raw.users.column("user_id")[row % len(raw.users)].as_py() for row in range(number)],
        "ts": [PLANTED_FROM + timedelta(seconds=float(second)) for second in rng.uniform(0, span_s, number)],
        "kind": kinds.tolist(),
        "item_id": [None if kind == "search" else raw.items.column("item_id")[row % len(raw.items)].as_py() for row, kind in enumerate(kinds)],
        "query": ["a planted wish" if kind == "search" else None for kind in kinds],
        "price": [99.0] * number,
        "quantity": [3.0] * number,
        "request_id": [f"planted-request-{row // 4}" for row in range(number)],
    }
    return pa.table(columns, schema=raw.events.schema)


def shared_stages(folder: Path, raw: Any, events: pa.Table) -> dict[str, Artifact]:
    """Everything up to the samples and what is lent to them, from three tables."""
    folder.mkdir()
    store = Store.open(str(folder / "runs"))
    config = Config.model_validate(
        {
            "run": {"uri": store.uri, "name": "leaks"},
            "logs": {
                "source": "tables",
                "tables": write({"users": raw.users, "items": raw.items, "events": events}, folder),
                "categorical_attributes": ["age_band", "region"],
                "numeric_attributes": ["tenure_years"],
                "labels": {"exposure": "impression", "outcome": "click", "conversion": "purchase"},
                "split": SPLIT.model_dump(),
            },
            "profiles": {"generator": "deterministic", "snapshots": ["history_end", "train_end"]},
            "embeddings": {"user": {"compute": {"num_cpus": 0.5}}, "item": {"compute": {"num_cpus": 0.5}}},
            "item_encoder": {"dim": 32, "epochs": 1, "pair_batch_size": 128, "compute": {"num_cpus": 0.5}},
            "user_spaces": {"spaces": ["profile", "titles", "behaviour"], "behaviour_dim": 8},
            "peers": {"form": "neighbours", "num_peers": [20, 5], "sharpness": 1.0},
            "collaborative": {"scores": ["ease", "svd"], "ease_l2": 10.0, "svd_dim": 8},
            "codes": {"user": {"num_stages": 2, "codebook_size": 6}, "item": {"num_stages": 2, "codebook_size": 6}},
            "tracking": {"backend": "none"},
        }
    )
    with work.in_place():  # where it can: the same artifacts (test_work), without the start of thirty processes
        return {stage.name: ensure(stage, config, store).artifact for stage in SHARED_STAGES}


@pytest.fixture(scope="module")
def worlds(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Artifact], dict[str, Artifact]]:
    """The same world without and with the planted events."""
    folder = tmp_path_factory.mktemp("leaks")
    raw = synthetic.build(WORLD, SPLIT, seed=5)
    after = pa.concat_tables([raw.events, planted_events(raw)])
    return shared_stages(folder / "before", raw, raw.events), shared_stages(folder / "after", raw, after)


@pytest.mark.parametrize(
    ("stage", "table"),
    [
        ("profiles", "profiles"),
        ("user_vectors", "vectors"),
        ("item_z", "z"),
        ("user_spaces", "vectors"),
        ("user_codes", "codes"),
        ("item_codes", "codes"),
        ("groups", "groups"),
        ("peers", "peers"),
        ("collaborative", "collaborative"),
    ],
)
def test_planted_events_change_nothing_made_before_them(worlds: tuple[dict[str, Artifact], ...], stage: str, table: str) -> None:
    before, after = (world[stage].read(table) for world in worlds)
    assert len(before) > 0
    assert after.equals(before)


def sample_rows(world: dict[str, Artifact]) -> pa.Table:
    """The samples with what is lent to them beside them."""
    samples, names = world["samples"], []
    for folder in sample_folders(world):
        names += pq.read_schema(parquet_files(samples.fs, folder)[0]).names
    parts = side_by_side(samples.fs, sample_folders(world))
    return pa.concat_tables([read_part(samples.fs, part, names) for part in parts])


def as_records(rows: pa.Table, leave_out: tuple[str, ...] = ()) -> Counter[str]:
    return Counter(repr(row) for row in rows.drop_columns(["example_id", *leave_out]).to_pylist())


def test_planted_events_change_no_earlier_feature_and_no_label_of_training(worlds: tuple[dict[str, Artifact], ...]) -> None:
    before, after = map(sample_rows, worlds)
    known = [rows.filter(pc.not_equal(rows.column("split"), "test")) for rows in (before, after)]
    assert as_records(known[1]) == as_records(known[0])
    # A test row's label may see a click that was planted within the hours of its outcome; its features may not.
    earlier = [rows.filter(pc.less(rows.column("ts"), PLANTED_FROM)) for rows in (before, after)]
    assert sum(as_records(earlier[0]).values()) > sum(as_records(known[0]).values())
    assert as_records(earlier[1], LABELS) == as_records(earlier[0], LABELS)


SEE_THE_WORLD = ("history", "user_stats", "cross_stats", "match_stats", "item_stats", "collaborative_stats", "peer_stats", "activity")


def test_later_features_do_see_them(worlds: tuple[dict[str, Artifact], ...]) -> None:
    """So that the tests above can fail: the planted events reach the line, and every feature of it that lies after them."""
    before, after = map(sample_rows, worlds)
    assert len(after) > len(before)
    later = [rows.filter(pc.greater_equal(rows.column("ts"), PLANTED_FROM)) for rows in (before, after)]
    for name in SEE_THE_WORLD:
        one, other = (as_records(rows.select(["example_id", "user_id", "item_id", "ts", name])) for rows in later)
        assert one - other, name


def test_every_feature_says_something_before_the_planted_events(worlds: tuple[dict[str, Artifact], ...]) -> None:
    """A column of zeros would pass all of the above."""
    rows = sample_rows(worlds[0])
    earlier = rows.filter(pc.less(rows.column("ts"), PLANTED_FROM))
    for name in (*SEE_THE_WORLD, "completed", "group_stats", "user_codes", "group_history"):
        values = np.array(earlier.column(name).to_pylist())
        assert (values != values[0]).any(axis=0).mean() > 0.5, name
