"""What a ranker knows of users and items beside a row's features: ID vocabularies, categories, brands, frozen vectors and codes.

Row numbers are those of the samples: item_row 1..N, user_row 1..M, 0 for padding or unknown. ID indices: 0 padding, 1 out of vocabulary, 2… the IDs.
Letters: N item rows, C category levels, D vector width, S code stages.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from longtail.entities import Entities

OOV = 1


@dataclass(frozen=True)
class CatalogueSizes:
    """Embedding table sizes that go with a catalogue."""

    user_ids: int  # padding and out of vocabulary included
    item_ids: int  # padding and out of vocabulary included
    categories: tuple[int, ...]  # by level, unknown included
    brands: int  # unknown included
    vector_dim: int
    codes: tuple[int, ...]  # by stage, "none" included


class Catalogue(nn.Module):
    """Lookup tables as buffers, so that a checkpoint holds all that scoring needs."""

    user_id_M: torch.Tensor  # int64, user_row -> user ID index
    item_id_N: torch.Tensor  # int64, item_row -> item ID index
    category_NC: torch.Tensor  # int64, 0 unknown
    brand_N: torch.Tensor  # int64, 0 unknown
    vector_ND: torch.Tensor  # float32, frozen z, zeros for row 0
    codes_NS: torch.Tensor  # int64, code plus one, 0 none
    rows_N: torch.Tensor  # float32, training rows of which the item is the target

    def __init__(
        self,
        sizes: CatalogueSizes,
        user_id_M: torch.Tensor,
        item_id_N: torch.Tensor,
        category_NC: torch.Tensor,
        brand_N: torch.Tensor,
        vector_ND: torch.Tensor,
        codes_NS: torch.Tensor,
        rows_N: torch.Tensor,
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
            ("rows_N", rows_N),
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
            torch.zeros(items),
        )

    @staticmethod
    def build(
        entities: Entities,
        z: pa.Table,
        codes: pa.Table,
        code_sizes: tuple[int, ...],
        trained_users: npt.NDArray[np.integer],
        trained_items: npt.NDArray[np.integer],
    ) -> "Catalogue":
        """The catalogue of one ranker on one run.

        Args:
            entities: numbering, categories and brands.
            z: frozen vectors, schema.vectors(ITEM_KEY, D); items without one get zeros.
            codes: code tuples, schema.codes(ITEM_KEY, S); items without one get none.
            code_sizes: codebook size of each stage.
            trained_users: training rows of each user row [M]; only users with some have an ID of their own.
            trained_items: training rows of which each item row [N] is the target; only items with some have an ID of their own.
        """
        num_users, num_items = len(entities.users), len(entities.items)
        user_id_M, user_ids = _id_index(num_users, trained_users)
        item_id_N, item_ids = _id_index(num_items, trained_items)
        dim = z.column("vector").type.list_size
        category_NC = torch.from_numpy(entities.category_codes_NC.astype(np.int64))
        sizes = CatalogueSizes(
            user_ids=user_ids,
            item_ids=item_ids,
            categories=tuple(len(level) + 1 for level in entities.categories),
            brands=len(entities.brands) + 1,
            vector_dim=dim,
            codes=tuple(size + 1 for size in code_sizes),
        )
        return Catalogue(
            sizes,
            user_id_M,
            item_id_N,
            category_NC,
            torch.from_numpy(entities.brand_codes_N.astype(np.int64)),
            torch.from_numpy(entities.items.by_code(z.column("item_id"), z.column("vector")).astype(np.float32)),
            torch.from_numpy(entities.items.by_code(codes.column("item_id"), codes.column("codes"), missing=-1).astype(np.int64) + 1),
            torch.from_numpy(trained_items.astype(np.float32)),
        )

    def add_spare_rows(self, count: int) -> int:
        """Append `count` empty item rows for items that only a request describes; returns the first one's row."""
        first = len(self.item_id_N)
        self._append(count)
        return first

    def hold_rows(self, num: int) -> None:
        """Make room for `num` item rows in all, with some to spare, so that one item after another costs little."""
        if num > len(self.item_id_N):
            self._append(max(num - len(self.item_id_N), len(self.item_id_N) // 8, 64))

    def _append(self, count: int) -> None:
        for name in ("item_id_N", "category_NC", "brand_N", "vector_ND", "codes_NS", "rows_N"):
            old = getattr(self, name)
            self.register_buffer(name, torch.cat([old, old.new_zeros(count, *old.shape[1:])]))


def _id_index(num: int, trained: npt.NDArray[np.integer]) -> tuple[torch.Tensor, int]:
    """ID index by row (0 for row 0, OOV without a training row), and the size of the table that goes with it."""
    rows = np.flatnonzero(trained[1:]) + 1
    index = np.full(num + 1, OOV, np.int64)
    index[0] = 0
    index[rows] = np.arange(len(rows)) + OOV + 1
    return torch.from_numpy(index), len(rows) + OOV + 1


def sizes_to_json(sizes: CatalogueSizes) -> dict[str, object]:
    return {f.name: getattr(sizes, f.name) for f in fields(sizes)}


def sizes_from_json(value: dict[str, object]) -> CatalogueSizes:
    return CatalogueSizes(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})  # type: ignore[arg-type]
