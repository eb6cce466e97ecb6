"""The web side without Ray: routes, problem details, examples that can be sent as they stand."""

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import numpy as np
import pytest
from starlette.testclient import TestClient

from longtail.questions import Encoded, Knowledge, Question, Ranking
from serve_apps.problems import PROBLEM_MEDIA_TYPE
from serve_apps.rank_routes import FEW, a_few_at_a_time
from serve_apps.schemas import BatchResponse, RankResponse
from serve_apps.service_info import ModelInfo, ServiceInfo
from serve_apps.web import web_app
from tests import small_run, small_world


@pytest.fixture(scope="module")
def client() -> TestClient:
    config = small_run.config("unused")
    ranker = small_run.request_ranker(config, max_items=6, versions={name: f"key of {name}" for name in config.train.rankers})
    info = ServiceInfo(
        run="small",
        source="tables",
        exposure="sampled",
        knowledge=ranker.knowledge(),
        models=tuple(ModelInfo(name, f"key of {name}", "2026-01-01T00:00:00Z", "abc") for name in ranker.rankers),
        default_ranker="choirrec",
        max_items=6,
    )

    async def answer(question: Question) -> Ranking:
        await asyncio.sleep(0)
        if question.user_id == "boom":
            raise RuntimeError("planted fault")
        num = len(ranker.unknowns(question).items)
        vectors = small_run.item_vectors()[[0] * num]
        codes = (1, 0) if ranker.unknowns(question).user else None
        return ranker.rank(question, Encoded(codes, vectors, np.zeros((num, 2), np.int32)))

    return TestClient(web_app(lambda: info, answer), raise_server_exceptions=False)


def test_an_answer_is_sorted_typed_and_says_who_made_it(client: TestClient) -> None:
    response = client.post("/v1/rank", json={"user_id": "a", "item_ids": ["tea", "nothing like it", "book"]})
    assert response.status_code == 200
    answer = RankResponse.model_validate(response.json())
    assert (answer.ranker, answer.version, answer.run, answer.heads) == ("choirrec", "key of choirrec", "small", ["outcome"])
    assert answer.now == small_world.INFO.end
    assert [item.score for item in answer.items] == sorted((item.score for item in answer.items), reverse=True)
    assert {item.item_id: item.known for item in answer.items} == {"tea": True, "nothing like it": False, "book": True}
    assert all(item.scores == {"outcome": item.score} for item in answer.items)
    assert response.json()["user"] == {"user_id": "a", "known": True, "group": [0, 1], "group_basis": "published"}
    assert "explanation" not in response.json()["items"][0], "nobody asked"


@pytest.mark.parametrize("more", [{}, {"explain": True}, {"ranker": "saviorrec", "explain": True, "heads": ["outcome"]}])
def test_answers_have_the_shape_that_the_page_tells(client: TestClient, more: dict[str, object]) -> None:
    body = {"user_id": "a", "item_ids": ["tea", "nothing like it", "book"], **more}
    raw = client.post("/v1/rank", json=body).json()
    assert RankResponse.model_validate(raw).model_dump(mode="json", exclude_unset=True) == raw, "no field more than the model has, and none of another type"
    batch = client.post("/v1/rank:batch", json={"requests": [body, {**body, "ranker": "oracle"}]}).json()
    assert BatchResponse.model_validate(batch).model_dump(mode="json", exclude_unset=True) == batch
    assert batch["answers"][0]["answer"].keys() == raw.keys()


def test_stated_time_user_and_items_arrive(client: TestClient) -> None:
    later = small_world.INFO.end + timedelta(days=3)
    body = {
        "user_id": "new",
        "items": [{"item_id": "x", "title": "X", "category": ["food"], "brand": "x", "price": 1.5}, {"item_id": "tea"}],
        "ranker": "saviorrec",
        "heads": ["outcome"],
        "now": later.isoformat(),
        "user": {"attributes": {"city": "Bonn", "age": 30}},
    }
    answer = RankResponse.model_validate(client.post("/v1/rank", json=body).json())
    assert answer.now == later
    assert {item.item_id: item.basis for item in answer.items} == {"x": "content", "tea": "catalogue"}
    assert (answer.user.known, answer.user.group, answer.user.group_basis) == (False, [1, 0], "request")


RANK = {"user_id": "a", "item_ids": ["tea"]}


