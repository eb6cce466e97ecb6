"""The base: a DIN-style ranker on a user's own signals. Its individual side is also the first half of ChoirRec and SaviorRec.

Letters: B rows, H heads, L history length, D item width, F width of the concatenated features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from longtail.rankers.batch import Batch, concatenated, once
from longtail.rankers.catalogue import Catalogue
from longtail.rankers.layers import AttributeEmbedding, IdTable, ItemEmbedding, Normaliser, TargetAttention, Tower, target_id_index
from longtail.rankers.ranker import Ranker, RankerOutput
from longtail.rankers.sequences import DistinctRows, ItemSequence
from longtail.rankers.settings import BaseSettings, TowerSettings
from longtail.samples import FeatureSpec


@dataclass(frozen=True)
class IndividualView:
    """The individual side's features, and the pieces of them that other parts use again."""

    x_BF: torch.Tensor
    target_BD: torch.Tensor
    item_stats_BI: torch.Tensor  # normalised
    history: ItemSequence
    attention_BL: torch.Tensor
    distinct: DistinctRows
    items_RD: torch.Tensor  # vectors of the distinct rows


class IndividualSide(nn.Module):
    """User ID, own attributes and statistics, own history under target attention, the item."""

    def __init__(self, spec: FeatureSpec, catalogue: Catalogue, settings: TowerSettings) -> None:
        super().__init__()
        self.users = IdTable(catalogue.sizes.user_ids, settings.id_dim)
        self.items = ItemEmbedding(catalogue, settings.id_dim, settings.attribute_dim)
        self.attributes = AttributeEmbedding(spec.attribute_sizes, settings.attribute_dim)
        self.user_stats = Normaliser(len(spec.user_stats))
        self.cross_stats = Normaliser(len(spec.cross_stats))
        self.item_stats = Normaliser(len(spec.item_stats))
        self.attention = TargetAttention(self.items.dim, settings.attention_dims)
        self.collaborative = Normaliser(len(spec.collaborative_stats)) if settings.collaborative_stats and spec.collaborative_stats else None
        self.peer_stats = Normaliser(len(spec.peer_stats)) if settings.peer_stats and spec.peer_stats else None
        self.own_counts = settings.own_counts
        self.cross_places = [place for place, name in enumerate(spec.cross_stats) if settings.match_counts != "none" or not _is_match(name)]
        counts_codes = self.own_counts and settings.match_counts == "codes" and spec.match_stats
        self.match_stats = Normaliser(len(spec.match_stats)) if counts_codes else None
        self.out_dim = settings.id_dim + self.attributes.dim + len(spec.user_stats) + 2 * self.items.dim
        self.out_dim += len(self.cross_places) + len(spec.item_stats) if self.own_counts else 0
        self.out_dim += len(spec.match_stats) if self.match_stats is not None else 0
        self.out_dim += len(spec.collaborative_stats) if self.collaborative is not None else 0
        self.out_dim += len(spec.peer_stats) if self.peer_stats is not None else 0

    def fit_statistics(self, batch: Batch) -> None:
        self.user_stats.fit(batch.user_stats_BU)
        self.cross_stats.fit(batch.cross_stats_BX)
        self.item_stats.fit(batch.item_stats_BI)
        if self.match_stats is not None:
            self.match_stats.fit(batch.match_stats_BM)
        if self.collaborative is not None:
            self.collaborative.fit(batch.collaborative_stats_BF)
        if self.peer_stats is not None:
            self.peer_stats.fit(batch.peer_stats_BP)

    def forward(
        self,
        catalogue: Catalogue,
        batch: Batch,
        hidden_B2: torch.Tensor | None,
        sequences: Sequence[torch.Tensor] = (),
        mix: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None,
    ) -> IndividualView:
        """Features of a batch.

        Args:
            catalogue: of the ranker.
            batch: the rows.
            hidden_B2: whose IDs are hidden.
            sequences: further item rows that the caller will look up in the view's distinct rows.
            mix: what items' vectors [.., D] become, by their rows and, of targets, whether the ID is hidden.
        """
        user_row_B = batch.user_row_B if hidden_B2 is not None else once(batch.user_row_B)
        user_index_B = target_id_index(catalogue.user_id_M[user_row_B], None if hidden_B2 is None else hidden_B2[:, 0])
        item_index_B = target_id_index(catalogue.item_id_N[batch.item_row_B], None if hidden_B2 is None else hidden_B2[:, 1])
        target_BD = self.items(catalogue, batch.item_row_B, item_index_B)
        distinct = DistinctRows.of([batch.history_BL, *sequences])
        items_RD = self.items(catalogue, distinct.rows_R)
        if mix is not None:
            target_BD = mix(target_BD, batch.item_row_B, None if hidden_B2 is None else hidden_B2[:, 1])
            items_RD = mix(items_RD, distinct.rows_R, None)
        history = ItemSequence.written(distinct, items_RD, batch.history_BL)
        pooled_BD, attention_BL = self.attention(target_BD, history, days_BL=batch.history_days_BL)
        item_stats_BI = self.item_stats(batch.item_stats_BI)
        parts = [
            self.users(user_index_B),
            self.attributes(once(batch.attributes_BA)),
            self.user_stats(once(batch.user_stats_BU)),
            *([self._cross(batch), item_stats_BI] if self.own_counts else []),
            *([self.match_stats(batch.match_stats_BM)] if self.match_stats is not None else []),
            target_BD,
            pooled_BD,
            *([self.collaborative(batch.collaborative_stats_BF)] if self.collaborative is not None else []),
            *([self.peer_stats(batch.peer_stats_BP)] if self.peer_stats is not None else []),
        ]
        return IndividualView(concatenated(parts, len(batch)), target_BD, item_stats_BI, history, attention_BL, distinct, items_RD)

    def _cross(self, batch: Batch) -> torch.Tensor:
        """User-by-item statistics that are read, normalised."""
        cross_BX: torch.Tensor = self.cross_stats(batch.cross_stats_BX)
        return cross_BX if len(self.cross_places) == cross_BX.shape[1] else cross_BX[:, self.cross_places]


def _is_match(name: str) -> bool:
    """Whether a user-by-item statistic is of the item's kind and not of the item itself."""
    return any(kind in name for kind in ("leaf", "root", "brand"))


class Base(Ranker):
    """DIN-style base: the individual side, a tower, a linear head per label."""

    name: ClassVar[str] = "base"

    def __init__(self, spec: FeatureSpec, catalogue: Catalogue, settings: BaseSettings) -> None:
        super().__init__(spec, catalogue, settings)
        self.individual = IndividualSide(spec, catalogue, settings)
        self.tower = Tower(self.individual.out_dim, settings.hidden_dims, settings.dropout)
        self.out = nn.Linear(self.tower.out_dim, len(self.heads))

    def fit_statistics(self, batch: Batch) -> None:
        self.individual.fit_statistics(batch)

    def forward(self, batch: Batch, hidden_B2: torch.Tensor | None = None) -> RankerOutput:
        view = self.individual(self.catalogue, batch, hidden_B2)
        return RankerOutput(self.out(self.tower(view.x_BF)), self.heads, attention_BL=view.attention_BL)
