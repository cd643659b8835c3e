"""Compares what clients saw and what the mesh wrote down with what should have been. Pure.

What a call must bill, all its rows added up. The prompt: once, when there is any row. Completion tokens:

- it ended with `finished`: all tokens of the undisturbed answer, exactly;
- its client left, its time was over, or it broke off: at least what the client received, at most the undisturbed answer, for the
  engine may have been ahead of the client;
- router and worker died with it, which its row says by coming from the worker's spool: at most the undisturbed answer. The
  spool knows how far the engine was a second before, and who knew better is dead.

A call that delivered tokens must have a row. One that did not may have none, for it may never have reached an engine.

Time decides in two places, and is counted only while whatever is needed is there and was for a while: a call hangs if all that it
needs has been there for `HANGS_S` and it has not ended; a request waits beside an idle worker if it does so for `IDLE_FOR_S`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from forebay.rpc.client import HUNG_AFTER_S

from .plan import (
    KINDS,
    LEASE_S,
    NANO_USD_PER_MILLION,
    ROUTERS,
    SCHEDULERS,
    SERVICES,
    WORKERS,
    Disruption,
    Strike,
    kind_of,
)
from .records import Answer, Books, End, Life, PoolSample, Row, Span, Struck, Try
from .spans import covers, intersection, outside, seconds_within, union

# A router waits for the worker's last word for 5 s, and gathers what it tells metering for one.
ROUTER_TELLS_S = 7.0
# A connection may break a moment before it is seen that the process behind it is dead.
DEATH_SEEN_S = 2.0

# How long a call may take while everything is there, and how late it may come to its deadline, on a machine that is busy.
HANGS_S = 40.0
DEADLINE_SLACK_S = 5.0
# How long a client may be refused while everything is there; and how long a tenant whose state Redis has lost is, at most.
REFUSED_S = 15.0
REBUILT_WITHIN_S = 75.0
# How long after a strike on Redis or the schedulers, or on a worker, the scheduling is as always, and what a moment is.
SETTLES_S = 10.0
WORKER_SETTLES_S = 5.0
IDLE_FOR_S = 2.0
SAMPLES_APART_S = 1.0
# After a pause that is longer, a scheduler's event loop has hung for longer than it bears: it may end itself as it goes on.
SCHEDULER_HUNG_S = 10.0
# What Redis may hold before it writes it to its file.
UNWRITTEN_S = 1.0
# How long after a call's end its last row may come: a worker is paused for as long, and then reports.
CORRECTED_WITHIN_S = 30.0
# Price lines of an attempt, each rounded once here and once there.
ROUNDED_LINES = 5

FAULTS = (
    "kill_points_missed",
    "strikes_missed",
    "hung",
    "given_up",
    "waiting_beside_idle",
    "budgets_differing",
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
UNFINISHED = (
    "lost_events",
    "unsettled",
    "leaked_slots",
    "overbilled_tokens",
    "underbilled_tokens",
    "budgets_differing",
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a run beside its calls.

    Attributes:
        lives: of every process.
        struck: the disruptions that were carried out.
        samples: of the scheduler's pool, in order of time.
        missed_points: kill points that were armed, or were to be, and at which nobody died.
        planned: the disruptions that were to be carried out.
    """

    lives: Sequence[Life]
    struck: Sequence[Struck] = ()
    samples: Sequence[PoolSample] = ()
    missed_points: Collection[str] = ()
    planned: Sequence[Disruption] = ()

    def serving(self, *names: str) -> list[Span]:
        """Returns when at least one of these processes was healthy and ran."""
        return union(span for life in self.lives if life.name in names for span in life.serves)

    def strikes(self, strike: Strike) -> list[Span]:
        """Returns when there was a strike of a kind."""
        return [(struck.began, struck.ended) for struck in self.struck if struck.disruption.strike is strike]


