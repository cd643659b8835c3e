"""What a payload must show before it runs (rule P2): a grant that is this worker's, fresh, large enough and unused."""

from dataclasses import dataclass

from forebay.errors import Code, MeshError
from forebay.worker.domain.attempt_id import AttemptId


@dataclass(frozen=True, slots=True)
class Grant:
    """The scheduler's leave to run one attempt here, as the router presents it.

    Attributes:
        worker_id, incarnation: the life of the worker that it is for.
        epoch: of the leader that gave it; batch_id grows within an epoch.
        tenant_id: whose attempt.
        adapter: empty for the bare model.
        priority: lower runs first.
        prompt_tokens, max_tokens: the most that the payload may bring and generate.
        kv_tokens: KV cache set aside for it.
        expires_in: seconds that were left on arrival; 0 or less is too late.
    """

    id: AttemptId
    worker_id: str
    incarnation: int
    epoch: int
    batch_id: int
    tenant_id: str
    adapter: str
    priority: int
    prompt_tokens: int
    max_tokens: int
    kv_tokens: int
    expires_in: float


@dataclass(frozen=True, slots=True)
class Payload:
    """The sizes of what a router brought with a grant.

    Attributes:
        tenant_id: who is to pay.
        prompt_tokens: tokens to compute at first, those of earlier attempts included.
        max_tokens: tokens that this attempt may generate.
    """

    tenant_id: str
    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What the worker knows that decides on a grant.

    Attributes:
        worker_id, incarnation: who it is.
        epoch: the highest of a leader that it has met; 0 for none.
        lapsed: the batch entry of this very draw expired or was withdrawn.
        ran: the attempt has run here, or runs.
        draining: the worker takes no more.
    """

    worker_id: str
    incarnation: int
    epoch: int
    lapsed: bool
    ran: bool
    draining: bool


def refusal(grant: Grant, payload: Payload, standing: Standing) -> MeshError | None:
    """Returns why a payload is not run, or None when it may run.

    What no other grant could cure comes first: a router that hears ALREADY_RUN must not look for another worker.
    ABORTED says that the router may ask the scheduler for another grant, UNAVAILABLE that this worker will take none.
    """
    if standing.ran:
        return MeshError(Code.ALREADY_EXISTS, "ALREADY_RUN", "the attempt has run on this worker; an attempt runs once")
    if (grant.worker_id, grant.incarnation) != (standing.worker_id, standing.incarnation):
        return MeshError(
            Code.ABORTED, "WRONG_INCARNATION", "the grant is for another worker, or for an earlier life of this one"
        )
    if grant.epoch < standing.epoch:
        return MeshError(Code.ABORTED, "STALE_EPOCH", "a later leader has taken over; ask it for a grant")
    if 0 < standing.epoch < grant.epoch:
        # Leaders grant after the worker has met them. Believed, an epoch that nobody leads in would shut out every leader.
        return MeshError(
            Code.ABORTED, "UNKNOWN_EPOCH", "the worker has not met the grant's leader; ask for another grant"
        )
    if grant.expires_in <= 0 or standing.lapsed:
        return MeshError(Code.ABORTED, "STALE_GRANT", "the grant expired before its payload came; ask for another")
    if standing.draining:
        return MeshError(Code.UNAVAILABLE, "DRAINING", "the worker is draining; ask for another")
    if payload.tenant_id != grant.tenant_id:
        return MeshError(
            Code.INVALID_ARGUMENT, "TENANT_MISMATCH", "the grant is another tenant's than the one that is to pay"
        )
    if payload.prompt_tokens > grant.prompt_tokens or payload.max_tokens > grant.max_tokens:
        return MeshError(
            Code.FAILED_PRECONDITION,
            "LARGER_THAN_GRANT",
            f"{payload.prompt_tokens} + {payload.max_tokens} tokens were brought, "
            f"{grant.prompt_tokens} + {grant.max_tokens} were granted",
        )
    return None
