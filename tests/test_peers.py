"""Peers: who they are, what they lend by hand and against a slow recount, and that nothing later reaches it."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from longtail import schema
from longtail.peers import PEER_STATS, TARGETS, PeerIndex, PeersSettings, behaviour_vectors, clusters, drawn, incidence, nearest, same_prefix, title_vectors
from tests import small_world

ENTITIES = small_world.entities()
A, B, C, D = 1, 2, 3, 4
BOOK, MILK, ODD, SOAP, TEA = range(1, 6)
CLUSTER_N = np.array([0, 1, 2, 1, 3, 2])  # milk and tea are one
SETTINGS = PeersSettings(form="neighbours", num_peers=(2, 1), prior_users=1.0)


def table(peers: dict[str, list[list[str]]], day: float = 20) -> pa.Table:
    return pa.Table.from_arrays(
        [list(peers), pa.array([small_world.day(day)] * len(peers), schema.TIMESTAMP), pa.array(list(peers.values()), schema.PEERS.field("peers").type)],
        schema=schema.PEERS,
    )


PEERS = {"a": [["b", "c"], ["b"]], "b": [["a", "c"], ["c"]], "c": [["a"], ["a"]]}


def index(rows: list[tuple[str, str, float, str]] | None = None, peers: dict[str, list[list[str]]] = PEERS) -> PeerIndex:
    return PeerIndex.build(table(peers), ENTITIES, small_world.behaviour(rows), CLUSTER_N, SETTINGS)


def lifts(built: PeerIndex, user: int, item: int, day: float) -> dict[str, float]:
    got = built.lifts(np.array([user]), built.column_NC[[item]], np.array([small_world.us(day)]))
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


def test_nobody_lends_before_the_snapshot_nor_to_those_without_peers() -> None:
    assert set(lifts(index(), A, TEA, 19).values()) == {0.0}
    assert set(lifts(index(), D, TEA, 21).values()) == {0.0}
    assert set(lifts(index(), 0, TEA, 21).values()) == {0.0}
    unknown = lifts(index(), A, 0, 21)
    assert [unknown[f"peer_{target}_lift"] for target in TARGETS] == [0.0] * 4


def test_lifts_agree_with_a_slow_recount() -> None:
    rng = np.random.default_rng(0)
    rows = [(str(rng.choice(list("abcd"))), str(rng.choice(["tea", "milk", "soap", "book", "odd"])), float(rng.uniform(0, 40)), "purchase") for _ in range(60)]
    built, items = index(rows), ENTITIES.items.values.to_pylist()
    for user, name in ((A, "a"), (B, "b"), (C, "c")):
        for place, item in enumerate(items, start=1):
            now = float(rng.uniform(20, 40))
            past = [row for row in rows if small_world.us(row[2]) < small_world.us(now)]
            met = {other: {row[1] for row in past if row[0] == other} for other in "abcd"}
            others = [other for other in "abcd" if other != name and met[other]]
            share = everyone = (sum(item in met[other] for other in others) + 0.5) / (len(others) + 1)
            for level in PEERS[name]:
                share = (sum(item in met[other] for other in level) + share) / (len(level) + 1)
            assert np.isclose(lifts(built, user, place, now)["peer_item_lift"], np.log(share / everyone), atol=1e-6)


def test_a_planted_future_event_changes_nothing() -> None:
    planted = [*small_world.BEHAVIOUR, ("b", "milk", 21, "purchase"), ("c", "tea", 30, "purchase")]
    assert lifts(index(planted), A, MILK, 21) == lifts(index(), A, MILK, 21)
    assert lifts(index(planted), A, MILK, 22) != lifts(index(), A, MILK, 22)


def test_nearest_is_brute_force_without_oneself() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(40, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[5] = vectors[6] = vectors[7]  # copies
    known = np.ones(40, bool)
    known[[0, 3]] = False
    found = nearest(vectors, known, 4)
    assert (found[[0, 3]] == 0).all()
    for row in np.flatnonzero(known):
        assert row not in found[row]
        scores = np.where(known, vectors @ vectors[row], -np.inf)
        scores[row] = -np.inf
        assert np.allclose(np.sort(scores[found[row]]), np.sort(np.sort(scores)[-4:]), atol=1e-6)


def test_few_users_leave_places_empty() -> None:
    known = np.array([False, True, True, False])
    found = nearest(np.eye(4, dtype=np.float32), known, 3)
    assert found.tolist() == [[0, 0, 0], [2, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert drawn(known, 3, seed=0).tolist() == found.tolist()
    assert not nearest(np.eye(4, dtype=np.float32), np.zeros(4, bool), 2).any()


def test_drawn_peers_are_others_and_follow_the_seed() -> None:
    known = np.ones(30, bool)
    known[0] = False
    found = drawn(known, 8, seed=3)
    for row in range(1, 30):
        assert len(set(found[row])) == 8
        assert row not in found[row]
    assert (found == drawn(known, 8, seed=3)).all()
    assert (found != drawn(known, 8, seed=4)).any()


def test_members_of_a_prefix_are_each_others_peers() -> None:
    codes = np.array([[-1, -1], [0, 0], [0, 1], [0, 0], [1, 0]])
    known = np.array([False, True, True, True, True])
    wide, near = (same_prefix(codes, known, depth, 3, seed=0) for depth in (1, 2))
    assert set(wide[1]) == {2, 3, 0}
    assert near[1].tolist() == [3, 0, 0]
    assert near[2].tolist() == [0, 0, 0]
    assert wide[4].tolist() == [0, 0, 0]
    assert same_prefix(codes, known, 1, 1, seed=0)[1, 0] in (2, 3)


def test_users_of_like_taste_lie_near() -> None:
    rng = np.random.default_rng(2)
    taste = np.arange(60) % 3
    users = np.repeat(np.arange(1, 61), 6)
    items = 1 + np.repeat(taste, 6) * 20 + rng.integers(0, 20, 360)
    met = incidence(users, items, (61, 61))
    assert met.max() == 1
    titles = np.concatenate([np.zeros((1, 3)), np.repeat(np.eye(3), 20, axis=0)]).astype(np.float32)
    for vectors in (behaviour_vectors(met, 4, seed=0), title_vectors(met, titles)):
        found = nearest(vectors, np.arange(61) > 0, 5)[1:]
        assert (taste[found - 1] == taste[:, None]).mean() > 0.9


def test_clusters_are_numbered_from_one_by_prefix() -> None:
    assert clusters(np.array([[0, 1, 5], [0, 1, 6], [2, 1, 5]]), 2).tolist() == [1, 1, 2]


@pytest.mark.parametrize("wrong", [{"num_peers": (10, 20)}, {"spaces": ("titles", "titles")}, {"num_peers": ()}])
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
