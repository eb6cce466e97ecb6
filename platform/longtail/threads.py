"""Rows dealt out to threads, in a process whose products are OpenMP's work.

A team of OpenMP threads belongs to the thread that multiplies. Where two threads have one each, they are more than the CPUs: libgomp then lets all sleep at
every barrier instead of waiting awake, and products take up to half as long again. So only one thread of a process has a team.
Reads and writes nothing.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Result = TypeVar("_Result")


def by_parts(work: Callable[[slice], _Result], num_rows: int, part_rows: int) -> list[_Result]:
    """`work` on all rows, a part at a time, on as many threads as torch has here.

    A part's products are small: two threads do two parts in half of the time that they need for one after the other.
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