@dataclass(slots=True)
class Verdict:
    """The figures, and for each fault what it was about.

    Attributes:
        errors: how often a call ended with which code and reason.
        faults: by the names of `FAULTS`.
        notes: by the names of `FAULTS`: one line for each case.
    """

    requests: int = 0
    completed: int = 0
    continued: int = 0
    aborted: int = 0
    tries: int = 0
    quiet_samples: int = 0
    strikes: Counter[str] = field(default_factory=Counter)
    kills: dict[str, int] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
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
            **{strike.value: self.strikes[strike.value] for strike in Strike if strike is not Strike.KILL},
            "quiet_samples": self.quiet_samples,
            **{fault: self.faults[fault] for fault in FAULTS},
        }


def judge(tries: Sequence[Try], answers: Sequence[Answer], seen: Seen, books: Books) -> Verdict:
    """Returns the verdict on a run.

    Args:
        tries: every call.
        answers: the undisturbed answer to each request of the plan.
        seen: what else was seen.
        books: what the mesh wrote down.
    """
    verdict = Verdict(requests=len(answers))
    verdict.strikes = Counter(struck.disruption.strike.value for struck in seen.struck)
    _check_lives(verdict, seen.lives)
    for point in sorted(seen.missed_points):
        verdict.blame("kill_points_missed", point)
    carried_out = Counter(struck.disruption for struck in seen.struck)
    for disruption in Counter(seen.planned) - carried_out:
        verdict.blame("strikes_missed", str(disruption))
    for reservation in books.open_reservations:
        verdict.blame("unsettled", reservation)
    verdict.blame("leaked_slots", "slots in use", books.slots)
    _check_ledger(verdict, books.rows)
    _check_budgets(verdict, books, tries, answers, seen)
    _check_pool(verdict, seen)

    rows_of = defaultdict(list)
    for row in {row.position: row for row in books.rows}.values():
        rows_of[row.label].append(row)
    for call in tries:
        verdict.tries += 1
        answer = answers[call.ask]
        rows = rows_of.pop(call.label, [])
        _check_stream(verdict, call, answer)
        _check_time(verdict, call, seen)
        _check_end(verdict, call, seen)
        _check_rows(verdict, call, answer, rows, seen.lives)
        if call.end in (End.FAILED, End.LATE):
            verdict.errors[call.error.partition(":")[0]] += 1
        if call.end is End.FINISHED:
            verdict.completed += 1
        elif call.end is End.LEFT:
            verdict.aborted += 1
        if call.end is not End.FAILED and len({row.attempt for row in rows}) > 1:
            verdict.continued += 1
    _check_persistence(verdict, tries, seen)
    for label, rows in rows_of.items():
        billed = sum(row.prompt_tokens + row.completion_tokens for row in rows)
        verdict.blame("double_events", f"a row of a request that nobody made: {label!r}, {billed} tokens")
    return verdict


def _check_lives(verdict: Verdict, lives: Sequence[Life]) -> None:
    """Counts who was killed, and looks for who died without that."""
    verdict.kills = dict.fromkeys(KINDS, 0)
    for life in lives:
        if life.died is not None and life.killed:
            verdict.kills[kind_of(life.name)] += 1
        elif life.died is not None and not _had_hung(life, life.died):
            verdict.blame("crashes", f"{life.name}, process {life.pid}")


def _had_hung(life: Life, died: float) -> bool:
    """Returns whether a scheduler ended itself since it had been paused for longer than its event loop may hang."""
    return life.name in SCHEDULERS and any(
        end - start >= SCHEDULER_HUNG_S and start < died <= end + DEATH_SEEN_S for start, end in life.pauses
    )


