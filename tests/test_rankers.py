"""Layers against torch and by hand; parts that are switched off are gone; the papers' constraints on gradients."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from longtail.checkpoint import load_ranker, load_vocabulary, save_ranker, save_vocabulary
from longtail.entities import Entities, Vocabulary
from longtail.rankers.batch import Batch
from longtail.rankers.catalogue import OOV, Catalogue
from longtail.rankers.choirrec import ChoirRec, GroupIdFusion, ReliabilityTrunk, hard_gate
from longtail.rankers.factory import build_ranker
from longtail.rankers.heads import head_labels, head_losses, resolve_heads
from longtail.rankers.layers import DAYS_SCALE, Normaliser, TargetAttention, masked_softmax, target_id_index
from longtail.rankers.ranker import Ranker, RankerOutput, predict_rows
from longtail.rankers.saviorrec import SaviorRec
from longtail.rankers.sequences import DistinctRows, ItemSequence
from longtail.rankers.settings import RankersSettings
from tests.ranker_data import World, fixed, spec_of

WORLD = World.of(spec_of())
SMALL = {"hidden_dims": (16, 8), "attention_dims": (8,), "id_dim": 4}

RANKERS = ("base", "choirrec", "saviorrec", "duet")
CHOIRREC_PARTS = ("group_id_fusion", "attribute_completion", "group_sequence", "injection", "adaptive_fusion", "distillation")
SAVIORREC_PARTS = ("semantic_vector", "alignment", "semantic_to_behaviour", "behaviour_to_semantic")


def make(name: str, world: World = WORLD, seed: int = 0, **settings: Any) -> Ranker:
    torch.manual_seed(seed)
    return build_ranker(name, world.spec, world.catalogue(), RankersSettings.model_validate({name: SMALL | settings}))


def loss_of(ranker: Ranker, batch: Batch) -> torch.Tensor:
    return ranker.loss(batch, ranker(batch))[0]


def sequence_of(values_BLW: torch.Tensor, mask_BL: torch.Tensor) -> ItemSequence:
    """Items of which each stands in one place."""
    rows_BL = (torch.arange(mask_BL.numel()).view(mask_BL.shape) + 1) * mask_BL
    distinct = DistinctRows.of([rows_BL])
    values_RW = torch.cat([torch.zeros(1, values_BLW.shape[2]), values_BLW[mask_BL]])
    return ItemSequence.written(distinct, values_RW, rows_BL)


def test_target_attention_equals_the_mlp_on_concatenated_inputs() -> None:
    torch.manual_seed(0)
    layer = TargetAttention(5, (7, 3))
    target, history, days = torch.randn(4, 5), torch.randn(4, 6, 5), torch.rand(4, 6) * 100
    mask = torch.rand(4, 6) < 0.6
    mask[0] = False
    pooled, weights = layer(target, sequence_of(history, mask), days_BL=days)
    repeated = target.unsqueeze(1).expand_as(history)
    inputs = torch.cat([history, repeated, history * repeated, torch.log1p(days).unsqueeze(2) * DAYS_SCALE], dim=2)
    first = torch.cat([layer.history_DK, layer.target_DK, layer.product_DK, layer.recency_K.unsqueeze(0)])  # type: ignore[union-attr]
    hidden = torch.relu(inputs @ first + layer.bias_K)
    scores = layer.later[1](torch.relu(layer.later[0](hidden))).squeeze(2)
    for row in range(1, 4):
        expected = torch.softmax(scores[row][mask[row]], dim=0)
        torch.testing.assert_close(weights[row][mask[row]], expected)
        torch.testing.assert_close(pooled[row], expected @ history[row][mask[row]])
    assert (pooled[0] == 0).all()
    assert (weights[~mask] == 0).all()


def test_prior_multiplies_the_softmax() -> None:
    scores, prior = torch.tensor([[0.0, 0.0, math.log(2.0)]]), torch.tensor([[0.1, 0.3, 0.1]])
    weights = masked_softmax(scores, torch.tensor([[True, True, True]]), prior)
    torch.testing.assert_close(weights, torch.tensor([[1 / 6, 3 / 6, 2 / 6]]))


def test_distinct_rows_spread_equals_direct_lookup_with_gradient() -> None:
    table = nn.Embedding(20, 3, padding_idx=0)
    rows = torch.tensor([[3, 3, 0, 7], [7, 19, 3, 0]])
    distinct = DistinctRows.of([rows])
    assert distinct.rows_R.tolist() == [0, 3, 7, 19]
    spread = ItemSequence(distinct, table(distinct.rows_R), rows).spread_BLW
    torch.testing.assert_close(spread, table(rows))
    weight = torch.randn_like(spread)
    by_distinct = torch.autograd.grad((spread * weight).sum(), table.weight)[0]
    direct = torch.autograd.grad((table(rows) * weight).sum(), table.weight)[0]
    torch.testing.assert_close(by_distinct, direct)


def test_distinct_rows_of_sequences_side_by_side() -> None:
    """One without padding, one with an item of its own, one that was not among those that they were made of."""
    one, two = torch.tensor([[5, 2], [9, 5]]), torch.tensor([[0, 9, 4], [4, 0, 0]])
    distinct = DistinctRows.of([one, two])
    assert distinct.rows_R.tolist() == [0, 2, 4, 5, 9]
    values = torch.arange(5.0).unsqueeze(1)
    for rows in (one, two, torch.tensor([[2, 9], [0, 4]])):
        assert torch.equal(distinct.rows_R[ItemSequence(distinct, values, rows).spread_BLW.squeeze(2).long()], rows)


def test_products_and_pooled_sums_are_those_of_rows_written_down_with_their_gradients() -> None:
    """Padding, an item that comes twice in a sequence, a table row that nobody names."""
    torch.manual_seed(3)
    rows = torch.tensor([[3, 3, 0, 7], [7, 19, 3, 0], [0, 0, 0, 0]])
    distinct = DistinctRows.of([rows, torch.tensor([11])])
    table = torch.randn(len(distinct.rows_R), 6, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    written = table[distinct.place(rows)]
    sequence = ItemSequence(distinct, table, rows)
    pairs = []
    for one in (sequence, ItemSequence.written(distinct, table, rows)):
        pairs.append((one.dots(target), torch.bmm(written, target.unsqueeze(2)).squeeze(2), (table, target)))
        pairs.append((one.pooled(weights), torch.bmm(weights.unsqueeze(1), written).squeeze(1), (table, weights)))
    for found, slow, inputs in pairs:
        torch.testing.assert_close(found, slow)
        upstream = torch.randn_like(slow)
        by_bags, by_rows = (torch.autograd.grad((one * upstream).sum(), inputs, retain_graph=True) for one in (found, slow))
        for one, other in zip(by_bags, by_rows, strict=True):
            torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(sequence.dots(target), pairs[0][1])


def test_normaliser_is_fixed_clips_and_takes_unknown_as_the_mean() -> None:
    layer = Normaliser(2)
    layer.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0], [math.nan, 5.0]]))
    torch.testing.assert_close(layer(torch.tensor([[3.0, 5.0], [math.nan, 6.0], [1e9, 5.0]])), torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 0.0]]))


def test_target_ids_show_out_of_vocabulary_for_padding_and_for_hidden() -> None:
    assert target_id_index(torch.tensor([0, 1, 5, 6]), None).tolist() == [OOV, OOV, 5, 6]
    assert target_id_index(torch.tensor([0, 2, 5]), torch.tensor([False, True, False])).tolist() == [OOV, OOV, 5]


def test_catalogue_gives_ids_only_to_targets_of_training_rows() -> None:
    entities = Entities(
        users=Vocabulary(pa.array(["a", "b", "c"])),
        items=Vocabulary(pa.array(["p", "q", "r"])),
        attributes=(),
        attribute_codes_MA=np.zeros((4, 0), np.int32),
        categories=(Vocabulary(pa.array(["food", "toys"])),),
        category_codes_NC=np.array([[0], [1], [2], [0]], np.int32),
        leaf_codes_N=np.zeros(4, np.int32),
        brands=Vocabulary(pa.array(["acme"])),
        brand_codes_N=np.array([0, 1, 0, 1], np.int32),
        log_price_N=np.zeros(4, np.float32),
        first_seen_N=np.zeros(4, np.int64),
    )
    z = pa.table({"item_id": ["r", "p"], "vector": fixed(np.array([[0.6, 0.8], [1.0, 0.0]]), pa.float32())})
    codes = pa.table({"item_id": ["p", "r"], "codes": fixed(np.array([[0, 3], [1, 2]]), pa.int32())})
    catalogue = Catalogue.build(entities, z, codes, (2, 4), np.array([0, 0, 0, 2]), np.array([0, 4, 0, 1]))
    assert catalogue.user_id_M.tolist() == [0, OOV, OOV, 2]
    assert catalogue.item_id_N.tolist() == [0, 2, OOV, 3]
    assert catalogue.category_NC.tolist() == [[0], [1], [2], [0]]
    torch.testing.assert_close(catalogue.vector_ND, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.6, 0.8]]))
    assert catalogue.codes_NS.tolist() == [[0, 0], [1, 4], [0, 0], [2, 3]]
    assert catalogue.rows_N.tolist() == [0, 4, 0, 1]
    assert (catalogue.sizes.user_ids, catalogue.sizes.item_ids, catalogue.sizes.codes) == (3, 4, (3, 5))


def test_heads_labels_losses_and_refusals() -> None:
    assert resolve_heads("base", None, spec_of()) == ("outcome", "cvr", "conversion")
    assert resolve_heads("choirrec", None, spec_of()) == ("cvr",)
    assert resolve_heads("saviorrec", None, spec_of()) == ("outcome", "conversion")
    one = spec_of(has_conversion=False)
    assert {resolve_heads(name, None, one) for name in ("base", "choirrec", "saviorrec")} == {("outcome",)}
    with pytest.raises(ValueError, match="second outcome"):
        resolve_heads("base", ["outcome", "cvr"], one)
    with pytest.raises(ValueError, match="once"):
        resolve_heads("base", ["cvr", "cvr"], spec_of())
    batch = WORLD.batch(4)
    batch = Batch(**{**vars(batch), "outcome_B": torch.tensor([0.0, 1, 1, 1]), "conversion_B": torch.tensor([0.0, 1, 0, -1])})
    labels, known = head_labels(batch, ["outcome", "cvr", "conversion"])
    assert known.tolist() == [[True, False, True], [True, True, True], [True, True, True], [True, False, False]]
    assert labels[:, 0].tolist() == [0, 1, 1, 1]
    losses = head_losses(torch.zeros(4, 3), batch, ["outcome", "cvr", "conversion"])
    torch.testing.assert_close(losses, math.log(2) * torch.tensor([4.0, 2.0, 3.0]))


@pytest.mark.parametrize("name", RANKERS)
@pytest.mark.parametrize("attributes", [0, 2])
def test_every_parameter_gets_a_gradient_and_empty_batches_pass(name: str, attributes: int) -> None:
    """DDP waits for every parameter's gradient, also from a worker that has no row of a short batch."""
    world = World.of(spec_of(attributes=attributes, collaborative_stats=attributes, peer_stats=attributes))
    ranker = make(name, world, peer_stats=True)
    batch = world.batch(64)
    ranker.fit_statistics(batch)
    loss_of(ranker, batch).backward()  # type: ignore[no-untyped-call]
    assert [key for key, p in ranker.named_parameters() if p.grad is None] == []
    empty = batch.rows(slice(0, 0))
    assert float(loss_of(ranker, empty).detach()) == 0
    assert predict_rows(ranker, empty).logits_BH.shape == (0, len(ranker.heads))


