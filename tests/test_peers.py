"""Peers: who they are and who is one, what they lend by hand and against a slow recount, and that nothing later reaches it."""

import dataclasses

import faiss
import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from longtail import schema
from longtail.peers import (
    PEER_STATS,
    TARGETS,
    FirstMeetings,
    PeerIndex,
    Peers,
    PeersSettings,
    clusters,
    drawn,
    nearest,
    nearest_leaves,
    peer_levels,
    same_prefix,
)
from longtail.settings import Compute
from tests import small_world
from tests.small_features import CLUSTER_N, MILK, TEA

ENTITIES = small_world.entities()
A, B, C, D = 1, 2, 3, 4
SETTINGS = PeersSettings(form="neighbours", num_peers=(2, 1), prior_users=1.0)


def table(peers: dict[str, list[list[str]]], day: float = 20, weights: dict[str, list[list[float]]] | None = None) -> pa.Table:
    """The stage's table; everybody weighs 1 unless `weights` say otherwise."""
    weighed = weights or {user: [[1.0] * len(level) for level in levels] for user, levels in peers.items()}
    return pa.Table.from_arrays(
        [
            list(peers),
            pa.array([small_world.day(day)] * len(peers), schema.TIMESTAMP),
            pa.array(list(peers.values()), schema.PEERS.field("peers").type),
            pa.array([weighed[user] for user in peers], schema.PEERS.field("weights").type),
        ],
        schema=schema.PEERS,
    )


PEERS = {"a": [["b", "c"], ["b"]], "b": [["a", "c"], ["c"]], "c": [["a"], ["a"]]}


def index(rows: list[tuple[str, str, float, str]] | None = None, weights: dict[str, list[list[float]]] | None = None) -> PeerIndex:
    return PeerIndex.build(table(PEERS, weights=weights), ENTITIES, FirstMeetings.build(small_world.behaviour(rows), ENTITIES, CLUSTER_N), SETTINGS)


def lifts(built: PeerIndex, user: int, item: int, day: float) -> dict[str, float]:
    got = built.lifts(np.array([user]), built.firsts.column_NC[[item]], np.array([small_world.us(day)]))
    return dict(zip(PEER_STATS, got[0].tolist(), strict=True))


def test_lifts_by_hand() -> None:
    # By day 21 a has met tea, milk, soap; b tea, soap; c soap, book. Of the others than a, b and c are active: one of two met tea.
    got = lifts(index(), A, TEA, 21)
    everyone = (1 + 0.5) / (2 + 1)
    wide = (1 + everyone) / (2 + 1)
    near = (1 + wide) / (1 + 1)
    assert np.isclose(got["peer_item_lift"], np.log(near / everyone))
    assert np.isclose(got["peer_support"], np.log1p(1))
    # milk: b has not met it, but tea is of its cluster
    milk = lifts(index(), A, MILK, 21)
    assert milk["peer_item_lift"] < 0
    assert np.isclose(milk["peer_cluster_lift"], got["peer_cluster_lift"])


def test_a_peer_counts_by_weight() -> None:
    # Of a's wide peers b (weight 1) met tea and c (a quarter) did not; the near one is b, at a half.
    weights = {"a": [[1.0, 0.25], [0.5]], "b": [[1.0, 1.0], [1.0]], "c": [[1.0], [1.0]]}
    got = lifts(index(weights=weights), A, TEA, 21)
    everyone = (1 + 0.5) / (2 + 1)
    wide = (1 + everyone) / (1.25 + 1)
    near = (0.5 + wide) / (0.5 + 1)
    assert np.isclose(got["peer_item_lift"], np.log(near / everyone))
    assert np.isclose(got["peer_support"], np.log1p(0.5))


def test_nobody_lends_before_the_snapshot_nor_to_those_without_peers() -> None:
    assert set(lifts(index(), A, TEA, 19).values()) == {0.0}
    assert set(lifts(index(), D, TEA, 21).values()) == {0.0}
    assert set(lifts(index(), 0, TEA, 21).values()) == {0.0}
    unknown = lifts(index(), A, 0, 21)
    assert [unknown[f"peer_{target}_lift"] for target in TARGETS] == [0.0] * 4


