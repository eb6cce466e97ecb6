"""A sweep's results: the goal and its constraint, ranking, Pareto front, journal, the recommended config as TOML, the page."""

import json
from pathlib import Path
from typing import Any

import pytest

from longtail.config import load
from longtail.config_text import as_toml
from longtail.study_results import ArmOnSlice, Difference
from longtail.sweep_page import best_of, best_toml, markdown, page, table
from longtail.sweep_results import NO_SCORE, PENALTY, Finals, Goal, SweepResults, Trial, pareto, ranked, trial_of

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "pipelines" / "configs").glob("*.toml"))
GOAL = Goal("outcome/gauc_low", "outcome/gauc", floor=0.6)


def trial(number: int, score: float | None, whole: float | None = 0.65, **changes: Any) -> Trial:
    shortfall = max(0.0, 0.6 - whole) if whole is not None else 0.0
    searched = NO_SCORE if score is None else score - PENALTY * shortfall
    given = {"number": number, "point": {"codes.user.codebook_size": 4 + number}, "state": "finished", "score": score, "whole": whole}
    return Trial.model_validate({**given, "shortfall": shortfall, "searched": searched, "epochs": 2, "seconds": 1.0, **changes})


def test_the_goal_takes_from_the_score_what_lies_below_the_constraint() -> None:
    assert GOAL.searched({"outcome/gauc_low": 0.7, "outcome/gauc": 0.65}) == 0.7
    assert GOAL.searched({"outcome/gauc_low": 0.7, "outcome/gauc": 0.59}) == pytest.approx(0.7 - 0.1)
    assert GOAL.searched({"outcome/gauc_low": float("nan"), "outcome/gauc": 0.65}) == NO_SCORE
    assert GOAL.searched({"outcome/gauc_low": 0.7}) == NO_SCORE, "nothing is known over all rows"
    assert Goal("a", "b").searched({"a": 0.7}) == 0.7, "no constraint"


def test_a_trial_is_what_it_reported_last() -> None:
    point = {"train.epochs": 3}
    kept = {"outcome/gauc_low": 0.7, "outcome/gauc": 0.59, "epoch": 1, "time_total_s": 5.0}
    finished = trial_of(1, point, {"kept": kept, "epochs": 3}, GOAL, 5.0)
    assert (finished.state, finished.score, finished.epochs, finished.feasible) == ("finished", 0.7, 3, False)
    assert finished.shortfall == pytest.approx(0.01)
    stopped = trial_of(2, point, {"outcome/gauc_low": 0.7, "outcome/gauc": 0.7, "epoch": 2, "config": {"a": 1}}, GOAL, 5.0)
    assert (stopped.state, stopped.epochs, stopped.feasible) == ("stopped", 2, False)
    refused = trial_of(3, point, {"refused": "too few rows"}, GOAL, 5.0)
    assert (refused.state, refused.score, refused.refused) == ("refused", None, "too few rows")
    assert trial_of(4, point, {"kept": {"outcome/gauc": 0.7}}, GOAL, 5.0).refused == "outcome/gauc_low has no value on the validation window"


def test_those_that_may_win_come_first() -> None:
    trials = [
        trial(0, 0.5),
        trial(1, None, None, state="refused", refused="no"),
        trial(2, 0.9, 0.5),
        trial(3, 0.6),
        trial(4, 0.95, state="stopped"),
        trial(5, 0.6),
    ]
    assert [one.number for one in ranked(trials)] == [3, 5, 0, 2, 4, 1]


def test_pareto_front_by_hand_and_against_all_pairs() -> None:
    trials = [trial(0, 0.5, 0.9), trial(1, 0.6, 0.8), trial(2, 0.55, 0.7), trial(3, 0.6, 0.85), trial(4, 0.4, 0.95), trial(5, 0.7, 0.9, state="stopped")]
    front = [one.number for one in pareto(trials)]
    assert front == [3, 0, 4]
    known = [one for one in trials if one.state == "finished"]
    beaten = {a.number for a in known for b in known if b.score >= a.score and b.whole >= a.whole and (b.score, b.whole) != (a.score, a.whole)}  # type: ignore[operator]
    assert set(front) == {one.number for one in known} - beaten


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_written_as_toml_is_read_back_as_it_was(path: Path, tmp_path: Path) -> None:
    config = load(path, ['run.name=a "b" \\ c\tü', "logs.labels.outcome_window_h=0.1"] if path.stem == "test" else [])
    (tmp_path / "again.toml").write_text(as_toml(config))
    assert load(tmp_path / "again.toml") == config


