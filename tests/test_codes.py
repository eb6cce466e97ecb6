"""RQ-KMeans: a hand-worked case, its properties, its refusals, and faiss beside it."""

import itertools
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import ray
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.metrics import adjusted_mutual_info_score

from longtail import schema
from longtail.codes import (
    CodebookSettings,
    Fit,
    LocalShards,
    check_rows,
    codebook_bytes,
    collisions,
    encode,
    fit_codebook,
    gini,
    load_codebook,
    quality,
)
from longtail.kmeans import Space, VectorShard, grid_of, kmeans_plus_plus
from longtail.vectors import VectorTable, fingerprints, to_arrow
from pipelines import work
from pipelines.codes import ITEM_CODES, USER_CODES, RayShards, fit_order
from tests import planted_artifacts as world

Floats = NDArray[np.float32]


def fit(vectors: Floats, *, shards: int = 1, seed: int = 7, initial: Floats | None = None, **settings: object) -> Fit:
    chosen = CodebookSettings.model_validate({"block_rows": 64, **settings})
    return fit_codebook(LocalShards.split(vectors, chosen.block_rows, shards), len(vectors), vectors.shape[1], chosen, seed, initial)


def planted(num_rows: int = 1200, num_clusters: int = 8, dim: int = 16, noise: float = 0.25, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Unit vectors around `num_clusters` random directions, and which one each is of."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_clusters, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    truth = rng.integers(0, num_clusters, num_rows)
    vectors = centres[truth] + noise * rng.normal(size=(num_rows, dim)) / np.sqrt(dim)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), truth


def test_six_points_with_known_centroids() -> None:
    points = np.array([[0, 0], [0, 3], [0, 6], [10, 0], [10, 3], [10, 6]], np.float32)
    result = fit(points, num_stages=2, codebook_size=2, block_rows=4, initial=np.array([[[1, 1], [9, 1]], [[0, -2], [0, 2]]], np.float32))
    np.testing.assert_array_equal(result.codebook_SKD[0], [[0, 3], [10, 3]])
    # What is left is (0, -3), (0, 0), (0, 3), twice; 0 is as near to both centroids, and the lower number takes it.
    np.testing.assert_array_equal(result.codebook_SKD[1], [[0, -1.5], [0, 3]])
    np.testing.assert_allclose(result.mse_S, [(9 + 0 + 9) / 3, (2.25 + 2.25 + 0) / 3])
    assert result.variance == pytest.approx(25 + 6)
    np.testing.assert_array_equal(result.counts_SK, [[3, 3], [4, 2]])
    np.testing.assert_array_equal(encode(points, result.codebook_SKD), [[0, 0], [0, 0], [0, 1], [1, 0], [1, 0], [1, 1]])


@pytest.mark.parametrize("shards", [2, 4, 19])
def test_any_number_of_shards_gives_the_same_bits(shards: int) -> None:
    vectors, _ = planted(1200)
    one = fit(vectors, num_stages=3, codebook_size=24)
    many = fit(vectors, num_stages=3, codebook_size=24, shards=shards)
    assert one.codebook_SKD.tobytes() == many.codebook_SKD.tobytes()
    np.testing.assert_array_equal(one.counts_SK, many.counts_SK)
    np.testing.assert_array_equal(one.mse_S, many.mse_S)


def test_the_seed_decides() -> None:
    vectors, _ = planted()
    assert fit(vectors, codebook_size=24, seed=1).codebook_SKD.tobytes() == fit(vectors, codebook_size=24, seed=1).codebook_SKD.tobytes()
    assert fit(vectors, codebook_size=24, seed=1).codebook_SKD.tobytes() != fit(vectors, codebook_size=24, seed=2).codebook_SKD.tobytes()


@pytest.mark.parametrize("seed", range(5))
def test_the_residual_never_grows(seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(500, 8)).astype(np.float32)
    result = fit(vectors, num_stages=6, codebook_size=8, iterations=1 + seed, seed=seed)
    norms = [result.variance, *result.mse_S]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(norms)), norms


def test_mse_and_counts_are_those_of_encode() -> None:
    vectors, _ = planted()
    result = fit(vectors, num_stages=3, codebook_size=16)
    codes = encode(vectors, result.codebook_SKD)
    left = vectors - sum(result.codebook_SKD[stage][codes[:, stage]] for stage in range(3))
    assert float((left**2).sum(axis=1).mean()) == pytest.approx(result.mse_S[-1], rel=1e-4)
    for stage in range(3):
        np.testing.assert_array_equal(np.bincount(codes[:, stage], minlength=16), result.counts_SK[stage])
    assert result.variance == pytest.approx(float(vectors.var(axis=0).sum()), rel=1e-4)


