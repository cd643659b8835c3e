"""Development certificates whatever the clock read when they were made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from forebay.cli.certificates import certify

NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.mark.parametrize("ahead", [timedelta(), timedelta(minutes=10), timedelta(days=400)])
def test_what_was_made_while_the_clock_was_ahead_is_valid_when_it_is_right_again(
    tmp_path: Path, ahead: timedelta
) -> None:
    files = certify(tmp_path, "router", "router-1", NOW + ahead)
    for name in ("certificate_file", "ca_file"):
        certificate = x509.load_pem_x509_certificate(Path(files[name]).read_bytes())
        assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc
