"""Codes that keep their numbers: permutations undone, matching held against all permutations, and a refit that goes on from an earlier artifact."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from longtail import schema
from longtail.artifacts import Artifact, Store
from longtail.code_match import check_shape, kept, match, renumbered
from longtail.codes import CodebookSettings, encode, fit_here, load_codebook
from longtail.config import parse
from longtail.vectors import to_arrow
from pipelines import work
from pipelines.code_continuity import find, fingerprint
from pipelines.codes import ITEM_CODES
from pipelines.stage import Context, ensure, stage_key
from tests import planted_artifacts as world
from tests.test_codes import planted

Floats = NDArray[np.float32]


def test_shares_by_hand() -> None:
    old = np.array([[0, 1], [0, 1], [2, 1], [3, 3]])
    new = np.array([[0, 1], [0, 2], [1, 1], [3, 3]])
    assert kept(old, new) == [0.75, 0.5]
    assert kept(old, new, np.array([0, 6, 1, 1])) == [7 / 8, 1 / 8]
    assert kept(old[:0], new[:0]) == [0.0, 0.0]
    assert kept(old, new, np.zeros(4)) == [0.0, 0.0]


@pytest.mark.parametrize("by", ["overlap", "distance"])
def test_a_permuted_codebook_is_put_back(by: str) -> None:
    vectors, _ = planted(600, noise=0.8)
    settings = CodebookSettings(num_stages=3, codebook_size=12)
    old = fit_here(vectors, settings, 3).codebook_SKD
    rng = np.random.default_rng(0)
    shuffled = np.stack([stage[rng.permutation(12)] for stage in old])
    assert kept(encode(vectors, old), encode(vectors, shuffled))[-1] < 0.1
    order = match(old, shuffled, encode(vectors, old), encode(vectors, shuffled), by=by)  # type: ignore[arg-type]
    assert renumbered(shuffled, order).tobytes() == old.tobytes()


@pytest.mark.parametrize("seed", range(5))
def test_stage_by_stage_no_permutation_keeps_more(seed: int) -> None:
    """Against all permutations of four codes."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(90, 5)).astype(np.float32)
    settings = CodebookSettings(num_stages=2, codebook_size=4)
    old, new = (fit_here(vectors[seed:], settings, number).codebook_SKD for number in (1, 2))
    before, after = encode(vectors, old), encode(vectors, new)
    best = kept(before, encode(vectors, renumbered(new, match(old, new, before, after))))
    every = [np.array(order) for order in itertools.permutations(range(4))]
    firsts = [kept(before, encode(vectors, np.stack([new[0][order], new[1]]))) for order in every]
    assert best[0] == pytest.approx(max(first for first, _ in firsts))
    chosen = renumbered(new, match(old, new, before, after))[0]
    assert best[1] == pytest.approx(max(kept(before, encode(vectors, np.stack([chosen, new[1][order]])))[1] for order in every))


def test_a_codebook_of_another_shape_is_refused() -> None:
    old = np.zeros((3, 16, 8), np.float32)
    check_shape(old, 3, 16, 8, "codes.item")
    with pytest.raises(ValueError, match=r"codes\.item\.codebook_size = 32, and the codebook that codes\.item\.previous names has 16\. Set .* = 16"):
        check_shape(old, 3, 32, 8, "codes.item")
    with pytest.raises(ValueError, match=r"vector width = 9, .* has 8\. Take vectors of the encoder"):
        check_shape(old, 3, 16, 9, "codes.item")


SETTINGS: dict[str, object] = {"num_stages": 2, "codebook_size": 12, "block_rows": 64, "compute": {"num_actors": 2, "num_cpus": 0.1}}


def item_codes(store: Store, vectors: Floats, **item: object) -> Artifact:
    """ITEM_CODES of items i0000 … in place, under its true key."""
    ids = [f"i{number:04d}" for number in range(len(vectors))]
    config = parse({"run": {"uri": store.uri}, "codes": {"item": {**SETTINGS, **item}}}, "test")
    z = world.commit(store, "item_z", {"z": pa.table({"item_id": ids, "vector": to_arrow(vectors)}), "known": pa.table({"item_id": ids})})
    draft = store.create("item_codes", stage_key(ITEM_CODES, config, {"item_z": z}))
    result = ITEM_CODES.build(Context(config, store, {"item_z": z}), draft)
    inputs = {"item_z": z} | dict(result.also_read)
    return draft.commit(config={}, inputs=inputs, seed=7, rows_in=result.rows_in, rows_out=result.rows_out, dropped={}, info=result.info)


def codes_of(artifact: Artifact) -> NDArray[np.int32]:
    return np.array(artifact.read("codes")["codes"].to_pylist(), np.int32)


def test_a_refit_goes_on_from_an_earlier_artifact(tmp_path: Path) -> None:
    """With half as many items again, and another seed: codes and places stay, where a cold refit shuffles them."""
    vectors, _ = planted(600, num_clusters=40, noise=0.9)
    with work.in_place():
        first = item_codes(world.open_store(tmp_path, "first"), vectors[:400])
        folder = first.root.rsplit("/", 1)[0]
        second = item_codes(world.open_store(tmp_path, "second"), vectors, previous=folder, seed=99)
        cold = item_codes(world.open_store(tmp_path, "cold"), vectors, seed=99)
    before = codes_of(first)
    shares, cold_shares = kept(before, codes_of(second)[:400]), kept(before, codes_of(cold)[:400])
    assert shares[0] > 0.75
    assert shares[0] > cold_shares[0] + 0.4
    assert second.info["previous"] == {"key": first.key, "same_vectors": False, "items": 400, "kept": pytest.approx(shares)}
    assert second.manifest["inputs"]["previous"]["content_hash"] == first.content_hash
    assert "previous" not in cold.info
    assert second.info["quality"]["mse"][-1] < 1.05 * cold.info["quality"]["mse"][-1]
    stays = (before == codes_of(second)[:400]).all(axis=1)
    places = [np.array(artifact.read("resolved")["place"].to_pylist()) for artifact in (first, second)]
    assert second.read("resolved").schema.equals(schema.RESOLVED)
    np.testing.assert_array_equal(places[0][stays], places[1][:400][stays])
    assert len({(*row, place) for row, place in zip(codes_of(second).tolist(), places[1].tolist(), strict=True)}) == 600


