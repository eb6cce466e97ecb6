"""ChoirRec (arXiv 2510.09393): a group channel beside the individual one, for users with few signals of their own.

Top to bottom in the paper's order: group-aware hierarchical representation, the two channels, asymmetric injection, adaptive fusion, gated distillation.

Letters: B rows, H heads, D item width, S code stages, G group history length, A attributes, U user statistics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from longtail.rankers.base import IndividualSide, IndividualView
from longtail.rankers.batch import Batch, concatenated, once
from longtail.rankers.catalogue import Catalogue
from longtail.rankers.heads import head_labels, head_losses
from longtail.rankers.layers import EMBEDDING_STD, AttributeEmbedding, Normaliser, TargetAttention, Tower
from longtail.rankers.ranker import Ranker, RankerOutput
from longtail.rankers.sequences import ItemSequence, SmallTable
from longtail.rankers.settings import ChoirRecSettings
from longtail.samples import FeatureSpec

TRUNK_DIM = 16


class GroupIdFusion(nn.Module):
    """Hierarchical group-ID fusion: f1 = E1[c1], fs = tanh(W [f(s-1); Es[cs]]), all prefixes concatenated, an MLP."""

    def __init__(self, code_sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(_code_table(size, dim) for size in code_sizes)
        self.prefix = nn.Linear(2 * dim, dim, bias=False) if len(code_sizes) > 1 else None
        self.mlp = nn.Sequential(nn.Linear(len(code_sizes) * dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, codes_BS: torch.Tensor) -> torch.Tensor:
        """Group vectors [B, dim] from codes plus one, 0 where there is no group."""
        fused = [self.tables[0](codes_BS[:, 0])]
        for stage, table in enumerate(list(self.tables)[1:], start=1):
            assert self.prefix is not None
            fused.append(torch.tanh(self.prefix(torch.cat([fused[-1], table(codes_BS[:, stage])], dim=1))))
        vectors: torch.Tensor = self.mlp(torch.cat(fused, dim=1))
        return vectors


class GroupSide(nn.Module):
    """The group channel's features: fused group ID, completed attributes and group statistics, group sequence, the item.

    Departs from ChoirRec (group behaviour sequence): attention starts from the logarithm of each item's share in the group's purchases, which the paper
    does not name; and the sequence's order by mean time reaches no parameter, since means over a group lie close together.
    """

    def __init__(self, spec: FeatureSpec, item_dim: int, settings: ChoirRecSettings) -> None:
        super().__init__()
        self.out_dim = item_dim + (len(spec.item_stats) if settings.own_counts else 0)
        self.own_counts = settings.own_counts
        self.ids = GroupIdFusion(spec.code_sizes, settings.group_dim) if settings.group_id_fusion else None
        if self.ids is not None:
            self.out_dim += settings.group_dim
        self.attributes = AttributeEmbedding(spec.attribute_sizes, settings.attribute_dim) if settings.attribute_completion else None
        self.stats = Normaliser(len(spec.user_stats)) if settings.attribute_completion else None
        if self.attributes is not None:
            self.out_dim += self.attributes.dim + len(spec.user_stats)
        self.peer_stats = Normaliser(len(spec.peer_stats)) if settings.group_peer_stats and spec.peer_stats else None
        if self.peer_stats is not None:
            self.out_dim += len(spec.peer_stats)
        self.attention = TargetAttention(item_dim, settings.attention_dims, recency=False) if settings.group_sequence else None
        if self.attention is not None:
            self.out_dim += item_dim

    def fit_statistics(self, batch: Batch) -> None:
        if self.stats is not None:
            self.stats.fit(batch.group_stats_BU)
        if self.peer_stats is not None:
            self.peer_stats.fit(batch.peer_stats_BP)

    def forward(self, view: IndividualView, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Concatenated features, and the attention over the group's sequence [B, G]; the item's vectors are those of the individual side."""
        parts = [view.target_BD, *([view.item_stats_BI] if self.own_counts else [])]
        if self.ids is not None:
            parts.append(self.ids(once(batch.user_codes_BS)))
        if self.attributes is not None and self.stats is not None:
            parts += [self.attributes(once(batch.completed_BA)), self.stats(once(batch.group_stats_BU))]
        if self.peer_stats is not None:
            parts.append(self.peer_stats(batch.peer_stats_BP))
        attention_BG = None
        if self.attention is not None:
            sequence = ItemSequence.written(view.distinct, view.items_RD, batch.group_history_BG)
            pooled_BD, attention_BG = self.attention(view.target_BD, sequence, prior_BL=batch.group_weight_BG)
            parts.append(pooled_BD)
        return concatenated(parts, len(batch)), attention_BG


