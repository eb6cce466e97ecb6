"""What all rankers have in common: one typed batch in, one typed output out, a loss that is a sum over rows.

Letters: B rows, H heads, L history length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from longtail.rankers.batch import Batch
from longtail.rankers.catalogue import Catalogue
from longtail.rankers.heads import head_losses, resolve_heads
from longtail.rankers.settings import Head, TowerSettings
from longtail.samples import FeatureSpec


@dataclass(frozen=True)
class RankerOutput:
    """Logits, and what a ranker can show of how it came to them."""

    logits_BH: torch.Tensor
    heads: tuple[Head, ...]
    attention_BL: torch.Tensor | None = None  # target attention over the own history
    z_individual_BH: torch.Tensor | None = None  # ChoirRec
    z_group_BH: torch.Tensor | None = None  # ChoirRec
    alpha_fusion_B: torch.Tensor | None = None  # ChoirRec: share of the group channel
    alpha_distill_B: torch.Tensor | None = None  # ChoirRec
    semantic_attention_BL: torch.Tensor | None = None  # SaviorRec, branch (a)
    behaviour_attention_BL: torch.Tensor | None = None  # SaviorRec, branch (b)
    group_attention_BG: torch.Tensor | None = None  # ChoirRec, over the group's sequence

    @property
    def probabilities_BH(self) -> torch.Tensor:  # noqa: N802
        return torch.sigmoid(self.logits_BH)

    def logits(self, head: Head) -> torch.Tensor:
        """Logits of one head, [B]."""
        return self.logits_BH[:, self.heads.index(head)]


class Ranker(nn.Module):
    """A single-device ranker; distribution is added by the pipeline."""

    name: ClassVar[str]

    def __init__(self, spec: FeatureSpec, catalogue: Catalogue, settings: TowerSettings) -> None:
        super().__init__()
        self.spec = spec
        self.settings = settings
        self.catalogue = catalogue
        self.heads = resolve_heads(self.name, settings.heads, spec)

    def forward(self, batch: Batch, hidden_B2: torch.Tensor | None = None) -> RankerOutput:
        """Score a batch; where `hidden_B2` (bool) is true, the user's (0) or target item's (1) ID is shown as out of vocabulary."""
        raise NotImplementedError

    def fit_statistics(self, batch: Batch) -> None:
        """Fit the normalisers on training rows; called once, before the first step."""
        raise NotImplementedError

    def loss(self, batch: Batch, output: RankerOutput) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss summed over the rows (the training loop divides by the global batch's rows), and its parts, detached."""
        losses_H = head_losses(output.logits_BH, batch, self.heads)
        return losses_H.sum(), dict(zip(self.heads, losses_H.detach()))

    def num_parameters(self) -> dict[str, int]:
        """Trained numbers, in embedding tables and elsewhere."""
        tables = {id(p) for module in self.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
        sizes = [(id(p) in tables, p.numel()) for p in self.parameters()]
        return {"tables": sum(n for table, n in sizes if table), "layers": sum(n for table, n in sizes if not table)}


def predict_rows(ranker: Ranker, batch: Batch, rows_per_step: int = 4096) -> RankerOutput:
    """The ranker's output on a batch of any size, without gradients, computed a few thousand rows at a time; on the CPU."""
    was_training = ranker.training
    if was_training:  # it goes through all modules, which a request would feel
        ranker.eval()
    with torch.no_grad():
        steps = [batch] if len(batch) <= rows_per_step else [batch.rows(slice(at, at + rows_per_step)) for at in range(0, len(batch), rows_per_step)]
        outputs = [ranker(step) for step in steps]
    if was_training:
        ranker.train()
    return outputs[0] if len(outputs) == 1 and outputs[0].logits_BH.is_cpu else _concatenate(outputs)


def _concatenate(outputs: Sequence[RankerOutput]) -> RankerOutput:
    first = outputs[0]
    tensors = {name: torch.cat([getattr(output, name) for output in outputs]).cpu() for name, value in vars(first).items() if isinstance(value, torch.Tensor)}
    return RankerOutput(heads=first.heads, **tensors)
