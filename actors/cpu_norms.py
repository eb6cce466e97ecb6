"""Norms for vLLM on CPU, to the last bit what its own are.

Without torch.compile, which takes a minute at every start and rounds otherwise, vLLM runs a norm as nine operations over whole float32 copies of its input:
a sixth of an answer's time. Here they work in place, on as many rows at a time as the processor's cache holds.

Letters: N tokens, D width. The argument names are vLLM's, which compares them with its own.
"""

import functools
from typing import Any

import torch

PROVIDER = "in_place"
ROWS = 512  # 1.2 MB in float32 at the width of the packaged model


@functools.cache
def in_place_norms() -> dict[str, Any]:
    """Register the norms, once in a process; returns the arguments with which vLLM's engine takes them."""
    from vllm import ir

    ops: Any = ir.ops
    ops.rms_norm.register_impl(PROVIDER, supports_args=lambda x, weight, epsilon, variance_size=None: _fits(x, weight, variance_size))(rms_norm)
    ops.fused_add_rms_norm.register_impl(
        PROVIDER, supports_args=lambda x, x_residual, weight, epsilon, variance_size=None: _fits(x, weight, variance_size), inplace=True
    )(fused_add_rms_norm)
    return {"ir_op_priority": {"rms_norm": [PROVIDER], "fused_add_rms_norm": [PROVIDER]}}


def _fits(x: torch.Tensor, weight: torch.Tensor | None, variance_size: int | None) -> bool:
    return x.dim() == 2 and variance_size is None and weight is not None and weight.dtype == x.dtype


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None) -> torch.Tensor:
    """x [N, D], each row divided by its root mean square and multiplied by weight [D]."""
    normed = torch.empty_like(x)
    for start in range(0, len(x), ROWS):
        _scale(x[start : start + ROWS].to(torch.float32, copy=True), weight, epsilon, normed[start : start + ROWS])
    return normed


def fused_add_rms_norm(
    x: torch.Tensor, x_residual: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of x + x_residual [N, D], written to x, and the sum, written to x_residual."""
    for start in range(0, len(x), ROWS):
        rows, residual = x[start : start + ROWS], x_residual[start : start + ROWS]
        total = rows.to(torch.float32, copy=True).add_(residual)
        residual.copy_(total)
        _scale(total, weight, epsilon, rows)
    return x, x_residual


def _scale(rows: torch.Tensor, weight: torch.Tensor | None, epsilon: float, to: torch.Tensor) -> None:
    assert weight is not None
    rows.mul_((rows * rows).mean(dim=-1, keepdim=True).add_(epsilon).rsqrt_())
    to.copy_(rows).mul_(weight)
