"""Sequences of items in a batch, each item once: what is looked up in them, summed over them and multiplied with them, and the gradients of that.

Popular items fill most places, so what is made of an item is made once per batch. A gradient goes back from the places to the items as sums over sorted places
(torch's embedding bag), an order that one sort per sequence gives to all of them; adding place by place takes twenty times as long.

Letters: B rows, L sequence length, P = B * L places, R distinct item rows of a batch, W any width, D item width, K attention width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from longtail.rankers.batch import is_shared

_PIECE = 1 << 18  # numbers


class TableValues(torch.autograd.Function):
    """Rows of a small table [V, W] at [..]: each of its rows stands at many places, which its gradient adds up ten times as fast as torch's embedding does."""

    @staticmethod
    def forward(ctx: Any, table_VW: torch.Tensor, index: torch.Tensor, padding: bool) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows, ctx.padding = len(table_VW), padding
        return functional.embedding(index, table_VW)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (index,) = ctx.saved_tensors
        width = gradients[0].shape[-1]
        of_table = gradients[0].new_zeros(ctx.num_rows, width).index_add_(0, index.reshape(-1), gradients[0].reshape(-1, width))
        if ctx.padding:
            of_table[0] = 0
        return of_table, None, None


class SmallTable(nn.Embedding):
    """Embeddings of values of which a batch meets most."""

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        if self.weight.is_cuda:  # there the sum of many adds at once would depend on their order
            return super().forward(index)
        values: torch.Tensor = TableValues.apply(self.weight, index, self.padding_idx == 0)  # type: ignore[no-untyped-call]
        return values


@dataclass(frozen=True)
class Places:
    """A sequence [B, L] by the places of its items among the distinct rows."""

    place_BL: torch.Tensor
    num_rows: int  # R
    known_order_P: torch.Tensor | None = None

    @cached_property
    def order_P(self) -> torch.Tensor:  # noqa: N802
        """The places, sorted by distinct row; only a gradient needs it."""
        if self.known_order_P is not None:
            return self.known_order_P
        return torch.sort(self.place_BL.reshape(-1).int(), stable=True).indices  # radix sort: half as wide, twice as fast

    @cached_property
    def starts_R(self) -> torch.Tensor:  # noqa: N802
        """Where each distinct row's places begin in the order."""
        ends_R = torch.bincount(self.place_BL.reshape(-1), minlength=self.num_rows).cumsum(0)
        return torch.cat([ends_R.new_zeros(1), ends_R[:-1]])

    @cached_property
    def row_P(self) -> torch.Tensor:  # noqa: N802
        """Which of the B rows each of the ordered places is in."""
        return self.order_P // self.place_BL.shape[1]

    def back(self, gradient_PW: torch.Tensor) -> torch.Tensor:
        """Sums [R, W] of what each distinct row's places hold."""
        return functional.embedding_bag(self.order_P, gradient_PW, self.starts_R, mode="sum")

    def back_weighted(self, gradient_BW: torch.Tensor, weights_BL: torch.Tensor) -> torch.Tensor:
        """The same where a place holds its row's vector times a weight."""
        weights_P = weights_BL.reshape(-1)[self.order_P]
        return functional.embedding_bag(self.row_P, gradient_BW, self.starts_R, mode="sum", per_sample_weights=weights_P)

    def sums(self, values_RW: torch.Tensor, weights_BL: torch.Tensor) -> torch.Tensor:
        """Weighted sums [B, W] over each row's places."""
        return functional.embedding_bag(self.place_BL, values_RW, mode="sum", per_sample_weights=weights_BL.contiguous())

    def dots(self, values_RW: torch.Tensor, target_BW: torch.Tensor, written_BLW: torch.Tensor | None) -> torch.Tensor:
        """Products [B, L] of each row's vector with the values at its places; where they are not written down, by a weighted sum's derivative."""
        if written_BLW is not None:
            return torch.bmm(written_BLW, target_BW.unsqueeze(2)).squeeze(2)
        with torch.enable_grad():  # not within torch.inference_mode, which would refuse it
            weights_BL = values_RW.new_zeros(self.place_BL.shape).requires_grad_()
            (dots_BL,) = torch.autograd.grad(self.sums(values_RW.detach(), weights_BL), weights_BL, target_BW.detach())
        return dots_BL


