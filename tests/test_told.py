"""What an application is told: the log's numbers and durability, and the one writer between routes and replicas."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest

from longtail.online import redis_store
from longtail.online.entries import EventEntry, EventsEntry, UserEntry, parse
from longtail.online.log import MERGE_AT, FileLog, RedisLog, ToldLog
from longtail.rollouts import GuardSettings, ReleaseStats, RolloutChange, ShadowStats
from serve_apps.told import Writer
from tests import redis_server


def user(name: str) -> str:
    return UserEntry(told_us=1, user_id=name, profile_by="none", encoder="e").model_dump_json()


def events(*ids: str) -> str:
    told = [EventEntry(event_id=one, user_id="a", item_id="tea", event="click", ts_us=5) for one in ids]
    return EventsEntry(told_us=1, events=told).model_dump_json()


def file_log(folder: Path) -> FileLog:
    return FileLog.open(pafs.LocalFileSystem(), str(folder))


@pytest.fixture(params=["file", "redis"])
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Opens the same log again and again."""
    if request.param == "file":
        yield lambda: file_log(tmp_path)
        return
    with redis_server.running(tmp_path) as url:
        yield lambda: RedisLog(redis_store.connect(url), "longtail:told:test")


def test_lines_have_numbers_and_are_there_after_a_restart(open_log: Callable[[], ToldLog]) -> None:
    log = open_log()
    assert list(log.read(0)) == []
    assert log.append([]) == 0
    assert log.append(["one", "two"]) == 2
    assert log.append(["drei ü \u2028 \x85 and on"]) == 3
    again = open_log()
    assert list(again.read(0)) == [(1, "one"), (2, "two"), (3, "drei ü \u2028 \x85 and on")]
    assert list(again.read(2)) == [(3, "drei ü \u2028 \x85 and on")]
    assert again.append(["four"]) == 4
    assert list(open_log().read(1)) == [(2, "two"), (3, "drei ü \u2028 \x85 and on"), (4, "four")]


def test_many_segments_become_one_and_an_interrupted_merge_tells_nothing_twice(tmp_path: Path) -> None:
    log = file_log(tmp_path)
    for number in range(MERGE_AT):
        log.append([f"line {number}"])
    assert len(list((tmp_path / "told").iterdir())) == MERGE_AT
    log.append([f"line {MERGE_AT}"])
    assert len(list((tmp_path / "told").iterdir())) == 1
    whole = list(log.read(0))
    assert [line for _, line in whole] == [f"line {number}" for number in range(MERGE_AT + 1)]
    assert list(file_log(tmp_path).read(0)) == whole
    # as if the old segments had not been removed yet
    (tmp_path / "told" / f"{5:015d}.jsonl").write_text("line 4\n")
    assert list(file_log(tmp_path).read(0)) == whole
    assert list(file_log(tmp_path).read(500)) == whole[500:]


def test_two_applications_at_one_log_are_told_apart(tmp_path: Path) -> None:
    first, second = file_log(tmp_path), file_log(tmp_path)
    first.append(["mine"])
    with pytest.raises(ValueError, match=r"another application writes to this log.*run\.uri of its own"):
        second.append(["theirs"])
    assert list(file_log(tmp_path).read(0)) == [(1, "mine")]


def test_an_append_whose_answer_was_lost_is_known_again(tmp_path: Path) -> None:
    log, behind = file_log(tmp_path), file_log(tmp_path)
    log.append(["one"])
    assert behind.append(["one"]) == 1
    assert list(behind.read(0)) == [(1, "one")]

    async def story() -> None:
        writer = Writer(file_log(tmp_path / "other"), GuardSettings())
        writer._log.append([user("a")])  # written, and the writer was told that it was not
        await writer.append([user("b")], 0.0)
        assert [parse(line).user_id for line in writer._lines] == ["a", "b"]  # type: ignore[union-attr]
        with pytest.raises(ValueError, match=r"the log ends with entry 2, and entry 7 was taken in: it has lost some"):
            await writer.read(7)

    asyncio.run(story())


def report(rollout: int, **releases: ReleaseStats) -> dict[str, Any]:
    seen = {key: stats.model_dump() for key, stats in releases.items()}
    return {"rollout": rollout, "releases": seen, "shadow": ShadowStats().model_dump(), "failures": {}}


def test_an_entry_is_told_once_all_replicas_have_it(tmp_path: Path) -> None:
    async def story() -> None:
        writer = Writer(file_log(tmp_path), GuardSettings())
        told, _ = await writer.begin("r1", 1)
        assert told == 1
        assert (await writer.append([user("a")], 0.1)) == {"number": 2, "replicas": 0, "seen_by": 0}
        waiting = [asyncio.create_task(writer.follow(name, 2, report(1))) for name in ("one", "two")]
        await asyncio.sleep(0)
        appending = asyncio.create_task(writer.append([user("b")], 5.0))
        lines = await asyncio.gather(*waiting)
        assert [[parse(line).user_id for line in some] for some in lines] == [["b"], ["b"]]  # type: ignore[union-attr]
        following = asyncio.create_task(writer.follow("one", 3, report(1)))
        await asyncio.sleep(0.05)
        assert not appending.done()
        other = asyncio.create_task(writer.follow("two", 3, report(1)))
        assert await appending == {"number": 3, "replicas": 2, "seen_by": 2}
        # one that says nothing is waited for, not forever
        assert await writer.append([user("c")], 0.2) == {"number": 4, "replicas": 2, "seen_by": 0}
        assert len(await following) == len(await other) == 1
        await writer.leave("two")
        assert (await writer.state())["replicas"].keys() == {"one"}

    asyncio.run(story())


