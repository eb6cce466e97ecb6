"""What is serving: the run, its rankers and what may be asked of them; a replica's answer changes when another release becomes the stable one."""

from collections.abc import Callable
from dataclasses import dataclass

from longtail.questions import Knowledge


@dataclass(frozen=True)
class ModelInfo:
    """One ranker's checkpoint."""

    name: str
    version: str
    trained: str
    commit: str
    release: str = ""


@dataclass(frozen=True)
class ServiceInfo:
    """What is serving."""

    run: str
    source: str
    exposure: str
    knowledge: Knowledge
    models: tuple[ModelInfo, ...]  # of the stable release first, then of a canary and a shadow
    default_ranker: str
    max_items: int
    max_batch: int = 64
    max_body_bytes: int = 16 * 2**20
    release: str = ""
    kinds: tuple[str, ...] = ()  # of the events that histories are made of, the strongest last


GetInfo = Callable[[], ServiceInfo]
