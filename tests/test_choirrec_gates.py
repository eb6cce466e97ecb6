"""ChoirRec's further switches, each of them ours: gates that see support, calibrated channels, a distillation that cannot silence itself."""

from dataclasses import replace
from typing import Any

import torch

from longtail.rankers.batch import Batch
from longtail.rankers.choirrec import ChoirRec
from longtail.rankers.factory import build_ranker
from longtail.rankers.ranker import RankerOutput
from longtail.rankers.settings import ChoirRecSettings, RankersSettings
from tests.ranker_data import World, spec_of

WORLD = World.of(spec_of())


def make(**switches: Any) -> ChoirRec:
    torch.manual_seed(1)
    ranker = build_ranker("choirrec", WORLD.spec, WORLD.catalogue(), RankersSettings(choirrec=ChoirRecSettings(heads=("outcome",), **switches)))
    assert isinstance(ranker, ChoirRec)
    return ranker


def some_without_group(num: int) -> Batch:
    """The first half of the rows are of users to whom nobody lends."""
    batch = WORLD.batch(num)
    codes = batch.user_codes_BS.clone()
    codes[: num // 2] = 0
    return replace(batch, user_codes_BS=codes)


def test_where_nobody_lends_the_individual_channel_stands_alone() -> None:
    gated, batch = make(support_gate=True), some_without_group(64)
    before = gated(batch)
    assert before.alpha_fusion_B is not None
    assert (before.alpha_fusion_B[:32] == 0).all()
    assert (before.alpha_fusion_B[32:] > 0).all()
    with torch.no_grad():
        for layer in gated.group_tower.layers:
            layer.weight.mul_(3.0)  # type: ignore[operator]
    after = gated(batch)
    assert torch.equal(after.logits_BH[:32], before.logits_BH[:32])
    assert not torch.allclose(after.logits_BH[32:], before.logits_BH[32:])
    ungated = make()
    ungated.load_state_dict(gated.state_dict())
    assert not torch.allclose(ungated(batch).logits_BH[:32], after.logits_BH[:32])


def test_gates_see_how_sure_the_channels_are_without_teaching_them_to_look_sure() -> None:
    ranker, batch = make(gate_evidence=True, injection=False), WORLD.batch(64)
    assert ranker.reliability is not None
    assert ranker.reliability.trunk.in_features == 4 + 1 + 2
    before = ranker(batch).alpha_fusion_B
    with torch.no_grad():
        ranker.individual_out.bias.add_(5.0)
    after = ranker(batch).alpha_fusion_B
    assert before is not None
    assert after is not None
    assert not torch.allclose(before, after)
    gradients = torch.autograd.grad(after.sum(), [ranker.individual_out.bias, ranker.group_out.bias], allow_unused=True)
    assert gradients == (None, None)


def test_each_channel_learns_from_its_own_loss() -> None:
    batch = WORLD.batch(128)
    plain, calibrated = make(distillation=False), make(distillation=False, channel_loss_weight=0.5)
    output = calibrated(batch)
    loss, parts = calibrated.loss(batch, output)
    torch.testing.assert_close(loss.detach(), parts["outcome"] + 0.5 * parts["channels"])
    assert "channels" not in plain.loss(batch, plain(batch))[1]


def test_a_normalised_distillation_cannot_be_made_smaller_by_its_own_gate() -> None:
    batch = WORLD.batch(256)
    switches: dict[str, Any] = {"distill_margin": 0.0, "min_confidence": 0.0, "min_purchases": 0.0}
    own, group = torch.full((256, 1), 2.0), torch.zeros(256, 1)

    def term(ranker: ChoirRec, alpha_B: torch.Tensor) -> float:
        output = RankerOutput(own, ("outcome",), z_individual_BH=own, z_group_BH=group, alpha_distill_B=alpha_B)
        return float(ranker.distillation(batch, output))

    learned, normalised = make(**switches), make(**switches, distill_gate="normalised")
    half, tenth = torch.full((256,), 0.5), torch.full((256,), 0.05)
    assert term(learned, tenth) < 0.2 * term(learned, half)
    assert abs(term(normalised, tenth) - term(normalised, half)) < 1e-3
    # It still tells rows apart: all weight on the rows without a gap makes the term vanish.
    group[:128] = own[:128]
    uneven = torch.cat([torch.full((128,), 0.9), torch.full((128,), 0.0001)])
    assert term(normalised, uneven) < 0.01 * term(normalised, half)