class SequenceValues(torch.autograd.Function):
    """Values [R, W] at the places [B, L, W]; padding passes no gradient."""

    @staticmethod
    def forward(ctx: Any, values_RW: torch.Tensor, places: Places) -> torch.Tensor:
        ctx.places = places
        return functional.embedding(places.place_BL, values_RW)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        of_values = ctx.places.back(gradients[0].reshape(-1, gradients[0].shape[-1]))
        of_values[0] = 0
        return of_values, None


class SequenceDots(torch.autograd.Function):
    """Products of each row's vector [B, W] with the values [R, W] at its places, [B, L]; [B, L, W] and its gradient would cost many times as much."""

    @staticmethod
    def forward(ctx: Any, values_RW: torch.Tensor, target_BW: torch.Tensor, written_BLW: torch.Tensor | None, places: Places) -> torch.Tensor:
        ctx.save_for_backward(values_RW, target_BW)
        ctx.places = places
        return places.dots(values_RW, target_BW, written_BLW)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        values_RW, target_BW = ctx.saved_tensors
        of_values = ctx.places.back_weighted(target_BW, gradients[0]) if ctx.needs_input_grad[0] else None
        of_target = ctx.places.sums(values_RW, gradients[0]) if ctx.needs_input_grad[1] else None
        return of_values, of_target, None, None


class SequenceSums(torch.autograd.Function):
    """Sums of the values [R, W] at each row's places, weighted [B, L]: [B, W]."""

    @staticmethod
    def forward(ctx: Any, values_RW: torch.Tensor, weights_BL: torch.Tensor, written_BLW: torch.Tensor | None, places: Places) -> torch.Tensor:
        ctx.save_for_backward(values_RW, weights_BL, written_BLW)
        ctx.places = places
        return places.sums(values_RW, weights_BL)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        values_RW, weights_BL, written_BLW = ctx.saved_tensors
        of_values = ctx.places.back_weighted(gradients[0], weights_BL) if ctx.needs_input_grad[0] else None
        of_weights = ctx.places.dots(values_RW, gradients[0], written_BLW) if ctx.needs_input_grad[1] else None
        return of_values, of_weights, None, None


