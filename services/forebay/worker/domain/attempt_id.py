"""The name of one execution of a request."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttemptId:
    """Which execution of which request; unique across all time.

    Attributes:
        request_id: 32 lower-case hex digits.
        attempt: from 1.
    """

    request_id: str
    attempt: int

    def __str__(self) -> str:
        """Returns the name that the engine, the logs and the ledger know it by."""
        return f"{self.request_id}/{self.attempt}"
