"""The Open Inference Protocol (KServe V2) over rankers: which tensors a ranker takes and gives, and what a call of them means.

A row is a pair of user and candidate. The REST routes (serve_apps.inference_routes) and the gRPC service (serve_apps.inference_grpc) turn bytes into these
tensors and back; neither knows what they mean.

    user_id  BYTES [1] or [rows]      one user for all rows, or one for each
    item_id  BYTES [rows]
    now      INT64 [1], optional      microseconds since 1970, UTC; by default the end of the run's logs
    <head>   FP32  [rows]             probabilities, in the rows' order
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np

from longtail.questions import Question, StatedItem
from serve_apps.problems import RequestProblemError
from serve_apps.rank_routes import Answer, a_few_at_a_time, answered
from serve_apps.schemas import EARLIEST, LATEST
from serve_apps.service_info import ModelInfo, ServiceInfo

Value = bytes | int | float

PLATFORM = "longtail_ray_serve"
INPUTS = (("user_id", "BYTES"), ("item_id", "BYTES"), ("now", "INT64"))
OUTPUT_TYPE = "FP32"
_INPUTS_ARE = f"Inputs are {', '.join(f'{name} ({kind})' for name, kind in INPUTS)}."
MAX_ID = 256  # characters, as in /v1
MAX_DIMS = 8
MAX_NAME = 256


@dataclass(frozen=True)
class Tensor:
    """A named tensor, its values flat."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[Value]


def refusal(detail: str, remedy: str) -> RequestProblemError:
    """A call that breaks a rule."""
    return RequestProblemError(422, "invalid-tensors", "The tensors break a rule", detail, remedy)


def served_model(info: ServiceInfo, name: str, version: str = "") -> ModelInfo:
    """The ranker of that name.

    Raises:
        RequestProblemError: none is serving, or not in that version.
    """
    for model in info.models:  # the stable release's first
        if model.name == name and version in ("", model.version):
            return model
    asked = f"model {name[:MAX_NAME]!r}" + (f" version {version[:MAX_NAME]!r}" if version else "")
    there = ", ".join(f"{model.name} {model.version}" for model in info.models)
    raise RequestProblemError(404, "unknown-ranker", "No such ranker", f"{asked} is not serving.", f"Serving are {there}.")


async def infer(info: ServiceInfo, answer: Answer, name: str, version: str, inputs: Sequence[Tensor], wanted: Sequence[str]) -> tuple[ModelInfo, list[Tensor]]:
    """Score rows of users and candidates; one question for each distinct user, all at the same time.

    Raises:
        RequestProblemError: the ranker is not serving, or a tensor is missing, unknown or of another type or shape.
    """
    model = served_model(info, name, version)
    heads = info.knowledge.heads.get(name)
    if heads is None:  # a canary's, whose ranker the stable release does not have
        raise RequestProblemError(404, "unknown-ranker", "No such ranker", f"{name!r} is not in the stable release.", "Promote the release that has it.")
    strange = [head for head in wanted if head not in heads]
    if strange:
        raise refusal(f"output {strange[0][:MAX_NAME]!r} is none of {name!r}.", f"Its outputs are {list(heads)}.")
    if len(set(wanted)) < len(wanted):
        raise refusal("an output is asked for more than once.", "Name each once.")
    asked = tuple(wanted) or heads
    tensors = {tensor.name: tensor for tensor in inputs}
    if len(tensors) < len(inputs):
        raise refusal("two inputs have the same name.", _INPUTS_ARE)
    users, items, now = rows_of(tensors, info)
    rows_of_user: dict[str, list[int]] = {}
    for row, user in enumerate(users):
        rows_of_user.setdefault(user, []).append(row)
    if len(rows_of_user) > info.max_batch:
        raise refusal(f"{len(rows_of_user)} distinct users, and at most {info.max_batch} are taken.", "Send several calls, or raise serve.max_batch.")
    questions = []
    for user, rows in rows_of_user.items():
        candidates = tuple(StatedItem(item) for item in dict.fromkeys(items[row] for row in rows))
        if len(candidates) > info.max_items:
            raise refusal(f"{len(candidates)} candidates of one user, and at most {info.max_items} are taken.", "Send several calls, or raise serve.max_items.")
        questions.append(Question(user, candidates, name, heads=asked, now=now, release=model.release if version else None))
    scores = np.zeros((len(items), len(asked)), np.float32)
    rankings = await a_few_at_a_time([partial(answered, question, answer) for question in questions])
    for ranking, rows in zip(rankings, rows_of_user.values(), strict=True):
        by_item = {item.item_id: item.scores for item in ranking.items}
        for row in rows:
            scores[row] = by_item[items[row]]
    return model, [Tensor(head, OUTPUT_TYPE, (len(items),), scores[:, place].tolist()) for place, head in enumerate(asked)]


