"""A packed BERT encoder's layers in 8-bit integers, on CPUs: about seven tenths of bfloat16's time, at a cosine of about 0.998 to float32.

Departs from the usual dynamic quantisation, in which a text's vector depends on the texts beside it: the ranges of what the matrices meet are measured once, on
texts made of the model's own vocabulary. Inputs are evened out over their channels first (SmoothQuant, Xiao et al. 2023, section 4). The few inner neurons that
reach far beyond all others are left out of the integers and added in float32. Letters as in longtail.packed_bert.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from longtail.packed_bert import Dense, Layer, Norm, PackedBert, attend
from longtail.packing import Run, packs

EVENED = 0.6  # how much of a channel's range goes from the input into the weights
NUM_FAR = 8  # inner neurons of a layer that stay in float32
ROOM = 1.1  # over the largest value that was measured
MOST_TOKENS = 2048  # of a pack of the measurement
MIDDLE = 128  # the zero of unsigned inputs, which CPUs multiply by signed weights


@dataclass(frozen=True)
class Ranges:
    """The largest magnitudes by channel that the four matrices of a layer met."""

    qkv_D: Tensor
    out_D: Tensor
    up_D: Tensor
    down_F: Tensor


@dataclass(frozen=True)
class Int8Dense:
    """A matrix of signed and an input of unsigned 8-bit integers; what comes out is a float, or the next matrix's input."""

    per_step_I: Tensor  # what the input is multiplied by
    step: float
    ordered: Tensor
    weight_step_O: Tensor
    bias_O: Tensor
    zeros_O: Tensor
    gives: torch.dtype

    def quantised(self, x_TI: Tensor) -> Tensor:
        return torch.addcmul(torch.tensor(MIDDLE + 0.5), x_TI, self.per_step_I).clamp_(0, 255).to(torch.uint8)

    def __call__(self, x_TI: Tensor) -> Tensor:
        return self.of_integers(self.quantised(x_TI), self.step, MIDDLE)

    def of_integers(self, x_TI: Tensor, step: float, zero: int) -> Tensor:
        return self._product(x_TI, step, zero, 1.0, 0, self.gives, "none")

    def gelu(self, x_TI: Tensor, step: float, zero: int) -> Tensor:
        """GELU of the product, as integers of the given step and zero."""
        return self._product(self.quantised(x_TI), self.step, MIDDLE, step, zero, torch.uint8, "gelu")

    def _product(self, x_TI: Tensor, step: float, zero: int, out_step: float, out_zero: int, dtype: torch.dtype, then: str) -> Tensor:
        given = (x_TI, step, zero, self.ordered, self.weight_step_O, self.zeros_O, self.bias_O, out_step, out_zero, dtype)
        found: Tensor = torch.ops.onednn.qlinear_pointwise(*given, then, [], "none" if then == "gelu" else "")
        return found


@dataclass(frozen=True)
class Int8Layer:
    """One transformer layer; `far_up` and `far_down_FD` are the neurons that reach far."""

    qkv: Int8Dense
    out: Int8Dense
    attention_norm: Norm
    up: Int8Dense
    down: Int8Dense
    inner_step: float
    inner_zero: int
    far_up: Dense
    far_down_FD: Tensor
    norm: Norm
    num_heads: int

    def __call__(self, x_TD: Tensor, qkv_TE: Tensor, runs: Sequence[Run], guarded: bool) -> Tensor:
        context_TD = attend(qkv_TE, runs, self.num_heads, guarded, torch.float32)
        x_TD = self.attention_norm(x_TD.add_(self.out(context_TD)))
        inner_TF = self.up.gelu(x_TD, self.inner_step, self.inner_zero)
        far_TF = functional.gelu(functional.linear(x_TD, self.far_up.weight_OI, self.far_up.bias_O))
        return self.norm(x_TD.addmm_(far_TF, self.far_down_FD).add_(self.down.of_integers(inner_TF, self.inner_step, self.inner_zero)))


@dataclass(frozen=True)
class Metered(Dense):
    """A matrix that keeps the largest magnitudes of its inputs by channel."""

    met: list[Tensor] = field(default_factory=list)

    def __call__(self, x_TI: Tensor, gelu: bool = False) -> Tensor:
        self.met.append(x_TI.abs().amax(0))
        return super().__call__(x_TI, gelu)

    @property
    def most(self) -> Tensor:
        return torch.stack(self.met).amax(0)


