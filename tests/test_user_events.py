"""Events by user and by what they met: against slow counts, with and without the user in the packed numbers."""

import numpy as np
import pytest

from longtail.times import DAY_US
from longtail.user_events import KeyEvents, UserEvents


def random_events(num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, key and time of events in time order, with ties."""
    rng = np.random.default_rng(5)
    return rng.integers(3, 9, num), rng.integers(0, 4, num), np.sort(rng.integers(0, 40, num))


def asked(num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users 0, 1, 2 and 9 have no events."""
    rng = np.random.default_rng(6)
    return rng.integers(0, 11, num), rng.integers(0, 5, num), rng.integers(-2, 45, num)


@pytest.mark.parametrize("num_events", [0, 1, 200])
def test_spans_are_the_events_strictly_before(num_events: int) -> None:
    user, _, time = random_events(num_events)
    events = UserEvents.build(user, time)
    start, end = events.span(*asked(100)[::2])
    for place, (who, when) in enumerate(zip(*asked(100)[::2], strict=True)):
        expected = np.flatnonzero((user == who) & (time < when))
        assert events.order_E[start[place] : end[place]].tolist() == expected.tolist()


@pytest.mark.parametrize("width", [63, 9])
@pytest.mark.parametrize("num_events", [0, 1, 200])
def test_keys_are_counted_within_the_span(num_events: int, width: int) -> None:
    user, key, time = random_events(num_events)
    events = UserEvents.build(user, time)
    by_key = KeyEvents.build(events, user[events.order_E], key[events.order_E], 5, width)
    assert (by_key.num_keys == 0) == (width == 9 and num_events > 1), "200 events of 7 users and 5 keys take more than 9 bits"
    who, what, when = asked(100)
    start, end = events.span(who, when)
    count, last = by_key.count_and_last(who, what, start, end)
    for place in range(100):
        expected = np.flatnonzero((user == who[place]) & (key == what[place]) & (time < when[place]))
        assert count[place] == len(expected)
        assert last[place] == 0 if not len(expected) else events.order_E[last[place] - 1] == expected[-1]


def test_days_since_are_unknown_where_nothing_was() -> None:
    events = UserEvents.build(np.array([1, 1]), np.array([0, DAY_US]))
    days = events.days_since(np.array([0, 1, 2]), np.array([False, True, True]), np.array([3 * DAY_US] * 3))
    assert np.isnan(days[0])
    assert days[1:].tolist() == [3.0, 2.0]
