"""Why a request does not run. The reasons are stable names for programs; the sentences say what to do."""

from forebay.errors import Code, MeshError
from forebay.scheduler.domain.request import Queued, Request, ServiceClass


def too_large(request: Request) -> MeshError:
    """No worker of the model could hold the request, whatever else runs."""
    return MeshError(
        Code.INVALID_ARGUMENT,
        "TOO_LARGE",
        f"{request.prompt_tokens} prompt and {request.max_tokens} further tokens are more than any worker of "
        f"{request.model} holds; shorten the prompt or lower max_tokens",
    )


def unknown_adapter(request: Request) -> MeshError:
    """The tenant has no such adapter on the model; the same whether nobody has, or somebody else."""
    message = (
        f"the scheduler knows no adapter {request.adapter} of this tenant on {request.model}; name another, or none"
    )
    return MeshError(Code.NOT_FOUND, "ADAPTER_NOT_FOUND", message)


def queue_full(whose: str, retry_after_s: float) -> MeshError:
    """As many requests wait as may."""
    return _unavailable("QUEUE_FULL", f"{whose} has as many requests waiting as it may; try again later", retry_after_s)


def waited(queued: Queued, retry_after_s: float, now: float) -> MeshError:
    """The wait ended: the client's deadline passed, no worker was there, or no room came free."""
    if queued.deadline is not None and queued.deadline <= now:
        message = "the deadline passed while the request waited for room; allow more"
        return MeshError(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", message)
    message = "no room came free in time; try again later or allow more time"
    if not queued.pool.served:
        where = f" in pool {queued.pool.name}" if queued.pool.name else ""
        message = f"no worker serves {queued.pool.model}{where} now; try again later"
    return _unavailable("QUEUE_TIMEOUT", message, retry_after_s)


def unreachable(start_in_s: float, retry_after_s: float) -> MeshError:
    """By the pace of its flow, the request would not start in time."""
    message = f"the request would wait {start_in_s:.1f} s, longer than it may; try again later or allow more time"
    return _unavailable("DEADLINE_UNREACHABLE", message, retry_after_s)


def shed(service_class: ServiceClass, retry_after_s: float) -> MeshError:
    """So much waits that new requests of the class are turned away."""
    message = f"too much waits for new {service_class.name.lower()} requests; try again later"
    return _unavailable("SHED", message, retry_after_s)


def too_many_reported(most: int) -> MeshError:
    """A peer tells of more attempts from before its session than it can have."""
    return MeshError(Code.RESOURCE_EXHAUSTED, "TOO_MANY_REPORTED", f"at most {most} attempts may be told of at a time")


def _unavailable(reason: str, message: str, retry_after_s: float) -> MeshError:
    return MeshError(Code.UNAVAILABLE, reason, message, retry_after=retry_after_s)