@pytest.mark.parametrize(
    ("name", "part"),
    [("choirrec", part) for part in CHOIRREC_PARTS]
    + [("saviorrec", part) for part in SAVIORREC_PARTS]
    + [("duet", part) for part in (*CHOIRREC_PARTS, *SAVIORREC_PARTS)],
)
def test_a_part_switched_off_leaves_no_parameter_behind_and_the_rest_trains(name: str, part: str) -> None:
    more = {"similarity": "none"} if part == "semantic_vector" else {}  # kernels compare these vectors
    full, without = make(name), make(name, **{part: False}, **more)
    batch = WORLD.batch(64)
    without.fit_statistics(batch)
    loss_of(without, batch).backward()  # type: ignore[no-untyped-call]
    assert [key for key, p in without.named_parameters() if p.grad is None] == []
    if part == "semantic_vector":  # it has no parameters: the frozen vectors must not matter any more
        before = without(batch).logits_BH
        without.catalogue.vector_ND.zero_()
        torch.testing.assert_close(without(batch).logits_BH, before)
        before = full(batch).logits_BH
        full.catalogue.vector_ND.zero_()
        assert not torch.allclose(full(batch).logits_BH, before)
    else:
        assert sum(without.num_parameters().values()) < sum(full.num_parameters().values())


