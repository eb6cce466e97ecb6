"""What is serving: the run, its rankers and what may be asked of them; told once by the replicas."""

from dataclasses import dataclass

from longtail.ranking import Knowledge


@dataclass(frozen=True)
class ModelInfo:
    """One ranker's checkpoint."""

    name: str
    version: str
    trained: str
    commit: str


@dataclass(frozen=True)
class ServiceInfo:
    """What is serving."""

    run: str
    source: str
    exposure: str
    knowledge: Knowledge
    models: tuple[ModelInfo, ...]
    default_ranker: str
    max_items: int
    max_batch: int = 64
    max_body_bytes: int = 16 * 2**20