def test_the_same_rows_again_change_nothing(tmp_path: Path) -> None:
    """A settled codebook is a fixed point: bytes, counts and codes stay."""
    vectors, _ = planted(400, num_clusters=12, noise=0.3)
    with work.in_place():
        first = item_codes(world.open_store(tmp_path, "first"), vectors, iterations=100)
        again = item_codes(world.open_store(tmp_path, "again"), vectors, iterations=100, previous=first.root.rsplit("/", 1)[0])
    assert again.info["previous"]["kept"] == [1.0, 1.0]
    assert again.info["quality"]["mse"] == pytest.approx(first.info["quality"]["mse"], rel=1e-4)
    np.testing.assert_array_equal(codes_of(first), codes_of(again))
    assert again.read("resolved").equals(first.read("resolved"))


def test_items_that_come_later_get_codes_without_a_fit(tmp_path: Path) -> None:
    """By the stored codebook, as a server does it (tests/test_newcomers.py): close to their centroids, and equal content has equal codes."""
    vectors, _ = planted(500, num_clusters=20, noise=0.8)
    with work.in_place():
        artifact = item_codes(world.open_store(tmp_path, "items"), vectors[:400])
    codebook = load_codebook(Path(artifact.path("codebook.safetensors")))
    np.testing.assert_array_equal(codes_of(artifact), encode(vectors[:400], codebook))
    later = encode(vectors[400:], codebook)
    left = vectors[400:] - codebook[0][later[:, 0]] - codebook[1][later[:, 1]]
    assert float((left**2).sum(axis=1).mean()) < 1.3 * artifact.info["quality"]["mse"][-1]
    np.testing.assert_array_equal(encode(vectors[:1], codebook), codes_of(artifact)[:1])


def test_no_places_where_none_are_asked_for(tmp_path: Path) -> None:
    vectors, _ = planted(100)
    with work.in_place():
        without = item_codes(world.open_store(tmp_path, "without"), vectors, num_places=0)
        later = item_codes(world.open_store(tmp_path, "later"), vectors, previous=without.root.rsplit("/", 1)[0])
        assert len(without.read("resolved")) == 0
        assert len(later.read("resolved")) == 100
        with pytest.raises(ValueError, match=r"codes\.item\.num_places = 1: tuple"):
            item_codes(world.open_store(tmp_path, "full"), vectors, num_places=1)


def test_the_key_hangs_on_what_the_earlier_artifact_holds_and_not_on_where_it_lies(tmp_path: Path) -> None:
    vectors, _ = planted(200)
    with work.in_place():
        stores = [world.open_store(tmp_path, name) for name in ("a", "b", "c")]
        same, copy, other = [item_codes(store, vectors, seed=seed) for store, seed in zip(stores, (1, 1, 2), strict=True)]

    def config(artifact: Artifact | None, uri: str = str(tmp_path / "a")) -> object:
        previous = {} if artifact is None else {"previous": artifact.root.rsplit("/", 1)[0]}
        return parse({"run": {"uri": uri}, "codes": {"item": {**SETTINGS, **previous}}}, "test")

    keys = [stage_key(ITEM_CODES, config(artifact), {}) for artifact in (same, copy, other, None)]  # type: ignore[arg-type]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    by_key = parse({"run": {"uri": stores[0].uri}, "codes": {"item": {"previous": same.key}}}, "test")
    found = find(by_key)
    assert found is not None
    assert found.root == same.root
    assert fingerprint(by_key) == same.content_hash
    assert fingerprint(parse({}, "test")) == ""


@pytest.mark.parametrize(
    ("previous", "told"),
    [
        ("0123456789abcdef", "there is no finished item_codes artifact 0123456789abcdef under"),
        ("runs/x/user_codes/0123", "must be the folder <run.uri>/item_codes/<key>"),
        ("item_codes/0123", "must be the folder"),
    ],
)
def test_an_earlier_artifact_that_is_not_there_is_refused(tmp_path: Path, previous: str, told: str) -> None:
    store = world.open_store(tmp_path, "run")
    config = parse({"run": {"uri": store.uri}, "codes": {"item": {"previous": previous}}}, "test")
    with pytest.raises(ValueError, match=f"codes.item.previous = .*{told}"):
        ensure(ITEM_CODES.__class__("item_codes", 1, (), lambda config: {}, ITEM_CODES.build, "", fingerprint), config, store)


@pytest.mark.ray
def test_going_on_over_ray_gives_the_bits_of_one_process(ray_cluster: None, tmp_path: Path) -> None:
    vectors, _ = planted(500, num_clusters=30, noise=0.9)
    with work.in_place():
        first = item_codes(world.open_store(tmp_path, "first"), vectors[:300])
        alone = item_codes(world.open_store(tmp_path, "alone"), vectors, previous=first.root.rsplit("/", 1)[0])
    over_ray = item_codes(world.open_store(tmp_path, "ray"), vectors, previous=first.root.rsplit("/", 1)[0])
    assert over_ray.content_hash == alone.content_hash
    assert over_ray.info == alone.info
