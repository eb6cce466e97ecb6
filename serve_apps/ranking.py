"""The Serve application: all rankers of a run behind one door, in any number of releases, and the text encoder for what a request describes.

Reads the release of a finished run (pipelines.publish), which is made here where it was not before, and writes what it is told (serve_apps.told).
Run: python -m serve_apps.up --config …, or with Serve's own tools: serve run serve_apps/config.yaml (or serve deploy, on a cluster).
"""

import logging
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray
from pydantic import ConfigDict, Field, ValidationError
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import BackpressureConfig, HTTPOptions, gRPCOptions
from ray.serve.schema import LoggingConfig

from longtail.artifacts import Store
from longtail.config import Config, load
from longtail.hashing import digest
from longtail.serving import ServeSettings
from longtail.settings import Settings
from longtail.storage import without_secrets
from pipelines.cluster import ROOT, pool_resources
from pipelines.publish import publish
from pipelines.stage import open_store
from serve_apps.access import Access
from serve_apps.console.deployment import Console
from serve_apps.deployments import Encoder, Rankers
from serve_apps.inference_grpc import SERVICER
from serve_apps.profiler import Profiler, check_language_model
from serve_apps.proxy import check_reachable, controller_options
from serve_apps.served_run import Served
from serve_apps.told import end_writer

logger = logging.getLogger(__name__)

APP_NAME = "longtail"


class AppArgs(Settings):
    """`args` of the application in a Serve config file."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    config: str | None = Field(None, description="TOML file; relative to the working directory, or else to the repository")
    overrides: tuple[str, ...] = Field((), alias="set", description='"a.b=value" settings')


def served_run(config: Config, store: Store) -> Served:
    """What serving a finished run takes: its release, which is published now if it was not before.

    Raises:
        ValueError: a stage is not finished for this config.
    """
    check_language_model(config.profiles.generator, config.serve.llm_profiles)
    release = publish(config, store).artifact
    return Served(store, release.key, config.serve, pool_resources(config.serve.pool), time.time_ns() // 1000)


def application(served: Served, access: Access | None = None, dashboard: str | None = None) -> Application:
    """The deployments over a published release; without `access` the token is the environment's, and without one there nobody acts.

    `dashboard` is the address of Ray's, which the console links to.
    """
    settings = served.serve
    access = access or Access.of(settings.host)
    pool = pool_resources(settings.pool)  # both: no part of serving may stand on a node that can be taken away
    encoder = serve.deployment(
        name="Encoder",
        num_replicas=settings.num_encoder_replicas,
        ray_actor_options={"num_cpus": settings.num_encoder_cpus, "num_gpus": settings.num_encoder_gpus, "resources": pool},
        max_ongoing_requests=settings.max_ongoing_requests,
        max_surge_percent=settings.max_surge_percent,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
    )(Encoder)
    scaling = settings.autoscaling
    rankers = serve.deployment(
        name="Rankers",
        **({"num_replicas": settings.num_replicas} if scaling is None else {"autoscaling_config": scaling.for_serve()}),
        ray_actor_options={"num_cpus": settings.num_cpus, "resources": pool},
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=BackpressureConfig(retry_after_s=settings.retry_after_s),
        max_surge_percent=settings.max_surge_percent,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
    )(serve.ingress()(Rankers))
    behind = served.behind()
    encoding = bound(encoder, behind)
    profiler = console = None
    if settings.llm_profiles:
        writing = serve.deployment(
            name="Profiler",
            num_replicas=1,
            ray_actor_options={"num_cpus": settings.num_profiler_cpus, "num_gpus": settings.num_profiler_gpus, "resources": pool},
            max_ongoing_requests=1000,
            graceful_shutdown_timeout_s=settings.drain_timeout_s,
        )(Profiler)
        profiler = bound(writing, behind)
    if settings.console:
        pages = serve.deployment(
            name="Console",
            num_replicas=1,
            ray_actor_options={"num_cpus": settings.num_console_cpus, "resources": pool},
            graceful_shutdown_timeout_s=settings.drain_timeout_s,
        )(Console)
        console = bound(pages, behind, access, encoding, dashboard)
    return rankers.bind(served, encoding, settings.route_prefix, access, console, profiler)


def bound(deployment: Deployment, *arguments: Any) -> Application:
    """The deployment with its arguments; where these and the code are those of the last deploy, its replicas go on.

    serve.run would start all of them anew, encoder and console too, and the replicas that have to change would share the cores with them. Serve compares
    versions to find out what has changed, and gives a new one to whatever comes without (Ray 2.60). Serve's config files have versions of their own.
    """
    told = [one.text() if isinstance(one, Served | Access) else repr(one) for one in arguments if not isinstance(one, Application)]
    deployment._version = digest([code_digest(), *told])
    return deployment.bind(*arguments)


@cache
def code_digest() -> str:
    """Of all that a replica may import or show of the project; installed packages are another cluster's business."""
    files = [path for folder in ("platform", "actors", "pipelines", "serve_apps") for path in sorted((ROOT / folder).rglob("*"))]
    return digest([[path.relative_to(ROOT).as_posix(), path.read_text()] for path in files if path.suffix in (".py", ".html", ".css", ".js", ".svg")])


