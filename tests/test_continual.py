"""Continual alignment: rows by week, updates that change what they name and nothing else, the control, and what lies halfway."""

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from longtail.continual import CODEBOOKS, EVERYTHING, UPDATED, Weeks, admit, deal_codes, trained_alone, trained_on, walk, walk_updated
from longtail.continual_results import (
    HALFWAY,
    AlignmentResults,
    against,
    events_before,
    halfway,
    has_moved,
    measured_of_all,
    page,
    share,
    slices,
)
from longtail.continual_settings import ContinualSettings, UpdateSettings
from longtail.metrics import auc
from longtail.rankers.batch import Batch
from longtail.rankers.catalogue import OOV
from longtail.rankers.factory import build_ranker
from longtail.rankers.ranker import predict_rows
from longtail.rankers.saviorrec import SaviorRec
from longtail.rankers.settings import RankersSettings
from longtail.sample_files import SampleFiles
from longtail.study_results import compare
from longtail.study_rows import WindowRows
from longtail.times import DAY_US
from longtail.training import TrainSettings
from longtail.training_loop import train_ranker
from tests.ranker_data import NUM_TOPICS, World, fixed, spec_of

WORLD = World.of(spec_of())
TRAIN = TrainSettings(batch_size=64, epochs=1)
UPDATE = UpdateSettings(epochs=1)
OPENS = 100 * DAY_US


def timed(rows: pa.Table, days: tuple[float, float], seed: int = 0) -> pa.Table:
    time_N = np.random.default_rng(seed).uniform(*days, len(rows)) * DAY_US
    return rows.append_column("ts", pa.array(time_N.astype(np.int64)).cast(pa.timestamp("us", tz="UTC")))


@pytest.fixture(scope="module")
def weeks() -> Weeks:
    """300 rows before the first week, then 60 a week."""
    return Weeks.split(pa.concat_tables([timed(WORLD.rows(300), (70, 100)), timed(WORLD.rows(180, seed=2), (100, 121))]), OPENS, 3)


def make(seed: int = 0, cold_from: int | None = None, **settings: Any) -> SaviorRec:
    torch.manual_seed(seed)
    rankers = RankersSettings.model_validate({"saviorrec": {"heads": ("outcome",), "id_dim": 4, "hidden_dims": [16], "attention_dims": [8], **settings}})
    ranker = build_ranker("saviorrec", WORLD.spec, WORLD.catalogue(cold_from), rankers)
    assert isinstance(ranker, SaviorRec)
    ranker.fit_statistics(WORLD.batch(200))
    return ranker


def changed(before: dict[str, torch.Tensor], ranker: SaviorRec) -> set[str]:
    return {name for name, value in ranker.state_dict().items() if not torch.equal(before[name], value)}


def weights(ranker: SaviorRec) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in ranker.state_dict().items()}


def test_rows_fall_into_their_weeks_by_hand() -> None:
    rows = WORLD.rows(6).append_column("ts", pa.array([99 * DAY_US, OPENS - 1, OPENS, OPENS + 7 * DAY_US - 1, OPENS + 7 * DAY_US, OPENS + 14 * DAY_US]))
    rows = rows.set_column(rows.column_names.index("ts"), "ts", rows.column("ts").cast(pa.timestamp("us", tz="UTC")))
    split = Weeks.split(rows, OPENS, 2)
    assert [len(part) for part in (split.before, *split.weeks)] == [2, 2, 1]  # the last row lies after the second week
    ids = rows.column("example_id").to_pylist()
    assert split.known(1).column("example_id").to_pylist() == ids[:2]
    assert split.known(2).column("example_id").to_pylist() == ids[:4]
    assert split.known(2, recent=1).column("example_id").to_pylist() == ids[2:4]


def test_an_empty_week_is_refused() -> None:
    rows = timed(WORLD.rows(20), (90, 106))
    with pytest.raises(ValueError, match=r"num_weeks = 3: week\(s\) \[2, 3\] of the test window have no rows"):
        Weeks.split(rows, OPENS, 3)
    with pytest.raises(ValueError, match="the time before the first week of the test window have no rows"):
        Weeks.split(timed(WORLD.rows(20), (100, 107)), OPENS, 1)


