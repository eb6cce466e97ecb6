"""Codes that keep their numbers: the centroids of a refit matched to those of an earlier codebook, stage by stage.

k-means numbers its centroids as it comes, so a refit permutes them even where they hardly moved, and whatever was learned by number (a ranker's tables) is
lost. Within a stage numbers are free: permuting its centroids changes no residual. So each stage is matched by an assignment (Hungarian method), in order:
the first by the rows that old and new centroids share, each later one by those rows alone that kept their codes before it. Stage by stage nothing keeps more.
A codebook fitted anew is another local optimum, and no permutation brings back what lies elsewhere; a fit that starts from the earlier codebook stays near it
(longtail.codes.fit_codebook, `initial_SKD`). pipelines.codes does both where codes.item.previous is set.
Reads codebooks and codes in memory, writes nothing.
Letters: N rows, S stages, K centroids, D vector width.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from longtail.kmeans import Floats

Codes = NDArray[np.int32]
Ints = NDArray[np.int64]


def check_shape(codebook_SKD: Floats, num_stages: int, codebook_size: int, dim: int, section: str) -> None:
    """Refuse an earlier codebook that this fit cannot go on from.

    Raises:
        ValueError: stages, codebook size or vector width differ.
    """
    for setting, wanted, there in zip(("num_stages", "codebook_size", "vector width"), (num_stages, codebook_size, dim), codebook_SKD.shape, strict=True):
        if wanted != there:
            name = setting if " " in setting else f"{section}.{setting}"
            remedy = "Take vectors of the encoder that it was fitted on" if " " in setting else f"Set {name} = {there}"
            raise ValueError(f"{name} = {wanted}, and the codebook that {section}.previous names has {there}. {remedy}, or fit without {section}.previous.")


def match(old_SKD: Floats, new_SKD: Floats, old_NS: Codes, new_NS: Codes, *, by: Literal["overlap", "distance"] = "overlap") -> Ints:
    """Which new centroid takes each number, int64 [S, K]: order[s, k] is the number that it has now.

    Args:
        old_SKD: the earlier codebook.
        new_SKD: the refit's.
        old_NS: the rows' codes by the earlier codebook.
        new_NS: the same rows' codes by the refit's.
        by: what is matched: rows in common, the nearer centroid where those are as many; or nearness alone.
    """
    size = old_SKD.shape[1]
    order_SK = np.empty(old_SKD.shape[:2], np.int64)
    same_N = np.ones(len(old_NS), bool)
    for stage in range(len(old_SKD)):
        distance_KK = _distances(old_SKD[stage], new_SKD[stage])
        cost_KK = distance_KK / max(float(distance_KK.max()), 1e-30) / (size + 1)  # over all pairs below one row
        if by == "overlap":
            pairs_N = old_NS[same_N, stage].astype(np.int64) * size + new_NS[same_N, stage]
            cost_KK -= np.bincount(pairs_N, minlength=size * size).reshape(size, size)
        order_SK[stage] = linear_sum_assignment(cost_KK)[1]
        same_N &= order_SK[stage][old_NS[:, stage]] == new_NS[:, stage]
    return order_SK


def renumbered(codebook_SKD: Floats, order_SK: Ints) -> Floats:
    """The codebook with its centroids in the order of `match`."""
    found: Floats = np.take_along_axis(codebook_SKD, order_SK[:, :, None], axis=1)
    return found


def kept(old_NS: Codes, new_NS: Codes, weight_N: NDArray[np.number] | None = None) -> list[float]:
    """The share of the rows, or of their weights, whose codes 1 … s are the same, for every s; 0 where there is no row or no weight."""
    weight_N = np.ones(len(old_NS)) if weight_N is None else weight_N
    total = float(weight_N.sum())
    same_NS = np.logical_and.accumulate(old_NS == new_NS, axis=1)
    return [float(weight_N @ same_N) / total if total > 0 else 0.0 for same_N in same_NS.T]


def _distances(old_KD: Floats, new_KD: Floats) -> NDArray[np.float64]:
    """Squared distances [K, K] of old from new centroids."""
    old, new = old_KD.astype(np.float64), new_KD.astype(np.float64)
    squares: NDArray[np.float64] = np.einsum("kd,kd->k", old, old)[:, None] - 2.0 * (old @ new.T) + np.einsum("kd,kd->k", new, new)
    return squares.clip(min=0.0)
