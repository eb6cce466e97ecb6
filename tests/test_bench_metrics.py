"""The bench of metrics on a few rows: all sides agree, ties included, and another answer is refused."""

import argparse
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("polars")

from bench import metrics, rounds


def test_a_line_of_all_sides() -> None:
    args = argparse.Namespace(num_rows=3_000, num_users=60, loop_users=20, seed=1, rounds=1, threads=2)
    line = metrics.bench(args)
    assert line["peers"].keys() == {"polars"}
    assert line["quality"]["loop"]["ratio"].keys() == {"sklearn_loop"}
    assert line["quality"]["reach"].keys() == {"times the loop", "times polars", "equal to"}
    assert line["quality"]["reach"]["equal to"][2]
    assert 0.5 < line["quality"]["gauc"] < 1


def test_ties_count_one_half_on_all_sides() -> None:
    scored = metrics.Scored.draw(2_000, 40, 2)
    scored = replace(scored, score_N=np.round(scored.score_N, 1).astype(np.float32))
    for peer in (metrics.polars_metrics(scored.frame()), metrics.sklearn_loop(scored)):
        assert peer == pytest.approx(metrics.ours(scored, 2), abs=metrics.TOLERANCE)


def test_another_answer_is_refused() -> None:
    taken = {rounds.OURS: rounds.Taken([1.0], {"auc": 0.7, "gauc": 0.6}), "polars": rounds.Taken([1.0], {"auc": 0.7, "gauc": 0.6 + 1e-8})}
    with pytest.raises(ValueError, match="polars's gauc differs from ours by 1e-08"):
        metrics.compare(taken)
    taken["polars"].result["gauc"] = float("nan")
    with pytest.raises(ValueError, match="one of the two is wrong"):
        metrics.compare(taken)
