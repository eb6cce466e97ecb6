"""The log of what an application was told since its logs ended: numbered lines, durable once `append` returns. One process writes it.

FileLog    segments <uri>/told/<first number>.jsonl on any file system that a run's URI may name; each is there as a whole or not at all
RedisLog   a list in Redis, for applications on several nodes (durable as far as its server's append-only file is)
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow.fs as pafs
import redis

from longtail.hashing import digest
from longtail.storage import write_first, write_whole

logger = logging.getLogger(__name__)

FOLDER = "told"
MERGE_AT = 512  # segments
PAGE = 1_000


class ToldLog(Protocol):
    """Numbered lines; the first has number 1."""

    def append(self, lines: Sequence[str]) -> int:
        """Add lines; returns the number of the last one, which is durable now."""

    def read(self, after: int) -> Iterator[tuple[int, str]]:
        """Lines with numbers above `after`, in their order."""


@dataclass
class FileLog:
    """Segments on a file system; the number of lines so far is found out when it is opened."""

    fs: pafs.FileSystem
    root: str
    last: int = 0
    segments: list[tuple[int, str]] = field(default_factory=list)  # first number, path

    @staticmethod
    def open(fs: pafs.FileSystem, root: str) -> "FileLog":
        """The log below a store's root; segments that are many are merged into one."""
        folder = f"{root}/{FOLDER}"
        fs.create_dir(folder, recursive=True)
        log = FileLog(fs, folder)
        names = [entry for entry in fs.get_file_info(pafs.FileSelector(folder)) if entry.base_name.endswith(".jsonl")]
        log.segments = sorted((int(entry.base_name.split(".")[0]), entry.path) for entry in names)
        for number, _ in log.read(0):
            log.last = number
        if len(log.segments) > MERGE_AT:
            log.merge()
        return log

    def append(self, lines: Sequence[str]) -> int:
        """See ToldLog.

        Raises:
            ValueError: another application writes to the same log.
        """
        if lines:
            path = f"{self.root}/{self.last + 1:015d}.jsonl"
            try:
                write_first(self.fs, path, ("\n".join(lines) + "\n").encode())
            except FileExistsError as error:
                if self._written(path, lines):  # by an attempt whose answer was lost
                    return self._grown(path, len(lines))
                raise ValueError(f"{path} is there already: another application writes to this log. Give each application a run.uri of its own.") from error
            self._grown(path, len(lines))
            if len(self.segments) > MERGE_AT:
                self.merge()
        return self.last

    def _grown(self, path: str, num: int) -> int:
        self.segments.append((self.last + 1, path))
        self.last += num
        return self.last

    def _written(self, path: str, lines: Sequence[str]) -> bool:
        with self.fs.open_input_stream(path) as stream:
            return bool(stream.read().decode() == "\n".join(lines) + "\n")

    def read(self, after: int) -> Iterator[tuple[int, str]]:
        """See ToldLog."""
        done = after
        for first, path in self.segments:
            with self.fs.open_input_stream(path) as stream:
                lines = stream.read().decode().split("\n")[:-1]  # splitlines would end lines at characters that JSON texts may hold
            for number, line in enumerate(lines, start=first):
                if number > done:  # a merged segment may stand beside those that it was made of
                    yield number, line
                    done = number

    def merge(self) -> None:
        """One segment of all."""
        old, lines = list(self.segments), [line for _, line in self.read(0)]
        path = f"{self.root}/{1:015d}.jsonl"
        write_whole(self.fs, path, ("\n".join(lines) + "\n").encode(), durable=True)
        self.segments = [(1, path)]
        for _, segment in old:
            if segment != path:
                self.fs.delete_file(segment)
        logger.info("%s: %d segments merged into one of %d lines", self.root, len(old), len(lines))


def told_key(uri: str) -> str:
    """The Redis key of the log of a run's URI."""
    return f"longtail:told:{digest(uri)}"


@dataclass(frozen=True)
class RedisLog:
    """A list in Redis."""

    client: "redis.Redis"
    key: str

    def append(self, lines: Sequence[str]) -> int:
        """See ToldLog."""
        if not lines:
            length: Any = self.client.llen(self.key)
            return int(length)
        last: Any = self.client.rpush(self.key, *lines)
        return int(last)

    def read(self, after: int) -> Iterator[tuple[int, str]]:
        """See ToldLog."""
        while True:
            page: Any = self.client.lrange(self.key, after, after + PAGE - 1)
            for line in page:
                after += 1
                yield after, line.decode()
            if len(page) < PAGE:
                return
