"""The client library against a router that goes away and comes back."""

from __future__ import annotations

import asyncio

import pytest

from forebay.client import Code, ForebayClient, MeshError

from .conftest import RouterWorld
from .peers import soon
from .samples import KEY


async def test_a_router_that_is_not_there_is_said_to_be_so() -> None:
    async with ForebayClient("127.0.0.1:1", KEY, connect_timeout=0.05) as client:
        calls = (
            client.generate("hello"),
            anext(aiter(client.stream("hello"))),
            client.list_models(),
            client.sum_usage(),
        )
        for call in calls:
            with pytest.raises(MeshError) as caught:
                await call
            assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "NO_ROUTER")
            assert "127.0.0.1:1" in caught.value.message


async def test_a_router_that_restarts_is_waited_for(world: RouterWorld) -> None:
    await world.start()
    async with ForebayClient(world.server.address, KEY) as client:
        assert await soon(client.list_models())
        address = world.server.address
        await world.server.drain(0)
        waiting = asyncio.create_task(client.list_models())
        await asyncio.sleep(0)
        await world.restart(address)
        (model,) = await soon(waiting)
    assert model.name == "tiny"