def quantised(model: PackedBert, token_ids: Sequence[Sequence[int]]) -> PackedBert:
    """A float32 encoder with its layers in 8-bit integers, whose ranges are those of the given texts."""
    metered = [metered_layer(layer) for layer in model.layers if isinstance(layer, Layer)]
    assert len(metered) == len(model.layers), "integers are made of float32 layers"
    with torch.inference_mode():
        for pack in packs(token_ids, MOST_TOKENS):
            replace(model, layers=tuple(layer for layer, _ in metered))(pack)
        layers = [int8_layer(layer, Ranges(*(meter.most for meter in meters))) for layer, meters in metered]
    return replace(model, layers=tuple(layers))


def metered_layer(layer: Layer) -> tuple[Layer, list[Metered]]:
    """The layer with meters at its four matrices, and the meters."""
    qkv, out, up, down = meters = [Metered(dense.weight_OI, dense.bias_O) for dense in (layer.qkv, layer.out, layer.up, layer.down)]
    return replace(layer, qkv=qkv, out=out, up=up, down=down), meters


def int8_layer(layer: Layer, ranges: Ranges) -> Int8Layer:
    """A float layer in integers."""
    order = ranges.down_F.argsort(descending=True)
    far, rest = order[:NUM_FAR], order[NUM_FAR:]
    least = 0.17  # GELU's own minimum is -0.16997
    inner_step = (float(ranges.down_F[rest].max()) * ROOM + least) / 255
    down_OI = layer.down.weight_OI.clone()
    down_OI[:, far] = 0
    flat = torch.ones_like(ranges.down_F)
    return Int8Layer(
        qkv=int8_dense(layer.qkv, ranges.qkv_D, gives=torch.bfloat16),
        out=int8_dense(layer.out, ranges.out_D),
        attention_norm=layer.attention_norm,
        up=int8_dense(layer.up, ranges.up_D),
        down=int8_dense(Dense(down_OI, layer.down.bias_O), flat, even=False),
        inner_step=inner_step,
        inner_zero=round(least / inner_step),
        far_up=Dense(layer.up.weight_OI[far], layer.up.bias_O[far]),
        far_down_FD=layer.down.weight_OI[:, far].t().contiguous(),
        norm=layer.norm,
        num_heads=layer.num_heads,
    )


def int8_dense(dense: Dense, most_I: Tensor, even: bool = True, gives: torch.dtype = torch.float32) -> Int8Dense:
    """A matrix in integers, one step a row of it; `most_I` are the largest magnitudes of its inputs."""
    tiny = 1e-5
    share_I = torch.ones_like(most_I)
    if even:
        share_I = most_I.clamp_min(tiny) ** EVENED / dense.weight_OI.abs().amax(0).clamp_min(tiny) ** (1 - EVENED)
    step = float((most_I / share_I).max()) * ROOM / 127
    weight_OI = dense.weight_OI * share_I
    weight_step_O = weight_OI.abs().amax(1).clamp_min(tiny) / 127
    integers_OI = torch.round(weight_OI / weight_step_O[:, None]).to(torch.int8)
    zeros_O = torch.zeros(len(integers_OI), dtype=torch.int64)
    ordered = torch.ops.onednn.qlinear_prepack(integers_OI, None)
    return Int8Dense(1 / (share_I * step), step, ordered, weight_step_O, dense.bias_O, zeros_O, gives)


def vocabulary_texts(vocabulary: Sequence[str], num_texts: int = 96, seed: int = 0) -> list[str]:
    """Texts of the vocabulary's words with the usual marks between them, of 2 to 80 words, and two odd ones: a stand-in for any catalogue's."""
    words = sorted(word for word in vocabulary if len(word) > 2 and word.isascii() and word.isalpha())
    rng = np.random.default_rng(seed)
    marks = (" ", " ", " ", " ", ", ", ". ", " > ", " (", ") ")
    texts = ["", f"{words[0]} " * 80]
    for length in np.geomspace(2, 80, num_texts).astype(int):
        parts = [(words[rng.integers(len(words))], marks[rng.integers(len(marks))]) for _ in range(length)]
        texts.append("".join(word + mark for word, mark in parts))
    return texts
