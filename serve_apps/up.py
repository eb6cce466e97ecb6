"""Serve a finished run in the foreground, with Ray's dashboard, until Ctrl-C (or SIGTERM); everything that was started ends with it.

Reads a finished run's artifacts; writes nothing. Run: python -m serve_apps.up --config pipelines/configs/demo.toml
"""

import argparse
import signal
import threading
from collections.abc import Callable
from types import FrameType

import ray

from longtail.artifacts import Store
from longtail.config import Config
from pipelines.cluster import ray_session
from pipelines.errors import clear_errors
from pipelines.evaluate import evaluation_stage
from pipelines.stage import arguments, config_from, find, open_store
from serve_apps.access import Access
from serve_apps.ranking import Deployed, deployed, served_run


class Ended(Exception):  # noqa: N818  it is no error
    """Ctrl-C or SIGTERM."""


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--for-seconds", type=float, default=None, metavar="N", help="end by itself after N seconds")


def _end(number: int, frame: FrameType | None) -> None:
    _on_signals(signal.SIG_IGN)  # one is enough: a second Ctrl-C must not cut the tidying short
    raise Ended


def _on_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _say(text: str) -> None:
    print(text, flush=True)


def _dashboard() -> str | None:
    """The address of Ray's dashboard, where it is up."""
    place = ray._private.worker.global_worker.node.webui_url  # type: ignore[union-attr]
    return f"http://{place}" if place else None


def _addresses(config: Config, store: Store, served: Deployed, access: Access, dashboard: str | None) -> list[str]:
    """What is where, a line each."""
    evaluation = find(evaluation_stage(config), config, store)
    lines = [f"console     {served.url}/console/"] if config.serve.console else []
    lines += [
        f"token       {access.token}",
        f"rankers     {served.url}/v1/rank   {', '.join(config.train.rankers)}",
        f"OpenAPI     {served.url}/docs",
        f"health      {served.url}/healthz",
    ]
    lines += [f"dashboard   {dashboard}"] if dashboard else []
    lines += [f"report      {evaluation.path('report.html')}"] if evaluation is not None else []
    return lines


def main() -> None:
    with clear_errors():
        args = arguments(__doc__ or "", _flags)
        config = config_from(args)
        here = {"dashboard": True, "worker_niceness": 0 if config.cluster.worker_niceness is None else config.cluster.worker_niceness}
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update=here)})
        store = open_store(config)
        try:
            _on_signals(_end)
            run = served_run(config, store)
            with ray_session(config.cluster):
                _on_signals(_end)  # Ray sets its own for SIGTERM
                access, dashboard = Access.generated(config.serve.host), _dashboard()
                with deployed(run, access, dashboard) as served:
                    for line in _addresses(config, store, served, access, dashboard):
                        _say(line)
                    _say("Ctrl-C ends it." if args.for_seconds is None else f"ends by itself after {args.for_seconds:g} s.")
                    threading.Event().wait(args.for_seconds)
        except Ended:
            pass
        _say("ended")


if __name__ == "__main__":
    main()
