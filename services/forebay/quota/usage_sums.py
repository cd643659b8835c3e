"""The port to the ledger's sums, and its in-memory twin."""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol


class By(enum.Enum):
    """What a tenant's usage is added up by."""

    TENANT = "tenant"
    KEY = "key"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Used:
    """What the ledger has: attempts, prompt and completion tokens together, and nano-USD."""

    attempts: int = 0
    tokens: int = 0
    cost_nano_usd: int = 0

    def __add__(self, other: Used) -> Used:
        """Returns the sum."""
        return Used(
            self.attempts + other.attempts, self.tokens + other.tokens, self.cost_nano_usd + other.cost_nano_usd
        )


class UsageSums(Protocol):
    """Adds the ledger up; MeshError when it cannot be reached."""

    async def used(
        self,
        tenant_id: str,
        since_ms: int = 0,
        before_ms: int | None = None,
        *,
        by: By = By.TENANT,
        without: Collection[str] = (),
    ) -> Mapping[str, Used]:
        """Returns what a tenant used in attempts that ended in a time, by key or model or as a whole (under "").

        Args:
            tenant_id: whose.
            since_ms: attempts that ended then or later, in ms since the epoch.
            before_ms: attempts that ended before; None for all.
            by: what to add up by; a key or model without any usage is left out.
            without: request ids that are left out.
        """


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of the twin's ledger."""

    request_id: str
    tenant_id: str
    used: Used
    ended_ms: int
    key_id: str = ""
    model: str = ""


class InMemorySums:
    """The twin, over a list of attempts."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    async def used(
        self,
        tenant_id: str,
        since_ms: int = 0,
        before_ms: int | None = None,
        *,
        by: By = By.TENANT,
        without: Collection[str] = (),
    ) -> Mapping[str, Used]:
        """Returns what a tenant used in attempts that ended in a time."""
        sums: defaultdict[str, Used] = defaultdict(Used)
        for attempt in self.attempts:
            within = since_ms <= attempt.ended_ms and (before_ms is None or attempt.ended_ms < before_ms)
            if attempt.tenant_id == tenant_id and within and attempt.request_id not in without:
                sums[{By.TENANT: "", By.KEY: attempt.key_id, By.MODEL: attempt.model}[by]] += attempt.used
        return sums
