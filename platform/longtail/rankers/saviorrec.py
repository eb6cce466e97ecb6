"""SaviorRec (arXiv 2508.01375): frozen semantic vectors, aligned with behaviour through shared codes, for items with few events.

Its item side is in longtail.rankers.semantics. Letters: B rows.
"""

from functools import partial
from typing import ClassVar

import torch
from torch import nn

from longtail.rankers.base import IndividualSide
from longtail.rankers.batch import Batch
from longtail.rankers.catalogue import Catalogue
from longtail.rankers.layers import Tower
from longtail.rankers.ranker import Ranker, RankerOutput
from longtail.rankers.semantics import Semantics
from longtail.rankers.settings import SaviorRecSettings
from longtail.samples import FeatureSpec


class SaviorRec(Ranker):
    """Base features, the aligned semantic vector, and histories pooled across the two spaces."""

    name: ClassVar[str] = "saviorrec"
    settings: SaviorRecSettings

    def __init__(self, spec: FeatureSpec, catalogue: Catalogue, settings: SaviorRecSettings) -> None:
        super().__init__(spec, catalogue, settings)
        self.individual = IndividualSide(spec, catalogue, settings)
        self.semantics = Semantics(self.name, catalogue, settings, settings.id_dim)
        self.tower = Tower(self.individual.out_dim + self.semantics.out_dim, settings.hidden_dims, settings.dropout)
        self.out = nn.Linear(self.tower.out_dim, len(self.heads))

    def fit_statistics(self, batch: Batch) -> None:
        self.individual.fit_statistics(batch)
        self.semantics.fit_statistics(self.catalogue, batch)

    def forward(self, batch: Batch, hidden_B2: torch.Tensor | None = None) -> RankerOutput:
        view = self.individual(self.catalogue, batch, hidden_B2, mix=partial(self.semantics.mixed, self.catalogue))
        semantic = self.semantics(self.semantics.space(self.catalogue, view.distinct, batch), view, batch)
        return RankerOutput(
            self.out(self.tower(torch.cat([view.x_BF, semantic.x_BF], dim=1))),
            self.heads,
            attention_BL=view.attention_BL,
            semantic_attention_BL=semantic.semantic_attention_BL,
            behaviour_attention_BL=semantic.behaviour_attention_BL,
        )

    def loss(self, batch: Batch, output: RankerOutput) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.semantics.penalised(*super().loss(batch, output), self.catalogue, self.individual.items, batch)
