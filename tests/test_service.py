"""The ranking service of a replica without Ray: releases, canaries, shadows, and what was told while it serves."""

import asyncio
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from longtail.artifacts import Store
from longtail.codes import encode
from longtail.online.entries import EventEntry, EventsEntry, ItemEntry, RolloutEntry, UserEntry
from longtail.questions import Encoded, Question, Ranking, StatedItem, UnanswerableError, Unknowns
from longtail.rankers.ranker import Ranker
from longtail.rollouts import Rollout
from serve_apps.ranking import served_run
from serve_apps.served_run import Served, ServedRun
from serve_apps.service import MOST_SHADOWED, AnyEntry, RankingService
from tests import small_run, small_world

ITEMS = tuple(StatedItem(item) for item in ("book", "milk", "odd", "soap", "tea"))


def spoiled(ranker: Ranker) -> None:
    """Scores that are no numbers."""
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.fill_(torch.nan)


def shifted(ranker: Ranker) -> None:
    with torch.no_grad():
        for name, parameter in ranker.named_parameters():
            if "catalogue" not in name:
                parameter.mul_(0.7)


class World:
    """Three releases of one run: as it is, one with other weights, one that is broken; and a service over them."""

    def __init__(self, published: tuple[Served, Served, Served]) -> None:
        self.served = published[0]
        self.other, self.broken = (one.release for one in published[1:])
        self.log: list[AnyEntry] = []
        self.encoded: list[tuple[str, int]] = []

    def service(self, **more: Any) -> RankingService:
        return RankingService(self.served.open, self.encode, self.encode_now, self.history, self.rollout(), told=len(self.log), **more)

    def rollout(self, **more: Any) -> Rollout:
        return Rollout(stable=self.served.release, configured=self.served.release, deployed_us=1, **more)

    def encode_now(self, release: str, unknowns: Unknowns) -> Encoded:
        self.encoded.append((release, len(unknowns.items)))
        vectors = small_run.item_vectors()[[0] * len(unknowns.items)]
        return Encoded((1, 0) if unknowns.user else None, vectors, encode(vectors, small_run.item_codebook()))

    async def encode(self, release: str, unknowns: Unknowns) -> Encoded:
        return self.encode_now(release, unknowns)

    def history(self, until: int) -> Iterable[AnyEntry]:
        return self.log[:until]

    def tell(self, service: RankingService, entry: AnyEntry) -> None:
        self.log.append(entry)
        service.apply(len(self.log), entry)

    def roll(self, service: RankingService, **more: Any) -> None:
        self.tell(service, RolloutEntry(told_us=1, rollout=self.rollout(**more)))

    def item(self, encoder: str | None = None) -> ItemEntry:
        vector = small_run.item_vectors()[2]
        codes = encode(vector[None], small_run.item_codebook())[0].tolist()
        own = self.served.open().release.file.encoder
        return ItemEntry(told_us=small_world.us(41), item_id="new", title="New", encoder=encoder or own, vector=ItemEntry.packed(vector), codes=codes)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Served, Served, Served]:
    folder = tmp_path_factory.mktemp("three releases")
    configs = [small_run.publish(folder), small_run.publish(folder, 0.5, shifted), small_run.publish(folder, 0.25, spoiled)]
    first, second, third = (served_run(config, Store.open(str(folder))) for config in configs)
    return first, second, third


@pytest.fixture
def world(published: tuple[Served, Served, Served]) -> World:
    return World(published)


def ask(service: RankingService, user: str, **more: Any) -> Any:
    async def answer() -> Any:
        ranking = await service.answer(Question(user, ITEMS, "choirrec", **more))
        await asyncio.gather(*service._shadowing)
        return ranking

    return asyncio.run(answer())


