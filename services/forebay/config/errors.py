"""The error of a configuration that cannot be used."""

from __future__ import annotations


class ConfigError(Exception):
    """The configuration cannot be used; the message names every problem, one a line."""
