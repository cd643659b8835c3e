"""The policies in force when they come from a store.

What is changed here is put in force at once, files are imported when they change, and what another replica of quota changed is
noticed within a quarter of a second.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from forebay.clock import Clock
from forebay.config import ConfigError
from forebay.errors import Code, MeshError
from forebay.quota.domain.audit import Action
from forebay.quota.domain.directory import Directory, Edit, Key
from forebay.quota.domain.edits import changes_of
from forebay.quota.file_schema import KeysFile, PlansFile
from forebay.quota.policies import PolicyFeed
from forebay.quota.policy_files import POLL_S, keys_of, plans_of, stamp, wrong_policies
from forebay.quota.policy_store import Answer, Change, PolicyStore
from forebay.quota.tenants_import import plan_import
from forebay.telemetry.logs import get_logger
from forebay.yaml_files.document import Document
from forebay.yaml_files.shape import check

# How often a change is decided anew because another was faster.
_ATTEMPTS = 5

log = get_logger("stored_policies")

# A change, and what is to go into the audit log.
Decision = tuple[Edit, tuple[Action, ...]]


class StoredPolicies:
    """The store and the feed, kept together.

    Attributes:
        store: where policies are kept.
        directory: what is stored, as last read or written.
        pepper: the secret that isolation keys and hashes of keys are made with.
    """

    def __init__(self, store: PolicyStore, pepper: bytes, clock: Clock) -> None:
        self.store = store
        self.pepper = pepper
        self.directory = Directory()
        self._clock = clock
        self._feed: PolicyFeed | None = None
        self._changing = asyncio.Lock()

    async def start(self, plans: Path, tenants: Path | None, keys: Path | None) -> PolicyFeed:
        """Reads the store, with the files imported, and returns the feed of it.

        Raises:
            ConfigError: a file is wrong, and the store holds no tenants yet.
            MeshError: UNAVAILABLE.
        """
        self.directory = await self.store.load()
        new = not self.directory.tenants
        try:
            await self.import_files(plans, tenants, keys)
        except ConfigError as error:
            if new:
                raise
            _complain(error)
        self._feed = PolicyFeed(self.directory.policies(self.pepper), self._clock)
        return self._feed

    async def follow(self, plans: Path, tenants: Path | None, keys: Path | None) -> None:
        """Imports each change of the files and notices those of other replicas, until cancelled."""
        files = [file for file in (plans, tenants, keys) if file]
        seen = [stamp(file) for file in files]
        answers = True
        while True:
            await self._clock.sleep(POLL_S)
            present = [stamp(file) for file in files]
            try:
                if present != seen:
                    await self.import_files(plans, tenants, keys)
                    seen = present
                async with self._changing:
                    await self._catch_up()
                answers = True
            except ConfigError as error:
                seen = present
                _complain(error)
            except MeshError as error:
                if answers:
                    log.warning("the policy store does not answer; what is known stays in force", error=str(error))
                answers = False

    async def change(
        self,
        decide: Callable[[Directory], Decision],
        answer: Callable[[Directory], Answer] | None = None,
        imported: dict[str, str] | None = None,
    ) -> Directory:
        """Decides a change on what is stored, stores it and puts it in force; returns what is stored then.

        Nothing happens when there is neither a change nor an answer nor an import to remember. `decide` runs on a thread, for a
        large file takes it seconds.
        """
        async with self._changing:
            for attempt in range(_ATTEMPTS):
                await self._catch_up()
                before, now = self.directory, self._clock.now()
                edit, actions = await asyncio.to_thread(decide, before)
                if not (edit or answer or imported):
                    return before
                after = before.edited(edit, now)
                change = Change(before.version, edit, actions, answer(after) if answer else None, imported or {})
                try:
                    self._put_in_force(await self.store.commit(change, now))
                except MeshError as error:
                    if error.code is not Code.ABORTED or attempt == _ATTEMPTS - 1:
                        raise
                else:
                    return self.directory
        raise AssertionError("unreachable")

    async def import_files(self, plans: Path, tenants: Path | None, keys: Path | None) -> None:
        """Imports those files that have changed since they were imported last.

        Raises:
            ConfigError: one is wrong; the message names every problem by line.
        """
        await self._import("plans", plans, self._new_plans)
        if tenants:
            await self._import("tenants", tenants, self._tenants)
        if keys:
            await self._import("keys", keys, self._new_keys)

    async def _import(self, name: str, file: Path, read: Callable[[Document, Directory], Edit]) -> None:
        def decide(directory: Directory) -> Decision:
            document = Document.read(file)
            edit = read(document, directory)
            if document.problems:
                raise wrong_policies(document.problems)
            now = self._clock.now()
            return edit, tuple(
                Action(now, "file", "Import", it.tenant_id, it.subject, it.changes)
                for it in changes_of(directory, edit)
            )

        digest = _digest(file)
        if digest != await self.store.imported(name):
            await self.change(decide, imported={name: digest})
            log.info("imported", file=str(file), version=self.directory.version)

    def _new_plans(self, document: Document, directory: Directory) -> Edit:
        file = check(document, PlansFile)
        plans = plans_of(file).values() if file else ()
        return Edit(plans=tuple(plan for plan in plans if plan.name not in directory.plans))

    def _tenants(self, document: Document, directory: Directory) -> Edit:
        return plan_import(document, directory).edit

    def _new_keys(self, document: Document, directory: Directory) -> Edit:
        file = check(document, KeysFile)
        tenants = directory.tenants.keys() | directory.removed
        keys = keys_of(file, document, tenants).values() if file else ()
        new = [key for key in keys if key.key_id not in directory.keys and key.tenant_id not in directory.removed]
        return Edit(keys=tuple(map(Key, new)))

    async def _catch_up(self) -> None:
        """Puts in force what other replicas have changed; the caller holds the lock."""
        if await self.store.version() != self.directory.version:
            self._put_in_force(await self.store.load())

    def _put_in_force(self, directory: Directory) -> None:
        self.directory = directory
        if self._feed:
            self._feed.publish(directory.policies(self.pepper))


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise wrong_policies([f"{file}: cannot be read: {error.strerror}"]) from None


def _complain(error: ConfigError) -> None:
    log.error("a changed file is wrong, the policies stay", problems=str(error).splitlines()[1:])