def test_sections_are_left_out_of_the_toml(tmp_path: Path) -> None:
    config = load(None, ["sweep.num_trials=9", "codes.user.codebook_size=5"])
    assert as_toml(config, leave_out=("sweep",)) == "codes.user.codebook_size = 5\n"


def difference(mean: float, lo: float, hi: float) -> Difference:
    return Difference(mean=mean, lo=lo, hi=hi, per_seed=(mean, mean))


def results(finals: bool) -> SweepResults:
    def arm(mean: float, against: dict[str, Difference]) -> dict[str, ArmOnSlice]:
        return {name: ArmOnSlice(gauc=mean, sd=0.0, rows=100, users=10, vs=against) for name in ("low20", "all")}

    arms = {"base": arm(0.5, {}), "start": arm(0.5, {"base": difference(0, -1, 1)})}
    arms["trial_2"] = arm(0.6, {"start": difference(0.1, 0.05, 0.15), "base": difference(0.1, 0.05, 0.15)})
    told = Finals(metric="gauc", slice="low20", seeds=(1, 2), validation=arms, winner="trial_2", test=arms, opened="2026-01-01T00:00:00Z") if finals else None
    trials = tuple(ranked([trial(0, 0.55), trial(1, None, None, state="refused", refused="too <few> rows\nmore"), trial(2, 0.625), trial(3, 0.7)]))
    about = {
        "ranker": "choirrec",
        "metric": "gauc_low",
        "whole": "gauc",
        "floor": 0.6,
        "commit": "c0ffee",
        "command": "python -m tuning.sweep",
        "machine": "2 CPUs",
    }
    rest = {"searcher": "tpe", "scheduler": "none", "minutes": {"search": 1.0}, "importance": {"codes.user.codebook_size": 1.0}}
    return SweepResults.model_validate({**about, **rest, "trials": [one.model_dump() for one in trials], "finals": told and told.model_dump()})


def test_table_ranks_the_best_first_and_the_refused_last() -> None:
    lines = table(results(False).trials, "gauc_low", "gauc").splitlines()
    assert lines[0].split()[:3] == ["rank", "trial", "gauc_low"]
    assert lines[1].split() == ["1", "3", "0.7000", "+0.1500", "0.6500", "1", "codes.user.codebook_size=7"]
    assert lines[3].endswith("the config as it stands")
    assert lines[4].endswith("[too <few> rows]")


def test_the_finalists_winner_is_recommended_before_the_best_of_the_table() -> None:
    lucky, chosen = best_of(results(False)), best_of(results(True))
    assert lucky is not None
    assert chosen is not None
    assert (lucky.number, chosen.number) == (3, 2)
    assert best_of(results(False).model_copy(update={"trials": (trial(0, 0.5, 0.1),)})) is None, "below the constraint"


def test_best_toml_has_its_figures_in_the_head_and_is_a_config(tmp_path: Path) -> None:
    text = best_toml(results(True), load(None, ["codes.user.codebook_size=6", "sweep.num_trials=9"]))
    (tmp_path / "best.toml").write_text(text)
    assert load(tmp_path / "best.toml") == load(None, ["codes.user.codebook_size=6"])
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert any("+20.00 % [+10.00, +30.00] over the config as it stood, 2 of 2 seeds positive; the interval is above zero" in line for line in head)
    assert any("0.6250 (the config as it stood 0.5500)" in line for line in head)


def test_page_and_markdown_tell_of_every_trial_and_escape_what_they_are_told() -> None:
    found = results(True)
    html, text = page(found), markdown(found)
    assert "too &lt;few&gt; rows" in html
    assert "<few>" not in html
    assert html.count("<circle") == 6, "three with a score, in two figures"
    for number in range(4):
        assert f"| {number} |" in text
    assert "not below 0.6000" in text
    assert json.loads(found.model_dump_json())["finals"]["winner"] == "trial_2"
