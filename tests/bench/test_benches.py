"""Every benchmark runs, and ends with one line of JSON that has its figures; what they are says nothing on a busy machine."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("benches")]


@pytest.mark.parametrize(
    ("bench", "arguments", "figures"),
    [
        ("mesh", "--seconds 0.5 --only neighbour", {"neighbour_p99_ms", "neighbour_p99_ms_added"}),
        (
            "mesh",
            "--seconds 0.5 --only throughput",
            {"tokens_per_s", "raw_tokens_per_s", "requests_per_s", "added_ttft_ms_p99"},
        ),
        ("quota", "--only pairs --rounds 1", {"pairs_per_s", "unary_pairs_per_s", "raw_pairs_per_s", "ratio"}),
        ("quota", "--only changes", {"revoke_ms", "lower_ms", "suspend_ms"}),
        ("fairness", "--only adversary --seeds 1 --jobs 1", {"adversary_gap_over_bound"}),
    ],
)
async def test_it_runs_and_tells_its_figures(bench: str, arguments: str, figures: set[str]) -> None:
    command = [sys.executable, str(Path(__file__).with_name(f"{bench}.py")), *arguments.split()]
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "GRPC_VERBOSITY": "ERROR"}, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(300):
            told, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0
    assert figures <= json.loads(told.splitlines()[-1]).keys()
