"""The service's own configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from forebay.config import ConfigError
from forebay.quota.config import QuotaConfig

WHOLE = "id: quota-1\ntenants_file: t.yaml\nkeys_file: k.yaml\npepper: 0123456789abcdef\n"


def load(folder: Path, text: str) -> QuotaConfig:
    file = folder / "quota.yaml"
    file.write_text(text)
    return QuotaConfig.load(file)


def test_the_pepper_comes_from_the_file_of_its_own_without_white_space(tmp_path: Path) -> None:
    pepper = tmp_path / "pepper"
    pepper.write_text("0123456789abcdef\n")
    text = WHOLE.replace("pepper: 0123456789abcdef", f"pepper_file: {pepper}")
    assert load(tmp_path, text).pepper_bytes() == load(tmp_path, WHOLE).pepper_bytes() == b"0123456789abcdef"


def test_the_waiting_times_are_settings(tmp_path: Path) -> None:
    assert load(tmp_path, WHOLE).terms().lease_ms == 30_000
    assert load(tmp_path, WHOLE + "lease_seconds: 2.5\n").terms().lease_ms == 2_500
    assert load(tmp_path, WHOLE + "provisional_seconds: 3\n").terms().provisional_ms == 3_000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (WHOLE.replace("pepper: 0123456789abcdef", ""), "either pepper or pepper_file"),
        (WHOLE + "pepper_file: /dev/null\n", "pepper_file"),
        (WHOLE.replace("0123456789abcdef", "short"), "at least 16 bytes"),
        (WHOLE + "redis_url: localhost\n", "redis_url"),
        (WHOLE + "lease_seconds: 0\n", "lease_seconds"),
        (WHOLE + "provisional_seconds: 7200\n", "provisional_seconds"),
        (WHOLE + "metering_address: metering\n", "metering_address"),
        (WHOLE + "listen: quota\n", "listen"),
        (WHOLE.replace("tenants_file", "tenant_file"), "tenant_file"),
    ],
)
def test_a_wrong_configuration_is_explained_without_its_secret(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert problem in str(caught.value)
    assert "0123456789abcdef" not in str(caught.value)
