"""Isolation inside the router: how much longer a small request takes beside another tenant's largest.

Six callers with a key of the smallest plan send without a pause, each kind in its turn: the largest that the contract allows, or
what it does not. Clients have machines of their own. Here the callers are a process to which the kernel gives what others leave
(`nice`), so that only the mesh slows the small requests down. Each kind is compared with small requests alone just before it.

    python neighbour.py ADDRESS KEY KIND      sends until its standard input ends, then prints how its calls ended
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import uvloop
from google.protobuf.message import Message

from forebay.api.common.v1 import common_pb2
from forebay.api.router.v1 import router_pb2, router_pb2_grpc

CALLERS = 6
# As good as another machine: it has the processor when nobody else wants it.
NICE = 19
# A percentile needs some times, however busy the machine is.
LEAST_TIMES = 20
CONTEXT_TOKENS = 8_192
PROMPT_BYTES = 1 << 20
# So that alone and beside are of as many requests.
PAUSE_S = 0.01
# Small enough for the event loop itself, and for a tokenizer process.
SMALL = {"short": 40, "long": 3_000}

WORDS = "the water of the mill turns the wheel and the wheel turns the stone "
FULL = common_pb2.Sampling(max_tokens=1, stop=["x" * 256] * 16, stop_token_ids=range(200, 264))
LABELS = {f"{number}".ljust(64, "n"): "v" * 64 for number in range(8)}


def text(size: int) -> router_pb2.Prompt:
    return router_pb2.Prompt(text=(WORDS * (size // len(WORDS) + 1))[:size])


def chat(messages: int, size: int) -> router_pb2.Prompt:
    content = text(size // messages).text
    turns = [router_pb2.Chat.Message(role="user", content=content)] * messages
    return router_pb2.Prompt(chat=router_pb2.Chat(messages=turns))


def generate(prompt: router_pb2.Prompt) -> router_pb2.GenerateRequest:
    options = router_pb2.GenerateOptions(prompt=prompt, sampling=FULL, labels=LABELS, client_request_id="c" * 128)
    return router_pb2.GenerateRequest(options=options)


def many_labels() -> bytes:
    """A message of some two megabytes, of nothing but labels."""
    label = b"\x3a\x0a\x0a\x05label\x12\x01v"
    labels = label * 160_000
    size, encoded = len(labels), bytearray(b"\x0a")
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((*encoded, size)) + labels


# Each kind: the rpc and the messages, taken by turns.
KINDS: dict[str, Callable[[], list[tuple[str, Message | bytes]]]] = {
    "texts": lambda: [("CountTokens", router_pb2.CountTokensRequest(prompt=text(PROMPT_BYTES)))],
    "no_spaces": lambda: [("CountTokens", router_pb2.CountTokensRequest(prompt={"text": "é" * (PROMPT_BYTES // 2)}))],
    "chats": lambda: [
        ("CountTokens", router_pb2.CountTokensRequest(prompt=chat(1_024, PROMPT_BYTES))),
        ("Generate", generate(chat(1_024, PROMPT_BYTES))),
    ],
    "contexts": lambda: [
        ("Generate", generate(text(CONTEXT_TOKENS * 4))),
        ("Generate", generate(router_pb2.Prompt(tokens={"ids": [700] * (CONTEXT_TOKENS - 1)}))),
    ],
    "fields": lambda: [
        ("Generate", generate(text(40))),
        ("CountTokens", router_pb2.CountTokensRequest(prompt=text(512))),
    ],
    "refused": lambda: [
        ("Generate", many_labels()),
        ("Generate", router_pb2.GenerateRequest(options={"sampling": {"stop_token_ids": [5] * 2_000_000}})),
        ("CountTokens", router_pb2.CountTokensRequest(prompt=text(2 * PROMPT_BYTES))),
    ],
}


async def flood(address: str, key: str, kind: str) -> None:
    """Sends one kind's messages, CALLERS at a time, until standard input ends."""
    messages = [(rpc, data if isinstance(data, bytes) else data.SerializeToString()) for rpc, data in KINDS[kind]()]
    ends: Counter[str] = Counter()
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]

    async def caller(number: int) -> None:
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            while True:
                number += 1
                rpc, data = messages[number % len(messages)]
                call = channel.unary_unary(f"/forebay.api.router.v1.RouterService/{rpc}")
                try:
                    await call(data, metadata=(("authorization", f"Bearer {key}"),), timeout=60)
                    ends["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    ends[error.code().name] += 1

    callers = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
    print("begun", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in callers:
        task.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    print(json.dumps(ends), flush=True)


@contextmanager
def flooded(address: str, key: str, kind: str) -> Iterator[dict[str, int]]:
    """Has another process flood the router for the block; afterwards the dictionary says how its calls ended."""
    ends: dict[str, int] = {}
    command = [sys.executable, __file__, address, key, kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        try:
            yield ends
        finally:
            process.stdin.close()
            ends.update(json.loads(process.stdout.readline()))


class Neighbour:
    """A tenant with small requests, one after another."""

    def __init__(self, address: str, key: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._stub = router_pb2_grpc.RouterServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {key}"),)

    def close(self) -> None:
        self._channel.close()

    def p99_ms(self, seconds: float, size: int) -> float:
        """Asks for one token, again and again; returns the 99th percentile of the times taken."""
        sampling = common_pb2.Sampling(max_tokens=1, ignore_eos=True)
        options = router_pb2.GenerateOptions(prompt=chat(1, size), sampling=sampling)
        request = router_pb2.GenerateRequest(options=options)
        taken = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(taken) < LEAST_TIMES:
            started = time.perf_counter()
            self._stub.Generate(request, metadata=self._metadata, timeout=120)
            taken.append(time.perf_counter() - started)
            time.sleep(PAUSE_S)
        return statistics.quantiles(taken, n=100)[98] * 1_000


def measure(address: str, hostile_key: str, key: str, seconds: float) -> dict[str, object]:
    """Returns the figures of every kind; prints a line for each."""
    neighbour = Neighbour(address, key)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'p99 of a one-token answer, ms':<34}" + "".join(f"{name + ' prompt':>20}" for name in SMALL))
    for kind in KINDS:
        alone = {name: neighbour.p99_ms(seconds, size) for name, size in SMALL.items()}
        with flooded(address, hostile_key, kind) as ends:
            beside = {name: neighbour.p99_ms(seconds, size) for name, size in SMALL.items()}
        rows[kind] = {name: {"alone": round(alone[name], 1), "beside": round(beside[name], 1)} for name in SMALL}
        told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
        pairs = "".join(f"{f'{alone[name]:.1f} > {beside[name]:.1f}':>20}" for name in SMALL)
        print(f"{f'alone > beside six of {kind}':<34}{pairs}   {told}", flush=True)
    neighbour.close()
    worst = max(row[name]["beside"] - row[name]["alone"] for row in rows.values() for name in SMALL)
    return {"neighbour_p99_ms": rows, "neighbour_p99_ms_added": round(worst, 1)}


if __name__ == "__main__":
    os.nice(NICE)
    uvloop.run(flood(*sys.argv[1:4]))
