"""The referee finds each kind of wrong, and nothing in a story in which all is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from .plan import KINDS, PROCESSES, SCHEDULERS, Disruption, Strike
from .records import Answer, Books, End, Life, PoolSample, Row, Struck, Try
from .referee import FAULTS, HANGS_S, REFUSED_S, SETTLES_S, Seen, Verdict, judge

WHOLE = Answer((11, 12, 13, 14, 15), "one two three four five")
FINISHED, LEFT, SILENT, BROKEN, CONTINUED, ORPHAN = range(6)


def row(position: int, label: str, attempt: int, prompt: int, completion: int, **other: object) -> Row:
    values: dict[str, object] = {
        "position": position,
        "corrects": 0,
        "tenant": "acme",
        "request_id": f"id-{label}",
        "label": label,
        "attempt": attempt,
        "source": "WORKER",
        "completion_from": 0,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
    }
    return Row(**(values | other))  # type: ignore[arg-type]


def call(ask: int, received: int, end: End, **other: object) -> Try:
    made = Try(ask, f"{ask}.0", "acme", 7, "router-1", began=20.0, ended=22.0, request_id=f"id-{ask}.0", end=end)
    made.deltas = [(position, 1) for position in range(received)]
    made.tokens = list(WHOLE.tokens[:received])
    made.text = WHOLE.text[: 4 * received] if received < len(WHOLE.tokens) else WHOLE.text
    made.usage = (7, 5) if end is End.FINISHED else None
    for name, value in other.items():
        setattr(made, name, value)
    return made


def lives() -> list[Life]:
    """Everything died once before the calls; router-2, worker-2 and then worker-1 died during them."""
    living = [Life(name, number, born=0.0, ready=1.0, died=10.0) for number, name in enumerate(PROCESSES)]
    living += [Life(name, 10 + number, born=11.0, ready=12.0) for number, name in enumerate(PROCESSES)]
    for name, died in (("router-2", 21.9), ("worker-2", 20.5)):
        life = next(life for life in living if life.name == name and life.died is None)
        life.died = died
        living.append(Life(name, 30, born=23.0, ready=24.0))
    return living


@dataclass(slots=True)
class Story:
    """A run in which a call of each kind came out right; tests spoil it."""

    tries: list[Try] = field(
        default_factory=lambda: [
            call(FINISHED, 5, End.FINISHED),
            call(LEFT, 2, End.LEFT),
            call(SILENT, 0, End.LEFT),
            call(BROKEN, 3, End.FAILED, router="router-2", error="UNAVAILABLE GRPC_UNAVAILABLE: Socket closed"),
            call(CONTINUED, 5, End.FINISHED),
            call(ORPHAN, 3, End.FAILED, router="router-2", error="UNAVAILABLE GRPC_UNAVAILABLE: Socket closed"),
        ]
    )
    lives: list[Life] = field(default_factory=lives)
    rows: list[Row] = field(
        default_factory=lambda: [
            row(1, "0.0", 1, 7, 5),
            row(2, "1.0", 1, 7, 4),  # the engine was ahead of the client
            row(3, "5.0", 1, 7, 1, source="WORKER_RECOVERY"),
            row(4, "4.0", 1, 7, 4),  # the worker had sent two that never came
            row(5, "4.0", 2, 0, 3, completion_from=2),
            row(6, "4.0", 1, 0, -2, corrects=4),
            row(7, "3.0", 1, 7, 3),
        ]
    )
    books: Books = field(default_factory=Books)
    missed_points: set[str] = field(default_factory=set)
    struck: list[Struck] = field(default_factory=list)
    samples: list[PoolSample] = field(default_factory=list)

    def judged(self) -> Verdict:
        books = replace(self.books, rows=tuple(self.rows))
        seen = Seen(self.lives, self.struck, self.samples, self.missed_points)
        return judge(self.tries, [WHOLE] * len(self.tries), seen, books)

    def living(self, name: str) -> Life:
        """Returns the present life of a process."""
        return next(life for life in self.lives if life.name == name and life.died is None)


def test_a_good_run_is_found_good() -> None:
    verdict = Story().judged()
    assert verdict.clean, dict(verdict.notes)
    figures = verdict.figures()
    assert {name: figures[name] for name in ("requests", "completed", "aborted", "continued", "tries")} == {
        "requests": 6, "completed": 2, "aborted": 2, "continued": 1, "tries": 6,
    }  # fmt: skip
    assert verdict.kills == dict.fromkeys(KINDS, 1) | {"router": 3, "worker": 3, "scheduler": 2}
    assert figures["kills_min"] == 1


Spoil = Callable[[Story], object]


def a_gap(story: Story) -> None:
    del story.tries[LEFT].deltas[0]


def a_gap_before_the_end(story: Story) -> None:
    story.tries[FINISHED].deltas.pop()


def a_repeat(story: Story) -> None:
    story.tries[LEFT].deltas.append((1, 1))


def another_token(story: Story) -> None:
    story.tries[LEFT].tokens[1] = 99


def other_text(story: Story) -> None:
    story.tries[FINISHED].text = "one two three five four"


def a_wrong_count_in_the_last_message(story: Story) -> None:
    story.tries[FINISHED].usage = (8, 5)


def a_typed_end_while_a_worker_serves(story: Story) -> None:
    story.tries[BROKEN].typed = True
    story.tries[BROKEN].error = "UNAVAILABLE WORKER_LOST: try again"


def an_untyped_end_by_a_living_router(story: Story) -> None:
    story.tries[BROKEN].router = "router-1"
    story.tries[BROKEN].request_id = ""  # it had not begun


def a_bug_is_no_explanation(story: Story) -> None:
    story.tries[BROKEN].typed = True
    story.tries[BROKEN].error = "INTERNAL BUG: the service failed"
    story.tries[BROKEN].request_id = ""


def no_row(story: Story) -> None:
    story.rows.pop()


def a_position_is_missing(story: Story) -> None:
    story.rows.append(row(9, "2.0", 1, 7, 0))


def no_row_of_the_first_attempt(story: Story) -> None:
    story.rows[-1] = replace(story.rows[-1], attempt=2, completion_from=1)


def a_second_row(story: Story) -> None:
    story.rows.append(row(8, "0.0", 1, 0, 0))


def a_position_comes_twice(story: Story) -> None:
    story.rows.append(story.rows[0])


def a_correction_of_nothing(story: Story) -> None:
    story.rows.append(row(8, "0.0", 1, 0, 0, corrects=2))


def a_row_that_nobody_caused(story: Story) -> None:
    story.rows.append(row(8, "9.0", 1, 7, 5))


def a_row_of_another_request(story: Story) -> None:
    story.rows[0] = replace(story.rows[0], request_id="id-other")


def the_prompt_twice(story: Story) -> None:
    story.rows[4] = replace(story.rows[4], prompt_tokens=7)


def no_clipping(story: Story) -> None:
    del story.rows[5]
    story.rows[5] = replace(story.rows[5], position=6)


def more_than_the_whole_answer(story: Story) -> None:
    story.rows[1] = replace(story.rows[1], completion_tokens=6)


def less_than_was_received(story: Story) -> None:
    story.rows[1] = replace(story.rows[1], completion_tokens=1)


def less_than_the_whole_of_a_finished_one(story: Story) -> None:
    story.rows[0] = replace(story.rows[0], completion_tokens=4)


def a_free_prompt(story: Story) -> None:
    story.rows[0] = replace(story.rows[0], prompt_tokens=0)


def a_budget_that_lacks_a_correction(story: Story) -> None:
    rows = story.rows
    rows[0] = replace(rows[0], cost_nano_usd=1_000)
    tokens = sum(row.prompt_tokens + row.completion_tokens for row in rows)
    cost = 1_000 - 5 * len(rows) - 1
    story.books = Books(budgets={"acme": {"tokens_per_day": tokens - 2, "monthly_budget_nano_usd": cost}})


def test_a_redis_that_died_on_a_full_disk_may_have_lost_the_calls_of_that_time() -> None:
    story = Story()
    rows = [row for row in story.rows if row.label != "1.0"]
    lacking = sum(row.prompt_tokens + row.completion_tokens for row in rows)
    story.books = Books(budgets={"acme": {"tokens_per_day": lacking}})
    story.tries[LEFT].began, story.tries[LEFT].ended = 30.0, 31.0
    assert set(story.judged().faults) == {"budgets_differing"}
    story.struck.append(Struck(Disruption(0, PROCESSES, strike=Strike.FULL_DISK, seconds=4.0), 29.0, 33.0))
    assert set(story.judged().faults) == {"budgets_differing"}, "it lives"
    story.living("valkey").died = 32.0
    assert story.judged().clean
    story.books = Books(budgets={"acme": {"tokens_per_day": lacking - 2}})
    assert set(story.judged().faults) == {"budgets_differing"}, "that call was not longer"


def test_what_a_router_and_a_worker_that_died_did_not_tell_may_be_in_the_budget() -> None:
    story = Story()
    tokens = sum(row.prompt_tokens + row.completion_tokens for row in story.rows)
    story.books = Books(budgets={"acme": {"tokens_per_day": tokens + 4}})
    assert story.judged().clean, "the orphan's row has 1 of 5"
    story.rows[2] = replace(story.rows[2], source="WORKER")
    assert "budgets_differing" in story.judged().faults


def test_what_was_settled_just_before_redis_clock_stepped_may_miss_its_correction() -> None:
    story = Story()
    tokens = sum(row.prompt_tokens + row.completion_tokens for row in story.rows)
    story.books = Books(budgets={"acme": {"tokens_per_day": tokens - 2}})
    assert set(story.judged().faults) == {"budgets_differing"}
    step = Disruption(0, ("valkey",), strike=Strike.CLOCK, seconds=2.0, ahead_s=600.0)
    story.struck.append(Struck(step, 200.0, 202.0))
    assert set(story.judged().faults) == {"budgets_differing"}, "long after"
    story.struck[0] = Struck(step, 40.0, 42.0)
    assert story.judged().clean


def past_its_deadline(story: Story) -> None:
    story.tries[LEFT].deadline_s, story.tries[LEFT].ended = 1.0, 30.0


def before_its_deadline(story: Story) -> None:
    story.tries[BROKEN].end, story.tries[BROKEN].typed = End.LATE, True
    story.tries[BROKEN].error = "DEADLINE_EXCEEDED DEADLINE_EXCEEDED: allow more time"


def recovered_though_the_router_lived(story: Story) -> None:
    """Only when the router has died with the worker may tokens that were received go unbilled."""
    story.tries[ORPHAN].end, story.tries[ORPHAN].router = End.LEFT, "router-1"


@pytest.mark.parametrize(
    ("spoil", "faults"),
    [
        (a_gap, {"gaps": 1}),
        (a_gap_before_the_end, {"gaps": 1}),
        (a_repeat, {"repeats": 1}),
        (another_token, {"text_mismatch": 1}),
        (other_text, {"text_mismatch": 1}),
        (a_wrong_count_in_the_last_message, {"text_mismatch": 1}),
        (a_typed_end_while_a_worker_serves, {"broken_streams": 1}),
        (an_untyped_end_by_a_living_router, {"untyped_errors": 1}),
        (a_bug_is_no_explanation, {"untyped_errors": 1}),
        (no_row, {"lost_events": 1, "underbilled_tokens": 10}),
        (a_position_is_missing, {"lost_events": 1}),
        (no_row_of_the_first_attempt, {"lost_events": 1}),
        (a_second_row, {"double_events": 1}),
        (a_position_comes_twice, {"double_events": 1}),
        (a_correction_of_nothing, {"double_events": 1}),
        (a_row_that_nobody_caused, {"double_events": 1}),
        (a_row_of_another_request, {"double_events": 1}),
        (the_prompt_twice, {"overbilled_tokens": 7}),
        (no_clipping, {"overbilled_tokens": 2}),
        (more_than_the_whole_answer, {"overbilled_tokens": 1}),
        (less_than_was_received, {"underbilled_tokens": 1}),
        (less_than_the_whole_of_a_finished_one, {"underbilled_tokens": 1}),
        (a_free_prompt, {"underbilled_tokens": 7}),
        (recovered_though_the_router_lived, {"underbilled_tokens": 2}),
        (a_budget_that_lacks_a_correction, {"budgets_differing": 2}),
        (past_its_deadline, {"hung": 1}),
        (before_its_deadline, {"broken_streams": 1}),
        (lambda story: setattr(story, "books", Books(open_reservations=("a", "b"))), {"unsettled": 2}),
        (lambda story: setattr(story, "books", Books(slots=3)), {"leaked_slots": 3}),
        (lambda story: story.missed_points.add("quota.after_settle"), {"kill_points_missed": 1}),
        (lambda story: setattr(story.lives[0], "killed", False), {"crashes": 1}),
    ],
)
def test_each_wrong_is_found(spoil: Spoil, faults: dict[str, int]) -> None:
    story = Story()
    spoil(story)
    verdict = story.judged()
    assert {name: verdict.faults[name] for name in FAULTS if verdict.faults[name]} == faults, dict(verdict.notes)


@pytest.mark.parametrize(("which", "label"), [(0, "0.0"), (1, "1.0")])
def test_what_was_recovered_is_billed_if_the_router_died_before_it_could_tell(which: int, label: str) -> None:
    story = Story()
    story.rows[which] = row(which + 1, label, 1, 7, 1, source="WORKER_RECOVERY")
    assert set(story.judged().faults) == {"underbilled_tokens"}
    story.living("router-1").died = 22.5
    assert story.judged().clean


def test_a_stream_may_break_when_no_worker_is_left() -> None:
    story = Story()
    a_typed_end_while_a_worker_serves(story)
    worker = story.living("worker-1")
    worker.died = 21.0
    assert story.judged().clean
    worker.died = 23.0  # after the stream's end
    assert not story.judged().clean


def test_a_stream_that_two_workers_in_turn_could_have_served_is_broken() -> None:
    story = Story()
    a_typed_end_while_a_worker_serves(story)
    story.lives[:] = [life for life in story.lives if not life.name.startswith("worker")]
    story.lives.append(Life("worker-1", 1, born=0.0, ready=1.0, died=21.0))
    story.lives.append(Life("worker-2", 2, born=20.0, ready=20.9))
    assert set(story.judged().faults) == {"broken_streams"}


def test_a_stream_may_break_when_every_worker_left_is_paused() -> None:
    story = Story()
    a_typed_end_while_a_worker_serves(story)
    story.living("worker-1").pauses.append((20.6, 25.0))
    assert story.judged().clean


def test_a_router_that_was_paused_may_have_lost_leases_and_connections_and_says_so() -> None:
    story = Story()
    call = story.tries[BROKEN]
    call.router, call.typed, call.error = "router-1", True, "ABORTED LEASE_LOST: it was away"
    assert set(story.judged().faults) == {"broken_streams"}
    call.ended = 33.0
    story.living("router-1").pauses.append((21.0, 25.0))
    assert story.judged().clean
    call.typed, call.error = False, "UNAVAILABLE GRPC_UNAVAILABLE: Stream removed (ping timeout)"
    assert set(story.judged().faults) == {"broken_streams", "untyped_errors"}
    story.living("router-1").pauses.append((25.0, 32.0))
    assert story.judged().clean


def test_a_call_hangs_when_it_goes_on_though_all_that_it_needs_is_there() -> None:
    story = Story()
    call = story.tries[FINISHED]
    call.ended = call.began + HANGS_S + 5.0
    assert set(story.judged().faults) == {"hung"}
    story.living("quota").pauses += [(30.0, 33.0), (40.0, 43.0)]
    assert story.judged().clean
    story.living("quota").pauses.pop()
    assert not story.judged().clean
    disk = Disruption(0, PROCESSES, strike=Strike.FULL_DISK, seconds=14.0)
    story.struck.append(Struck(disk, 32.0, 46.0))
    assert story.judged().clean


def test_a_client_that_gives_up_though_all_was_there_was_refused_for_too_long() -> None:
    story = Story()
    call = story.tries[BROKEN]
    call.request_id, call.typed, call.error, call.tokens = "", True, "RESOURCE_EXHAUSTED GLOBAL_LIMIT: wait", []
    call.deltas, call.text = [], ""
    story.rows.pop()
    call.ended = call.began + REFUSED_S
    assert story.judged().clean
    call.ended += 1.0
    assert set(story.judged().faults) == {"given_up"}
    lost = Disruption(0, ("valkey",), strike=Strike.LOST_KEY, key="forebay:{acme}:due")
    story.struck.append(Struck(lost, 21.0, 21.0))
    assert story.judged().clean, "its minutes count as used up until a minute after"
    story.struck[0] = replace(story.struck[0], disruption=replace(lost, key="forebay:{globex}:due"))
    assert not story.judged().clean
    story.struck.clear()
    story.tries.append(call_again := replace(call, label="3.1", began=call.ended, ended=call.ended + 1.0))
    call_again.end, call_again.error = End.LEFT, ""
    assert story.judged().clean


def beside_idle(story: Story, *when: float, queued: int = 1, idle: str = "worker-1") -> int:
    """Returns how often something waited beside an idle worker if the pool was so all the time at these moments."""
    story.samples = [PoolSample(at, queued, frozenset({idle})) for at in when]
    verdict = story.judged()
    assert set(verdict.faults) <= {"waiting_beside_idle"}
    return verdict.faults["waiting_beside_idle"]


def test_what_waits_beside_an_idle_worker_long_after_the_last_strike_is_found() -> None:
    story = Story()
    long = [40.0, 40.8, 41.6, 42.4, 43.2]
    assert beside_idle(story, *long) == 1
    assert beside_idle(story, *long, queued=0) == 0
    assert beside_idle(story, *long[:2]) == 0
    assert beside_idle(story, 40.0, 43.0, 46.0) == 0, "nobody looked between them"
    assert beside_idle(story, *long, *(50.0 + at for at in long)) == 2
    assert story.judged().quiet_samples == 10


@pytest.mark.parametrize("name", [*SCHEDULERS, "valkey"])
def test_what_redis_or_a_scheduler_has_just_suffered_explains_waiting(name: str) -> None:
    story = Story()
    story.living(name).pauses.append((38.0, 39.0))
    long = [40.0, 40.8, 41.6, 42.4, 43.2]
    assert beside_idle(story, *long) == 0
    assert beside_idle(story, *(SETTLES_S + at for at in long)) == 1
    story = Story()
    story.struck.append(Struck(Disruption(0, (name,), strike=Strike.CLOCK, ahead_s=30.0), 38.0, 39.0))
    assert beside_idle(story, *long) == 0
    assert beside_idle(story, *(SETTLES_S + at for at in long)) == 1


def test_a_worker_that_has_just_come_back_is_not_idle_yet() -> None:
    story = Story()
    story.living("worker-1").pauses.append((30.0, 39.0))
    long = [40.0, 40.8, 41.6, 42.4, 43.2]
    assert beside_idle(story, *long) == 0
    assert beside_idle(story, *(5.0 + at for at in long)) == 1


def test_a_scheduler_that_was_paused_for_long_may_end_itself() -> None:
    story = Story()
    life = next(life for life in story.lives if life.name == "scheduler-1" and life.died == 10.0)
    life.pauses.append((0.0, 9.9))
    life.killed = False
    assert set(story.judged().faults) == {"crashes"}
    life.pauses = [(-1.0, 9.9)]
    assert story.judged().clean


def test_a_strike_that_was_planned_and_not_made_is_found() -> None:
    story = Story()
    planned = [Disruption(at, ("quota",), strike=Strike.PAUSE, seconds=1.0) for at in (5, 5, 6)]
    seen = Seen(story.lives, [Struck(planned[0], 5.0, 6.0)], planned=planned)
    assert judge([], [], seen, Books()).faults == {"strikes_missed": 2}


def test_strikes_are_counted_by_kind() -> None:
    story = Story()
    story.struck += [
        Struck(Disruption(0, ("quota",), strike=strike), 25.0, 26.0) for strike in Strike for _ in range(2)
    ]
    figures = story.judged().figures()
    assert {strike.value: figures[strike.value] for strike in Strike if strike is not Strike.KILL} == dict.fromkeys(
        ("pauses", "clock_steps", "full_disks", "file_size_limits", "keys_lost"), 2
    )