def test_a_canary_answers_its_users_and_a_release_can_be_named(world: World) -> None:
    service = world.service()
    users = [f"user {number}" for number in range(40)]
    assert {ask(service, user).release for user in users} == {world.served.release}
    world.roll(service, canary=world.other, weight=0.5)
    rollout = service.rollout
    assert [ask(service, user).release for user in users] == [rollout.release_of(user) for user in users]
    assert {ask(service, user).release for user in users} == set(rollout.releases)
    named = ask(service, "a", release=world.other)
    assert (named.release, named.version) == (world.other, world.served.open(world.other).release.rankers["choirrec"].key)
    assert [item.scores for item in named.items] != [item.scores for item in ask(service, "a", release=world.served.release).items]
    assert {model.release for model in service.info().models} == set(rollout.releases)
    assert service.info().release == world.served.release
    seen = service.report()
    assert seen["rollout"] == 1
    assert sum(stats["requests"] for stats in seen["releases"].values()) == 2 * len(users), "who names a release is not counted"
    world.roll(service)
    assert world.other not in service._loaded
    assert service.report()["releases"][world.served.release]["requests"] == 0


def test_where_a_canary_fails_the_stable_release_answers_and_it_is_counted(world: World) -> None:
    service = world.service()
    world.roll(service, canary=world.broken, weight=1.0)
    answers = [ask(service, user) for user in ("a", "b", "nobody")]
    assert {answer.release for answer in answers} == {world.served.release}
    seen = service.report()["releases"]
    assert (seen[world.broken]["requests"], seen[world.broken]["errors"]) == (3, 3)
    assert (seen[world.served.release]["requests"], seen[world.served.release]["errors"]) == (3, 0)
    with pytest.raises(FloatingPointError, match="scores that are no numbers"):
        ask(service, "a", release=world.broken)
    with pytest.raises(UnanswerableError, match="lies before"):
        ask(service, "a", now=small_world.day(1))
    assert service.report()["releases"][world.broken]["requests"] == 3, "a request's own fault is nobody else's, and who names a release tries it"
    with pytest.raises(UnanswerableError, match="is not loaded any more"):
        ask(service, "a", release="r9")
    with pytest.raises(UnanswerableError, match="has no ranker 'duet'"):
        asyncio.run(service.answer(Question("a", ITEMS, "duet")))


def test_a_shadow_ranks_unseen_and_its_differences_are_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    service = world.service()
    world.roll(service, shadow=world.other)
    assert {ask(service, user).release for user in ("a", "b", "c")} == {world.served.release}
    shadow = service.report()["shadow"]
    assert (shadow["compared"], shadow["errors"]) == (3, 0)
    assert shadow["score_difference"] > 0
    assert shadow["overlap"] == 3, "five items, all among the first ten"

    ranker, answered = service._loaded[world.other].ranker, threading.Event()
    rank = ranker.rank

    def slow(*question: Any) -> Ranking:
        assert answered.wait(10)
        return rank(*question)

    monkeypatch.setattr(ranker, "rank", slow)

    async def many() -> None:
        await asyncio.gather(*(service.answer(Question("a", ITEMS, "choirrec")) for _ in range(MOST_SHADOWED + 3)))
        answered.set()
        await asyncio.gather(*service._shadowing)

    asyncio.run(many())
    assert service.report()["shadow"]["dropped"] == 3
    world.roll(service, shadow=world.broken)
    ask(service, "a")
    assert service.report()["shadow"]["errors"] == 1


def test_a_release_that_cannot_be_loaded_is_told_and_nothing_else_stops(world: World) -> None:
    service = world.service()
    world.roll(service, canary="r9", weight=1.0)
    assert ask(service, "a").release == world.served.release
    assert "no release 'r9'" in service.report()["failures"]["r9"]
    world.tell(service, RolloutEntry(told_us=1, rollout=world.rollout().model_copy(update={"stable": "r9"})))
    assert ask(service, "a").release == world.served.release
    # a replica that starts then serves what was configured
    promoted = world.rollout().model_copy(update={"stable": "r9", "previous": "r8"})
    started = RankingService(world.served.open, world.encode, world.encode_now, world.history, promoted, told=len(world.log))
    assert ask(started, "a").release == world.served.release
    assert set(started.report()["failures"]) == {"r9"}