@pytest.mark.parametrize("noise", [0.25, 1.0])
def test_as_good_as_faiss_from_the_same_start(noise: float) -> None:
    """Where clusters stand apart the same centroids; where they overlap, rows about as near to two are compared as int8 and the way may part from faiss's."""
    vectors, truth = planted(2000, num_clusters=12, noise=noise)
    initial = np.stack([vectors[truth == number][0] for number in range(12)])
    reference = faiss.Kmeans(vectors.shape[1], 12, niter=25, nredo=1, max_points_per_centroid=10**6)
    reference.train(vectors, init_centroids=initial)
    ours = fit(vectors, num_stages=1, codebook_size=12, iterations=25, initial=initial[None])
    if noise < 0.5:
        np.testing.assert_allclose(ours.codebook_SKD[0], reference.centroids, atol=1e-4)
    theirs = float(reference.index.search(vectors, 1)[0].mean())
    assert ours.mse_S[0] <= 1.002 * theirs


def test_as_good_as_stacked_faiss() -> None:
    vectors, _ = planted(4000, num_clusters=40, dim=24, noise=0.8)
    left = vectors.copy()
    for stage in range(3):
        reference = faiss.Kmeans(24, 32, niter=20, seed=stage + 1, max_points_per_centroid=10**6)
        reference.train(left)
        left -= reference.centroids[reference.index.search(left, 1)[1][:, 0]]
    theirs = float((left**2).sum(axis=1).mean())
    ours = fit(vectors, num_stages=3, codebook_size=32, block_rows=512)
    assert ours.mse_S[-1] <= 1.03 * theirs


def test_planted_clusters_are_recovered_and_shuffled_codes_lose_them() -> None:
    vectors, truth = planted(1500, num_clusters=8, noise=0.7)
    codes = encode(vectors, fit(vectors, num_stages=1, codebook_size=8).codebook_SKD)[:, 0]
    assert adjusted_mutual_info_score(truth, codes) > 0.9
    assert abs(adjusted_mutual_info_score(truth, np.random.default_rng(0).permutation(codes))) < 0.02


def test_dead_centroids_move_to_far_rows() -> None:
    vectors, _ = planted(800, num_clusters=6, noise=0.1)
    lost = np.full((1, 6, 16), 50.0, np.float32)
    lost[0, 0] = vectors[0]
    result = fit(vectors, num_stages=1, codebook_size=6, initial=lost)
    assert result.num_reseeded >= 5
    assert (result.counts_SK > 0).all()
    assert result.mse_S[0] < 0.9 * result.variance
    assert fit(vectors, num_stages=1, codebook_size=6, initial=lost, shards=4).codebook_SKD.tobytes() == result.codebook_SKD.tobytes()


@pytest.mark.parametrize("distinct", [1, 3])
def test_fewer_distinct_vectors_than_codes(distinct: int) -> None:
    vectors = np.repeat(planted(distinct)[0], 40, axis=0)
    result = fit(vectors, num_stages=2, codebook_size=8)
    np.testing.assert_array_equal((result.counts_SK > 0).sum(axis=1), [distinct, 1])
    np.testing.assert_allclose(result.mse_S, 0, atol=1e-10)
    assert np.isfinite(result.codebook_SKD).all()
    report = quality(result, encode(vectors, result.codebook_SKD), fingerprints(vectors))
    assert report["dead_codes"] == [8 - distinct, 7]
    assert report["distinct_vectors"] == distinct
    assert report["collision_rate"] == 1.0
    assert report["median_leaf_size"] == 40


def test_kmeans_plus_plus_takes_every_distinct_row_there_is() -> None:
    rows = np.repeat(planted(5)[0], 30, axis=0)
    chosen = kmeans_plus_plus(rows, 5, np.random.default_rng(0))
    assert len(np.unique(chosen, axis=0)) == 5


