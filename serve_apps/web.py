"""The web application in front of the rankers: it puts the routes together and says what is serving. It knows neither Ray nor a model.

It is given what is serving (ServiceInfo), a function that answers a question and one that says what is not ready; serve_apps.deployments passes those of Serve
handles, a test its own.
"""

from collections.abc import Awaitable, Callable
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from serve_apps.body_limit import BodyLimit
from serve_apps.inference_routes import inference_routes
from serve_apps.problems import add_problem_handlers, refuse_unready
from serve_apps.rank_routes import Answer, rank_routes
from serve_apps.schemas import Health, ModelOut, ModelsResponse
from serve_apps.service_info import ServiceInfo

DESCRIPTION = """Ranks candidates for a user, above all for users who hardly act and items that hardly anyone has met.

The models are those of one finished run and know its logs up to their end; a request may state another time (`now`), never a later state of the logs.
Nobody and nothing unknown is an error: an unknown user gets the group that the request's `user` leads to, or everyone's; an unknown item is ranked by the
content in `items`, or, with nothing but an id, as an item of which nothing is known (`basis`: `none`)."""

NotReady = Callable[[], Awaitable[list[str]]]


async def _ready() -> list[str]:
    return []


def web_app(info: ServiceInfo, answer: Answer, root_path: str = "", not_ready: NotReady = _ready, console: ASGIApp | None = None) -> FastAPI:
    """The FastAPI application over one run's rankers; `console` answers what comes for /console."""
    # FastAPI's own /docs takes Swagger UI from a CDN and is blank where that cannot be reached; this one brings it along.
    app = FastAPIOffline(title="Longtail", version=version("longtail"), description=DESCRIPTION, root_path=root_path)
    app.add_middleware(BodyLimit, max_bytes=info.max_body_bytes)
    add_problem_handlers(app)
    app.include_router(rank_routes(info, answer))
    app.include_router(inference_routes(info, answer, not_ready))

    @app.get("/v1/models", summary="What is serving, and what it knows", tags=["ranking"])
    async def models() -> ModelsResponse:
        knowledge = info.knowledge
        return ModelsResponse(
            run=info.run,
            source=info.source,
            exposure=info.exposure,
            now=knowledge.now,
            num_users=knowledge.num_users,
            num_items=knowledge.num_items,
            attributes={name: None if values is None else list(values) for name, values in knowledge.attributes.items()},
            max_items=info.max_items,
            max_batch=info.max_batch,
            max_body_bytes=info.max_body_bytes,
            models=[
                ModelOut(
                    name=model.name,
                    version=model.version,
                    heads=list(knowledge.heads[model.name]),
                    default=model.name == info.default_ranker,
                    trained=model.trained,
                    commit=model.commit,
                )
                for model in info.models
            ],
        )

    @app.get("/healthz", summary="Is the application up", tags=["operation"])
    async def healthz() -> Health:
        return Health(status="ok", run=info.run, rankers=[model.name for model in info.models])

    @app.get("/readyz", summary="Do its parts answer", tags=["operation"])
    async def readyz() -> Health:
        refuse_unready(await not_ready())
        return await healthz()

    @app.get("/", include_in_schema=False)
    async def root(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{request.scope.get('root_path', '').rstrip('/')}/{'docs' if console is None else 'console/'}")

    if console is not None:
        app.mount("/console", console)

    return app
