"""Serving: the settings of stage 10. A request is answered by longtail.ranking, what it says of the unknown is encoded by longtail.newcomers, and
serve_apps puts both on Ray Serve. Run: python -m serve_apps.up --config …
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from longtail.rankers.settings import RankerName
from longtail.rollouts import GuardSettings
from longtail.settings import POOL_NAME, Settings
from longtail.storage import Place


class AutoscalingSettings(Settings):
    """Replicas of the rankers that follow the load."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    target_ongoing_requests: float = Field(
        1.5,
        gt=0,
        description="per replica, running or waiting; more of them call for another replica. Keep it below what standing_wait_ms lets in under load: 2 or 3",
    )
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(300.0, ge=0)

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas = {self.max_replicas} is below min_replicas = {self.min_replicas}: raise the one or lower the other")
        return self

    def for_serve(self) -> dict[str, Any]:
        """As Ray Serve's autoscaling_config."""
        return self.model_dump()


class ServeSettings(Settings):
    """The Serve application."""

    guards: GuardSettings = GuardSettings()
    told_wait_s: float = Field(5.0, ge=0, le=300, description="what PUT and POST may wait until every replica has taken in what they tell")
    host: str = Field("127.0.0.1", min_length=1)
    port: int = Field(8000, ge=0, le=65535, description="0: any free port")
    grpc_port: int | None = Field(None, ge=1, le=65535, description="of the Open Inference Protocol over gRPC; None: not served")
    route_prefix: str = Field("/", pattern=r"^/([A-Za-z0-9_~-][A-Za-z0-9._~-]*/?)*$")
    proxy: Literal["haproxy", "python"] = Field("haproxy", description="what callers connect to: HAProxy (Linux), or Serve's own proxy, which costs more")
    default_ranker: RankerName = "choirrec"
    feature_store: Literal["embedded", "redis"] = Field("embedded", description="embedded: files of the release, mapped into memory | redis: for many nodes")
    redis_url: Place = Field("redis://127.0.0.1:6379/0", description="redis://host:port/db; read with feature_store = redis")
    kept_features: int = Field(3, ge=2, description="versions of features that stay in Redis; publishing one more removes the oldest")
    num_replicas: int = Field(1, ge=1, le=10_000, description="of the rankers, which hold the checkpoints and the feature state")
    autoscaling: AutoscalingSettings | None = Field(None, description="None: num_replicas, whatever the load")
    num_cpus: float = Field(0.3, ge=0, description="per replica of the rankers")
    num_encoder_replicas: int = Field(1, ge=1, description="of the text encoder, which loads its models before it is ready")
    num_encoder_cpus: float = Field(0.1, ge=0, description="per replica of the encoder")
    num_encoder_gpus: float = Field(0.0, ge=0)
    llm_profiles: bool = Field(False, description="the run's language model writes the profiles of users whom PUT /v1/users tells of; until then, by rule")
    num_profiler_cpus: float = Field(0.5, ge=0, description="of the language model's replica")
    num_profiler_gpus: float = Field(0.0, ge=0)
    console: bool = Field(True, description="serve the pages for people under /console")
    num_console_cpus: float = Field(0.1, ge=0, description="of the console's replica")
    pool: str | None = Field(None, pattern=POOL_NAME, description="only nodes with Ray's resource pool_<name> (cluster.yaml); None: any that has room")
    num_threads: int = Field(1, ge=1, description="torch threads of a replica")
    max_ongoing_requests: int = Field(16, ge=1, description="per replica, those that wait for the encoder included; the rest waits")
    max_queued_requests: int = Field(
        16, ge=-1, le=1_000_000, description="waiting at one replica (python: at one proxy); the surplus gets 503 with Retry-After. -1: no limit"
    )
    standing_wait_ms: float | None = Field(
        20.0,
        gt=0,
        description="until a request is ranked, at a replica whose queue has stood for a tenth of a second; one may wait in any case, the surplus gets 503. "
        "None: no limit",
    )
    burst_wait_ms: float = Field(60.0, gt=0, description="the same before the queue has stood for so long; at least standing_wait_ms")
    retry_after_s: int = Field(1, ge=0, le=86_400, description="the header Retry-After of such an answer")
    request_timeout_s: float | None = Field(30.0, gt=0, description="408 after that; None: never")
    max_surge_percent: int = Field(100, ge=0, le=1000, description="replicas over their number while new ones take over; 0: the old one goes first")
    drain_timeout_s: float = Field(20.0, ge=0, description="what a replica that must go may take to answer what it has begun")
    max_batch: int = Field(64, ge=1, le=10_000, description="requests in one POST /v1/rank:batch")
    max_items: int = Field(1000, ge=1, le=100_000, description="candidates in one request")
    max_body_mb: float = Field(16.0, ge=0.01, le=1024, description="of a request's body in MiB; a larger one gets 413")

    @model_validator(mode="after")
    def _waits(self) -> Self:
        if self.standing_wait_ms is not None and self.burst_wait_ms < self.standing_wait_ms:
            told = f"burst_wait_ms = {self.burst_wait_ms:g} is below standing_wait_ms = {self.standing_wait_ms:g}"
            raise ValueError(f"{told}: a burst may wait longer than a queue that stands. Raise the one or lower the other")
        return self

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.grpc_port is not None and self.grpc_port == self.port:
            raise ValueError(f"grpc_port = {self.grpc_port} is port's: give gRPC another one, or leave it out")
        return self
