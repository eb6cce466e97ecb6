"""Which errors a user can mend: ValueErrors that our own code raised, also in a worker; and commands that end with them."""

import logging
import re
import sys

from ray.exceptions import RayTaskError

_OWN = re.compile(r"/(longtail|actors|pipelines|tuning|serve_apps)/([a-z_]+/)?[a-z_]+\.py$")
_RAISED_AT = re.compile(r'File "([^"]+)", line \d+')


class clear_errors:
    """A block in which errors that a user can mend end the command with their message and exit code 2 instead of a traceback."""

    def __enter__(self) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        told = mendable(error)
        if told is not None:
            print(f"error: {told}", file=sys.stderr)
            raise SystemExit(2) from error


def mendable(error: BaseException | None) -> ValueError | None:
    """`error` as a message for the user, without what Ray puts around a worker's; None where it is none.

    A ValueError that a library raised (numpy's of shapes, Arrow's of types) tells a user nothing: it keeps its traceback.
    """
    if isinstance(error, RayTaskError):
        raised_at = _RAISED_AT.findall(str(error))
        return error.cause if isinstance(error.cause, ValueError) and raised_at and _OWN.search(raised_at[-1]) else None
    return error if isinstance(error, ValueError) and _OWN.search(_file_of(error)) else None


def _file_of(error: BaseException) -> str:
    """The file that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename if trace is not None else ""
