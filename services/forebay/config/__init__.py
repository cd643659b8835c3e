"""What every service's configuration has in common: one validated object from one file and the environment."""

from forebay.config.addresses import Address, Addresses, anywhere, exposed, host_and_port
from forebay.config.errors import ConfigError
from forebay.config.service import PublicTlsConfig, ServiceConfig, TlsConfig

__all__ = [
    "Address",
    "Addresses",
    "ConfigError",
    "PublicTlsConfig",
    "ServiceConfig",
    "TlsConfig",
    "anywhere",
    "exposed",
    "host_and_port",
]
