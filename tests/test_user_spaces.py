"""User spaces: each by hand or against an obvious version, snapshots in one basis, the control; and the stage, which no later event reaches."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError
from scipy import sparse

from longtail import schema
from longtail.behaviour import incidence
from longtail.peers import nearest
from longtail.user_spaces import UserSpacesSettings, attribute_vectors, behaviour_vectors, shuffled_rows, side_by_side, title_vectors, unit
from longtail.vectors import to_numpy
from pipelines import work
from pipelines.embeddings import USER_VECTORS
from pipelines.stage import ensure, find
from pipelines.user_spaces import USER_SPACES
from tests import borrowing_world as world


def tasteful_incidence(num_users: int = 60, num_items: int = 31, seed: int = 0) -> sparse.csr_matrix:
    """Who met what, by three tastes; user 0 is nobody, and the last has met nothing."""
    rng = np.random.default_rng(seed)
    own = np.arange(num_users)[:, None] % 3 == np.arange(num_items)[None] % 3
    met = (rng.random((num_users, num_items)) < np.where(own, 0.6, 0.05)).astype(np.float32)
    met[0] = met[-1] = met[:, 0] = 0
    return sparse.csr_matrix(met)


def rotation(dim: int, seed: int = 0) -> np.ndarray:
    turned, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))
    return turned


def test_unit_keeps_zero_rows() -> None:
    np.testing.assert_allclose(unit(np.array([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])), [[0.6, 0.8], [0, 0], [0, -1]], atol=1e-7)


def test_spaces_side_by_side_by_hand() -> None:
    first, second = np.array([[2, 0], [0, 5], [0, 0]], np.float32), np.array([[0.1], [0], [0]], np.float32)
    # Spaces weigh the same however long their vectors are; who is nowhere in one lies where the other says; who is nowhere at all stays there.
    half = np.sqrt(0.5)
    np.testing.assert_allclose(side_by_side([first, second]), [[half, 0, half], [0, 1, 0], [0, 0, 0]], atol=1e-6)


def test_titles_are_the_mean_of_what_was_met_weighted_by_idf() -> None:
    met, rng = tasteful_incidence(), np.random.default_rng(1)
    vectors = rng.normal(size=(31, 6)).astype(np.float32)
    dense = met.toarray()
    active = (dense.sum(axis=1) > 0).sum()
    slow = np.zeros((60, 6))
    for user in range(60):
        for item in np.flatnonzero(dense[user]):
            slow[user] += np.log((1 + active) / (1 + dense[:, item].sum())) * (vectors[item] - vectors[1:].mean(axis=0))
        slow[user] /= max(np.linalg.norm(slow[user]), 1e-12)
    np.testing.assert_allclose(title_vectors(met, vectors), slow, atol=1e-5)
    assert not title_vectors(met, vectors)[[0, -1]].any()


def test_what_everybody_met_says_nothing() -> None:
    met = sparse.csr_matrix(np.array([[0, 0, 0], [0, 1, 1], [0, 1, 0], [0, 1, 0]], np.float32))
    vectors = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    got = title_vectors(met, vectors)
    assert not got[2:].any()
    assert got[1].any()


def test_behaviour_is_a_truncated_svd_of_the_weighted_incidence() -> None:
    met = tasteful_incidence()
    dense = met.toarray().astype(np.float64)
    active = (dense.sum(axis=1) > 0).sum()
    weighted = dense / np.sqrt(np.maximum(dense.sum(axis=1, keepdims=True), 1)) * np.log((1 + active) / (1 + dense.sum(axis=0)))
    left, values, _ = np.linalg.svd(weighted, full_matrices=False)
    expected = unit(left[:, :3] * np.sqrt(values[:3]))
    expected[[0, -1]] = 0
    got = behaviour_vectors(met, 3, seed=0)
    np.testing.assert_allclose(got @ got.T, expected @ expected.T, atol=1e-3)  # each factor's sign is arbitrary
    assert np.linalg.norm(got[1:-1], axis=1) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(got, behaviour_vectors(met, 3, seed=0))


def test_who_has_met_nothing_is_nowhere_in_behaviour() -> None:
    """And not in a direction made of rounding: such a user would borrow from whoever happens to lie there."""
    met = tasteful_incidence()
    first = behaviour_vectors(met, 5, seed=0)
    turned = behaviour_vectors(met, 5, 0, unit(first @ rotation(5)))
    for vectors in (first, turned, side_by_side([first, first])):
        assert not vectors[[0, -1]].any()
        assert vectors[1:-1].any(axis=1).all()


def test_behaviour_has_no_more_dimensions_than_there_are() -> None:
    assert behaviour_vectors(tasteful_incidence(20, 8), 64, seed=0).shape == (20, 7)


def test_nobody_met_anything() -> None:
    nothing = sparse.csr_matrix((6, 5), dtype=np.float32)
    for got in (behaviour_vectors(nothing, 3, seed=0), title_vectors(nothing, np.ones((5, 2), np.float32))):
        assert got.shape[0] == 6
        assert not np.isnan(got).any()


def test_a_rotated_basis_comes_back() -> None:
    """Orthogonal Procrustes: the same behaviour, seen by a snapshot with a basis of its own, has the vectors that it had."""
    met = tasteful_incidence()
    mine = behaviour_vectors(met, 5, seed=0)
    earlier = unit(mine @ rotation(5))
    assert np.abs(mine - earlier).max() > 0.5
    np.testing.assert_allclose(behaviour_vectors(met, 5, 0, earlier), earlier, atol=1e-5)


def test_the_turn_is_a_rotation_and_no_other_brings_the_snapshots_nearer() -> None:
    before, after = tasteful_incidence(), tasteful_incidence()
    after = after.maximum(sparse.csr_matrix((np.ones(9, np.float32), (np.full(9, 3), np.arange(1, 10))), after.shape))
    earlier, plain = unit(behaviour_vectors(before, 5, 0) @ rotation(5)), behaviour_vectors(after, 5, 0)
    got = behaviour_vectors(after, 5, 0, earlier)
    np.testing.assert_allclose(got @ got.T, plain @ plain.T, atol=1e-5)
    gap = np.square(got - earlier).sum()
    assert gap < np.square(plain - earlier).sum()
    assert all(np.square(plain @ rotation(5, seed) - earlier).sum() > gap for seed in range(200))


def test_users_of_like_taste_lie_near() -> None:
    rng = np.random.default_rng(2)
    taste = np.arange(60) % 3
    users = np.repeat(np.arange(1, 61), 6)
    items = 1 + np.repeat(taste, 6) * 20 + rng.integers(0, 20, 360)
    met = incidence(users, items, (61, 61))
    assert met.max() == 1
    titles = np.concatenate([np.zeros((1, 3)), np.repeat(np.eye(3), 20, axis=0)]).astype(np.float32)
    everybody = np.arange(61) > 0
    for vectors in (behaviour_vectors(met, 4, seed=0), title_vectors(met, titles)):
        found = nearest(vectors, everybody, everybody, 5).row_MP[1:]
        assert (taste[found - 1] == taste[:, None]).mean() > 0.9


def test_attributes_by_hand() -> None:
    # Two attributes; of the first, 1 is held by three of four and 2 by one; of the second, everybody who has one has the same.
    codes = np.array([[0, 0], [1, 1], [1, 1], [1, 0], [2, 0], [0, 0]])
    got = attribute_vectors(codes)
    often, rare, always = np.sqrt(np.log(4 / 3) + 1e-3), np.sqrt(np.log(4) + 1e-3), np.sqrt(1e-3)
    expected = np.array([[0, 0, 0], [often, 0, always], [often, 0, always], [often, 0, 0], [0, rare, 0], [0, 0, 0]])
    np.testing.assert_allclose(got, unit(expected), atol=1e-6)
    assert not attribute_vectors(np.zeros((4, 0), np.int64)).any()
    assert attribute_vectors(np.zeros((4, 0), np.int64)).shape == (4, 1)


def multiset(vectors: np.ndarray) -> list[tuple[float, ...]]:
    return sorted(map(tuple, vectors.tolist()))


def test_shuffled_keeps_the_vectors_and_deals_them_out_anew() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    dealt = shuffled_rows(vectors, seed=1)
    assert multiset(dealt) == multiset(vectors)
    assert (dealt == vectors).all(axis=1).mean() < 0.2
    assert np.array_equal(dealt, shuffled_rows(vectors, seed=1))
    assert not np.array_equal(dealt, shuffled_rows(vectors, seed=2))


@pytest.mark.parametrize("wrong", [{"spaces": ["titles", "titles"]}, {"spaces": []}, {"spaces": ["mood"]}, {"behaviour_dim": 1}, {"seed": -1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        UserSpacesSettings.model_validate(wrong)
    with pytest.raises(ValidationError, match="name each once"):
        UserSpacesSettings.model_validate({"spaces": ["titles", "profile", "titles"]})


def built(folder: Path, more: list[world.Event] | None = None, **spaces: Any) -> pa.Table:
    """The stage's table for these settings of [user_spaces]."""
    settings, store = world.publish(folder, more, user_spaces={"behaviour_dim": 4, **spaces})
    with work.in_place():
        artifact = ensure(USER_SPACES, settings, store).artifact
    table = artifact.read("vectors")
    assert artifact.info == {"dim": table.schema.field("vector").type.list_size, "spaces": list(settings.user_spaces.spaces)}
    given = find(USER_VECTORS, settings, store)
    assert given is not None
    keys = [("as_of", "ascending"), ("user_id", "ascending")]
    assert table.select(schema.USER_KEY.names).equals(given.read("vectors", schema.USER_KEY.names).sort_by(keys)), "a row for each profile"
    return table


