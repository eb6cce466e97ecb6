"""The console over HTTP without Ray: its pages over the small run, behind the bridge; who may look, who may act, and how it says no."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import Depends, FastAPI, Request
from starlette.testclient import TestClient

from longtail.artifacts import Store
from serve_apps.access import TOKEN_VARIABLE, Access, is_loopback
from serve_apps.console.nav import PAGES
from serve_apps.problems import PROBLEM_MEDIA_TYPE, add_problem_handlers
from serve_apps.ranking import served_run
from serve_apps.served_run import ServedRun
from tests import console_server, small_run

BEARER = {"authorization": f"Bearer {console_server.TOKEN}"}
HTML = {"accept": "text/html"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ServedRun:
    config = small_run.publish(tmp_path_factory.mktemp("small run"))
    return served_run(config, Store.open(config.run.uri)).open()


@pytest.fixture(scope="module")
def client(run: ServedRun) -> Iterator[TestClient]:
    with TestClient(console_server.application(run), base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def open_to_all(run: ServedRun) -> Iterator[TestClient]:
    """Listens on every address, under a prefix."""
    app = FastAPI()
    app.mount("/deep/down", console_server.application(run, host="0.0.0.0"))
    with TestClient(app, base_url="http://192.0.2.1", raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("page", [page.path for page in PAGES])
def test_every_page_is_there_has_its_place_in_the_navigation_and_keeps_scripts_out(client: TestClient, page: str) -> None:
    response = client.get(f"/console/{page}", headers=HTML)
    assert response.status_code == 200, response.text
    assert response.text.count('aria-current="page"') == 1
    assert "script-src 'self'" in response.headers["content-security-policy"]
    assert "unsafe-inline" not in response.headers["content-security-policy"].replace("style-src-attr 'unsafe-inline'", "")
    assert response.headers["cache-control"] == "no-store"


def test_the_root_leads_to_the_console(client: TestClient) -> None:
    response = client.get("/", follow_redirects=False)
    assert response.headers["location"] == "/console/"
    assert client.get("/console", headers=HTML).url.path == "/console/"


def test_static_files_are_packed_and_kept(client: TestClient) -> None:
    page = client.get("/console/", headers=HTML).text
    version = page.partition("static/")[2].partition("/")[0]
    for name, kind in (("console.css", "text/css"), ("console.js", "text/javascript"), ("plotly.min.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        response = client.get(f"/console/static/{version}/{name}")
        assert (response.status_code, response.headers["content-encoding"]) == (200, "gzip"), name
        assert response.headers["content-type"].startswith(kind)
        assert "immutable" in response.headers["cache-control"]
    assert client.get("/console/static/older/console.css").headers["cache-control"] == "no-cache"
    for name in ("..%2Fapp.py", "app.py", "console.css.py"):
        assert client.get(f"/console/static/{version}/{name}").status_code == 404


def test_links_hold_under_a_prefix(open_to_all: TestClient) -> None:
    page = open_to_all.get("/deep/down/console/", headers=HTML | BEARER)
    assert page.status_code == 200
    assert 'href="./static/' in page.text
    assert 'data-api="../"' in page.text
    deeper = open_to_all.get("/deep/down/console/no/such/page", headers=HTML | BEARER)
    assert deeper.status_code == 404
    assert 'data-api="../../../"' in deeper.text


def test_looking_needs_the_token_where_other_machines_can_ask(open_to_all: TestClient) -> None:
    refused = open_to_all.get("/deep/down/console/", headers={"accept": "application/json"})
    assert (refused.status_code, refused.headers["content-type"]) == (401, PROBLEM_MEDIA_TYPE)
    assert refused.headers["www-authenticate"].startswith("Bearer")
    asked = open_to_all.get("/deep/down/console/", headers=HTML)
    assert asked.status_code == 401
    assert "Enter the token" in asked.text
    assert open_to_all.get(asked.text.partition('rel="stylesheet" href="./')[2].partition('"')[0].join(["/deep/down/console/", ""])).status_code == 200
    assert open_to_all.post("/deep/down/console/session", headers={"authorization": "Bearer wrong"}).status_code == 401
    kept = open_to_all.post("/deep/down/console/session", headers=BEARER)
    assert kept.status_code == 204
    assert {"HttpOnly", "SameSite=strict", "Path=/deep/down/console"} <= set(kept.headers["set-cookie"].split("; "))
    assert console_server.TOKEN not in kept.headers["set-cookie"]
    assert open_to_all.get("/deep/down/console/", headers=HTML).status_code == 200, "the cookie is good for looking"
    assert open_to_all.post("/deep/down/console/session").status_code == 401, "and for nothing else"


def test_looking_is_free_here_and_not_under_a_name_that_only_leads_here(client: TestClient) -> None:
    assert client.get("/console/", headers={"host": "localhost:8000"} | HTML).status_code == 200
    assert client.get("/console/", headers={"host": "[::1]:8000"} | HTML).status_code == 200
    assert client.get("/console/", headers={"host": "rebound.example.org"} | HTML).status_code == 401


def test_acting_needs_the_token_everywhere(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        response = client.request(method, "/console/", headers={"authorization": "Basic dXNlcjpwYXNz"})
        assert (response.status_code, response.json()["type"]) == (401, "urn:longtail:problem:token-needed"), method
    assert client.post("/console/", headers=BEARER).status_code == 405


def test_the_token_guards_a_route_of_any_application() -> None:
    app, access = FastAPI(), Access("right", viewing_needs_token=False)
    add_problem_handlers(app)

    @app.post("/v1/act", dependencies=[Depends(access.require)])
    def act(request: Request) -> str:
        return "done"

    with TestClient(app) as client:
        for headers in ({}, {"authorization": "right"}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer right on"}):
            refused = client.post("/v1/act", headers=headers)
            assert (refused.status_code, refused.headers["content-type"], refused.headers["www-authenticate"][:6]) == (401, PROBLEM_MEDIA_TYPE, "Bearer")
        assert client.post("/v1/act", headers={"authorization": "bearer right"}).json() == "done"
        nobody = Access(None, viewing_needs_token=True)
        app.dependency_overrides[access.require] = nobody.require
        assert client.post("/v1/act", headers={"authorization": "Bearer "}).status_code == 401, "without a token nobody acts"


def test_where_the_token_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    made = Access.generated("127.0.0.1")
    assert made.token is not None
    assert len(made.token) >= 32
    assert made.token != Access.generated("127.0.0.1").token
    assert Access.of("127.0.0.1") == Access(None, viewing_needs_token=False)
    assert made.token not in repr(made)
    monkeypatch.setenv(TOKEN_VARIABLE, "from outside")
    assert Access.generated("0.0.0.0") == Access("from outside", viewing_needs_token=True)
    hosts = {"127.0.0.1": True, "127.1.2.3": True, "localhost": True, "::1": True, "0.0.0.0": False, "::": False, "10.0.0.1": False, "my.host": False}
    assert {host: is_loopback(host) for host in hosts} == hosts


def test_what_is_not_there_is_a_page_for_people_and_a_problem_for_programs(client: TestClient) -> None:
    page = client.get("/console/nowhere", headers=HTML)
    assert page.status_code == 404
    assert "<h1>Not Found</h1>" in page.text
    problem = client.get("/console/nowhere")
    assert (problem.status_code, problem.headers["content-type"]) == (404, PROBLEM_MEDIA_TYPE)
    for key in ("0" * 16, "...", "a%2fb"):
        assert client.get(f"/console/report/{key}").status_code == 404


def test_the_overview_has_every_artifact_and_what_to_run_for_an_evaluation(client: TestClient, run: ServedRun) -> None:
    page = client.get("/console/", headers=HTML).text
    for stage in ("logs", "profiles", "user_vectors", "item_encoder", "item_z", "groups", "lent", "base", "choirrec", "saviorrec"):
        assert f'id="{stage}"' in page
    assert "python -m pipelines.evaluate" in page
    assert run.release.parts["logs"].key[:10] in page


def test_no_page_takes_a_style_or_script_from_elsewhere() -> None:
    for file in Path("serve_apps/console").resolve().rglob("*"):
        if file.suffix in (".html", ".js", ".css"):
            text = file.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in text, file
            assert "https://" not in text, file
            assert " style=" not in text, file
