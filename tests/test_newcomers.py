"""Newcomers: what a request says becomes the same text, vector and codes as it would in the pipeline."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from longtail.codes import encode
from longtail.embeddings import EmbeddingsSettings, EncoderSettings, TextEncoder, item_texts
from longtail.newcomers import NewcomerEncoder, profile_of, stated_items
from longtail.profile_facts import facts_table
from longtail.profile_text import fallback
from longtail.profiles import ProfilesSettings
from longtail.projection import ItemEncoder, Projection, ProjectionShape
from longtail.questions import StatedItem, StatedUser, Unknowns
from longtail.user_spaces import side_by_side
from tests import small_run, small_world

PROFILES = ProfilesSettings()
EMBEDDINGS = EmbeddingsSettings()


@pytest.fixture(scope="module")
def encoder() -> NewcomerEncoder:
    rng = np.random.default_rng(0)
    start = Projection.start(ProjectionShape(384, 0, small_run.DIM, 16, None, False), rng.normal(size=(50, 384)).astype(np.float32), 0)
    user_codebook = rng.normal(size=(2, 3, 384)).astype(np.float32) * 0.05
    return NewcomerEncoder(small_world.INFO, PROFILES, EMBEDDINGS, user_codebook, small_run.item_codebook(), ItemEncoder(start))


def test_the_profile_of_stated_attributes_is_the_one_that_the_pipeline_would_write() -> None:
    users = pa.table({"user_id": ["e"], "city": ["Ulm"], "age": [40.0]})
    facts, _ = facts_table(users, small_world.ITEMS, small_world.events(small_world.BEHAVIOUR), small_world.INFO, PROFILES, small_world.day(20))
    text = profile_of(StatedUser({"city": "Ulm", "age": 40}), small_world.INFO, PROFILES)
    assert text == fallback(facts.to_pylist()[0]).text
    assert "Ulm" in text
    assert "40" in text


def test_a_profile_in_words_wins_and_nothing_said_is_no_profile() -> None:
    assert profile_of(StatedUser({"city": "Ulm"}, "  Likes tea. "), small_world.INFO, PROFILES) == "Likes tea."
    assert profile_of(StatedUser({"city": None}), small_world.INFO, PROFILES) is None
    assert profile_of(StatedUser({}, "  "), small_world.INFO, PROFILES) is None


def test_stated_items_have_the_text_of_the_items_table() -> None:
    stated = [StatedItem("tea", "Tea", ("food", "drinks"), "x", 2.0), StatedItem("book", "Book", ("home", "paper"))]
    table = small_world.ITEMS.take(pa.array([0, 3]))
    assert item_texts(stated_items(stated)) == item_texts(table)
    assert item_texts(stated_items([StatedItem("?", None, ("home",), "y")])) == ["home. y"]


def test_vectors_and_codes_are_those_of_the_runs_encoders(encoder: NewcomerEncoder) -> None:
    tea, book = StatedItem("t", "Tea", ("food", "drinks"), "x"), StatedItem("b", "Book", ("home", "paper"))
    got = encoder.encode(Unknowns(StatedUser({"city": "Bonn"}), (tea, book, tea._replace(item_id="t2"))))
    vectors = TextEncoder(EMBEDDINGS.item).encode(item_texts(small_world.ITEMS.take(pa.array([0, 3, 0]))))
    z = encoder.projection.project(vectors)
    assert np.allclose(got.item_z_ND, z, atol=1e-6)
    assert np.allclose(np.linalg.norm(got.item_z_ND, axis=1), 1, atol=1e-5)
    assert np.array_equal(got.item_codes_NS, encode(z, small_run.item_codebook()))
    assert np.array_equal(got.item_z_ND[0], got.item_z_ND[2])
    profile = profile_of(StatedUser({"city": "Bonn"}), small_world.INFO, PROFILES)
    assert profile is not None
    assert got.user_codes == tuple(encode(TextEncoder(EMBEDDINGS.user).encode([profile]), encoder.user_codebook_SKD)[0])


def test_a_described_user_lies_in_further_spaces_as_one_who_has_met_nothing(encoder: NewcomerEncoder) -> None:
    codebook_SKD = np.random.default_rng(3).normal(size=(2, 5, 384 + 16)).astype(np.float32) * 0.05
    got = replace(encoder, user_codebook_SKD=codebook_SKD).encode(Unknowns(StatedUser(profile="Likes tea."), ()))
    vector_1D = TextEncoder(EMBEDDINGS.user).encode(["Likes tea."])
    assert got.user_codes == tuple(encode(side_by_side([vector_1D, np.zeros((1, 16), np.float32)]), codebook_SKD)[0])


def counting(make: Callable[[EncoderSettings], TextEncoder], loaded: list[EncoderSettings]) -> Callable[[EncoderSettings], TextEncoder]:
    def made(settings: EncoderSettings) -> TextEncoder:
        loaded.append(settings)
        return make(settings)

    return made


def test_a_text_model_is_loaded_only_when_a_text_needs_it(encoder: NewcomerEncoder) -> None:
    loaded: list[EncoderSettings] = []
    lazy = replace(encoder, make_encoder=counting(TextEncoder, loaded), _encoders={})
    assert lazy.encode(Unknowns(StatedUser({}), ())).user_codes is None
    assert not loaded
    for _ in range(2):
        lazy.encode(Unknowns(None, (StatedItem("t", "Tea"),)))
    assert loaded == [EMBEDDINGS.item]


def test_a_described_user_has_no_place_among_groups_in_which_profiles_do_not_come_first(encoder: NewcomerEncoder) -> None:
    loaded: list[EncoderSettings] = []
    blind = replace(encoder, user_codebook_SKD=None, make_encoder=counting(TextEncoder, loaded), _encoders={})
    assert blind.encode(Unknowns(StatedUser({"city": "Bonn"}, "Likes tea."), ())).user_codes is None
    assert not loaded
    tea = StatedItem("t", "Tea", ("food", "drinks"), "x")
    got, expected = (one.encode(Unknowns(StatedUser({"city": "Bonn"}), (tea,))) for one in (blind, encoder))
    assert expected.user_codes is not None
    assert got.user_codes is None
    assert np.array_equal(got.item_codes_NS, expected.item_codes_NS)
    assert loaded == [EMBEDDINGS.item]


def test_first_texts_that_come_at_once_load_one_model(encoder: NewcomerEncoder) -> None:
    loaded: list[EncoderSettings] = []
    ready = TextEncoder(EMBEDDINGS.item)

    def slow(settings: EncoderSettings) -> TextEncoder:
        time.sleep(0.2)
        return ready

    lazy = replace(encoder, make_encoder=counting(slow, loaded), _encoders={})
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lazy.encode, [Unknowns(None, (StatedItem("t", "Tea"),))] * 4))
    assert loaded == [EMBEDDINGS.item]
    assert all(np.array_equal(one.item_z_ND, together[0].item_z_ND) for one in together)


def test_after_warming_no_text_waits_for_a_model(encoder: NewcomerEncoder) -> None:
    loaded: list[EncoderSettings] = []
    warm = replace(encoder, make_encoder=counting(TextEncoder, loaded), _encoders={})
    warm.warm()
    assert set(loaded) == {EMBEDDINGS.user, EMBEDDINGS.item}
    warm.encode(Unknowns(StatedUser({"city": "Ulm"}), (StatedItem("t", "Tea"),)))
    assert len(loaded) == 2
