"""Each condition of rule P2 has its own refusal."""

from dataclasses import replace

import pytest

from forebay.errors import Code
from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.grant import Grant, Payload, Standing, refusal

GRANT = Grant(
    id=AttemptId("0" * 32, 1),
    worker_id="worker-1",
    incarnation=7,
    epoch=3,
    batch_id=1,
    tenant_id="acme",
    adapter="",
    priority=0,
    prompt_tokens=10,
    max_tokens=20,
    kv_tokens=30,
    expires_in=2.0,
)
PAYLOAD = Payload("acme", prompt_tokens=10, max_tokens=20)
STANDING = Standing("worker-1", 7, epoch=3, lapsed=False, ran=False, draining=False)


def test_a_good_grant_is_taken() -> None:
    assert refusal(GRANT, PAYLOAD, STANDING) is None
    assert refusal(GRANT, PAYLOAD, replace(STANDING, epoch=0)) is None


@pytest.mark.parametrize(
    ("grant", "payload", "standing", "code", "reason"),
    [
        ({"expires_in": 0.0}, {}, {}, Code.ABORTED, "STALE_GRANT"),
        ({"expires_in": -1.0}, {}, {}, Code.ABORTED, "STALE_GRANT"),
        ({}, {}, {"lapsed": True}, Code.ABORTED, "STALE_GRANT"),
        ({"incarnation": 6}, {}, {}, Code.ABORTED, "WRONG_INCARNATION"),
        ({"worker_id": "worker-2"}, {}, {}, Code.ABORTED, "WRONG_INCARNATION"),
        ({"epoch": 2}, {}, {}, Code.ABORTED, "STALE_EPOCH"),
        ({"epoch": 4}, {}, {}, Code.ABORTED, "UNKNOWN_EPOCH"),
        ({"epoch": 2**63}, {}, {}, Code.ABORTED, "UNKNOWN_EPOCH"),
        ({}, {"prompt_tokens": 11}, {}, Code.FAILED_PRECONDITION, "LARGER_THAN_GRANT"),
        ({}, {"max_tokens": 21}, {}, Code.FAILED_PRECONDITION, "LARGER_THAN_GRANT"),
        ({}, {"tenant_id": "globex"}, {}, Code.INVALID_ARGUMENT, "TENANT_MISMATCH"),
        ({}, {}, {"ran": True}, Code.ALREADY_EXISTS, "ALREADY_RUN"),
        ({}, {}, {"draining": True}, Code.UNAVAILABLE, "DRAINING"),
        # A repeated payload is told so even when everything else is wrong as well: it must not be run elsewhere.
        ({"expires_in": 0.0, "epoch": 1}, {}, {"ran": True, "draining": True}, Code.ALREADY_EXISTS, "ALREADY_RUN"),
    ],
)
def test_each_condition_has_its_refusal(
    grant: dict[str, object], payload: dict[str, object], standing: dict[str, object], code: Code, reason: str
) -> None:
    error = refusal(
        replace(GRANT, **grant),  # type: ignore[arg-type]
        replace(PAYLOAD, **payload),  # type: ignore[arg-type]
        replace(STANDING, **standing),  # type: ignore[arg-type]
    )
    assert error is not None
    assert (error.code, error.reason) == (code, reason)
