"""Refused calls in the audit log: those for administrators that never come as far as a handler.

Such calls cost their caller nothing, and each would be a row that stays for ever. So the first is written at once and what comes
in the minute after it together at its end, one row for each kind of refusal with the number of calls. All refused calls are in
the service's own log, one by one.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.quota.domain.audit import Action, Refusal
from forebay.quota.policy_store import PolicyStore
from forebay.rpc.allowlist import ADMIN, allowed
from forebay.rpc.interceptors import RefusedCall
from forebay.telemetry.logs import get_logger

GATHER_S = 60.0
# Names come from certificates; somebody who can make many of them still fills no disk.
MAX_KINDS = 256
_OURS = "/forebay.api.quota.v1."

log = get_logger("refused_calls")


class RefusedCalls:
    """Writes refused calls down; `run` must be running."""

    def __init__(self, store: PolicyStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._calls: Counter[RefusedCall] = Counter()
        self._wake = asyncio.Event()

    def note(self, call: RefusedCall) -> None:
        """Counts a refused call, if it was for administrators; of too many kinds within a minute, no more are kept apart."""
        if not call.method.startswith(_OURS) or ADMIN not in allowed(call.method):
            return
        self._count(call, 1)

    async def run(self) -> None:
        """Writes until cancelled, and then what is left."""
        try:
            while True:
                await self._wake.wait()
                await self._write()
                await self._clock.sleep(GATHER_S)
        finally:
            await self._write()

    def _count(self, call: RefusedCall, number: int) -> None:
        if call not in self._calls and len(self._calls) >= MAX_KINDS:
            call = RefusedCall(
                "several", "several", "several", call.reason, "of more callers and rpcs than are kept apart"
            )
        self._calls[call] += number
        self._wake.set()

    async def _write(self) -> None:
        self._wake.clear()
        for call in list(self._calls):
            number = self._calls.pop(call)
            try:
                await self._store.record(self._action(call, number))
            except MeshError as error:
                log.warning("refused calls not yet in the audit log", calls=number, error=error.reason)
                self._count(call, number)

    def _action(self, call: RefusedCall, number: int) -> Action:
        actor = f"{call.caller or 'unknown'}/{call.name or 'unknown'}"
        refusal = Refusal(Code.PERMISSION_DENIED.value, call.reason, call.message)
        changes = (f"calls: {number}",) if number > 1 else ()
        return Action(self._clock.now(), actor, call.method.rpartition("/")[2], changes=changes, refusal=refusal)
