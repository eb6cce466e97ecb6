"""Serving without Ray: one request's rows, its features by the training function, and the scores of a loaded ranker."""

from pydantic import Field

from longtail.settings import Settings


class ServeSettings(Settings):
    """The Serve application."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, description="0: any free port")
    route_prefix: str = "/"
    default_ranker: str = "choirrec"
    num_replicas: int = Field(1, ge=1)
    num_cpus: float = Field(0.3, ge=0, description="per replica")
    max_ongoing_requests: int = Field(32, ge=1)
    max_items: int = Field(1000, ge=1, description="candidates in one request")