def test_what_one_release_cannot_take_in_the_others_have_and_it_may_be_tried_again(world: World) -> None:
    service = world.service()
    world.roll(service, canary=world.other, weight=0.5)
    number, entry = len(world.log) + 1, world.item("another encoder")
    encode_now, failing = service._encode_now, [world.other]

    def fails(release: str, unknowns: Unknowns) -> Encoded:
        if release in failing:
            raise TimeoutError("the encoder is being started again")
        return encode_now(release, unknowns)

    service._encode_now = fails
    with pytest.raises(TimeoutError):
        service.apply(number, entry)
    assert service.applied == number - 1
    assert service._loaded[world.served.release].ranker.features.added.ids == ["new"]
    failing.clear()
    service.apply(number, entry)
    assert service.applied == number
    assert all(loaded.ranker.features.added.ids == ["new"] for loaded in service._loaded.values())


def test_what_was_told_before_the_logs_ended_stands_in_them(world: World) -> None:
    service = world.service()
    before = ask(service, "a")
    early = small_world.us(3)
    world.tell(service, world.item().model_copy(update={"item_id": "tea", "told_us": early}))
    told = UserEntry(told_us=early, user_id="a", attributes={"city": "Ulm"}, profile_by="none", encoder=world.item().encoder)
    world.tell(service, told)
    assert ask(service, "a").items == before.items
    world.tell(service, world.item().model_copy(update={"item_id": "forgotten by the logs", "told_us": early}))
    assert service._loaded[world.served.release].ranker.features.added.ids == ["forgotten by the logs"]


def test_what_was_told_is_in_every_release_also_in_one_that_comes_later(world: World) -> None:
    service = world.service()
    new = ITEMS[0]._replace(item_id="new")
    for entry in (
        world.item(),
        UserEntry(told_us=1, user_id="u", attributes={"city": "Ulm"}, profile="Likes tea.", profile_by="request", encoder=world.item().encoder, codes=[0, 1]),
        EventsEntry(told_us=1, events=[EventEntry(event_id="1", user_id="u", item_id="new", event="purchase", ts_us=small_world.us(42))]),
    ):
        world.tell(service, entry)
    world.roll(service, canary=world.other, weight=1.0)
    assert world.encoded == [], "both have the same encoders"
    later = world.service()
    for one in (service, later):
        for release in (world.served.release, world.other) if one is service else (world.served.release,):
            answer = asyncio.run(one.answer(Question("u", (*ITEMS, new), "choirrec", release=release, explain=True)))
            told = {item.item_id: item.basis for item in answer.items}
            assert (told["new"], answer.group, answer.group_basis) == ("added", (0, 1), "added")
            assert {seen.item_id for item in answer.items if item.explanation for seen in item.explanation.attended["history"]} == {"new"}


def test_a_profile_that_comes_late_completes_what_it_was_asked_for_and_nothing_newer(world: World) -> None:
    service = world.service()
    first = UserEntry(told_us=5, user_id="u", attributes={"city": "Ulm"}, profile_by="deterministic", encoder=world.item().encoder, codes=[0, 1])
    late = first.model_copy(update={"told_us": 9, "profile_by": "llm", "codes": [1, 0], "of_us": 5})
    for told, group in (([first], (0, 1)), ([first, late], (1, 0)), ([first, first.model_copy(update={"told_us": 7, "codes": [2, 2]}), late], (2, 2))):
        for entry in told:
            world.tell(service, entry)
        assert ask(service, "u").group == group


def test_what_another_encoder_made_is_made_anew(world: World) -> None:
    service = world.service()
    world.tell(service, world.item("another encoder"))
    world.tell(service, UserEntry(told_us=1, user_id="u", profile="Likes tea.", profile_by="request", encoder="another", codes=[2, 2]))
    assert [number for _, number in world.encoded] == [1, 0]
    assert ask(service, "u").group == (1, 0)
    world.encoded.clear()
    again: ServedRun = world.served.open()
    assert again.release.key == world.served.release
    world.service()
    assert [number for _, number in world.encoded] == [1, 0]
    assert np.isfinite([item.scores[0] for item in ask(service, "u").items]).all()
