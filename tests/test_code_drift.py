"""Code drift: its measures on planted vectors against slow versions, what must hold of every way, its refusals, and the stage with its page."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from longtail.code_drift import CHAINS, WAYS, CodeDriftSettings, Refit, World, measure, squared_errors
from longtail.code_drift_page import CodeDriftResults, _side, page, plainly
from longtail.codes import CodebookSettings, encode, fit_here
from longtail.vectors import to_arrow
from pipelines import work
from pipelines.code_drift import CODE_DRIFT, command, counts_by_day, refit_days
from tests import planted_artifacts as planted_world
from tests.test_codes import planted

SETTINGS = CodebookSettings(num_stages=2, codebook_size=8, block_rows=64)


@pytest.fixture(scope="module")
def world() -> World:
    """400 items, of which 250, 320 and 380 are known at three days; two contents come twice."""
    vectors, _ = planted(400, num_clusters=20, noise=0.9)
    vectors[[10, 390]] = vectors[[11, 391]]
    known = np.arange(400)[None] < np.array([[250], [320], [380]])
    return World.of(vectors, np.where(known, 1 + np.arange(400) % 5, 0), (0, 7, 30))


@pytest.fixture(scope="module")
def refits(world: World) -> dict[tuple[str, int], Refit]:
    return {(one.way, one.day): one for one in measure(world, SETTINGS, 3)[0]}


def test_errors_by_hand() -> None:
    codebook = np.array([[[1, 0], [0, 1]], [[0.5, 0], [0, 0]]], np.float32)
    vectors = np.array([[1.5, 0], [0, 3]], np.float32)
    np.testing.assert_allclose(squared_errors(vectors, np.array([[0, 0], [1, 1]], np.int32), codebook), [0, 4])


def test_every_way_at_every_day(refits: dict[tuple[str, int], Refit]) -> None:
    assert set(refits) == {(way, day) for way in [*WAYS, *CHAINS] for day in (7, 30)}
    for (way, _), one in refits.items():
        for shares in (one.kept_items, one.kept_events, *([one.kept_step] if one.kept_step is not None else [])):
            assert 1 >= shares[0] >= shares[1] >= 0
        assert (one.kept_step is not None) == (way in CHAINS)


def test_figures_are_those_of_the_codebooks(world: World, refits: dict[tuple[str, int], Refit]) -> None:
    """Two ways worked out again from the fits themselves."""
    first = fit_here(world.vectors_ND[:250], SETTINGS, 3).codebook_SKD
    cold = fit_here(world.vectors_ND[:380], SETTINGS, 3).codebook_SKD
    for way, codebook in (("none", first), ("cold", cold)):
        one, codes = refits[way, 30], encode(world.vectors_ND, codebook)
        same = np.array([tuple(a) == tuple(b) for a, b in zip(encode(world.vectors_ND, first)[:250], codes, strict=False)])
        weights = world.counts_TN[2, :250]
        assert one.kept_items[-1] == pytest.approx(same.mean())
        assert one.kept_events[-1] == pytest.approx((same * weights).sum() / weights.sum())
        errors = ((world.vectors_ND - codebook[0][codes[:, 0]] - codebook[1][codes[:, 1]]) ** 2).sum(axis=1)
        assert one.mse == pytest.approx(errors[:380].mean(), rel=1e-4)
        assert one.mse_later == pytest.approx(errors[380:].mean(), rel=1e-4)
        alone = [
            not any(tuple(row) == tuple(other) and n != m and not {n, m} <= {10, 11} for m, other in enumerate(codes[:380]))
            for n, row in enumerate(codes[:380])
        ]
        assert one.confused == pytest.approx(1 - np.mean(alone))


def test_no_refit_keeps_all_and_matching_never_loses(refits: dict[tuple[str, int], Refit]) -> None:
    for day in (7, 30):
        assert refits["none", day].kept_items == (1.0, 1.0)
        assert refits["cold_overlap", day].mse == pytest.approx(refits["cold_reseeded", day].mse)
        assert refits["warm_overlap", day].kept_items[0] >= refits["warm", day].kept_items[0] > refits["cold_overlap", day].kept_items[0]
    assert refits["cold_longer", 30].mse <= 1.02 * refits["cold_reseeded", 30].mse


def test_nobody_new_and_nothing_moves_from_a_settled_start(world: World) -> None:
    still = World.of(world.vectors_ND, np.ones((2, 400), np.int64), (0, 7))
    found = {one.way: one for one in measure(still, SETTINGS.model_copy(update={"iterations": 100}), 3)[0]}
    for way in ("none", "cold", "warm", "warm_1", "chain_warm"):
        assert found[way].kept_items == (1.0, 1.0), way
    assert found["cold_reseeded"].kept_items[1] < 0.5
    assert found["none"].mse_later is None


def test_places_stay_where_they_go_on(world: World) -> None:
    """Newcomers that come before the others in the order of ids push places that are dealt anew."""
    backwards = World.of(world.vectors_ND[::-1].copy(), world.counts_TN[:, ::-1].copy(), world.days)
    _, identified, report = measure(backwards, SETTINGS, 3)
    assert identified.kept_going_on == 1.0
    assert identified.kept_anew < 1.0
    assert 0 < identified.beyond_first < 1
    assert report["dead_codes"] == [0, 0]


@pytest.mark.parametrize("days", [(0, 7), (7, 7), (30, 7)])
def test_days_that_do_not_rise_are_refused(days: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match=r"refit_days = \[.*\]: days after history_end, each later"):
        CodeDriftSettings(refit_days=days)


def test_where_results_lie_decides_nothing() -> None:
    assert CodeDriftSettings(results="elsewhere").key_fields() == CodeDriftSettings().key_fields() != CodeDriftSettings(num_seeds=2).key_fields()
    told = command("a.toml", ["run.uri=/somewhere", "cluster.num_cpus=1", "code_drift.num_seeds=3", "code_drift.results=x"])
    assert told == "python -m pipelines.code_drift --config a.toml --set code_drift.num_seeds=3"


def test_a_difference_is_told_only_beyond_two_standard_errors() -> None:
    assert [_side(np.array(ratio)) for ratio in ([0.9, 0.92], [1.1, 1.08], [0.9, 1.08], [1.0, 1.0], [0.5])] == [-1, 1, 0, 0, 0]
    assert _side(None) == 0


def test_the_stage_counts_events_before_each_day_and_writes_its_page(tmp_path: Path) -> None:
    store = planted_world.open_store(tmp_path, "run")
    logs = planted_world.logs(store, future=500)
    vectors, _ = planted_world.item_world()
    ids = [f"i{number}" for number in range(len(vectors))]
    z = planted_world.commit(store, "item_z", {"z": pa.table({"item_id": ids, "vector": to_arrow(vectors)})})
    config: dict[str, object] = {
        "codes": {"item": {"num_stages": 2, "codebook_size": 6, "min_rows_per_code": 2}},
        "code_drift": {"num_seeds": 2, "refit_days": [7, 21, 400]},
    }
    assert refit_days(logs, (7, 21, 400)) == (0, 7, 21)
    with pytest.raises(ValueError, match=r"code_drift\.refit_days = \[40\]: none lies within the 30 days"):
        refit_days(logs, (40,))
    ordered = pa.array(sorted(ids))
    counts = counts_by_day(logs, ordered, (0, 7, 21))
    events = logs.read("events")
    end = planted_world.HISTORY_END + timedelta(days=7)
    assert counts[1, 3] == sum(
        ts < end and item == ordered[3].as_py() for ts, item in zip(events["ts"].to_pylist(), events["item_id"].to_pylist(), strict=True)
    )
    assert (np.diff(counts, axis=0) >= 0).all()
    with work.in_place():
        made = planted_world.build(CODE_DRIFT, [logs, z], store, config)
    found = CodeDriftResults.model_validate(made.read_json("code_drift.json"))
    assert found.known == tuple((counts > 0).sum(axis=1))
    assert {one.seed for one in found.refits} == {7, 8}
    text = page(found, {"dataset": "planted", "when": "2026-11", "machine": "2 CPUs", "commit": "abc", "command": "python"})
    for name in [*WAYS.values(), *CHAINS.values(), *plainly(found), "after 7 days", "after 21 days"]:
        assert name in text
    with work.in_place(), pytest.raises(ValueError, match=r"codes\.item\.codebook_size = 100 needs at least"):
        planted_world.build(CODE_DRIFT, [logs, z], store, {**config, "codes": {"item": {"codebook_size": 100}}})
