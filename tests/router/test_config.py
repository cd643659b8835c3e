"""A router's configuration: what an operator is told of its public port."""

from __future__ import annotations

from pathlib import Path

import pytest

from forebay.router.config import RouterConfig


@pytest.mark.parametrize(
    ("listen", "warned"), [("127.0.0.1:7000", False), ("0.0.0.0:7000", True), ("10.1.2.3:7000", True)]
)
def test_a_public_port_in_plaintext_is_warned_of_and_not_refused(
    tmp_path: Path, tiny_model: Path, listen: str, warned: bool
) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(
        f"id: router-1\nlisten: {listen}\nquota_address: q:1\nscheduler_address: s:1\nmetering_address: m:1\n"
        f"pepper: 0123456789abcdef\nmodels: [{{name: tiny, directory: {tiny_model}, context_tokens: 4096}}]\n"
    )
    warnings = RouterConfig.load(file).warnings()
    assert bool(warnings) is warned
    assert all("keys, prompts and answers travel in plaintext" in each for each in warnings)
