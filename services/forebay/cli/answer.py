"""`forebay generate`: one prompt, its answer as it comes, and what it took."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forebay.cli.access import Access, wrong_usage
from forebay.cli.figures import duration, usd
from forebay.cli.terminal import in_lines, terminal
from forebay.client import Finished, ForebayClient, Message, Options, Started, TokenUsage, UsageEntry
from forebay.client.options import checked_options, checked_prompt
from forebay.errors import MeshError

LEDGER_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Bill:
    """What the ledger has of one request: a row for each attempt, and rows that correct others.

    Attributes:
        entries: the rows that have come.
        usage: the tokens that the router counted; the rows bill as many once all have come.
    """

    entries: tuple[UsageEntry, ...]
    usage: TokenUsage

    @property
    def cost_nano_usd(self) -> int:
        """The sum of all rows."""
        return sum(entry.cost_nano_usd for entry in self.entries)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt that are billed."""
        return sum(entry.prompt_tokens for entry in self.entries)

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer that are billed."""
        return sum(entry.completion_tokens for entry in self.entries)

    @property
    def complete(self) -> bool:
        """Whether the rows account for every token of the request."""
        return (
            bool(self.entries)
            and self.prompt_tokens >= self.usage.prompt
            and self.completion_tokens >= self.usage.completion
        )


@dataclass(frozen=True, slots=True)
class Told:
    """An answer that has been told to its end.

    Attributes:
        decode_s: seconds from the first token to the last.
        bill: what the ledger had of it in time.
    """

    started: Started
    finished: Finished
    decode_s: float
    bill: Bill

    @property
    def tokens_per_second(self) -> float | None:
        """The rate after the first token; None for fewer than two tokens."""
        tokens = self.finished.usage.completion - 1
        return tokens / self.decode_s if tokens > 0 and self.decode_s > 0 else None


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and its options, checked."""

    turns: Sequence[Message]
    options: Options


def request(prompt: str, system: str | None, options: Mapping[str, Any]) -> Request:
    """Returns a request of the command line; options that are None are not given.

    Raises:
        WrongUsage: a value cannot be sent.
    """
    turns = [*([Message("system", system)] if system is not None else []), Message("user", prompt)]
    with wrong_usage():
        return Request(checked_prompt(turns), checked_options(options))


async def tell(
    client: ForebayClient, prompt: str | Sequence[Message], options: Options, write: Callable[[str], None]
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
    bill = await ledger_rows(client, stream.started.request_id, stream.finished.usage)
    return Told(stream.started, stream.finished, last - first, bill)


async def ledger_rows(
    client: ForebayClient, request_id: str, usage: TokenUsage, within_s: float = LEDGER_WITHIN_S
) -> Bill:
    """Returns the ledger's rows of a request once they account for all of its tokens, or what has come after `within_s`.

    Each attempt has a row of its own; that of a worker that died comes up to a minute after the others.
    """
    bill = Bill((), usage)
    try:
        async with asyncio.timeout(within_s):
            async for page in client.usage(request_ids=[request_id], follow=True):
                bill = Bill(bill.entries + page.entries, usage)
                if bill.complete:
                    break
    except (TimeoutError, MeshError):
        pass  # the answer is there all the same
    return bill


async def generate(access: Access, request: Request) -> None:
    """Prints the answer to standard output, and a line about it to standard error, so that the answer can be piped."""
    pieces = 0

    def write(text: str) -> None:
        nonlocal pieces
        pieces += 1
        sys.stdout.write(text)
        sys.stdout.flush()

    async with access.client() as client:
        try:
            told = await tell(client, request.turns, request.options, write)
        finally:
            sys.stdout.write("\n" if pieces else "")
    console = terminal(stderr=True)
    console.print(in_lines(summary(told), console.width), style="dim", markup=False)


def summary(told: Told) -> list[str]:
    """Returns what an answer took, fact by fact."""
    usage, rate = told.finished.usage, told.tokens_per_second
    return [
        f"{usage.prompt:,} tokens in" + (f" ({usage.cached:,} cached)" if usage.cached else ""),
        f"{usage.completion:,} out ({', '.join(told.finished.reasons)})",
        _cost(told),
        f"first token {duration(told.finished.time_to_first_token)}",
        *([f"{rate:,.0f} tokens/s"] if rate else []),
        f"request {told.started.request_id}",
        *([f"trace {told.started.trace_id}"] if told.started.trace_id else []),
    ]


def _cost(told: Told) -> str:
    bill, usage = told.bill, told.finished.usage
    if bill.complete:
        return usd(bill.cost_nano_usd)
    later = f"forebay usage tail --request {told.started.request_id}"
    if not bill.entries:
        return f"not in the ledger yet, see `{later}`"
    billed, all_tokens = bill.prompt_tokens + bill.completion_tokens, usage.prompt + usage.completion
    return f"{usd(bill.cost_nano_usd)} so far for {billed:,} of {all_tokens:,} tokens, the rest follows: `{later}`"