class ReliabilityTrunk(nn.Module):
    """How far a user's own signals can be trusted: one trunk on activity, a sigmoid head for alpha_fusion and one for alpha_distill."""

    def __init__(self, low_activity_purchases: float, num_heads: int, num_evidence: int = 0) -> None:
        super().__init__()
        self.low_activity_purchases = low_activity_purchases
        self.trunk = nn.Linear(4 + num_evidence, TRUNK_DIM)
        self.heads = nn.Linear(TRUNK_DIM, num_heads)

    def forward(self, activity_B3: torch.Tensor, evidence_BV: torch.Tensor | None = None) -> torch.Tensor:
        """Gates [B, num_heads] in (0, 1) from raw purchases, clicks and active days, and further evidence."""
        low_B1 = (activity_B3[:, :1] < self.low_activity_purchases).float()
        seen = [torch.log1p(activity_B3), low_B1, *([evidence_BV] if evidence_BV is not None else [])]
        return torch.sigmoid(self.heads(torch.relu(self.trunk(torch.cat(seen, dim=1)))))


@dataclass(frozen=True)
class Channels:
    """What goes into the two towers, and the attention weights that a ranker can show."""

    individual_BF: torch.Tensor
    group_BF: torch.Tensor
    shown: Mapping[str, torch.Tensor | None]


