"""The web application in front of the rankers: it puts the routes together and says what is serving. It knows neither Ray nor a model.

It is given a function that says what is serving (ServiceInfo), one that answers a question and one that says what is not ready; serve_apps.deployments
passes those of its replica, a test its own.
"""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from longtail import __version__
from serve_apps.access import Access
from serve_apps.admission import Admission, AdmissionGate
from serve_apps.body_limit import BodyLimit
from serve_apps.inference_routes import inference_routes
from serve_apps.problems import RequestProblemError, add_problem_handlers, problem_response, refuse_unready
from serve_apps.rank_routes import Answer, rank_routes
from serve_apps.rollout_routes import rollout_routes
from serve_apps.schemas import Health, ModelOut, ModelsResponse
from serve_apps.service_info import GetInfo
from serve_apps.teller import NotTakenError, Teller
from serve_apps.told_routes import told_routes

DESCRIPTION = """Ranks candidates for a user, above all for users who hardly act and items that hardly anyone has met.

The models are those of a published release and know its logs up to their end, and what `PUT /v1/items`, `PUT /v1/users` and `POST /v1/events` told since; a
request may state its time (`now`).
Nobody and nothing unknown is an error: an unknown user gets the group that the request's `user` leads to, or everyone's; an unknown item is ranked by the
content in `items`, or, with nothing but an id, as an item of which nothing is known (`basis`: `none`)."""

NotReady = Callable[[], Awaitable[list[str]]]


async def _ready() -> list[str]:
    return []


def web_app(
    get_info: GetInfo,
    answer: Answer,
    root_path: str = "",
    not_ready: NotReady = _ready,
    teller: Teller | None = None,
    access: Access = Access(None, False),  # noqa: B008  it is frozen
    console: ASGIApp | None = None,
    admission: Admission | None = None,
    retry_after_s: int = 1,
) -> FastAPI:
    """The FastAPI application over a run's releases; without a teller it only ranks. `console` answers what comes for /console.

    What `admission` does not let in is told to come back after `retry_after_s`.
    """
    info = get_info()
    # FastAPI's own /docs takes Swagger UI from a CDN and is blank where that cannot be reached; this one brings it along.
    app = FastAPIOffline(title="Longtail", version=__version__, description=DESCRIPTION, root_path=root_path)
    app.add_middleware(BodyLimit, max_bytes=info.max_body_bytes)
    app.add_middleware(AdmissionGate, admission=admission or Admission(None), retry_after_s=retry_after_s)  # the outer of both: the surplus is to cost little
    add_problem_handlers(app)

    @app.exception_handler(NotTakenError)
    async def not_taken(request: Request, error: NotTakenError) -> JSONResponse:
        remedy = "Send it again in a moment: what is told twice counts once. GET /readyz tells whether all parts answer."
        problem = RequestProblemError(503, "not-taken", "Not taken in", f"no answer of the encoder or the writer: {error}.", remedy).problem
        return problem_response(problem, retry_after_s=1, request=request)

    app.include_router(rank_routes(get_info, answer))
    if teller is not None:
        app.include_router(told_routes(get_info, teller, access.require_elsewhere))
        app.include_router(rollout_routes(teller, access.require))
    app.include_router(inference_routes(get_info, answer, not_ready))

    @app.get("/v1/models", summary="What is serving, and what it knows", tags=["ranking"])
    async def models() -> ModelsResponse:
        info = get_info()
        knowledge = info.knowledge
        return ModelsResponse(
            run=info.run,
            release=info.release,
            source=info.source,
            exposure=info.exposure,
            now=knowledge.now,
            since=knowledge.since,
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
                    heads=list(knowledge.heads.get(model.name, ())),
                    default=model.name == info.default_ranker and model.release == info.release,
                    release=model.release,
                    trained=model.trained,
                    commit=model.commit,
                )
                for model in info.models
            ],
        )

    @app.get("/healthz", summary="Is the application up", tags=["operation"])
    async def healthz() -> Health:
        info = get_info()
        return Health(status="ok", run=info.run, rankers=[model.name for model in info.models if model.release == info.release])

    @app.get("/readyz", summary="Do its parts answer", tags=["operation"])
    async def readyz() -> Health:
        refuse_unready(await not_ready())
        return await healthz()

    for path, check in (("/healthz", healthz), ("/readyz", readyz)):
        app.add_api_route(path, check, methods=["HEAD"], include_in_schema=False)

    @app.get("/", include_in_schema=False)
    async def root(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{request.scope.get('root_path', '').rstrip('/')}/{'docs' if console is None else 'console/'}")

    if console is not None:
        app.mount("/console", console)

    return app
