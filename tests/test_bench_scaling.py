"""The exponents of growth, by hand."""

import numpy as np
import pytest

from bench.scaling import exponent, forget_peak, peak_mib, report


def test_exponents_by_hand() -> None:
    assert exponent([1, 2, 4, 8], [3.0, 6.0, 12.0, 24.0]) == pytest.approx(1.0)
    assert exponent([1, 2, 4], [1.0, 4.0, 16.0]) == pytest.approx(2.0)
    assert exponent([1, 2], [5.0, 5.0]) == pytest.approx(0.0)


def test_a_stage_that_grows_faster_than_its_rows_is_told() -> None:
    sizes = {factor: {"logs": {"seconds": float(factor**2), "driver_mib": 100.0, "rows": factor}} for factor in (1, 2, 4, 8)}
    line = report(sizes, 10)
    assert line["work"]["users"] == [10, 20, 40, 80]
    assert line["quality"]["stages"]["logs"]["last_doubling"] == 2.0
    assert line["quality"]["reach"] == {"logs: time_exponent": [1.05, 2.0, False], "logs: memory_exponent": [0.2, 0.0, True]}


def test_the_peak_is_that_of_what_ran_last() -> None:
    forget_peak()
    before = peak_mib()
    held = np.ones(64 << 17)
    assert peak_mib() > before + 60
    del held
    forget_peak()
    assert peak_mib() < before + 60
