"""The whole fuzz run, and what it is built on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError

from forebay.api.common.v1 import common_pb2
from forebay.api.router.v1 import router_pb2
from forebay.api.scheduler.v1 import scheduler_pb2

from .messages import MANY, MAX_MESSAGE_BYTES, Generator
from .run import faults, run

MESSAGES = 20_000


@pytest.mark.slow
@pytest.mark.xdist_group("fuzz")
@pytest.mark.timeout(900)
async def test_no_message_harms_the_mesh(tmp_path: Path) -> None:
    result = await run(tmp_path / "data", MESSAGES, seed=1)
    assert result["messages"] >= MESSAGES
    assert not faults(result), result


def test_a_seed_gives_the_same_messages() -> None:
    kind = scheduler_pb2.ScheduleRequest.DESCRIPTOR
    first, second = (Generator(random.Random(7), {}) for _ in range(2))
    for _ in range(20):
        one, other = first.message(kind), second.message(kind)
        assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def test_many_elements_stay_within_the_bound_of_a_message() -> None:
    generator = Generator(random.Random(7), {})
    for _ in range(3):
        message = generator.many(scheduler_pb2.ScheduleRequest.DESCRIPTOR)
        assert max(len(value) for field, value in message.ListFields() if field.is_repeated) == MANY
        assert message.ByteSize() <= MAX_MESSAGE_BYTES


def test_parts_are_messages_of_very_many_fields() -> None:
    generator = Generator(random.Random(7), {})
    kind = router_pb2.GenerateRequest.DESCRIPTOR
    made = [generator.parts(kind) for _ in range(20)]
    assert all(router_pb2.GenerateRequest.FromString(data) for data in made)
    assert any(len(data) > MANY for data in made)
    assert max(map(len, made)) <= MAX_MESSAGE_BYTES


def test_spoiled_texts_are_no_utf_8() -> None:
    generator = Generator(random.Random(7), {"id": ["MARKMARK"]})
    peer = common_pb2.Peer(id="MARKMARK")
    with pytest.raises(DecodeError):
        common_pb2.Peer.FromString(generator.spoil(peer.SerializeToString()))