def rows_of(tensors: Mapping[str, Tensor], info: ServiceInfo) -> tuple[list[str], list[str], datetime | None]:
    """Users and candidates by row, and the time of the call.

    Raises:
        RequestProblemError: a tensor is missing, unknown, or of another type or shape than a ranker takes.
    """
    types = dict(INPUTS)
    for name, tensor in tensors.items():
        if name not in types:
            raise refusal(f"input {name[:MAX_NAME]!r} is not known.", _INPUTS_ARE)
        if tensor.datatype != types[name]:
            raise refusal(f"input {name!r} is {tensor.datatype[:MAX_NAME]}.", f"It must be {types[name]}.")
        # Looked at before it is multiplied: numbers of thousands of digits would take minutes.
        fits = len(tensor.shape) <= MAX_DIMS and all(0 <= dim <= len(tensor.values) for dim in tensor.shape)
        if not fits or math.prod(tensor.shape) != len(tensor.values):
            shape = str(list(tensor.shape[:MAX_DIMS]))[:MAX_NAME]
            raise refusal(f"input {name!r} has shape {shape} and {len(tensor.values)} values.", "Their numbers must agree.")
        most = info.max_items * info.max_batch
        if len(tensor.values) > most:
            raise refusal(f"input {name!r} has {len(tensor.values)} rows, and at most {most} are taken.", "Send several calls, or raise serve.max_batch.")
    for name in ("user_id", "item_id"):
        if name not in tensors or not tensors[name].values:
            raise refusal(f"input {name!r} is missing or empty.", "Send user_id (BYTES [1] or [rows]) and item_id (BYTES [rows]).")
    users, items = (_ids(tensors[name]) for name in ("user_id", "item_id"))
    if len(users) == 1:
        users = users * len(items)
    if len(users) != len(items):
        raise refusal(f"user_id has {len(users)} values and item_id {len(items)}.", "Send one user, or one for each row.")
    return users, items, _time(tensors["now"]) if "now" in tensors else None


def _ids(tensor: Tensor) -> list[str]:
    found = []
    for value in tensor.values:
        assert isinstance(value, bytes)
        try:
            text = value.decode()
        except UnicodeDecodeError as error:
            raise refusal(f"input {tensor.name!r} has a value that is no UTF-8: {value[:40]!r}.", "Encode ids as UTF-8.") from error
        if not 0 < len(text) <= MAX_ID:
            raise refusal(f"input {tensor.name!r} has an id of {len(text)} characters.", f"Ids have 1 to {MAX_ID}.")
        found.append(text)
    return found


def _time(tensor: Tensor) -> datetime:
    if len(tensor.values) != 1:
        raise refusal(f"input 'now' has {len(tensor.values)} values.", "It has one: all rows of a call are of one time.")
    (value,) = tensor.values
    micros = int(value)
    if not EARLIEST.timestamp() * 1e6 <= micros < LATEST.timestamp() * 1e6:
        raise refusal(f"input 'now' = {micros}.", f"Send microseconds since 1970, UTC, before {LATEST:%Y}.")
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)


_RAW: Mapping[str, np.dtype[np.generic]] = {"INT64": np.dtype("<i8"), "FP32": np.dtype("<f4")}


def from_raw(name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> Tensor:
    """A tensor from its bytes, as the binary extension and gRPC's raw contents have them: little-endian numbers, or lengths (uint32) and texts in turn.

    Raises:
        RequestProblemError: the bytes are cut short, or of a type that no ranker takes.
    """
    if datatype == "BYTES":
        values: list[Value] = []
        place = 0
        while place < len(raw):
            if place + 4 > len(raw) or (end := place + 4 + struct.unpack_from("<I", raw, place)[0]) > len(raw):
                raise refusal(f"input {name!r}: its {len(raw)} bytes end within a value.", "Each value is its length (uint32, little-endian) and its bytes.")
            values.append(raw[place + 4 : end])
            place = end
        return Tensor(name, datatype, shape, values)
    if datatype not in _RAW or len(raw) % _RAW[datatype].itemsize:
        raise refusal(f"input {name!r}: {len(raw)} bytes are no values of type {datatype}.", _INPUTS_ARE)
    return Tensor(name, datatype, shape, np.frombuffer(raw, _RAW[datatype]).tolist())


def to_raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor of numbers."""
    return np.asarray(tensor.values, _RAW[tensor.datatype]).tobytes()