@pytest.mark.parametrize("weighed", [False, True])
def test_lifts_agree_with_a_slow_recount(weighed: bool) -> None:
    rng = np.random.default_rng(0)
    rows = [(str(rng.choice(list("abcd"))), str(rng.choice(["tea", "milk", "soap", "book", "odd"])), float(rng.uniform(0, 40)), "purchase") for _ in range(60)]
    weights = {user: [[float(rng.choice([0.25, 0.5, 1])) if weighed else 1.0 for _ in level] for level in levels] for user, levels in PEERS.items()}
    built, items = index(rows, weights), ENTITIES.items.values.to_pylist()
    for user, name in ((A, "a"), (B, "b"), (C, "c")):
        for place, item in enumerate(items, start=1):
            now = float(rng.uniform(20, 40))
            past = [row for row in rows if small_world.us(row[2]) < small_world.us(now)]
            met = {other: {row[1] for row in past if row[0] == other} for other in "abcd"}
            others = [other for other in "abcd" if other != name and met[other]]
            share = everyone = (sum(item in met[other] for other in others) + 0.5) / (len(others) + 1)
            for level, counts in zip(PEERS[name], weights[name], strict=True):
                share = (sum(count for other, count in zip(level, counts, strict=True) if item in met[other]) + share) / (sum(counts) + 1)
            assert np.isclose(lifts(built, user, place, now)["peer_item_lift"], np.log(share / everyone), atol=1e-6)


def test_a_planted_future_event_changes_nothing() -> None:
    planted = [*small_world.BEHAVIOUR, ("b", "milk", 21, "purchase"), ("c", "tea", 30, "purchase")]
    assert lifts(index(planted), A, MILK, 21) == lifts(index(), A, MILK, 21)
    assert lifts(index(planted), A, MILK, 22) != lifts(index(), A, MILK, 22)


def unit_vectors(num: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def all_but(num: int, *rows: int) -> np.ndarray:
    mask = np.ones(num, bool)
    mask[list(rows)] = False
    return mask


def mask_of(num: int, *rows: int) -> np.ndarray:
    return ~all_but(num, *rows)


def test_nearest_is_brute_force_without_oneself() -> None:
    vectors = unit_vectors(40, 6, seed=1)
    vectors[5] = vectors[6] = vectors[7]  # copies
    borrowers, lenders = all_but(40, 0, 3), all_but(40, 0, 3, 8, 9)  # 8 and 9 have no history: they borrow, and nobody borrows from them
    found = nearest(vectors, borrowers, lenders, 4)
    assert (found.row_MP[[0, 3]] == 0).all()
    assert not np.isin(found.row_MP, [3, 8, 9]).any()
    for row in np.flatnonzero(borrowers):
        assert row not in found.row_MP[row]
        assert len(set(found.row_MP[row])) == 4
        scores = np.where(lenders, vectors @ vectors[row], -np.inf)
        scores[row] = -np.inf
        assert np.allclose(scores[found.row_MP[row]], np.sort(scores)[:-5:-1], atol=1e-6), "nearest first"
    assert (found.weight_MP == (found.row_MP > 0)).all()


def test_sharpness_weighs_the_nearest_most() -> None:
    # Cosines with the first: 1/2 and 1/4, and one that looks the other way.
    angles = np.arccos([1.0, 0.5, 0.25, -0.5])
    vectors = np.concatenate([np.zeros((1, 2)), np.stack([np.cos(angles), np.sin(angles)], axis=1)]).astype(np.float32)
    everybody = all_but(5, 0)
    plain, sharp = (nearest(vectors, mask_of(5, 1), everybody, 3, sharpness) for sharpness in (0.0, 3.0))
    assert plain.row_MP[1].tolist() == sharp.row_MP[1].tolist() == [2, 3, 4]
    assert plain.weight_MP[1].tolist() == [1, 1, 1]
    assert np.allclose(sharp.weight_MP[1], [1, (1 / 2) ** 3, 0], atol=1e-6)
    assert (sharp.weight_MP[1] > 0).all(), "who looks the other way counts for nearly nothing, and is there"
    narrow = sharp.first(2)
    assert (narrow.row_MP[1].tolist(), narrow.weight_MP[1].tolist()) == ([2, 3], sharp.weight_MP[1, :2].tolist())


def test_neighbours_are_searched_on_gpus_where_some_are_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, everybody = np.random.default_rng(0).standard_normal((9, 8)).astype(np.float32), mask_of(9, *range(1, 9))
    vectors[0] = 0
    with pytest.raises(ValueError, match=r"peers.compute.num_gpus = 1, but the installed faiss finds no GPU. Install .*faiss-gpu"):
        nearest(vectors, everybody, everybody, 3, num_gpus=1)
    moved = []
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", lambda index: moved.append(index) or index, raising=False)
    settings = PeersSettings(form="neighbours", num_peers=(3,), compute=Compute(num_gpus=1))
    (found,) = peer_levels(vectors, everybody, np.zeros((9, 1), np.int64), settings, seed=0)
    assert len(moved) == 1
    np.testing.assert_array_equal(found.row_MP, nearest(vectors, everybody, everybody, 3).row_MP)


def test_gpus_change_no_key() -> None:
    assert PeersSettings(compute=Compute(num_gpus=1)).key_fields() == PeersSettings().key_fields()


def test_few_users_leave_places_empty() -> None:
    both, nobody = mask_of(4, 1, 2), mask_of(4)
    for found in (nearest(np.eye(4, dtype=np.float32), both, both, 3), drawn(both, both, 3, seed=0)):
        assert found.row_MP.tolist() == [[0, 0, 0], [2, 0, 0], [1, 0, 0], [0, 0, 0]]
        assert found.weight_MP.tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]
    codes = np.full((4, 2), -1)
    for borrowers, lenders in ((nobody, both), (both, nobody)):
        for found in (
            nearest(np.eye(4, dtype=np.float32), borrowers, lenders, 2),
            drawn(borrowers, lenders, 2, seed=0),
            same_prefix(codes, borrowers, lenders, 1, 2, seed=0),
            nearest_leaves(np.eye(4, dtype=np.float32), codes, borrowers, lenders, 2),
        ):
            assert not found.row_MP.any()
            assert not found.weight_MP.any()