def at(table: pa.Table, time: Any) -> np.ndarray:
    return to_numpy(table.filter(pc.equal(table["as_of"], pa.scalar(time, schema.TIMESTAMP))).column("vector"))


SNAPSHOTS = (world.HISTORY_END, world.TRAIN_END)


def test_profiles_alone_are_the_papers_shape(tmp_path: Path) -> None:
    table = built(tmp_path, spaces=["profile"])
    given = world.user_vectors().sort_by([("as_of", "ascending"), ("user_id", "ascending")])
    assert np.array_equal(to_numpy(table["vector"]), to_numpy(given["vector"])), "bit for bit"


def test_the_stage_puts_spaces_side_by_side_at_each_snapshot(tmp_path: Path) -> None:
    alone = {space: built(tmp_path / space, spaces=[space]) for space in ("profile", "titles", "behaviour", "attributes")}
    together = built(tmp_path / "all", spaces=list(alone))
    for time in SNAPSHOTS:
        np.testing.assert_allclose(at(together, time), side_by_side([at(table, time) for table in alone.values()]), atol=1e-6)
        silent = [world.USERS.index(user) for user in world.SILENT]
        assert not at(alone["titles"], time)[silent].any()
        assert not at(alone["behaviour"], time)[silent].any()
        assert at(together, time)[silent].any(axis=1).all(), "who has never acted still lies where profile and attributes say"


