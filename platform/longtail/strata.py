"""A stratified sample: equal shares of each tenth of the rows by a count, so that both tails are in it."""

import numpy as np
import numpy.typing as npt

STRATA = 10


def stratified(count: npt.NDArray[np.int64], present: npt.NDArray[np.bool_], size: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which rows are drawn [len(count)]: `size` of those `present` (all, where there are fewer), a tenth from each tenth by `count`."""
    rows = np.flatnonzero(present)
    chosen = np.zeros(len(count), bool)
    if size >= len(rows):
        chosen[rows] = True
        return chosen
    order = rows[np.lexsort((rng.random(len(rows)), count[rows]))]
    for place, stratum in enumerate(np.array_split(order, STRATA)):
        share = size // STRATA + (place < size % STRATA)
        chosen[rng.choice(stratum, min(share, len(stratum)), replace=False)] = True
    return chosen
