"""Who may administer what, and the log of it: each change is authorised, answered once, and written down, as is each refusal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.quota.domain.audit import Action, Refusal
from forebay.quota.domain.directory import Directory, Edit
from forebay.quota.domain.edits import changes_of
from forebay.quota.policy_store import Answer
from forebay.quota.stored_policies import StoredPolicies

T = TypeVar("T")

# What a role may do besides reading, which all may; an admin may do everything.
_OPERATOR = frozenset({"SuspendTenant", "ResumeTenant", "RevokeKey"})
MAX_REFUSAL_CHARACTERS = 1_000


@dataclass(frozen=True, slots=True)
class Call:
    """One administrative call.

    Attributes:
        role: admin, operator or viewer.
        name: the caller's, for the log.
        action: such as RevokeKey.
        request_id: makes a repeat harmless.
        digest: of all that is asked.
        tenant_id: about which tenant; empty for none.
        subject: about what, such as key:abc.
        note: the caller's reason; may be empty.
    """

    role: str
    name: str
    action: str
    request_id: str
    digest: str
    tenant_id: str = ""
    subject: str = ""
    note: str = ""

    def event(self, at: float, refusal: Refusal | None = None) -> Action:
        """Returns the call as an event about its own subject."""
        actor, changes = f"{self.role}/{self.name}", self._notes()
        return Action(at, actor, self.action, self.tenant_id, self.subject, changes, refusal, self.request_id)

    def events(self, at: float, directory: Directory, edit: Edit) -> tuple[Action, ...]:
        """Returns an event for each thing that the call changes, or one when it finds everything as it is to be."""
        actor, notes = f"{self.role}/{self.name}", self._notes()
        return tuple(
            Action(at, actor, self.action, it.tenant_id, it.subject, it.changes + notes, None, self.request_id)
            for it in changes_of(directory, edit)
        ) or (self.event(at),)

    def _notes(self) -> tuple[str, ...]:
        return (f"reason: {self.note}",) if self.note else ()


class Administration:
    """Carries out calls on the stored policies."""

    def __init__(self, stored: StoredPolicies, clock: Clock) -> None:
        self.stored = stored
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()

    async def perform(
        self, call: Call, decide: Callable[[Directory], Edit], respond: Callable[[Directory], bytes]
    ) -> tuple[bytes, bool]:
        """Carries out a change; returns the response, and whether it is the first and not a repeat's.

        Args:
            call: what is asked.
            decide: returns the change, or raises why there is none.
            respond: returns the response from what is stored then, without secrets.

        Raises:
            MeshError: PERMISSION_DENIED for the role, ALREADY_EXISTS for a request id that was another request's, and whatever
                `decide` raises; each is in the audit log then.
        """
        async with self._audited(call), self._one_at_a_time:
            now = self._clock.now()
            known = await self._answered(call)
            if known is not None:
                return known, False

            def decided(directory: Directory) -> tuple[Edit, tuple[Action, ...]]:
                edit = decide(directory)
                return edit, call.events(now, directory, edit)

            def answer(after: Directory) -> Answer:
                return Answer(call.request_id, call.digest, respond(after))

            try:
                after = await self.stored.change(decided, answer)
            except MeshError:
                # Another replica may have been sent the same request, and have been faster.
                known = await self._answered(call)
                if known is None:
                    raise
                return known, False
            return respond(after), True

    async def preview(self, call: Call, look: Callable[[Directory], T]) -> T:
        """Returns what a change would be, to those who may make it."""
        async with self._audited(call):
            return await asyncio.to_thread(look, self.stored.directory)

    async def _answered(self, call: Call) -> bytes | None:
        """Returns the response that the same request was given before."""
        known = await self.stored.store.answer(call.request_id, self._clock.now())
        if known is None:
            return None
        if known.digest != call.digest:
            raise MeshError(
                Code.ALREADY_EXISTS, "REQUEST_ID_REUSED", "another request had this request_id; choose a new one"
            )
        return known.response

    @asynccontextmanager
    async def _audited(self, call: Call) -> AsyncIterator[None]:
        try:
            if call.role != "admin" and not (call.role == "operator" and call.action in _OPERATOR):
                message = f"the role {call.role} may not call {call.action}; use an admin's certificate"
                raise MeshError(Code.PERMISSION_DENIED, "ROLE_NOT_ALLOWED", message)
            yield
        except MeshError as error:
            refusal = Refusal(error.code.value, error.reason, error.message[:MAX_REFUSAL_CHARACTERS])
            with contextlib.suppress(MeshError):  # a store that is away is why it was refused
                await self.stored.store.record(call.event(self._clock.now(), refusal))
            raise
