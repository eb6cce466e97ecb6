"""Artifacts: folders under a run's URI that exist once their manifest does.

    <uri>/<stage>/<key>/manifest.json           the commit point, written last
    <uri>/<stage>/<key>/<attempt>/…             the data it names

An attempt that was interrupted leaves a folder that no manifest names. Who builds the stage next removes those that started more than six hours ago
(pipelines.stage); once the key is finished, what is left of others stays. Two attempts at the same key may run at the same time (two trials of a sweep): both
write aside, one manifest stays, and the other attempt takes that artifact for its own. On a local disk the first one does, where the disk has hard links; how
attempts agree on an object store is told in longtail.attempts.
"""

import hashlib
import json
import logging
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from longtail.attempts import MANIFEST, SETTLE_S, Attempt, clear
from longtail.hashing import digest
from longtail.storage import open_place

logger = logging.getLogger(__name__)

MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its manifest, and the place of its data."""

    stage: str
    key: str
    manifest: Mapping[str, Any] = field(hash=False)
    fs: pafs.FileSystem = field(hash=False)
    root: str

    @property
    def content_hash(self) -> str:
        return str(self.manifest["content_hash"])

    @property
    def info(self) -> Mapping[str, Any]:
        """What the stage told its readers beside its tables."""
        info: Mapping[str, Any] = self.manifest["info"]
        return info

    def path(self, name: str) -> str:
        """Path of one of its files or folders, on `fs`."""
        return f"{self.root}/{name}"

    def read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A table of the artifact, from `<name>.parquet`, a file or a folder of parts in name order."""
        return read_parquet(self.fs, self.path(f"{name}.parquet"), columns)

    def read_json(self, name: str) -> Any:
        with self.fs.open_input_stream(self.path(name)) as stream:
            return json.loads(stream.read())

    def local_path(self, name: str, into: Path) -> Path:
        """The file or folder `name` on this machine: itself on a local file system, else a copy below `into`, which is there as a whole or not at all.

        Several processes may ask at once: each copies aside, and the first that is done stays.
        """
        if isinstance(self.fs, pafs.LocalFileSystem):
            return Path(self.path(name))
        target = into / self.stage / self.key / str(self.manifest["data"]) / name
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=target.parent) as folder:
            aside = Path(folder) / target.name
            if self.fs.get_file_info(self.path(name)).type == pafs.FileType.Directory:
                aside.mkdir()  # copy_files makes the folders in it and not itself
            pafs.copy_files(self.path(name), str(aside), source_filesystem=self.fs, destination_filesystem=pafs.LocalFileSystem())
            try:
                aside.rename(target)
            except OSError:
                if not target.exists():  # not another process's finished copy
                    raise
        return target


@dataclass
class Draft:
    """An artifact being written; nobody sees it until `commit`."""

    store: "Store"
    stage: str
    key: str
    attempt: str
    started: float = field(default_factory=time.time)
    shared: Attempt | None = None  # on an object store: what other attempts see of this one

    @property
    def fs(self) -> pafs.FileSystem:
        return self.store.fs

    @property
    def root(self) -> str:
        return f"{self.store.root}/{self.stage}/{self.key}/{self.attempt}"

    def path(self, name: str) -> str:
        """Where to write the file or folder `name`; its parent exists."""
        full = f"{self.root}/{name}"
        self.fs.create_dir(full.rsplit("/", 1)[0], recursive=True)
        return full

    def write(self, name: str, table: pa.Table) -> None:
        """Write `table` as `<name>.parquet`."""
        pq.write_table(table, self.path(f"{name}.parquet"), filesystem=self.fs, compression="zstd")

    def write_json(self, name: str, value: Any) -> None:
        with self.fs.open_output_stream(self.path(name)) as stream:
            stream.write(json.dumps(value, indent=1, sort_keys=True, default=str).encode())

    def commit(
        self,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        seed: int,
        rows_in: int,
        rows_out: int,
        dropped: Mapping[str, int],
        info: Mapping[str, Any],
    ) -> Artifact:
        """Write the manifest; from here on the artifact exists. Where another attempt at the same key was first, its artifact is the answer.

        Raises:
            ValueError: rows in are not rows out plus the rows dropped, each with its reason.
        """
        if rows_in != rows_out + sum(dropped.values()):
            raise ValueError(f"stage {self.stage!r}: {rows_in} rows in, {rows_out} out, dropped {dict(dropped)}: they must add up. Count every drop.")
        manifest = {
            "manifest_version": MANIFEST_VERSION,
            "stage": self.stage,
            "key": self.key,
            "data": self.attempt,
            "config": dict(config),
            "seed": seed,
            "commit": source_commit(),
            "inputs": {name: {"stage": a.stage, "key": a.key, "content_hash": a.content_hash} for name, a in inputs.items()},
            "rows": {"in": rows_in, "out": rows_out, "dropped": dict(dropped)},
            "content_hash": _content_hash(self.fs, self.root),
            "info": dict(info),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.time() - self.started, 3),
        }
        published = self._publish(manifest)
        found = self.store.find(self.stage, self.key)
        assert found is not None
        if found.manifest["data"] != self.attempt and not published:  # what was published, if only for a moment, somebody may be reading
            self.discard()
        return found

    def _publish(self, manifest: Mapping[str, Any]) -> bool:
        """End with a manifest at the key, and say whether this one was offered to readers."""
        if self.shared is None:
            return self.store.find(self.stage, self.key) is None and self.store.link_manifest(self.stage, self.key, manifest)
        self.shared.publish(manifest_text(manifest))
        self.shared.end()
        return self.shared.offered

    def discard(self) -> None:
        """Remove what was written, unless other attempts may have settled on it."""
        if self.shared is not None:
            if self.shared.offered:
                return
            self.shared.end()
        if self.fs.get_file_info(self.root).type != pafs.FileType.NotFound:
            self.fs.delete_dir(self.root)