def test_a_shard_made_anew_goes_on_where_the_lost_one_was() -> None:
    vectors, _ = planted(300)
    blocks = [(0, vectors[:100]), (100, vectors[100:200])]
    codebook = fit(vectors, num_stages=3, codebook_size=8).codebook_SKD
    spaces = [Space(grid_of(1.0), codebook[:stage], step=0.01) for stage in range(3)]
    old = VectorShard(blocks)
    for space, centroids in zip(spaces, codebook, strict=True):
        old.step(space, centroids[::-1].copy())
        old.step(space, centroids)
        old.assign(space, centroids)
    ours, theirs = old.step(spaces[2], codebook[2]), VectorShard(blocks).step(spaces[2], codebook[2])
    np.testing.assert_array_equal(ours.sums_KD, theirs.sums_KD)
    np.testing.assert_array_equal(ours.counts_K, theirs.counts_K)
    rows = np.array([150, 3, 99, 100])
    np.testing.assert_array_equal(old.residuals(spaces[2], rows), VectorShard(blocks).residuals(spaces[2], rows))


def test_too_few_rows_are_refused_with_a_size_that_passes() -> None:
    settings = CodebookSettings(codebook_size=256)
    with pytest.raises(ValueError, match=r"codes\.user\.codebook_size = 256 .* = 1024 rows .* has 300\. Lower codes\.user\.codebook_size to at most 75"):
        check_rows(settings, 300, "codes.user", "user_vectors")
    check_rows(settings, 1024, "codes.user", "user_vectors")
    check_rows(CodebookSettings(codebook_size=75), 300, "codes.user", "user_vectors")


def test_a_codebook_wider_than_its_sample_is_refused() -> None:
    with pytest.raises(ValidationError, match="codebook_size = 64 must not exceed init_rows = 32"):
        CodebookSettings(codebook_size=64, init_rows=32)


def test_encoding_vectors_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width 16"):
        encode(np.zeros((2, 8), np.float32), np.zeros((1, 4, 16), np.float32))


def test_quality_by_hand() -> None:
    counts = np.array([[2, 2, 0, 0], [3, 1, 0, 0]])
    result = Fit(np.zeros((2, 4, 1), np.float32), counts, np.array([0.5, 0.25]), 1.0, [3, 2], 1)
    report = quality(result, np.array([[0, 0], [0, 0], [1, 0], [1, 1]], np.int32), np.array([1, 1, 2, 3], np.uint64))
    assert report["collision_rate"] == 0.5
    assert report["num_leaves"] == 3
    assert report["median_leaf_size"] == 1
    assert report["largest_leaf_size"] == 2
    assert report["dead_codes"] == [2, 2]
    assert [one["largest_size"] for one in report["prefixes"]] == [2, 2]
    assert [one["different_content_rate"] for one in report["prefixes"]] == [0.5, 0.0]
    assert report["distinct_vectors"] == 3
    assert report["mse_frac"] == [0.5, 0.25]
    assert report["perplexity"][0] == pytest.approx(2.0)
    assert report["gini"][0] == pytest.approx(0.5)
    assert quality(replace(result, variance=0.0), np.zeros((4, 2), np.int32), np.zeros(4, np.uint64))["mse_frac"] == [0.0, 0.0]


def test_collisions_by_hand() -> None:
    """Six rows: a pair of equal content, a pair of different content in one tuple, and two that stand alone from the second code on."""
    codes = np.array([[0, 0], [0, 0], [1, 2], [1, 2], [1, 0], [2, 2]], np.int32)
    first, both = collisions(codes, np.array([10, 10, 11, 12, 13, 14], np.uint64), 3)
    assert (first["tuples"], first["largest_size"], first["median_size"], first["used_frac"]) == (3, 3, 2, 1.0)
    assert (first["collision_rate"], first["different_content_rate"]) == (5 / 6, 3 / 6)
    assert (both["tuples"], both["largest_size"], both["used_frac"]) == (4, 2, 4 / 9)
    assert both["collision_rate"] == pytest.approx(4 / 6)
    assert both["different_content_rate"] == pytest.approx(2 / 6)
    assert both["gini"] == pytest.approx(gini(np.array([2, 2, 1, 1])))
    assert both["perplexity"] == pytest.approx(np.exp(2 * np.log(3) / 3 + 2 * np.log(6) / 6))