def test_group_inputs_matter_exactly_where_their_part_is_on() -> None:
    batch = WORLD.batch(32)
    changed = {
        "group_id_fusion": {"user_codes_BS": batch.user_codes_BS.flip(0)},
        "attribute_completion": {"group_stats_BU": batch.group_stats_BU.flip(0), "completed_BA": batch.completed_BA.flip(0)},
        "group_sequence": {"group_history_BG": batch.group_history_BG.flip(0), "group_weight_BG": batch.group_weight_BG.flip(0)},
    }
    for part, other_fields in changed.items():
        other = Batch(**{**vars(batch), **other_fields})
        for on in (True, False):
            ranker = make("choirrec", **{part: on})
            same = torch.equal(ranker(batch).logits_BH, ranker(other).logits_BH)
            assert same is not on, part


@pytest.mark.parametrize("name", RANKERS)
def test_collaborative_scores_matter_exactly_where_they_are_on(name: str) -> None:
    world = World.of(spec_of(collaborative_stats=2))
    batch = world.batch(32)
    other = Batch(**{**vars(batch), "collaborative_stats_BF": batch.collaborative_stats_BF.flip(0)})
    for on in (True, False):
        ranker = make(name, world, collaborative_stats=on)
        ranker.fit_statistics(batch)
        assert torch.equal(ranker(batch).logits_BH, ranker(other).logits_BH) is not on
    without = make(name, world, collaborative_stats=False)
    for mine, plain in zip(without.parameters(), make(name).parameters(), strict=True):
        assert torch.equal(mine, plain), "off is the ranker of a run that makes no scores"


