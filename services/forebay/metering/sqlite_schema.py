"""The tables of the SQLite ledger, by version. A release adds a migration at the end and never changes an earlier one."""

from __future__ import annotations

import sqlite3

from forebay.config import ConfigError

_MIGRATIONS = (
    """
    -- The rows. `body` is the row as hashed; the other columns are taken from it, to select and to add up by.
    CREATE TABLE entries (
        position INTEGER PRIMARY KEY,
        request_id TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        corrects INTEGER NOT NULL,
        tenant_id TEXT NOT NULL,
        key_id TEXT NOT NULL,
        model TEXT NOT NULL,
        day TEXT NOT NULL,
        outcome TEXT NOT NULL,
        finished_at_ns INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        gpu_time_ns INTEGER NOT NULL,
        cost_nano_usd INTEGER NOT NULL,
        body TEXT NOT NULL,
        chain_hash BLOB NOT NULL
    ) STRICT;
    -- Law 2: whatever the code does, an attempt has one row that is no correction.
    CREATE UNIQUE INDEX entries_once ON entries (request_id, attempt) WHERE corrects = 0;
    CREATE INDEX entries_by_request ON entries (request_id, position);
    CREATE INDEX entries_by_tenant ON entries (tenant_id, position);
    CREATE INDEX entries_by_time ON entries (tenant_id, finished_at_ns);
    CREATE INDEX entries_by_finish ON entries (finished_at_ns);

    -- The sums of the rows by group, kept in the same commit.
    CREATE TABLE totals (
        tenant_id TEXT NOT NULL,
        key_id TEXT NOT NULL,
        model TEXT NOT NULL,
        day TEXT NOT NULL,
        outcome TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        gpu_time_ns INTEGER NOT NULL,
        cost_nano_usd INTEGER NOT NULL,
        PRIMARY KEY (tenant_id, key_id, model, day, outcome)
    ) STRICT, WITHOUT ROWID;

    -- Rule P11: the next position comes from this row, which every commit locks; a sequence would leave gaps.
    CREATE TABLE ledger_head (one INTEGER PRIMARY KEY CHECK (one = 1), position INTEGER NOT NULL) STRICT;
    INSERT INTO ledger_head VALUES (1, 0);
    CREATE TABLE tenant_head (tenant_id TEXT PRIMARY KEY, chain_hash BLOB NOT NULL) STRICT, WITHOUT ROWID;

    -- Rule P5: routers' reports that wait for a worker's.
    CREATE TABLE provisional (
        request_id TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        held_since_ns INTEGER NOT NULL,
        event TEXT NOT NULL,
        PRIMARY KEY (request_id, attempt)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX provisional_by_time ON provisional (held_since_ns);
    """,
)


def migrate(db: sqlite3.Connection) -> None:
    """Brings the tables to this release's version, and proves that the file can be written.

    Raises:
        ConfigError: the file is of a later release.
        sqlite3.Error: it is no ledger, or cannot be written.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(_MIGRATIONS):
        raise ConfigError(
            f"the ledger has version {version}, this release knows {len(_MIGRATIONS)}; run a later release"
        )
    for number, script in enumerate(_MIGRATIONS[version:], start=version + 1):
        db.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")
    db.execute("UPDATE ledger_head SET position = position")
