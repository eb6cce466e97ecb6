"""Code continuity: item codes that go on from an earlier artifact, and places that stay.

Where codes.item.previous names an earlier item_codes artifact, the fit starts from its codebook and the centroids then take its numbers
(longtail.code_match); items keep their places in the table `resolved` (longtail.code_collisions). The manifest names the earlier artifact among its inputs and
says how many items kept their codes. pipelines.codes calls this.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.numpy
from numpy.typing import NDArray

from longtail import schema
from longtail.artifacts import Artifact, Draft, Store
from longtail.code_collisions import Places, resolve
from longtail.code_match import check_shape, kept, match, renumbered
from longtail.codes import Fit, ItemCodebookSettings
from longtail.config import Config
from longtail.kmeans import Floats
from longtail.storage import above
from pipelines import stage

logger = logging.getLogger(__name__)

STAGE = "item_codes"
Codes = NDArray[np.int32]
Prints = NDArray[np.uint64]


@dataclass(frozen=True)
class Earlier:
    """What an earlier item_codes artifact holds."""

    artifact: Artifact
    codebook_SKD: Floats
    item_ids: pa.Array
    codes_NS: Codes

    def places(self) -> Places | None:
        """Its places, None where it has none."""
        path = self.artifact.path("resolved.parquet")
        resolved = self.artifact.read("resolved") if self.artifact.fs.get_file_info(path).is_file else schema.RESOLVED.empty_table()
        if not len(resolved):
            return None
        at = pc.index_in(resolved["item_id"], value_set=self.item_ids).to_numpy()
        return Places(resolved["item_id"].to_pylist(), self.codes_NS[at], resolved["place"].to_numpy())

    def said(self, keys: pa.Table, codes_NS: Codes, vectors: Artifact) -> dict[str, object]:
        """For the manifest: how many items were there before, and the share of them whose codes 1 … s are what they were."""
        at = pc.index_in(keys["item_id"], value_set=self.item_ids)
        there = at.is_valid().to_numpy()
        shares = kept(self.codes_NS[at.drop_null().to_numpy()], codes_NS[there])
        same = self.artifact.manifest["inputs"].get(vectors.stage, {}).get("content_hash") == vectors.content_hash
        if not same:
            logger.warning("codes.item.previous was fitted on other vectors than these; %s of its items' codes 1, 1-2, … stay", [f"{s:.0%}" for s in shares])
        return {"key": self.artifact.key, "same_vectors": same, "items": int(there.sum()), "kept": shares}


def find(config: Config) -> Artifact | None:
    """The artifact that codes.item.previous names.

    Raises:
        ValueError: it is not there, or no item_codes artifact.
    """
    named = config.codes.item.previous
    if named is None:
        return None
    if "/" not in named:
        root, name, key = config.run.uri, STAGE, named
    else:
        folder, key = above(stage.kept("codes.item.previous", named))
        root, name = above(folder)
    if name != STAGE or not root or not key:
        raise ValueError(f"codes.item.previous = {named!r} must be the folder <run.uri>/{STAGE}/<key> of an earlier run, or a key below this one's run.uri.")
    found = Store.open(stage.kept("run.uri", root)).find(STAGE, key)
    if found is None:
        raise ValueError(f"codes.item.previous = {named!r}: there is no finished {STAGE} artifact {key} under {root}. Name one that has its manifest.json.")
    return found


def fingerprint(config: Config) -> str:
    """Of the stage's key: what the earlier artifact holds, wherever it lies."""
    found = find(config)
    return "" if found is None else found.content_hash


def open_earlier(config: Config, dim: int) -> Earlier | None:
    """The earlier artifact that the config names; `dim` is the width of the vectors that are fitted now.

    Raises:
        ValueError: it is not there, or of another shape than the codebook that is asked for.
    """
    found, settings = find(config), config.codes.item
    if found is None:
        return None
    with found.fs.open_input_stream(found.path("codebook.safetensors")) as stream:
        codebook_SKD: Floats = safetensors.numpy.load(stream.read())["codebook"]
    check_shape(codebook_SKD, settings.num_stages, settings.codebook_size, dim, "codes.item")
    codes = found.read("codes")
    codes_NS = codes["codes"].combine_chunks().flatten().to_numpy().reshape(len(codes), -1)
    return Earlier(found, codebook_SKD, codes["item_id"].combine_chunks(), codes_NS)


def settled(fit: Fit, earlier: Earlier | None, rows_N: NDArray[np.int64], encode: Callable[[Floats], tuple[Codes, Prints]]) -> tuple[Fit, Codes, Prints]:
    """The fit with centroids numbered as in the earlier codebook, and every row's codes and fingerprint.

    Args:
        fit: on the rows `rows_N`.
        earlier: without it numbers stay as they came.
        rows_N: row numbers.
        encode: codes and fingerprints of all rows by a codebook.
    """
    codes_NS, prints_N = encode(fit.codebook_SKD)
    if earlier is None:
        return fit, codes_NS, prints_N
    before_NS, _ = encode(earlier.codebook_SKD)
    codebook_SKD = renumbered(fit.codebook_SKD, match(earlier.codebook_SKD, fit.codebook_SKD, before_NS[rows_N], codes_NS[rows_N]))
    codes_NS, prints_N = encode(codebook_SKD)
    counts_SK = np.stack([np.bincount(codes_N, minlength=codebook_SKD.shape[1]) for codes_N in codes_NS[rows_N].T])
    return replace(fit, codebook_SKD=codebook_SKD, counts_SK=counts_SK), codes_NS, prints_N


def write_places(
    draft: Draft, settings: ItemCodebookSettings, keys: pa.Table, codes_NS: Codes, prints_N: Prints, earlier: Earlier | None
) -> dict[str, dict[str, Any]]:
    """Write the table `resolved`; returns what the manifest says of it.

    Raises:
        NoPlaceError: a tuple has more items than places.
    """
    if settings.num_places == 0:
        draft.write("resolved", schema.RESOLVED.empty_table())
        return {}
    item_ids = keys["item_id"].to_pylist()
    before = earlier.places() if earlier is not None else None
    content_N = prints_N if settings.equal_share_place else None
    place_N = resolve(codes_NS, item_ids, num_places=settings.num_places, previous=before, content_N=content_N)
    table = pa.table({"item_id": keys["item_id"], "place": pa.array(place_N)})
    draft.write("resolved", schema.check(table, schema.RESOLVED, "resolved"))
    return {"places": {"used": int(place_N.max(initial=-1)) + 1, "beyond_first_frac": float((place_N > 0).mean())}}
