"""Alembic runs this around the migrations, on the connection that `sql_policy_store` brings."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=False)
context.run_migrations()
