"""What the mesh serves, as far as quota knows: each router and worker that watches the policies says what it serves.

That is never the whole: replicas of quota share the watchers, and workers come later. So what nobody serves is worth a warning
to an administrator, and no refusal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from forebay.errors import FieldViolation
from forebay.quota.domain.directory import Overrides
from forebay.words import instead_of

MAX_WARNINGS = 100


class Served:
    """The models of the routers, and the pools of the workers, that are connected now."""

    def __init__(self) -> None:
        self._models: dict[object, frozenset[str]] = {}
        self._pools: dict[object, frozenset[str]] = {}

    @contextmanager
    def by_router(self, models: Iterable[str]) -> Iterator[None]:
        """Knows the models of a router until the end of the block."""
        with _said(self._models, models):
            yield

    @contextmanager
    def by_worker(self, pools: Iterable[str]) -> Iterator[None]:
        """Knows the pools of a worker until the end of the block."""
        with _said(self._pools, pools):
            yield

    def warnings(
        self, field: str, overrides: Overrides, names: Iterable[str] = ("models", "model_limits", "pool", "adapters")
    ) -> list[FieldViolation]:
        """Returns a warning for each name in a tenant's fields of which quota cannot tell that it exists.

        Args:
            field: what the warnings' fields begin with, such as "tenant".
            overrides: the tenant's own values.
            names: the fields to look at, by the names of `Overrides`.
        """
        found: list[FieldViolation] = []
        looked_at = set(names)
        if "models" in looked_at:
            found += self._of_models(f"{field}.models", overrides.models or ())
        if "model_limits" in looked_at:
            found += self._of_models(f"{field}.model_limits", list(overrides.model_limits or {}))
        if "pool" in looked_at and overrides.pool:
            found += self._of_pool(f"{field}.pool", overrides.pool)
        if "adapters" in looked_at and overrides.adapters:
            told = "quota cannot check adapters: each must be this tenant's in the schedulers' configuration, too"
            found.append(FieldViolation(f"{field}.adapters", told))
        return found

    def of_key(self, models: Sequence[str] | None) -> list[FieldViolation]:
        """Returns the warnings about the models that a key may use."""
        return self._of_models("key.models", models or ())

    def _of_models(self, field: str, models: Sequence[str]) -> list[FieldViolation]:
        known = frozenset[str]().union(*self._models.values())
        if models and not self._models:
            return [FieldViolation(field, "could not be checked: no router is connected to this quota")]
        return [
            FieldViolation(field, f"no connected router serves the model {model!r}; {instead_of(model, known)}")
            for model in models
            if model not in known
        ]

    def _of_pool(self, field: str, pool: str) -> list[FieldViolation]:
        known = frozenset[str]().union(*self._pools.values())
        if not self._pools:
            return [FieldViolation(field, "could not be checked: no worker is connected to this quota")]
        if pool in known:
            return []
        named = instead_of(pool, (name or "(shared)" for name in known))
        return [FieldViolation(field, f"no connected worker serves the pool {pool!r}; {named}")]


@contextmanager
def _said(by_peer: dict[object, frozenset[str]], names: Iterable[str]) -> Iterator[None]:
    peer = object()
    by_peer[peer] = frozenset(names)
    try:
        yield
    finally:
        del by_peer[peer]
