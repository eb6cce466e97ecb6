"""A study's rows and slices: what every arm is measured on, in one window.

Reads the samples and the logs of a data set; writes nothing. What is in a slice is decided by what was known of the user or the item when the window opened,
and never by an arm.

Letters: N rows, U users.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longtail.behaviour import Behaviour
from longtail.entities import Entities
from longtail.hashing import stable_uint64
from longtail.ranks import rank_within

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int8]

SHARES = {"low20": (0.0, 0.2), "low50": (0.0, 0.5), "high20": (0.8, 1.0)}

USER_RULES = {
    "all": "every row of the window",
    "low20": "the fifth of the window's users with the fewest events before it opened",
    "low50": "the half of the window's users with the fewest",
    "high20": "the fifth of the window's users with the most",
    "truncated": "users who keep their last few baskets only (logs.truncate)",
    "no_history": "users with no event before the window opened",
    "orders_1": "users with one order before the window opened",
    "orders_1_3": "users with one to three orders before the window opened",
    "missing_attributes": "users of whom some attribute is not known",
}
USER_RULES |= {f"decile_{number}": f"{number} of 10 by events before the window opened, 1 the fewest" for number in range(1, 11)}

COLD_EVENTS, NEW_DAYS, OLD_DAYS = 100, 20, 300  # SaviorRec's slices

ITEM_RULES = {
    "all": "every row of the window",
    "zero_shot": "items with no event before the window opened",
    "cold_1_5": "items with 1 to 5 events before the window opened",
    "cold_6_20": "items with 6 to 20 events before the window opened",
    "cold_lt100": f"items with fewer than {COLD_EVENTS} events before the window opened",
    "warm": f"items with at least {COLD_EVENTS} events before the window opened",
    "natural_cold": f"items with fewer than {COLD_EVENTS} events that nobody made cold (logs.cold_start)",
    "new_items": f"items first seen less than {NEW_DAYS} days before the row",
    "popular_items": f"items first seen more than {OLD_DAYS} days before the row",
    "quiet_cold": f"the half of the window's users with the fewest events before it opened, on items with fewer than {COLD_EVENTS} events",
    "quiet_warm": f"the same users on items with at least {COLD_EVENTS} events",
    "busy_cold": f"the other users on items with fewer than {COLD_EVENTS} events",
    "busy_warm": f"the other users on items with at least {COLD_EVENTS} events",
}

#: By metric: GAUC is of users, and sliced by them; AUC is over all rows, and sliced by item.
RULES = {"gauc": USER_RULES, "auc": ITEM_RULES}


@dataclass(frozen=True)
class WindowRows:
    """The rows of one window and who is in which slice."""

    example_id_N: Ints
    user_N: Ints  # user rows
    label_N: Labels
    slices: Mapping[str, Bools]  # by name, over rows

    def where(self, kept_N: Bools) -> "WindowRows":
        """Some of the rows; who is in a slice stays as it was."""
        slices = {name: which_N[kept_N] for name, which_N in self.slices.items()}
        return WindowRows(self.example_id_N[kept_N], self.user_N[kept_N], self.label_N[kept_N], slices)


def order_counts(behaviour: Behaviour, num_users: int, before: int) -> Ints:
    """How many orders [num_users + 1] each user had placed: their distinct times of an event of the strongest kind (of any, where there is no such event)."""
    past = behaviour.before(before)
    purchases = past.is_purchase
    pairs = np.unique(np.stack([past.user_row_E[purchases], past.time_E[purchases]]), axis=1)
    return np.bincount(pairs[0], minlength=num_users + 1).astype(np.int64)


@dataclass(frozen=True)
class WindowUsers:
    """The users of a window by what they had done before it opened."""

    user_N: Ints  # user row of each row
    place_N: Ints  # each row's user among the window's
    users_U: Ints
    ids: pa.Array  # [U]
    events_U: Ints
    rank_U: npt.NDArray[np.float64]  # share of the window's users that come before, by events, equals by a hash of the id

    @staticmethod
    def of(samples: pa.Table, entities: Entities, past: Behaviour) -> "WindowUsers":
        user_N = entities.users.encode(samples.column("user_id")).astype(np.int64)
        users_U, place_N = np.unique(user_N, return_inverse=True)
        events_U = np.bincount(past.user_row_E, minlength=len(entities.users) + 1)[users_U]
        ids = entities.users.values.take(pa.array(np.maximum(users_U - 1, 0)))
        ties_U = np.array([stable_uint64(one) for one in ids.to_pylist()], np.uint64)
        rank_U = rank_within(np.zeros(len(users_U), np.int64), events_U, ties_U) / max(len(users_U), 1)
        return WindowUsers(user_N, place_N.reshape(-1), users_U, ids, events_U, rank_U)


def window_rows(samples: pa.Table, entities: Entities, behaviour: Behaviour, opens: int, truncated: pa.Array | None) -> WindowRows:
    """The rows of a window that opens at `opens`.

    Args:
        samples: example_id, user_id and label of the window's rows, in the order in which scores come.
        truncated: user_ids of the truncated users, None where the world is whole.
    """
    users = WindowUsers.of(samples, entities, behaviour.before(opens))
    orders_U = order_counts(behaviour, len(entities.users), opens)[users.users_U]
    by_user: dict[str, Bools] = {"all": np.ones(len(users.users_U), bool)}
    by_user |= {name: (users.rank_U >= low) & (users.rank_U < high) for name, (low, high) in SHARES.items()}
    if truncated is not None:
        by_user["truncated"] = pc.is_in(users.ids, value_set=truncated).to_numpy(zero_copy_only=False)
    by_user |= {"no_history": users.events_U == 0, "orders_1": orders_U == 1, "orders_1_3": (orders_U >= 1) & (orders_U <= 3)}
    if entities.attributes:
        by_user["missing_attributes"] = (entities.attribute_codes_MA[users.users_U] == 0).any(axis=1)
    by_user |= {f"decile_{number + 1}": np.floor(users.rank_U * 10).astype(np.int64) == number for number in range(10)}
    return _rows(samples, users, {name: which_U[users.place_N] for name, which_U in by_user.items()})


def item_rows(samples: pa.Table, entities: Entities, behaviour: Behaviour, opens: int, made_cold: pa.Array | None) -> WindowRows:
    """The rows of a window that opens at `opens`, sliced by item.

    Args:
        samples: example_id, user_id, item_id, label and item_age_days of the window's rows, in the order in which scores come.
        made_cold: item_ids of the items that were made cold, None where none was.
    """
    past = behaviour.before(opens)
    item_N = entities.items.encode(samples.column("item_id")).astype(np.int64)
    events_N = np.bincount(past.item_row_E, minlength=len(entities.items) + 1)[item_N]
    age_N = pc.fill_null(samples.column("item_age_days"), float("nan")).to_numpy()
    cold_N = events_N < COLD_EVENTS
    natural_N = cold_N if made_cold is None else cold_N & ~pc.is_in(samples.column("item_id"), value_set=made_cold).to_numpy()
    users = WindowUsers.of(samples, entities, past)
    quiet_N = (users.rank_U < SHARES["low50"][1])[users.place_N]
    slices = {
        "all": np.ones(len(item_N), bool),
        "zero_shot": events_N == 0,
        "cold_1_5": (events_N >= 1) & (events_N <= 5),
        "cold_6_20": (events_N >= 6) & (events_N <= 20),
        "cold_lt100": cold_N,
        "warm": ~cold_N,
        "natural_cold": natural_N,
        "new_items": age_N < NEW_DAYS,
        "popular_items": age_N > OLD_DAYS,
        "quiet_cold": quiet_N & cold_N,
        "quiet_warm": quiet_N & ~cold_N,
        "busy_cold": ~quiet_N & cold_N,
        "busy_warm": ~quiet_N & ~cold_N,
    }
    return _rows(samples, users, slices)


def _rows(samples: pa.Table, users: WindowUsers, slices: Mapping[str, Bools]) -> WindowRows:
    return WindowRows(samples.column("example_id").to_numpy(), users.user_N, samples.column("label").to_numpy().astype(np.int8), slices)