@pytest.mark.parametrize("name", RANKERS)
def test_without_own_counts_the_individual_side_knows_no_count_of_the_item_nor_of_what_the_user_did_with_its_kind(name: str) -> None:
    batch = WORLD.batch(32)
    other = Batch(**{**vars(batch), "cross_stats_BX": batch.cross_stats_BX.flip(0), "item_stats_BI": batch.item_stats_BI.flip(0)})
    widths = []
    for on in (True, False):
        ranker = make(name, own_counts=on)
        ranker.fit_statistics(batch)
        own, flipped = (ranker.individual(ranker.catalogue, one, None).x_BF for one in (batch, other))  # type: ignore[operator]
        assert torch.equal(own, flipped) is not on
        widths.append(own.shape[1])
        if name not in ("choirrec", "duet"):  # whose group channel has statistics of the item too
            assert torch.equal(ranker(batch).logits_BH, ranker(other).logits_BH) is not on
    assert widths[0] - widths[1] == sum(one.shape[1] for one in (batch.cross_stats_BX, batch.match_stats_BM, batch.item_stats_BI))


def test_contradicting_switches_are_refused() -> None:
    with pytest.raises(ValueError, match="no semantic space"):
        make("saviorrec", semantic_vector=False, alignment=False, similarity="none")
    with pytest.raises(ValueError, match="hidden_dims"):
        make("choirrec", hidden_dims=(16,))
    make("choirrec", hidden_dims=(16,), injection=False)
    off = {"semantic_vector": False, "alignment": False, "semantic_to_behaviour": False, "behaviour_to_semantic": False}
    for similarity in ("none", "tiers"):
        make("saviorrec", **off, similarity=similarity)


