"""The prices in force: one table at a time, and everyone who wants to know of the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from forebay.metering.domain.prices import PriceTable


@dataclass(frozen=True, slots=True)
class Edition:
    """A price table with its number, which grows with each change."""

    version: int
    table: PriceTable


class PriceBook:
    """Holds the current edition.

    Attributes:
        current: what is priced with now.
    """

    def __init__(self, table: PriceTable, version: int) -> None:
        """Begins with `table`; `version` is a time, so that versions grow over restarts as well."""
        self.current = Edition(version, table)
        self._changed = asyncio.Event()

    def replace(self, table: PriceTable, version: int) -> None:
        """Puts another table in force from the next commit on."""
        self.current = Edition(max(version, self.current.version + 1), table)
        self._changed.set()
        self._changed = asyncio.Event()

    async def editions(self) -> AsyncIterator[Edition]:
        """Yields the current edition and then each newest one; a slow reader skips those that came in between."""
        while True:
            changed = self._changed
            yield self.current
            await changed.wait()