def test_what_a_replica_saw_counts_after_its_end_until_the_rollout_changes(tmp_path: Path) -> None:
    async def story() -> None:
        writer = Writer(file_log(tmp_path), GuardSettings(min_requests=1000))
        await writer.begin("r1", 1)
        canary = RolloutChange(action="canary", release="r2", weight=0.5).model_dump_json()
        await writer.change(canary, 0.0)
        seen = ReleaseStats()
        for _ in range(3):
            seen.see(5.0, np.zeros(2))
        for name in ("one", "two"):
            await writer.follow(name, 0, report(2, r1=seen, r2=seen))
        await writer.leave("two")
        assert (await writer.state())["releases"]["r2"]["requests"] == 6
        assert (await writer.state())["replicas"].keys() == {"one"}, "nobody waits for who has ended"
        await writer.change(RolloutChange(action="canary", release="r2", weight=0.6).model_dump_json(), 0.0)
        await writer.leave("nobody")
        assert (await writer.state())["releases"].get("r2", {"requests": 0})["requests"] == 0

    asyncio.run(story())


def test_events_that_are_sent_again_count_once_also_after_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        writer = Writer(file_log(tmp_path), GuardSettings())
        assert await writer.append_events(events("e1", "e2", "e2"), 0.0) == {"number": 1, "replicas": 0, "seen_by": 0, "accepted": 2, "told_before": 1}
        again = Writer(file_log(tmp_path), GuardSettings())
        assert (await again.append_events(events("e2", "e3"), 0.0))["accepted"] == 1
        assert (await again.append_events(events("e3"), 0.0)) == {"number": 2, "replicas": 0, "seen_by": 0, "accepted": 0, "told_before": 1}

    asyncio.run(story())


def test_what_was_decided_last_holds_be_it_by_an_operator_or_by_a_deployment(tmp_path: Path) -> None:
    async def story() -> None:
        writer = Writer(file_log(tmp_path), GuardSettings())
        await writer.begin("r1", 10)
        assert "refused" in await writer.change(RolloutChange(action="promote").model_dump_json(), 0.0)
        state = await writer.change(RolloutChange(action="promote", release="r2").model_dump_json(), 0.0)
        assert state["state"]["stable"] == "r2"
        writer = Writer(file_log(tmp_path), GuardSettings())
        _, rollout = await writer.begin("r1", 20)  # started again with the config that it had
        assert '"stable":"r2"' in rollout
        _, rollout = await writer.begin("r3", 30)  # deployed with another
        assert '"stable":"r3"' in rollout
        assert '"previous":"r2"' in rollout
        _, rollout = await writer.begin("r1", 20)  # a replica of the earlier deployment, started again
        assert '"stable":"r3"' in rollout
        assert [one["stable"] for one in (await writer.state())["history"]] == ["r1", "r2", "r2", "r3"]

    asyncio.run(story())


def test_a_canary_that_fails_is_taken_back_and_the_log_says_why(tmp_path: Path) -> None:
    async def story() -> None:
        writer = Writer(file_log(tmp_path), GuardSettings(min_requests=100))
        await writer.begin("r1", 1)
        await writer.change(RolloutChange(action="canary", release="r2", weight=0.5).model_dump_json(), 0.0)
        broken, fine = ReleaseStats(requests=10, errors=9), ReleaseStats(requests=10)
        await writer.follow("old", 2, report(1, r2=broken, r1=fine))  # of before the canary: counts nothing
        assert (await writer.state())["state"]["canary"] == "r2"
        lines = await writer.follow("one", 2, report(2, r2=broken, r1=fine))
        state = (await writer.state())["state"]
        assert (state["canary"], state["stable"]) == (None, "r1")
        assert "rolled back by itself: 9 of 10 requests failed" in state["reason"]
        assert "rolled back by itself" in lines[0]
        assert Writer(file_log(tmp_path), GuardSettings())._rollouts[-1][1].canary is None
        await writer.change(RolloutChange(action="canary", release="r9", weight=0.5).model_dump_json(), 0.0)
        lost = {"failures": {"r9": "ValueError: no such release"}}
        await writer.follow("one", 4, report(4) | lost)
        assert "could not be loaded: ValueError: no such release" in (await writer.state())["state"]["reason"]
        # mended and tried again: what was said of the first attempt does not count
        await writer.change(RolloutChange(action="canary", release="r9", weight=0.5).model_dump_json(), 0.0)
        await writer.follow("two", 6, report(6))
        assert (await writer.state())["state"]["canary"] == "r9"
        # a promoted release that cannot be loaded is taken back, too, and nothing is behind it
        await writer.change(RolloutChange(action="promote", release="r9").model_dump_json(), 0.0)
        await writer.follow("one", 7, report(7) | lost)
        state = (await writer.state())["state"]
        assert (state["stable"], state["previous"]) == ("r1", None)
        await writer.follow("one", 8, report(8) | {"failures": {"r1": "it too"}})
        assert (await writer.state())["state"]["stable"] == "r1"

    asyncio.run(story())
