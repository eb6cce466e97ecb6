"""The bench of training on a tiny world: the line's keys, and that a worse or smaller ranker is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fuxictr")

from bench import train
from bench.train import compare, measure, parse

TINY = ["--rounds", "1", "--threads", "1", "--rows", "64", "--steps", "4", "--steps-per-part", "2", "--batch-size", "16", "--users", "50", "--items", "200"]


def test_the_line_holds_all_that_the_issue_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "AUC_SLACK", 1.0)  # four steps teach nobody
    line = measure(parse([*TINY, "--history", "6", "--held-out", "40", "--pair-steps", "0", "--no-stage"]), tmp_path)
    assert line.keys() == {"bench", "work", "ours_s", "peers", "ratio", "spread", "threads", "quality"}
    assert line["bench"] == "train"
    assert line["peers"].keys() == line["ratio"].keys() == {"fuxictr_din"}
    quality = line["quality"]
    assert quality["parameters"]["ours"]["tables"] == quality["parameters"]["fuxictr_din"]["tables"]
    assert quality["loader_rows"] == 64
    assert quality["reach"].keys() == {"base", "choirrec", "saviorrec", "waits_for_batches"}
    assert len(quality["loss"]["base"]) == 4


def side(auc: float, tables: int) -> Any:
    ranker = SimpleNamespace(num_parameters=lambda: {"tables": tables, "layers": 1})
    return SimpleNamespace(auc=lambda held: auc, ranker=ranker, model=tables)


def test_a_faster_wrong_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.fuxictr_din.parameters", lambda tables: {"tables": tables, "layers": 1})
    held: Any = None
    assert compare(side(0.65, 9), side(0.65, 9), held)["auc"] == {"ours": 0.65, "fuxictr_din": 0.65}
    with pytest.raises(ValueError, match=r"held-out AUC 0\.6300 beside FuxiCTR's 0\.6500"):
        compare(side(0.63, 9), side(0.65, 9), held)
    with pytest.raises(ValueError, match="widths must be the same"):
        compare(side(0.65, 8), side(0.65, 9), held)
