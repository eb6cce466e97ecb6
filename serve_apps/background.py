"""Work that must not take a core from requests: what a replica loads as it starts, beside the one that it will take over from."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

LOW = 19  # as nice(1) counts: next to nothing while anybody else wants the core

T = TypeVar("T")


def in_background(work: Callable[[], T]) -> T:
    """What `work` returns, done on a thread of low priority; a process without rights could lower its own, and never raise it again."""
    with ThreadPoolExecutor(1, "background", _lower) as thread:
        return thread.submit(work).result()


def _lower() -> None:
    if sys.platform == "linux":  # where each thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW)
