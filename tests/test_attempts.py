"""Attempts at one key on an object store: played through in many orders, on a file system whose every call takes some simulated time."""

import heapq
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as pafs
import pytest

from longtail import attempts
from longtail.attempts import CLAIM, MANIFEST, Attempt, clear

FOLDER = "run/codes/k"
SETTLE_S = 5.0


class Clock:
    """Simulated time for threads that all wait for it: it goes on when each of them does, to the next that is due."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, threading.Event]] = []
        self._lock, self._running, self._number = threading.Lock(), 0, 0

    def sleep(self, seconds: float) -> None:
        mine = threading.Event()
        with self._lock:
            self._number += 1
            heapq.heappush(self._due, (self.now + seconds, self._number, mine))
            self._rest()
        mine.wait()

    def _rest(self) -> None:
        self._running -= 1
        if self._running == 0 and self._due:
            self.now, _, following = heapq.heappop(self._due)
            self._running = 1
            following.set()

    def play(self, parts: list[Callable[[], None]]) -> None:
        """Run the parts as threads until all have ended; one of them at a time."""
        failed: list[BaseException] = []

        def run(part: Callable[[], None], start: threading.Event) -> None:
            start.wait()
            try:
                part()
            except BaseException as error:
                failed.append(error)
            with self._lock:
                self._rest()

        threads = []
        for part in parts:
            self._number += 1
            start = threading.Event()
            heapq.heappush(self._due, (self.now, self._number, start))
            threads.append(threading.Thread(target=run, args=(part, start), daemon=True))
        for thread in threads:
            thread.start()
        with self._lock:
            self._running = 1
            self._rest()
        for thread in threads:
            thread.join(timeout=30)
        assert not any(thread.is_alive() for thread in threads)
        if failed:
            raise failed[0]


class SlowStore:
    """An object store: what a call does happens at one moment between its begin and its end, both `delay()` away."""

    def __init__(self, clock: Clock, delay: Callable[[], float]) -> None:
        self.inner = pafs._MockFileSystem()
        self._clock, self._delay = clock, delay

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            self._clock.sleep(self._delay())
            try:
                return getattr(self.inner, name)(*arguments, **more)
            finally:
                self._clock.sleep(self._delay())

        return call

    def open_output_stream(self, path: str) -> Any:
        """What is written appears when the stream is closed."""
        held: list[bytes] = []

        @contextmanager
        def stream_of() -> Iterator[Any]:
            yield SimpleNamespace(write=held.append)
            self._clock.sleep(self._delay())
            with self.inner.open_output_stream(path) as stream:
                stream.write(b"".join(held))
            self._clock.sleep(self._delay())

        return stream_of()

    def written(self, name: str) -> str | None:
        """The attempt that a manifest or claim names now."""
        path = f"{FOLDER}/{name}"
        if self.inner.get_file_info(path).type != pafs.FileType.File:
            return None
        with self.inner.open_input_stream(path) as stream:
            return str(json.loads(stream.read())["data"])

    def has_data(self, name: str) -> bool:
        return bool(self.inner.get_file_info(f"{FOLDER}/{name}/rows").type == pafs.FileType.File)


def name_of(number: int) -> str:
    return f"20260101T000000-{number:08x}"


class World:
    """Attempts at one key, each with a moment to begin and a time that its work takes, and what all readers ever saw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, delay: Callable[[], float]) -> None:
        self.clock = Clock()
        self.store = SlowStore(self.clock, delay)
        self.store.inner.create_dir(FOLDER, recursive=True)
        self.answers: list[str] = []
        self.seen: set[str] = set()
        monkeypatch.setattr(attempts, "time", SimpleNamespace(sleep=self.clock.sleep, monotonic=lambda: self.clock.now))

    def attempt(self, number: int, begins: float, works: float, dies: bool = False) -> Callable[[], None]:
        """Begin, write data, publish, and discard what another attempt's manifest makes needless; `dies` as soon as it has claimed or published."""

        def run() -> None:
            self.clock.sleep(begins)
            mine = Attempt(self.store, FOLDER, name_of(number), SETTLE_S)  # type: ignore[arg-type]
            mine.announce()
            self.store.inner.create_dir(f"{FOLDER}/{mine.name}")
            with self.store.inner.open_output_stream(f"{FOLDER}/{mine.name}/rows") as stream:
                stream.write(b"rows")
            self.clock.sleep(works)
            if dies:
                mine._offer(CLAIM, json.dumps({"data": mine.name}).encode())
                return
            mine.publish(json.dumps({"data": mine.name}).encode())
            mine.end()
            answer = self.store.written(MANIFEST)
            assert answer is not None
            self.answers.append(answer)
            if answer != mine.name and not mine.offered:
                self.store.inner.delete_dir(f"{FOLDER}/{mine.name}")

        return run

    def reader(self, until: float) -> Callable[[], None]:
        """Looks ten times a second; whatever manifest it ever saw names data that is there."""

        def run() -> None:
            while self.clock.now < until:
                self.clock.sleep(0.1)
                found = self.store.written(MANIFEST)
                if found is not None:
                    self.seen.add(found)
                assert all(self.store.has_data(one) for one in self.seen), self.seen

        return run

    def leftovers(self) -> set[str]:
        return {entry.base_name for entry in self.store.inner.get_file_info(pafs.FileSelector(FOLDER)) if entry.type == pafs.FileType.File} - {MANIFEST}