def test_group_id_fusion_by_hand() -> None:
    torch.manual_seed(0)
    fusion = GroupIdFusion((3, 4, 2), 2)
    codes = torch.tensor([[1, 4, 0], [3, 2, 1]])
    assert fusion.prefix is not None
    f1 = fusion.tables[0].weight[codes[:, 0]]
    f2 = torch.tanh(torch.cat([f1, fusion.tables[1].weight[codes[:, 1]]], 1) @ fusion.prefix.weight.T)
    f3 = torch.tanh(torch.cat([f2, fusion.tables[2].weight[codes[:, 2]]], 1) @ fusion.prefix.weight.T)
    torch.testing.assert_close(fusion(codes), fusion.mlp(torch.cat([f1, f2, f3], 1)))


def test_injection_is_one_way() -> None:
    """z_individual depends on the group's first layer and sends it no gradient; z_group does not depend on the individual tower."""
    ranker = make("choirrec")
    assert isinstance(ranker, ChoirRec)
    batch = WORLD.batch(32)
    group_first = list(ranker.group_tower.layers[0].parameters())
    before = ranker(batch).z_individual_BH
    assert before is not None
    gradients = torch.autograd.grad(before.sum(), group_first, allow_unused=True)
    assert all(gradient is None for gradient in gradients)
    with torch.no_grad():
        group_first[0].add_(1.0)
    after = ranker(batch).z_individual_BH
    assert after is not None
    assert not torch.allclose(before, after)
    z_group = ranker(batch).z_group_BH
    assert z_group is not None
    assert all(g is None for g in torch.autograd.grad(z_group.sum(), list(ranker.individual_tower.parameters()), allow_unused=True))


def test_fusion_weighs_the_channels() -> None:
    for adaptive in (True, False):
        out = make("choirrec", adaptive_fusion=adaptive)(WORLD.batch(32))
        assert out.alpha_fusion_B is not None
        assert out.z_individual_BH is not None
        assert out.z_group_BH is not None
        share = out.alpha_fusion_B.unsqueeze(1)
        torch.testing.assert_close(out.logits_BH, (1 - share) * out.z_individual_BH + share * out.z_group_BH)
        assert bool((out.alpha_fusion_B == 0.5).all()) is not adaptive


def test_reliability_trunk_sees_the_low_activity_flag() -> None:
    torch.manual_seed(0)
    trunk = ReliabilityTrunk(5.0, 2)
    activity = torch.tensor([[4.0, 9.0, 2.0], [5.0, 9.0, 2.0]])
    features = torch.cat([torch.log1p(activity), torch.tensor([[1.0], [0.0]])], 1)
    torch.testing.assert_close(trunk(activity), torch.sigmoid(trunk.heads(torch.relu(trunk.trunk(features)))))


