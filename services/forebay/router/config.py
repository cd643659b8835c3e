"""The router's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, DirectoryPath, Field, field_validator, model_validator

from forebay.config import Address, Addresses, PublicTlsConfig, exposed
from forebay.policy.pepper import PepperConfig
from forebay.rpc.server import MAX_MESSAGE_BYTES

# What a request may have beside its prompt.
MAX_REST_BYTES = 64 << 10


class ModelConfig(BaseModel):
    """One model that requests may name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[A-Za-z0-9._/-]{1,128}$",
        description="the name to use in requests",
        json_schema_extra={"form": "1 to 128 of A-Z, a-z, 0-9 and ._/-"},
    )
    directory: DirectoryPath = Field(
        description="the model's files: tokenizer.json, tokenizer_config.json, chat_template.jinja"
    )
    context_tokens: int = Field(ge=2, le=10_000_000, description="prompt and completion together, in tokens")
    default_max_tokens: int = Field(256, ge=1, description="what max_tokens is when a request leaves it unset")


class RouterConfig(PepperConfig):
    """What a router must be told, and what it may be."""

    service: ClassVar[str] = "router"
    public: ClassVar[bool] = True

    quota_address: Address = Field(description="host:port of quota")
    scheduler_address: Addresses = Field(description="host:port of the scheduler; of several, with commas between them")
    metering_address: Address = Field(description="host:port of metering")
    models: tuple[ModelConfig, ...] = Field(min_length=1, description="the models that requests may name")
    dependency_wait_s: float = Field(5.0, gt=0, le=60, description="how long quota may be away")
    scheduler_wait_s: float = Field(
        10.0,
        gt=0,
        le=60,
        description="how long there may be no leading scheduler; after a crash another leads within 4 s",
    )
    policy_honour_s: float = Field(30.0, ge=0, le=3600, description="how long policies count while quota is away")
    default_deadline_s: float = Field(600.0, gt=0, le=86_400, description="a request's time if its client sets none")
    usage_wait_s: float = Field(5.0, gt=0, le=60, description="wait for a cancelled request's usage")
    max_requests: int = Field(4096, ge=1, le=4096, description="requests at a time; further ones are UNAVAILABLE")
    max_tenant_requests: int = Field(
        1024,
        ge=1,
        le=4096,
        description="those of one tenant at a time; also its long prompts that wait to be tokenised",
    )
    max_prompt_bytes: int = Field(1 << 20, ge=1, le=8 << 20, description="the most text in one prompt")
    max_attempts: int = Field(8, ge=1, le=16, description="executions of one request before it is given up")
    prefix_block_tokens: int = Field(
        32, ge=1, le=4096, description="tokens per prefix hash; best the engine's KV block"
    )
    tokenizer_processes: int = Field(
        2,
        ge=1,
        le=64,
        description="processes that tokenise prompts above half a kilobyte; of several, one tenant has at most all but one",
    )
    warm_tokenizers: bool = Field(True, description="start them with the router, and not with the first long prompt")
    public_tls: PublicTlsConfig | None = Field(
        None, description="TLS for clients; none leaves it to what stands in front"
    )
    journal_file: Path | None = Field(
        None,
        description="file of what was admitted while quota was away, for tenants that fail open; without it nobody is. "
        "For how long quota says, and no longer than policy_honour_s",
    )
    slow_client_s: float = Field(
        60.0, gt=0, le=3600, description="a client that reads nothing for this long while there is something is cut off"
    )
    flushers: int = Field(4, ge=1, le=64, description="tasks that write to clients")

    drain_s: float = Field(
        120.0,
        ge=0,
        le=3600,
        description="how long requests that run may go on after SIGTERM, in seconds; then they end as UNAVAILABLE, DRAINING",
    )

    @property
    def max_message_bytes(self) -> int:
        """The largest request: a prompt that is somewhat too long is still told so in a typed error, as text or as ids."""
        longest_ids = 5 * max(model.context_tokens for model in self.models)
        return min(max(2 * self.max_prompt_bytes, longest_ids) + MAX_REST_BYTES, MAX_MESSAGE_BYTES)

    @field_validator("channelz")
    @classmethod
    def _no_channelz(cls, offered: bool) -> bool:
        if offered:
            raise ValueError("a router's port is public, and channelz shows every tenant's connections; leave it off")
        return offered

    def warnings(self) -> list[str]:
        """Returns what an operator should hear of at each start."""
        if self.public_tls is not None or not exposed(self.listen):
            return []
        return [f"{self.listen} is served without TLS: keys, prompts and answers travel in plaintext; give public_tls"]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError("models: two models have one name")
        return self
