"""The packed forward pass beside transformers' own BERT, on a tiny one with random weights; and its integers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from longtail.int8_bert import int8_dense, quantised, vocabulary_texts
from longtail.packed_bert import Dense, PackedBert, attend, is_plain_bert, packed_bert, placed
from longtail.packing import Run, packs

CONFIG = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=24)
TEXTS = [[1, 5, 9, 2], [1, 7, 2], [1, 8, 8, 2], [1, *range(10, 28), 2]]


@pytest.fixture(scope="module")
def bert() -> BertModel:
    torch.manual_seed(0)
    return BertModel(CONFIG).eval()


def packed(bert: BertModel, pooling: str = "mean", dtype: torch.dtype = torch.float32, device: str = "cpu") -> PackedBert:
    return packed_bert(CONFIG, bert.state_dict(), pooling, dtype, device)


def pooled(model: PackedBert) -> Tensor:
    (pack,) = packs(TEXTS, 200)
    with torch.inference_mode():
        return model(pack)[torch.from_numpy(pack.texts).argsort()]


def expected(bert: BertModel, pooling: str) -> Tensor:
    with torch.inference_mode():
        outputs = [bert(torch.tensor([ids])).last_hidden_state[0] for ids in TEXTS]
    return torch.stack([one.mean(0) if pooling == "mean" else one[0] for one in outputs])


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_equal_to_transformers(bert: BertModel, pooling: str) -> None:
    torch.testing.assert_close(pooled(packed(bert, pooling)), expected(bert, pooling), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("narrow", ["bfloat16", "int8"])
def test_narrower_products_stay_close(bert: BertModel, narrow: str) -> None:
    whole = packed(bert)
    model = packed(bert, dtype=torch.bfloat16) if narrow == "bfloat16" else quantised(whole, TEXTS)
    apart = (pooled(model) - pooled(whole)).norm(dim=1) / pooled(whole).norm(dim=1)
    assert 1e-5 < apart.max() < (0.01 if narrow == "bfloat16" else 0.05)


def test_scores_beyond_exp_are_done_again_with_their_maximum(bert: BertModel) -> None:
    whole = packed(bert)
    steep = tuple(replace(layer, qkv=Dense(layer.qkv.weight_OI * 60, layer.qkv.bias_O)) for layer in whole.layers)  # type: ignore[type-var, attr-defined]
    found = pooled(replace(whole, layers=steep))
    assert found.isfinite().all()
    qkv_TE = 300 * torch.randn(7, 96, generator=torch.Generator().manual_seed(0))
    assert not attend(qkv_TE, [Run(0, 1, 7)], 4, guarded=False).isfinite().all()
    assert attend(qkv_TE, [Run(0, 1, 7)], 4, guarded=True).isfinite().all()


def test_both_ways_to_attend_agree() -> None:
    qkv_TE = torch.randn(20, 96, generator=torch.Generator().manual_seed(0))
    runs = [Run(0, 3, 4), Run(12, 1, 6)]
    plain = attend(qkv_TE, runs, 4, guarded=False)
    torch.testing.assert_close(plain, attend(qkv_TE, runs, 4, guarded=True), atol=1e-5, rtol=1e-5)
    assert not plain[18:].any()


def test_another_device_holds_the_weights_in_the_products_type_and_is_guarded(bert: BertModel) -> None:
    model = packed(bert, dtype=torch.bfloat16, device="meta")
    layer: Any = model.layers[0]
    assert {layer.qkv.weight_OI.dtype, layer.down.bias_O.dtype} == {torch.bfloat16}
    assert layer.norm.weight_D.dtype == torch.float32
    assert layer.qkv.ordered is None
    found = pooled(model)
    assert (found.shape, found.dtype, found.device.type) == ((4, 32), torch.float32, "meta")


def test_ids_go_to_a_gpu_from_pinned_memory() -> None:
    told: list[object] = []

    class Ids:
        def pin_memory(self) -> "Ids":
            told.append("pinned")
            return self

        def to(self, device: torch.device, non_blocking: bool = False) -> "Ids":
            told.append((device.type, non_blocking))
            return self

    placed(Ids(), torch.device("cuda"))  # type: ignore[arg-type]
    placed(Ids(), torch.device("meta"))  # type: ignore[arg-type]
    assert told == ["pinned", ("cuda", True), ("meta", False)]


def test_integers_by_hand() -> None:
    dense = int8_dense(Dense(torch.tensor([[1.0, -2.0]] * 16), torch.arange(16.0)), torch.tensor([4.0, 4.0]))
    found = dense(torch.tensor([[3.0, 1.0], [100.0, 0.0]]))
    torch.testing.assert_close(found[0], 1 + torch.arange(16.0), atol=0.08, rtol=0)
    assert found[1, 0] < 9  # beyond what was measured, an input is cut


def test_a_layer_of_floats_is_what_integers_are_made_of(bert: BertModel) -> None:
    with pytest.raises(AssertionError, match="integers are made of float32 layers"):
        quantised(quantised(packed(bert), TEXTS), TEXTS)


def test_texts_of_a_vocabulary_are_the_same_every_time() -> None:
    words = ["milk", "##ing", "bread", "a", "[CLS]", "écru", "tea"]
    texts = vocabulary_texts(words, num_texts=5)
    assert texts == vocabulary_texts(list(reversed(words)), num_texts=5)
    assert all(
        set(text.replace(",", " ").replace(".", " ").replace(">", " ").replace("(", " ").replace(")", " ").split()) <= {"milk", "bread", "tea"}
        for text in texts
    )


def test_what_is_no_plain_bert_is_told() -> None:
    names = ("Transformer", "Pooling", "Normalize")
    assert is_plain_bert(CONFIG, names, "mean")
    assert not is_plain_bert(CONFIG, (*names, "Dense"), "mean")
    assert not is_plain_bert(CONFIG, names, "max")
    assert not is_plain_bert(BertConfig(hidden_act="relu"), names, "mean")
    assert not is_plain_bert(BertConfig(is_decoder=True), names, "mean")
