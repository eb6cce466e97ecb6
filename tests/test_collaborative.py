"""Collaborative filtering: weights by hand and against dense formulas, scores against a slow loop, that nothing later reaches them, and the stage."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError
from scipy import sparse

from longtail import collaborative, schema
from longtail.artifacts import Artifact
from longtail.behaviour import Behaviour, incidence
from longtail.collaborative import COLLABORATIVE_STATS, CollaborativeIndex, CollaborativeSettings, Score, ease, fit, most_met, pure_svd, strongest
from longtail.config import parse
from longtail.entities import Entities
from pipelines.collaborative import COLLABORATIVE, one_snapshot
from tests import planted_artifacts, small_world

Rows = list[tuple[str, str, float, str]]

ENTITIES = small_world.entities()
A, B, C, D = 1, 2, 3, 4
BOOK, MILK, ODD, SOAP, TEA = range(1, 6)
SETTINGS = CollaborativeSettings(scores=("svd", "ease"), ease_l2=1.0, svd_dim=2)


def random_rows(number: int, seed: int) -> Rows:
    """Events on whole days, so that many are repeated and many happen at once."""
    rng = np.random.default_rng(seed)
    return [(str(rng.choice(list("abc"))), str(rng.choice(["tea", "milk", "soap", "book"])), float(rng.integers(40)), "purchase") for _ in range(number)]


def met(rows: Rows | None, day: float) -> sparse.csr_matrix:
    past = small_world.behaviour(rows).before(small_world.us(day))
    return incidence(past.user_row_E, past.item_row_E, (len(ENTITIES.users) + 1, len(ENTITIES.items) + 1))


def weights(rows: Rows | None, days: tuple[float, ...], settings: CollaborativeSettings = SETTINGS) -> pa.Table:
    return pa.concat_tables([fit(met(rows, day), ENTITIES.items, small_world.us(day), settings, seed=0) for day in days])


def index(rows: Rows | None, table: pa.Table, settings: CollaborativeSettings = SETTINGS) -> CollaborativeIndex:
    return CollaborativeIndex.build(table, ENTITIES, small_world.behaviour(rows), settings)


def planted(triples: list[tuple[float, Score, str, str, float]]) -> pa.Table:
    """A table of given weights."""
    days, *columns = zip(*triples, strict=True)
    times = pa.array([small_world.day(day) for day in days], schema.TIMESTAMP)
    return pa.Table.from_arrays([times, *(pa.array(column) for column in columns[:-1]), pa.array(columns[-1], pa.float32())], schema=schema.COLLABORATIVE)


def score(built: CollaborativeIndex, user: int, item: int, day: float) -> list[float]:
    result: list[float] = built.scores(np.array([user]), np.array([item]), np.array([small_world.us(day)]))[0].tolist()
    return result


def test_ease_by_hand() -> None:
    # Three users met the first item, four the second, two both: the ridge of one on the other is 2 / (3 + 1) and 2 / (4 + 1).
    incidence_MC = sparse.csr_matrix(np.array([[1, 1], [1, 1], [1, 0], [0, 1], [0, 1]], np.float32))
    np.testing.assert_allclose(ease(incidence_MC, 1.0), [[0, 2 / 4], [2 / 5, 0]])


def test_ease_is_the_ridge_of_each_item_on_the_others() -> None:
    dense = (np.random.default_rng(0).random((30, 4)) < 0.4).astype(np.float64)
    got = ease(sparse.csr_matrix(dense.astype(np.float32)), 3.0)
    for item in range(4):
        others = [other for other in range(4) if other != item]
        expected = np.linalg.solve(dense[:, others].T @ dense[:, others] + 3.0 * np.eye(3), dense[:, others].T @ dense[:, item])
        np.testing.assert_allclose(got[others, item], expected, atol=1e-12)
        assert got[item, item] == 0


@pytest.mark.parametrize("dim", [3, 50])
def test_pure_svd_is_the_dense_one_and_knows_no_more_than_the_rank(dim: int) -> None:
    rng = np.random.default_rng(1)
    dense = (rng.random((40, 6)) < 0.3).astype(np.float64)
    dense = np.concatenate([dense, dense[:, :2]], axis=1)  # two items twice: eight columns of rank six
    _, _, right = np.linalg.svd(dense / np.sqrt(dense.sum(axis=0)))
    expected = right[: min(dim, 6)].T @ right[: min(dim, 6)]
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(pure_svd(sparse.csr_matrix(dense.astype(np.float32)), dim, seed=0), expected, atol=1e-6)


def test_the_strongest_weights_of_each_target_are_kept() -> None:
    dense = np.array([[0, 0.1, 0.5, 0], [0.3, 0, -0.5, 0], [-0.4, 0.2, 0, 0], [0.1, -0.3, 0.6, 0]])
    source, target, weight = strongest(dense, 2)
    kept = list(zip(source.tolist(), target.tolist(), weight.round(6).tolist(), strict=True))
    assert [(i, j, round(w, 1)) for i, j, w in kept] == [(2, 0, -0.4), (1, 0, 0.3), (3, 1, -0.3), (2, 1, 0.2), (3, 2, 0.6), (0, 2, 0.5)]
    assert len(strongest(dense, 9)[0]) == np.count_nonzero(dense)
    one = weights(random_rows(60, 0), (40,), SETTINGS.model_copy(update={"num_weights": 1}))
    assert len(one) == 2 * 4


def test_only_items_with_most_users_have_weights() -> None:
    assert most_met(met(None, 20), 2).tolist() == [SOAP, TEA]
    assert most_met(met(None, 20), 9).tolist() == [SOAP, TEA, BOOK, MILK]  # odd was never met
    table = weights(None, (20,), SETTINGS.model_copy(update={"num_items": 2}))
    assert {*table["source_item_id"].to_pylist(), *table["target_item_id"].to_pylist()} == {"soap", "tea"}
    assert table.schema.equals(schema.COLLABORATIVE)


@pytest.mark.parametrize("day", [0, 1.5])
def test_nobody_and_a_lone_item_make_no_weights(day: float) -> None:
    assert len(weights(None, (day,))) == 0


def test_scores_by_hand() -> None:
    table = planted([(20, "ease", "tea", "soap", 0.5), (20, "ease", "milk", "soap", 0.25), (20, "svd", "soap", "tea", 2.0), (30, "ease", "tea", "soap", 4.0)])
    built = index(None, table)
    # a met tea twice, milk and soap: tea counts once, and soap does nothing for soap.
    assert score(built, A, SOAP, 20) == [0, 0.75]
    assert score(built, A, TEA, 29) == [2, 0]
    assert score(built, B, SOAP, 29) == [0, 0.5]
    assert score(built, A, SOAP, 30) == [0, 4]
    # nothing before the first as_of, of and for the unknown, without weights, without having met anything
    for user, item, day in ((A, SOAP, 19.9), (0, SOAP, 25), (A, 0, 25), (A, BOOK, 25), (D, SOAP, 25)):
        assert score(built, user, item, day) == [0, 0]


def test_what_happens_at_the_time_of_a_row_is_not_counted() -> None:
    built = index([*small_world.BEHAVIOUR, ("c", "tea", 25, "click")], planted([(20, "ease", "tea", "milk", 1.0)]))
    assert score(built, C, MILK, 25) == [0, 0]
    assert built.scores(np.array([C]), np.array([MILK]), np.array([small_world.us(25) + 1]))[0].tolist() == [0, 1]


@pytest.mark.parametrize("num_cells", [1, 64, collaborative.NUM_CELLS])
def test_scores_agree_with_a_slow_loop_however_they_are_cut(num_cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collaborative, "NUM_CELLS", num_cells)
    rows, days = random_rows(70, seed=2), (12.0, 26.0)
    table = weights(rows, days)
    given = {(small_world.us(day), name): {} for day in days for name in SETTINGS.scores}
    for row in table.to_pylist():
        given[round(row["as_of"].timestamp() * 1e6), row["method"]][row["source_item_id"], row["target_item_id"]] = row["weight"]
    rng = np.random.default_rng(3)
    user, item = rng.integers(0, 5, 300).astype(np.int32), rng.integers(0, 6, 300).astype(np.int32)
    time = np.array([small_world.us(float(day)) for day in rng.integers(5, 41, 300)])
    slow = np.zeros((300, 2))
    for row in range(300):
        name, target = ([None, *values.to_pylist()][code] for values, code in ((ENTITIES.users.values, user[row]), (ENTITIES.items.values, item[row])))
        past = {event[1] for event in rows if event[0] == name and small_world.us(event[2]) < time[row]}
        snapshots = [small_world.us(day) for day in days if small_world.us(day) <= time[row]]
        for place, method in enumerate(SETTINGS.scores if snapshots else ()):
            slow[row, place] = sum(given[snapshots[-1], method].get((source, target), 0.0) for source in past)
    built = index(rows, table)
    got = built.scores(user, item, time)
    assert got.dtype == np.float32
    assert (slow != 0).mean() > 0.3
    np.testing.assert_allclose(got, slow, atol=1e-6)
    one_by_one = np.concatenate([built.scores(user[row : row + 1], item[row : row + 1], time[row : row + 1]) for row in range(20)])
    np.testing.assert_array_equal(one_by_one, got[:20])


def test_a_planted_future_event_changes_neither_weights_nor_scores() -> None:
    planted_rows = [*small_world.BEHAVIOUR, ("b", "milk", 20, "purchase"), ("c", "tea", 30, "purchase")]
    before, after = weights(None, (20,)), weights(planted_rows, (20,))
    assert after.equals(before)
    assert not weights(planted_rows, (31,))["weight"].equals(weights(None, (31,))["weight"])
    for user, item, day in ((B, SOAP, 20), (C, SOAP, 30)):
        assert score(index(planted_rows, after), user, item, day) == score(index(None, before), user, item, day)
        assert score(index(planted_rows, after), user, item, day + 1) != score(index(None, before), user, item, day + 1)


@pytest.mark.parametrize("name", COLLABORATIVE_STATS)
def test_items_of_ones_taste_score_higher(name: Score) -> None:
    """Two tastes of 20 items each; every user of 200 meets six of their own taste and two of the other."""
    rng = np.random.default_rng(4)
    entities = Entities.build(
        pa.table({"user_id": [f"u{row:03d}" for row in range(200)]}), pa.table({"item_id": [f"i{row:02d}" for row in range(40)]}), planted_artifacts.INFO, 3
    )
    events = [(user, 20 * (taste % 2) + item) for user in range(200) for taste, number in ((user, 6), (user + 1, 2)) for item in rng.choice(20, number, False)]
    rows = [(f"u{user:03d}", f"i{item:02d}", 10.0, "purchase") for user, item in events]
    behaviour = Behaviour.build(small_world.events(rows), entities, ("purchase",))
    met_MN = incidence(behaviour.user_row_E, behaviour.item_row_E, (201, 41))
    settings = CollaborativeSettings(scores=(name,), ease_l2=50.0, svd_dim=2)
    built = CollaborativeIndex.build(fit(met_MN, entities.items, small_world.us(11), settings, seed=0), entities, behaviour, settings)
    user, item = (grid.reshape(-1) for grid in np.meshgrid(np.arange(200), np.arange(40), indexing="ij"))
    scores = built.scores(user + 1, item + 1, np.full(8000, small_world.us(12)))[:, 0].reshape(200, 40)
    unmet = met_MN.toarray()[1:, 1:] == 0
    own = np.arange(40)[None] // 20 == np.arange(200)[:, None] % 2
    higher = [scores[row][own[row] & unmet[row]].mean() > scores[row][~own[row] & unmet[row]].mean() for row in range(200)]
    assert np.mean(higher) > 0.95


@pytest.mark.parametrize("wrong", [{"scores": ["ease", "ease"]}, {"scores": ["itemknn"]}, {"ease_l2": 0}, {"svd_dim": 1}, {"num_items": 1}, {"num_weights": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CollaborativeSettings.model_validate(wrong)


def stage(folder: Path, name: str, rows: Rows, scores: list[str]) -> tuple[Artifact, Artifact]:
    """The logs of these events, and the stage on them."""
    store = planted_artifacts.open_store(folder, name)
    tables = {"users": small_world.USERS, "items": small_world.ITEMS, "events": small_world.events(rows)}
    logs = planted_artifacts.commit(store, "logs", tables, small_world.INFO.model_dump(mode="json"))
    config: dict[str, object] = {"profiles": {"snapshots": ["train_end", "history_end"]}, "collaborative": {"scores": scores, "svd_dim": 2}}
    return logs, planted_artifacts.build(COLLABORATIVE, [logs], store, config)


def test_without_scores_the_table_is_empty_and_scores_have_no_columns(tmp_path: Path) -> None:
    _, artifact = stage(tmp_path, "off", small_world.BEHAVIOUR, [])
    table = artifact.read("collaborative")
    assert table.schema.equals(schema.COLLABORATIVE)
    assert len(table) == 0
    off, on = CollaborativeSettings(), SETTINGS
    assert index(None, table, off).scores(np.array([A]), np.array([TEA]), np.array([small_world.us(30)])).shape == (1, 0)
    assert score(index(None, table, on), A, TEA, 30) == [0, 0]


def test_the_key_holds_what_decides_the_weights() -> None:
    off, other = parse({"collaborative": {"ease_l2": 1.0}}, "test"), parse({"profiles": {"snapshots": ["train_end"]}}, "test")
    assert COLLABORATIVE.settings(off) == COLLABORATIVE.settings(other)
    on = [parse({"collaborative": {"scores": ["ease"]}, "profiles": {"snapshots": [name]}}, "test") for name in ("history_end", "train_end")]
    assert COLLABORATIVE.settings(on[0]) != COLLABORATIVE.settings(on[1])


@pytest.mark.ray
def test_the_stage_on_ray(ray_cluster: None, tmp_path: Path) -> None:
    """One table of both snapshots, the earlier of which no later event changes."""
    rows, later = random_rows(60, seed=5), [("a", "odd", 20.0, "purchase"), ("b", "odd", 20.0, "purchase")]
    logs, artifact = stage(tmp_path, "before", rows, ["ease", "svd"])
    _, planted_later = stage(tmp_path, "after", [*rows, *later], ["ease", "svd"])
    table, other = artifact.read("collaborative"), planted_later.read("collaborative")
    assert artifact.info["snapshots"] == 2
    assert set(table["method"].to_pylist()) == set(COLLABORATIVE_STATS)
    assert sorted(set(table["as_of"].to_pylist())) == [small_world.day(20), small_world.day(30)]
    first, second = (wanted.filter(pc.equal(wanted["as_of"], pa.scalar(small_world.day(20), schema.TIMESTAMP))) for wanted in (table, other))
    assert first.equals(second)
    assert not other.equals(table)
    config = parse({"collaborative": {"scores": ["ease", "svd"], "svd_dim": 2}}, "test")
    assert one_snapshot(logs, small_world.us(20), config).equals(first)