@dataclass(frozen=True)
class Store:
    """All artifacts of one run's URI (longtail.storage says what it may be)."""

    uri: str
    fs: pafs.FileSystem
    root: str
    settle_s: float = SETTLE_S  # only attempts at one key at one time wait for it; longer than a small file takes to be written there

    @staticmethod
    def open(uri: str) -> "Store":
        """Open the store at a local path or a URI.

        Raises:
            ValueError: no file system answers to the scheme, or the URI holds a secret.
        """
        fs, root = open_place("run.uri", uri)
        return Store(uri if "://" in uri else root, fs, root)

    def find(self, stage: str, key: str) -> Artifact | None:
        """The finished artifact, or None.

        Raises:
            ValueError: its manifest is damaged.
        """
        path = f"{self.root}/{stage}/{key}/{MANIFEST}"
        if self.fs.get_file_info(path).type == pafs.FileType.NotFound:
            return None
        try:
            with self.fs.open_input_stream(path) as stream:
                manifest = json.loads(stream.read())
            data = manifest["data"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is cut short or no manifest: {error}. Remove the folder that it lies in and run again: it is built anew.") from error
        return Artifact(stage, key, manifest, self.fs, f"{self.root}/{stage}/{key}/{data}")

    def create(self, stage: str, key: str) -> Draft:
        """A draft to write into."""
        draft = Draft(self, stage, key, f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}")
        if not isinstance(self.fs, pafs.LocalFileSystem):
            draft.shared = Attempt(self.fs, f"{self.root}/{stage}/{key}", draft.attempt, self.settle_s)
            draft.shared.announce()
        return draft

    def clear_interrupted(self, stage: str, key: str, older_than_s: float = 0.0) -> int:
        """Remove attempts at `key` that no manifest names and that were started more than `older_than_s` ago; returns how many."""
        folder = f"{self.root}/{stage}/{key}"
        if self.fs.get_file_info(folder).type == pafs.FileType.NotFound or self.find(stage, key) is not None:
            return 0
        limit = time.strftime("%Y%m%dT%H%M%S", time.gmtime(time.time() - older_than_s))
        return clear(self.fs, folder, limit, self.settle_s)

    def link_manifest(self, stage: str, key: str, manifest: Mapping[str, Any]) -> bool:
        """Publish a manifest on a local disk, unless there is one; returns whether it was published."""
        path = f"{self.root}/{stage}/{key}/{MANIFEST}"
        aside = Path(f"{path}.{uuid.uuid4().hex[:8]}")
        aside.write_bytes(manifest_text(manifest))
        try:
            os.link(aside, path)
        except FileExistsError:
            logger.info("%s/%s: another attempt was first, its manifest stays", stage, key)
            return False
        except OSError:  # a file system without hard links (exFAT, some network shares): of two at the same time the last one stays, and the data of both
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        return True


def manifest_text(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True, default=str).encode()


def read_parquet(fs: pafs.FileSystem, path: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file, or a folder of them in name order.

    Raises:
        ValueError: there is none, one is damaged, or they have different schemas.
    """
    if fs.get_file_info(path).type == pafs.FileType.Directory:
        files = parquet_files(fs, path)
        parts = [_one_file(fs, file, columns) for file in files]
        for file, part in zip(files, parts, strict=True):
            if not part.schema.equals(parts[0].schema):
                differing = sorted(str(field) for field in set(part.schema) ^ set(parts[0].schema))
                raise ValueError(f"the parts of {path} differ in their columns: {file} from {files[0]} by {differing}. Write all of them with one schema.")
        return pa.concat_tables(parts)
    return _one_file(fs, path, columns)


def _one_file(fs: pafs.FileSystem, path: str, columns: list[str] | None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns, filesystem=fs)
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        reason = "is not there" if isinstance(error, FileNotFoundError) else f"is cut short or no Parquet file: {error}"
        remedy = "A table of your own: write it again. A stage's: remove the folder of its key and run again, it is built anew."
        raise ValueError(f"{path} {reason}. {remedy}") from error


def parquet_files(fs: pafs.FileSystem, folder: str) -> list[str]:
    """The Parquet files right under `folder`, in name order.

    Raises:
        ValueError: there is none.
    """
    files = sorted(entry.path for entry in fs.get_file_info(pafs.FileSelector(folder)) if entry.path.endswith(".parquet"))
    if not files:
        raise ValueError(f"no Parquet file under {folder}. Point the setting at a .parquet file or at a folder that holds some.")
    return files


def source_commit() -> str:
    """The commit of the checkout that this module lies in, with "+" where files differ from it; "unknown" outside of a checkout."""
    here = Path(__file__).resolve().parent
    try:
        run = subprocess.run(["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return run.stdout.strip() or "unknown"


def _content_hash(fs: pafs.FileSystem, root: str) -> str:
    """Digest of the files' bytes, whatever the parts are called."""
    digests = []
    for entry in fs.get_file_info(pafs.FileSelector(root, recursive=True)):
        if entry.type != pafs.FileType.File:
            continue
        sha = hashlib.sha256()
        with fs.open_input_stream(entry.path) as stream:
            while chunk := stream.read(1 << 22):
                sha.update(chunk)
        digests.append(sha.hexdigest())
    return digest(sorted(digests))
