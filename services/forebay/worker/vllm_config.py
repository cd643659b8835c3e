"""What an operator may set of vLLM: a section of the worker's configuration."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class VllmConfig(BaseModel):
    """How vLLM is started; the defaults suit a small model on a CPU. The model's directory is a field of the worker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str = Field("bfloat16", description="type of the weights, or auto")
    max_model_len: int | None = Field(
        1_024, ge=2, description="prompt and completion of one request, in tokens; none for what the model allows"
    )
    max_num_seqs: int = Field(16, ge=1, description="requests in one step")
    block_size: int = Field(32, ge=1, description="tokens per KV block; only whole blocks hit the prefix cache")
    kv_cache_memory_bytes: int | None = Field(
        128 << 20, ge=1, description="size of the KV cache; none for what the GPU has left"
    )
    enforce_eager: bool = Field(True, description="run without compiling; compiled, the CPU build answers wrongly")
    engine_args: dict[str, Any] = Field(
        {},
        description="further fields of vLLM's AsyncEngineArgs, such as tensor_parallel_size; they win over the above",
    )
