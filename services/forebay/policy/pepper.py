"""The pepper: the secret that goes into every key's hash, which quota and its routers share."""

from __future__ import annotations

from typing import Self

from pydantic import Field, FilePath, SecretStr, model_validator

from forebay.config import ServiceConfig

MIN_PEPPER_BYTES = 16


class PepperConfig(ServiceConfig):
    """The configuration of a service that hashes keys."""

    pepper: SecretStr | None = Field(
        None,
        description="secret that goes into the hash of every key, the same for quota and routers; or a pepper_file",
    )
    pepper_file: FilePath | None = Field(
        None, description="file with the pepper; white space around it does not belong to it"
    )

    @model_validator(mode="after")
    def _one_pepper(self) -> Self:
        if (self.pepper is None) == (self.pepper_file is None):
            raise ValueError("give either pepper or pepper_file")
        if len(self.pepper_bytes()) < MIN_PEPPER_BYTES:
            raise ValueError(f"the pepper must be at least {MIN_PEPPER_BYTES} bytes long")
        return self

    def pepper_bytes(self) -> bytes:
        """Returns the pepper."""
        if self.pepper is not None:
            return self.pepper.get_secret_value().encode()
        assert self.pepper_file is not None
        return self.pepper_file.read_bytes().strip()
