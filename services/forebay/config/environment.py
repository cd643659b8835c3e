"""Environment variables with the project's prefix: which are a service's fields, which are somebody else's, which are mistakes.

A mistyped variable is a setting that is not in force, and nothing would tell. So each variable that begins with FOREBAY_ must be
known: a field of this service, a variable of another service (which checks it itself), one of the command's, or one that
Kubernetes makes for a Service object of that name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

PREFIX = "FOREBAY_"
SERVICES = ("router", "quota", "scheduler", "worker", "metering")
# Those of the `forebay` command, which its processes inherit, and those of tests.
COMMAND_VARIABLES = frozenset(
    f"{PREFIX}{name}" for name in ("CA", "CERT", "CERT_KEY", "DATA", "KEY", "KILL_POINTS", "ROUTER", "TLS")
)
_TEST_PREFIX = "FOREBAY_TEST_"
# FOREBAY_ROUTER_SERVICE_HOST, FOREBAY_ROUTER_PORT_50051_TCP_ADDR and their like.
_KUBERNETES = re.compile(
    r"FOREBAY_[A-Z0-9_]*?((SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
# FOREBAY_ROUTER_PORT is tcp://10.0.0.1:50051 there.
_KUBERNETES_PORT = re.compile(r"FOREBAY_[A-Z0-9_]*PORT")


class Environment:
    """The variables of one service.

    Attributes:
        prefix: what the names of its fields' variables begin with.
    """

    def __init__(self, service: str, fields: Iterable[str], variables: Mapping[str, str]) -> None:
        """Takes the fields' names and the environment; the case of variables does not matter."""
        self.prefix = f"{PREFIX}{service.upper()}_"
        self._fields = {f"{self.prefix}{name.upper()}" for name in fields}
        self._ours = {name.upper(): value for name, value in variables.items() if name.upper().startswith(PREFIX)}

    def problems(self) -> list[str]:
        """Returns a sentence for each variable that nobody knows."""
        return [
            f"{name}: there is no such variable{self._meant(name)}"
            for name in sorted(self._ours)
            if self._unknown(name)
        ]

    def value(self, field: str) -> str | None:
        """Returns the variable of a field, or None."""
        return self._ours.get(f"{self.prefix}{field.upper()}")

    def source(self, place: tuple[str | int, ...]) -> str:
        """Returns the variable that sets the value at a place of the configuration; empty when none does."""
        parts = [str(part).upper() for part in place]
        for end in range(len(parts), 0, -1):
            name = self.prefix + "__".join(parts[:end])
            if name in self._ours:
                return name
        return ""

    def parts(self, place: tuple[str | int, ...]) -> list[str]:
        """Returns the variables that set parts of the value at a place."""
        inner = self.prefix + "__".join(str(part).upper() for part in place) + "__"
        return sorted(name for name in self._ours if name.startswith(inner)) if place else []

    def _unknown(self, name: str) -> bool:
        if name in COMMAND_VARIABLES or name.startswith(_TEST_PREFIX) or _KUBERNETES.fullmatch(name):
            return False
        if _KUBERNETES_PORT.fullmatch(name) and self._ours[name].startswith(("tcp://", "udp://", "sctp://")):
            return False
        if name.startswith(self.prefix):
            return name.partition("__")[0] not in self._fields
        return not name.startswith(tuple(f"{PREFIX}{service.upper()}_" for service in SERVICES))

    def _meant(self, name: str) -> str:
        field, nested, rest = name.partition("__")
        close = difflib.get_close_matches(field, [*self._fields, *COMMAND_VARIABLES], n=1, cutoff=0.75)
        return f"; did you mean {close[0]}{nested}{rest}?" if close else ""
