"""SaviorRec (arXiv 2508.01375): frozen semantic vectors, aligned with behaviour through shared codes, for items with few events.

Top to bottom in the paper's order: MBA (modal-behaviour alignment), bi-directional target attention, the ranker.

Letters: B rows, H heads, L history length, D semantic width, I item width, S code stages.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from longtail.rankers.base import IndividualSide
from longtail.rankers.batch import Batch
from longtail.rankers.catalogue import Catalogue
from longtail.rankers.kernels import SimilarityKernels
from longtail.rankers.layers import Tower, masked_softmax
from longtail.rankers.ranker import Ranker, RankerOutput
from longtail.rankers.settings import SaviorRecSettings
from longtail.samples import FeatureSpec

SEMANTIC_SCALE = 10.0  # scores of unit vectors lie in [-1, 1]: without a temperature their softmax starts near uniform


class Alignment(nn.Module):
    """MBA: learnable codebooks A^l, zero at first, that carry the drift of behaviour to every item that shares a code."""

    def __init__(self, code_sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.codebooks = nn.ModuleList(_zero_table(size, dim) for size in code_sizes)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Sum over the stages of A^l[c^l], [.., D], from codes plus one [.., S]; 0 (no code) adds nothing."""
        return torch.stack([codebook(codes[..., stage]) for stage, codebook in enumerate(self.codebooks)]).sum(dim=0)


class CrossAttention(nn.Module):
    """One direction of the bi-directional target attention: scores from one space pool the history's vectors in the other."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log())  # the inverse of a learned temperature

    def forward(self, target_BK: torch.Tensor, history_BLK: torch.Tensor, values_BLV: torch.Tensor, mask_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled values [B, V] and weights [B, L] of softmax(scale * target . history)."""
        scores_BL = torch.bmm(history_BLK, target_BK.unsqueeze(2)).squeeze(2) * self.log_scale.exp()
        weights_BL = masked_softmax(scores_BL, mask_BL)
        return torch.bmm(weights_BL.unsqueeze(1), values_BLV).squeeze(1), weights_BL


class SaviorRec(Ranker):
    """Base features, the aligned semantic vector, and histories pooled across the two spaces."""

    name: ClassVar[str] = "saviorrec"
    settings: SaviorRecSettings

    def __init__(self, spec: FeatureSpec, catalogue: Catalogue, settings: SaviorRecSettings) -> None:
        super().__init__(spec, catalogue, settings)
        branches = settings.semantic_to_behaviour or settings.behaviour_to_semantic or settings.similarity_kernels
        self.semantic = settings.semantic_vector or settings.alignment
        if branches and not self.semantic:
            raise ValueError(
                "rankers.saviorrec: semantic_vector = false and alignment = false leave no semantic space, and the attention between the spaces needs one. "
                "Set semantic_to_behaviour = false and behaviour_to_semantic = false too, or keep one of the first two."
            )
        dim = catalogue.sizes.vector_dim
        self.individual = IndividualSide(spec, catalogue, settings)
        self.alignment = Alignment(catalogue.sizes.codes, dim) if settings.alignment else None
        self.semantic_to_behaviour = CrossAttention(SEMANTIC_SCALE) if settings.semantic_to_behaviour else None
        self.behaviour_to_semantic = CrossAttention(1.0) if settings.behaviour_to_semantic else None
        self.kernels = SimilarityKernels() if settings.similarity_kernels else None
        self.project = nn.Linear(dim, settings.semantic_dim) if self.semantic else None
        in_dim = self.individual.out_dim + settings.semantic_dim * (int(self.semantic) + int(settings.behaviour_to_semantic))
        in_dim += settings.id_dim * int(settings.semantic_to_behaviour) + (self.kernels.out_dim if self.kernels is not None else 0)
        self.tower = Tower(in_dim, settings.hidden_dims, settings.dropout)
        self.out = nn.Linear(self.tower.out_dim, len(self.heads))

    def fit_statistics(self, batch: Batch) -> None:
        self.individual.fit_statistics(batch)
        if self.kernels is not None:
            with torch.no_grad():
                target_BD, history_BLD = self.aligned(batch.item_row_B), self.aligned(batch.history_BL)
                self.kernels.fit(_similarities(target_BD, history_BLD), batch.history_days_BL, batch.history_BL > 0)

    def aligned(self, rows: torch.Tensor) -> torch.Tensor:
        """z~ = z + sum of A^l[c^l] of item rows, [.., D]; the codes' part alone where the frozen vector is switched off."""
        catalogue = self.catalogue
        drift: torch.Tensor | None = self.alignment(catalogue.codes_NS[rows]) if self.alignment is not None else None
        if not self.settings.semantic_vector:
            assert drift is not None
            return drift
        vectors = catalogue.vector_ND[rows]
        return vectors if drift is None else vectors + drift

    def forward(self, batch: Batch, hidden_B2: torch.Tensor | None = None) -> RankerOutput:
        view = self.individual(self.catalogue, batch, hidden_B2)
        parts = [view.x_BF]
        semantic_BL = behaviour_BL = None
        if self.project is not None:
            target_BD = self.aligned(batch.item_row_B)
            parts.append(self.project(target_BD))
            # The ID part of an item's vector comes first. Padding the target with zeros instead of slicing the history keeps [B, L, ..] in one piece.
            id_dim = self.settings.id_dim
            target_id_BI = functional.pad(view.target_BD[:, :id_dim], (0, view.target_BD.shape[1] - id_dim))
            mask_BL, items_BLI = view.history_mask_BL, view.history_BLD
            if self.semantic_to_behaviour is not None or self.behaviour_to_semantic is not None or self.kernels is not None:
                history_BLD = view.distinct.spread(self.aligned(view.distinct.rows_R), batch.history_BL)
            if self.kernels is not None:
                parts.append(self.kernels(_similarities(target_BD, history_BLD), batch.history_days_BL, mask_BL))
            if self.semantic_to_behaviour is not None:
                pooled_BI, semantic_BL = self.semantic_to_behaviour(target_BD, history_BLD, items_BLI, mask_BL)
                parts.append(pooled_BI[:, :id_dim])
            if self.behaviour_to_semantic is not None:
                pooled_BD, behaviour_BL = self.behaviour_to_semantic(target_id_BI, items_BLI, history_BLD, mask_BL)
                parts.append(self.project(pooled_BD))
        return RankerOutput(
            self.out(self.tower(torch.cat(parts, dim=1))),
            self.heads,
            attention_BL=view.attention_BL,
            semantic_attention_BL=semantic_BL,
            behaviour_attention_BL=behaviour_BL,
        )


def _similarities(target_BD: torch.Tensor, history_BLD: torch.Tensor) -> torch.Tensor:
    """Cosines of aligned vectors [B, L]; what the alignment adds makes them longer or shorter than one."""
    target, history = functional.normalize(target_BD, dim=1), functional.normalize(history_BLD, dim=2)
    return torch.bmm(history, target.unsqueeze(2)).squeeze(2)


def _zero_table(num: int, dim: int) -> nn.Embedding:
    table = nn.Embedding(num, dim, padding_idx=0)
    nn.init.zeros_(table.weight)
    return table
