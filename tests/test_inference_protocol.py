"""The Open Inference Protocol over HTTP: tensors in and out, as JSON and as bytes, and its refusals."""

import asyncio
import json
import struct

import numpy as np
import pytest
from starlette.testclient import TestClient

from longtail.questions import Question, Ranking
from longtail.ranking import RequestRanker
from serve_apps.inference_protocol import Tensor, from_raw, to_raw
from serve_apps.inference_routes import LENGTH_HEADER
from serve_apps.problems import RequestProblemError
from serve_apps.service_info import ModelInfo, ServiceInfo
from serve_apps.web import web_app
from tests import small_run, small_world


@pytest.fixture(scope="module")
def ranker() -> RequestRanker:
    config = small_run.config("unused")
    return small_run.request_ranker(config, max_items=6)


@pytest.fixture(scope="module")
def client(ranker: RequestRanker) -> TestClient:
    models = tuple(ModelInfo(name, f"key of {name}", "2026-01-01T00:00:00Z", "abc") for name in ranker.rankers)
    info = ServiceInfo("small", "tables", "sampled", ranker.knowledge(), models, "choirrec", max_items=6)

    async def answer(question: Question) -> Ranking:
        await asyncio.sleep(0)
        return ranker.rank(question)

    return TestClient(web_app(lambda: info, answer), raise_server_exceptions=False)


def call(users: list[str], items: list[str], **more: object) -> dict:
    inputs = [{"name": name, "datatype": "BYTES", "shape": [len(values)], "data": values} for name, values in (("user_id", users), ("item_id", items))]
    return {"inputs": inputs, **more}


def scores(client: TestClient, user: str, ranker: str) -> dict[str, float]:
    items = client.post("/v1/rank", json={"user_id": user, "item_ids": ["tea", "book", "soap"], "ranker": ranker}).json()["items"]
    return {item["item_id"]: item["score"] for item in items}


@pytest.mark.parametrize("name", ["base", "choirrec", "saviorrec"])
def test_rows_have_the_scores_of_v1_in_their_own_order(client: TestClient, name: str) -> None:
    users, items = ["a", "b", "a", "b", "a"], ["tea", "soap", "book", "tea", "tea"]
    answer = client.post(f"/v2/models/{name}/infer", json=call(users, items, id="7")).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (name, f"key of {name}", "7")
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("outcome", "FP32", [5])
    expected = [scores(client, user, name)[item] for user, item in zip(users, items, strict=True)]
    assert output["data"] == pytest.approx(expected, abs=1e-6)


def test_one_user_stands_for_all_rows_and_nested_lists_are_flat(client: TestClient) -> None:
    body = call(["a"], ["tea", "book"], outputs=[{"name": "outcome"}])
    body["inputs"][1] |= {"shape": [2, 1], "data": [["tea"], ["book"]]}
    (output,) = client.post("/v2/models/choirrec/infer", json=body).json()["outputs"]
    of_a = scores(client, "a", "choirrec")
    assert output["data"] == pytest.approx([of_a["tea"], of_a["book"]], abs=1e-6)


def test_a_call_may_state_its_time(client: TestClient, ranker: RequestRanker) -> None:
    later = small_world.day(43)
    now = {"name": "now", "datatype": "INT64", "shape": [1], "data": [int(later.timestamp() * 1e6)]}
    body = call(["a"], ["tea"])
    (output,) = client.post("/v2/models/choirrec/infer", json={"inputs": [*body["inputs"], now]}).json()["outputs"]
    v1 = client.post("/v1/rank", json={"user_id": "a", "item_ids": ["tea"], "ranker": "choirrec", "now": later.isoformat()}).json()
    assert output["data"] == pytest.approx([v1["items"][0]["score"]], abs=1e-6)
    assert output["data"] != pytest.approx([scores(client, "a", "choirrec")["tea"]], abs=1e-6), "the time matters here"