class SequenceHidden(torch.autograd.Function):
    """relu(shift + value @ matrix + age * recency) at every place, [B, L, K]: each row's own matrix [B, D, K] on the values [R, D] at its places.

    In one function, since each of its steps would read and write all of [B, L, K] once more, forth and back.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values_RD: torch.Tensor,
        matrix_BDK: torch.Tensor,
        shift_BK: torch.Tensor,
        recency_K: torch.Tensor | None,
        age_BL: torch.Tensor | None,
        sequence_BLD: torch.Tensor,
        places: Places,
    ) -> torch.Tensor:
        hidden_BLK = torch.empty(*sequence_BLD.shape[:2], matrix_BDK.shape[2], dtype=matrix_BDK.dtype, device=matrix_BDK.device)
        for piece in _pieces(hidden_BLK):
            shift, hidden = shift_BK[piece].unsqueeze(1), hidden_BLK[piece]
            if recency_K is None or age_BL is None:
                torch.baddbmm(shift, sequence_BLD[piece], matrix_BDK[piece], out=hidden)
            else:
                torch.addcmul(shift, age_BL[piece].unsqueeze(2), recency_K, out=hidden).baddbmm_(sequence_BLD[piece], matrix_BDK[piece])
            hidden.relu_()
        ctx.save_for_backward(sequence_BLD, matrix_BDK, hidden_BLK, age_BL)
        ctx.places = places
        return hidden_BLK

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sequence_BLD, matrix_BDK, hidden_BLK, age_BL = ctx.saved_tensors
        of_sequence, of_matrix, of_shift = torch.empty_like(sequence_BLD), torch.empty_like(matrix_BDK), torch.empty_like(matrix_BDK[:, 0])
        of_recency = None if age_BL is None else torch.zeros(matrix_BDK.shape[2], device=matrix_BDK.device)
        for piece in _pieces(hidden_BLK):
            sums_BLK = torch.ops.aten.threshold_backward(gradients[0][piece], hidden_BLK[piece], 0)
            torch.bmm(sums_BLK, matrix_BDK[piece].transpose(1, 2), out=of_sequence[piece])
            torch.bmm(sequence_BLD[piece].transpose(1, 2), sums_BLK, out=of_matrix[piece])
            torch.sum(sums_BLK, dim=1, out=of_shift[piece])
            if of_recency is not None:
                of_recency += age_BL[piece].reshape(-1).to(sums_BLK.dtype) @ sums_BLK.flatten(0, 1)
        of_values = ctx.places.back(_full(of_sequence.flatten(0, 1)))
        of_values[0] = 0
        return of_values, of_matrix, of_shift, of_recency, None, None, None


def _pieces(hidden_BLK: torch.Tensor) -> list[slice]:
    """Rows that are worked on at a time, so that they stay in a CPU's cache."""
    rows = len(hidden_BLK) if hidden_BLK.is_cuda else max(_PIECE // max(hidden_BLK[:1].numel(), 1), 1)
    return [slice(start, start + rows) for start in range(0, len(hidden_BLK), max(rows, 1))]


def summed(table_RW: torch.Tensor, place_BL: torch.Tensor, weights_BL: torch.Tensor) -> torch.Tensor:
    """Sums [B, W] of the rows of a table at each row's places, weighted."""
    sums_BW: torch.Tensor = SequenceSums.apply(table_RW, weights_BL, None, Places(place_BL, len(table_RW)))  # type: ignore[no-untyped-call]
    return sums_BW


@dataclass(frozen=True)
class DistinctRows:
    """The distinct item rows of a batch's sequences, padding first."""

    rows_R: torch.Tensor  # ascending
    sequences: tuple[torch.Tensor, ...]  # those that it was made of
    places: tuple[Places, ...]  # of each of them; empty where all rows of the batch share one, which is looked up as it is

    @staticmethod
    def of(sequences: Sequence[torch.Tensor]) -> "DistinctRows":
        """From item rows of any shape; it costs nothing of the catalogue's size."""
        padding = torch.zeros(1, dtype=torch.int64, device=sequences[0].device)
        if all(is_shared(rows) for rows in sequences):
            return DistinctRows(torch.unique(torch.cat([padding, *(rows[0] for rows in sequences)])), tuple(sequences), ())
        orders = [torch.sort(rows.reshape(-1).int(), stable=True) for rows in sequences]
        runs = [_runs(found.values) for found in orders]
        together = torch.sort(torch.cat([padding, *(values for values, _ in runs)]), stable=True)
        rows_R, number = _runs(together.values)
        place_of = torch.split(torch.empty_like(number).scatter_(0, together.indices, number)[1:], [len(values) for values, _ in runs])
        places = [
            Places(torch.empty_like(found.indices).scatter_(0, found.indices, mine[run]).view(rows.shape), len(rows_R), found.indices)
            for rows, found, (_, run), mine in zip(sequences, orders, runs, place_of, strict=True)
        ]
        return DistinctRows(rows_R, tuple(sequences), tuple(places))

    def place(self, rows: torch.Tensor) -> torch.Tensor:
        """Places of item rows that are among the distinct ones."""
        return torch.searchsorted(self.rows_R, rows)

    def places_of(self, rows_BL: torch.Tensor) -> Places:
        """Of one of the sequences, or of another whose rows are among the distinct ones."""
        for sequence, places in zip(self.sequences, self.places):
            if sequence is rows_BL:
                return places
        return Places(self.place(rows_BL), len(self.rows_R))


@dataclass(frozen=True)
class ItemSequence:
    """A sequence of item rows [B, L], one of those that `distinct` was made of, with a vector [R, W] for each distinct row."""

    distinct: DistinctRows
    values_RW: torch.Tensor
    rows_BL: torch.Tensor
    written_BLW: torch.Tensor | None = None  # the vectors place by place, where something needs them so; they pass no gradient

    @staticmethod
    def written(distinct: DistinctRows, values_RW: torch.Tensor, rows_BL: torch.Tensor) -> "ItemSequence":
        """One whose vectors are written down place by place, as attention's first layer reads them."""
        if is_shared(rows_BL):
            return ItemSequence(distinct, values_RW, rows_BL)
        return ItemSequence(distinct, values_RW, rows_BL, functional.embedding(distinct.places_of(rows_BL).place_BL, values_RW.detach()))

    @property
    def shared(self) -> bool:
        """All rows of the batch have one sequence."""
        return is_shared(self.rows_BL)

    @property
    def mask_BL(self) -> torch.Tensor:  # noqa: N802
        """Where there is an item; [1, L] where all rows have one sequence."""
        return self.once(self.rows_BL) > 0

    def once(self, beside_BL: torch.Tensor) -> torch.Tensor:
        """What stands beside the sequence; [1, L] where all rows have one sequence."""
        return beside_BL[:1] if self.shared else beside_BL

    @cached_property
    def one_LW(self) -> torch.Tensor:  # noqa: N802
        """The vectors of the one sequence that all rows have; padding passes no gradient."""
        return functional.embedding(self.distinct.place(self.rows_BL[0]), self.values_RW, padding_idx=0)

    @cached_property
    def spread_BLW(self) -> torch.Tensor:  # noqa: N802
        """The vectors place by place, or [1, L, W]; padding passes no gradient."""
        if self.shared:
            return self.one_LW.unsqueeze(0)
        spread: torch.Tensor = SequenceValues.apply(self.values_RW, self.distinct.places_of(self.rows_BL))  # type: ignore[no-untyped-call]
        return spread

    def first(self, width: int) -> "ItemSequence":
        """The same sequence with the first `width` numbers of each vector."""
        written_BLW = None if self.written_BLW is None else self.written_BLW[..., :width]
        return ItemSequence(self.distinct, self.values_RW[:, :width].contiguous(), self.rows_BL, written_BLW)

    def detached(self) -> "ItemSequence":
        """The same, whose vectors learn nothing."""
        return replace(self, values_RW=self.values_RW.detach())

    def dots(self, target_BW: torch.Tensor) -> torch.Tensor:
        """Products of each row's target with its sequence's vectors, [B, L]."""
        if self.shared:
            return target_BW @ self.one_LW.T
        places = self.distinct.places_of(self.rows_BL)
        with _in_full(target_BW):
            dots_BL: torch.Tensor = SequenceDots.apply(  # type: ignore[no-untyped-call]
                _full(self.values_RW), _full(target_BW), None if self.written_BLW is None else _full(self.written_BLW), places
            )
        return dots_BL

    def pooled(self, weights_BL: torch.Tensor) -> torch.Tensor:
        """Weighted sums of each row's sequence, [B, W]."""
        if self.shared:
            return weights_BL @ self.one_LW
        places = self.distinct.places_of(self.rows_BL)
        with _in_full(weights_BL):
            sums_BW: torch.Tensor = SequenceSums.apply(  # type: ignore[no-untyped-call]
                _full(self.values_RW), _full(weights_BL), None if self.written_BLW is None else _full(self.written_BLW), places
            )
        return sums_BW

    def hidden(self, matrix_BDK: torch.Tensor, shift_BK: torch.Tensor, recency_K: torch.Tensor | None, age_BL: torch.Tensor | None) -> torch.Tensor:
        """SequenceHidden [B, L, K] of a sequence that is written down, in autocast's dtype where that is on."""
        assert self.written_BLW is not None
        device = matrix_BDK.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else matrix_BDK.dtype
        cast = [None if part is None else part.to(dtype) for part in (matrix_BDK, shift_BK, recency_K, age_BL, self.written_BLW)]
        with _in_full(matrix_BDK):
            hidden_BLK: torch.Tensor = SequenceHidden.apply(self.values_RW, *cast, self.distinct.places_of(self.rows_BL))  # type: ignore[no-untyped-call]
        return hidden_BLK


def _in_full(beside: torch.Tensor) -> torch.autocast:
    """Without autocast, for what adds up over places or chooses its dtypes itself."""
    return torch.autocast(beside.device.type, enabled=False)


def _full(values: torch.Tensor) -> torch.Tensor:
    """At least float32; a product's bfloat16 is widened."""
    return values.float() if values.dtype == torch.bfloat16 else values


def _runs(sorted_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct values of sorted ones, and for each of these which of the distinct ones it is."""
    first_P = torch.ones_like(sorted_P, dtype=torch.bool)
    first_P[1:] = sorted_P[1:] != sorted_P[:-1]
    return sorted_P[first_P].long(), first_P.cumsum(0) - 1
