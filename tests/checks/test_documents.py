"""Documents name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "regressions.md"


def test_every_test_that_guards_against_a_regression_exists() -> None:
    named = re.findall(r"`([a-z_]+/test_\w+\.py)(?:::(\w+))?`", DOCUMENT.read_text(encoding="utf-8"))
    assert len(named) > 40
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (TESTS / file).exists() or (name and f"def {name}(" not in (TESTS / file).read_text(encoding="utf-8"))
    ]
    assert missing == []