class ChoirRec(Ranker):
    """Two channels; information flows from the group to the individual, and back only through gated distillation."""

    name: ClassVar[str] = "choirrec"
    settings: ChoirRecSettings

    def __init__(self, spec: FeatureSpec, catalogue: Catalogue, settings: ChoirRecSettings, beside: tuple[int, int] = (0, 0)) -> None:
        """`beside`: widths that a ranker made of this one puts beside the individual's and the group's features."""
        super().__init__(spec, catalogue, settings)
        dims = settings.hidden_dims
        if settings.injection and len(dims) < 2:
            raise ValueError(
                f"rankers.{self.name}.hidden_dims = {list(dims)}: injection adds to a layer after the first, so there must be two. "
                "Add a layer, or set injection = false."
            )
        self.individual = IndividualSide(spec, catalogue, settings)
        self.group = GroupSide(spec, self.individual.items.dim, settings)
        self.individual_tower = Tower(self.individual.out_dim + beside[0], dims, settings.dropout)
        self.group_tower = Tower(self.group.out_dim + beside[1], dims, settings.dropout)
        self.individual_out = nn.Linear(dims[-1], len(self.heads))
        self.group_out = nn.Linear(dims[-1], len(self.heads))
        self.inject_at = len(dims) // 2
        self.fusion_tower = (
            nn.Sequential(nn.Linear(2 * dims[0], dims[self.inject_at]), nn.ReLU(), nn.Linear(dims[self.inject_at], dims[self.inject_at]))
            if settings.injection
            else None
        )
        num_gates = int(settings.adaptive_fusion) + int(settings.distillation)
        num_evidence = 1 + 2 * len(self.heads) if settings.gate_evidence else 0
        self.reliability = ReliabilityTrunk(settings.low_activity_purchases, num_gates, num_evidence) if num_gates else None
        self.support_place = spec.peer_stats.index("peer_support") if "peer_support" in spec.peer_stats else None

    def fit_statistics(self, batch: Batch) -> None:
        self.individual.fit_statistics(batch)
        self.group.fit_statistics(batch)

    def forward(self, batch: Batch, hidden_B2: torch.Tensor | None = None) -> RankerOutput:
        channels = self.channels(batch, hidden_B2)
        support_B1 = self._support(batch)
        first_group = self.group_tower.first(channels.group_BF)
        z_group_BH = self.group_out(self.group_tower.rest(first_group))

        first_own = self.individual_tower.first(channels.individual_BF)
        # Detached: the individual channel's errors must not bend the group's representation towards single users.
        injected = self.fusion_tower(torch.cat([first_own, first_group.detach()], dim=1)) if self.fusion_tower is not None else None
        if injected is not None and self.settings.support_gate:
            injected = injected * (support_B1 > 0)
        z_individual_BH = self.individual_out(self.individual_tower.rest(first_own, injected, self.inject_at))

        alpha_fusion_B, alpha_distill_B = self._gates(batch, support_B1, z_individual_BH, z_group_BH)
        share_B1 = alpha_fusion_B.unsqueeze(1)
        return RankerOutput(
            (1 - share_B1) * z_individual_BH + share_B1 * z_group_BH,
            self.heads,
            **channels.shown,
            z_individual_BH=z_individual_BH,
            z_group_BH=z_group_BH,
            alpha_fusion_B=alpha_fusion_B,
            alpha_distill_B=alpha_distill_B,
        )

    def channels(self, batch: Batch, hidden_B2: torch.Tensor | None) -> Channels:
        """Both channels' features."""
        view = self.individual(self.catalogue, batch, hidden_B2, [batch.group_history_BG] if self.settings.group_sequence else [])
        group_BF, group_attention_BG = self.group(view, batch)
        return Channels(view.x_BF, group_BF, {"attention_BL": view.attention_BL, "group_attention_BG": group_attention_BG})

    def _support(self, batch: Batch) -> torch.Tensor:
        """How much is lent to each user [B, 1]: log1p of the peers that count, or, without peers, whether the user has a group."""
        if self.support_place is not None:
            return batch.peer_stats_BP[:, self.support_place].unsqueeze(1)
        return (batch.user_codes_BS[:, :1] > 0).float()

    def _gates(
        self, batch: Batch, support_B1: torch.Tensor, z_individual_BH: torch.Tensor, z_group_BH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """alpha_fusion [B], one half where adaptive fusion is off, and alpha_distill [B], None where distillation is off."""
        evidence_BV = None
        if self.settings.gate_evidence:  # detached: a channel must not learn to look sure
            evidence_BV = torch.cat([support_B1, torch.tanh(z_individual_BH.detach().abs()), torch.tanh(z_group_BH.detach().abs())], dim=1)
        activity_B3 = once(batch.activity_B3) if evidence_BV is None else batch.activity_B3
        gates = self.reliability(activity_B3, evidence_BV).expand(len(batch), -1) if self.reliability is not None else None
        fusion_B = gates[:, 0] if gates is not None and self.settings.adaptive_fusion else torch.full_like(batch.activity_B3[:, 0], 0.5)
        if self.settings.support_gate:
            fusion_B = fusion_B * (support_B1[:, 0] > 0)
        return fusion_B, gates[:, -1] if gates is not None and self.settings.distillation else None

    def loss(self, batch: Batch, output: RankerOutput) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """BCE of the fused logits plus lambda times the gated distillation; sums over rows."""
        loss, parts = super().loss(batch, output)
        if self.settings.channel_loss_weight:
            assert output.z_individual_BH is not None
            assert output.z_group_BH is not None
            channels = head_losses(output.z_individual_BH, batch, self.heads).sum() + head_losses(output.z_group_BH, batch, self.heads).sum()
            loss, parts = loss + self.settings.channel_loss_weight * channels, {**parts, "channels": channels.detach()}
        if not self.settings.distillation:
            return loss, parts
        distillation = self.distillation(batch, output)
        return loss + self.settings.distill_weight * distillation, {**parts, "distillation": distillation.detach()}

    def distillation(self, batch: Batch, output: RankerOutput) -> torch.Tensor:
        """Sum of g * alpha_distill * max(0, |p_student - p_teacher| - margin)^2 over labelled rows and heads, in probabilities.

        As published, alpha_distill gets its only gradient from the term that it scales, so it can learn to switch that term off; its mean is among the
        metrics of every epoch, and distill_gate = "normalised" is the remedy (its mean is taken over this worker's rows
        of the batch). The hard gate looks at the individual channel's confidence whichever channel teaches.
        """
        assert output.z_individual_BH is not None
        assert output.z_group_BH is not None
        assert output.alpha_distill_B is not None
        own_BH, group_BH = torch.sigmoid(output.z_individual_BH), torch.sigmoid(output.z_group_BH)
        teacher_BH, student_BH = (own_BH, group_BH) if self.settings.distill_teacher == "individual" else (group_BH, own_BH)
        gap_BH = torch.relu((student_BH - teacher_BH.detach()).abs() - self.settings.distill_margin)
        gate_BH = hard_gate(own_BH, batch.activity_B3[:, 0], self.settings.min_purchases, self.settings.min_confidence)
        _, known_BH = head_labels(batch, self.heads)
        open_BH, alpha_B1 = gate_BH * known_BH, output.alpha_distill_B.unsqueeze(1)
        if self.settings.distill_gate == "normalised":
            # The mean over the rows that are distilled is one: it can move weight from row to row, and not make the term smaller.
            alpha_B1 = alpha_B1 * open_BH.sum() / (open_BH * alpha_B1).sum().clamp(min=1e-6)
        return (open_BH * alpha_B1 * gap_BH**2).sum()


def hard_gate(own_BH: torch.Tensor, purchases_B: torch.Tensor, min_purchases: float, min_confidence: float) -> torch.Tensor:
    """1 where the user has purchases >= theta_act and the individual channel's probability is more than theta_conf from one half, [B, H]."""
    active_B1 = (purchases_B >= min_purchases).unsqueeze(1)
    return (active_B1 & ((own_BH.detach() - 0.5).abs() > min_confidence)).float()


def _code_table(size: int, dim: int) -> SmallTable:
    """Embeddings of codes plus one; row 0 (no group) starts at zero and is trained."""
    table = SmallTable(size + 1, dim)
    with torch.no_grad():
        table.weight.normal_(std=EMBEDDING_STD)
        table.weight[0] = 0
    return table