def test_bytes_behind_the_json_both_ways(client: TestClient) -> None:
    texts = [["a"], ["tea", "b\u00fccher", "book"]]
    raw = [b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in one) for one in texts]
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [len(one)], "parameters": {"binary_data_size": len(part)}}
        for name, one, part in zip(("user_id", "item_id"), texts, raw, strict=True)
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    response = client.post("/v2/models/choirrec/infer", content=head + b"".join(raw), headers={LENGTH_HEADER: str(len(head))})
    length = int(response.headers[LENGTH_HEADER])
    (output,) = json.loads(response.content[:length])["outputs"]
    assert output["parameters"]["binary_data_size"] == 12 == len(response.content) - length
    values = np.frombuffer(response.content[length:], "<f4")
    plain = client.post("/v2/models/choirrec/infer", json=call(texts[0], texts[1])).json()["outputs"][0]["data"]
    assert values.tolist() == pytest.approx(plain, abs=1e-7)
    named = client.post("/v2/models/choirrec/infer", json=call(["a"], ["tea"], outputs=[{"name": "outcome", "parameters": {"binary_data": True}}]))
    assert len(named.content) - int(named.headers[LENGTH_HEADER]) == 4


def test_metadata_and_readiness(client: TestClient) -> None:
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    told = client.get("/v2/models/choirrec").json()
    assert (told["versions"], [one["name"] for one in told["outputs"]]) == (["key of choirrec"], ["outcome"])
    assert [(one["name"], one["datatype"], one["shape"]) for one in told["inputs"]] == [
        ("user_id", "BYTES", [-1]),
        ("item_id", "BYTES", [-1]),
        ("now", "INT64", [-1]),
    ]
    assert client.get("/v2/models/choirrec/versions/key of choirrec/ready").json() == {"name": "choirrec", "ready": True}
    for path in ("/v2/models/oracle", "/v2/models/oracle/ready", "/v2/models/choirrec/versions/3", "/v2/models/choirrec/versions/3/ready"):
        assert client.get(path).status_code == 404, path


