"""The item side of SaviorRec (arXiv 2508.01375), and what is ours beside it: what a ranker knows of items by their frozen vectors and codes.

Top to bottom: MBA (modal-behaviour alignment), similarity tiers (kernels have a room of their own, longtail.rankers.kernels), the gate between ID and content,
bi-directional target attention, all of them together.

Letters: B rows, R distinct items of a batch, L history length, D semantic width, W semantic_dim, I item width, S code stages, K codes of all stages, T tiers.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from longtail.rankers.base import IndividualView
from longtail.rankers.batch import Batch
from longtail.rankers.catalogue import Catalogue
from longtail.rankers.kernels import SimilarityKernels
from longtail.rankers.layers import ItemEmbedding, Normaliser, masked_softmax
from longtail.rankers.sequences import DistinctRows, ItemSequence, summed
from longtail.rankers.settings import SemanticSettings

TIER_QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995)  # of the similarities between training targets and their histories
GATE_ROWS = 20.0  # training rows at which ID and content weigh the same, before the gate has learnt
SAME = 1e-5  # similarities closer than this are a tie: items of one text have products that differ by rounding, which must not decide a count
SEMANTIC_SCALE = 10.0  # scores of unit vectors lie in [-1, 1]: without a temperature their softmax starts near uniform


class Alignment(nn.Module):
    """MBA: learnable codebooks A^l, zero at first, that carry the drift of behaviour to every item that shares a code.

    Departs from SaviorRec where the settings say so: a code that few training rows have moves its items less, and all may learn more slowly.
    """

    weight_K: torch.Tensor  # of each code, stage after stage; 0 of "no code"
    offset_S: torch.Tensor

    def __init__(self, catalogue: Catalogue, settings: SemanticSettings) -> None:
        super().__init__()
        sizes = list(catalogue.sizes.codes)
        self.codebooks = nn.ModuleList(_zero_table(size, catalogue.sizes.vector_dim) for size in sizes)
        offset_S = torch.tensor([sum(sizes[:stage]) for stage in range(len(sizes))])
        support = torch.cat([torch.zeros(size).index_add_(0, codes_N, catalogue.rows_N) for size, codes_N in zip(sizes, catalogue.codes_NS.T)])
        shrunk = support / (support + settings.alignment_shrinkage) if settings.alignment_shrinkage else torch.ones_like(support)
        shrunk[offset_S] = 0.0
        self.register_buffer("weight_K", shrunk.nan_to_num(0.0) * settings.alignment_rate)
        self.register_buffer("offset_S", offset_S, persistent=False)

    def forward(self, codes_RS: torch.Tensor) -> torch.Tensor:
        """Sum over the stages of A^l[c^l], [R, D], from codes plus one [R, S]; 0 (no code) adds nothing and learns nothing."""
        place_RS = codes_RS + self.offset_S
        return summed(self._table(), place_RS, self.weight_K[place_RS])

    def squared(self) -> torch.Tensor:
        """Sum of the squares of what the codes add."""
        return (self._table() * self.weight_K.unsqueeze(1)).square().sum()

    def _table(self) -> torch.Tensor:
        return torch.cat(list(self.parameters()))


class SimilarityTiers(nn.Module):
    """How much of a sequence lies how near to the target, by the frozen vectors: for each tier the count above its threshold and the best among them.

    Ours, after the similarity histograms of Sheng et al. 2024 (SimTier). Nothing of it is learnt from an item's own rows, so a cold item has it from its first
    day. Thresholds are quantiles of the similarities in the first training rows.
    """

    threshold_T: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold_T", torch.zeros(len(TIER_QUANTILES)))
        self.normaliser = Normaliser(self.out_dim)

    @property
    def out_dim(self) -> int:
        return 2 * len(TIER_QUANTILES) + 2

    def fit(self, scores_BL: torch.Tensor, worth_BL: torch.Tensor, mask_BL: torch.Tensor) -> None:
        """Thresholds and normalisation from training rows."""
        scores = scores_BL[mask_BL].sort().values
        if len(scores):
            places = (torch.tensor(TIER_QUANTILES, device=scores.device) * (len(scores) - 1)).long()
            self.threshold_T.copy_(scores[places])
        self.normaliser.fit(self._raw(scores_BL, worth_BL, mask_BL))

    def forward(self, scores_BL: torch.Tensor, worth_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """Counts, best worth, greatest and mean similarity, normalised [B, 2 T + 2]; a place's worth is its recency, or its share in a group's purchases."""
        normalised: torch.Tensor = self.normaliser(self._raw(scores_BL, worth_BL, mask_BL))
        return normalised

    def _raw(self, scores_BL: torch.Tensor, worth_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        above_TBL = (scores_BL.unsqueeze(0) >= self.threshold_T[:, None, None] - SAME) & mask_BL
        counts_BT = above_TBL.sum(dim=2).T.float().log1p()
        best_BT = (above_TBL * worth_BL).amax(dim=2).T
        greatest_B = scores_BL.masked_fill(~mask_BL, 0.0).amax(dim=1)
        mean_B = (scores_BL * mask_BL).sum(dim=1) / mask_BL.sum(dim=1).clamp(min=1)
        return torch.cat([counts_BT, best_BT, torch.stack([greatest_B, mean_B], dim=1)], dim=1)


class ContentGate(nn.Module):
    """An item's ID embedding mixed with its content: content for an item without training rows, the ID's share growing with their number (ours).

    Where ID dropout hides a target's ID, its rows count as none: so the content's path is trained on items of every kind.
    """

    def __init__(self, dim: int, id_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, id_dim)
        self.slope = nn.Parameter(torch.tensor(1.0))
        self.middle = nn.Parameter(torch.tensor(GATE_ROWS).log())

    def content_share(self, rows: torch.Tensor) -> torch.Tensor:
        """Of items by their training rows; 1/2 at the middle, which is learnt from GATE_ROWS on."""
        return torch.where(rows > 0, torch.sigmoid(self.slope * (self.middle - torch.log1p(rows))), 1.0)

    def forward(self, vectors: torch.Tensor, content: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Item vectors [.., I] whose first part, the ID, is mixed with the projection of their content [.., D]."""
        drawn = self.project(content)
        share = self.content_share(rows).unsqueeze(-1)
        id_dim = drawn.shape[-1]
        mixed = (1 - share) * vectors[..., :id_dim] + share * drawn
        return torch.cat([mixed, vectors[..., id_dim:]], dim=-1)


