"""SaviorRec's parts that are ours, by hand: match counts, similarity tiers, the gate between content and ID, alignment by support."""

from typing import Any

import numpy as np
import pytest
import torch

from longtail.rankers.base import IndividualSide
from longtail.rankers.saviorrec import SaviorRec
from longtail.rankers.semantics import GATE_ROWS, TIER_QUANTILES, Alignment, ContentGate, SimilarityTiers
from longtail.rankers.settings import BaseSettings, SaviorRecSettings
from tests.ranker_data import World, spec_of

WORLD = World.of(spec_of())


def test_match_counts_choose_among_the_user_by_item_statistics() -> None:
    spec = spec_of().model_copy(update={"cross_stats": ("log_same_item", "log_same_leaf", "leaf_share", "price_gap")})
    seen, counts_codes = {}, {}
    for counted in ("none", "categories", "codes"):
        side = IndividualSide(spec, WORLD.catalogue(), BaseSettings(match_counts=counted))
        seen[counted], counts_codes[counted] = [spec.cross_stats[place] for place in side.cross_places], side.match_stats is not None
    assert seen["none"] == ["log_same_item", "price_gap"]
    assert seen["categories"] == seen["codes"] == list(spec.cross_stats)
    assert counts_codes == {"none": False, "categories": False, "codes": True}


def test_a_tie_that_rounding_would_decide_is_one() -> None:
    tiers = SimilarityTiers()
    tiers.threshold_T.fill_(1.0)
    got = tiers._raw(torch.tensor([[1 - 1e-7, 1 - 1e-3]]), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(got[0, :7], torch.ones(7).log1p())


def test_what_is_pooled_narrow_is_what_would_be_projected_after() -> None:
    """Branch (b) with its bias, an empty history too."""
    torch.manual_seed(5)
    ranker, batch = SaviorRec(WORLD.spec, WORLD.catalogue(), SaviorRecSettings(similarity="none")), WORLD.batch(40)
    batch.history_BL[0] = 0
    ranker.fit_statistics(batch)
    semantics = ranker.semantics
    view = ranker.individual(ranker.catalogue, batch, None)
    found = semantics(semantics.space(ranker.catalogue, view.distinct, batch), view, batch)
    assert semantics.project is not None
    assert found.behaviour_attention_BL is not None
    history_BLD = semantics.aligned(ranker.catalogue, batch.history_BL.reshape(-1)).reshape(*batch.history_BL.shape, -1)
    slow = semantics.project(torch.bmm(found.behaviour_attention_BL.unsqueeze(1), history_BLD).squeeze(1))
    torch.testing.assert_close(found.x_BF[:, -slow.shape[1] :], slow)


def test_similarity_tiers_count_what_lies_above_their_thresholds() -> None:
    tiers = SimilarityTiers()
    tiers.threshold_T.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9]))
    scores, worth = torch.tensor([[0.95, 0.45, 0.99], [0.0, 0.0, 0.0]]), torch.tensor([[0.5, 1.0, 1.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    got = tiers._raw(scores, worth, mask)
    torch.testing.assert_close(got[0, :7], torch.tensor([2.0, 2, 2, 2, 1, 1, 1]).log1p())
    torch.testing.assert_close(got[0, 7:14], torch.tensor([1.0, 1, 1, 1, 0.5, 0.5, 0.5]))
    torch.testing.assert_close(got[0, 14:], torch.tensor([0.95, 0.7]))
    assert got[1].count_nonzero() == 0, "an empty history has no similar item"


def test_tier_thresholds_are_quantiles_of_what_is_there() -> None:
    tiers = SimilarityTiers()
    scores = torch.rand(400, 10, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(10) < 5
    tiers.fit(scores, torch.zeros(400, 10), mask.expand(400, 10))
    torch.testing.assert_close(tiers.threshold_T, torch.tensor(TIER_QUANTILES), atol=0.03, rtol=0)


def test_an_item_without_rows_is_its_content_and_one_with_many_its_id() -> None:
    gate = ContentGate(8, 4)
    share = gate.content_share(torch.tensor([0.0, 1.0, GATE_ROWS - 1, 1e4])).detach()
    assert share[0] == 1
    assert share[2] == pytest.approx(0.5, abs=1e-6)
    assert (share.diff() < 0).all()
    assert share[3] < 0.01
    vectors, content = torch.rand(4, 6), torch.rand(4, 8)
    mixed = gate(vectors, content, torch.tensor([0.0, 1.0, 10.0, 1e9])).detach()
    torch.testing.assert_close(mixed[0, :4], gate.project(content)[0])
    torch.testing.assert_close(mixed[3], vectors[3], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[:, 4:], vectors[:, 4:])


def test_alignment_shrinks_codes_by_their_training_rows_and_its_rate() -> None:
    catalogue = WORLD.catalogue(cold_from=30)
    plain, shrunk = (Alignment(catalogue, SaviorRecSettings(alignment_shrinkage=kappa, alignment_rate=rate)) for kappa, rate in ((0, 1), (60, 0.5)))
    assert plain.weight_K[plain.offset_S].tolist() == [0.0] * len(plain.offset_S), "no code adds nothing"
    assert plain.weight_K.sum() == len(plain.weight_K) - len(plain.offset_S)
    first = torch.zeros(catalogue.sizes.codes[0]).index_add_(0, catalogue.codes_NS[:, 0], catalogue.rows_N)
    torch.testing.assert_close(shrunk.weight_K[: len(first)], 0.5 * first / (first + 60))
    for one in (plain, shrunk):
        with torch.no_grad():
            one.codebooks[0].weight[1:] = 1.0
    codes = catalogue.codes_NS[1:2]
    torch.testing.assert_close(shrunk(codes), plain(codes) * shrunk.weight_K[codes[0, 0]])
    assert shrunk.squared() < plain.squared()


@pytest.mark.parametrize("switch", ["tiers", "kernels", "content_gate", "alignment_decay", "content_weight", "detached_pooling"])
def test_each_switch_of_ours_trains_and_changes_the_scores(switch: str) -> None:
    given: dict[str, Any] = {"similarity": switch} if switch in ("tiers", "kernels") else {switch: 0.1 if "decay" in switch or "weight" in switch else True}
    given |= {"content_gate": True} if switch == "content_weight" else {}
    batch, losses = WORLD.batch(64), []
    plain: dict[str, Any] = {"content_gate": switch == "content_weight", "similarity": "none" if "similarity" in given else "kernels"}
    torch.manual_seed(3)
    first = SaviorRec(WORLD.spec, WORLD.catalogue(), SaviorRecSettings(**plain))
    for settings in (SaviorRecSettings(**plain), SaviorRecSettings(**given)):
        ranker = SaviorRec(WORLD.spec, WORLD.catalogue(), settings)
        shared = {name: value for name, value in first.state_dict().items() if name in ranker.state_dict() and value.shape == ranker.state_dict()[name].shape}
        ranker.load_state_dict(shared, strict=False)  # else they would differ by their draws
        with torch.no_grad():
            wide = ranker.tower.layers[0].weight
            narrow = first.tower.layers[0].weight
            wide[:, : ranker.individual.out_dim] = narrow[:, : first.individual.out_dim]  # type: ignore[index]
            wide[:, ranker.individual.out_dim :] = 0.01  # type: ignore[index]
        ranker.fit_statistics(batch)
        optimizer = torch.optim.Adam(ranker.parameters(), lr=0.05)
        for _ in range(3):
            loss, _parts = ranker.loss(batch, ranker(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]
