"""A service's configuration: one validated object from one file and the environment.

A value comes from, in this order: the environment (FOREBAY_<SERVICE>_<FIELD>, nested fields joined by two underscores), the YAML
file, the default. Unknown fields and variables are errors. Every problem is reported at once, in plain words, with the line of
the file or the variable that it comes from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FilePath, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from forebay.config.addresses import Address, exposed
from forebay.config.environment import Environment
from forebay.config.errors import ConfigError
from forebay.config.file import ConfigFile
from forebay.config.problems import models_in, words

_NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
# Fields that had another name: the new name by the old.
_RENAMED = {"drain_seconds": "drain_s"}


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
    # Whether `listen` is for the public, whose TLS is `public_tls`.
    public: ClassVar[bool] = False

    model_config = SettingsConfigDict(extra="forbid", env_nested_delimiter="__", frozen=True, validate_default=True)

    id: str = Field(
        pattern=_NAME,
        description="this replica's name, unique among the service's replicas",
        json_schema_extra={"form": "1 to 63 of a-z, 0-9 and -, with a letter or a digit at either end"},
    )
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
    drain_s: float = Field(
        10.0, ge=0, le=3600, description="how long calls that run may go on after SIGTERM, in seconds"
    )
    tls: TlsConfig | None = Field(None, description="mutual TLS with the other services; none is for development alone")
    allow_plaintext: bool = Field(
        False,
        description="serve without TLS on an address that other machines reach; for a network that is itself private",
    )
    max_connections: int = Field(1_024, ge=1, le=65_536, description="connections at a time; further ones are closed")
    channelz: bool = Field(False, description="offer grpc.channelz.v1 for debugging")

    @classmethod
    def load(cls, file: Path | None = None) -> Self:
        """Reads the configuration.

        Raises:
            ConfigError: the file cannot be read, or fields are wrong; all problems in one message.
        """
        source = ConfigFile.read(file) if file else ConfigFile()
        environment = Environment(cls.service, [*cls.model_fields, *_RENAMED], os.environ)
        problems = environment.problems()
        values = _with_new_names(source, environment)
        for name in [name for name in values if name.startswith("_")]:  # the library's own settings do
            del values[name]
            problems.append(_at(name, "there is no such field", source.where((name,))))
        config = None
        try:
            config = cls(_env_prefix=environment.prefix, **values)  # type: ignore[call-arg]
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                place = problem["loc"]
                problems.append(_at(".".join(map(str, place)), words(cls, problem), _where(source, environment, place)))
        except SettingsError as error:
            field = (re.findall(r'field "([^"]+)"', str(error)) or ["?"])[0]
            what = "must be JSON, such as [] or {}"
            problems.append(_at(field, what, environment.source((field,)) or "environment"))
        if config is not None and (objection := config.objection()):
            problems.append(_at("listen", objection, _where(source, environment, ("listen",))))
        if config is None or problems:
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            raise ConfigError(
                "\n".join([f"{count} in the configuration of {cls.service}:", *(f"  {each}" for each in problems)])
            )
        return config

    def objection(self) -> str:
        """Returns why the service may not be run so; empty if it may."""
        if self.public or self.tls is not None or self.allow_plaintext or not exposed(self.listen):
            return ""
        return (
            f"other machines reach {self.listen}, and without tls whoever they are may call this service and read along; "
            "give tls, listen on 127.0.0.1, or say allow_plaintext: true where the network itself is private"
        )

    def warnings(self) -> list[str]:
        """Returns what an operator should hear of at each start."""
        if self.public or self.tls is not None or not exposed(self.listen):
            return []
        return [
            f"{self.listen} is served without TLS: any machine that reaches it may call this service and read along"
        ]

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
        for part in models_in(field.annotation):
            yield from _explain_fields(part, indent + "  ")


def _with_new_names(source: ConfigFile, environment: Environment) -> dict[str, Any]:
    """Returns the file's values, with those that the file or the environment gives under an old name under their new one."""
    values = dict(source.values)
    for old, new in _RENAMED.items():
        if old in values:
            values.setdefault(new, values.pop(old))
            values.pop(old, None)
        if (value := environment.value(old)) is not None:
            values[new] = value  # the variable of the new name, if there is one, still goes before it
    return values


def _where(source: ConfigFile, environment: Environment, place: tuple[str | int, ...]) -> str:
    """Returns where a value comes from: a variable, or a line of the file, or both."""
    if variable := environment.source(place):
        return variable
    sources = environment.parts(place)
    if source.path is not None and (not sources or source.has(str(place[0]))):
        sources.insert(0, source.where(place))
    return " and ".join(sources) or f"in a file, or as {environment.prefix}{'__'.join(map(str, place)).upper()}"


def _at(field: str, what: str, where: str) -> str:
    return f"{field or '(all of it)'}: {what} ({where})"