def test_one_without_history_gets_as_many_of_few_lenders_whatever_the_form() -> None:
    """The random control is of equal size: also where there are no more lenders than places."""
    vectors, codes = unit_vectors(5, 3, seed=2), np.zeros((5, 1), np.int64)
    borrowers, lenders = all_but(5, 0), mask_of(5, 1, 2, 3)
    for found in (
        nearest(vectors, borrowers, lenders, 3),
        drawn(borrowers, lenders, 3, seed=0),
        same_prefix(codes, borrowers, lenders, 1, 3, seed=0),
        nearest_leaves(vectors, codes, borrowers, lenders, 3),
    ):
        assert sorted(found.row_MP[4]) == [1, 2, 3]
        assert sorted(found.row_MP[1]) == [0, 2, 3]
    alone = nearest(vectors, borrowers, mask_of(5, 2), 3)
    assert alone.row_MP.tolist() == [[0, 0, 0], [2, 0, 0], [0, 0, 0], [2, 0, 0], [2, 0, 0]]


def test_drawn_peers_are_others_and_follow_the_seed() -> None:
    borrowers, lenders = all_but(30, 0), all_but(30, 0, 28, 29)
    found = drawn(borrowers, lenders, 8, seed=3).row_MP
    for row in range(1, 30):
        assert len(set(found[row])) == 8
        assert row not in found[row]
        assert set(found[row]) <= set(range(1, 28))
    assert (found == drawn(borrowers, lenders, 8, seed=3).row_MP).all()
    assert (found != drawn(borrowers, lenders, 8, seed=4).row_MP).any()


def test_members_of_a_prefix_are_each_others_peers() -> None:
    codes = np.array([[-1, -1], [0, 0], [0, 1], [0, 0], [1, 0]])
    everybody = all_but(5, 0)
    wide, near = (same_prefix(codes, everybody, everybody, depth, 3, seed=0).row_MP for depth in (1, 2))
    assert set(wide[1]) == {2, 3, 0}
    assert near[1].tolist() == [3, 0, 0]
    assert near[2].tolist() == [0, 0, 0]
    assert wide[4].tolist() == [0, 0, 0]
    assert same_prefix(codes, everybody, everybody, 1, 1, seed=0).row_MP[1, 0] in (2, 3)


def test_in_a_prefix_too_only_lenders_lend() -> None:
    codes = np.array([[-1, -1], [0, 0], [0, 0], [0, 0], [0, 0], [-1, -1]])
    found = same_prefix(codes, all_but(6, 0), mask_of(6, 1, 3, 5), 2, 4, seed=0).row_MP
    assert [sorted(set(row) - {0}) for row in found.tolist()] == [[], [3], [1, 3], [1], [1, 3], []]


def slow_leaves(vectors: np.ndarray, codes: np.ndarray, borrowers: np.ndarray, lenders: np.ndarray, num: int) -> list[list[int]]:
    """Leaf by leaf, the nearest centre first; the centre is the direction of the lenders' sum."""
    leaves: dict[tuple[int, ...], list[int]] = {}
    for row in np.flatnonzero(lenders & (codes[:, 0] >= 0)):
        leaves.setdefault(tuple(codes[row].tolist()), []).append(int(row))
    found: list[list[int]] = []
    for row in range(len(vectors)):
        chosen: list[int] = []
        if borrowers[row]:
            centres = {leaf: vectors[members].sum(axis=0) for leaf, members in leaves.items()}
            for leaf in sorted(leaves, key=lambda leaf: -float(vectors[row] @ centres[leaf] / np.linalg.norm(centres[leaf]))):
                if len(chosen) < num:
                    chosen += [member for member in leaves[leaf] if member != row]
        found.append((chosen + [0] * num)[:num])
    return found


