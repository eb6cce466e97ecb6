"""Duet: one ranker for both tails, ChoirRec's user side and SaviorRec's item side in one model (ours).

The individual channel also sees what SaviorRec sees of an item. So does the group channel, which beside it sees the same of the group's own sequence: a quiet
user's group has met items that a cold one is like, when neither the user's history nor the item's ID says anything. Without the own history's part it would
speak for quiet users, to whom the gate gives it the word, from less than SaviorRec alone knows.

Letters: B rows, H heads, G group history length.
"""

from functools import partial
from typing import ClassVar

import torch
from torch import nn

from longtail.rankers.batch import Batch
from longtail.rankers.catalogue import Catalogue
from longtail.rankers.choirrec import Channels, ChoirRec
from longtail.rankers.ranker import RankerOutput
from longtail.rankers.semantics import Semantics, SemanticSpace, similarity_layer
from longtail.rankers.sequences import DistinctRows
from longtail.rankers.settings import DuetSettings
from longtail.samples import FeatureSpec


class Duet(ChoirRec):
    """ChoirRec whose channels know items by their semantics."""

    name: ClassVar[str] = "duet"
    settings: DuetSettings

    def __init__(self, spec: FeatureSpec, catalogue: Catalogue, settings: DuetSettings) -> None:
        semantics = Semantics(self.name, catalogue, settings, settings.id_dim)
        similarity = similarity_layer(settings) if settings.group_sequence else None
        group_dim = (settings.semantic_dim if semantics.project is not None else 0) + (similarity.out_dim if similarity is not None else 0)
        group_dim += semantics.out_dim * int(settings.group_semantics)
        super().__init__(spec, catalogue, settings, beside=(semantics.out_dim, group_dim))
        self.semantics, self.group_similarity = semantics, similarity
        self.group_project = nn.Linear(catalogue.sizes.vector_dim, settings.semantic_dim) if semantics.project is not None else None

    @torch.no_grad()
    def fit_statistics(self, batch: Batch) -> None:
        super().fit_statistics(batch)
        self.semantics.fit_statistics(self.catalogue, batch)
        if self.group_similarity is not None:
            distinct = DistinctRows.of([batch.group_history_BG])
            self.group_similarity.fit(*self._near_group(self.semantics.space(self.catalogue, distinct, batch), batch))

    def channels(self, batch: Batch, hidden_B2: torch.Tensor | None) -> Channels:
        sequences = [batch.group_history_BG] if self.settings.group_sequence else []
        view = self.individual(self.catalogue, batch, hidden_B2, sequences, mix=partial(self.semantics.mixed, self.catalogue))
        space = self.semantics.space(self.catalogue, view.distinct, batch)
        semantic = self.semantics(space, view, batch)
        group_BF, group_attention_BG = self.group(view, batch)
        group = [group_BF]
        if self.settings.group_semantics:
            group.append(semantic.x_BF)
        if self.group_project is not None:
            group.append(self.group_project(space.target_BD))
        if self.group_similarity is not None:
            group.append(self.group_similarity(*self._near_group(space, batch)))
        shown = {
            "attention_BL": view.attention_BL,
            "group_attention_BG": group_attention_BG,
            "semantic_attention_BL": semantic.semantic_attention_BL,
            "behaviour_attention_BL": semantic.behaviour_attention_BL,
        }
        return Channels(torch.cat([view.x_BF, semantic.x_BF], dim=1), torch.cat(group, dim=1), shown)

    def _near_group(self, space: SemanticSpace, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.semantics.near(space, batch.group_history_BG, batch.group_weight_BG)

    def loss(self, batch: Batch, output: RankerOutput) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.semantics.penalised(*super().loss(batch, output), self.catalogue, self.individual.items, batch)
