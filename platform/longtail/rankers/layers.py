"""Layers that the rankers share: item embeddings, DIN's target attention, feed-forward towers, fixed normalisation.

Letters: B rows, L history length, D item width, N item rows, R distinct item rows of a batch, P places of all sequences, K attention width, W any width,
A attributes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from longtail.rankers.batch import is_shared
from longtail.rankers.catalogue import OOV, Catalogue

EMBEDDING_STD = 0.05  # of the order of one Adagrad step, so that a few rows of data outweigh the draw
CLIP = 5.0  # standard deviations
DAYS_SCALE = 0.25  # log1p(days) runs to about 6; attention's other inputs are of order one


def embedding_table(num: int, dim: int) -> nn.Embedding:
    """Normal entries; row 0 (padding, unknown) is zero and stays so, row OOV starts at zero and is trained."""
    table = nn.Embedding(num, dim, padding_idx=0)
    with torch.no_grad():
        table.weight.normal_(std=EMBEDDING_STD)
        table.weight[: OOV + 1] = 0
    return table


class ItemEmbedding(nn.Module):
    """An item as the ranker sees it: ID, category by level, brand; [.., D].

    IDs without a training row share one out-of-vocabulary embedding, in histories too. It is trained by ID dropout and by history items that were never
    a candidate; an ID of their own would have learnt from histories alone, and as a candidate it would be noise.
    """

    def __init__(self, catalogue: Catalogue, id_dim: int, attribute_dim: int) -> None:
        super().__init__()
        sizes = catalogue.sizes
        self.ids = embedding_table(sizes.item_ids, id_dim)
        self.categories = nn.ModuleList(_small_table(size, attribute_dim) for size in sizes.categories)
        self.brands = _small_table(sizes.brands, attribute_dim)
        self.id_dim = id_dim
        self.dim = id_dim + attribute_dim * (len(sizes.categories) + 1)

    def forward(self, catalogue: Catalogue, rows: torch.Tensor, id_index: torch.Tensor | None = None) -> torch.Tensor:
        """Vectors [.., D] of item rows [..]; `id_index` replaces the catalogue's ID index (targets hide some IDs)."""
        parts = [self.ids(catalogue.item_id_N[rows] if id_index is None else id_index)]
        categories = catalogue.category_NC[rows]
        parts += [table(categories[..., level]) for level, table in enumerate(self.categories)]
        parts.append(self.brands(catalogue.brand_N[rows]))
        return torch.cat(parts, dim=-1)


class SequenceDots(torch.autograd.Function):
    """Products of each row's vector [B, W] with the table rows [R, W] that its places [B, L] name, [B, L].

    The rows are never written down place by place: [B, L, W] and its gradient cost many times what the products do. A weighted sum of table rows
    (torch's embedding bag) does all three: its derivative by the weights is the products themselves, and their derivatives are such sums.
    """

    @staticmethod
    def forward(ctx: Any, values_RW: torch.Tensor, place_BL: torch.Tensor, target_BW: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(values_RW, place_BL, target_BW)
        with torch.enable_grad():  # not within torch.inference_mode, which would refuse it
            weights_BL = values_RW.new_zeros(place_BL.shape).requires_grad_()
            sums_BW = functional.embedding_bag(place_BL, values_RW.detach(), mode="sum", per_sample_weights=weights_BL)
            (dots_BL,) = torch.autograd.grad(sums_BW, weights_BL, target_BW.detach())
        return dots_BL

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None]:
        (gradient_BL,) = gradients
        values_RW, place_BL, target_BW = ctx.saved_tensors
        of_values, of_target = None, None
        if ctx.needs_input_grad[0]:
            place_P = place_BL.reshape(-1)
            order_P = torch.argsort(place_P, stable=True)
            ends_R = torch.bincount(place_P, minlength=len(values_RW)).cumsum(0)
            starts_R = torch.cat([ends_R.new_zeros(1), ends_R[:-1]])
            row_P = order_P // place_BL.shape[1]
            of_values = functional.embedding_bag(row_P, target_BW, starts_R, mode="sum", per_sample_weights=gradient_BL.reshape(-1)[order_P])
        if ctx.needs_input_grad[2]:
            of_target = functional.embedding_bag(place_BL, values_RW, mode="sum", per_sample_weights=gradient_BL.contiguous())
        return of_values, None, of_target


