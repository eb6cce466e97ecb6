"""User activity: purchases before the test window, from the quietest on, and the limit that evaluation slices by."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.evaluation import evaluate
from longtail.user_activity import user_activity
from tests import small_run, small_world
from tests.simulated_predictions import simulate


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("run")
    draft = Store.open(str(folder)).create("logs", "key")
    late = [("d", "tea", 35, "purchase"), ("b", "tea", 29, "click"), ("stranger", "tea", 3, "purchase"), ("a", "tea", 3, "impression")]
    draft.write("users", small_world.USERS)
    draft.write("events", small_world.events([*small_world.BEHAVIOUR, *late]))
    return draft.commit(config={}, inputs={}, seed=1, rows_in=0, rows_out=0, dropped={}, info=small_world.INFO.model_dump(mode="json"))


def test_only_behaviour_before_the_test_window_counts(logs: Artifact) -> None:
    activity = user_activity(logs, 0.2)
    assert activity.user_ids.to_pylist() == ["d", "c", "b", "a"]
    assert activity.purchases_M.tolist() == [0, 2, 2, 3]
    assert activity.events_M.tolist() == [0, 2, 3, 4]
    purchases, events = activity.of(pa.array(["a", "stranger", "b"]))
    assert (purchases.tolist(), events.tolist()) == ([3, 0, 2], [4, 0, 3])


def test_the_limit_is_the_evaluations_or_else_the_same_quantile(logs: Artifact) -> None:
    assert user_activity(logs, 0.2).low_max == np.quantile([0, 2, 2, 3], 0.2, method="lower")
    assert user_activity(logs, 0.5).is_low.tolist() == [True, True, True, False]
    metrics = evaluate(simulate(rows=400), Config().evaluate.model_copy(update={"bootstrap_rounds": 0}), seed=1, rankers=("base",))
    assert user_activity(logs, 0.2, metrics).low_max == metrics.low_activity_max


def test_a_published_run_is_read_likewise(tmp_path: Path) -> None:
    config = small_run.publish(tmp_path)
    store = Store.open(config.run.uri)
    (key,) = [entry.name for entry in (tmp_path / "logs").iterdir()]
    found = store.find("logs", key)
    assert found is not None
    assert user_activity(found, 0.2).purchases_M.sum() == sum(kind == "purchase" for *_, kind in small_world.BEHAVIOUR)
