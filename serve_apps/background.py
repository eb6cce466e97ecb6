"""Work that must not take a core from requests: what a replica loads as it starts, beside the one that it will take over from."""

import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


def in_background(work: Callable[[], T]) -> T:
    """What `work` returns, done on a thread that has a core while nobody else wants it; a process without rights could lower itself, and never rise again.

    Threads that `work` starts are like that for as long as they live: no pool that answers requests may begin in it.
    """
    with ThreadPoolExecutor(1, "background", _lower) as thread:
        return thread.submit(work).result()


def import_in_background(*modules: str) -> None:
    """Import what is large the same way."""
    in_background(lambda: [importlib.import_module(name) for name in modules])


def _lower() -> None:
    if sys.platform == "linux":  # where each thread is scheduled by itself; nice would not do, since Ray's workers are nice already
        try:
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
        except OSError as error:  # a sandbox may forbid it, and work must be done
            logger.warning("the priority of work in the background cannot be lowered: %s", error)
