"""The configuration of a worker."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, DirectoryPath, Field, model_validator

from forebay.config import Address, Addresses, ServiceConfig, anywhere
from forebay.worker.vllm_config import VllmConfig


class SimulatedConfig(BaseModel):
    """What the simulated engine holds and how fast it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    free: bool = Field(
        False, description="steps take no time, to measure all the rest; otherwise as long as on an A10G"
    )
    speed: float = Field(1.0, gt=0, description="how many times faster than an A10G")
    window_tokens: int = Field(
        0, ge=0, description="how far a stream may run ahead of delivery, in tokens; 0 for no bound"
    )
    kv_tokens: int = Field(131_072, ge=1, description="tokens that the KV cache holds")
    block_tokens: int = Field(32, ge=1, description="tokens per KV block")
    max_num_seqs: int = Field(256, ge=1, description="requests in one step")
    max_num_batched_tokens: int = Field(2_048, ge=1, description="tokens computed in one step")
    max_model_len: int = Field(8_192, ge=2, description="prompt and completion of one request, in tokens")
    max_adapters: int = Field(4, ge=0, le=256, description="adapters loaded at a time; 0 for an engine that takes none")
    adapter_load_s: float = Field(0.05, ge=0, description="time that loading an adapter takes, on an A10G")

    @model_validator(mode="after")
    def _holds_one_request(self) -> Self:
        if self.kv_tokens < self.max_model_len + self.block_tokens:
            raise ValueError("kv_tokens must hold max_model_len and a block")
        return self


class WorkerConfig(ServiceConfig):
    """The fields of a worker besides those of all services."""

    service: ClassVar[str] = "worker"

    scheduler_address: Addresses = Field(description="host:port of the scheduler; of several, with commas between them")
    quota_address: Address = Field(description="host:port of the quota service, for tenants' isolation keys")
    metering_address: Address = Field(description="host:port of metering")
    advertise: Address | None = Field(
        None, description="host:port where routers reach this worker; the bound one by default"
    )
    pool: str = Field("", max_length=256, description="the pool it serves in; empty for the model's shared pool")
    model: str = Field(min_length=1, max_length=256, description="the model's name as clients know it")
    engine: Literal["vllm", "simulated"] = Field("vllm", description="what computes the tokens")
    model_directory: DirectoryPath | None = Field(None, description="the model's files; needed by vllm")
    vllm: VllmConfig = Field({}, validate_default=True, description="settings of the vllm engine")
    simulated: SimulatedConfig = Field({}, validate_default=True, description="settings of the simulated engine")
    max_unrecorded_events: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="attempts that run or whose usage events wait for metering; with more the worker takes no attempts",
    )
    spool_dir: Path | None = Field(
        None, description="directory of this worker alone, for usage events; without one they are lost with the process"
    )
    spool_bytes: int = Field(
        64 << 20, ge=64 << 10, description="usage events kept there; the directory may take about three times as much"
    )

    drain_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="how long attempts that run may go on after SIGTERM, in seconds; then other workers continue them",
    )

    @model_validator(mode="after")
    def _is_found(self) -> Self:
        if self.advertise is None and anywhere(self.listen):
            raise ValueError(f"advertise must be given: routers cannot be sent to {self.listen}")
        return self

    @model_validator(mode="after")
    def _has_model(self) -> Self:
        if self.engine == "vllm" and self.model_directory is None:
            raise ValueError("model_directory must be given for the vllm engine")
        return self
