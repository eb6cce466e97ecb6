"""Serving: the settings of stage 10. A request is answered by longtail.ranking, what it says of the unknown is encoded by longtail.newcomers, and
serve_apps puts both on Ray Serve. Run: python -m serve_apps.up --config …
"""

from pydantic import Field

from longtail.rankers.settings import RankerName
from longtail.settings import POOL_NAME, Settings


class ServeSettings(Settings):
    """The Serve application."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0: any free port")
    route_prefix: str = Field("/", pattern=r"^/([^/]+/)*[^/]*$")
    default_ranker: RankerName = "choirrec"
    num_replicas: int = Field(1, ge=1, description="of the rankers, which hold the checkpoints and the feature state")
    num_cpus: float = Field(0.3, ge=0, description="per replica of the rankers")
    num_encoder_replicas: int = Field(1, ge=1, description="of the text encoder, which loads its models before it is ready")
    num_encoder_cpus: float = Field(0.1, ge=0, description="per replica of the encoder")
    num_encoder_gpus: float = Field(0.0, ge=0)
    pool: str | None = Field(None, pattern=POOL_NAME, description="only nodes with Ray's resource pool_<name> (cluster.yaml); None: any that has room")
    num_threads: int = Field(1, ge=1, description="torch threads of a replica")
    max_ongoing_requests: int = Field(32, ge=1, description="per replica; the rest waits")
    max_items: int = Field(1000, ge=1, description="candidates in one request")
