"""The mesh with a real model: vLLM with SmolLM2-135M on the processor, in the worker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.client import ForebayClient
from forebay.testing.processes import MeshProcesses

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow, pytest.mark.vllm, pytest.mark.xdist_group("vllm")]

QUESTIONS = [
    "What is the capital of France?",
    "Name three rivers of Europe.",
    "What is two plus three?",
    "Write one sentence about a water mill.",
    "Why is the sky blue?",
]
# Longer than three of the engine's blocks of 32 tokens.
LONG = "Remember these words: " + " ".join(f"river number {n} runs to sea number {n * 7}," for n in range(30))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshProcesses]:
    with MeshProcesses(tmp_path_factory.mktemp("vllm") / "data", engine="vllm", ready_s=400) as mesh:
        yield mesh


async def test_it_knows_the_capital_of_france(mesh: MeshProcesses) -> None:
    async with ForebayClient(mesh.router_address(), mesh.key("acme")) as client:
        answer = await client.generate(QUESTIONS[0], max_tokens=16, temperature=0.0)
    assert "Paris" in answer.text


async def test_greedy_tokens_equal_those_of_vllm_itself(mesh: MeshProcesses, tmp_path: Path) -> None:
    async with ForebayClient(mesh.router_address(), mesh.key("acme")) as client:
        # One after another, as the direct run does: batches of another shape round differently on any engine.
        answers = [await client.generate(question, max_tokens=24, temperature=0.0) for question in QUESTIONS]
    directory = json.loads((mesh.data / "mesh.json").read_text())["model"]["directory"]
    direct = Path(__file__).with_name("direct_vllm.py")
    command = [sys.executable, str(direct), directory, str(tmp_path / "direct.json"), *QUESTIONS]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=300)
    expected = json.loads((tmp_path / "direct.json").read_text())
    assert [list(answer.choices[0].token_ids) for answer in answers] == expected


async def test_tenants_share_no_prefix_cache(mesh: MeshProcesses) -> None:
    async def cached(tenant: str) -> int:
        async with ForebayClient(mesh.router_address(), mesh.key(tenant)) as client:
            return (await client.generate(LONG, max_tokens=2, temperature=0.0)).usage.cached

    assert await cached("acme") == 0
    assert await cached("globex") == 0
    assert await cached("acme") >= 3 * 32
    assert await cached("globex") >= 3 * 32
