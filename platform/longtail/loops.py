"""Loops over rows as machine code.

A loop is compiled when it first runs in a process, and kept beside its file or in the user's cache for the next one, until that file changes; constants that
it reads of other modules stay what they were.
Reads and writes nothing but that cache; longtail.nearest_cpu and longtail.kmeans_cpu are made of such loops.
"""

from collections.abc import Callable
from typing import Any

import numba

_ANY_ORDER = {"reassoc", "nnan", "nsz", "contract"}


def compiled(*, any_order: bool = False) -> Callable[[Any], Any]:
    """A loop that leaves other threads free to run. `any_order`: its float sums may be added in any order, for bounds that allow for their rounding."""
    options = {"nogil": True, "fastmath": _ANY_ORDER if any_order else False}

    def wrap(function: Any) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # there is no folder for a cache
            return numba.njit(**options)(function)

    return wrap
