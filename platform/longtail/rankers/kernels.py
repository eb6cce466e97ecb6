"""Kernel pooling of similarities: a differentiable histogram of how near a history lies to its target (ours in SaviorRec).

Softmax attention says which items of a history are near to the target and not how near they are: its weights sum to one whatever the scores. Kernels do, and
pass a gradient to both vectors, so that what moves an aligned vector moves them too (Xiong et al. 2017, K-NRM, section 3.2).

Letters: B rows, L history length, K kernels.
"""

import torch
from torch import nn

from longtail.rankers.layers import Normaliser

CENTRES = (-0.1, 0.1, 0.3, 0.5, 0.7, 0.9)
WIDTH = 0.15


class SimilarityKernels(nn.Module):
    """For each kernel the items of a sequence that lie about so near, and again by their worth: recency, or their share in a group's purchases."""

    centre_K: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre_K", torch.tensor(CENTRES))
        self.normaliser = Normaliser(self.out_dim)

    @property
    def out_dim(self) -> int:
        return 2 * len(CENTRES) + 1

    def fit(self, scores_BL: torch.Tensor, worth_BL: torch.Tensor, mask_BL: torch.Tensor) -> None:
        """Normalisation from training rows."""
        self.normaliser.fit(self._raw(scores_BL, worth_BL, mask_BL))

    def forward(self, scores_BL: torch.Tensor, worth_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """Normalised soft counts and the mean similarity [B, 2 K + 1]."""
        normalised: torch.Tensor = self.normaliser(self._raw(scores_BL, worth_BL, mask_BL))
        return normalised

    def _raw(self, scores_BL: torch.Tensor, worth_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        near_BLK = torch.exp(-((scores_BL.unsqueeze(2) - self.centre_K) ** 2) / (2 * WIDTH**2)) * mask_BL.unsqueeze(2)
        worthy_BK = (near_BLK * worth_BL.unsqueeze(2)).sum(dim=1)
        mean_B = (scores_BL * mask_BL).sum(dim=1) / mask_BL.sum(dim=1).clamp(min=1)
        return torch.cat([near_BLK.sum(dim=1).log1p(), worthy_BK.log1p(), mean_B.unsqueeze(1)], dim=1)