def play(monkeypatch: pytest.MonkeyPatch, seed: int, stalls: float = 0.0) -> World:
    """Two to five attempts that begin within some seconds of each other. A call takes up to half a second twice; `stalls` of them up to twenty."""
    draw = random.Random(seed)
    world = World(monkeypatch, lambda: draw.random() * (20 if draw.random() < stalls else 0.5))
    near = draw.choice([0.0, 1.0, 3.0, 10.0])
    parts = [world.attempt(number, draw.random() * near, draw.random() * draw.choice([0.0, 2.0, 8.0])) for number in range(draw.randint(2, 5))]
    world.clock.play([*parts, world.reader(40 if stalls == 0 else 120)])
    return world


def test_attempts_agree_and_readers_never_see_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    how_many = set()
    for seed in range(100):
        world = play(monkeypatch, seed)
        assert len(set(world.answers)) == 1, seed
        assert world.seen == set(world.answers), seed
        assert world.leftovers() <= {CLAIM}, seed  # a claim that came late stays; nobody reads it
        how_many.add(len(world.answers))
    assert how_many == {2, 3, 4, 5}


def test_writes_slower_than_the_wait_can_part_attempts_and_still_leave_everything_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its bound the same play does come apart, so that the test above could fail; and its readers assert that all they ever saw is there."""
    assert any(len(play(monkeypatch, seed, stalls=0.2).seen) > 1 for seed in range(100))


def test_an_attempt_that_is_alone_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, lambda: 0.01)
    world.clock.play([world.attempt(1, 0.0, 1.0)])
    assert world.clock.now < 1.5
    assert world.answers == [name_of(1)]
    assert world.leftovers() == set()


def test_a_later_attempt_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, lambda: 0.01)
    world.clock.play([world.attempt(2, 0.0, 0.0), world.attempt(1, 3.0, 0.0)])
    assert world.answers == [name_of(2)] * 2
    assert world.clock.now < 4
    assert not world.store.has_data(name_of(1))


def test_what_an_attempt_claimed_before_it_died_is_taken_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, lambda: 0.01)
    world.clock.play([world.attempt(2, 0.0, 0.0, dies=True)])
    world.clock.play([world.attempt(1, 100.0, 0.0), world.reader(200)])
    assert world.answers == [name_of(2)]
    assert world.seen == {name_of(2)}
    assert not world.store.has_data(name_of(1))


def test_clearing_spares_a_claim_and_removes_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, lambda: 0.01)
    world.clock.play([world.attempt(1, 0.0, 0.0, dies=True)])
    dead = Attempt(world.store.inner, FOLDER, name_of(2))
    dead.announce()
    world.store.inner.create_dir(f"{FOLDER}/{dead.name}")
    removed: list[int] = []
    world.clock.play([lambda: removed.append(clear(world.store, FOLDER, "20260101T000000-zz", SETTLE_S))])  # type: ignore[arg-type,func-returns-value]
    assert removed == [1]
    assert world.store.has_data(name_of(1))
    assert world.store.inner.get_file_info(f"{FOLDER}/{dead.name}").type == pafs.FileType.NotFound
    with pytest.raises(ValueError, match=r"taken for an interrupted one, and its data cleared away\. Run the stage again"):
        dead.publish(b"{}")


def test_clearing_beside_an_attempt_that_ends_leaves_it_whole_or_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was taken for dead six hours after its begin, and is not."""
    told = 0
    for seed in range(60):
        draw = random.Random(seed)
        world = World(monkeypatch, lambda draw=draw: draw.random() * 0.5)  # type: ignore[misc]

        def clearing(world: World = world, draw: random.Random = draw) -> None:
            world.clock.sleep(draw.random() * 4)
            clear(world.store, FOLDER, "20260101T000000-zz", SETTLE_S)  # type: ignore[arg-type]

        try:
            world.clock.play([world.attempt(1, 0.0, 2.0), clearing, world.reader(30)])
        except ValueError as error:
            assert "cleared away" in str(error)  # noqa: PT017  either end is right
            assert not world.seen
            told += 1
    assert 0 < told < 60
