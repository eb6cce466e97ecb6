"""What a user gets to see: our own ValueErrors without Ray's wrapping, and everything else with its traceback."""

from collections.abc import Callable

import numpy as np
import pytest
import ray
from ray.exceptions import RayTaskError

from longtail.packaged_models import locate
from longtail.windows import SplitSettings, Windows
from pipelines.errors import mendable


def raised(function: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  any
        function()
    return caught.value


def no_events() -> object:
    return Windows.of(np.zeros(0, np.int64), SplitSettings())


def shapes() -> object:
    return np.zeros(2) + np.zeros(3)


def test_our_refusals_are_for_the_user_and_a_librarys_are_not() -> None:
    assert "no rows" in str(mendable(raised(no_events)))
    assert mendable(raised(shapes)) is None
    assert mendable(raised(lambda: {}["key"])) is None
    assert mendable(None) is None


@pytest.mark.ray
def test_a_workers_refusal_comes_without_its_wrapping(ray_cluster: None) -> None:
    refused = raised(lambda: ray.get(ray.remote(locate).remote("package:no_such_package/x")))
    assert isinstance(refused, RayTaskError)
    told = mendable(refused)
    assert told is not None
    assert str(told).startswith("model = 'package:no_such_package/x': no package")
    assert mendable(raised(lambda: ray.get(ray.remote(shapes).remote()))) is None
