"""What a caller is told whose limits have no room."""

from collections.abc import Sequence

from forebay.errors import Code, MeshError, QuotaViolation
from forebay.words import span


def out_of_quota(violations: Sequence[QuotaViolation], wait_ms: int) -> MeshError:
    """Returns RESOURCE_EXHAUSTED with every limit that has no room, the first as its reason, and when to try again."""
    wait_s = wait_ms / 1000
    return MeshError(
        Code.RESOURCE_EXHAUSTED,
        violations[0].limit.upper(),
        f"{'; '.join(violation.sentence() for violation in violations)}; try again in {span(wait_s)}",
        retry_after=wait_s,
        quota_violations=violations,
    )
