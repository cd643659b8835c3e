"""The policy store in SQLite or PostgreSQL.

Every transaction that writes begins by updating the one row of `state`, which holds the version and the head of the audit log:
the row is the lock, so versions and audit numbers are dense however many replicas of quota write. What an entry holds is one JSON
document: a directory is always read whole, and nothing is searched for inside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from pydantic import ConfigDict, TypeAdapter

from forebay.errors import Code, MeshError
from forebay.quota.domain.audit import Action, AuditEvent, following
from forebay.quota.domain.directory import Directory, Entry, Key, Tenant
from forebay.quota.domain.plans import Plan
from forebay.quota.policy_store import ANSWERS_KEPT_S, Answer, Change, store_changed

T = TypeVar("T")

MIGRATIONS = Path(__file__).parent / "migrations"
# For how long another's lock, or the network, is waited for; whole seconds.
PATIENCE_S = 5
# A lock of PostgreSQL's, under which one replica migrates while others wait; SQLite has one of its own.
_MIGRATION_LOCK = 0x666F7265

_metadata = sa.MetaData()


def _table(name: str, *columns: str) -> sa.Table:
    """Names what the queries use; migrations say what it is."""
    types = {"document": sa.JSON(), "action": sa.JSON()}
    return sa.Table(name, _metadata, *(sa.Column(column, types.get(column)) for column in columns))


_STATE = _table("state", "one", "version", "audit_number", "audit_hash")
_REMOVED = _table("removed_tenants", "name")
_EVENTS = _table("audit_events", "number", "tenant_id", "refused", "action", "hash")
_ANSWERS = _table("answers", "request_id", "digest", "response", "at")
_IMPORTS = _table("imports", "name", "digest")


class _Entries:
    """One table of entries and the kind of value in its documents."""

    def __init__(self, name: str, kind: Any) -> None:
        self.table = _table(name, "name", "document", "version", "created_at", "updated_at")
        self.values = _documents(kind)

    def read(self, connection: sa.Connection) -> dict[str, Entry[Any]]:
        rows = connection.execute(sa.select(self.table).order_by(self.table.c.name))
        return {
            row.name: Entry(self.values.validate_python(row.document), row.version, row.created_at, row.updated_at)
            for row in rows
        }

    def write(self, connection: sa.Connection, names: Sequence[str], entries: dict[str, Entry[Any]]) -> None:
        """Puts the named entries in place of what was there; those that are there no more go."""
        if names:
            connection.execute(sa.delete(self.table).where(self.table.c.name.in_(names)))
        rows = [
            {
                "name": name,
                "document": self.values.dump_python(entries[name].value, mode="json", exclude_defaults=True),
                "version": entries[name].version,
                "created_at": entries[name].created_at,
                "updated_at": entries[name].updated_at,
            }
            for name in names
            if name in entries
        ]
        if rows:
            connection.execute(sa.insert(self.table), rows)


def _documents(kind: Any) -> TypeAdapter[Any]:
    """Returns what turns values to JSON and back; bytes are written in hexadecimal digits."""
    return TypeAdapter(kind | None, config=ConfigDict(ser_json_bytes="hex", val_json_bytes="hex"))


_PLANS, _TENANTS, _KEYS = _Entries("plans", Plan), _Entries("tenants", Tenant), _Entries("keys", Key)
_ACTIONS = _documents(Action)


class SqlPolicyStore:
    """The port on a database; calls run on threads of their own."""

    def __init__(self, url: str) -> None:
        """Prepares; connects at the first call.

        Args:
            url: such as sqlite:////var/lib/forebay/policies.sqlite or postgresql://user@host/forebay.
        """
        sqlite = sa.make_url(url).get_backend_name() == "sqlite"
        unheard = {} if sqlite else {"connect_timeout": PATIENCE_S, "tcp_user_timeout": PATIENCE_S * 1_000}
        self._engine = sa.create_engine(url, pool_pre_ping=True, connect_args=unheard)
        sa.event.listen(self._engine, "connect", _prepare_sqlite if sqlite else _prepare_postgresql)

    async def migrate(self) -> None:
        """Brings the tables to what this code expects; a new database gets them all."""
        await self._run(_migrate)

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    async def load(self) -> Directory:
        """See the port."""
        return await self._run(_load)

    async def version(self) -> int:
        """See the port."""
        return await self._run(lambda connection: int(connection.scalar(sa.select(_STATE.c.version)) or 0))

    async def commit(self, change: Change, now: float) -> Directory:
        """See the port."""
        return await self._run(lambda connection: _commit(connection, change, now))

    async def record(self, action: Action) -> None:
        """See the port."""

        def record(connection: sa.Connection) -> None:
            _lock(connection)
            _append(connection, [action])

        await self._run(record)

    async def answer(self, request_id: str, now: float) -> Answer | None:
        """See the port."""
        query = sa.select(_ANSWERS).where(_ANSWERS.c.request_id == request_id, _ANSWERS.c.at > now - ANSWERS_KEPT_S)
        row = await self._run(lambda connection: connection.execute(query).one_or_none())
        return Answer(row.request_id, row.digest, bytes(row.response)) if row else None

    async def imported(self, name: str) -> str:
        """See the port."""
        query = sa.select(_IMPORTS.c.digest).where(_IMPORTS.c.name == name)
        return await self._run(lambda connection: connection.scalar(query)) or ""

    async def events(self, before: int, most: int, tenant_id: str, refused_only: bool) -> Sequence[AuditEvent]:
        """See the port."""
        query = sa.select(_EVENTS).order_by(_EVENTS.c.number.desc()).limit(most)
        if before:
            query = query.where(_EVENTS.c.number < before)
        if tenant_id:
            query = query.where(_EVENTS.c.tenant_id == tenant_id)
        if refused_only:
            query = query.where(_EVENTS.c.refused == sa.true())
        rows = await self._run(lambda connection: connection.execute(query).all())
        return [AuditEvent(row.number, _ACTIONS.validate_python(row.action), row.hash) for row in rows]

    async def _run(self, work: Callable[[sa.Connection], T]) -> T:
        def run() -> T:
            with _reachable(), self._engine.begin() as connection:
                return work(connection)

        return await asyncio.to_thread(run)


def _lock(connection: sa.Connection) -> None:
    """Waits until no other transaction writes, nor reads a directory; this one is alone until its end."""
    connection.execute(sa.update(_STATE).values(version=_STATE.c.version))


def _load(connection: sa.Connection) -> Directory:
    _lock(connection)
    return Directory(
        connection.execute(sa.select(_STATE.c.version)).scalar_one(),
        _PLANS.read(connection),
        _TENANTS.read(connection),
        _KEYS.read(connection),
        frozenset(connection.scalars(sa.select(_REMOVED.c.name))),
    )


def _commit(connection: sa.Connection, change: Change, now: float) -> Directory:
    before, edit = _load(connection), change.edit
    if before.version != change.expected:
        raise store_changed()
    after = before.edited(edit, now)
    connection.execute(sa.update(_STATE).values(version=after.version))
    keys = {*(key.name for key in edit.keys), *(before.keys.keys() - after.keys.keys())}
    _PLANS.write(connection, [plan.name for plan in edit.plans], dict(after.plans))
    _TENANTS.write(connection, [*(tenant.name for tenant in edit.tenants), *edit.removed], dict(after.tenants))
    _KEYS.write(connection, sorted(keys), dict(after.keys))
    for name in after.removed - before.removed:
        connection.execute(sa.insert(_REMOVED).values(name=name))
    connection.execute(sa.delete(_ANSWERS).where(_ANSWERS.c.at <= now - ANSWERS_KEPT_S))
    if change.answer:
        answer = change.answer
        row = {"request_id": answer.request_id, "digest": answer.digest, "response": answer.response, "at": now}
        connection.execute(sa.insert(_ANSWERS).values(row))
    for name, digest in change.imported.items():
        connection.execute(sa.delete(_IMPORTS).where(_IMPORTS.c.name == name))
        connection.execute(sa.insert(_IMPORTS).values(name=name, digest=digest))
    _append(connection, change.actions)
    return after


def _append(connection: sa.Connection, actions: Sequence[Action]) -> None:
    head = connection.execute(sa.select(_STATE)).one()
    number, last_hash = head.audit_number, head.audit_hash
    for action in actions:
        event = following(number, last_hash, action)
        number, last_hash = event.number, event.hash
        connection.execute(
            sa.insert(_EVENTS).values(
                number=number,
                tenant_id=action.tenant_id,
                refused=action.refusal is not None,
                action=_ACTIONS.dump_python(action, mode="json"),
                hash=last_hash,
            )
        )
    connection.execute(sa.update(_STATE).values(audit_number=number, audit_hash=last_hash))


def _migrate(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    else:  # by itself, SQLite's driver begins no transaction for tables, and a kill would leave half of them
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _prepare_sqlite(connection: Any, _: object) -> None:
    for setting in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={PATIENCE_S * 1_000}"):
        connection.execute(f"PRAGMA {setting}")


def _prepare_postgresql(connection: Any, _: object) -> None:
    # The second is for a replica that stops in the middle, with the lock in its hand.
    for setting in ("lock_timeout", "idle_in_transaction_session_timeout"):
        connection.execute(f"SET {setting} = '{PATIENCE_S}s'")
    connection.commit()


@contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except sa.exc.IntegrityError:
        # Another replica has just given the same request its answer.
        raise store_changed() from None
    except (sa.exc.OperationalError, sa.exc.InternalError, sa.exc.InterfaceError) as error:
        reason = str(error.orig).partition("\n")[0]
        raise MeshError(
            Code.UNAVAILABLE,
            "POLICY_STORE_UNAVAILABLE",
            f"the policy store cannot be reached: {reason}",
            retry_after=1.0,
        ) from None