@pytest.mark.parametrize(
    ("change", "status", "kind", "said"),
    [
        ({"ranker": "oracle"}, 404, "unknown-ranker", "['base', 'choirrec', 'saviorrec']"),
        ({"item_ids": []}, 422, "invalid-request", "at least one item"),
        ({"item_ids": None}, 422, "invalid-request", "either item_ids"),
        ({"items": [{"item_id": "tea"}]}, 422, "invalid-request", "not both"),
        ({"item_ids": ["tea", "tea"]}, 422, "invalid-request", "send each item_id once"),
        ({"item_ids": [f"item {n}" for n in range(7)]}, 422, "too-many-items", "at most 6"),
        ({"item_ids": [""]}, 422, "invalid-request", "item_ids.0"),
        ({"user_id": None}, 422, "invalid-request", "user_id"),
        ({"itemids": ["tea"]}, 422, "invalid-request", "itemids"),
        ({"heads": ["conversion"]}, 422, "unknown-head", "['outcome']"),
        ({"heads": ["outcome", "outcome"]}, 422, "invalid-request", "name each once"),
        ({"now": "2026-01-01T00:00:00"}, 422, "invalid-request", "timezone"),
        ({"now": "2026-02-04T00:00:00Z"}, 422, "too-early", "2026-02-05"),
        ({"release": "r9"}, 404, "unknown-release", "r9"),
        ({"now": "9999-12-31T23:59:59-14:00"}, 422, "invalid-request", "times lie between"),
        ({"now": "0001-01-01T00:00:00+14:00"}, 422, "invalid-request", "times lie between"),
        ({"user": {"attributes": {"age": "1_000"}}}, 422, "not-a-number", "user.attributes.age = '1_000'"),
        ({"user": {"attributes": {"age": "nan"}}}, 422, "not-a-number", "user.attributes.age = 'nan'"),
        ({"user": {"attributes": {"age": 10**400}}}, 422, "invalid-request", "user.attributes.age"),
        ({"user": {"attributes": {"town": "Ulm"}}}, 422, "unknown-attribute", "['age', 'city']"),
        ({"user": {"attributes": {"age": "old"}}}, 422, "not-a-number", "user.attributes.age = 'old'"),
    ],
)
def test_a_refusal_is_a_problem_that_names_the_remedy(client: TestClient, change: dict, status: int, kind: str, said: str) -> None:
    response = client.post("/v1/rank", json={**RANK, **change})
    assert response.status_code == status
    assert response.headers["content-type"] == PROBLEM_MEDIA_TYPE
    problem = response.json()
    assert problem["type"] == f"urn:longtail:problem:{kind}"
    assert problem["status"] == status
    assert problem["remedy"]
    assert said in str(problem)


def test_broken_json_unknown_paths_and_faults_are_problems_too(client: TestClient) -> None:
    broken = client.post("/v1/rank", content=b"{", headers={"content-type": "application/json"})
    lost = client.get("/v3/rank")
    fault = client.post("/v1/rank", json={**RANK, "user_id": "boom"})
    assert [r.status_code for r in (broken, lost, fault)] == [422, 404, 500]
    assert all(r.headers["content-type"] == PROBLEM_MEDIA_TYPE for r in (broken, lost, fault))
    assert "planted fault" in fault.json()["detail"]


def test_models_and_health_say_what_is_serving(client: TestClient) -> None:
    models = client.get("/v1/models").json()
    assert [(m["name"], m["default"], m["heads"]) for m in models["models"]] == [
        ("base", False, ["outcome"]),
        ("choirrec", True, ["outcome"]),
        ("saviorrec", False, ["outcome"]),
    ]
    assert models["attributes"] == {"city": ["Bonn", "Ulm"], "age": None}
    assert (models["num_users"], models["num_items"], models["max_items"]) == (4, 5, 6)
    assert client.get("/healthz").json() == {"status": "ok", "run": "small", "rankers": ["base", "choirrec", "saviorrec"]}
    assert [client.head(path).status_code for path in ("/healthz", "/readyz")] == [200, 200], "as load balancers ask"
    wrong = client.delete("/v1/rank")
    assert (wrong.status_code, wrong.headers["allow"], wrong.json()["title"]) == (405, "POST", "Method Not Allowed")