def test_the_example_of_the_openapi_page_works(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"]["/v2/models/{name}/infer"]["post"]
    example = described["requestBody"]["content"]["application/json"]["example"]
    assert client.post("/v2/models/base/infer", json=example).status_code == 200


TEA = {"name": "item_id", "datatype": "BYTES", "shape": [1], "data": ["tea"]}
USER = {"name": "user_id", "datatype": "BYTES", "shape": [1], "data": ["a"]}
NOW = {"name": "now", "datatype": "INT64", "shape": [1], "data": [0]}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"inputs": [USER]}, 422, "'item_id' is missing"),
        ({"inputs": [USER, {**TEA, "shape": [2]}]}, 422, "shape [2] and 1 values"),
        ({"inputs": [USER, {**TEA, "shape": [-1], "data": []}]}, 422, "shape [-1]"),
        ({"inputs": [USER, {**TEA, "datatype": "FP32"}]}, 422, "no FP32"),
        ({"inputs": [USER, {**TEA, "data": [3]}]}, 422, "no BYTES"),
        ({"inputs": [USER, {**TEA, "data": [""]}]}, 422, "0 characters"),
        ({"inputs": [USER, TEA, {**NOW, "data": ["x"]}]}, 422, "no INT64"),
        ({"inputs": [USER, TEA, {**NOW, "data": [-1]}]}, 422, "'now' = -1"),
        ({"inputs": [USER, TEA, {**NOW, "shape": [2], "data": [0, 0]}]}, 422, "'now' has 2 values"),
        ({"inputs": [USER, TEA, {**TEA, "name": "item"}]}, 422, "'item' is not known"),
        ({"inputs": [{**USER, "shape": [2], "data": ["a", "b"]}, TEA]}, 422, "user_id has 2 values and item_id 1"),
        ({"inputs": [USER, TEA], "outputs": [{"name": "cvr"}]}, 422, "'cvr' is none of 'choirrec'"),
        ({"inputs": [USER, {**TEA, "shape": [7], "data": [f"i{n}" for n in range(7)]}]}, 422, "at most 6"),
        ({"inputs": "tea"}, 422, "inputs"),
        ({"inputs": [USER, TEA], "outputs": [{"name": "outcome"}] * 2}, 422, "more than once"),
        ({"inputs": [USER, TEA, TEA]}, 422, "the same name"),
        ({"inputs": [{**USER, "shape": [65], "data": [f"u{n}" for n in range(65)]}, {**TEA, "shape": [65], "data": ["tea"] * 65}]}, 422, "65 distinct users"),
        ({"inputs": [USER, {**TEA, "shape": [385], "data": ["tea"] * 385}]}, 422, "385 rows, and at most 384"),
        ({"inputs": [USER, {**TEA, "shape": [10**4000] * 8}]}, 422, "and 1 values"),
        ({"inputs": [USER, {**TEA, "shape": [1] * 9}]}, 422, "shape"),
        ({"inputs": [USER, {**TEA, "shape": ["1"]}]}, 422, "shape.0"),
        ({"inputs": [USER, {**TEA, "name": "x" * 10_000}]}, 422, "name"),
        ({"inputs": [USER, {**TEA, "parameters": {"binary_data_size": 0}}]}, 422, "data and bytes"),
        ({"inputs": [USER, {**TEA, "data": None, "parameters": {"binary_data_size": 9}}]}, 422, "9 bytes, and 0 are left"),
    ],
)
def test_refusals_are_problems_with_the_protocols_error(client: TestClient, body: dict, status: int, said: str) -> None:
    response = client.post("/v2/models/choirrec/infer", json=body)
    assert response.status_code == status, response.text
    problem = response.json()
    assert said in problem["detail"]
    assert problem["error"].startswith(problem["detail"])
    assert problem["remedy"]
    assert len(response.content) < 2000


def test_a_call_of_no_model_and_a_wrong_length_are_refused(client: TestClient) -> None:
    assert client.post("/v2/models/oracle/infer", json=call(["a"], ["tea"])).json()["error"].startswith("model 'oracle' is not serving.")
    for length in ("x", "-1", "9999", "9" * 5000, "+5"):
        response = client.post("/v2/models/base/infer", json=call(["a"], ["tea"]), headers={LENGTH_HEADER: length})
        assert (response.status_code, LENGTH_HEADER in response.json()["detail"]) == (422, True)


def test_bytes_that_no_tensor_takes_are_refused(client: TestClient) -> None:
    head = json.dumps(call(["a"], ["tea"])).encode()
    response = client.post("/v2/models/base/infer", content=head + b"more", headers={LENGTH_HEADER: str(len(head))})
    assert (response.status_code, "4 bytes are left" in response.json()["detail"]) == (422, True)


@pytest.mark.parametrize("raw", [b"\x01", b"\x05\x00\x00\x00tea", b"\x03\x00\x00\x00te"])
def test_texts_that_are_cut_short_are_refused(raw: bytes) -> None:
    with pytest.raises(RequestProblemError, match="end within a value"):
        from_raw("item_id", "BYTES", (1,), raw)
    with pytest.raises(RequestProblemError, match="no values of type INT64"):
        from_raw("now", "INT64", (1,), b"abc")


def test_numbers_and_texts_survive_the_bytes() -> None:
    assert from_raw("now", "INT64", (2,), np.array([1, -5], "<i8").tobytes()).values == [1, -5]
    assert from_raw("item_id", "BYTES", (2,), b"\x00\x00\x00\x00\x02\x00\x00\x00\xc3\xa9").values == [b"", "é".encode()]
    assert to_raw(Tensor("outcome", "FP32", (2,), [0.5, 1.0])) == np.array([0.5, 1.0], "<f4").tobytes()
