"""The yardstick: a bare grpc.aio server that streams the public API's messages and does nothing else.

It stands where the whole mesh stands and answers with as many tokens per message as the mesh was measured to send, so that the
ratio of the two figures is what five services cost, on this machine, in this minute.

    python bare_server.py TOKENS_PER_MESSAGE      prints its port, serves until its standard input ends
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

from forebay.api.common.v1 import common_pb2
from forebay.api.router.v1 import router_pb2, router_pb2_grpc


class BareServicer(router_pb2_grpc.RouterServiceServicer):
    """Answers with made-up tokens as fast as the client takes them."""

    def __init__(self, tokens_per_message: int) -> None:
        self._tokens_per_message = tokens_per_message

    async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        total = request.options.sampling.max_tokens
        yield router_pb2.StreamGenerateResponse(started=router_pb2.StreamGenerateResponse.Started(request_id="0" * 32))
        for position in range(0, total, self._tokens_per_message):
            ids = range(position, min(position + self._tokens_per_message, total))
            delta = router_pb2.StreamGenerateResponse.Delta(position=position, text=" water" * len(ids), token_ids=ids)
            yield router_pb2.StreamGenerateResponse(delta=delta)
        usage = common_pb2.TokenUsage(completion_tokens=total)
        yield router_pb2.StreamGenerateResponse(finished=router_pb2.StreamGenerateResponse.Finished(usage=usage))

    async def Generate(self, request: Any, context: Any) -> Any:
        total = request.options.sampling.max_tokens
        return router_pb2.GenerateResponse(usage=common_pb2.TokenUsage(completion_tokens=total))


async def serve(tokens_per_message: int) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    router_pb2_grpc.add_RouterServiceServicer_to_server(BareServicer(tokens_per_message), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
