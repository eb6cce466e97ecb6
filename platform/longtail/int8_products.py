"""Products of int8 vectors, exact in int32 on every machine.

Where the CPU has VNNI or AMX units, or on a GPU, they multiply; elsewhere float32 does, on the same whole numbers and in slices short enough that float32's
24 bits hold every sum. Either way the same bits.
Reads and writes nothing; longtail.kmeans and longtail.nearest compare vectors with it.
Letters: N, K rows, D vector width.
"""

from functools import lru_cache

import torch

INT8_MAX = 127
_MULTIPLE = 8  # what the kernels want of widths and of the number of centroids; a CPU is three times slower beside it
_MIN_ROWS = 32  # a GPU refuses fewer than 17
_FLOAT32_DIM = (1 << 24) // (INT8_MAX * INT8_MAX)


@lru_cache
def has_int8_units() -> bool:
    """Whether this machine's CPU multiplies int8 quicker than float32."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def to_int8(steps: torch.Tensor) -> torch.Tensor:
    """Numbers in steps as int8 [N, D], rounded and clipped to ±127, with zeros up to a width that kernels like."""
    int8 = steps.clamp(-INT8_MAX, INT8_MAX).round_().to(torch.int8)
    return _padded(int8, 0, -int8.shape[1] % _MULTIPLE)


def padded_rows(int8_KD: torch.Tensor) -> torch.Tensor:
    """With zero rows below, up to a number that kernels like."""
    return _padded(int8_KD, -int8_KD.shape[0] % _MULTIPLE, 0)


def products(int8_ND: torch.Tensor, int8_KD: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """int32 [N, K]: every row with every other row; both padded. `out` int32 [N, K] is where to put it if need be, on a CPU."""
    if not int8_ND.is_cuda and not has_int8_units():
        return float_products(int8_ND, int8_KD)
    if out is not None:
        return torch._int_mm(int8_ND, int8_KD.t(), out=out)
    missing = max(_MIN_ROWS - len(int8_ND), 0)
    return torch._int_mm(_padded(int8_ND, missing, 0), int8_KD.t())[: len(int8_ND)]


def float_products(int8_ND: torch.Tensor, int8_KD: torch.Tensor) -> torch.Tensor:
    """`products` by float32, for CPUs without units for int8."""
    slices = zip(torch.split(int8_ND, _FLOAT32_DIM, 1), torch.split(int8_KD, _FLOAT32_DIM, 1), strict=True)
    return torch.stack([(rows.float() @ others.float().t()).to(torch.int32) for rows, others in slices]).sum(0, dtype=torch.int32)


def _padded(int8: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return torch.nn.functional.pad(int8, (0, columns, 0, rows)) if rows or columns else int8
