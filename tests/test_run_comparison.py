"""Two evaluations on the rows that both scored: differences, intervals and slices, whatever order predictions were written in."""

from pathlib import Path

import numpy as np
import pytest

from longtail import run_comparison
from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.evaluation import Metrics, evaluate
from longtail.metrics import auc
from longtail.run_comparison import compare, same_logs
from tests.simulated_predictions import simulate

SETTINGS = Config().evaluate.model_copy(update={"bootstrap_rounds": 0})


def evaluation(folder: Path, key: str, logs: Artifact, order: np.ndarray | None = None, seed: int = 0) -> Artifact:
    predictions = simulate(seed=seed, rows=900)
    if order is not None:
        predictions = predictions.take(order)
    draft = Store.open(str(folder)).create("evaluation", key)
    draft.write("predictions", predictions)
    return draft.commit(config={}, inputs={"logs": logs}, seed=1, rows_in=0, rows_out=0, dropped={}, info={})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return evaluate(simulate(rows=900), SETTINGS, seed=1, rankers=("base", "choirrec"))


def logs(folder: Path, key: str) -> Artifact:
    draft = Store.open(str(folder)).create("logs", key)
    draft.write_json("what.json", key)
    return draft.commit(config={}, inputs={}, seed=1, rows_in=0, rows_out=0, dropped={}, info={})


def test_a_run_against_itself_differs_by_nothing_in_any_order_and_any_part(folder: Path, metrics: Metrics) -> None:
    read = logs(folder, "a")
    order = np.random.default_rng(0).permutation(2700)[:2000]
    one, other = evaluation(folder, "one", read), evaluation(folder, "shuffled", read, order)
    found = compare(one, other, "choirrec", "outcome", metrics, cold_item_events=100)
    assert [one.title for one in found] == ["all rows", "low-activity users", "high-activity users", "cold items", "warm items"]
    assert found[0].rows < 900
    for part in found:
        assert part.differences["auc"].difference == 0
        assert part.differences["log_loss"].difference == 0
    assert found[3].rows + found[4].rows == found[0].rows


def test_differences_are_those_of_the_scores(folder: Path, metrics: Metrics) -> None:
    read = logs(folder, "b")
    predictions = simulate(rows=900).to_pandas()
    one = evaluation(folder, "first", read)
    changed = simulate(rows=900)
    flipped = changed.set_column(changed.column_names.index("probability"), "probability", [1 - changed.column("probability").to_numpy()])
    draft = Store.open(str(folder)).create("evaluation", "flipped")
    draft.write("predictions", flipped)
    other = draft.commit(config={}, inputs={"logs": read}, seed=1, rows_in=0, rows_out=0, dropped={}, info={})
    mine = predictions[predictions.ranker == "base"]
    value = auc(mine.label.to_numpy().astype(np.int64), mine.probability.to_numpy().astype(np.float64))
    found = compare(one, other, "base", "outcome", metrics, 100)[0].differences["auc"]
    assert found.difference == pytest.approx(1 - 2 * value, abs=1e-6)
    assert found.verdict == "lower"
    assert compare(one, other, "nobody", "outcome", metrics, 100) == []


def test_runs_on_other_logs_and_runs_that_are_too_large_are_told(folder: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = evaluation(folder, "here", logs(folder, "c")), evaluation(folder, "there", logs(folder, "d"))
    assert same_logs(one, one)
    assert not same_logs(one, other)
    monkeypatch.setattr(run_comparison, "MOST_ROWS", 10)
    with pytest.raises(ValueError, match=r"900 predictions of base, and a page compares 10"):
        compare(one, one, "base", "outcome", metrics, 100)
