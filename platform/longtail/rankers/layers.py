"""Layers that the rankers share: item embeddings, DIN's target attention, feed-forward towers, fixed normalisation.

Letters: B rows, L history length, D item width, N item rows, K attention width, W any width, A attributes.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from longtail.rankers.catalogue import OOV, Catalogue
from longtail.rankers.sequences import ItemSequence, SmallTable

EMBEDDING_STD = 0.05  # of the order of one Adagrad step, so that a few rows of data outweigh the draw
CLIP = 5.0  # standard deviations
DAYS_SCALE = 0.25  # log1p(days) runs to about 6; attention's other inputs are of order one


class IdTable(nn.Embedding):
    """A table of IDs: normal entries; row 0 (padding, unknown) is zero and stays so, row OOV starts at zero and is trained.

    A batch meets few of its rows; where `sparse` is set, its gradient holds these alone (longtail.gradients).
    """

    def __init__(self, num: int, dim: int) -> None:
        super().__init__(num, dim, padding_idx=0)
        with torch.no_grad():
            self.weight.normal_(std=EMBEDDING_STD)
            self.weight[: OOV + 1] = 0


class ItemEmbedding(nn.Module):
    """An item as the ranker sees it: ID, category by level, brand; [.., D].

    IDs without a training row share one out-of-vocabulary embedding, in histories too. It is trained by ID dropout and by history items that were never
    a candidate; an ID of their own would have learnt from histories alone, and as a candidate it would be noise.
    """

    def __init__(self, catalogue: Catalogue, id_dim: int, attribute_dim: int) -> None:
        super().__init__()
        sizes = catalogue.sizes
        self.ids = IdTable(sizes.item_ids, id_dim)
        self.categories = nn.ModuleList(_small_table(size, attribute_dim) for size in sizes.categories)
        self.brands = _small_table(sizes.brands, attribute_dim)
        self.id_dim = id_dim
        self.dim = id_dim + attribute_dim * (len(sizes.categories) + 1)

    def forward(self, catalogue: Catalogue, rows: torch.Tensor, id_index: torch.Tensor | None = None) -> torch.Tensor:
        """Vectors [R, D] of item rows [R]; `id_index` replaces the catalogue's ID index (targets hide some IDs)."""
        parts = [self.ids(catalogue.item_id_N.index_select(0, rows) if id_index is None else id_index)]
        categories = catalogue.category_NC.index_select(0, rows)
        parts += [table(categories[..., level]) for level, table in enumerate(self.categories)]
        parts.append(self.brands(catalogue.brand_N.index_select(0, rows)))
        return torch.cat(parts, dim=-1)