class CrossAttention(nn.Module):
    """One direction of the bi-directional target attention: scores from one space weigh the history for the other."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log())  # the inverse of a learned temperature

    def forward(self, scores_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """Weights [B, L] of softmax(scale * scores)."""
        return masked_softmax(scores_BL * self.log_scale.exp(), mask_BL)


@dataclass(frozen=True)
class SemanticSpace:
    """z~ of a batch's targets and of the distinct items of its sequences."""

    catalogue: Catalogue
    item_row_B: torch.Tensor
    distinct: DistinctRows
    vector_RD: torch.Tensor
    target_BD: torch.Tensor

    def sequence(self, sequence_BL: torch.Tensor) -> ItemSequence:
        """z~ of a sequence's items."""
        return ItemSequence(self.distinct, self.vector_RD, sequence_BL)

    def dots(self, sequence_BL: torch.Tensor) -> torch.Tensor:
        """z~_target . z~ of each item of a sequence, [B, L]."""
        return self.sequence(sequence_BL).dots(self.target_BD)

    def cosines(self, sequence_BL: torch.Tensor, dots_BL: torch.Tensor) -> torch.Tensor:
        """The same of vectors of length one; 0 where there is no vector."""
        length_R1 = torch.linalg.vector_norm(self.vector_RD, dim=1, keepdim=True)
        length_B1 = torch.linalg.vector_norm(self.target_BD, dim=1, keepdim=True)
        length_BL = ItemSequence(self.distinct, length_R1, sequence_BL).spread_BLW.squeeze(2)
        cosines_BL: torch.Tensor = dots_BL / (length_B1 * length_BL).clamp(min=1e-12)
        return cosines_BL

    def frozen_dots(self, sequence_BL: torch.Tensor) -> torch.Tensor:
        """`dots` of z, as nothing has moved it."""
        frozen_ND = self.catalogue.vector_ND
        return ItemSequence(self.distinct, frozen_ND[self.distinct.rows_R], sequence_BL).dots(frozen_ND[self.item_row_B])


