"""`forebay generate`: one prompt, its answer as it comes, and what it took."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from forebay.cli.figures import duration, usd
from forebay.cli.terminal import terminal
from forebay.client import Finished, ForebayClient, Message, Options, Started, UsageEntry
from forebay.errors import MeshError

LEDGER_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Told:
    """An answer that has been told to its end.

    Attributes:
        decode_s: seconds from the first token to the last.
        entry: the ledger's row; None when it did not come in time.
    """

    started: Started
    finished: Finished
    decode_s: float
    entry: UsageEntry | None

    @property
    def tokens_per_second(self) -> float | None:
        """The rate after the first token; None for fewer than two tokens."""
        tokens = self.finished.usage.completion - 1
        return tokens / self.decode_s if tokens > 0 and self.decode_s > 0 else None


async def tell(
    client: ForebayClient, prompt: str | list[Message], options: Options, write: Callable[[str], None]
) -> Told:
    """Sends a prompt and hands each piece of the answer's text to `write`.

    Raises:
        MeshError: the request was refused, or failed.
    """
    stream = client.stream(prompt, **options)
    first = last = 0.0
    async for delta in stream:
        last = time.monotonic()
        first = first or last
        write(delta.text)
    assert stream.started  # a stream that ends without raising has both
    assert stream.finished
    return Told(stream.started, stream.finished, last - first, await ledger_entry(client, stream.started.request_id))


async def ledger_entry(client: ForebayClient, request_id: str) -> UsageEntry | None:
    """Returns the ledger's row of a request, once it is there; None if that takes too long."""
    try:
        async with asyncio.timeout(LEDGER_WITHIN_S):
            async for page in client.usage(request_ids=[request_id], follow=True):
                for entry in page.entries:
                    return entry
    except (TimeoutError, MeshError):
        pass  # the answer is there all the same
    return None


async def generate(address: str, key: str, prompt: str, system: str | None, options: Options) -> None:
    """Prints the answer to standard output, and a line about it to standard error, so that the answer can be piped."""
    pieces = 0

    def write(text: str) -> None:
        nonlocal pieces
        pieces += 1
        sys.stdout.write(text)
        sys.stdout.flush()

    turns = [*([Message("system", system)] if system else []), Message("user", prompt)]
    async with ForebayClient(address, key) as client:
        try:
            told = await tell(client, turns, options, write)
        finally:
            sys.stdout.write("\n" if pieces else "")
    terminal(stderr=True).print(summary(told), style="dim")


def summary(told: Told) -> str:
    """Returns what an answer took, in one line."""
    usage, rate = told.finished.usage, told.tokens_per_second
    parts = [
        f"{usage.prompt} tokens in" + (f" ({usage.cached} cached)" if usage.cached else ""),
        f"{usage.completion} out ({', '.join(told.finished.reasons)})",
        usd(told.entry.cost_nano_usd) if told.entry else "not in the ledger yet",
        f"first token {duration(told.finished.time_to_first_token)}",
        *([f"{rate:,.0f} tokens/s"] if rate else []),
        f"request {told.started.request_id}",
        *([f"trace {told.started.trace_id}"] if told.started.trace_id else []),
    ]
    return " · ".join(parts)
