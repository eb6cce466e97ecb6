"""The sweep's command as a whole: killed in the middle and started again, on the smallest config; finalists, the recommended config, what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from longtail.config import load
from longtail.sweep_results import SweepResults
from pipelines.cluster import ROOT
from tuning.spaces import current, draw, space_of

CONFIG = "pipelines/configs/test.toml"
SPACE = '{"codes.user.codebook_size"=[3, 4], "rankers.choirrec.distill_teacher"=["individual", "group"], "train.learning_rate"={low=0.01, high=0.1, log=true}}'


def command(uri: Path, *overrides: str) -> list[str]:
    settings = ["profiles.generator=deterministic", "tracking.backend=none", f"sweep.space={SPACE}", "sweep.max_loss=1", "sweep.finalists.seeds=[1, 2]"]
    flags = [flag for setting in (*settings, *overrides) for flag in ("--set", setting)]
    return [sys.executable, "-m", "tuning.sweep", "--config", CONFIG, "--out", str(uri), *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}


def records(uri: Path) -> dict[int, dict[str, Any]]:
    """The journal as it lies on the disk."""
    return {int(path.stem): json.loads(path.read_text()) for path in uri.glob("sweeps/*/journal/[0-9][0-9][0-9][0-9][0-9].json")}


def rankers(uri: Path) -> dict[str, str]:
    """When each finished ranker was finished, by key."""
    return {path.parent.name: json.loads(path.read_text())["finished"] for path in uri.glob("choirrec/*/manifest.json")}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_sweep_that_was_killed_goes_on_and_loses_and_repeats_nothing(tmp_path: Path) -> None:
    more = ("sweep.num_trials=5", "sweep.num_startup=2", "sweep.finalists.num_trials=1")
    with subprocess.Popen(command(tmp_path, *more), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as first:
        deadline = time.monotonic() + 600
        while sum(one["state"] == "finished" for one in records(tmp_path).values()) < 2 and time.monotonic() < deadline:
            assert first.poll() is None, first.stderr.read() if first.stderr else ""
            time.sleep(0.2)
        first.send_signal(signal.SIGKILL)
    before, trained = records(tmp_path), rankers(tmp_path)
    ended = {number: one for number, one in before.items() if one["state"] == "finished"}
    assert 2 <= len(ended) < 5
    second = subprocess.run(command(tmp_path, *more), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert second.returncode == 0, second.stderr[-4000:]
    told = json.loads(second.stdout.splitlines()[-1])
    after = records(tmp_path)
    assert sorted(after) == [0, 1, 2, 3, 4]
    assert {number: after[number] for number in ended} == ended, "what had ended stands as it was"
    for number, one in before.items():
        assert after[number]["point"] == one["point"], "what had begun has its number and its point"
    assert {key: when for key, when in rankers(tmp_path).items() if key in trained} == trained, "and is not trained again"
    found = SweepResults.model_validate_json((Path(told["results"]).parent / "results.json").read_text())
    assert len(found.trials) == 5
    assert found.finals is not None
    assert {"base", "start"} < set(found.finals.validation)
    best = load(told["best"])
    assert best.codes.user.codebook_size in (3, 4, load(ROOT / CONFIG).codes.user.codebook_size)
    print(second.stdout)

    third = subprocess.run(command(tmp_path, *more), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert third.returncode == 0, third.stderr[-4000:]
    assert json.loads(third.stdout.splitlines()[-1])["sweeps"]["skipped"], "a finished sweep is found: the test window stays as often opened as it was"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scheduler", ["hyperband", "pbt"])
def test_trials_that_are_paused_go_on_from_their_checkpoints(tmp_path: Path, scheduler: str) -> None:
    space = 'sweep.space={"train.learning_rate"={low=0.01, high=0.1, log=true}, "rankers.choirrec.distill_margin"={low=0.0, high=0.3}}'
    more = (f"sweep.scheduler={scheduler}", "sweep.searcher=random", "sweep.num_trials=4", "sweep.max_concurrent=2", "train.epochs=4", space)
    done = subprocess.run(command(tmp_path, *more, "sweep.finalists.num_trials=0"), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    found = SweepResults.model_validate_json((Path(told["results"]).parent / "results.json").read_text())
    assert len(found.trials) == 4
    ended = [one for one in found.trials if one.state == "finished"]
    assert ended
    assert all(one.epochs == 4 for one in ended)
    assert all(1 <= one.epochs < 4 for one in found.trials if one.state == "stopped")
    if scheduler == "pbt":
        config = load(ROOT / CONFIG, [space, "train.epochs=4"])
        drawn = draw(space_of(config), current(config, space_of(config)), 4, config.run.seed)
        assert any(one.point not in drawn for one in ended), "some trial was copied and changed"
        assert not list(tmp_path.glob("choirrec/trial-*")), "what trained aside is gone"
