"""Who leads: the rules of the lease one by one, and under random delays, pauses, restarts and outages of the store."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.scheduler.domain.lease import ANY_TIME_US, KEEP_S, RENEW_S, RETRY_S, TTL_S, Answer, Bid, Lease, Tenure

START_US = 1_700_000_000_000_000


def bid(
    id: str = "s1",
    incarnation: int = 1,
    *,
    epoch: int = 0,
    latest: int = 0,
    may_take: bool = True,
    left: str | None = None,
) -> Bid:
    return Bid(id, incarnation, f"{id}:1", epoch, latest, ANY_TIME_US if may_take else 0, left)


def held(answer: Answer) -> tuple[int, str, bool]:
    return answer.epoch, answer.address, answer.mine


def test_the_first_to_ask_leads_and_others_hear_of_it() -> None:
    tenure, answer = Tenure().on(bid(), START_US)
    assert held(answer) == (START_US, "s1:1", True)
    _, answer = tenure.on(bid("s2"), START_US + 1_000_000)
    assert held(answer) == (START_US, "s1:1", False)


def test_a_lease_that_is_not_renewed_passes_on_with_what_was_left() -> None:
    tenure, _ = Tenure().on(bid(), START_US)
    tenure, _ = tenure.on(bid(epoch=START_US, left="state"), START_US + 1_000_000)
    assert not tenure.on(bid("s2"), START_US + 3_999_999)[1].mine
    tenure, answer = tenure.on(bid("s2"), START_US + 4_000_000)
    assert (answer.mine, answer.epoch, answer.checkpoint) == (True, START_US + 4_000_000, "state")
    assert not tenure.on(bid(epoch=START_US), START_US + 4_000_001)[1].mine


def test_who_would_not_lead_does_not_take_a_free_lease() -> None:
    tenure, answer = Tenure().on(bid(may_take=False), START_US)
    assert (tenure, held(answer)) == (Tenure(), (0, "", False))


def test_a_later_life_of_the_leader_takes_over_at_once_and_an_earlier_one_never() -> None:
    tenure, _ = Tenure().on(bid(incarnation=5), START_US)
    assert not tenure.on(bid(incarnation=4), START_US + 1)[1].mine
    assert tenure.on(bid(incarnation=6), START_US + 1)[1].epoch == START_US + 1


def test_epochs_grow_though_the_stores_clock_goes_back() -> None:
    tenure, _ = Tenure().on(bid(), START_US)
    tenure = tenure.released(START_US)
    assert tenure.on(bid("s2"), START_US - 10_000_000)[1].epoch == START_US + 1


def test_epochs_grow_though_the_store_has_forgotten_and_its_clock_is_behind() -> None:
    _, answer = Tenure().on(bid("s2", latest=START_US), START_US - 10_000_000)
    assert (answer.mine, answer.epoch) == (True, START_US + 1)


def test_a_leader_begins_a_term_above_what_a_peer_has_met() -> None:
    tenure, answer = Tenure().on(bid(), START_US)
    lease = Lease()
    lease.answered(answer, 0.0, 0.0)
    for unheard_of in (2**53, 2**63, 2**64 - 1):  # no clock has ever read that, and nothing lies above it
        lease.heard(unheard_of)
    assert lease.latest == START_US
    lease.heard(START_US - 1)
    assert tenure.on(bid(epoch=START_US, latest=lease.latest), START_US + 1)[1].epoch == START_US
    lease.heard(met := START_US + 300_000_000)
    answer = tenure.on(bid(epoch=START_US, latest=lease.latest), START_US + 1)[1]
    assert (answer.mine, answer.epoch) == (True, met + 1)


def test_a_store_that_has_forgotten_the_last_term_keeps_nobody_in_an_earlier_one() -> None:
    forgotten, _ = Tenure().on(bid(), START_US)
    later = START_US + 60_000_000
    back, answer = forgotten.on(bid(epoch=START_US, latest=START_US), later)
    assert answer.mine, "it has slept, and asks first"
    led = bid("s2", epoch=later - 1, latest=later - 1)
    assert held(back.on(led, later)[1]) == (later - 1, "s2:1", True)
    assert held(back.on(bid("s2", latest=later - 1), later)[1]) == (later, "s2:1", True)
    assert held(forgotten.on(bid(latest=later - 1), START_US + 1)[1]) == (later, "s1:1", True), "nor itself"


def test_a_bid_that_the_store_comes_to_late_takes_nothing() -> None:
    follower = Lease()
    assert follower.takes_until_us(0.0) == ANY_TIME_US
    follower.answered(THEIRS, 0.9, 1.0)
    until_us = follower.takes_until_us(10.0)
    assert until_us == START_US + round((9 + TTL_S) * 1e6)
    asked = Bid("s1", 1, "s1:1", 0, 8, until_us)
    assert Tenure().on(asked, until_us - 1)[1].mine
    assert Tenure().on(asked, until_us) == (Tenure(), Answer(0, "", False, until_us))


def test_a_clock_that_was_set_back_does_not_make_a_lease_longer() -> None:
    tenure, _ = Tenure().on(bid(), START_US)
    back = START_US - 3_600_000_000
    tenure, answer = tenure.on(bid("s2"), back)
    assert held(answer) == (START_US, "s1:1", False), "its holder may be there"
    assert tenure.on(bid("s2"), back + 3_000_000)[1].mine


def test_a_leader_goes_on_if_nobody_has_led_since() -> None:
    tenure, _ = Tenure().on(bid(), START_US)
    late = START_US + 60_000_000
    assert tenure.on(bid(epoch=START_US), late)[1].epoch == START_US
    assert Tenure().on(bid(epoch=START_US, may_take=False), late)[1].epoch == START_US, "the store has forgotten"
    led, _ = tenure.on(bid("s2"), late)
    assert led.released(late).on(bid(epoch=START_US), late + 1)[1].epoch == late + 1


def test_giving_up_is_for_ones_own_term() -> None:
    tenure, _ = Tenure(checkpoint="state").on(bid(), START_US)
    assert tenure.released(START_US - 1) == tenure
    tenure = tenure.released(START_US)
    assert tenure.on(bid("s2"), START_US + 1)[1].checkpoint == "state"


def test_an_answer_that_was_lost_is_given_again() -> None:
    tenure, first = Tenure(checkpoint="state").on(bid(), START_US)
    _, second = tenure.on(bid(), START_US + 1)
    assert (second.epoch, second.checkpoint) == (first.epoch, first.checkpoint) == (START_US, "state")


MINE = Answer(7, "s1:1", True, START_US)
THEIRS = Answer(8, "s2:1", False, START_US)
FREE = Answer(0, "", False, START_US)


def test_a_leader_stops_before_its_lease_ends_by_its_own_clock() -> None:
    lease = Lease()
    assert not lease.may_grant(0.0)
    lease.answered(MINE, 10.0, 10.9)
    assert lease.may_grant(10.0 + KEEP_S - 0.01)
    assert not lease.may_grant(10.0 + KEEP_S)
    assert KEEP_S < TTL_S


def test_a_leader_goes_on_while_it_asks_in_vain_and_not_when_it_was_stopped() -> None:
    lease = Lease()
    lease.answered(MINE, 0.0, 0.1)
    for second in range(1, 100):
        lease.unanswered(float(second))
        assert lease.may_grant(second + 0.9)
    assert not lease.may_grant(99 + KEEP_S), "nobody asked in the meantime"
    lease.answered(THEIRS, 200.0, 200.1)
    assert not lease.may_grant(200.1)
    assert (lease.epoch, lease.leader) == (0, "s2:1")


def test_a_follower_that_asks_in_vain_does_not_lead() -> None:
    lease = Lease()
    lease.answered(THEIRS, 0.0, 0.1)
    lease.unanswered(1.0)
    assert not lease.may_grant(1.0)


def test_a_follower_lets_the_leader_return_first() -> None:
    lease = Lease()
    lease.answered(THEIRS, 0.0, 0.1)
    lease.unanswered(10.0)
    assert not lease.takes_until_us(10.25)
    lease.answered(FREE, 10.25, 10.3)
    assert not lease.takes_until_us(10.3 + TTL_S - 0.01)
    assert lease.takes_until_us(10.3 + TTL_S)


def test_who_has_just_started_waits_for_nobody() -> None:
    lease = Lease()
    lease.unanswered(1.0)
    lease.answered(FREE, 1.25, 1.3)
    assert lease.takes_until_us(1.3)


def test_a_follower_asks_more_often_than_the_leader_because_that_may_give_up() -> None:
    lease = Lease()
    assert lease.answered(MINE, 0.0, 0.1) == RENEW_S
    assert lease.answered(THEIRS, 1.0, 1.1) == lease.answered(FREE, 2.0, 2.1) == RETRY_S < RENEW_S


def test_a_scheduler_remembers_the_highest_epoch() -> None:
    lease = Lease()
    for answer in (THEIRS, MINE, FREE):
        lease.answered(answer, 0.0, 0.1)
    assert lease.latest == THEIRS.epoch


@dataclass
class Replica:
    """A scheduler that bids; its clock has an origin of its own.

    Attributes:
        flight: when it asked, its bid, and the answer once the store has decided.
        vain: whether its last attempt was.
    """

    id: str
    origin: float
    incarnation: int = 1
    lease: Lease = field(default_factory=Lease)
    flight: tuple[float, Bid, Answer | None] | None = None
    vain: bool = False


class Histories(RuleBasedStateMachine):
    """Bids, decisions and answers in any order, with any time between them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.tenure = Tenure()
        self.replicas = [Replica(f"s{n}", origin) for n, origin in enumerate((0.0, 50.0, -1e6))]
        self.led: dict[int, tuple[str, int]] = {}
        self.late: list[Bid] = []

    def clock(self, replica: Replica) -> float:
        return self.now - replica.origin

    number = st.integers(0, 2)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 2.0, 2.69, 2.71, 3.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(number=number)
    def ask(self, number: int) -> None:
        replica = self.replicas[number]
        if replica.flight is None:
            now = self.clock(replica)
            lease = replica.lease
            replica.flight = (
                now,
                Bid(
                    replica.id,
                    replica.incarnation,
                    f"{replica.id}:1",
                    lease.epoch,
                    lease.latest,
                    lease.takes_until_us(now),
                ),
                None,
            )

    @rule(number=number)
    def decide(self, number: int) -> None:
        replica = self.replicas[number]
        if replica.flight is not None and replica.flight[2] is None:
            asked_at, asked, _ = replica.flight
            self.tenure, answer = self.tenure.on(asked, START_US + round(self.now * 1e6))
            replica.flight = (asked_at, asked, answer)

    @rule(number=number)
    def answer(self, number: int) -> None:
        replica = self.replicas[number]
        if replica.flight is not None and replica.flight[2] is not None:
            asked_at, _, answer = replica.flight
            replica.flight, replica.vain = None, False
            replica.lease.answered(answer, asked_at, self.clock(replica))
            if replica.lease.epoch:
                holder = self.led.setdefault(replica.lease.epoch, (replica.id, replica.incarnation))
                assert holder == (replica.id, replica.incarnation), "two have led in one epoch"

    @rule(number=number, before=st.sampled_from([0.0, 0.0, 0.4]), after=st.sampled_from([0.0, 0.0, 0.4]))
    def bid(self, number: int, before: float, after: float) -> None:
        self.ask(number)
        self.now += before
        self.decide(number)
        self.now += after
        self.answer(number)

    @rule(number=number)
    def ask_in_vain(self, number: int) -> None:
        replica = self.replicas[number]
        asked_at, asked, answer = replica.flight or (self.clock(replica), None, None)
        if asked is not None and answer is None:
            self.late.append(asked)
        replica.flight, replica.vain = None, True
        replica.lease.unanswered(asked_at)

    @precondition(lambda self: self.late)
    @rule()
    def decide_late(self) -> None:
        """The store, which was stopped, comes to a bid that nobody waits for any more."""
        self.tenure, _ = self.tenure.on(self.late.pop(0), START_US + round(self.now * 1e6))

    @rule(number=number)
    def restart(self, number: int) -> None:
        dead = self.replicas[number]
        self.replicas[number] = Replica(dead.id, dead.origin, dead.incarnation + 1)

    @precondition(lambda self: any(replica.lease.epoch for replica in self.replicas))
    @rule()
    def give_up(self) -> None:
        number, replica = next((n, replica) for n, replica in enumerate(self.replicas) if replica.lease.epoch)
        self.tenure = self.tenure.released(replica.lease.epoch)
        self.restart(number)

    @invariant()
    def one_grants_save_for_those_who_cannot_ask(self) -> None:
        granting = [replica for replica in self.replicas if replica.lease.may_grant(self.clock(replica))]
        assert sum(not replica.vain for replica in granting) <= 1
        epochs = [replica.lease.epoch for replica in granting]
        assert len(epochs) == len(set(epochs))


Histories.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestHistories = Histories.TestCase