@pytest.mark.parametrize("root_path", ["", "/longtail"])
@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_pages_bring_all_that_they_show(client: TestClient, root_path: str, page: str) -> None:
    here = TestClient(client.app, root_path=root_path)
    html = here.get(f"{root_path}{page}").text
    assert "https://cdn" not in html
    assets = re.findall(r"""(?:src|href)=["']([^"']+)""", html)
    assert any(asset.endswith(".js") for asset in assets)
    for asset in assets:
        assert asset.startswith(f"{root_path}/static-offline-docs/"), f"{page} takes {asset} from elsewhere"
        assert here.get(asset).status_code == 200, asset


def test_the_openapi_page_is_typed_and_its_examples_work(client: TestClient) -> None:
    page = client.get("/", follow_redirects=True)
    assert page.status_code == 200
    assert "swagger" in page.text.lower()
    described = client.get("/openapi.json").json()["paths"]["/v1/rank"]["post"]
    assert described["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("RankResponse")
    assert set(described["responses"]) == {"200", "404", "413", "422", "503"}
    examples = described["requestBody"]["content"]["application/json"]["examples"]
    assert len(examples) == 3
    for example in examples.values():
        assert client.post("/v1/rank", json=example["value"]).status_code == 200, example


def test_an_explanation_adds_up(client: TestClient) -> None:
    body = {"user_id": "a", "item_ids": ["tea", "book", "soap"], "ranker": "choirrec", "explain": True}
    answer = RankResponse.model_validate(client.post("/v1/rank", json=body).json())
    assert [(step.prefix, step.size > 0) for step in answer.user.group_path] == [([], True), ([0], True), ([0, 1], True)]
    assert sum(step.lends for step in answer.user.group_path) == 1
    for item in answer.items:
        why = item.explanation
        assert why is not None
        assert why.individual is not None
        assert why.group is not None
        assert why.alpha_fusion is not None
        mixed = (1 - why.alpha_fusion) * why.individual["outcome"] + why.alpha_fusion * why.group["outcome"]
        assert why.logits["outcome"] == pytest.approx(mixed, abs=1e-5)
        assert item.score == pytest.approx(1 / (1 + np.exp(-mixed)), abs=1e-5)
        assert set(why.attended) == {"history", "group"}
        for name, most in why.attended.items():
            weights = [one.weight for one in most]
            assert weights == sorted(weights, reverse=True), name
            assert 0 < sum(weights) <= 1 + 1e-5
            assert all((one.days is None) == (name == "group") for one in most)
    plain = RankResponse.model_validate(client.post("/v1/rank", json={**body, "explain": False}).json())
    assert [item.score for item in plain.items] == [item.score for item in answer.items]
    other = RankResponse.model_validate(client.post("/v1/rank", json={**body, "ranker": "saviorrec"}).json()).items[0].explanation
    assert other is not None
    assert (other.individual, other.group, other.alpha_fusion) == (None, None, None)
    assert {"history", "semantic", "behaviour"} == set(other.attended)


def test_a_user_without_history_or_group_has_an_explanation_too(client: TestClient) -> None:
    body = {"user_id": "nobody", "item_ids": ["tea"], "ranker": "choirrec", "explain": True}
    answer = RankResponse.model_validate(client.post("/v1/rank", json=body).json())
    assert [(step.prefix, step.lends) for step in answer.user.group_path] == [([], True)]
    assert answer.items[0].explanation is not None
    assert answer.items[0].explanation.attended["history"] == []


def test_each_request_of_a_batch_is_answered_alone(client: TestClient) -> None:
    requests = [RANK, {**RANK, "ranker": "oracle"}, {**RANK, "user_id": "boom"}, {**RANK, "ranker": "base"}]
    answers = client.post("/v1/rank:batch", json={"requests": requests}).json()["answers"]
    assert [answer["status"] for answer in answers] == [200, 404, 500, 200]
    assert [set(answer) for answer in answers] == [{"status", "answer"}, {"status", "problem"}, {"status", "problem"}, {"status", "answer"}]
    assert answers[0]["answer"]["items"] == client.post("/v1/rank", json=RANK).json()["items"]
    refused = client.post("/v1/rank:batch", json={"requests": [RANK] * 65})
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:longtail:problem:too-many-requests-in-one")
    broken = client.post("/v1/rank:batch", json={"requests": [RANK, {"user_id": "a"}]})
    assert broken.status_code == 422
    assert "requests.1" in broken.json()["errors"][0]


def test_what_is_not_ready_is_named(client: TestClient) -> None:
    assert client.get("/readyz").json()["status"] == "ok"
    info = ServiceInfo("small", "tables", "sampled", Knowledge({}, {}, small_world.INFO.end, small_world.INFO.start, 0, 0, (), ()), (), "choirrec", 6)

    async def never(question: Question) -> Ranking:
        raise AssertionError(question)

    async def not_ready() -> list[str]:
        return ["Rankers"]

    lame = TestClient(web_app(lambda: info, never, not_ready=not_ready))
    for path in ("/readyz", "/v2/health/ready"):
        response = lame.get(path)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert "Rankers" in response.json()["detail"]
    assert lame.get("/healthz").status_code == 200, "it is up all the same"


def test_a_body_of_megabytes_works_and_one_beyond_the_limit_is_refused(client: TestClient) -> None:
    item = {"item_id": "tea", "title": "x" * 1000, "category": ["y" * 1000] * 16}
    large = {"requests": [{"user_id": "a", "items": [{**item, "item_id": f"{n}"} for n in range(6)]}] * 50}
    assert len(json.dumps(large)) > 5e6
    response = client.post("/v1/rank:batch", json=large)
    assert (response.status_code, len(response.json()["answers"])) == (200, 50)
    beyond = b"[" + b" " * (16 * 2**20) + b"]"

    def in_pieces() -> Iterator[bytes]:  # nobody says how long it is
        for start in range(0, len(beyond), 2**20):
            yield beyond[start : start + 2**20]

    for content in (beyond, in_pieces()):
        for path in ("/v1/rank", "/v1/rank:batch", "/v2/models/base/infer"):
            refused = client.post(path, content=content, headers={"content-type": "application/json"})
            assert (refused.status_code, refused.headers["content-type"]) == (413, PROBLEM_MEDIA_TYPE), path
            assert "16,777,216 bytes" in refused.json()["detail"]
            if content is not beyond:
                break  # it can be read once


def test_a_refusal_is_not_larger_than_what_it_refuses(client: TestClient) -> None:
    for body in (
        {**RANK, "item_ids": [0] * 50_000},
        {**RANK, **{f"key {n}": n for n in range(5_000)}},
        {**RANK, "ranker": "x" * 100_000},
        {**RANK, "heads": ["x" * 100_000]},
        {**RANK, "user": {"attributes": {"x" * 100_000: 1}}},
        {**RANK, "user": {"attributes": {"age": "1" * 100_000}}},
    ):
        response = client.post("/v1/rank", json=body)
        assert response.status_code == 422
        assert len(response.content) < 10_000
    many = client.post("/v1/rank", json={**RANK, **{f"key {n}": n for n in range(50)}}).json()
    assert (len(many["errors"]), many["errors"][-1], many["detail"]) == (21, "and 30 more", "50 fields are refused.")
    assert len(client.post("/v1/rank:batch", json={"requests": [0] * 50_000}).content) < 10_000


def test_text_that_utf_8_cannot_write_is_refused_wherever_it_stands(client: TestClient) -> None:
    lone = '"\\ud800"'
    bodies = [
        '{"user_id": %s, "item_ids": ["tea"]}',
        '{"user_id": "a", "item_ids": [%s]}',
        '{"user_id": "a", "item_ids": ["tea"], "user": {"attributes": {"city": %s}}}',
        '{"user_id": "a", "item_ids": ["tea"], "user": {"attributes": {%s: 1}}}',
        '{"user_id": "a", "item_ids": ["tea"], "user": {"profile": %s}}',
        '{"user_id": "a", "items": [{"item_id": "x", "title": %s}]}',
    ]
    for body in bodies:
        response = client.post("/v1/rank", content=(body % lone).encode(), headers={"content-type": "application/json"})
        assert (response.status_code, response.headers["content-type"]) == (422, PROBLEM_MEDIA_TYPE), body


def test_a_batch_has_a_few_in_line_and_no_more() -> None:
    under_way, most, order = 0, 0, []

    async def one(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        order.append(number)
        under_way -= 1
        return number

    assert asyncio.run(a_few_at_a_time([partial(one, number) for number in range(20)])) == list(range(20))
    assert most == FEW
    assert order == list(range(20))
