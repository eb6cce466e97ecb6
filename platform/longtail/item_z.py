"""Item z: the vector by which rankers and codebooks know an item, made of what the item encoder wrote.

Reads the encoder's tables in memory, writes nothing; python -m pipelines.item_z runs it.
Letters: N items, D width of z.
"""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from longtail.settings import Settings
from longtail.user_spaces import unit

Floats = NDArray[np.float32]

Space = Literal["trained", "frozen"]


class ItemZSettings(Settings):
    """The `item_z` stage; spaces = ["trained"], with item_encoder.factor_dim = 0, is the paper's shape."""

    spaces: tuple[Space, ...] = Field(
        ("trained", "frozen"),
        min_length=1,
        description="trained: by behaviour pairs (SaviorEnc) | frozen: the text encoder's vectors, cut to item_encoder.dim; several stand side by side",
    )
    control: Literal["none", "shuffled", "random"] = Field(
        "none", description="shuffled: dealt out to the wrong items | random: drawn anew, equal contents too | what semantics are worth is what is lost"
    )
    seed: int | None = Field(None, ge=0, description="of the control; without it run.seed")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.spaces)) < len(self.spaces):
            raise ValueError(f"spaces = {list(self.spaces)}: name each once")
        return self


def side_by_side(parts: Sequence[Floats]) -> Floats:
    """Unit vectors [N, sum of D] of unit vectors in several spaces; a dot product is the mean of theirs."""
    joined: Floats = (np.concatenate(parts, axis=1) / np.sqrt(len(parts))).astype(np.float32)
    return joined


def controlled(z_ND: Floats, control: str, seed: int) -> Floats:
    """z as it is, dealt out to other rows, or as many random directions."""
    rng = np.random.default_rng([seed, 0x17E])
    if control == "shuffled":
        return z_ND[rng.permutation(len(z_ND))]
    if control == "random":
        return unit(rng.normal(size=z_ND.shape))
    return z_ND
