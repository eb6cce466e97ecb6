"""The comparison of two searches: what had ended by when, and what the page says of it."""

import json
import os
from pathlib import Path

from bench.sweep import page, read
from longtail.sweep_results import SweepResults, Trial


def finished(folder: Path, minutes: float, trials: list[tuple[str, float, float, float]]) -> Path:
    """A search below `folder` whose trials are (state, score, seconds, second at which it ended)."""
    made = tuple(
        Trial(number=number, point={"train.epochs": number}, state=state, score=score, whole=0.7, epochs=3 if state == "finished" else 1, seconds=seconds)  # type: ignore[arg-type]
        for number, (state, score, seconds, _) in enumerate(trials)
    )
    told = {"ranker": "choirrec", "metric": "gauc_low", "whole": "gauc", "floor": 0.69, "commit": "c", "command": "x", "machine": "m"}
    results = SweepResults.model_validate({**told, "searcher": "tpe", "scheduler": "asha", "minutes": {"search": minutes}, "trials": made})
    attempt, journal = folder / "attempt", folder / "journal"
    attempt.mkdir(parents=True)
    journal.mkdir()
    (attempt / "results.json").write_text(results.model_dump_json())
    for number, (*_, ended) in enumerate(trials):
        path = journal / f"{number:05d}.json"
        path.write_text(json.dumps({}))
        os.utime(path, (1_000_000 + ended, 1_000_000 + ended))
    return attempt / "results.json"


def test_the_best_is_of_the_trials_that_went_to_the_end_by_then(tmp_path: Path) -> None:
    found = read(finished(tmp_path / "a", 2.0, [("finished", 0.60, 10, 10), ("stopped", 0.90, 5, 15), ("finished", 0.65, 10, 30), ("finished", 0.62, 9, 20)]))
    assert found.ended_s == {0: 10.0, 1: 15.0, 2: 30.0, 3: 20.0}
    assert found.start == 0.60
    assert [one.number for one in (found.best(), found.best(25), found.best(12)) if one] == [2, 3, 0]
    assert found.best(5) is None
    assert (found.count("finished"), found.count("stopped"), found.epochs) == (3, 1, 10)


def test_the_page_holds_both_at_the_shorter_ones_time(tmp_path: Path) -> None:
    ours = read(finished(tmp_path / "a", 0.5, [("finished", 0.60, 10, 10), ("stopped", 0.55, 5, 15), ("finished", 0.64, 5, 20)]))
    plain = read(finished(tmp_path / "b", 1.0, [("finished", 0.60, 10, 10), ("finished", 0.61, 15, 25), ("finished", 0.66, 20, 45)]))
    lines = page("shop", "shop.toml", {"tpe + asha": ours, "random": plain}).splitlines()
    rows = [line for line in lines if line.startswith(("| tpe", "| random"))]
    assert rows[0] == "| tpe + asha | 0.5 | 2 | 1 | 7 | 0.6400 (+4.00), trial 2, after 0.3 min | 0.6400 (+4.00) |"
    assert rows[1] == "| random | 1.0 | 3 | 0 | 9 | 0.6600 (+6.00), trial 2, after 0.8 min | 0.6100 (+1.00) |"
    assert "Wall time: plain random search took 2.00 times as long." in lines
