"""The group tree: members and quiet members of every prefix, and the words that tell a group from the others."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from longtail import schema
from longtail.group_tree import Members, telling_words, word_counts, words
from tests import small_features, small_world


def test_every_prefix_counts_its_members_and_the_quiet_among_them() -> None:
    members = Members.of(small_features.user_codes())  # a and b 0-1, c 0-2, d 1-0
    tree = members.tree(np.array([3, 2, 2, 0]), low_max=2)
    assert {prefix: (node.size, node.low) for prefix, node in tree.items()} == {
        (): (4, 3),
        (0,): (3, 2),
        (1,): (1, 1),
        (0, 1): (2, 1),
        (0, 2): (1, 1),
        (1, 0): (1, 1),
    }
    assert next(iter(tree)) == ()
    assert tree[0,].median_purchases == 2
    assert tree[0,].low_share == pytest.approx(2 / 3)
    assert members.within((0,)).tolist() == [True, True, True, False]
    assert members.within(()).all()


def test_only_the_last_snapshot_counts() -> None:
    codes = small_features.user_codes()
    later = pa.table(
        {"user_id": ["a"], "as_of": pa.array([small_world.day(27)], schema.TIMESTAMP), "codes": pa.array([[2, 2]], pa.list_(pa.int32(), 2))},
        schema=codes.schema,
    )
    members = Members.of(pa.concat_tables([codes, later]))
    assert members.user_ids.to_pylist() == ["a"]
    assert members.codes_RS.tolist() == [[2, 2]]
    assert Members.of(codes.slice(0, 0)).tree(np.zeros(0, np.int64), 2) == {}


def test_children_sum_up_to_their_parent() -> None:
    rng = np.random.default_rng(0)
    members = Members(pa.array([str(number) for number in range(500)]), rng.integers(0, 4, (500, 3)).astype(np.int32))
    tree = members.tree(rng.integers(0, 9, 500), 3)
    for prefix, node in tree.items():
        children = [child for child in tree.values() if child.prefix[:-1] == prefix and child.prefix]
        if len(prefix) < 3:
            assert (sum(child.size for child in children), sum(child.low for child in children)) == (node.size, node.low)


def test_words_of_a_profile_are_told_once_and_dull_ones_are_left_out() -> None:
    assert words("Buys Tea, tea and shelf-3 (the d'Or); x") == {"tea", "shelf-3", "d'or"}
    assert word_counts(["tea tea", "tea milk"]) == Counter({"tea": 2, "milk": 1})


def test_the_words_that_tell_are_those_of_the_group_and_not_everyones() -> None:
    everyone = Counter({"tea": 90, "soap": 12, "rare": 1, "book": 10})
    group = Counter({"tea": 9, "soap": 8, "rare": 1})
    found = telling_words(group, 10, everyone, 100, count=5)
    assert [one.word for one in found] == ["soap"], "tea is everyone's, rare stands in one profile"
    (soap,) = found
    assert (soap.share, soap.share_elsewhere) == (0.8, pytest.approx(4 / 90))
    assert soap.log_odds == pytest.approx(np.log(8.5 / 2.5) - np.log(4.5 / 86.5))
    assert telling_words(group, 10, group, 10, count=5) == [], "a group that is everyone has no others"