@pytest.mark.parametrize("seed", range(4))
def test_collisions_are_those_of_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes, content = rng.integers(0, 5, (80, 4)).astype(np.int32), rng.integers(0, 60, 80).astype(np.uint64)
    codes = codes[content.astype(np.int64)]  # equal content has equal codes
    found = collisions(codes, content, 5)
    for depth, one in enumerate(found, start=1):
        same = (codes[:, None, :depth] == codes[None, :, :depth]).all(axis=2)
        other = same & (content[:, None] != content[None])
        assert one["collision_rate"] == pytest.approx((same.sum(axis=1) > 1).mean())
        assert one["different_content_rate"] == pytest.approx(other.any(axis=1).mean())
        assert one["tuples"] == len({tuple(row) for row in codes[:, :depth].tolist()})
        assert one["different_content_rate"] <= one["collision_rate"]


def test_eight_wide_stages_do_not_run_out_of_numbers() -> None:
    codes = np.full((3, 8), 4095, np.int32)
    codes[2, 7] = 0
    assert [one["tuples"] for one in collisions(codes, np.arange(3, dtype=np.uint64), 4096)] == [1] * 7 + [2]


def test_gini_is_the_mean_difference_over_all_pairs() -> None:
    counts = np.random.default_rng(5).integers(0, 50, 20)
    slow = np.abs(counts[:, None] - counts[None, :]).mean() / (2 * counts.mean())
    assert gini(counts) == pytest.approx(slow)


def test_the_codebook_survives_its_file(tmp_path: Path) -> None:
    codebook = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    (tmp_path / "codebook.safetensors").write_bytes(codebook_bytes(codebook))
    np.testing.assert_array_equal(load_codebook(tmp_path / "codebook.safetensors"), codebook)


def test_rows_are_fitted_in_key_order_and_from_the_first_snapshot() -> None:
    days = pa.array([world.TRAIN_END, world.HISTORY_END, world.HISTORY_END, world.TRAIN_END], schema.TIMESTAMP)
    np.testing.assert_array_equal(fit_order(pa.table({"user_id": ["a", "b", "a", "c"], "as_of": days})), [2, 1])
    np.testing.assert_array_equal(fit_order(pa.table({"item_id": ["c", "a", "b"]})), [1, 2, 0])


@pytest.mark.parametrize(("num_gpus", "device"), [(0.0, "cpu"), (0.5, "cuda")])
def test_the_config_says_where_shards_multiply(monkeypatch: pytest.MonkeyPatch, num_gpus: float, device: str) -> None:
    """Ray's part is taken down as asked for: no GPU is needed to see what an actor would be given."""
    asked: list[tuple[dict[str, object], tuple[object, ...]]] = []

    class Remote:
        def options(self, **options: object) -> "Remote":
            self._options = options
            return self

        def remote(self, *arguments: object) -> None:
            asked.append((self._options, arguments))

    monkeypatch.setattr("pipelines.codes.ray.remote", lambda actor: Remote())
    settings = CodebookSettings.model_validate({"block_rows": 10, "compute": {"num_actors": 2, "num_cpus": 1.0, "num_gpus": num_gpus}})
    RayShards(VectorTable(pafs.LocalFileSystem(), "nowhere"), np.arange(40), settings)
    assert [(options["num_gpus"], arguments[2]) for options, arguments in asked] == [(num_gpus, device)] * 2


@pytest.mark.ray
def test_actors_give_the_bits_of_one_process_even_when_one_dies(ray_cluster: None, tmp_path: Path) -> None:
    vectors, _ = planted(900)
    settings = CodebookSettings.model_validate({"num_stages": 2, "codebook_size": 12, "block_rows": 128, "compute": {"num_actors": 4, "num_cpus": 0.1}})
    shuffled = np.random.default_rng(1).permutation(len(vectors))  # where row n of the fit lies in the table
    stored = np.empty_like(vectors)
    stored[shuffled] = vectors
    pq.write_table(pa.table({"vector": to_arrow(stored)}), tmp_path / "vectors.parquet", row_group_size=100)
    table = VectorTable(pafs.LocalFileSystem(), str(tmp_path / "vectors.parquet"))
    alone = fit(vectors, num_stages=2, codebook_size=12, block_rows=128)

    def over_ray(num_actors: int, kill: bool) -> Fit:
        chosen = settings.model_copy(update={"compute": settings.compute.model_copy(update={"num_actors": num_actors})})
        shards = RayShards(table, shuffled, chosen)
        try:
            if kill:
                ray.get(shards.actors[1].step.remote(Space(grid_of(1.0), alone.codebook_SKD[:0], 0.01), alone.codebook_SKD[0]))
                ray.kill(shards.actors[1], no_restart=False)
            result = fit_codebook(shards, len(vectors), 16, chosen, 7)
            codes, prints = shards.encode(len(vectors), result.codebook_SKD)
        finally:
            shards.close()
        np.testing.assert_array_equal(codes, encode(stored, result.codebook_SKD))
        np.testing.assert_array_equal(prints, fingerprints(stored))
        return result

    for num_actors, kill in [(1, False), (4, True)]:
        result = over_ray(num_actors, kill)
        assert result.codebook_SKD.tobytes() == alone.codebook_SKD.tobytes()
        np.testing.assert_array_equal(result.counts_SK, alone.counts_SK)


