"""The console's static files: its own styles and scripts, and plotly.js out of the package `plotly`; each read and compressed once.

A file is asked for as static/<version>/<name>, where the version is a digest of all of them: browsers keep it as long as it is called so.
"""

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).parent / "static"
SUFFIXES = {".css", ".js", ".svg"}
FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class StaticFiles:
    """What may be asked for, by name."""

    paths: dict[str, Path]

    @staticmethod
    def of_the_console() -> "StaticFiles":
        """The files of this folder, and plotly.min.js."""
        own = {path.name: path for path in FOLDER.iterdir() if path.suffix in SUFFIXES}
        return StaticFiles(own | {"plotly.min.js": Path(str(files("plotly"))) / "package_data" / "plotly.min.js"})

    @cached_property
    def version(self) -> str:
        """Changes with any of the files."""
        digest = hashlib.sha256()
        for name, path in sorted(self.paths.items()):
            digest.update(name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()[:12]

    def routes(self) -> APIRouter:
        """GET static/<version>/<name>."""
        router = APIRouter()

        @router.get("/static/{version}/{name}", include_in_schema=False)
        def static(request: Request, version: str, name: str) -> Response:
            path = self.paths.get(name)
            if path is None:
                raise HTTPException(404, "No such file")
            headers = {"Cache-Control": FOREVER if version == self.version else "no-cache", "Vary": "Accept-Encoding"}
            packed = "gzip" in request.headers.get("accept-encoding", "")
            if packed:
                headers["Content-Encoding"] = "gzip"
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            return Response(_content(path, packed), media_type="text/javascript" if kind.endswith("javascript") else kind, headers=headers)

        return router


@lru_cache(maxsize=64)
def _content(path: Path, packed: bool) -> bytes:
    content = path.read_bytes()
    return gzip.compress(content, 6) if packed else content