@pytest.mark.parametrize("num", [1, 5, 25, 60])
def test_leaves_lend_in_the_order_of_their_centres(num: int) -> None:
    vectors, rng = unit_vectors(60, 5, seed=4), np.random.default_rng(4)
    codes = rng.integers(0, 3, (60, 2))
    codes[[0, 7]] = -1
    borrowers, lenders = all_but(60, 0, 9), all_but(60, 0, 8, *range(50, 60))
    found = nearest_leaves(vectors, codes, borrowers, lenders, num)
    assert found.row_MP.tolist() == slow_leaves(vectors, codes, borrowers, lenders, num)
    assert (found.row_MP[7] > 0).any(), "who has no group lies near some"
    assert (found.weight_MP == (found.row_MP > 0)).all()


def test_who_has_a_vector_borrows_and_who_has_history_lends() -> None:
    vectors, codes = unit_vectors(20, 4, seed=5), np.zeros((20, 2), np.int64)
    vectors[[0, 19]] = 0
    codes[0] = -1
    lenders = all_but(20, 0, 17, 18)  # 17 and 18 have met nothing, 19 has met something and has no vector
    for form in ("neighbours", "leaves", "groups", "random"):
        wide, near = peer_levels(vectors, lenders, codes, PeersSettings(form=form, num_peers=(6, 2)), seed=0)
        assert (wide.row_MP.shape, near.row_MP.shape) == ((20, 6), (20, 2))
        assert not wide.row_MP[[0, 19]].any(), form
        assert (wide.row_MP[1:19] > 0).all(), form
        assert not np.isin(wide.row_MP, [17, 18]).any(), form
        if form in ("neighbours", "leaves"):
            assert (near.row_MP == wide.row_MP[:, :2]).all()
    sharp = peer_levels(vectors, lenders, codes, PeersSettings(form="neighbours", num_peers=(6, 2), sharpness=2.0), seed=0)[0]
    assert (np.diff(sharp.weight_MP[1:19], axis=1) <= 0).all()
    assert (sharp.weight_MP[1:19, 0] == 1).all()
    assert sharp.weight_MP[1:19, -1].max() < 1


def test_the_last_level_of_groups_is_the_whole_tuple() -> None:
    codes = np.array([[-1, -1, -1], [0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]])
    wide, near = peer_levels(unit_vectors(5, 2, seed=6), all_but(5, 0), codes, PeersSettings(form="groups", num_peers=(3, 2)), seed=0)
    assert sorted(wide.row_MP[1]) == [0, 2, 3]
    assert near.row_MP[1].tolist() == [2, 0]


def test_alike_counts_everybody_the_same() -> None:
    assert Peers.alike(np.array([[3, 0], [0, 0]])).weight_MP.tolist() == [[1, 0], [0, 0]]


def test_clusters_are_numbered_from_one_by_prefix() -> None:
    assert clusters(np.array([[0, 1, 5], [0, 1, 6], [2, 1, 5]]), 2).tolist() == [1, 1, 2]


@pytest.mark.parametrize("wrong", [{"num_peers": (10, 20)}, {"num_peers": (10, 10)}, {"num_peers": ()}, {"sharpness": -1}, {"prior_users": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PeersSettings.model_validate(wrong)


def test_a_ranker_listens_to_peers_where_it_is_told_to() -> None:
    from longtail.rankers.factory import build_ranker
    from longtail.rankers.ranker import predict_rows
    from longtail.rankers.settings import BaseSettings, ChoirRecSettings, RankersSettings
    from tests import ranker_data

    world = ranker_data.World.of(ranker_data.spec_of(has_conversion=False))
    spec = world.spec.model_copy(update={"peer_stats": PEER_STATS})
    drawn_stats = torch.randn(32, len(PEER_STATS), generator=torch.Generator().manual_seed(0))
    with_peers = dataclasses.replace(world.batch(32), peer_stats_BP=drawn_stats)
    others = dataclasses.replace(with_peers, peer_stats_BP=drawn_stats.flip(0))
    settings = RankersSettings(base=BaseSettings(peer_stats=True), choirrec=ChoirRecSettings(group_peer_stats=False))
    plain = RankersSettings()
    for name, given, listens in (("base", settings, True), ("base", plain, False), ("choirrec", plain, True), ("choirrec", settings, False)):
        torch.manual_seed(0)
        ranker = build_ranker(name, spec, world.catalogue(), given)
        ranker.fit_statistics(with_peers)
        same = torch.equal(predict_rows(ranker, with_peers).logits_BH, predict_rows(ranker, others).logits_BH)
        assert same != listens, name
