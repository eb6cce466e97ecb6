"""SaviorEnc: a trained projection over frozen text (and image) vectors, taught by behaviour pairs (SaviorRec, step 1)."""

from typing import Literal

from pydantic import Field

from longtail.settings import Compute, Settings


class ItemEncoderSettings(Settings):
    """The `item_encoder` stage."""

    pairs: tuple[Literal["basket", "co_click", "co_purchase"], ...] = ("co_purchase",)
    window_days: float = Field(28.0, gt=0, description="two purchases of one user form a pair when they lie this close")
    swing_alpha: float = Field(1.0, gt=0, description="swing-like weight: 1 / (alpha + common items) for each pair of users")
    max_pairs: int = Field(200_000, ge=100)
    dim: int = Field(64, ge=4)
    hidden_dim: int = Field(256, ge=0, description="0: a linear projection")
    temperature: float = Field(0.07, gt=0)
    logq_correction: bool = True
    epochs: int = Field(4, ge=1)
    pair_batch_size: int = Field(1024, ge=8)
    learning_rate: float = Field(1e-3, gt=0)
    image_encoder: str | None = Field(None, description="timm:<name>, package:<name>, or a sentence-transformers folder; None: text only")
    hit_k: int = Field(30, ge=1)
    compute: Compute = Compute(num_actors=1)
