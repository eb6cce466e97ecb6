"""Similarity kernels: soft counts by hand, blind to padding and order, and a gradient to what moves the vectors."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from longtail.rankers.factory import build_ranker
from longtail.rankers.kernels import CENTRES, WIDTH, SimilarityKernels
from longtail.rankers.ranker import predict_rows
from longtail.rankers.saviorrec import SaviorRec
from longtail.rankers.sequences import DistinctRows
from longtail.rankers.settings import DuetSettings, RankersSettings, SaviorRecSettings
from tests.ranker_data import World, spec_of

WORLD = World.of(spec_of())


def make(**settings: Any) -> SaviorRec:
    torch.manual_seed(0)
    rankers = RankersSettings.model_validate({"saviorrec": {"heads": ("outcome",), "hidden_dims": (16,), "similarity": "kernels", **settings}})
    ranker = build_ranker("saviorrec", WORLD.spec, WORLD.catalogue(), rankers)
    assert isinstance(ranker, SaviorRec)
    return ranker


def test_soft_counts_by_hand() -> None:
    """One item right in a kernel's centre, one a width beside it and worth less, and padding that would count."""
    centre = CENTRES[3]
    scores, worth = torch.tensor([[centre, centre + WIDTH, centre]]), torch.tensor([[1.0, 0.2, 1.0]])
    found = SimilarityKernels()(scores, worth, torch.tensor([[True, True, False]]))[0]
    count = 1 + math.exp(-0.5)
    assert found[3].item() == pytest.approx(math.log1p(count))
    assert found[len(CENTRES) + 3].item() == pytest.approx(math.log1p(1 + math.exp(-0.5) * 0.2))
    assert found[-1].item() == pytest.approx(centre + WIDTH / 2)


def test_an_empty_history_counts_nothing() -> None:
    found = SimilarityKernels()(torch.rand(2, 4), torch.rand(2, 4), torch.zeros(2, 4, dtype=torch.bool))
    assert (found == 0).all()


def test_the_order_of_the_history_does_not_matter() -> None:
    layer, order = SimilarityKernels(), torch.randperm(7)
    scores, days, mask = torch.rand(5, 7), torch.rand(5, 7) * 30, torch.rand(5, 7) < 0.5
    torch.testing.assert_close(layer(scores, days, mask), layer(scores[:, order], days[:, order], mask[:, order]))


def test_codebooks_move_the_kernels_alone() -> None:
    """With both attention branches off and the projection at zero, a code has a gradient, and one that moves changes scores."""
    ranker = make(semantic_to_behaviour=False, behaviour_to_semantic=False)
    batch = WORLD.batch(200)
    ranker.fit_statistics(batch)
    semantics = ranker.semantics
    assert semantics.project is not None
    assert semantics.alignment is not None
    torch.nn.init.zeros_(semantics.project.weight)
    before = predict_rows(ranker, batch).logits_BH
    ranker.loss(batch, ranker(batch))[0].backward()
    assert semantics.alignment.codebooks[0].weight.grad.abs().sum() > 0  # type: ignore[union-attr,operator]
    with torch.no_grad():
        semantics.alignment.codebooks[0].weight[1:].normal_()  # type: ignore[index,operator]
    assert (predict_rows(ranker, batch).logits_BH - before).abs().max() > 1e-4


def test_kernels_need_vectors() -> None:
    for alignment in (True, False):
        with pytest.raises(ValueError, match=r'similarity = "kernels" compares items by their vectors .* set similarity = "none" or "tiers"'):
            make(semantic_vector=False, alignment=alignment, semantic_to_behaviour=False, behaviour_to_semantic=False)


def test_cosines_are_those_of_vectors_of_length_one_and_0_without_a_vector() -> None:
    ranker, batch = make(), WORLD.batch(50)
    assert ranker.semantics.alignment is not None
    with torch.no_grad():
        ranker.semantics.alignment.codebooks[0].weight[1:].normal_()  # type: ignore[index,operator]
        ranker.catalogue.vector_ND[5] = 0
        ranker.catalogue.codes_NS[5] = 0
    batch.history_BL[0, 0] = 5
    space = ranker.semantics.space(ranker.catalogue, DistinctRows.of([batch.history_BL]), batch)
    found = space.cosines(batch.history_BL, space.dots(batch.history_BL))
    vectors, target = (ranker.semantics.aligned(ranker.catalogue, rows) for rows in (batch.history_BL.reshape(-1), batch.item_row_B))
    slow = functional.normalize(vectors.reshape(*batch.history_BL.shape, -1), dim=2) @ functional.normalize(target, dim=1).unsqueeze(2)
    torch.testing.assert_close(found, slow.squeeze(2))
    assert found[0, 0] == 0


def test_they_are_the_default_and_can_be_switched_off() -> None:
    assert SaviorRecSettings().similarity == DuetSettings().similarity == "kernels"
    assert not [name for name in make(similarity="none").state_dict() if "similarity" in name]
