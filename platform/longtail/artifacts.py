"""Artifacts: folders under a run's URI that exist once their manifest does.

    <uri>/<stage>/<key>/manifest.json           the commit point, written last
    <uri>/<stage>/<key>/<attempt>/…             the data it names

An attempt that was interrupted leaves a folder that no manifest names. Who builds the stage next removes those that started more than six hours ago
(pipelines.stage); once the key is finished, what is left of others stays. Two attempts at the same key may run at the same time (two trials of a sweep): both
write aside. On a local disk the first manifest stays, and the later attempt takes that artifact for its own. On an object store that holds only as long as
the first manifest is there before the later attempt looks for it: of two that are written after that the last one stays, and so does the data of both, since
the first may have been handed on already.
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

from longtail.hashing import digest

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
        published = self.store.find(self.stage, self.key) is None and self.store.write_manifest(self.stage, self.key, manifest)
        found = self.store.find(self.stage, self.key)
        assert found is not None
        if found.manifest["data"] != self.attempt and not published:  # what was published, if only for a moment, somebody may be reading
            self.discard()
        return found

    def discard(self) -> None:
        if self.fs.get_file_info(self.root).type != pafs.FileType.NotFound:
            self.fs.delete_dir(self.root)


@dataclass(frozen=True)
class Store:
    """All artifacts of one run's URI (a local path, or any pyarrow file system such as s3://bucket/prefix)."""

    uri: str
    fs: pafs.FileSystem
    root: str

    @staticmethod
    def open(uri: str) -> "Store":
        """Open the store at `uri`: a local path, what pyarrow knows (s3://, gs://, abfs://, hdfs://, file://), or what fsspec has an implementation of.

        Raises:
            ValueError: no file system answers to the scheme, or the URI holds a secret.
        """
        if "://" not in uri:
            root = Path(uri).expanduser().resolve()
            return Store(str(root), pafs.LocalFileSystem(), root.as_posix())
        refuse_secrets(uri)
        try:
            fs, root_path = pafs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            fs, root_path = _by_fsspec(uri, error)
        return Store(uri, fs, root_path.rstrip("/"))

    def find(self, stage: str, key: str) -> Artifact | None:
        """The finished artifact, or None.

        Raises:
            ValueError: its manifest is damaged.
        """
        path = f"{self.root}/{stage}/{key}/manifest.json"
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
        return Draft(self, stage, key, f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}")

    def clear_interrupted(self, stage: str, key: str, older_than_s: float = 0.0) -> int:
        """Remove attempts at `key` that no manifest names and that were started more than `older_than_s` ago; returns how many."""
        folder = f"{self.root}/{stage}/{key}"
        if self.fs.get_file_info(folder).type == pafs.FileType.NotFound or self.find(stage, key) is not None:
            return 0
        removed = 0
        limit = time.strftime("%Y%m%dT%H%M%S", time.gmtime(time.time() - older_than_s))
        for entry in self.fs.get_file_info(pafs.FileSelector(folder)):
            if entry.type == pafs.FileType.Directory and entry.base_name < limit:
                self.fs.delete_dir(entry.path)
                removed += 1
        return removed

    def write_manifest(self, stage: str, key: str, manifest: Mapping[str, Any]) -> bool:
        """Publish a manifest in one step: linked into place on a local disk, unless there is one; elsewhere one PUT, which replaces what is there.

        Returns whether it was published.
        """
        path = f"{self.root}/{stage}/{key}/manifest.json"
        text = json.dumps(manifest, indent=1, sort_keys=True, default=str).encode()
        if not isinstance(self.fs, pafs.LocalFileSystem):
            with self.fs.open_output_stream(path) as stream:
                stream.write(text)
            return True
        aside = Path(f"{path}.{uuid.uuid4().hex[:8]}")
        aside.write_bytes(text)
        try:
            os.link(aside, path)
        except FileExistsError:
            logger.info("%s/%s: another attempt was first, its manifest stays", stage, key)
            return False
        except OSError:  # a file system without hard links (exFAT, some network shares): as on an object store
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        return True


def refuse_secrets(uri: str) -> None:
    """Refuse a URI with a user's name or password in it: it stands in logs, manifests and tracked runs.

    Raises:
        ValueError: it has one; the message does not repeat it.
    """
    scheme, _, rest = uri.partition("://")
    if "@" in rest.split("/", 1)[0]:
        raise ValueError(
            f"run.uri = '{scheme}://…@…' holds credentials, and would be written into logs and manifests. Leave them out, and give them by the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS) or by the machine's role."
        )


def _by_fsspec(uri: str, error: Exception) -> tuple[pafs.FileSystem, str]:
    """The file system that fsspec has for a scheme that pyarrow has none for, and the path on it.

    Raises:
        ValueError: it has none either, or its package is not installed.
    """
    import fsspec

    scheme, _, path = uri.partition("://")
    try:
        return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(scheme))), path
    except (ValueError, ImportError) as missing:
        raise ValueError(
            f"run.uri = {uri!r} names no file system that pyarrow or fsspec knows ({error}; {missing}). Use a local path, s3://, gs://, abfs:// or hdfs://, or "
            f"install the package that gives fsspec {scheme}://."
        ) from error


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
