"""The Open Inference Protocol over gRPC: the same scores as over HTTP, typed and raw contents, refusals by gRPC's codes."""

import asyncio
import re
import struct
from typing import Any

import grpc
import numpy as np
import pytest

from longtail.questions import Question, Ranking, StatedItem
from longtail.ranking import RequestRanker
from pipelines.cluster import ROOT
from serve_apps import open_inference_pb2 as pb
from serve_apps.inference_grpc import InferenceService
from serve_apps.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from serve_apps.service_info import ModelInfo, ServiceInfo
from tests import small_run


class Context:
    """What a method may do to gRPC's context."""

    code: grpc.StatusCode | None = None
    details = ""

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


@pytest.fixture(scope="module")
def ranker() -> RequestRanker:
    config = small_run.config("unused")
    return small_run.request_ranker(config, max_items=6)


@pytest.fixture(scope="module")
def service(ranker: RequestRanker) -> InferenceService:
    models = tuple(ModelInfo(name, f"key of {name}", "2026-01-01T00:00:00Z", "abc") for name in ranker.rankers)
    info = ServiceInfo("small", "tables", "sampled", ranker.knowledge(), models, "choirrec", max_items=6)

    async def answer(question: Question) -> Ranking:
        return ranker.rank(question)

    async def not_ready() -> list[str]:
        return []

    return InferenceService(lambda: info, answer, not_ready)


def ask(service: InferenceService, method: str, request: Any) -> tuple[Any, Context]:
    context = Context()
    return asyncio.run(getattr(service, method)(request, grpc_context=context)), context


def typed(users: list[str], items: list[str]) -> Any:
    request = pb.ModelInferRequest(model_name="choirrec", id="7")
    for name, values in (("user_id", users), ("item_id", items)):
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[len(values)])
        tensor.contents.bytes_contents.extend(value.encode() for value in values)
    return request


def raw(users: list[str], items: list[str]) -> Any:
    request = pb.ModelInferRequest(model_name="choirrec")
    for name, values in (("user_id", users), ("item_id", items)):
        request.inputs.add(name=name, datatype="BYTES", shape=[len(values)])
        request.raw_input_contents.append(b"".join(struct.pack("<I", len(value)) + value.encode() for value in values))
    return request


def test_the_generated_messages_are_those_of_the_proto_file() -> None:
    text = (ROOT / "serve_apps" / "open_inference.proto").read_text()
    written = sorted((name, int(number)) for name, number in re.findall(r"(\w+) = (\d+);", text))
    found, waiting = [], list(pb.DESCRIPTOR.message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        waiting += message.nested_types
        if not message.GetOptions().map_entry:
            found += [(field.name, field.number) for field in message.fields]
    assert sorted(found) == written, "run make protos"


def test_every_method_of_the_protocol_is_there() -> None:
    methods = {name for name in vars(GRPCInferenceServiceServicer) if not name.startswith("_")}
    assert methods == {"ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"}
    assert all(callable(getattr(InferenceService, name)) for name in methods)


def test_typed_and_raw_contents_have_the_scores_of_the_core(service: InferenceService, ranker: RequestRanker) -> None:
    users, items = ["a", "b", "a"], ["tea", "tea", "book"]
    expected = []
    for user, item in zip(users, items, strict=True):
        expected.append(ranker.rank(Question(user, (StatedItem(item),), "choirrec")).items[0].scores[0])
    response, context = ask(service, "ModelInfer", typed(users, items))
    assert context.code is None
    assert (response.model_name, response.model_version, response.id) == ("choirrec", "key of choirrec", "7")
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("outcome", "FP32", [3])
    assert list(output.contents.fp32_contents) == pytest.approx(expected, abs=1e-6)
    response, _ = ask(service, "ModelInfer", raw(users, items))
    assert np.frombuffer(response.raw_output_contents[0], "<f4").tolist() == pytest.approx(expected, abs=1e-6)
    assert not response.outputs[0].contents.fp32_contents


def test_metadata_and_readiness(service: InferenceService) -> None:
    assert ask(service, "ServerLive", pb.ServerLiveRequest())[0].live
    assert ask(service, "ServerReady", pb.ServerReadyRequest())[0].ready
    assert ask(service, "ModelReady", pb.ModelReadyRequest(name="base"))[0].ready
    assert ask(service, "ServerMetadata", pb.ServerMetadataRequest())[0].name == "longtail"
    told, _ = ask(service, "ModelMetadata", pb.ModelMetadataRequest(name="choirrec"))
    assert [(one.name, one.datatype, list(one.shape)) for one in told.inputs] == [
        ("user_id", "BYTES", [-1]),
        ("item_id", "BYTES", [-1]),
        ("now", "INT64", [-1]),
    ]
    assert [one.name for one in told.outputs] == ["outcome"]


def test_refusals_have_a_code_and_say_what_to_do(service: InferenceService) -> None:
    def refused(method: str, request: Any) -> Context:
        context = Context()
        with pytest.raises(ValueError, match=r"model|input"):
            asyncio.run(getattr(service, method)(request, grpc_context=context))
        return context

    lost = refused("ModelReady", pb.ModelReadyRequest(name="oracle"))
    assert (lost.code, "Serving are base key of base" in lost.details) == (grpc.StatusCode.NOT_FOUND, True)
    strange = typed(["a"], ["tea"])
    strange.inputs.add(name="price", datatype="FP32", shape=[1]).contents.fp32_contents.append(1.0)
    found = refused("ModelInfer", strange)
    assert (found.code, "input 'price' is 'FP32'" in found.details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    few = raw(["a"], ["tea"])
    del few.raw_input_contents[1]
    assert "2 inputs and 1 raw contents" in refused("ModelInfer", few).details
