"""What a ranker predicts: its heads, their labels, and the loss on them.

    outcome     exposure -> outcome: CTR, or the only outcome of a source
    cvr         outcome -> conversion: on rows with the outcome and a known conversion
    conversion  exposure -> conversion: CTCVR, a head of its own

Letters: B rows, H heads.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from longtail.rankers.batch import Batch
from longtail.rankers.settings import Head
from longtail.samples import FeatureSpec

#: Each ranker's own choice where the source has two outcomes; the first is its primary head, by which epochs are compared.
TWO_OUTCOME_HEADS: dict[str, tuple[Head, ...]] = {
    "base": ("outcome", "cvr", "conversion"),
    "choirrec": ("cvr",),
    "saviorrec": ("outcome", "conversion"),
    "duet": ("outcome", "cvr", "conversion"),
}


def resolve_heads(ranker: str, chosen: Sequence[Head] | None, spec: FeatureSpec) -> tuple[Head, ...]:
    """The heads of a ranker on a source.

    Raises:
        ValueError: a chosen head needs an outcome that the source lacks, or is named twice, or there is none.
    """
    if chosen is None:
        return TWO_OUTCOME_HEADS[ranker] if spec.has_conversion else ("outcome",)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"rankers.{ranker}.heads = {list(chosen)}: name each head once, and at least one. Leave it out for the ranker's own choice.")
    lacking = [head for head in chosen if head != "outcome" and not spec.has_conversion]
    if lacking:
        raise ValueError(
            f"rankers.{ranker}.heads = {list(chosen)}: {lacking} need a second outcome, and this source has one. "
            'Use heads = ["outcome"], or set logs.labels.conversion where the events hold one.'
        )
    return tuple(chosen)


def has_label(heads: Sequence[Head], outcome_N: npt.NDArray[np.signedinteger], conversion_N: npt.NDArray[np.signedinteger]) -> npt.NDArray[np.bool_]:
    """Rows [N] on which at least one head has a label; conversion is -1 where it is unknown."""
    known_N = np.zeros(len(outcome_N), dtype=np.bool_)
    for head in heads:
        known_N |= {"outcome": np.ones_like(known_N), "cvr": (outcome_N == 1) & (conversion_N >= 0), "conversion": conversion_N >= 0}[head]
    return known_N


def head_labels(batch: Batch, heads: Sequence[Head]) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels [B, H], 0 where there is none, and which of them are known, bool [B, H]."""
    converted_B, convertible_B = batch.conversion_B.clamp(min=0), batch.conversion_B >= 0
    labels = {"outcome": batch.outcome_B, "cvr": converted_B, "conversion": converted_B}
    known = {"outcome": torch.ones_like(convertible_B), "cvr": convertible_B & (batch.outcome_B == 1), "conversion": convertible_B}
    known_BH = torch.stack([known[head] for head in heads], dim=1)
    return torch.stack([labels[head] for head in heads], dim=1) * known_BH, known_BH


def head_losses(logits_BH: torch.Tensor, batch: Batch, heads: Sequence[Head]) -> torch.Tensor:
    """Binary cross entropy summed over the rows with a label, [H].

    Sums, not means: the training loop divides by the rows of the global batch, so that the workers' losses add up to one worker's.
    """
    labels_BH, known_BH = head_labels(batch, heads)
    losses_BH = functional.binary_cross_entropy_with_logits(logits_BH.float(), labels_BH, reduction="none")
    return (losses_BH * known_BH).sum(dim=0)