def test_gates_and_margin_by_hand() -> None:
    own = torch.tensor([[0.9], [0.9], [0.55], [0.1]])
    assert hard_gate(own, torch.tensor([2.0, 1.0, 9.0, 3.0]), 2.0, 0.1).flatten().tolist() == [1, 0, 0, 1]
    ranker = make("choirrec", heads=("outcome",), distill_margin=0.1, min_purchases=2, min_confidence=0.1)
    assert isinstance(ranker, ChoirRec)
    batch = WORLD.batch(4)
    batch = Batch(**{**vars(batch), "activity_B3": torch.tensor([[2.0, 0, 0], [1, 0, 0], [9, 0, 0], [3, 0, 0]])})
    group = torch.tensor([[0.5], [0.5], [0.5], [0.15]], requires_grad=True)
    z_own, alpha = torch.logit(own).requires_grad_(), torch.tensor([0.25, 1.0, 1.0, 1.0], requires_grad=True)
    output = RankerOutput(torch.zeros(4, 1), ("outcome",), z_individual_BH=z_own, z_group_BH=torch.logit(group), alpha_distill_B=alpha)
    distillation = ranker.distillation(batch, output)
    torch.testing.assert_close(distillation, torch.tensor(0.25 * (0.4 - 0.1) ** 2))  # row 3's gap of .05 lies within the margin
    to_own, to_group, to_alpha = torch.autograd.grad(distillation, [z_own, group, alpha], allow_unused=True)
    assert to_own is None  # the teacher is detached
    assert float(to_group[0]) != 0
    assert to_alpha.tolist() == pytest.approx([0.09, 0, 0, 0])


def test_distillation_direction_is_a_setting_and_scales_the_loss() -> None:
    batch = WORLD.batch(128)
    for teacher in ("individual", "group"):
        ranker = make("choirrec", heads=("outcome",), distill_teacher=teacher, distill_margin=0.0, min_confidence=0.0, distill_weight=3.0)
        assert isinstance(ranker, ChoirRec)
        output = ranker(batch)
        loss, parts = ranker.loss(batch, output)
        torch.testing.assert_close(loss.detach(), parts["outcome"] + 3.0 * parts["distillation"])
        assert float(parts["distillation"]) > 0
        assert output.z_individual_BH is not None
        taught, teaches = (ranker.group_out, ranker.individual_out) if teacher == "individual" else (ranker.individual_out, ranker.group_out)
        gradients = torch.autograd.grad(ranker.distillation(batch, output), [taught.weight, teaches.weight], allow_unused=True)
        assert gradients[0] is not None
        assert gradients[1] is None


def test_alignment_is_zero_at_first_and_then_shared_by_code() -> None:
    with_mba, without = make("saviorrec", alignment_shrinkage=0, alignment_rate=1), make("saviorrec", alignment=False)
    assert isinstance(with_mba, SaviorRec)
    without.load_state_dict(with_mba.state_dict(), strict=False)
    batch = WORLD.batch(64)
    assert torch.equal(with_mba(batch).logits_BH, without(batch).logits_BH)
    assert with_mba.semantics.alignment is not None
    rows = torch.arange(WORLD.spec.num_items + 1)
    with torch.no_grad():
        with_mba.semantics.alignment.codebooks[0].weight[2] = 1.0
    drift = with_mba.semantics.aligned(with_mba.catalogue, rows) - with_mba.catalogue.vector_ND
    shared = with_mba.catalogue.codes_NS[:, 0] == 2
    torch.testing.assert_close(drift[shared], torch.ones_like(drift[shared]))
    assert (drift[~shared] == 0).all()


