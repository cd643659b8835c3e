"""What a client can make the router hold, before anybody has looked at it."""

from __future__ import annotations

import grpc
import pytest

from forebay.api.router.v1 import router_pb2
from forebay.errors import Code
from forebay.router.domain.ask import Chat
from forebay.router.prompt_messages import read_prompt
from forebay.rpc.status import from_rpc_error

from .conftest import METADATA, RouterWorld
from .peers import soon


def test_of_a_conversation_without_end_one_turn_too_many_is_made() -> None:
    turns = [router_pb2.Chat.Message(role="user")] * 100_000
    prompt = read_prompt(router_pb2.Prompt(chat=router_pb2.Chat(messages=turns)).SerializeToString())
    assert isinstance(prompt, Chat)
    assert len(prompt.messages) == 1025


async def test_a_prompt_that_is_too_long_is_told_so_and_one_that_is_far_too_long_is_not_read(
    world: RouterWorld,
) -> None:
    await world.start(max_prompt_bytes=50_000)

    async def refusal(text: str) -> tuple[Code, str]:
        request = router_pb2.CountTokensRequest(prompt=router_pb2.Prompt(text=text))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await soon(world.client.CountTokens(request, metadata=METADATA))
        error = from_rpc_error(caught.value)
        return error.code, error.reason

    assert await refusal("x" * 150_000) == (Code.INVALID_ARGUMENT, "BAD_REQUEST")
    assert await refusal("x" * 250_000) == (Code.RESOURCE_EXHAUSTED, "GRPC_RESOURCE_EXHAUSTED")
