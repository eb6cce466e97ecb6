"""The Open Inference Protocol (KServe V2) over HTTP: metadata, readiness and inference, with the binary tensor extension.

Failures are problem details with the protocol's `error` beside them.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from longtail import __version__
from serve_apps.inference_protocol import INPUTS, MAX_DIMS, MAX_NAME, OUTPUT_TYPE, PLATFORM, Tensor, Value, from_raw, infer, refusal, served_model, to_raw
from serve_apps.problems import refuse_unready
from serve_apps.rank_routes import PROBLEMS, Answer
from serve_apps.service_info import GetInfo, ServiceInfo

LENGTH_HEADER = "Inference-Header-Content-Length"


class Parameters(BaseModel):
    """Parameters of a tensor or a call; those that are unknown are ignored, as the protocol has it."""

    model_config = ConfigDict(extra="allow")

    binary_data_size: StrictInt | None = Field(None, ge=0)
    binary_data: bool | None = None
    binary_data_output: bool = False


class InputTensor(BaseModel):
    """A tensor that goes in."""

    name: str = Field(max_length=MAX_NAME)
    shape: list[StrictInt] = Field(max_length=MAX_DIMS)
    datatype: str = Field(max_length=MAX_NAME)
    parameters: Parameters = Parameters()
    data: list[Any] | None = None


class WantedOutput(BaseModel):
    """An output by name."""

    name: str = Field(max_length=MAX_NAME)
    parameters: Parameters = Parameters()


class InferRequest(BaseModel):
    """A call."""

    id: str | None = Field(None, max_length=MAX_NAME)
    parameters: Parameters = Parameters()
    inputs: list[InputTensor] = Field(max_length=len(INPUTS))
    outputs: list[WantedOutput] = Field([], max_length=64)


class TensorMetadata(BaseModel):
    """What a ranker takes or gives; -1: any number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """One ranker."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """The server."""

    name: Literal["longtail"] = "longtail"
    version: str
    extensions: list[str] = ["binary_tensor_data"]


def metadata(info: ServiceInfo, name: str, of_version: str = "") -> ModelMetadata:
    """What is told of a ranker.

    Raises:
        RequestProblemError: it is not serving.
    """
    model = served_model(info, name, of_version)
    return ModelMetadata(
        name=name,
        versions=[model.version],
        platform=PLATFORM,
        inputs=[TensorMetadata(name=one, datatype=kind, shape=[-1]) for one, kind in INPUTS],
        outputs=[TensorMetadata(name=head, datatype=OUTPUT_TYPE, shape=[-1]) for head in info.knowledge.heads[name]],
    )


def inference_routes(info: GetInfo, answer: Answer, not_ready: Callable[[], Awaitable[list[str]]]) -> APIRouter:
    """The protocol's routes over one run's rankers."""
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"])

    @routes.get("", summary="The server")
    async def server() -> ServerMetadata:
        return ServerMetadata(version=__version__)

    @routes.get("/health/live", summary="Is it up")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @routes.get("/health/ready", summary="Does it answer calls")
    async def ready() -> dict[str, bool]:
        refuse_unready(await not_ready())
        return {"ready": True}

    @routes.get("/models/{name}/ready", responses=PROBLEMS, summary="Is a ranker serving")
    @routes.get("/models/{name}/versions/{of_version}/ready", include_in_schema=False)
    async def model_ready(name: str, of_version: str = "") -> dict[str, Any]:
        served_model(info(), name, of_version)
        refuse_unready(await not_ready())
        return {"name": name, "ready": True}

    @routes.get("/models/{name}", responses=PROBLEMS, summary="What a ranker takes and gives")
    @routes.get("/models/{name}/versions/{of_version}", include_in_schema=False)
    async def model(name: str, of_version: str = "") -> ModelMetadata:
        return metadata(info(), name, of_version)

    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": InferRequest.model_json_schema(), "example": example(info())}}}}

    @routes.post("/models/{name}/infer", responses=PROBLEMS, openapi_extra=body, summary="Score rows of users and candidates")
    @routes.post("/models/{name}/versions/{of_version}/infer", include_in_schema=False)
    async def infer_rows(name: str, request: Request, of_version: str = "") -> Response:
        call, inputs = parsed(await request.body(), request.headers.get(LENGTH_HEADER))
        model, outputs = await infer(info(), answer, name, of_version, inputs, [one.name for one in call.outputs])
        own = {one.name: one.parameters.binary_data for one in call.outputs}  # over the call's
        binary = {one.name for one in outputs if (call.parameters.binary_data_output if own.get(one.name) is None else own[one.name])}
        return written(call, {"model_name": name, "model_version": model.version}, outputs, binary)

    return routes


def example(info: ServiceInfo) -> dict[str, Any]:
    """A call that can be sent as it stands."""
    items = list(info.knowledge.item_ids) or ["an item"]
    users = list(info.knowledge.user_ids)[:1] or ["a user"]
    tensors = {"user_id": users, "item_id": items}
    return {"inputs": [{"name": name, "datatype": "BYTES", "shape": [len(values)], "data": values} for name, values in tensors.items()]}


def parsed(body: bytes, header: str | None) -> tuple[InferRequest, list[Tensor]]:
    """A call and its tensors, from JSON alone or from JSON with bytes behind it.

    Raises:
        RequestProblemError: it is not such a thing.
    """
    if header is not None and (len(header) > 12 or not (header.isascii() and header.isdecimal()) or int(header) > len(body)):
        raise refusal(f"{LENGTH_HEADER} = {header[:40]!r} of a body of {len(body)} bytes.", "It is the length of the JSON that the body begins with.")
    length = len(body) if header is None else int(header)
    try:
        call = InferRequest.model_validate_json(body[:length])
    except ValidationError as error:
        first = error.errors()[0]
        raise refusal(f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}", "Send the protocol's JSON; /docs has an example.") from error
    place, tensors = length, []
    for one in call.inputs:
        size = one.parameters.binary_data_size
        if size is not None:
            if one.data is not None:
                raise refusal(f"input {one.name!r} has data and bytes.", "Send one of the two.")
            if place + size > len(body):
                raise refusal(f"input {one.name!r} has {size} bytes, and {len(body) - place} are left.", "Send the tensors' bytes in the inputs' order.")
            tensors.append(from_raw(one.name, one.datatype, tuple(one.shape), body[place : place + size]))
            place += size
        else:
            tensors.append(Tensor(one.name, one.datatype, tuple(one.shape), [_value(one, value) for value in _flat(one.data or [])]))
    if place != len(body):
        raise refusal(f"{len(body) - place} bytes are left after the last tensor.", "Give every tensor that has bytes its binary_data_size.")
    return call, tensors


def _flat(data: list[Any]) -> list[Any]:
    """Values in row-major order; the protocol takes nested lists too."""
    return [value for one in data for value in (_flat(one) if isinstance(one, list) else [one])]


def _value(tensor: InputTensor, value: Any) -> Value:
    if tensor.datatype == "BYTES" and isinstance(value, str):
        return value.encode()
    if tensor.datatype == "INT64" and isinstance(value, int) and not isinstance(value, bool):
        return value
    raise refusal(f"input {tensor.name!r} has {str(value)[:40]!r}, which is no {tensor.datatype}.", "BYTES are strings, INT64 whole numbers.")


def written(call: InferRequest, head: dict[str, str], outputs: list[Tensor], binary: set[str]) -> Response:
    """The answer: JSON, with the bytes of the outputs in `binary` behind it."""
    told: list[dict[str, Any]] = []
    raw = b""
    for tensor in outputs:
        one: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if tensor.name in binary:
            part = to_raw(tensor)
            one["parameters"] = {"binary_data_size": len(part)}
            raw += part
        else:
            one["data"] = list(tensor.values)
        told.append(one)
    text = json.dumps(head | ({"id": call.id} if call.id is not None else {}) | {"outputs": told}).encode()
    if not binary:
        return Response(text, media_type="application/json")
    return Response(text + raw, media_type="application/octet-stream", headers={LENGTH_HEADER: str(len(text))})