def test_what_is_trained_on_is_known_when_the_week_opens(weeks: Weeks) -> None:
    for week in (1, 2, 3):
        opens = OPENS + (week - 1) * 7 * DAY_US
        known = weeks.known(week).column("ts").cast(pa.int64()).to_numpy()
        assert known.max() < opens
        assert weeks.weeks[week - 1].column("ts").cast(pa.int64()).to_numpy().min() >= opens


def test_a_week_is_scored_before_it_is_trained_on(weeks: Weeks) -> None:
    ranker, asked = make(), []

    def update(ranker: Any, week: int) -> Any:
        asked.append(week)
        return ranker

    scores = walk(ranker, weeks, update)
    assert asked == [2, 3]
    expected = predict_rows(ranker, Batch.from_table(weeks.weeks[2], WORLD.spec)).logits_BH[:, 0].numpy()
    assert np.array_equal(scores[2], expected)
    assert [len(one) for one in scores] == [len(rows) for rows in weeks.weeks]


@pytest.mark.parametrize("parts", [CODEBOOKS, ("individual.users.",), EVERYTHING])
def test_an_update_changes_its_parts_and_nothing_else(weeks: Weeks, parts: tuple[str, ...]) -> None:
    ranker = make()
    before = weights(ranker)
    trained_on(ranker, weeks.known(3, recent=2), TRAIN, UPDATE, 0, parts)
    found, names = changed(before, ranker), {name for name, _ in ranker.named_parameters()}
    assert found
    assert found <= {name for name in names if name.startswith(parts)}, "normalisers and the catalogue stay too"
    assert all(parameter.requires_grad for parameter in ranker.parameters())


def test_a_part_that_is_switched_off_is_refused() -> None:
    ranker = make(alignment=False)
    with pytest.raises(ValueError, match=r"no parameters \['semantics.alignment.'\]"), trained_alone(ranker, CODEBOOKS):
        pass


@pytest.mark.parametrize("name", UPDATED)
def test_every_arm_leaves_the_trained_ranker_and_the_first_week_as_they_are(weeks: Weeks, name: str) -> None:
    ranker = make(cold_from=50)
    with torch.no_grad():
        for table in ranker.semantics.alignment.parameters():  # type: ignore[union-attr]
            table[1:].normal_(std=0.1)
    before = weights(ranker)
    settings = ContinualSettings(codebooks=UPDATE, everything=UPDATE)
    frozen, scores = walk(copy.deepcopy(ranker), weeks, lambda same, _: same), walk_updated(UPDATED[name], ranker, weeks, TRAIN, settings, 0)
    assert not changed(before, ranker)
    if name == "mba_shuffled":  # the dealt codes start at zero, on top of vectors that hold what was learnt
        np.testing.assert_allclose(scores[0], frozen[0], atol=1e-4)
    else:
        assert np.array_equal(scores[0], frozen[0])
    assert np.array_equal(scores[1], frozen[1]) == (name == "frozen")


@pytest.mark.parametrize("name", ["mba", "continued"])
def test_the_labels_of_a_week_count_once_it_has_passed(weeks: Weeks, name: str) -> None:
    def scores(flipped: int) -> list[np.ndarray]:
        parts = list(weeks.weeks)
        rows = parts[flipped - 1]
        parts[flipped - 1] = rows.set_column(rows.column_names.index("outcome"), "outcome", pa.array(1 - rows.column("outcome").to_numpy()))
        settings = ContinualSettings(codebooks=UPDATE, everything=UPDATE)
        return walk_updated(UPDATED[name], make(), Weeks(weeks.before, tuple(parts)), TRAIN, settings, 0)

    second, third = scores(flipped=2), scores(flipped=3)
    assert np.array_equal(second[1], third[1])
    assert not np.array_equal(second[2], third[2])