def _check_budgets(verdict: Verdict, books: Books, tries: Sequence[Try], answers: Sequence[Answer], seen: Seen) -> None:
    """Compares what each tenant's counters have of its budgets with what its rows in the ledger come to.

    Three things are allowed for, each by what the calls concerned can cost at most:

    - Redis died on a full disk and has lost what it had not written. The budget may lack it.
    - A worker and a router died together and told the ledger less than the router had settled with. The budget may have it for
      ten minutes more.
    - Redis' clock stepped forward, which ended those ten minutes for what was settled just before. A correction that came later
      is in the ledger alone.
    """
    unwritten = [
        (began - UNWRITTEN_S, life.died)
        for life in seen.lives
        for began, ended in seen.strikes(Strike.FULL_DISK)
        if life.name == "valkey" and life.died is not None and began < life.died <= ended + UNWRITTEN_S
    ]
    forgotten = [
        (struck.began - CORRECTED_WITHIN_S, struck.ended)
        for struck in seen.struck
        if struck.disruption.strike is Strike.CLOCK and "valkey" in struck.disruption.names
    ]
    recovered = {row.label for row in books.rows if row.source == "WORKER_RECOVERY"}
    may_lack: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    may_have: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for call in tries:
        stepped = covers(forgotten, call.ended, call.ended)
        if stepped or seconds_within(unwritten, call.began, call.ended):
            may_lack[call.tenant].append(_worth(call, answers[call.ask]))
        if stepped or (call.label in recovered and _router_did_not_tell(call, seen.lives)):
            may_have[call.tenant].append(_worth(call, answers[call.ask]))
    for tenant, budgets in books.budgets.items():
        rows = {row.position: row for row in books.rows if row.tenant == tenant}.values()
        sums = _sums((row.prompt_tokens + row.completion_tokens, row.cost_nano_usd) for row in rows)
        lack, more = _sums(may_lack[tenant]), _sums(may_have[tenant])
        for limit, used in budgets.items():
            money = limit.endswith("nano_usd")
            rounding = ROUNDED_LINES * len(rows) if money else 0
            if not -rounding - lack[money] <= used - sums[money] <= rounding + more[money]:
                what = f"{limit} of {tenant} has {used}, the ledger {sums[money]}: {used - sums[money]:+}"
                verdict.blame("budgets_differing", what)


def _worth(call: Try, answer: Answer) -> tuple[int, int]:
    """Returns the tokens and the nano-USD that a call can cost at most; no engine works for it for longer than it lasts."""
    price, completion = NANO_USD_PER_MILLION, len(answer.tokens)
    per_million = (
        call.prompt_tokens * price["prompt_tokens"] + completion * price["completion_tokens"] + price["requests"]
    )
    per_million += math.ceil((call.ended - call.began) * price["gpu_seconds"])
    return call.prompt_tokens + completion, per_million // 1_000_000


