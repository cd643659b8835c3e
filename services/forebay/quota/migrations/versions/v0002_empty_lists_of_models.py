"""Tenants whose list of models is empty: it allowed every model, as no list does, and from now on it allows none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TENANTS = sa.table("tenants", sa.column("name", sa.String), sa.column("document", sa.JSON))


def upgrade() -> None:
    """Takes the empty lists out, so that what was allowed stays allowed. Keys never had one: they were stored without."""
    connection = op.get_bind()
    for name, document in connection.execute(sa.select(_TENANTS.c.name, _TENANTS.c.document)).all():
        overrides = document.get("overrides", {})
        if overrides.get("models") == []:
            del overrides["models"]
            connection.execute(sa.update(_TENANTS).where(_TENANTS.c.name == name).values(document=document))
