"""Duet: both sides are there, each channel knows items by their semantics, and nothing flows back from the individual to the group."""

import numpy as np
import pytest
import torch

from longtail.rankers.duet import Duet
from longtail.rankers.settings import DuetSettings
from tests.ranker_data import World, spec_of

WORLD = World.of(spec_of())


def make(**settings: object) -> Duet:
    torch.manual_seed(0)
    ranker = Duet(WORLD.spec, WORLD.catalogue(), DuetSettings.model_validate({"hidden_dims": (16, 8), "attention_dims": (8,), "id_dim": 4, **settings}))
    ranker.fit_statistics(WORLD.batch(200))
    return ranker.eval()


def test_it_shows_what_both_sides_show() -> None:
    output = make()(WORLD.batch(16))
    for name in ("attention_BL", "semantic_attention_BL", "behaviour_attention_BL", "z_individual_BH", "z_group_BH", "alpha_fusion_B", "alpha_distill_B"):
        assert getattr(output, name) is not None, name
    share_B1 = output.alpha_fusion_B.unsqueeze(1)
    torch.testing.assert_close(output.logits_BH, (1 - share_B1) * output.z_individual_BH + share_B1 * output.z_group_BH)


def test_both_channels_see_the_items_vectors() -> None:
    ranker, batch = make(similarity="tiers"), WORLD.batch(32)
    before = ranker(batch)
    with torch.no_grad():
        ranker.catalogue.vector_ND.copy_(ranker.catalogue.vector_ND.roll(7, dims=0))
    after = ranker(batch)
    assert not torch.allclose(before.z_individual_BH, after.z_individual_BH)
    assert not torch.allclose(before.z_group_BH, after.z_group_BH)


def test_the_group_channel_reads_the_own_history_s_semantics_only_where_the_settings_say_so() -> None:
    batch = WORLD.batch(32)
    alike = batch.item_row_B.unsqueeze(1).expand_as(batch.history_BL).contiguous()
    changed = type(batch)(**{**vars(batch), "history_BL": alike})
    for reads in (True, False):
        ranker = make(group_semantics=reads)
        assert torch.equal(ranker(batch).z_group_BH, ranker(changed).z_group_BH) != reads


def test_a_group_whose_items_are_like_the_target_shows_in_the_group_channel_alone() -> None:
    ranker, batch = make(similarity="tiers", injection=False), WORLD.batch(32)
    alike = batch.item_row_B.unsqueeze(1).expand_as(batch.group_history_BG).contiguous()
    changed = type(batch)(**{**vars(batch), "group_history_BG": alike})
    before, after = ranker(batch), ranker(changed)
    torch.testing.assert_close(before.z_individual_BH, after.z_individual_BH)
    assert not torch.allclose(before.z_group_BH, after.z_group_BH)


def test_injection_passes_no_gradient_to_the_group_channel() -> None:
    ranker, batch = make(), WORLD.batch(32)
    output = ranker(batch)
    weights = [ranker.group_project.weight, ranker.semantics.project.weight]  # type: ignore[union-attr]
    group, own = torch.autograd.grad(output.z_individual_BH.sum(), weights, allow_unused=True)
    assert group is None
    assert own is not None


def test_penalties_of_the_item_side_and_distillation_of_the_user_side_are_in_the_loss() -> None:
    ranker = make(content_gate=True, content_weight=0.5, alignment_decay=0.1).train()
    batch = WORLD.batch(64)
    loss, parts = ranker.loss(batch, ranker(batch))
    assert {"content", "alignment", "distillation"} <= set(parts)
    heads = sum(float(parts[head]) for head in ranker.heads)
    weighted = float(parts["content"] + parts["alignment"]) + ranker.settings.distill_weight * float(parts["distillation"])
    assert float(loss.detach()) == pytest.approx(heads + weighted, rel=1e-5)


def test_it_learns_a_taste_for_topics_that_only_vectors_show() -> None:
    """Half an epoch of a small world: the loss falls, and further than with the vectors shuffled."""
    losses = {}
    for shuffled in (False, True):
        torch.manual_seed(1)
        catalogue = WORLD.catalogue(cold_from=2)
        if shuffled:
            catalogue.vector_ND[1:] = catalogue.vector_ND[1:][torch.randperm(WORLD.spec.num_items)]
        ranker = Duet(WORLD.spec, catalogue, DuetSettings(similarity="tiers", alignment=False, heads=("outcome",)))
        batch = WORLD.batch(2000)
        ranker.fit_statistics(batch)
        optimizer = torch.optim.Adam(ranker.parameters(), lr=0.01)
        for _ in range(30):
            loss, _ = ranker.loss(batch, ranker(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[shuffled] = loss.item() / len(batch)
    assert np.isfinite(list(losses.values())).all()
    assert losses[False] < losses[True] - 0.02
