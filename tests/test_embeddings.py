"""The text encoder beside sentence-transformers itself."""

import numpy as np
import pyarrow as pa
import pytest

from longtail import packed_bert, packed_encoder
from longtail.embeddings import EncoderCompute, EncoderSettings, TextEncoder, encoder_key, item_texts
from longtail.packaged_models import resolve
from longtail.packed_bert import PackedBert

TEXTS = ["fluid milk", "soft drinks and a longer text about what a household buys in a week", "milk", "fluid milk", "", "cat food " * 40]
WHOLE = EncoderSettings(dtype="float32", max_tokens=64)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(WHOLE)


def test_equal_to_sentence_transformers(encoder: TextEncoder) -> None:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(resolve(WHOLE.model), device="cpu")
    reference.max_seq_length = 64
    expected = reference.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=2e-6)


def test_vectors_have_norm_one_and_equal_texts_equal_vectors(encoder: TextEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[3])
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_each_distinct_text_is_embedded_once(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = PackedBert.__call__
    monkeypatch.setattr(PackedBert, "__call__", lambda self, pack: seen.append(len(pack.texts)) or forward(self, pack))  # type: ignore[func-returns-value]
    encoder.encode(["a", "b", "a", "a", "b"])
    assert sum(seen) == 2


def test_the_cut_is_the_first_numbers_normalised_again(encoder: TextEncoder) -> None:
    cut = TextEncoder(WHOLE.model_copy(update={"dim": 64}))
    expected = encoder.encode(TEXTS)[:, :64]
    np.testing.assert_allclose(cut.encode(TEXTS), expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert cut.dim == 64


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.9999), ("int8", 0.99)])
def test_narrower_products_stay_close(encoder: TextEncoder, dtype: str, least: float) -> None:
    narrow = TextEncoder(WHOLE.model_copy(update={"dtype": dtype})).encode(TEXTS)
    assert least <= (narrow * encoder.encode(TEXTS)).sum(1).min() < 0.9999999


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_text_has_one_vector_whatever_stands_beside_it(dtype: str) -> None:
    narrow = TextEncoder(WHOLE.model_copy(update={"dtype": dtype, "compute": EncoderCompute(forward_tokens=64)}))
    together = narrow.encode(TEXTS)
    np.testing.assert_array_equal(together, np.concatenate([narrow.encode([text]) for text in TEXTS]))


def test_texts_of_many_windows_keep_their_places(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoder.encode(TEXTS)
    monkeypatch.setattr(packed_encoder, "WINDOW", 2)
    np.testing.assert_array_equal(encoder.encode(TEXTS), whole)


def test_another_architecture_runs_as_sentence_transformers_runs_it(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_bert, "is_plain_bert", lambda *told: False)
    np.testing.assert_allclose(TextEncoder(WHOLE).encode(TEXTS), encoder.encode(TEXTS), atol=2e-6)
    with pytest.raises(ValueError, match=r"embeddings dtype = 'int8', but .* is no BERT encoder"):
        TextEncoder(WHOLE.model_copy(update={"dtype": "int8"}))


@pytest.mark.parametrize(("num_gpus", "device"), [(0.0, "cpu"), (0.5, "cuda")])
def test_reserved_gpus_choose_the_device(num_gpus: float, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def loading(name: str, device: str) -> None:
        raise LookupError(device)

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", loading)
    with pytest.raises(LookupError, match=device):
        TextEncoder(WHOLE.model_copy(update={"compute": EncoderCompute(num_gpus=num_gpus)}))


def test_a_cut_wider_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"embeddings dim = 1024, but .* gives 384 numbers"):
        TextEncoder(WHOLE.model_copy(update={"dim": 1024}))


def test_the_key_follows_what_decides_the_vectors() -> None:
    faster = WHOLE.model_copy(update={"compute": WHOLE.compute.model_copy(update={"batch_size": 3})})
    assert encoder_key(faster) == encoder_key(WHOLE)
    assert encoder_key(WHOLE.model_copy(update={"dim": 64})) != encoder_key(WHOLE)


def test_item_texts_by_hand() -> None:
    items = pa.table(
        {"item_id": ["1", "2"], "title": ["Whole  milk", "Bolt"], "category": [["GROCERY", "DAIRY"], None], "brand": ["Farm", None], "price": [1.0, 2.0]}
    )
    assert item_texts(items) == ["Whole milk. GROCERY > DAIRY. Farm", "Bolt"]
    assert item_texts(items.select(["item_id", "title"])) == ["Whole milk", "Bolt"]
