"""How much memory a command and every process it started take at the peak."""

import threading
from types import TracebackType

import psutil


class PeakMemory:
    """Samples, while a block runs, the memory of this process and all its descendants; shared pages are split among those who share them."""

    def __init__(self, every_s: float = 2.0) -> None:
        self.every_s = every_s
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        root = psutil.Process()
        while not self._stop.wait(self.every_s):
            self.peak_bytes = max(self.peak_bytes, sum(_proportional_bytes(process.pid) for process in [root, *root.children(recursive=True)]))


def _proportional_bytes(pid: int) -> int:
    """Proportional set size; 0 for a process that has just ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    except (OSError, ProcessLookupError):
        return 0