@dataclass(frozen=True)
class SemanticView:
    """What the semantic side adds to a batch's features."""

    x_BF: torch.Tensor
    semantic_attention_BL: torch.Tensor | None  # branch (a)
    behaviour_attention_BL: torch.Tensor | None  # branch (b)


class Semantics(nn.Module):
    """The aligned vector, histories pooled across the two spaces, similarity kernels or tiers.

    Raises:
        ValueError: the attention between the spaces is on, and there is no semantic space.
    """

    def __init__(self, name: str, catalogue: Catalogue, settings: SemanticSettings, id_dim: int) -> None:
        super().__init__()
        self.settings, self.id_dim = settings, id_dim
        semantic = settings.semantic_vector or settings.alignment
        needs = settings.semantic_to_behaviour or settings.behaviour_to_semantic or settings.content_gate
        if needs and not semantic:
            raise ValueError(
                f"rankers.{name}: semantic_vector = false and alignment = false leave no semantic space, and the attention between the spaces and the "
                "content gate need one. Switch these off too, or keep one of the first two."
            )
        dim = catalogue.sizes.vector_dim
        self.alignment = Alignment(catalogue, settings) if settings.alignment else None
        self.gate = ContentGate(dim, id_dim) if settings.content_gate else None
        self.similarity = similarity_layer(settings)
        self.semantic_to_behaviour = CrossAttention(SEMANTIC_SCALE) if settings.semantic_to_behaviour else None
        self.behaviour_to_semantic = CrossAttention(1.0) if settings.behaviour_to_semantic else None
        self.project = nn.Linear(dim, settings.semantic_dim) if semantic else None
        self.out_dim = settings.semantic_dim * (int(semantic) + int(settings.behaviour_to_semantic))
        self.out_dim += id_dim * int(settings.semantic_to_behaviour) + (self.similarity.out_dim if self.similarity is not None else 0)

    @torch.no_grad()
    def fit_statistics(self, catalogue: Catalogue, batch: Batch) -> None:
        if self.similarity is not None:
            space = self.space(catalogue, DistinctRows.of([batch.history_BL]), batch)
            self.similarity.fit(*self.near(space, batch.history_BL, recency(batch)))

    def space(self, catalogue: Catalogue, distinct: DistinctRows, batch: Batch) -> SemanticSpace:
        """The batch's items as the semantic side knows them."""
        return SemanticSpace(catalogue, batch.item_row_B, distinct, self.aligned(catalogue, distinct.rows_R), self.aligned(catalogue, batch.item_row_B))

    def near(
        self, space: SemanticSpace, sequence_BL: torch.Tensor, worth_BL: torch.Tensor, dots_BL: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the similarity layer takes: cosines of targets to each item of a sequence, by item rows, the places' worth, and where there is an item.

        `dots_BL` are the space's products with the sequence, where they are there already.
        """
        if self.settings.similarity == "tiers":
            return space.frozen_dots(sequence_BL), worth_BL, sequence_BL > 0
        return space.cosines(sequence_BL, space.dots(sequence_BL) if dots_BL is None else dots_BL), worth_BL, sequence_BL > 0

    def aligned(self, catalogue: Catalogue, rows: torch.Tensor) -> torch.Tensor:
        """z~ = z + sum of A^l[c^l] of item rows [R], [R, D]; the codes' part alone where the frozen vector is switched off; z where there are no codes."""
        if self.alignment is None:
            return catalogue.vector_ND.index_select(0, rows)
        drift: torch.Tensor = self.alignment(catalogue.codes_NS.index_select(0, rows))
        return catalogue.vector_ND.index_select(0, rows) + drift if self.settings.semantic_vector else drift

    def mixed(self, catalogue: Catalogue, vectors: torch.Tensor, rows: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """Items' vectors with their ID part mixed with content, by item rows; where `hidden`, as if they had no training row. As they are without the gate."""
        if self.gate is None:
            return vectors
        trained = catalogue.rows_N[rows]
        known = (rows > 0).unsqueeze(-1)  # padding stays zero
        mixed = self.gate(vectors, self.aligned(catalogue, rows), trained if hidden is None else trained.masked_fill(hidden, 0.0))
        return torch.where(known, mixed, vectors)

    def forward(self, space: SemanticSpace, view: IndividualView, batch: Batch) -> SemanticView:
        """Features beside those of the individual side; `space` is the batch's."""
        parts = []
        mask_BL, semantic_BL, behaviour_BL = view.history.mask_BL, None, None
        needs_dots = self.semantic_to_behaviour is not None or self.settings.similarity == "kernels"
        dots_BL = space.dots(batch.history_BL) if needs_dots else None
        if self.similarity is not None:
            parts.append(self.similarity(*self.near(space, batch.history_BL, recency(batch), dots_BL)))
        if self.project is not None:
            parts.append(self.project(space.target_BD))
        if self.semantic_to_behaviour is not None:
            assert dots_BL is not None
            semantic_BL = self.semantic_to_behaviour(dots_BL, mask_BL)
            ids = view.history.first(self.id_dim)
            parts.append((ids.detached() if self.settings.detached_pooling else ids).pooled(semantic_BL))
        if self.behaviour_to_semantic is not None:
            assert self.project is not None
            target_id_BI = view.target_BD[:, : self.id_dim].contiguous()  # the ID part of an item's vector comes first
            behaviour_BL = self.behaviour_to_semantic(view.history.first(self.id_dim).dots(target_id_BI), mask_BL)
            # Pooling and projecting are linear: projected first, each item once, what is pooled is narrow.
            projected_RW = functional.linear(space.vector_RD, self.project.weight)
            parts.append(ItemSequence(space.distinct, projected_RW, batch.history_BL).pooled(behaviour_BL) + self.project.bias)
        x_BF = torch.cat(parts, dim=1) if parts else view.x_BF[:, :0]
        return SemanticView(x_BF, semantic_BL, behaviour_BL)

    def penalised(
        self, total: torch.Tensor, parts: dict[str, torch.Tensor], catalogue: Catalogue, items: ItemEmbedding, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """A loss and its parts with what the settings add to them."""
        penalties = self.penalties(catalogue, items, batch)
        return total + sum(penalties.values()), {**parts, **{name: value.detach() for name, value in penalties.items()}}

    def penalties(self, catalogue: Catalogue, items: ItemEmbedding, batch: Batch) -> dict[str, torch.Tensor]:
        """What the settings add to the loss, summed over rows and weighted, by name."""
        settings, found = self.settings, {}
        if self.alignment is not None and settings.alignment_decay:
            found["alignment"] = settings.alignment_decay * len(batch) * self.alignment.squared()
        if self.gate is not None and settings.content_weight:
            found["content"] = settings.content_weight * self._pull(catalogue, items, batch.item_row_B)
        return found

    def _pull(self, catalogue: Catalogue, items: ItemEmbedding, rows_B: torch.Tensor) -> torch.Tensor:
        """Squared distance of the targets' content from their ID embeddings, which are held fixed; each target counts by its ID's share in the gate."""
        assert self.gate is not None
        ids_BI = items.ids(catalogue.item_id_N[rows_B]).detach()
        gap_B = (self.gate.project(self.aligned(catalogue, rows_B)) - ids_BI).square().sum(dim=1)
        pulled: torch.Tensor = ((1 - self.gate.content_share(catalogue.rows_N[rows_B])).detach() * gap_B).sum()
        return pulled


def recency(batch: Batch) -> torch.Tensor:
    """What a place in a history is worth [B, L]: 1 for today, the less the longer ago."""
    return 1 / (1 + batch.history_days_BL)


def similarity_layer(settings: SemanticSettings) -> SimilarityTiers | SimilarityKernels | None:
    """The layer that turns similarities into features."""
    return {"none": lambda: None, "tiers": SimilarityTiers, "kernels": SimilarityKernels}[settings.similarity]()


def _zero_table(num: int, dim: int) -> nn.Embedding:
    table = nn.Embedding(num, dim, padding_idx=0)
    nn.init.zeros_(table.weight)
    return table
