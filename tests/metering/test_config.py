"""What the configuration refuses before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from forebay.config import ConfigError
from forebay.metering.config import MeteringConfig


def test_prices_are_part_of_the_configuration(tmp_path: Path) -> None:
    prices, file = tmp_path / "prices.yaml", tmp_path / "metering.yaml"
    prices.write_text("prices: []")
    file.write_text(f"id: metering-1\nledger_path: {tmp_path / 'ledger.db'}\nprices_file: {prices}\nmax_waiting: 0\n")
    with pytest.raises(ConfigError) as caught:
        MeteringConfig.load(file)
    for part in ("max_waiting", "default has no price for prompt_tokens", "default has no price for requests"):
        assert part in str(caught.value)
