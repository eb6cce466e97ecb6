"""Gradients between the backward pass and the update: those of ID tables by row, brought together over all workers, and clipped.

A step meets a few thousand of a table's rows. As dense tensors, the gradients of tables of millions of rows are filled, normed, sent and read in full at every
step; by row they cost what the batch costs. Only where an untouched row stays as it is, which is so for Adagrad without weight decay: the result is the same.

Letters: T tables, V rows of a table that a gradient names, D a table's width.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from longtail.rankers.layers import IdTable
from longtail.rankers.ranker import Ranker
from longtail.sample_files import Workers
from longtail.training import TrainSettings

Rows = tuple[torch.Tensor, torch.Tensor]  # row numbers [V], gradients [V, D]


def by_row(ranker: Ranker, settings: TrainSettings) -> dict[str, torch.Tensor]:
    """The parameters whose gradients come by row, by name; from here on they do."""
    possible = settings.optimizer == "adagrad" and settings.weight_decay == 0
    found = {}
    for name, module in ranker.named_modules():
        if isinstance(module, IdTable):
            module.sparse = possible
            if possible:
                found[f"{name}.weight"] = module.weight
    return found


def distributed(ranker: Ranker, apart: Iterable[str], device: torch.device) -> nn.Module:
    """The ranker under DDP, which leaves the gradients of the parameters `apart` to `collect`."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(ranker, list(apart))  # type: ignore[no-untyped-call]
    devices = [device] if device.type == "cuda" else None
    # Views save a copy of every gradient. Not `static_graph`: what the first step leaves without a gradient would never be brought together.
    return DistributedDataParallel(ranker, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True)


def collect(parameters: Sequence[torch.Tensor], workers: Workers) -> None:
    """Put each touched row once into the parameters' gradients, and the mean over the workers, as DDP has it."""
    if not parameters:
        return
    found = [_merged(parameter.grad._indices()[0], parameter.grad._values()) for parameter in parameters if parameter.grad is not None]
    if workers.size > 1:
        found = [_merged(rows_V, values_VD / workers.size) for rows_V, values_VD in _of_all_workers(found, workers)]
    for parameter, (rows_V, values_VD) in zip(parameters, found, strict=True):
        parameter.grad = torch.sparse_coo_tensor(rows_V.unsqueeze(0), values_VD, parameter.shape, check_invariants=False, is_coalesced=True)


def clip(parameters: Iterable[torch.Tensor], max_norm: float) -> float:
    """Scale all gradients so that their norm is at most `max_norm`; returns the norm that they had."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    values = [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]
    norm = float(nn.utils.get_total_norm(values))
    if norm > max_norm and math.isfinite(norm):
        torch._foreach_mul_(values, max_norm / (norm + 1e-6))
    return norm


def _merged(rows_V: torch.Tensor, values_VD: torch.Tensor) -> Rows:
    """Each row once, in ascending order, with the sum of its gradients."""
    if not len(rows_V):
        return rows_V, values_VD
    found = torch.sort(rows_V.int(), stable=True)
    first_V = torch.ones_like(found.values, dtype=torch.bool)
    first_V[1:] = found.values[1:] != found.values[:-1]
    sums = functional.embedding_bag(found.indices, values_VD, first_V.nonzero().squeeze(1), mode="sum")
    return found.values[first_V].long(), sums


def _of_all_workers(found: Sequence[Rows], workers: Workers) -> list[Rows]:
    """All workers' rows of each table, one after the other by rank: two messages a step, for all tables together."""
    # A row number is sent in the bits of a float beside its gradient.
    packed = [torch.cat([values_VD, rows_V.int().view(torch.float32).unsqueeze(1)], dim=1) for rows_V, values_VD in found]
    counts_T = torch.tensor([len(part) for part in packed], device=packed[0].device)
    counts = [torch.empty_like(counts_T) for _ in range(workers.size)]
    dist.all_gather(counts, counts_T)
    widths = [part.shape[1] for part in packed]
    by_worker = [[count * width for count, width in zip(mine.tolist(), widths, strict=True)] for mine in counts]
    longest = max(map(sum, by_worker))
    sent = functional.pad(torch.cat([part.reshape(-1) for part in packed]), (0, longest - sum(part.numel() for part in packed)))
    received = [torch.empty_like(sent) for _ in range(workers.size)]
    dist.all_gather(received, sent)
    parts = [torch.split(one[: sum(sizes)], sizes) for one, sizes in zip(received, by_worker, strict=True)]
    tables = [torch.cat([mine[table].view(-1, width) for mine in parts]) for table, width in enumerate(widths)]
    return [(table[:, -1].contiguous().view(torch.int32).long(), table[:, :-1].contiguous()) for table in tables]
