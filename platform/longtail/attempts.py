"""Attempts: how several at one key agree on one artifact where a file can be replaced but not created exclusively (S3 and other object stores).

    <key>/<attempt>/…               an attempt's data
    <key>/<attempt>.started         written before its data, removed when it ends
    <key>/claim.json                while attempts contend: the manifest that they settle on
    <key>/manifest.json             the decision, and all that readers look at

An attempt that is done and sees no other one, no claim and no manifest writes its manifest: two cannot both be alone, since each announced itself before it
looked. Otherwise it claims, unless there is a claim, waits `settle_s`, and then, unless there is a manifest, makes the claim the manifest, whoever's it is.
Nobody claims after seeing a claim, so that a claim stands once as long has passed since the first as lies between a look and the end of the writing that
follows it. With `settle_s` longer than that, all read the same claim, and whoever was alone has written its manifest before a later attempt stops waiting.

That attempts agree leans on time, since pyarrow has no conditional PUT, and with plain reads and writes nothing else is possible. That what a reader finds is
whole does not: a manifest is offered when its data is there, and data that was offered is never removed. If a write takes longer than
`settle_s`, the worst is that early readers have another artifact of the same key than later ones.
"""

import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow.fs as pafs

from longtail.storage import write_whole

MANIFEST, CLAIM, STARTED = "manifest.json", "claim.json", ".started"
SETTLE_S = 5.0
_NAME = re.compile(r"^(\d{8}T\d{6}-[0-9a-f]{8})(\.started)?$")


@dataclass
class Attempt:
    """One attempt at a key on an object store."""

    fs: pafs.FileSystem = field(repr=False)
    folder: str
    name: str
    settle_s: float = SETTLE_S
    offered: bool = False  # its manifest may have been seen: its data stays

    @property
    def _started(self) -> str:
        return f"{self.folder}/{self.name}{STARTED}"

    def announce(self) -> None:
        """Let other attempts know of this one, before it writes anything else."""
        self.fs.create_dir(self.folder, recursive=True)
        write_whole(self.fs, self._started, b"{}")

    def publish(self, manifest: bytes) -> None:
        """End with a manifest at the key: this one or that of another attempt.

        Raises:
            ValueError: the attempt was taken for an interrupted one and cleared away, or the key was removed.
        """
        looked = time.monotonic()
        names = {entry.base_name for entry in self.fs.get_file_info(pafs.FileSelector(self.folder))}
        if f"{self.name}{STARTED}" not in names:
            raise ValueError(f"{self.folder}: attempt {self.name} was taken for an interrupted one, and its data cleared away. Run the stage again.")
        alone = CLAIM not in names and not any(other.endswith(STARTED) and other != f"{self.name}{STARTED}" for other in names)
        if self._is(MANIFEST):
            return
        if alone and time.monotonic() - looked < self.settle_s / 2:
            self._offer(MANIFEST, manifest)
        else:
            self._settle(manifest)

    def _settle(self, manifest: bytes) -> None:
        """Agree with the attempts that run beside this one."""
        if not self._is(CLAIM):
            self._offer(CLAIM, manifest)
        time.sleep(self.settle_s)
        while not self._is(MANIFEST):
            claimed = self._read(CLAIM)
            if claimed is not None:
                write_whole(self.fs, f"{self.folder}/{MANIFEST}", claimed)
            elif not self._is(MANIFEST):  # else somebody was faster
                raise ValueError(f"{self.folder}: the key was removed while attempt {self.name} waited for others. Run the stage again.")
        self._remove(f"{self.folder}/{CLAIM}")

    def _offer(self, name: str, manifest: bytes) -> None:
        self.offered = True
        write_whole(self.fs, f"{self.folder}/{name}", manifest)

    def end(self) -> None:
        """No longer be seen by others as running."""
        self._remove(self._started)

    def _is(self, name: str) -> bool:
        return bool(self.fs.get_file_info(f"{self.folder}/{name}").type == pafs.FileType.File)

    def _read(self, name: str) -> bytes | None:
        return _read(self.fs, f"{self.folder}/{name}")

    def _remove(self, path: str) -> None:
        if self.fs.get_file_info(path).type == pafs.FileType.File:
            with suppress(FileNotFoundError):  # another attempt was faster
                self.fs.delete_file(path)


def _read(fs: pafs.FileSystem, path: str) -> bytes | None:
    try:
        with fs.open_input_stream(path) as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        return None


def clear(fs: pafs.FileSystem, folder: str, before: str, settle_s: float) -> int:
    """Remove attempts, at a key without a manifest, that began before the time stamp `before`; returns how many.

    One that is alive all the same learns from its missing announcement that it was removed; one that had just looked has offered its manifest `settle_s` later,
    and stays. So does the attempt that a claim names: it is done, and whoever comes next makes its claim the manifest.
    """
    found: dict[str, list[pafs.FileInfo]] = {}
    for entry in fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True)):
        named = _NAME.match(entry.base_name)
        if named and named[1] < before:
            found.setdefault(named[1], []).append(entry)
    _spare_offered(fs, folder, found)
    announced = [entry for entries in found.values() for entry in entries if entry.type == pafs.FileType.File]
    for entry in announced:
        with suppress(FileNotFoundError):  # who began it, or another that clears, was faster
            fs.delete_file(entry.path)
    if announced:
        time.sleep(settle_s)
        _spare_offered(fs, folder, found)
    for entry in (entry for entries in found.values() for entry in entries if entry.type == pafs.FileType.Directory):
        with suppress(FileNotFoundError):
            fs.delete_dir(entry.path)
    return len(found)


def _spare_offered(fs: pafs.FileSystem, folder: str, found: dict[str, list[pafs.FileInfo]]) -> None:
    """Take out of `found` the attempts that a manifest or a claim names."""
    for name in (MANIFEST, CLAIM):
        offered = _read(fs, f"{folder}/{name}")
        if offered is not None:
            try:
                found.pop(str(json.loads(offered)["data"]), None)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{folder}/{name} is cut short or no manifest: {error}. Remove the folder that it lies in and run again.") from error
