"""What a caller is told whose limits have no room."""

from collections.abc import Sequence

from forebay.errors import Code, MeshError, QuotaViolation


def out_of_quota(violations: Sequence[QuotaViolation], wait_ms: int) -> MeshError:
    """Returns RESOURCE_EXHAUSTED with every limit that has no room, the first as its reason, and when to try again."""
    wait_s = wait_ms / 1000
    wait = f"{wait_s:g} s" if wait_ms < 3_600_000 else f"{-(-wait_ms // 3_600_000)} h"
    return MeshError(
        Code.RESOURCE_EXHAUSTED,
        violations[0].limit.upper(),
        f"{'; '.join(violation.sentence() for violation in violations)}; try again in {wait}",
        retry_after=wait_s,
        quota_violations=violations,
    )