def test_bidirectional_attention_crosses_the_spaces() -> None:
    ranker = make("saviorrec")
    assert isinstance(ranker, SaviorRec)
    batch = WORLD.batch(64)
    output, mask = ranker(batch), batch.history_BL > 0
    z, e = ranker.catalogue.vector_ND, ranker.individual.items.ids.weight[ranker.catalogue.item_id_N]
    scale_a, scale_b = ranker.semantics.semantic_to_behaviour.log_scale.exp(), ranker.semantics.behaviour_to_semantic.log_scale.exp()  # type: ignore[union-attr]
    for weights, vectors, scale in ((output.semantic_attention_BL, z, scale_a), (output.behaviour_attention_BL, e, scale_b)):
        assert weights is not None
        scores = torch.einsum("bld,bd->bl", vectors[batch.history_BL], vectors[batch.item_row_B]) * scale
        filled = mask.any(1)
        torch.testing.assert_close(weights[filled], torch.softmax(scores.masked_fill(~mask, -math.inf), 1)[filled])
        assert (weights[~filled] == 0).all()


def test_frozen_vectors_and_catalogue_are_not_trained() -> None:
    ranker = make("saviorrec")
    assert not any(key.startswith("catalogue") for key, _ in ranker.named_parameters())


@pytest.mark.parametrize("name", RANKERS)
def test_save_and_load_give_the_same_scores(name: str, tmp_path: Path) -> None:
    ranker = make(name)
    batch = WORLD.batch(32)
    ranker.fit_statistics(batch)
    save_ranker(tmp_path, ranker, step=3, metrics=[{"epoch": 1, "auc": math.nan}])
    save_vocabulary(tmp_path, ["a"], ["p", "q"])
    random_state = torch.get_rng_state()
    loaded = load_ranker(tmp_path)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(predict_rows(loaded, batch).logits_BH, predict_rows(ranker, batch, rows_per_step=32).logits_BH)
    assert load_vocabulary(tmp_path) == (["a"], ["p", "q"])
    first = loaded.catalogue.add_spare_rows(2)
    spare = Batch(**{**vars(batch), "item_row_B": torch.full_like(batch.item_row_B, first)})
    assert torch.isfinite(loaded(spare).logits_BH).all()
    with pytest.raises(ValueError, match="no checkpoint"):
        load_ranker(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in RANKERS),
        ("saviorrec", {"similarity": "tiers", "content_gate": True}),
        ("saviorrec", {"similarity": "kernels"}),
        ("duet", {"similarity": "kernels", "group_semantics": False}),
        ("choirrec", {"group_sequence": False}),
    ],
)
def test_one_owner_s_features_seen_in_every_row_score_like_copies_of_them(name: str, settings: dict[str, Any]) -> None:
    ranker = make(name, **settings)
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)  # what starts at zero must count
    many = Batch.from_table(WORLD.rows(200, seed=3), WORLD.spec)
    ranker.fit_statistics(many)
    of_items = ("item_row_B", "cross_stats_BX", "match_stats_BM", "item_stats_BI", "collaborative_stats_BF", "peer_stats_BP", "outcome_B", "conversion_B")
    for owner in (0, int((many.history_BL == 0).sum(1).argmax())):
        seen = {f.name: getattr(many, f.name)[owner : owner + 1].expand_as(getattr(many, f.name)) for f in fields(Batch) if f.name not in of_items}
        shared = replace(many, **seen)
        copied = replace(many, **{key: value.contiguous() for key, value in seen.items()})
        assert shared.one_owner
        assert not copied.one_owner
        assert shared.rows(slice(3, 60)).one_owner
        got, expected = predict_rows(ranker, shared, 64), predict_rows(ranker, copied, 64)
        for field in fields(RankerOutput):
            value = getattr(expected, field.name)
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(getattr(got, field.name), value, rtol=1e-5, atol=1e-6, msg=field.name)
    assert expected.logits_BH.std() > 0.01, "the rows differ"


def test_distinct_rows_of_one_owner_cost_nothing_of_the_catalogue_s_size() -> None:
    sequence = torch.tensor([[3, 9, 9, 0]]).expand(5, 4)
    distinct = DistinctRows.of([sequence])
    assert distinct.rows_R.tolist() == [0, 3, 9]
    assert distinct.place(sequence[0]).tolist() == [1, 2, 2, 0]
