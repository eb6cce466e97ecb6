"""What a sweep's trials share: built once, also when they ask at the same time; refusals are told to all who ask; failures are not kept."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from longtail.artifacts import Draft, Store
from longtail.codes import TooFewRowsError
from longtail.config import Config, load
from pipelines.stage import Context, Result, Stage
from tuning.sharing import RefusedError, ensure_inputs, ensure_shared, start_builders


def planted_line(notes: str) -> Stage:
    """logs → codes → samples → ranker; each leaves a note that it was built, and codes refuses 64 and fails on 32 until it is mended."""

    def stage(name: str, settings: Callable[[Config], dict[str, Any]], *inputs: Stage) -> Stage:
        def build(context: Context, draft: Draft) -> Result:
            size = context.config.codes.user.codebook_size
            Path(notes, f"{name}-{size}-{os.urandom(4).hex()}").touch()
            if name == "codes" and size == 64:
                raise TooFewRowsError("64 codes need 256 rows")
            if name == "codes" and size == 32 and not Path(notes, "mended").exists():
                raise RuntimeError("the disk is full")
            time.sleep(0.5)
            draft.write_json("made.json", {name: size if inputs else "the same for every size"})
            return Result(0, 0)

        return Stage(name, 1, inputs, settings, build, "nowhere")

    logs = stage("logs", lambda config: {})
    codes = stage("codes", lambda config: config.codes.user.key_fields(), logs)
    samples = stage("samples", lambda config: {}, logs, codes)
    return stage("ranker", lambda config: config.rankers.choirrec.key_fields(), logs, samples)


def sized(size: int, *more: str) -> Config:
    return load(None, [f"codes.user.codebook_size={size}", *more])


def built(notes: Path) -> list[str]:
    return sorted("-".join(path.name.split("-")[:2]) for path in notes.glob("*-*-*"))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_trials_that_ask_at_the_same_time_share_one_build(tmp_path: Path) -> None:
    notes, store = tmp_path / "notes", Store.open(str(tmp_path / "run"))
    notes.mkdir()
    builders, line, cwd = start_builders(), planted_line(str(notes)), str(tmp_path)
    try:

        @ray.remote(num_cpus=0)
        def asks(config: Config) -> str:
            try:
                ensure_inputs(line, config, store, builders, cwd)
            except RefusedError as error:
                return str(error)
            return "ready"

        configs = [sized(8), sized(8, "rankers.choirrec.distill_teacher=group"), sized(4), sized(64), sized(64, "rankers.choirrec.group_dim=8")]
        told = ray.get([asks.remote(config) for config in configs])
        assert told == ["ready", "ready", "ready", "64 codes need 256 rows", "64 codes need 256 rows"]
        once = built(notes)
        assert [one for one in once if not one.startswith("codes-64")] in (
            [f"codes-{a}" for a in (4, 8)] + [f"logs-{first}"] + [f"samples-{a}" for a in (4, 8)] for first in (4, 8, 64)
        )
        ranker = ensure_shared(line, sized(8), store, builders, cwd)
        assert ranker.stage == "ranker"
        assert built(notes) == sorted([*once, "ranker-8"])
    finally:
        ray.kill(builders)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_build_that_failed_is_tried_again_by_who_asks_later(tmp_path: Path) -> None:
    notes, store = tmp_path / "notes", Store.open(str(tmp_path / "run"))
    notes.mkdir()
    builders, line = start_builders(), planted_line(str(notes))
    try:
        with pytest.raises(RuntimeError, match="the disk is full"):
            ensure_inputs(line, sized(32), store, builders, str(tmp_path))
        (notes / "mended").touch()
        ensure_inputs(line, sized(32), store, builders, str(tmp_path))
        assert built(notes) == ["codes-32", "codes-32", "logs-32", "samples-32"]
    finally:
        ray.kill(builders)