def test_a_later_snapshot_lies_in_the_basis_of_the_first(tmp_path: Path) -> None:
    table = built(tmp_path, spaces=["behaviour"])
    first, second = (at(table, time) for time in SNAPSHOTS)
    active = np.array([user not in world.SILENT for user in world.USERS])
    own = (first * second)[active].sum(axis=1)
    assert own.mean() > 0.8
    assert own.mean() > (first[active] @ second[active].T).mean() + 0.3


def test_shuffled_is_the_same_wrong_user_at_every_snapshot(tmp_path: Path) -> None:
    straight, dealt = built(tmp_path / "straight", spaces=["profile"]), built(tmp_path / "dealt", spaces=["profile"], shuffled=True)
    owners = []
    for time in SNAPSHOTS:
        vectors, wrong = at(straight, time), at(dealt, time)
        assert multiset(wrong) == multiset(vectors)
        owners.append([int(np.flatnonzero((vectors == row).all(axis=1))[0]) for row in wrong])
    assert owners[0] == owners[1]
    assert sum(owner == row for row, owner in enumerate(owners[0])) < 8
    other = built(tmp_path / "other", spaces=["profile"], shuffled=True, seed=99)
    assert not other.equals(dealt)
    assert multiset(at(other, SNAPSHOTS[0])) == multiset(at(dealt, SNAPSHOTS[0]))


def test_a_later_event_changes_no_earlier_vector(tmp_path: Path) -> None:
    later = [(user, item, 50 + 1e-6) for user, item in zip(world.USERS, world.ITEMS, strict=False)]
    before, after = built(tmp_path / "before", spaces=["titles", "behaviour"]), built(tmp_path / "after", later, spaces=["titles", "behaviour"])
    assert np.array_equal(at(after, SNAPSHOTS[0]), at(before, SNAPSHOTS[0]))
    assert not np.array_equal(at(after, SNAPSHOTS[1]), at(before, SNAPSHOTS[1]))


def test_attributes_of_whom_nothing_is_known_are_zeros() -> None:
    assert attribute_vectors(np.zeros((4, 2), np.int32)).tolist() == [[0.0]] * 4


def test_attributes_alone_need_somebody_who_has_one(tmp_path: Path) -> None:
    settings, store = world.publish(tmp_path, cities=False, user_spaces={"spaces": ["attributes"]})
    with work.in_place(), pytest.raises(ValueError, match=r"user_spaces.spaces = \['attributes'\]: no attribute of any user is known.*name another space"):
        ensure(USER_SPACES, settings, store)
    assert find(USER_SPACES, settings, store) is None
