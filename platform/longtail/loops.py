"""Loops over rows as machine code, and rows dealt out to threads.

A loop is compiled when it first runs in a process, and kept beside its file or in the user's cache for the next one.
Reads and writes nothing but that cache; longtail.nearest_cpu and longtail.kmeans_cpu are made of such loops.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numba
import torch

_ANY_ORDER = {"reassoc", "nnan", "nsz", "contract"}
_Result = TypeVar("_Result")


def compiled(*, any_order: bool = False) -> Callable[[Any], Any]:
    """A loop that leaves other threads free to run. `any_order`: its float sums may be added in any order, for bounds that allow for their rounding."""
    options = {"nogil": True, "fastmath": _ANY_ORDER if any_order else False}

    def wrap(function: Any) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # there is no folder for a cache
            return numba.njit(**options)(function)

    return wrap


def by_parts(work: Callable[[slice], _Result], num_rows: int, part_rows: int) -> list[_Result]:
    """`work` on all rows, a part at a time, on as many threads as torch has; each of them multiplies by itself.

    A block's products are small: two threads do two blocks in half of the time that they need for one after the other.
    """
    parts = [slice(start, min(start + part_rows, num_rows)) for start in range(0, num_rows, part_rows)]
    threads = torch.get_num_threads()
    if len(parts) < 2 or threads == 1:
        return [work(part) for part in parts]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(threads)
