"""Compares what clients saw and what the mesh wrote down with what should have been. Pure.

What a call must bill, all its rows added up. The prompt: once, when there is any row. Completion tokens:

- it ended with `finished`: all tokens of the undisturbed answer, exactly;
- its client left, or it broke off: at least what the client received, at most the undisturbed answer, for the engine may have
  been ahead of the client;
- router and worker died with it, which its row says by coming from the worker's spool: at most the undisturbed answer. The
  spool knows how far the engine was a second before, and who knew better is dead.

A call that delivered tokens must have a row. One that did not may have none, for it may never have reached an engine.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .plan import KINDS, WORKERS, kind_of
from .records import Answer, Books, End, Life, Row, Try

# A router waits for the worker's last word for 5 s, and gathers what it tells metering for one.
ROUTER_TELLS_S = 7.0
# A connection may break a moment before it is seen that the process behind it is dead.
DEATH_SEEN_S = 2.0

FAULTS = (
    "kill_points_missed",
    "broken_streams",
    "gaps",
    "repeats",
    "text_mismatch",
    "lost_events",
    "double_events",
    "unsettled",
    "leaked_slots",
    "untyped_errors",
    "overbilled_tokens",
    "underbilled_tokens",
    "crashes",
)
# Those that may yet pass while the mesh is still writing.
UNFINISHED = ("lost_events", "unsettled", "leaked_slots", "overbilled_tokens", "underbilled_tokens")


@dataclass(slots=True)
class Verdict:
    """The figures, and for each fault what it was about.

    Attributes:
        faults: by the names of `FAULTS`.
        notes: by the names of `FAULTS`: one line for each case.
    """

    requests: int = 0
    completed: int = 0
    continued: int = 0
    aborted: int = 0
    tries: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    notes: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not self.faults.total()

    @property
    def books_closed(self) -> bool:
        """Whether nothing is left that may yet come right by itself."""
        return not any(self.faults[fault] for fault in UNFINISHED)

    def blame(self, fault: str, about: str, count: int = 1) -> None:
        """Adds to a fault."""
        if count > 0:
            assert fault in FAULTS
            self.faults[fault] += count
            self.notes[fault].append(about if count == 1 else f"{about}: {count}")

    def figures(self) -> dict[str, int]:
        """Returns what is printed last."""
        return {
            "requests": self.requests,
            "completed": self.completed,
            "continued": self.continued,
            "aborted": self.aborted,
            "tries": self.tries,
            "kills_min": min(self.kills.values(), default=0),
            **{fault: self.faults[fault] for fault in FAULTS},
        }


def judge(
    tries: Iterable[Try], answers: Sequence[Answer], lives: Sequence[Life], books: Books, missed_points: Collection[str]
) -> Verdict:
    """Returns the verdict on a run.

    Args:
        tries: every call.
        answers: the undisturbed answer to each request of the plan.
        lives: of every process.
        books: what the mesh wrote down.
        missed_points: kill points that were armed, or were to be, and at which nobody died.
    """
    verdict = Verdict(requests=len(answers))
    verdict.kills = dict.fromkeys(KINDS, 0)
    for life in lives:
        if life.died is not None and life.killed:
            verdict.kills[kind_of(life.name)] += 1
        elif life.died is not None:
            verdict.blame("crashes", f"{life.name}, process {life.pid}")
    for point in sorted(missed_points):
        verdict.blame("kill_points_missed", point)
    for reservation in books.open_reservations:
        verdict.blame("unsettled", reservation)
    verdict.blame("leaked_slots", "slots in use", books.slots)
    _check_ledger(verdict, books.rows)

    rows_of = defaultdict(list)
    for row in {row.position: row for row in books.rows}.values():
        rows_of[row.label].append(row)
    for call in tries:
        verdict.tries += 1
        answer = answers[call.ask]
        rows = rows_of.pop(call.label, [])
        _check_stream(verdict, call, answer)
        _check_end(verdict, call, lives)
        _check_rows(verdict, call, answer, rows, lives)
        if call.end is End.FINISHED:
            verdict.completed += 1
        elif call.end is End.LEFT:
            verdict.aborted += 1
        if call.end is not End.FAILED and len({row.attempt for row in rows}) > 1:
            verdict.continued += 1
    for label, rows in rows_of.items():
        billed = sum(row.prompt_tokens + row.completion_tokens for row in rows)
        verdict.blame("double_events", f"a row of a request that nobody made: {label!r}, {billed} tokens")
    return verdict


def _check_ledger(verdict: Verdict, rows: Sequence[Row]) -> None:
    """Looks for positions that are missing or come again, and for attempts that have more than one first row."""
    for position, count in Counter(row.position for row in rows).items():
        verdict.blame("double_events", f"position {position} was sent again", count - 1)
    positions = {row.position for row in rows}
    for missing in sorted(set(range(1, max(positions, default=0) + 1)) - positions):
        verdict.blame("lost_events", f"position {missing} is missing")
    first_rows = {row.position: row for row in rows if not row.corrects}
    attempts = Counter((row.request_id, row.attempt) for row in first_rows.values())
    for (request_id, attempt), count in attempts.items():
        verdict.blame("double_events", f"{request_id}/{attempt} has more than one row", count - 1)
    for row in rows:
        corrected = first_rows.get(row.corrects)
        if row.corrects and (
            corrected is None or (corrected.request_id, corrected.attempt) != (row.request_id, row.attempt)
        ):
            verdict.blame("double_events", f"position {row.position} corrects no row of its attempt")


def _check_stream(verdict: Verdict, call: Try, answer: Answer) -> None:
    """Looks for tokens left out, sent again, or other than the undisturbed ones."""
    position = 0
    for start, count in call.deltas:
        verdict.blame("gaps", f"{call.label} at {position}", start - position)
        verdict.blame("repeats", f"{call.label} at {position}", position - start)
        position = start + count
    if call.end is End.FINISHED:
        assert call.usage is not None
        verdict.blame("gaps", f"{call.label} before its end", call.usage[1] - position)
        same = tuple(call.tokens) == answer.tokens and call.text == answer.text
    else:
        same = tuple(call.tokens) == answer.tokens[: len(call.tokens)] and answer.text.startswith(call.text)
    if not same or (call.usage is not None and call.usage != (call.prompt_tokens, len(answer.tokens))):
        verdict.blame("text_mismatch", _told(call))


def _check_end(verdict: Verdict, call: Try, lives: Sequence[Life]) -> None:
    """Looks for streams that broke though the mesh could have gone on, and for errors that say nothing."""
    if call.end is not End.FAILED:
        return
    router_lived = call.typed or any(
        life.name == call.router and life.serves(call.began, call.ended + DEATH_SEEN_S) for life in lives
    )
    if not router_lived:
        return
    if not call.typed or call.error.startswith(("INTERNAL", "UNKNOWN")):
        verdict.blame("untyped_errors", _told(call))
    if call.request_id and _a_worker_served(lives, call.began, call.ended):
        verdict.blame("broken_streams", _told(call))


def _a_worker_served(lives: Sequence[Life], since: float, until: float) -> bool:
    """Returns whether at each moment between the two times one worker or another was healthy."""
    spans = sorted(
        (life.ready, life.died if life.died is not None else float("inf"))
        for life in lives
        if life.name in WORKERS and life.ready is not None
    )
    covered = since
    for ready, died in spans:
        if ready <= covered < died:
            covered = died
    return covered > until


def _check_rows(verdict: Verdict, call: Try, answer: Answer, rows: Sequence[Row], lives: Sequence[Life]) -> None:
    """Compares what a call has been billed with what it must be."""
    received = len(call.tokens)
    first_rows = sorted((row for row in rows if not row.corrects), key=lambda row: row.attempt)
    if any(call.request_id not in ("", row.request_id) or row.tenant != call.tenant for row in rows):
        verdict.blame("double_events", f"{_told(call)}: rows of another request or tenant have its label")
    if received and not first_rows:
        verdict.blame("lost_events", f"{_told(call)}: no row")
    elif first_rows and first_rows[0].completion_from:
        verdict.blame("lost_events", f"{_told(call)}: no row for the positions before {first_rows[0].completion_from}")
    for one, next_one in pairwise(first_rows):
        if next_one.completion_from < one.completion_from:
            verdict.blame("double_events", f"{_told(call)}: attempt {next_one.attempt} begins before {one.attempt}")

    prompt = sum(row.prompt_tokens for row in rows)
    completion = sum(row.completion_tokens for row in rows)
    most = len(answer.tokens)
    # Neither the worker's last write nor the router's report is waited for: if both die in that moment, a checkpoint is all.
    recovered = any(row.source == "WORKER_RECOVERY" for row in rows)
    least = 0 if recovered and _router_did_not_tell(call, lives) else most if call.end is End.FINISHED else received
    about = f"{_told(call)}: billed {prompt} + {completion} tokens ({', '.join(map(_row_told, rows)) or 'no row'})"
    if first_rows or received:
        verdict.blame("underbilled_tokens", about, max(0, call.prompt_tokens - prompt) + max(0, least - completion))
    verdict.blame("overbilled_tokens", about, max(0, prompt - call.prompt_tokens) + max(0, completion - most))


def _router_did_not_tell(call: Try, lives: Sequence[Life]) -> bool:
    """Returns whether the call's router died before it can have told metering what the client had received."""
    if call.end is End.FAILED:
        return not call.typed
    told_by = call.ended + ROUTER_TELLS_S
    return not any(life.name == call.router and life.serves(call.began, told_by) for life in lives)


def _row_told(row: Row) -> str:
    """Returns a row in a few words."""
    what = f"corrects {row.corrects}" if row.corrects else f"attempt {row.attempt} from {row.completion_from}"
    return f"{what} by {row.source}: {row.prompt_tokens} + {row.completion_tokens}"


def _told(call: Try) -> str:
    """Returns a call in a few words."""
    how = call.error if call.end is End.FAILED else call.end.value
    name = f"{call.label} {call.request_id}".strip()
    return f"{name} ({call.tenant}, {call.router}, {call.prompt_tokens} + {len(call.tokens)} tokens, {how})"