def build_app(config: Config, store: Store | None = None) -> Application:
    """The application over the finished run that `config` names.

    Raises:
        ValueError: a stage is not finished for this config.
    """
    return application(served_run(config, store or open_store(config)))


def app_builder(args: dict[str, Any]) -> Application:
    """The application as a Serve config file asks for it (import_path serve_apps.ranking:app_builder).

    Raises:
        ValueError: an argument is unknown or of the wrong type, or as for build_app.
    """
    try:
        wanted = AppArgs.model_validate(args)
    except ValidationError as error:
        lines = [f"  args.{'.'.join(str(part) for part in e['loc'])} = {without_secrets(repr(e['input']))}: {e['msg']}" for e in error.errors()]
        raise ValueError("\n".join(["serve_apps.ranking:app_builder takes args {config: file.toml, set: [a.b=value, …]}:", *lines])) from error
    path = wanted.config
    if path is not None and not Path(path).exists() and (ROOT / path).exists():
        path = str(ROOT / path)
    return build_app(load(path, wanted.overrides))


@dataclass(frozen=True)
class Deployed:
    """A running application."""

    url: str  # of the application's root, without a slash at its end
    host: str
    port: int


@contextmanager
def deployed(served: Served, access: Access | None = None, dashboard: str | None = None) -> Iterator[Deployed]:
    """The application on the Ray that is up, for the length of a block; Serve itself ends with it, unless it ran before.

    Raises:
        ValueError: the port is taken, or HAProxy is wanted and there is none, or none that reaches the replicas.
    """
    settings = served.serve
    app = application(served, access, dashboard)
    with ExitStack() as stack:
        if serve.status().proxies:
            options = _running_http_options()
            logger.warning(
                "Serve runs on this Ray already, on %s:%d; serve.host, port, grpc_port, proxy and request_timeout_s are left unused", options.host, options.port
            )
            stack.callback(serve.delete, APP_NAME)
        else:
            # Short: Unix sockets lie below it, whose paths have 107 bytes.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lt-serve-", ignore_cleanup_errors=True)))
            options = _start(settings, folder)
            stack.callback(end_writer, served.store.uri)
            stack.callback(serve.shutdown)
        serve.run(app, name=APP_NAME, route_prefix=settings.route_prefix, logging_config=quiet_logs())
        host = "127.0.0.1" if options.host in ("0.0.0.0", "::", None) else options.host
        yield Deployed(f"http://{host}:{options.port}{settings.route_prefix.rstrip('/')}", host, options.port)


def _start(settings: ServeSettings, folder: Path) -> HTTPOptions:
    """Serve without an application; `folder` is the proxy's.

    Raises:
        ValueError: as for deployed.
    """
    check_reachable(settings, sum(bool(node["Alive"]) for node in ray.nodes()))  # type: ignore[no-untyped-call]
    options = HTTPOptions(host=settings.host, port=free_port(settings.host, settings.port), request_timeout_s=settings.request_timeout_s)
    grpc_port = settings.grpc_port and free_port("0.0.0.0", settings.grpc_port, "grpc_port")
    grpc_options = None if grpc_port is None else gRPCOptions(port=grpc_port, grpc_servicer_functions=[SERVICER], request_timeout_s=settings.request_timeout_s)
    serve.start(
        proxy_location="HeadOnly",
        http_options=options,
        grpc_options=grpc_options,
        logging_config=quiet_logs(),
        controller_options=controller_options(settings, folder),
    )
    return options


def free_port(host: str, port: int, setting: str = "port") -> int:
    """`port` if nobody listens on it, any free one for 0.

    Raises:
        ValueError: somebody does.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            remedy = "Set another port, or serve.port=0 for any free one." if setting == "port" else "Set another port."
            raise ValueError(f"serve.{setting} = {port} on serve.host = {host!r}: {error.strerror}. {remedy}") from error
        return int(probe.getsockname()[1])


def _running_http_options() -> HTTPOptions:
    from ray.serve.context import _get_global_client  # Serve has no public way to ask a running instance for its port

    client = _get_global_client()
    assert client is not None
    options = client.http_config
    assert isinstance(options, HTTPOptions)
    return options


def quiet_logs() -> LoggingConfig:
    """Warnings, and no line for each request."""
    return LoggingConfig(log_level="WARNING", enable_access_log=False)
