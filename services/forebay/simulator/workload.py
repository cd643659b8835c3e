"""Who asks for what, and when: from a CSV file, or made up.

The generator resembles a day's traffic of a public chat service rather than anybody's record of it: a few clients send most
of the requests, each at times of its own (Poisson), and lengths are lognormal, many short and a few long.
"""

import csv
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from forebay.errors import Code, FieldViolation, MeshError

COLUMNS = ("t", "client", "prompt_len", "output_len")
MAX_FAULTS = 20
"""How many faulty lines of a file are named before the rest is not looked at."""

MAX_REQUESTS = 1_000_000
MAX_SECONDS = 7 * 86_400
MAX_TOKENS = 1_000_000_000
"""The largest trace that is read: so many requests, the last so long after the start, of so many tokens each."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request.

    Attributes:
        at: when it comes, in seconds from the start.
        client: whose it is.
        prompt: its prompt's tokens.
        output: tokens that it would yield; nobody knows before its end.
        max_tokens: the most that it asks for; 0 for what the setting says.
    """

    at: float
    client: str
    prompt: int
    output: int
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Stream:
    """A client that sends at a steady mean rate.

    Attributes:
        client: its name.
        per_second: mean rate of its requests.
        prompt, output: the smallest and the largest number of tokens; every number between is as likely.
    """

    client: str
    per_second: float
    prompt: tuple[int, int]
    output: tuple[int, int]


def steady(streams: Iterable[Stream], seconds: float, seed: int) -> list[Arrival]:
    """Returns Poisson arrivals of all streams; a stream's own do not depend on which others there are."""
    arrivals = []
    for stream in streams:
        chance = random.Random(f"{seed} {stream.client}")
        at = chance.expovariate(stream.per_second)
        while at < seconds:
            arrivals.append(Arrival(at, stream.client, chance.randint(*stream.prompt), chance.randint(*stream.output)))
            at += chance.expovariate(stream.per_second)
    return _sorted(arrivals)


def chat(
    seed: int, *, clients: int = 27, requests: int = 1_500, seconds: float = 600.0, max_len: int = 1_024
) -> list[Arrival]:
    """Returns chat traffic of clients of very different size: the k-th sends about a fifth less than the one before.

    Args:
        seed: makes the run repeatable.
        clients: how many; named "0", "1" and so on, the busiest first.
        requests: the mean of their number, all clients together.
        seconds: the span in which they come.
        max_len: the longest prompt, and the longest completion, in tokens.
    """
    chance = random.Random(seed)
    shares = [0.8**k for k in range(clients)]
    arrivals = []
    for client, share in enumerate(shares):
        rate = requests * share / sum(shares) / seconds
        at = chance.expovariate(rate)
        while at < seconds:
            prompt, output = chance.lognormvariate(3.8, 1.6), chance.lognormvariate(5.3, 1.3)
            arrivals.append(Arrival(at, str(client), _within(prompt, max_len), _within(output, max_len // 2)))
            at += chance.expovariate(rate)
    return _sorted(arrivals)


def flood(clients: Sequence[tuple[str, int, int]], seconds: float, tokens_per_second: float) -> list[Arrival]:
    """Returns clients that each ask for more than there is, evenly in time.

    Args:
        clients: name, prompt tokens and output tokens of each.
        seconds: the span in which they ask.
        tokens_per_second: prompt and output tokens that each asks for.
    """
    arrivals = []
    for number, (client, prompt, output) in enumerate(clients):
        gap = (prompt + output) / tokens_per_second
        offset = gap * number / len(clients)
        arrivals += [Arrival(offset + k * gap, client, prompt, output) for k in range(int(seconds / gap))]
    return _sorted(arrivals)


def read_csv(file: Path) -> list[Arrival]:
    """Reads a trace with the columns t, client, prompt_len, output_len; lines may come in any order.

    Raises:
        MeshError: INVALID_ARGUMENT BAD_TRACE, with a violation for each faulty line, or NOT_FOUND.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:  # spreadsheets put a mark before the first column
            rows = csv.DictReader(lines)
            missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
            if missing:
                raise _bad(
                    file, [FieldViolation("line 1", f"lacks {', '.join(missing)} of the columns {','.join(COLUMNS)}")]
                )
            return _read_rows(file, rows)
    except FileNotFoundError:
        raise MeshError(Code.NOT_FOUND, "NO_TRACE", f"there is no file {file}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MeshError(Code.INVALID_ARGUMENT, "BAD_TRACE", f"{file} cannot be read as CSV: {error}") from None


def _read_rows(file: Path, rows: "csv.DictReader[str]") -> list[Arrival]:
    arrivals: list[Arrival] = []
    faults: list[FieldViolation] = []
    for row in rows:
        if len(arrivals) == MAX_REQUESTS:
            fault = f"is one more than {MAX_REQUESTS:,} requests; end the file before it"
            raise _bad(file, [FieldViolation(f"line {rows.line_num}", fault)])
        try:
            arrivals.append(_arrival(row))
        except ValueError as error:
            faults.append(FieldViolation(f"line {rows.line_num}", str(error)))
            if len(faults) == MAX_FAULTS:
                break
    if faults:
        raise _bad(file, faults)
    if not arrivals:
        raise _bad(file, [FieldViolation("line 2", "there are no requests")])
    return _sorted(arrivals)


def _arrival(row: dict[str, str]) -> Arrival:
    if any(row[column] is None for column in COLUMNS):
        raise ValueError("has fewer columns than the head")
    numbers = {}
    kinds = (("t", float, 0, MAX_SECONDS), ("prompt_len", int, 1, MAX_TOKENS), ("output_len", int, 1, MAX_TOKENS))
    for column, kind, least, most in kinds:
        try:
            value = kind(row[column])
        except ValueError:
            number = "a whole number" if kind is int else "a number of seconds"
            raise ValueError(f"{column} is {row[column]!r}, and should be {number}") from None
        if not least <= value <= most:
            raise ValueError(f"{column} is {row[column]}, and should be from {least} to {most:,}")
        numbers[column] = value
    client = row["client"].strip()
    if not client:
        raise ValueError("client is empty")
    return Arrival(float(numbers["t"]), client, int(numbers["prompt_len"]), int(numbers["output_len"]))


def _bad(file: Path, faults: list[FieldViolation]) -> MeshError:
    return MeshError(
        Code.INVALID_ARGUMENT, "BAD_TRACE", f"{file} is not a trace of requests", field_violations=tuple(faults)
    )


def _within(length: float, most: int) -> int:
    return max(1, min(round(length), most))


def _sorted(arrivals: list[Arrival]) -> list[Arrival]:
    return sorted(arrivals, key=lambda arrival: (arrival.at, arrival.client))
