"""The image encoder that Ray keeps alive: rows of item_id, image, image_uri in; item_id, vector and counts out.

A thin shell over longtail.images for Ray Data's map_batches.
"""

import numpy as np
import pyarrow as pa

from longtail.images import encode_images, load_image_encoder
from longtail.vectors import to_arrow


class ImageRows:
    """One frozen image encoder; a batch in, the same rows out."""

    def __init__(self, name: str) -> None:
        self._encoder = load_image_encoder(name)

    def __call__(self, batch: pa.Table) -> pa.Table:
        def column(name: str) -> list[object]:
            return batch[name].to_pylist() if name in batch.column_names else [None] * len(batch)

        data, uris = column("image"), column("image_uri")
        vectors, counts = encode_images(self._encoder, data, uris)  # type: ignore[arg-type]  # the items' schema says bytes and text
        has = [d is not None or u is not None for d, u in zip(data, uris, strict=True)]
        unreadable = pa.array([h and not v for h, v in zip(has, np.any(vectors, axis=1).tolist(), strict=True)])
        assert unreadable.true_count == counts["unreadable_image"]
        return pa.table({"item_id": batch["item_id"], "vector": to_arrow(vectors), "unreadable": unreadable})
