"""Behaviour: counts strictly before a time, against the obvious loop."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.behaviour import CountIndex
from longtail.times import DAY_US
from tests import small_world

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=30)


@settings(max_examples=100, deadline=None)
@given(PAIRS, PAIRS, st.integers(0, 5))
def test_counts_equal_the_obvious_loop(events: list[tuple[int, int]], asked: list[tuple[int, int]], window: int) -> None:
    keys, times = np.array([e[0] for e in events], np.int64), np.array([e[1] for e in events], np.int64)
    ask_keys, ask_times = np.array([a[0] for a in asked], np.int64), np.array([a[1] for a in asked], np.int64)
    index = CountIndex.build(keys, times)
    assert index.count(ask_keys, ask_times).tolist() == [sum(k == key and t < time for k, t in events) for key, time in asked]
    within = index.count(ask_keys, ask_times, ask_times - window)
    assert within.tolist() == [sum(k == key and time - window <= t < time for k, t in events) for key, time in asked]
    last = index.days_since_last(ask_keys, ask_times * 1)
    for (key, time), days in zip(asked, last, strict=True):
        before = [t for k, t in events if k == key and t < time]
        assert np.isnan(days) if not before else np.isclose(days, (time - max(before)) / DAY_US)


def test_behaviour_keeps_the_named_kinds_in_time_order() -> None:
    rows = [*small_world.BEHAVIOUR, ("a", "tea", 0.5, "impression"), ("nobody", "tea", 0.6, "purchase")]
    behaviour = small_world.behaviour(rows)
    assert len(behaviour.time_E) == len(small_world.BEHAVIOUR)
    assert (np.diff(behaviour.time_E) >= 0).all()
    assert behaviour.is_strongest.sum() == 7
    assert len(behaviour.before(small_world.us(3)).time_E) == 3


def test_an_events_price_falls_back_to_the_items() -> None:
    behaviour = small_world.behaviour()
    assert np.isclose(behaviour.log_price_E[0], np.log1p(2.0))
