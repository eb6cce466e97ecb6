"""Storage: which file system a path or URI names, and how an object is written so that it is there as a whole or not at all.

Reads and writes nothing by itself. A place is a local path; what pyarrow opens (s3://, gs://, abfs://, hdfs://, file://); or what fsspec has an
implementation of, whose package must then be installed on every node. Options follow as pyarrow has them: s3://bucket/prefix?region=…&endpoint_override=….
"""

import os
import re
import uuid
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import AfterValidator, Field

_SECRET = r"secret|passw|token|credential|signature|bearer|(?:account|access|api|private).?key|connection.?string"
_SECRET_ALONE = "sas|sig|key|pwd|auth|authorization"
_SECRET_NAME = re.compile(rf"{_SECRET}|^(?:{_SECRET_ALONE})$", re.IGNORECASE)
_OPTION = re.compile(r"([?&;#])([^=&;#\s'\"]+)=[^&;#\s'\"]+")
#: Whose user's name is a token.
_TOKEN_SCHEMES = ("http:", "https:", "hf:", "github:", "gitlab:", "s3:")
_TOKEN = re.compile(rf"({'|'.join(_TOKEN_SCHEMES)})//[^/?#@\s'\"]+@", re.IGNORECASE)
#: A URI with a password, also one whose "/" was not escaped; a colon before digits alone is a port.
_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]*)://(?!\[)[^/?#@:\s]*:(?!\d+/)[^?#@\s]*@", re.IGNORECASE)
HOLDS_CREDENTIALS = "holds credentials"
_REMEDY = (
    "Leave them out, and give them on every node by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, …) or by the "
    "machine's role."
)


def without_secrets(text: str) -> str:
    """`text` with what URIs in it hold of passwords, keys and tokens left out: for messages that repeat what somebody typed."""

    def option(found: re.Match[str]) -> str:
        return f"{found[1]}{found[2]}=…" if _SECRET_NAME.search(unquote(found[2])) else found[0]

    return _OPTION.sub(option, _TOKEN.sub(r"\1//…@", _PASSWORD.sub(r"\1://…@", text)))


def refuse_secrets(place: str) -> str:
    """The place, which holds no credentials: it is written into logs, manifests, tracked runs and a job's command.

    Raises:
        ValueError: it holds some; the message does not repeat them.
    """
    if "://" not in place:
        return place
    options = [name for part in re.split("[?&;#]", place)[1:] if _SECRET_NAME.search(name := unquote(part.partition("=")[0]))]
    user, at, _ = place.partition("://")[2].partition("/")[0].rpartition("@")
    key_id = bool(at) and place.startswith(_TOKEN_SCHEMES)  # of s3 an access key's id, which is of no use without the key
    if options or key_id or _PASSWORD.match(place) or ":" in user:
        kind = f"the option {options[0]!r}" if options else "a user's name or password"
        raise ValueError(f"{place.partition('://')[0]}://… {HOLDS_CREDENTIALS} ({kind}), and stands in logs, manifests and tracked runs. {_REMEDY}")
    return place


#: A setting that names a place.
Place = Annotated[str, Field(min_length=1), AfterValidator(refuse_secrets)]


def open_place(setting: str, place: str) -> tuple[pafs.FileSystem, str]:
    """The file system that `place` is on, and its path there; `setting` is for the messages.

    Raises:
        ValueError: no file system answers to its scheme, or it holds credentials.
    """
    if "://" not in place:
        try:
            return pafs.LocalFileSystem(), Path(place).expanduser().resolve().as_posix()
        except (RuntimeError, ValueError, OSError) as error:  # no such user, a null byte, a path that is too long
            raise ValueError(f"{setting} = {place!r} is no path of this machine: {error}.") from error
    try:
        refuse_secrets(place)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from error
    try:
        found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(place)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        found = _by_fsspec(setting, place, error)
    return found[0], found[1].rstrip("/") or "/"


def _by_fsspec(setting: str, place: str, error: Exception) -> tuple[pafs.FileSystem, str]:
    """The same by fsspec, for what pyarrow does not open.

    Raises:
        ValueError: fsspec has no implementation either, its package is not installed, or pyarrow knows the scheme and refuses the rest.
    """
    import fsspec

    scheme = place.partition("://")[0]
    said = str(error).partition("\n")[0]
    if "Unrecognized filesystem type" not in said:
        raise ValueError(f"{setting} = {place!r} cannot be opened: {said}. Correct it, or install what pyarrow needs for {scheme}://.") from error
    try:
        fs, path = fsspec.core.url_to_fs(place)
    except ImportError as missing:
        raise ValueError(
            f"{setting} = {place!r}: the package that gives fsspec {scheme}:// is not installed here ({missing}). Install it on every node."
        ) from error
    except (ValueError, KeyError, TypeError) as unknown:
        raise ValueError(
            f"{setting} = {place!r} names no file system that pyarrow or fsspec knows ({unknown}). Use a local path, s3://, gs://, abfs:// or hdfs://, or "
            f"install a package that registers {scheme}:// with fsspec."
        ) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), str(path)


def below(place: str, *names: str) -> str:
    """The place `names` below another; a URI's options stay at its end."""
    if "://" not in place:
        return Path(place, *names).as_posix()
    path, mark, options = place.partition("?")
    return "/".join([path.rstrip("/"), *names]) + mark + options


def above(place: str) -> tuple[str, str]:
    """The folder that holds a place, and its name there; a URI's options stay with the folder."""
    path, mark, options = place.partition("?") if "://" in place else (place, "", "")
    folder, _, name = path.rstrip("/").rpartition("/")
    return folder + mark + options, name


def local_folder(setting: str, place: str) -> Path:
    """The folder of a setting whose files are for the eyes of who runs the command.

    Raises:
        ValueError: it is a URI.
    """
    if "://" in place:
        raise ValueError(f"{setting} = {place!r} must be a folder of this machine: pages are written there to be looked at. Artifacts go to run.uri.")
    return Path(place)


def write_whole(fs: pafs.FileSystem, path: str, content: bytes | pa.Buffer, *, durable: bool = False) -> None:
    """Write a file in one step, replacing what is there: renamed into place on a local disk; on an object store it appears when the one write has succeeded.

    (On hdfs:// and the like a file is seen from its opening on: two runs at the same time should not share a run.uri there.)
    All at once, since pyarrow publishes what an interruption left when it throws the stream away. `durable`: on a local disk a power cut does not undo it.
    """
    if isinstance(fs, pafs.LocalFileSystem):
        _written_aside(path, content, durable=durable).replace(path)
        if durable:
            _sync_folder(Path(path).parent)
        return
    with fs.open_output_stream(path) as stream:
        stream.write(content)


def write_first(fs: pafs.FileSystem, path: str, content: bytes) -> None:
    """Write a file that must not be there yet; on a local disk it is on the disk when this returns.

    Raises:
        FileExistsError: it is there; another process writes the same files. An object store cannot tell for certain: there it is looked for before.
    """
    if not isinstance(fs, pafs.LocalFileSystem):
        if fs.get_file_info(path).type != pafs.FileType.NotFound:
            raise FileExistsError(path)
        write_whole(fs, path, content)
        return
    aside = _written_aside(path, content, durable=True)
    try:
        os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(Path(path).parent)


def _written_aside(path: str, content: bytes | pa.Buffer, *, durable: bool) -> Path:
    """A file beside `path`, under a name that nobody else has."""
    aside = Path(f"{path}.{uuid.uuid4().hex[:8]}")
    with aside.open("wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    return aside


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
