"""Matches: counts by semantic codes, by hand, against a slow recount, and blind to the future."""

import numpy as np

from longtail.feature_state import match_rows
from longtail.matches import MATCH_STATS
from longtail.times import DAY_US
from tests import small_world
from tests.small_features import CLUSTER_N, MILK, ODD, TEA, Events, examples, match_state

Pair = tuple[str, str, float]


def matches(pairs: list[Pair], rows: Events | None = None, cluster_N: np.ndarray = CLUSTER_N) -> list[dict[str, float]]:
    table = match_rows(match_state(rows, cluster_N), examples(pairs))
    return [dict(zip(MATCH_STATS, values, strict=True)) for values in table.column("match_stats").to_pylist()]


def test_statistics_are_of_items_with_the_same_codes_and_not_of_the_category() -> None:
    # c bought soap on day 5 and book on day 11. odd has book's cluster; soap shares none with anything.
    odd, soap, early = matches([("c", "odd", 15), ("c", "soap", 15), ("c", "odd", 11)])
    assert np.isclose(odd["log_same_cluster"], np.log1p(1))
    assert np.isclose(odd["cluster_share"], 1 / 2)
    assert np.isclose(odd["cluster_recency"], 1 / 5)
    assert np.isclose(soap["log_same_cluster"], np.log1p(1))
    assert np.isclose(soap["cluster_recency"], 1 / 11)
    assert early["log_same_cluster"] == 0  # the book itself is of that moment
    (tea,) = matches([("a", "tea", 12)])
    assert np.isclose(tea["log_same_cluster"], np.log1p(3))  # milk too
    assert np.isclose(tea["cluster_share"], 1.0)


def test_items_without_codes_are_of_no_cluster() -> None:
    without = CLUSTER_N.copy()
    without[[MILK, ODD, TEA]] = 0
    pairs: list[Pair] = [("a", item, 15.0) for item in ("milk", "odd", "not in the shop")]
    assert all(set(one.values()) == {0.0} for one in matches(pairs, cluster_N=without))
    assert matches(pairs)[0]["log_same_cluster"] > 0


def test_a_planted_future_event_changes_nothing() -> None:
    asked = [(user, item, 21.0) for user in "abcd" for item in ("tea", "milk", "soap", "book", "odd")]
    planted = [*small_world.BEHAVIOUR, ("a", "book", 21.0, "purchase"), ("d", "odd", 21.5, "click"), ("c", "tea", 39.0, "purchase")]
    assert matches(asked, planted) == matches(asked)
    after = [(user, item, 29.0) for user, item, _ in asked]
    assert matches(after, planted) != matches(after)


def test_counts_agree_with_a_slow_recount() -> None:
    generator = np.random.default_rng(3)
    names = ["tea", "milk", "soap", "book", "odd"]
    cluster = dict(zip(sorted(names), CLUSTER_N[1:], strict=True))
    users, items, days = generator.choice(list("abcd"), 200), generator.choice(names, 200), generator.uniform(0, 30, 200).round(2)
    rows = [(str(user), str(item), float(day), "purchase") for user, item, day in zip(users, items, days, strict=True)]
    asked = [(str(user), str(item), float(day) + 5) for user, item, day in zip(users[::4], items[1::4], days[::4], strict=True)]
    for got, (user, item, time) in zip(matches(asked, rows), asked, strict=True):
        now = small_world.us(time)
        mine = [row for row in rows if row[0] == user and small_world.us(row[2]) < now]
        alike = [row for row in mine if cluster[row[1]] == cluster[item]]
        last = max((small_world.us(row[2]) for row in alike), default=None)
        assert np.isclose(got["log_same_cluster"], np.log1p(len(alike)))
        assert np.isclose(got["cluster_share"], len(alike) / max(len(mine), 1))
        assert np.isclose(got["cluster_recency"], 1 / 1001 if last is None else 1 / (1 + (now - last) / DAY_US), atol=1e-6)
