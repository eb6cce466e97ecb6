"""A BERT encoder's forward pass over packs of texts, for sentence encoders of that architecture: no padding, weights held in the type of the products.

The stream between the layers, layer norms and pooling stay in float32; what the matrices multiply is in `dtype`. Letters: T tokens of a pack, N texts of a run,
L its length, U distinct pairs of a
token and its position, D width, E three times that, H heads, F inner width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from longtail.packing import Pack, Run

POOLINGS = ("mean", "cls")


@dataclass(frozen=True)
class Norm:
    """A layer norm's weights, in float32."""

    weight_D: Tensor
    bias_D: Tensor
    eps: float

    def __call__(self, x_TD: Tensor) -> Tensor:
        return functional.layer_norm(x_TD, self.weight_D.shape, self.weight_D, self.bias_D, self.eps)


@dataclass(frozen=True)
class Dense:
    """A matrix and its bias, in the type of the products; on a CPU held in oneDNN's own order, into which it would else be brought at every call."""

    weight_OI: Tensor
    bias_O: Tensor
    ordered: Tensor | None = None

    def __call__(self, x_TI: Tensor, gelu: bool = False) -> Tensor:
        x_TI = x_TI.to(self.bias_O.dtype)
        if self.ordered is not None:
            found: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, self.ordered, self.bias_O, "gelu" if gelu else "none", [], "none" if gelu else "")
            return found
        y_TO = functional.linear(x_TI, self.weight_OI, self.bias_O)
        return functional.gelu(y_TO) if gelu else y_TO

    def to(self, device: str, dtype: torch.dtype) -> "Dense":
        weight_OI, bias_O = self.weight_OI.to(device, dtype), self.bias_O.to(device, dtype)
        orders = device == "cpu" and dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return Dense(weight_OI, bias_O, torch.ops.mkldnn._reorder_linear_weight(weight_OI, None) if orders else None)


@dataclass(frozen=True)
class Layer:
    """One transformer layer; the queries' matrix already holds attention's 1 / sqrt(width of a head)."""

    qkv: Dense
    out: Dense
    attention_norm: Norm
    up: Dense
    down: Dense
    norm: Norm
    num_heads: int

    def __call__(self, x_TD: Tensor, qkv_TE: Tensor, runs: Sequence[Run], guarded: bool) -> Tensor:
        context_TD = attend(qkv_TE, runs, self.num_heads, guarded)
        x_TD = self.attention_norm(x_TD.add_(self.out(context_TD)))
        return self.norm(x_TD.add_(self.down(self.up(x_TD, gelu=True))))


class StreamLayer(Protocol):
    """What stands in a PackedBert's line: a function of the stream, which it may write over, of what its own `qkv` makes of it, and of the runs in it."""

    @property
    def qkv(self) -> Callable[[Tensor], Tensor]: ...

    def __call__(self, x_TD: Tensor, qkv_TE: Tensor, runs: Sequence[Run], guarded: bool) -> Tensor: ...


@dataclass(frozen=True)
class PackedBert:
    """Embedding tables, layers and pooling of one encoder on one device."""

    word_VD: Tensor
    position_PD: Tensor  # with the one token type's added
    embedding_norm: Norm
    layers: tuple[StreamLayer, ...]
    pooling: str

    def __call__(self, pack: Pack) -> Tensor:
        """Pooled float32 vectors [texts of the pack, D], in the pack's order, on the encoder's device."""
        guarded = self.word_VD.device.type != "cpu"
        vectors_ND = self._pooled(pack, guarded)
        if not guarded and not vectors_ND.isfinite().all():
            vectors_ND = self._pooled(pack, guarded=True)
        return vectors_ND

    def _pooled(self, pack: Pack, guarded: bool) -> Tensor:
        tokens_U, positions_U, pairs_T = (placed(torch.from_numpy(ids), self.word_VD.device) for ids in (pack.tokens_U, pack.positions_U, pack.pairs_T))
        x_UD = self.embedding_norm(self.word_VD[tokens_U] + self.position_PD[positions_U])
        x_TD, qkv_TE = x_UD.index_select(0, pairs_T), self.layers[0].qkv(x_UD).index_select(0, pairs_T)
        for number, layer in enumerate(self.layers):
            x_TD = layer(x_TD, layer.qkv(x_TD) if number else qkv_TE, pack.runs, guarded)
        pooled = []
        for run in pack.runs:
            x_NLD = x_TD[run.start : run.stop].view(run.num_texts, run.length, -1)
            pooled.append(x_NLD.mean(1) if self.pooling == "mean" else x_NLD[:, 0])
        return torch.cat(pooled)


