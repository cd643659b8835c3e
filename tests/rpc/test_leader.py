"""Which replica to talk to, after each thing that can be learnt."""

from __future__ import annotations

from typing import Any

import pytest

from forebay.errors import Code, MeshError
from forebay.rpc.leader import LeaderChannel

GONE = MeshError(Code.UNAVAILABLE, "SESSION_ENDED", "gone")


class Channel:
    """Notes that it was closed."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.closed = False

    async def close(self) -> None:
        self.closed = True


def names(leader: str) -> MeshError:
    return MeshError(Code.FAILED_PRECONDITION, "NOT_LEADER", "another leads", metadata={"leader": leader})


@pytest.fixture
def opened() -> list[Channel]:
    return []


@pytest.fixture
def leaders(opened: list[Channel]) -> LeaderChannel:
    def connect(address: str) -> Any:
        opened.append(Channel(address))
        return opened[-1]

    return LeaderChannel(["a", "b"], connect)


def test_one_that_is_gone_is_followed_by_the_next(leaders: LeaderChannel) -> None:
    seen = []
    for _ in range(3):
        seen.append(leaders.address)
        leaders.lost(GONE)
    assert seen == ["a", "b", "a"]


def test_one_alone_is_asked_again() -> None:
    alone = LeaderChannel(["a"], lambda address: Channel(address))  # type: ignore[arg-type, return-value]
    alone.lost(GONE)
    assert alone.address == "a"


def test_whoever_is_named_is_asked_next_and_if_gone_the_one_who_named_it(leaders: LeaderChannel) -> None:
    leaders.lost(names("c"))
    assert leaders.address == "c"
    leaders.lost(GONE)
    assert leaders.address == "a"


@pytest.mark.parametrize("named", ["", "a"])
def test_who_names_nobody_or_itself_is_left(leaders: LeaderChannel, named: str) -> None:
    leaders.lost(names(named))
    assert leaders.address == "b"


def test_a_name_in_another_error_is_no_leader(leaders: LeaderChannel) -> None:
    leaders.lost(MeshError(Code.INTERNAL, "OTHER", "?", metadata={"leader": "c"}))
    assert leaders.address == "b"


def test_who_leads_in_an_epoch_that_is_over_does_not_lead(leaders: LeaderChannel) -> None:
    leaders.welcomed(5, "")
    leaders.welcomed(5, "")
    for epoch in (0, 4):
        with pytest.raises(MeshError) as caught:
            leaders.welcomed(epoch, "c")
        assert (caught.value.reason, caught.value.metadata["leader"]) == ("NOT_LEADER", "c")
    leaders.welcomed(6, "")


async def test_channels_are_kept_for_those_listed_and_one_more(leaders: LeaderChannel, opened: list[Channel]) -> None:
    first = leaders.channel
    assert leaders.channel is first
    for named in ("c", "d"):
        leaders.lost(names(named))
        assert leaders.channel is not first
    leaders.lost(GONE)
    assert leaders.channel is first
    leaders.lost(GONE)
    assert leaders.channel is not first
    await leaders.close()
    assert [channel.address for channel in opened] == ["a", "c", "d", "b"]
    assert all(channel.closed for channel in opened)
