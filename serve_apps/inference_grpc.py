"""The Open Inference Protocol (KServe V2) over gRPC: methods that Ray Serve's gRPC proxy calls on the application's door.

Serve adds the service to its server by the function that serve.grpc_port turns on (SERVICER). A failure sets the context's code and is raised, as Serve wants.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from actors import metrics
from longtail import __version__
from serve_apps.admission import Admission, surplus
from serve_apps.inference_protocol import Tensor, from_raw, infer, refusal, served_model, to_raw
from serve_apps.inference_routes import ServerMetadata, metadata
from serve_apps.open_inference_pb2 import (
    ModelInferResponse,
    ModelMetadataResponse,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)
from serve_apps.problems import RequestProblemError
from serve_apps.rank_routes import Answer
from serve_apps.service_info import GetInfo

SERVICER = "serve_apps.open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"
_CODES = {404: grpc.StatusCode.NOT_FOUND, 422: grpc.StatusCode.INVALID_ARGUMENT, 503: grpc.StatusCode.UNAVAILABLE}
_CONTENTS = {"BYTES": "bytes_contents", "INT64": "int64_contents"}


class InferenceService:
    """The protocol's methods over one run's rankers; method names are the protocol's."""

    def __init__(self, info: GetInfo, answer: Answer, not_ready: Callable[[], Awaitable[list[str]]], admission: Admission | None = None) -> None:
        self._info, self._answer, self._not_ready = info, answer, not_ready
        self._gate = admission or Admission(None)

    async def ServerLive(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802
        return ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802
        return ServerReadyResponse(ready=not await self._not_ready())

    async def ServerMetadata(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802
        told = ServerMetadata(version=__version__)
        return ServerMetadataResponse(name=told.name, version=told.version)

    async def ModelReady(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802
        with refusals(grpc_context):
            served_model(self._info(), request.name, request.version)
        return ModelReadyResponse(ready=not await self._not_ready())

    async def ModelMetadata(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802
        with refusals(grpc_context):
            told = metadata(self._info(), request.name, request.version)
        sides = {name: [ModelMetadataResponse.TensorMetadata(**one.model_dump()) for one in getattr(told, name)] for name in ("inputs", "outputs")}
        return ModelMetadataResponse(name=told.name, versions=told.versions, platform=told.platform, **sides)

    async def ModelInfer(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802
        """Score rows; raw contents are answered with raw contents."""
        with refusals(grpc_context):
            if request.ByteSize() > self._info().max_body_bytes:
                raise refusal(f"the call has more than {self._info().max_body_bytes:,} bytes.", "Split it, or raise serve.max_body_mb.")
            wanted = [one.name for one in request.outputs]
            if not self._gate.admit():
                raise surplus()
            try:
                model, outputs = await infer(self._info(), self._answer, request.model_name, request.model_version, tensors_of(request), wanted)
            finally:
                self._gate.leave()
        response = ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
        for tensor in outputs:
            told = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            if request.raw_input_contents:
                response.raw_output_contents.append(to_raw(tensor))
            else:
                told.contents.fp32_contents.extend(tensor.values)
        return response


def tensors_of(request: Any) -> list[Tensor]:
    """A call's tensors, from raw or typed contents.

    Raises:
        RequestProblemError: they are of a type that no ranker takes, or not as many as the inputs.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise refusal(f"{len(request.inputs)} inputs and {len(raw)} raw contents.", "Send as many, in the inputs' order.")
    if raw:
        return [from_raw(one.name, one.datatype, tuple(one.shape), part) for one, part in zip(request.inputs, raw, strict=True)]
    unknown = [one for one in request.inputs if one.datatype not in _CONTENTS]
    if unknown:
        raise refusal(f"input {unknown[0].name!r} is {unknown[0].datatype!r}.", f"Inputs are of type {' or '.join(_CONTENTS)}.")
    return [Tensor(one.name, one.datatype, tuple(one.shape), list(getattr(one.contents, _CONTENTS[one.datatype]))) for one in request.inputs]


@contextmanager
def refusals(context: Any) -> Iterator[None]:
    """Tell a problem by gRPC's own codes.

    Raises:
        ValueError: there is one; of a class that Serve's proxy can take out of its wrapping.
    """
    try:
        yield
    except RequestProblemError as error:
        metrics.REFUSALS.add(1, status=str(error.problem.status))
        said = f"{error.problem.detail} {error.problem.remedy}"
        context.set_code(_CODES.get(error.problem.status, grpc.StatusCode.INTERNAL))
        context.set_details(said)
        raise ValueError(said) from None
