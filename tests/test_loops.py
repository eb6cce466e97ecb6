"""Loops are compiled where no folder can hold a cache, too."""

import numba
import numpy as np
import pytest

from longtail.loops import compiled


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