def test_dealt_codes_keep_what_was_learnt_and_their_numbers() -> None:
    ranker = make()
    with torch.no_grad():
        for table in ranker.semantics.alignment.parameters():  # type: ignore[union-attr]
            table[1:].normal_()
    rows = torch.arange(WORLD.spec.num_items + 1)
    aligned, codes = ranker.semantics.aligned(ranker.catalogue, rows), ranker.catalogue.codes_NS.clone()
    deal_codes(ranker, seed=1)
    torch.testing.assert_close(ranker.semantics.aligned(ranker.catalogue, rows), aligned)
    dealt = ranker.catalogue.codes_NS
    assert dealt[0].tolist() == [0, 0]
    assert sorted(map(tuple, dealt.tolist())) == sorted(map(tuple, codes.tolist()))
    assert (dealt != codes).any(dim=1).float().mean() > 0.5


def test_newcomers_get_an_id_that_begins_as_the_shared_one() -> None:
    ranker = make(cold_from=40)
    with torch.no_grad():
        ranker.individual.items.ids.weight[OOV] = torch.arange(4.0)
    rows = WORLD.rows(400, items=(30, 61))
    batch = Batch.from_table(rows, WORLD.spec)
    before = predict_rows(ranker, batch).logits_BH
    sizes = ranker.individual.users.num_embeddings, ranker.individual.items.ids.num_embeddings
    items = set(rows.column("item_row").to_pylist())
    assert admit(ranker, rows) == (int(WORLD.spec.num_users in rows.column("user_row").to_pylist()), len([item for item in items if item >= 40]))
    assert admit(ranker, rows) == (0, 0)
    assert ranker.individual.items.ids.num_embeddings > sizes[1]
    torch.testing.assert_close(predict_rows(ranker, batch).logits_BH, before)
    index = ranker.catalogue.item_id_N[sorted(items)]
    assert len(index.unique()) == len(items)
    assert index.max() < ranker.individual.items.ids.num_embeddings


def drifted_rows(world: World, topic_now_K: npt.NDArray[np.int64], num: int, seed: int, items: tuple[int, int]) -> pa.Table:
    """Rows whose histories are of the topics before, and whose targets and outcomes are of those after."""
    now = World(world.spec, topic_now_K, world.vector_KD, world.taste_M, world.group_M).rows(num, seed, items=items)
    rng, taste_B = np.random.default_rng(seed), world.taste_M[now.column("user_row").to_numpy()]
    liked = [np.flatnonzero(world.topic_K[1:100] == topic) + 1 for topic in range(NUM_TOPICS)]
    history = np.stack([rng.choice(liked[taste], world.spec.history_length) for taste in taste_B])
    return now.set_column(now.column_names.index("history"), "history", fixed(history, pa.int32()))


def test_codebooks_alone_follow_topics_that_change_places() -> None:
    """Codes learn it for items of theirs that no row has had; with the codes dealt out wrongly nothing does."""
    world = World.of(spec_of(num_items=120), seed=3)
    now_K = np.array([1, 0, 3, 2, 4, 5])[world.topic_K]
    torch.manual_seed(0)
    settings = RankersSettings.model_validate({"saviorrec": {"heads": ("outcome",), "similarity": "kernels", "hidden_dims": [32]}})
    ranker = build_ranker("saviorrec", world.spec, world.catalogue(cold_from=100), settings)
    assert isinstance(ranker, SaviorRec)
    train = TrainSettings(batch_size=128, epochs=4, id_dropout=0.5)
    before = world.rows(3000, items=(1, 100), history_items=(1, 100))
    train_ranker(ranker, SampleFiles.of_table(before, world.spec, ("outcome",)), train, seed=0)
    rows = drifted_rows(world, now_K, 3000, 5, (1, 100))
    update = UpdateSettings(epochs=8, learning_rate=0.03, final_learning_rate=0.003)
    test = Batch.from_table(drifted_rows(world, now_K, 1500, 6, (100, 121)), world.spec)
    label = test.outcome_B.numpy().astype(int)

    def score(*, dealt: bool, updated: bool) -> float:
        mine = copy.deepcopy(ranker)
        if dealt:
            deal_codes(mine, 1)
        if updated:
            trained_on(mine, rows, train, update, 0, CODEBOOKS)
        return auc(label, predict_rows(mine, test).logits_BH[:, 0].numpy())

    frozen, aligned, shuffled = score(dealt=False, updated=False), score(dealt=False, updated=True), score(dealt=True, updated=True)
    assert aligned > frozen + 0.1, (frozen, aligned, shuffled)
    assert aligned > shuffled + 0.1, (frozen, aligned, shuffled)


