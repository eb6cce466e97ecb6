"""User spaces: where users lie near each other, one vector per user and snapshot, which groups and peers are made of.

The paper clusters embeddings of profiles alone. Here several spaces can stand side by side, so that groups carry behaviour and semantics (ours):

    profile     the embedding of the user's profile text (ChoirRec, semantic group generation, step 2)
    titles      the mean of the vectors of the items that the user met, weighted by idf
    behaviour   a truncated SVD of who met what
    attributes  the user's attributes, one-hot

Reads user vectors, item vectors, users and events before each as_of; the stage `user_spaces` writes one vector per row of the user vectors.

Letters: M users + 1, N items + 1, D dimensions, A attributes.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from scipy import sparse

from longtail.behaviour import incidence_idf
from longtail.settings import Settings

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

Space = Literal["profile", "titles", "behaviour", "attributes"]


class UserSpacesSettings(Settings):
    """The `user_spaces` stage; spaces = ["profile"] is the paper's shape."""

    spaces: tuple[Space, ...] = Field(
        ("profile", "titles", "behaviour"),
        min_length=1,
        description="side by side with equal weight; where profile is first, users whom only a request describes can be placed",
    )
    behaviour_dim: int = Field(64, ge=2, description="of the truncated SVD of who met what")
    shuffled: bool = Field(False, description="deal the vectors out to the wrong users: the control, with groups and neighbourhoods of the same sizes")
    seed: int | None = Field(None, ge=0, description="of what `shuffled` deals; without it run.seed")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.spaces)) < len(self.spaces):
            raise ValueError(f"spaces = {list(self.spaces)}: name each once")
        return self


def unit(vectors_ND: npt.NDArray[np.floating]) -> Floats:
    """Rows of length one; zero rows stay zero."""
    norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    result: Floats = (vectors_ND / np.maximum(norms, 1e-12)).astype(np.float32)
    return result


def side_by_side(vectors: Sequence[Floats]) -> Floats:
    """Unit vectors [M, sum of D] of several spaces; a user who is nowhere in one space lies where the others say."""
    return unit(np.concatenate([unit(space_MD) for space_MD in vectors], axis=1))


def of_profile_alone(profile_ND: Floats, dim: int) -> Floats:
    """Vectors [N, dim] of users of whom only the profile is known, in spaces of which it is the first: what side_by_side makes of them."""
    if profile_ND.shape[1] == dim:
        return profile_ND
    return side_by_side([profile_ND, np.zeros((len(profile_ND), dim - profile_ND.shape[1]), np.float32)])


def replaced(vectors_RD: Floats, widths: Sequence[int], given: Mapping[int, Floats]) -> Floats:
    """What side_by_side made of spaces of these widths, with some of them, by place, given anew."""
    blocks = np.split(vectors_RD, np.cumsum(widths)[:-1], axis=1)
    return side_by_side([given.get(place, unit(block_RD)) for place, block_RD in enumerate(blocks)])


def title_vectors(met_MN: sparse.csr_matrix, item_vectors_ND: Floats) -> Floats:
    """Unit vectors [M, D] of users: the mean of their items' vectors, weighted by idf."""
    centred = item_vectors_ND - item_vectors_ND[1:].mean(axis=0, keepdims=True)
    return unit(met_MN @ (incidence_idf(met_MN)[:, None] * centred))


def behaviour_vectors(met_MN: sparse.csr_matrix, dim: int, seed: int, earlier_MD: Floats | None = None) -> Floats:
    """Unit vectors [M, dim] of users: the left factors of a truncated SVD of the idf-weighted incidence; zeros for who has met nothing.

    Every snapshot has factors of its own, in a basis of its own: they are turned to lie as near to `earlier_MD` as a rotation can bring them, so that a
    codebook fitted there still means the same here (orthogonal Procrustes).
    """
    from sklearn.utils.extmath import randomized_svd

    num_met_M = met_MN.getnnz(axis=1)
    weighted = sparse.diags(1 / np.sqrt(np.maximum(num_met_M, 1))) @ met_MN @ sparse.diags(incidence_idf(met_MN))
    size = min(dim, min(weighted.shape) - 1)
    left, values, _ = randomized_svd(weighted.astype(np.float64), size, random_state=seed)
    left[num_met_M == 0] = 0  # rounding leaves 1e-20 there, of which unit() would make a direction
    vectors_MD = unit(left * np.sqrt(values))
    if earlier_MD is None:
        return vectors_MD
    first, _, second = np.linalg.svd(vectors_MD.T @ earlier_MD)
    return unit(vectors_MD @ (first @ second))


def attribute_vectors(attribute_codes_MA: npt.NDArray[np.integer]) -> Floats:
    """Unit vectors of users: a one for each known attribute value, rarer values longer; zeros where nothing is known."""
    columns = []
    for codes_M in attribute_codes_MA.T:
        one_hot = np.eye(int(codes_M.max(initial=0)) + 1, dtype=np.float32)[codes_M][:, 1:]
        share = one_hot[1:].sum(axis=0) / max(float((codes_M[1:] > 0).sum()), 1.0)
        columns.append(one_hot * np.sqrt(np.log(1 / np.clip(share, 1e-6, 1.0)) + 1e-3).astype(np.float32))
    known_MD = np.concatenate(columns, axis=1) if columns else np.zeros((len(attribute_codes_MA), 0), np.float32)
    return unit(known_MD) if known_MD.shape[1] else np.zeros((len(attribute_codes_MA), 1), np.float32)


def shuffled_rows(vectors_RD: Floats, seed: int) -> Floats:
    """The same vectors, each at a row drawn at random."""
    return vectors_RD[np.random.default_rng([seed, 0x5B]).permutation(len(vectors_RD))]
