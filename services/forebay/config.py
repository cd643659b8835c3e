"""What every service's configuration has in common: one validated object from one file and the environment.

A value comes from, in this order: the environment (FOREBAY_<SERVICE>_<FIELD>, nested fields joined by two underscores), the YAML
file, the default. Unknown fields are errors, and every problem is reported at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FilePath, ValidationError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from forebay.field_problems import problems_of

_NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


class ConfigError(Exception):
    """The configuration cannot be used; the message names every problem, one a line."""


def host_and_port(value: str) -> str:
    """Returns `value` if it is host:port.

    Raises:
        ValueError: it is not.
    """
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ValueError("give it as host:port, such as 127.0.0.1:7001")
    return value


def anywhere(listen: str) -> bool:
    """Returns whether an address to listen on is every interface's, so that nobody elsewhere can be told to connect to it."""
    return listen.rpartition(":")[0] in ("0.0.0.0", "[::]", "::", "*")  # noqa: S104 - compared, not bound


# host:port, as every address in a configuration.
Address = Annotated[str, AfterValidator(host_and_port)]


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


# The replicas of one service: a list, or one text with commas between them.
Addresses = Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)]


class TlsConfig(BaseModel):
    """A service's certificate and the authority of its peers, as PEM files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca_file: FilePath = Field(description="certificates of the authorities that peers must be vouched for by")
    certificate_file: FilePath = Field(description="this service's certificate chain, leaf first")
    key_file: FilePath = Field(description="its private key")

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """The three files."""
        return self.ca_file, self.certificate_file, self.key_file


class PublicTlsConfig(BaseModel):
    """A certificate that the public sees; its clients have none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    certificate_file: FilePath = Field(description="the certificate chain, leaf first")
    key_file: FilePath = Field(description="its private key")

    @property
    def files(self) -> tuple[Path, Path]:
        """The two files."""
        return self.certificate_file, self.key_file


class ServiceConfig(BaseSettings):
    """The fields of all services; each service adds its own in a subclass that sets `service`."""

    service: ClassVar[str]

    model_config = SettingsConfigDict(extra="forbid", env_nested_delimiter="__", frozen=True, validate_default=True)

    id: str = Field(pattern=_NAME, description="this replica's name, unique among the service's replicas")
    listen: Address = Field("127.0.0.1:0", description="host:port of the gRPC server; port 0 takes a free one")
    metrics_listen: Address | None = Field(None, description="host:port of Prometheus' /metrics; none by default")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level that is logged")
    otlp_endpoint: str | None = Field(None, description="OTLP/gRPC address for traces, such as http://127.0.0.1:4317")
    trace_file: Path | None = Field(
        None, description="where traces go without an OTLP endpoint; none turns tracing off"
    )
    trace_ratio: float = Field(
        1.0, ge=0, le=1, description="share of requests traced that bring no decision of their own"
    )
    drain_seconds: float = Field(10.0, ge=0, le=3600, description="how long running calls may go on after SIGTERM")
    tls: TlsConfig | None = Field(None, description="mutual TLS with the other services; none is for development alone")
    max_connections: int = Field(1_024, ge=1, le=65_536, description="connections at a time; further ones are closed")
    channelz: bool = Field(False, description="offer grpc.channelz.v1 for debugging")

    @classmethod
    def load(cls, file: Path | None = None) -> Self:
        """Reads the configuration.

        Raises:
            ConfigError: the file cannot be read, or fields are wrong; all problems in one message.
        """
        values = _read(file) if file else {}
        try:
            return cls(_env_prefix=f"FOREBAY_{cls.service.upper()}_", **values)  # type: ignore[call-arg]
        except ValidationError as error:
            raise ConfigError(_explain(cls.service, file, error)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Puts the environment before the file."""
        return env_settings, init_settings

    @classmethod
    def explain_fields(cls) -> str:
        """Returns one line for each field, for --help; the fields of a field stand below it."""
        return "\n".join(_explain_fields(cls, "  "))


def _explain_fields(model: type[BaseModel], indent: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        value = "none" if default in (None, "", (), {}) else default
        yield f"{indent}{name}: {field.description or ''} ({'required' if field.is_required() else f'default {value}'})"
        for part in _models_in(field.annotation):
            yield from _explain_fields(part, indent + "  ")


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Returns the models of which a field's value is made, be it one, many or none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except _NOT_YAML as error:
        raise ConfigError(_explain_yaml(file, error)) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: must hold `field: value` lines")
    return values


# What PyYAML raises besides its own errors: for a 13th month, a thousand brackets, a date or truth value by its tag that is none.
_NOT_YAML = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def _explain_yaml(source: object, error: Exception) -> str:
    """Returns what to say of a text that cannot be read as YAML: the line where that is known, and what to look for."""
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark is not None else ""
    return (
        f"{source}{line}: is not YAML; look for a wrong indent, colon, quote or bracket, or a date that does not exist"
    )


def _explain(service: str, file: Path | None, error: ValidationError) -> str:
    problems = list(problems_of(error))
    lines = [f"{file or 'environment'}: {len(problems)} problem(s) in the configuration of {service}:"]
    for place, problem in problems:
        lines.append(f"  {'.'.join(map(str, place)) or '(whole)'}: {problem}")
    return "\n".join(lines)