def test_events_before_each_week_by_hand() -> None:
    items, times = np.array([1, 1, 2]), np.array([OPENS - 1, OPENS, OPENS + 8 * DAY_US])
    assert events_before(np.array([1, 1, 2, 2]), np.array([1, 2, 2, 3]), items, times, OPENS).tolist() == [1, 2, 0, 1]


def test_moved_items_by_hand() -> None:
    since = pa.array([None, OPENS], pa.timestamp("us", tz="UTC"))
    truth = pa.table({"item_id": ["a", "b"], "topics": pa.array([[0, 0], [1, 2]], pa.list_(pa.int32(), 2)), "topics_since": pa.array([since.to_pylist()] * 2)})
    truth = truth.set_column(2, "topics_since", pa.FixedSizeListArray.from_arrays(pa.concat_arrays([since, since]), 2))
    moved = has_moved(truth, pa.array(["a", "b", "b"]), np.array([OPENS, OPENS - 1, OPENS]))
    assert moved is not None
    assert moved.tolist() == [False, False, True]
    assert has_moved(truth.select(["item_id"]), pa.array(["a"]), np.array([0])) is None


def predictions(noise: float, seed: int = 0) -> tuple[WindowRows, np.ndarray]:
    rng = np.random.default_rng(1)
    user, label, week = rng.integers(1, 30, 900) * 2, rng.integers(0, 2, 900).astype(np.int8), rng.integers(1, 4, 900)
    rows = WindowRows(np.arange(900), user, label, slices(week, rng.integers(0, 200, 900), rng.random(900) < 0.5))
    return rows, label + np.random.default_rng(seed).normal(0, noise, 900)


def test_halfway_lies_in_the_middle_and_shares_are_of_the_mean_gains() -> None:
    rows, low = predictions(3.0, seed=1)
    by_arm = {"frozen": low, "mba": predictions(1.0, seed=2)[1], "retrained": predictions(0.8, seed=3)[1]}
    found = {name: {1: measured_of_all(rows, score, 60)} for name, score in by_arm.items()}
    found[HALFWAY] = {1: halfway(found["frozen"][1], found["retrained"][1])}
    for name, score in by_arm.items():
        which = rows.slices["moved/week_2"]
        assert found[name][1]["moved/week_2"].mean == pytest.approx(auc(rows.label_N[which].astype(int), score[which]))
        assert len(found[name][1]["all/updated"].value_U) == 61
    arms = compare(found, against, "auc", 50)
    low_, mba, high = (arms[name]["all/updated"].mean for name in ("frozen", "mba", "retrained"))
    assert arms[HALFWAY]["all/updated"].mean == pytest.approx((low_ + high) / 2)
    assert share(arms, "mba", "all/updated") == pytest.approx((mba - low_) / (high - low_))
    text = page(AlignmentResults(notes={"date": "2026-11"}, meanings={"mba": "A"}, seeds=(1,), num_weeks=3, arms=arms, seconds={"mba": 1.0}))
    assert f"{mba:.4f}" in text
    assert "| halfway" not in text


def test_nothing_is_recovered_of_a_gain_that_is_none() -> None:
    rows, score = predictions(1.0)
    same = {name: {1: measured_of_all(rows, score, 60)} for name in ("frozen", "mba", "retrained")}
    assert share(compare(same | {HALFWAY: same["frozen"]}, against, "auc", 50), "mba", "all/updated") is None


def test_arms_that_the_share_is_made_of_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="recovered share is made of"):
        ContinualSettings(leave_out=("mba",))
    with pytest.raises(ValueError, match="name each once"):
        ContinualSettings(seeds=(1, 1))
