"""Rows dealt out to threads, and loops that are compiled where no folder can hold a cache."""

import numba
import numpy as np
import pytest
import torch

from longtail.loops import by_parts, compiled


@pytest.mark.parametrize("threads", [1, 3])
def test_every_row_once_and_in_order(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert by_parts(lambda part: (part.start, part.stop), 10, 4) == [(0, 4), (4, 8), (8, 10)]
        assert by_parts(lambda part: part.stop, 0, 4) == []
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_part_that_fails_leaves_the_process_its_threads() -> None:
    def fails(part: slice) -> None:
        raise MemoryError(f"rows {part.start} to {part.stop}")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(MemoryError, match="rows 0 to 1"):
            by_parts(fails, 4, 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def _twice(row_D: np.ndarray) -> float:
    return 2.0 * row_D[0]


def test_a_loop_runs_where_no_folder_can_hold_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_cache(*args: object, **options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available for file")
        return njit(*args, **options)

    njit = numba.njit
    monkeypatch.setattr(numba, "njit", no_cache)
    assert compiled()(_twice)(np.ones(3)) == 2.0
