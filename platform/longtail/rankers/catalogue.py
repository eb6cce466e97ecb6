"""What a ranker knows of users and items beside a row's features: ID vocabularies, categories, brands, frozen vectors and codes.

Row numbers are those of the samples: item_row 1..N, user_row 1..M, 0 for padding or unknown. ID indices: 0 padding, 1 out of vocabulary, 2… the IDs.
Letters: N item rows, C category levels, D vector width, S code stages.
"""

from dataclasses import dataclass, fields

import torch
from torch import nn

OOV = 1


@dataclass(frozen=True)
class CatalogueSizes:
    """Embedding table sizes that go with a catalogue."""

    user_ids: int
    item_ids: int
    categories: tuple[int, ...]
    brands: int
    vector_dim: int
    codes: tuple[int, ...]


class Catalogue(nn.Module):
    """Lookup tables as buffers, so that a checkpoint holds all that scoring needs."""

    user_id_M: torch.Tensor  # int64, user_row -> user ID index
    item_id_N: torch.Tensor  # int64, item_row -> item ID index
    category_NC: torch.Tensor  # int64, 0 unknown
    brand_N: torch.Tensor  # int64, 0 unknown
    vector_ND: torch.Tensor  # float32, frozen z, zeros for row 0
    codes_NS: torch.Tensor  # int64, code plus one, 0 none

    def __init__(
        self,
        sizes: CatalogueSizes,
        user_id_M: torch.Tensor,
        item_id_N: torch.Tensor,
        category_NC: torch.Tensor,
        brand_N: torch.Tensor,
        vector_ND: torch.Tensor,
        codes_NS: torch.Tensor,
    ) -> None:
        super().__init__()
        self.sizes = sizes
        for name, value in [
            ("user_id_M", user_id_M),
            ("item_id_N", item_id_N),
            ("category_NC", category_NC),
            ("brand_N", brand_N),
            ("vector_ND", vector_ND),
            ("codes_NS", codes_NS),
        ]:
            self.register_buffer(name, value)

    @staticmethod
    def empty(sizes: CatalogueSizes, num_users: int, num_items: int) -> "Catalogue":
        """All rows unknown, of the right shapes: what a checkpoint is loaded into."""
        users, items = num_users + 1, num_items + 1
        return Catalogue(
            sizes,
            torch.zeros(users, dtype=torch.int64),
            torch.zeros(items, dtype=torch.int64),
            torch.zeros(items, len(sizes.categories), dtype=torch.int64),
            torch.zeros(items, dtype=torch.int64),
            torch.zeros(items, sizes.vector_dim),
            torch.zeros(items, len(sizes.codes), dtype=torch.int64),
        )

    def add_spare_rows(self, count: int) -> int:
        """Append `count` empty item rows for items that only a request describes; returns the first one's row."""
        first = len(self.item_id_N)
        for name in ("item_id_N", "category_NC", "brand_N", "vector_ND", "codes_NS"):
            old = getattr(self, name)
            self.register_buffer(name, torch.cat([old, old.new_zeros(count, *old.shape[1:])]))
        return first


def sizes_to_json(sizes: CatalogueSizes) -> dict[str, object]:
    return {f.name: getattr(sizes, f.name) for f in fields(sizes)}


def sizes_from_json(value: dict[str, object]) -> CatalogueSizes:
    return CatalogueSizes(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})  # type: ignore[arg-type]