@pytest.mark.ray
def test_the_stages_on_ray(ray_cluster: None, tmp_path: Path) -> None:
    """Users with a second snapshot whose vectors change: the codebook and the first snapshot's codes do not. Items: topics are found again."""
    vectors, _ = planted(300)
    one = {"num_actors": 1, "num_cpus": 0.1}
    config: dict[str, object] = {
        "codes": {"user": {"codebook_size": 8, "block_rows": 64, "compute": one}, "item": {"num_stages": 2, "codebook_size": 6, "compute": one}}
    }

    def user_codes(name: str, later: Floats) -> tuple[pa.Table, Floats]:
        store = world.open_store(tmp_path, name)
        days = pa.array([world.HISTORY_END] * 300 + [world.TRAIN_END] * 300, schema.TIMESTAMP)
        users = pa.array([f"u{row % 300:03d}" for row in range(600)])
        table = pa.table({"user_id": users, "as_of": days, "vector": to_arrow(np.concatenate([vectors, later]))})
        artifact = world.build(USER_CODES, [world.commit(store, "user_spaces", {"vectors": table})], store, config)
        assert artifact.info["quality"]["rows"] == 300
        codebook = load_codebook(Path(artifact.path("codebook.safetensors")))
        codes = artifact.read("codes")
        assert codes.schema.equals(schema.codes(schema.USER_KEY, 2))
        np.testing.assert_array_equal(np.array(codes["codes"].to_pylist()), encode(np.concatenate([vectors, later]), codebook))
        return codes.slice(0, 300), codebook

    first, codebook = user_codes("a", vectors)
    second, other = user_codes("b", planted(300, seed=9)[0])
    assert codebook.tobytes() == other.tobytes()
    assert first.equals(second)

    store = world.open_store(tmp_path, "items")
    clusters, topic = planted(240, num_clusters=6)
    ids = [f"i{number:03d}" for number in range(len(clusters))]
    z = world.commit(store, "item_z", {"z": pa.table({"item_id": ids, "vector": to_arrow(clusters)}), "known": pa.table({"item_id": ids[:200]})})
    items = world.build(ITEM_CODES, [z], store, config)
    codes = np.array(items.read("codes")["codes"].to_pylist())
    assert adjusted_mutual_info_score(topic, codes[:, 0]) > 0.8
    assert items.info["quality"]["mse"][1] < items.info["quality"]["mse"][0] < items.info["quality"]["variance"]
    with pytest.raises(ValueError, match=r"codes\.item\.codebook_size = 100 .* stage 'item_z' known in the history window has 200"):
        world.build(ITEM_CODES, [z], store, {"codes": {"item": {"codebook_size": 100}}})


def test_the_stage_in_place_takes_the_seed_of_its_section_or_the_runs(tmp_path: Path) -> None:
    store = world.open_store(tmp_path, "seeds")
    vectors, _ = planted(300, noise=0.9)
    days = pa.array([world.HISTORY_END] * 300, schema.TIMESTAMP)
    table = pa.table({"user_id": [f"u{row:03d}" for row in range(300)], "as_of": days, "vector": to_arrow(vectors)})
    spaces = world.commit(store, "user_spaces", {"vectors": table})

    def codebook(run_seed: int, **user: int) -> bytes:
        with work.in_place():
            artifact = world.build(USER_CODES, [spaces], store, {"run": {"seed": run_seed}, "codes": {"user": {"codebook_size": 12, **user}}})
        made = load_codebook(Path(artifact.path("codebook.safetensors")))
        np.testing.assert_array_equal(np.array(artifact.read("codes")["codes"].to_pylist()), encode(vectors, made))
        artifact.fs.delete_dir(artifact.root)
        artifact.fs.delete_file(f"{store.root}/user_codes/test/manifest.json")
        return made.tobytes()

    assert codebook(5) == codebook(1, seed=5) == codebook(5, seed=5)
    assert codebook(1) != codebook(5)
