"""Places within code tuples: a hand-worked case, stability under growth, uniqueness, refusals."""

import numpy as np
import pytest

from longtail.code_collisions import NoPlaceError, Places, resolve

A, B = [0, 1], [2, 2]


def codes(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int32)


def test_places_by_hand() -> None:
    """By item_id within the tuple, whatever the order of the rows."""
    place = resolve(codes(A, B, A, A), ["milk", "soap", "bread", "tea"], num_places=3)
    np.testing.assert_array_equal(place, [1, 0, 0, 2])
    np.testing.assert_array_equal(resolve(codes(A, A, B, A), ["tea", "bread", "soap", "milk"], num_places=3), [2, 0, 0, 1])


def test_who_is_there_keeps_and_who_comes_takes_the_next() -> None:
    before = Places(["milk", "tea"], codes(A, A), np.array([0, 1], np.int32))
    place = resolve(codes(A, A, A, B), ["apple", "milk", "tea", "zoo"], num_places=3, previous=before)
    np.testing.assert_array_equal(place, [2, 0, 1, 0])


def test_an_item_of_another_tuple_starts_there_and_a_gone_ones_place_stays_empty() -> None:
    before = Places(["gone", "milk", "soap"], codes(A, A, B), np.array([0, 1, 0], np.int32))
    place = resolve(codes(A, A, A), ["milk", "soap", "tea"], num_places=4, previous=before)
    np.testing.assert_array_equal(place, [1, 2, 3])


def test_equal_content_may_share_and_what_was_told_apart_stays_so() -> None:
    content = np.array([5, 5, 6], np.uint64)
    ids, rows = ["a", "b", "c"], codes(A, A, A)
    np.testing.assert_array_equal(resolve(rows, ids, num_places=2, content_N=content), [0, 0, 1])
    apart = Places(ids, rows, resolve(rows, ids, num_places=3))
    np.testing.assert_array_equal(resolve(rows, ids, num_places=3, previous=apart, content_N=content), [0, 1, 2])
    shared = Places(ids, rows, resolve(rows, ids, num_places=2, content_N=content))
    np.testing.assert_array_equal(resolve(rows, ids, num_places=3, previous=shared), [0, 2, 1])
    changed = np.array([5, 7, 6], np.uint64)
    np.testing.assert_array_equal(resolve(rows, ids, num_places=3, previous=shared, content_N=changed), [0, 2, 1])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shares", [False, True])
def test_unique_stable_and_dense_while_items_come(seed: int, shares: bool) -> None:
    rng = np.random.default_rng(seed)
    ids = [f"i{number}" for number in rng.permutation(400)]
    content = rng.integers(0, 150, 400).astype(np.uint64)
    rows = rng.integers(0, 3, (150, 2)).astype(np.int32)[content.astype(np.int64)]
    previous = None
    for there in (100, 250, 400):
        place = resolve(rows[:there], ids[:there], num_places=400, previous=previous, content_N=content[:there] if shares else None)
        full = [(*row, number) for row, number in zip(rows[:there].tolist(), place.tolist(), strict=True)]
        owners = content[:there].tolist() if shares else ids[:there]
        assert len(set(full)) == len(set(zip(full, owners, strict=True))) == len(set(owners))
        if previous is not None:
            np.testing.assert_array_equal(place[: len(previous.place_N)], previous.place_N)
        for row in {tuple(row) for row in rows[:there].tolist()}:
            used = {one[-1] for one in full if one[:-1] == row}
            assert used == set(range(len(used)))
        previous = Places(ids[:there], rows[:there], place)


def test_no_item_and_no_previous() -> None:
    assert resolve(np.zeros((0, 2), np.int32), [], num_places=1).shape == (0,)


def test_too_few_places_are_refused() -> None:
    with pytest.raises(NoPlaceError, match=r"codes\.item\.num_places = 2: tuple \[0, 1\] has 3 items and needs 3 places\. Raise .*equal_share_place"):
        resolve(codes(A, B, A, A), ["milk", "soap", "bread", "tea"], num_places=2)
    assert resolve(codes(A, B, A, A), ["milk", "soap", "bread", "tea"], num_places=2, content_N=np.array([1, 1, 1, 2], np.uint64)).max() == 1


def test_an_item_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="2 items, but only 1 different"):
        resolve(codes(A, B), ["milk", "milk"], num_places=2)
