"""Events in the order of users and times, which answer for many rows at once what each user had done strictly before, with anything or with one thing.

The rows may come in any order; those of one user beside each other are answered sooner. Letters: M users + 1, E events, B rows.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longtail.times import DAY_US

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UserEvents:
    """Events by user, and by time within a user."""

    first_user: int  # row of the first user that has events
    starts_M: Ints  # first event of each user from there on, and the end
    time_E: Ints  # microseconds
    order_E: Ints  # the events' places in the arrays that this was built from

    @staticmethod
    def build(user_row_E: npt.NDArray[np.integer], time_E: Ints) -> "UserEvents":
        """From events that are in time order within every user."""
        order = np.argsort(user_row_E, kind="stable")
        users = user_row_E[order]
        first = int(users[0]) if len(users) else 0
        starts = np.searchsorted(users, np.arange(first, int(users[-1]) + 2)) if len(users) else np.zeros(1, np.int64)
        return UserEvents(first, starts, time_E[order], order)

    def whole(self, user_B: npt.NDArray[np.integer]) -> tuple[Ints, Ints]:
        """[start, end) of each user's events at any time; an empty span for users without events."""
        number = np.clip(user_B - self.first_user, -1, len(self.starts_M) - 1)
        known = (number >= 0) & (number < len(self.starts_M) - 1)
        number = np.where(known, number, 0)
        start, end = self.starts_M[number], self.starts_M[np.minimum(number + 1, len(self.starts_M) - 1)]
        return np.where(known, start, 0), np.where(known, end, 0)

    def span(self, user_B: npt.NDArray[np.integer], time_B: Ints) -> tuple[Ints, Ints]:
        """[start, end) of each user's events strictly before the time."""
        start, end = self.whole(user_B)
        return start, self.before(start, end, time_B)

    def before(self, start_B: Ints, end_B: Ints, time_B: Ints) -> Ints:
        """The first event within each span that is not before the time, or the span's end: all rows are halved side by side."""
        place, steps = start_B, int((end_B - start_B).max(initial=0)).bit_length()
        for step in (1 << np.arange(steps))[::-1]:
            further = place + step
            earlier = (further <= end_B) & (self.time_E[np.minimum(further, len(self.time_E)) - 1] < time_B)
            place = np.where(earlier, further, place)
        return place

    def days_since(self, end_B: Ints, found_B: npt.NDArray[np.bool_], time_B: Ints) -> npt.NDArray[np.float64]:
        """Days from the last event before the place `end_B` to the time; NaN where none is found."""
        if len(self.time_E) == 0:
            return np.full(len(end_B), np.nan)
        days: npt.NDArray[np.float64] = np.where(found_B, (time_B - self.time_E[np.maximum(end_B, 1) - 1]) / DAY_US, np.nan)
        return days


@dataclass(frozen=True)
class KeyEvents:
    """The events of UserEvents by what they met, an item or its category: every event as one number, sorted."""

    bits: int  # of an event's place
    first_user: int
    num_keys: int  # 0: the user is not in the numbers, which were too wide with it
    packed_E: Ints  # (user * num_keys + key) << bits | place

    @staticmethod
    def build(events: UserEvents, user_E: npt.NDArray[np.integer], key_E: npt.NDArray[np.integer], num_keys: int, width: int = 63) -> "KeyEvents":
        """`user_E` and `key_E` in the order of `events`; keys are below `num_keys`.

        Places tell users apart, so that a number without the user answers the same: it is in there so that a user's numbers are neighbours.
        """
        bits = len(key_E).bit_length()
        with_user = (len(events.starts_M) * num_keys).bit_length() + bits <= width
        num_keys = num_keys if with_user else 0
        key_E = (user_E - events.first_user).astype(np.int64) * num_keys + key_E
        return KeyEvents(bits, events.first_user, num_keys, np.sort(key_E << bits | np.arange(len(key_E))))

    def count_and_last(self, user_B: Ints, key_B: npt.NDArray[np.integer], start_B: Ints, end_B: Ints) -> tuple[Ints, Ints]:
        """Events with each key in the user's span [start, end) of UserEvents, and the place of the last of them plus one, 0 where there is none."""
        key_B = ((user_B - self.first_user) * self.num_keys + key_B) << self.bits
        order = np.argsort(key_B | end_B)
        sorted_B, count_B, last_B = key_B[order], np.empty(len(order), np.int64), np.empty(len(order), np.int64)
        low = np.searchsorted(self.packed_E, sorted_B | start_B[order])
        high = np.searchsorted(self.packed_E, sorted_B | end_B[order])
        count_B[order] = high - low
        last = self.packed_E[np.maximum(high, 1) - 1] & ((1 << self.bits) - 1) if len(self.packed_E) else high
        last_B[order] = np.where(high > low, last + 1, 0)
        return count_B, last_B
