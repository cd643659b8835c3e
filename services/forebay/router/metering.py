"""The metering port: what this router saw of each attempt, for the case that the worker's own word is lost for good (rule P5)."""

from __future__ import annotations

from typing import Protocol

from forebay.router.domain.decisions import Report
from forebay.router.request import Request


class Metering(Protocol):
    """Takes reports. Nothing here waits or raises."""

    def report(self, request: Request, report: Report) -> None:
        """Brings a report to metering, which drops it where the worker's own is there, or comes within a minute."""
        ...


class MemoryMetering:
    """The port's in-memory twin.

    Attributes:
        reports: each report with its request's id, in order.
    """

    def __init__(self) -> None:
        self.reports: list[tuple[str, Report]] = []

    def report(self, request: Request, report: Report) -> None:
        """Keeps it."""
        self.reports.append((request.id, report))