def _sums(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Returns the sum of the first numbers and that of the second ones."""
    listed = list(pairs)
    return sum(first for first, _ in listed), sum(second for _, second in listed)


def _check_pool(verdict: Verdict, seen: Seen) -> None:
    """Looks for requests that waited beside an idle worker, long after the last strike on Redis or a scheduler."""
    strikes = [(struck.began, struck.ended) for struck in seen.struck if struck.disruption.unsettles_scheduling]
    away = [span for name in (*SCHEDULERS, "valkey") for span in outside(seen.serving(name))]
    quiet = outside((start, end + SETTLES_S) for start, end in (*strikes, *away))
    began: dict[str, float] = {}  # since when something waited beside it
    blamed: set[str] = set()
    last = 0.0
    for sample in seen.samples:
        there = covers(quiet, sample.at, sample.at)
        verdict.quiet_samples += there
        beside = {
            worker
            for worker in (sample.idle if there and sample.queued else ())
            if covers(seen.serving(worker), sample.at - WORKER_SETTLES_S, sample.at)
        }
        if sample.at - last > SAMPLES_APART_S:
            began.clear()
            blamed.clear()
        began = {worker: began.get(worker, sample.at) for worker in beside}
        blamed &= beside
        for worker, since in began.items():
            if sample.at - since >= IDLE_FOR_S and worker not in blamed:
                blamed.add(worker)
                verdict.blame("waiting_beside_idle", f"{sample.queued} requests beside {worker} at {sample.at:.1f}")
        last = sample.at


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


def _check_time(verdict: Verdict, call: Try, seen: Seen) -> None:
    """Looks for calls that went on for longer than they had to."""
    if call.ended > call.began + call.deadline_s + DEADLINE_SLACK_S + _router_paused(call, seen):
        verdict.blame("hung", f"{_told(call)}: {call.ended - call.began:.1f} s, of {call.deadline_s:.1f} s that it had")
        return
    took = seconds_within(_all_there(seen, (call.router,)), call.began, call.ended)
    if took > HANGS_S:
        verdict.blame("hung", f"{_told(call)}: {took:.1f} s while all was there")


def _check_persistence(verdict: Verdict, tries: Sequence[Try], seen: Seen) -> None:
    """Looks for requests that were refused again and again while all was there that they needed, until their clients gave up."""
    there = _all_there(seen, ROUTERS)
    by_ask: defaultdict[int, list[Try]] = defaultdict(list)
    for call in tries:
        by_ask[call.ask].append(call)
    for calls in by_ask.values():
        first, last = calls[0], calls[-1]
        if last.end is End.FAILED:
            took = seconds_within(intersection(there, outside(_rebuilding(calls, seen))), first.began, last.ended)
            if took > REFUSED_S:
                verdict.blame("given_up", f"{_told(last)}: {len(calls)} calls, {took:.1f} s while all was there")


def _rebuilding(calls: Sequence[Try], seen: Seen) -> list[Span]:
    """Returns when the tenant was refused since Redis had lost some of its state: then its minutes count as used up."""
    if not any(call.error.startswith(("RESOURCE_EXHAUSTED", "UNAVAILABLE COUNTERS_UNKNOWN")) for call in calls):
        return []
    return [
        (struck.ended, struck.ended + REBUILT_WITHIN_S)
        for struck in seen.struck
        if struck.disruption.strike is Strike.LOST_KEY and f"{{{calls[0].tenant}}}" in struck.disruption.key
    ]


def _all_there(seen: Seen, routers: Sequence[str]) -> list[Span]:
    """Returns when one of these routers, one of all else that a request needs, and room on the disk were there."""
    needed = (routers, WORKERS, SCHEDULERS, *((name,) for name in SERVICES))
    return intersection(*(seen.serving(*names) for names in needed), outside(seen.strikes(Strike.FULL_DISK)))


def _check_end(verdict: Verdict, call: Try, seen: Seen) -> None:
    """Looks for streams that broke though the mesh could have gone on, and for errors that say nothing."""
    early = call.end is End.LATE and call.ended < call.began + call.deadline_s - 1.0
    if call.end is not End.FAILED and not early:
        return
    router_lived = call.typed or any(
        life.name == call.router and life.lives(call.began, call.ended + DEATH_SEEN_S) for life in seen.lives
    )
    if not router_lived or _did_not_ping(call, seen):
        return
    if not call.typed or call.error.startswith(("INTERNAL", "UNKNOWN")):
        verdict.blame("untyped_errors", _told(call))
    if call.request_id and covers(seen.serving(*WORKERS), call.began, call.ended) and not _lost_its_lease(call, seen):
        verdict.blame("broken_streams", _told(call))


def _lost_its_lease(call: Try, seen: Seen) -> bool:
    """Returns whether the router was paused for so long that its reservations lapsed, and says so."""
    return " LEASE_LOST:" in call.error and _router_paused(call, seen) >= LEASE_S


def _did_not_ping(call: Try, seen: Seen) -> bool:
    """Returns whether the router was paused for so long that the client's connection was given up, and says so."""
    return call.error.endswith("(ping timeout)") and _router_paused(call, seen) >= HUNG_AFTER_S / 2


def _router_paused(call: Try, seen: Seen) -> float:
    return sum(life.paused(call.began, call.ended) for life in seen.lives if life.name == call.router)


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
    return not any(
        life.name == call.router and life.lives(call.began, told_by + life.paused(call.ended, math.inf))
        for life in lives
    )


def _row_told(row: Row) -> str:
    """Returns a row in a few words."""
    what = f"corrects {row.corrects}" if row.corrects else f"attempt {row.attempt} from {row.completion_from}"
    return f"{what} by {row.source}: {row.prompt_tokens} + {row.completion_tokens}"


def _told(call: Try) -> str:
    """Returns a call in a few words."""
    how = call.error if call.end is End.FAILED else call.end.value
    name = f"{call.label} {call.request_id}".strip()
    return f"{name} ({call.tenant}, {call.router}, {call.prompt_tokens} + {len(call.tokens)} tokens, {how})"
