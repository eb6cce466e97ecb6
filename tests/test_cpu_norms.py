"""The norms in place give what vLLM's own give, bit by bit."""

import pytest
import torch

from actors.cpu_norms import ROWS, fused_add_rms_norm, in_place_norms, rms_norm

EPSILON = 1e-5


@pytest.mark.parametrize("num_tokens", [1, 5, ROWS, 2 * ROWS + 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bit_by_bit(num_tokens: int, dtype: torch.dtype) -> None:
    ops = pytest.importorskip("vllm.ir").ops
    draw = torch.Generator().manual_seed(num_tokens)
    x, residual = (scale * torch.randn(num_tokens, 576, generator=draw).to(dtype) for scale in (1, 4))
    weight = torch.randn(576, generator=draw).to(dtype)
    expected = ops.rms_norm.impls["native"].impl_fn(x, weight, EPSILON)
    given = x.clone()
    assert torch.equal(rms_norm(given, weight, EPSILON), expected)
    assert torch.equal(given, x)
    expected, expected_residual = ops.fused_add_rms_norm.impls["native"].impl_fn(x, residual, weight, EPSILON)
    normed, total = fused_add_rms_norm(x, residual, weight, EPSILON)
    assert torch.equal(normed, expected)
    assert torch.equal(total, expected_residual)
    assert (normed is x, total is residual) == (True, True)


def test_vllm_takes_them_for_what_they_can_do() -> None:
    ops = pytest.importorskip("vllm.ir").ops
    names = in_place_norms()["ir_op_priority"]
    assert in_place_norms()["ir_op_priority"] == names  # registered once
    with ops.rms_norm.set_priority([*names["rms_norm"], "native"]):
        assert ops.rms_norm.dispatch(torch.ones(2, 8), torch.ones(8), EPSILON).provider == "in_place"
        assert ops.rms_norm.dispatch(torch.ones(2, 2, 8), torch.ones(8), EPSILON).provider == "native"
        assert ops.rms_norm.dispatch(torch.ones(2, 8), None, EPSILON).provider == "native"