def target_id_index(index: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
    """ID index of targets or users: out of vocabulary instead of padding, and where `hidden`."""
    index = index.clamp(min=OOV)
    return index if hidden is None else index.masked_fill(hidden, OOV)


class AttributeEmbedding(nn.Module):
    """A categorical attributes as one vector [B, A * dim]; 0 (unknown) has an embedding of its own."""

    offset_A: torch.Tensor

    def __init__(self, sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.dim = len(sizes) * dim
        self.register_buffer("offset_A", torch.tensor([sum(sizes[:i]) for i in range(len(sizes))], dtype=torch.int64), persistent=False)
        if sizes:
            self.table = SmallTable(sum(sizes), dim)
            nn.init.normal_(self.table.weight, std=EMBEDDING_STD)

    def forward(self, attributes_BA: torch.Tensor) -> torch.Tensor:
        if self.dim == 0:
            return torch.zeros(len(attributes_BA), 0, device=attributes_BA.device)
        vectors: torch.Tensor = self.table(attributes_BA + self.offset_A)
        return vectors.flatten(1)


class Normaliser(nn.Module):
    """Standardises W statistics with a mean and deviation that are fitted once and then fixed.

    Fixed buffers, not batch norm: a row's score must not depend on the rows beside it, nor on the number of workers. Unknown (NaN) becomes the mean.
    """

    mean_W: torch.Tensor
    std_W: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_W", torch.zeros(width))
        self.register_buffer("std_W", torch.ones(width))

    def fit(self, values_BW: torch.Tensor) -> None:
        """Mean and deviation of the known values; a constant column keeps deviation 1."""
        values = values_BW.double()
        known = ~torch.isnan(values)
        count = known.sum(dim=0).clamp(min=1)
        mean = values.nan_to_num(0.0).sum(dim=0) / count
        std = (((values - mean).nan_to_num(0.0) ** 2).sum(dim=0) / count).sqrt()
        self.mean_W.copy_(mean)
        self.std_W.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def forward(self, values_BW: torch.Tensor) -> torch.Tensor:
        return ((values_BW - self.mean_W) / self.std_W).clamp(-CLIP, CLIP).nan_to_num(0.0)


class TargetAttention(nn.Module):
    """DIN's target attention: an MLP on [h, t, h * t] and recency scores each history item, softmax pools; an empty history gives zeros.

    DIN also feeds h - t; before a linear layer that is already in the span of h and t, so it is left out. The first layer is one product of the history
    with a matrix per row, Wh + diag(t) Wht: [h, t, h * t] of every history item is never written down.
    """

    def __init__(self, dim: int, hidden_dims: Sequence[int], recency: bool = True) -> None:
        super().__init__()
        widths = [*hidden_dims, 1]
        bound = 1 / math.sqrt(3 * dim + 1)
        self.history_DK = nn.Parameter(torch.empty(dim, widths[0]).uniform_(-bound, bound))
        self.target_DK = nn.Parameter(torch.empty(dim, widths[0]).uniform_(-bound, bound))
        self.product_DK = nn.Parameter(torch.empty(dim, widths[0]).uniform_(-bound, bound))
        self.recency_K = nn.Parameter(torch.empty(widths[0]).uniform_(-bound, bound)) if recency else None
        self.bias_K = nn.Parameter(torch.zeros(widths[0]))
        # No bias on the score itself: a softmax does not see it, so its gradient is rounding noise, which Adagrad would blow up to full steps.
        self.later = nn.ModuleList(nn.Linear(a, b, bias=b > 1) for a, b in pairwise(widths))

    def forward(
        self, target_BD: torch.Tensor, history: ItemSequence, days_BL: torch.Tensor | None = None, prior_BL: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled history [B, D] and attention weights [B, L].

        Args:
            target_BD: what attends.
            history: what is attended to.
            days_BL: age in days; only where the layer was built with recency.
            prior_BL: weights that the softmax starts from, None for equal ones.
        """
        age_BL = torch.log1p(history.once(days_BL)) * DAYS_SCALE if self.recency_K is not None and days_BL is not None else None
        shift_BK = torch.addmm(self.bias_K, target_BD, self.target_DK)
        if history.shared:
            scores_BL = self._scores_of_one(target_BD, history.one_LW, shift_BK, None if age_BL is None else age_BL[0])
        else:
            matrix_BDK = torch.addcmul(self.history_DK, target_BD.unsqueeze(2), self.product_DK)
            scores_BL = self._later(history.hidden(matrix_BDK, shift_BK, self.recency_K, age_BL))
        weights_BL = masked_softmax(scores_BL, history.mask_BL, None if prior_BL is None else history.once(prior_BL))
        return history.pooled(weights_BL), weights_BL

    def _scores_of_one(self, target_BD: torch.Tensor, history_LD: torch.Tensor, shift_BK: torch.Tensor, age_L: torch.Tensor | None) -> torch.Tensor:
        """Scores [B, L] of one history: one product of it with all rows' matrices side by side, to which shift and recency are further rows.

        History items come first throughout, so that nothing is turned round on the way.
        """
        matrices = [torch.addcmul(self.history_DK.unsqueeze(1), target_BD.T.unsqueeze(2), self.product_DK.unsqueeze(1)), shift_BK.unsqueeze(0)]
        columns = [history_LD, torch.ones_like(history_LD[:, :1])]
        if self.recency_K is not None:
            assert age_L is not None
            matrices.append(self.recency_K.expand(1, *shift_BK.shape))
            columns.append(age_L.unsqueeze(1))
        hidden = torch.cat(columns, dim=1) @ torch.cat(matrices).flatten(1)
        return self._later(torch.relu_(hidden).view(len(history_LD), *shift_BK.shape)).T

    def _later(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores [..] from the first layer [.., K]."""
        for number, layer in enumerate(self.later):
            hidden = layer(hidden if number == 0 else torch.relu_(hidden))  # in place: no layer's gradient reads its own sums
        return hidden.squeeze(-1)


def masked_softmax(scores_BL: torch.Tensor, mask_BL: torch.Tensor, prior_BL: torch.Tensor | None = None) -> torch.Tensor:
    """Softmax over the masked-in places, times a prior if given; a row without any gets zeros."""
    if prior_BL is not None:
        scores_BL = scores_BL + torch.log(prior_BL.clamp(min=1e-6))
    weights_BL = torch.softmax(scores_BL.masked_fill(~mask_BL, torch.finfo(scores_BL.dtype).min), dim=1)
    return weights_BL * mask_BL


class Tower(nn.Module):
    """Feed-forward layers with ReLU; `added` joins one of them before its ReLU (ChoirRec's injection)."""

    def __init__(self, in_dim: int, hidden_dims: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip([in_dim, *hidden_dims], hidden_dims))
        self.dropout = nn.Dropout(dropout)
        self.out_dim = hidden_dims[-1]

    def first(self, x: torch.Tensor) -> torch.Tensor:
        """Output of the first hidden layer."""
        return self._active(self.layers[0](x))

    def rest(self, hidden: torch.Tensor, added: torch.Tensor | None = None, added_at: int = -1) -> torch.Tensor:
        """Output of the last hidden layer from the first's; `added` is summed into layer number `added_at` (from 0) before its ReLU."""
        for number, layer in enumerate(self.layers[1:], start=1):
            hidden = layer(hidden)
            if added is not None and number == added_at:
                hidden = hidden + added
            hidden = self._active(hidden)
        return hidden

    def _active(self, sums: torch.Tensor) -> torch.Tensor:
        """A layer's output, written over its sums."""
        hidden = torch.relu_(sums)
        return self.dropout(hidden) if self.training else hidden

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.first(x))


def _small_table(num: int, dim: int) -> SmallTable:
    """A table whose row 0 (unknown) is zero and fixed; there is no out-of-vocabulary row."""
    table = SmallTable(max(num, 1), dim, padding_idx=0)
    with torch.no_grad():
        table.weight.normal_(std=EMBEDDING_STD)
        table.weight[0] = 0
    return table
