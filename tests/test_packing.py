"""Packs of texts, by hand."""

import numpy as np

from longtail.packing import GRAIN, Run, packs


def test_texts_of_one_length_stand_together_and_fillers_behind() -> None:
    (found,) = packs([[1, 2, 3], [4, 5], [6, 7, 8], [9, 9]], 100)
    np.testing.assert_array_equal(found.texts, [1, 3, 0, 2])
    np.testing.assert_array_equal(found.tokens_U[found.pairs_T][:10], [4, 5, 9, 9, 1, 2, 3, 6, 7, 8])
    np.testing.assert_array_equal(found.positions_U[found.pairs_T][:10], [0, 1, 0, 1, 0, 1, 2, 0, 1, 2])
    assert found.runs == (Run(0, 2, 2), Run(4, 2, 3))
    assert len(found.tokens_U) == len(found.positions_U) == len(found.pairs_T) == GRAIN


def test_a_token_at_one_position_is_listed_once() -> None:
    (found,) = packs([[1, 5, 2]] * 70 + [[5, 1]], 1000)
    assert len(found.pairs_T) == 4 * GRAIN
    assert set(zip(found.tokens_U[:5], found.positions_U[:5], strict=True)) == {(1, 0), (5, 1), (2, 2), (5, 0), (1, 1)}
    assert not found.tokens_U[5:].any()


def test_a_pack_holds_no_more_tokens_than_it_may_and_each_text_once() -> None:
    rng = np.random.default_rng(0)
    ids = [list(range(length)) for length in rng.integers(1, 90, 200)]
    found = list(packs(ids, 128))
    assert sorted(text for one in found for text in one.texts) == list(range(200))
    assert all(one.runs[-1].stop == sum(len(ids[text]) for text in one.texts) <= 128 for one in found)
    assert all(sum(len(ids[text]) for text in one.texts) > 128 - 90 for one in found[:-1])


def test_a_text_that_is_too_long_has_a_pack_of_its_own() -> None:
    assert [one.texts.tolist() for one in packs([[0] * 9, [0], [0] * 8], 4)] == [[1], [2], [0]]
    assert list(packs([], 4)) == []
