"""Where plans, tenants and keys are kept, and the log of who changed them.

A change is one transaction: what changes, the version, the audit event, and the answer that a repeat is given, all or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from forebay.errors import Code, MeshError
from forebay.quota.domain.audit import ORIGIN, Action, AuditEvent, following
from forebay.quota.domain.directory import Directory, Edit

# For how long a repeat is answered as before.
ANSWERS_KEPT_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered, and a digest of all that it asked."""

    request_id: str
    digest: str
    response: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """One transaction.

    Attributes:
        expected: the version that it was decided on.
        edit: what changes.
        actions: what goes into the audit log.
        answer: what a repeat is given.
        imported: digests of files, by name, that this change brought in.
    """

    expected: int
    edit: Edit
    actions: tuple[Action, ...] = ()
    answer: Answer | None = None
    imported: Mapping[str, str] = field(default_factory=dict)


class PolicyStore(Protocol):
    """The port. Every method raises UNAVAILABLE when the store cannot be reached."""

    async def load(self) -> Directory:
        """Returns everything at its present version."""

    async def version(self) -> int:
        """Returns the present version."""

    async def commit(self, change: Change, now: float) -> Directory:
        """Applies a change and returns what is stored then.

        Raises:
            MeshError: ABORTED; the version is not the expected one any more, or the request has been given an answer already.
        """

    async def record(self, action: Action) -> None:
        """Appends to the audit log what changed nothing."""

    async def answer(self, request_id: str, now: float) -> Answer | None:
        """Returns what a request was answered within the last day."""

    async def imported(self, name: str) -> str:
        """Returns the digest of a file when it was last brought in; empty for never."""

    async def events(self, before: int, most: int, tenant_id: str, refused_only: bool) -> Sequence[AuditEvent]:
        """Returns audit events with numbers below `before` (0 for all), newest first; of one tenant unless the id is empty."""


def store_changed() -> MeshError:
    """Returns the error of a change that was decided on an older version."""
    return MeshError(
        Code.ABORTED, "STORE_CHANGED", "the policies were changed at the same time; try again", retry_after=0.0
    )


class InMemoryPolicyStore:
    """The port's twin, for tests."""

    def __init__(self) -> None:
        self._directory = Directory()
        self._events: list[AuditEvent] = []
        self._answers: dict[str, tuple[Answer, float]] = {}
        self._imported: dict[str, str] = {}

    async def load(self) -> Directory:
        """See the port."""
        return self._directory

    async def version(self) -> int:
        """See the port."""
        return self._directory.version

    async def commit(self, change: Change, now: float) -> Directory:
        """See the port."""
        self._answers = {name: kept for name, kept in self._answers.items() if now - kept[1] < ANSWERS_KEPT_S}
        answered = change.answer is not None and change.answer.request_id in self._answers
        if change.expected != self._directory.version or answered:
            raise store_changed()
        self._directory = self._directory.edited(change.edit, now)
        if change.answer:
            self._answers[change.answer.request_id] = (change.answer, now)
        self._imported |= change.imported
        for action in change.actions:
            await self.record(action)
        return self._directory

    async def record(self, action: Action) -> None:
        """See the port."""
        last = self._events[-1] if self._events else None
        self._events.append(following(last.number, last.hash, action) if last else following(0, ORIGIN, action))

    async def answer(self, request_id: str, now: float) -> Answer | None:
        """See the port."""
        answer, at = self._answers.get(request_id, (None, 0.0))
        return answer if now - at < ANSWERS_KEPT_S else None

    async def imported(self, name: str) -> str:
        """See the port."""
        return self._imported.get(name, "")

    async def events(self, before: int, most: int, tenant_id: str, refused_only: bool) -> Sequence[AuditEvent]:
        """See the port."""
        wanted = [
            event
            for event in reversed(self._events)
            if (not before or event.number < before)
            and tenant_id in ("", event.action.tenant_id)
            and (event.action.refusal or not refused_only)
        ]
        return wanted[:most]