def placed(ids: Tensor, device: torch.device) -> Tensor:
    """Ids on the device; to a GPU from pinned memory, so that the copy runs beside its work."""
    return ids.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else ids.to(device)


def attend(qkv_TE: Tensor, runs: Sequence[Run], num_heads: int, guarded: bool, dtype: torch.dtype | None = None) -> Tensor:
    """Self-attention within each text, [T, D] in `dtype` (None: as what comes in); fillers get zeros.

    Unguarded, the softmax leaves out its row's maximum: trained encoders' scores lie far inside exp's range, and finding the maximum costs more than the
    products around it. A text whose scores do not comes out as NaN, which PackedBert notices and does again, guarded.
    """
    width = qkv_TE.shape[1] // 3
    context_TD = qkv_TE.new_zeros(len(qkv_TE), width, dtype=dtype)
    for run in runs:
        shape = (run.num_texts, run.length, num_heads, width // num_heads)
        qkv = qkv_TE[run.start : run.stop].view(*shape[:2], 3, *shape[2:]).permute(2, 0, 3, 1, 4)
        context_NHLD = context_TD[run.start : run.stop].view(shape).transpose(1, 2)
        if guarded:
            context_NHLD.copy_(functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], scale=1.0))
            continue
        query, key, value = qkv.reshape(3, run.num_texts * num_heads, run.length, shape[-1])
        weights = torch.bmm(query, key.transpose(1, 2)).exp_()
        total_NHL1 = weights.sum(-1, keepdim=True, dtype=torch.float32).view(run.num_texts, num_heads, run.length, -1)
        torch.div(torch.bmm(weights, value).view(run.num_texts, num_heads, run.length, -1), total_NHL1, out=context_NHLD)
    return context_TD


def is_plain_bert(config: Any, module_names: Sequence[str], pooling: Any) -> bool:
    """Whether the forward pass above is the whole of what a sentence-transformers model does."""
    return (
        config.model_type == "bert"
        and config.hidden_act == "gelu"
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and not config.is_decoder
        and tuple(module_names) in (("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize"))
        and pooling in POOLINGS
    )


def packed_bert(config: Any, weights: Mapping[str, Tensor], pooling: str, dtype: torch.dtype, device: str) -> PackedBert:
    """From a Hugging Face BertModel's config and state dict."""

    def norm(name: str) -> Norm:
        return Norm(weights[f"{name}.weight"].to(device, torch.float32), weights[f"{name}.bias"].to(device, torch.float32), config.layer_norm_eps)

    def dense(name: str) -> Dense:
        return Dense(weights[f"{name}.weight"], weights[f"{name}.bias"])

    def layer(name: str) -> Layer:
        query, key, value = (dense(f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        scale = (config.hidden_size // config.num_attention_heads) ** -0.5
        qkv = Dense(torch.cat([query.weight_OI * scale, key.weight_OI, value.weight_OI]), torch.cat([query.bias_O * scale, key.bias_O, value.bias_O]))
        return Layer(
            qkv.to(device, dtype),
            dense(f"{name}.attention.output.dense").to(device, dtype),
            norm(f"{name}.attention.output.LayerNorm"),
            dense(f"{name}.intermediate.dense").to(device, dtype),
            dense(f"{name}.output.dense").to(device, dtype),
            norm(f"{name}.output.LayerNorm"),
            config.num_attention_heads,
        )

    positions = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    return PackedBert(
        weights["embeddings.word_embeddings.weight"].to(device, torch.float32),
        positions.to(device, torch.float32),
        norm("embeddings.LayerNorm"),
        tuple(layer(f"encoder.layer.{number}") for number in range(config.num_hidden_layers)),
        pooling,
    )