@dataclass(frozen=True)
class DistinctRows:
    """The distinct item rows of a batch's sequences, padding first.

    Each item is embedded once per batch instead of once per place: popular items fill most places, and on CPU a table's gradient costs by the place.
    """

    rows_R: torch.Tensor  # ascending
    place_N: torch.Tensor | None  # item row -> place in rows_R; None: it is searched

    @staticmethod
    def of(num_rows: int, sequences: Sequence[torch.Tensor]) -> "DistinctRows":
        """From item rows below `num_rows`, of any shape; a request's are few and the same in all its rows, and cost nothing of the catalogue's size."""
        device = sequences[0].device
        if all(is_shared(rows) for rows in sequences):
            return DistinctRows(torch.unique(torch.cat([torch.zeros(1, dtype=torch.int64, device=device), *(rows[0] for rows in sequences)])), None)
        seen_N = torch.zeros(num_rows, dtype=torch.bool, device=device)
        seen_N[0] = True
        for rows in sequences:
            seen_N[rows.reshape(-1)] = True
        rows_R = seen_N.nonzero().squeeze(1)
        place_N = torch.zeros(num_rows, dtype=torch.int64, device=device)
        place_N[rows_R] = torch.arange(len(rows_R), device=device)
        return DistinctRows(rows_R, place_N)

    def place(self, rows: torch.Tensor) -> torch.Tensor:
        """Places of item rows that are among the distinct ones."""
        return torch.searchsorted(self.rows_R, rows) if self.place_N is None else self.place_N[rows]

    def spread(self, values_RW: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Values [.., W] of item rows [..]; padding passes no gradient."""
        return functional.embedding(self.place(rows), values_RW, padding_idx=0)

    def sequence(self, values_RW: torch.Tensor, rows_BL: torch.Tensor) -> torch.Tensor:
        """`spread` of sequences, [B, L, W], or [1, L, W] where all rows have one."""
        return self.spread(values_RW, rows_BL[:1] if is_shared(rows_BL) else rows_BL)

    def dots(self, values_RW: torch.Tensor, rows_BL: torch.Tensor, target_BW: torch.Tensor) -> torch.Tensor:
        """Products of each row's target with the values of its sequence of item rows, [B, L]."""
        if is_shared(rows_BL):
            return target_BW @ self.spread(values_RW, rows_BL[0]).T
        dots_BL: torch.Tensor = SequenceDots.apply(values_RW, self.place(rows_BL), target_BW)  # type: ignore[no-untyped-call]
        return dots_BL

    def pooled(self, values_RW: torch.Tensor, rows_BL: torch.Tensor, weights_BL: torch.Tensor) -> torch.Tensor:
        """Sums of the values of each row's sequence of item rows, weighted, [B, W]."""
        if is_shared(rows_BL):
            return weights_BL @ self.spread(values_RW, rows_BL[0])
        return functional.embedding_bag(self.place(rows_BL), values_RW, mode="sum", per_sample_weights=weights_BL)


def weighted_sum(weights_BL: torch.Tensor, sequence_BLD: torch.Tensor) -> torch.Tensor:
    """Pooled sequences [B, D]; the sequence may be one for all rows, [1, L, D]."""
    if len(sequence_BLD) == 1:
        return weights_BL @ sequence_BLD[0]
    return torch.bmm(weights_BL.unsqueeze(1), sequence_BLD).squeeze(1)


def products(sequence_BLD: torch.Tensor, target_BD: torch.Tensor) -> torch.Tensor:
    """Products of each row's target with its sequence [B, L]; the sequence may be one for all rows, [1, L, D]."""
    if len(sequence_BLD) == 1:
        return target_BD @ sequence_BLD[0].T
    return torch.bmm(sequence_BLD, target_BD.unsqueeze(2)).squeeze(2)


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
            self.table = nn.Embedding(sum(sizes), dim)
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
        self,
        target_BD: torch.Tensor,
        history_BLD: torch.Tensor,
        mask_BL: torch.Tensor,
        days_BL: torch.Tensor | None = None,
        prior_BL: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled history [B, D] and attention weights [B, L].

        Args:
            target_BD: what attends.
            history_BLD: what is attended to; it, the mask, the days and the prior may be one for all rows, [1, L, ..].
            mask_BL: True where there is an item.
            days_BL: age in days; only where the layer was built with recency.
            prior_BL: weights that the softmax starts from, None for equal ones.
        """
        age_BL = torch.log1p(days_BL) * DAYS_SCALE if self.recency_K is not None and days_BL is not None else None
        shift_BK = torch.addmm(self.bias_K, target_BD, self.target_DK)
        if len(history_BLD) == 1:
            scores_BL = self._scores_of_one(target_BD, history_BLD[0], shift_BK, None if age_BL is None else age_BL[0])
        else:
            hidden = torch.baddbmm(shift_BK.unsqueeze(1), history_BLD, self.history_DK + target_BD.unsqueeze(2) * self.product_DK)
            if self.recency_K is not None:
                assert age_BL is not None
                hidden = torch.addcmul(hidden, age_BL.unsqueeze(2), self.recency_K)
            scores_BL = self._later(hidden)
        weights_BL = masked_softmax(scores_BL, mask_BL, prior_BL)
        return weighted_sum(weights_BL, history_BLD), weights_BL

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
        return self._later(hidden.view(len(history_LD), *shift_BK.shape)).T

    def _later(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores [..] from the first layer's sums [.., K]."""
        for layer in self.later:
            hidden = layer(torch.relu_(hidden))  # in place: no layer's gradient reads its own sums
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


def _small_table(num: int, dim: int) -> nn.Embedding:
    """A table whose row 0 (unknown) is zero and fixed; there is no out-of-vocabulary row."""
    table = nn.Embedding(max(num, 1), dim, padding_idx=0)
    with torch.no_grad():
        table.weight.normal_(std=EMBEDDING_STD)
        table.weight[0] = 0
    return table
