"""The tokens of prompts in memory: bounded for one tenant and for all, and counted once however a request ends."""

from __future__ import annotations

import pytest

from forebay.errors import Code, MeshError
from forebay.router.held_tokens import HeldTokens


def test_one_tenants_prompts_are_bounded_and_anothers_are_not_affected() -> None:
    held = HeldTokens(most=100, most_of_tenant=10)
    held.hold("1", "acme", 6)
    with pytest.raises(MeshError) as caught:
        held.hold("2", "acme", 5)
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "TENANT_FULL")
    held.hold("3", "globex", 10)
    held.release("1")
    held.release("1")
    held.hold("4", "acme", 10)


def test_those_of_all_tenants_are_bounded() -> None:
    held = HeldTokens(most=15, most_of_tenant=10)
    held.hold("1", "acme", 10)
    with pytest.raises(MeshError) as caught:
        held.hold("2", "globex", 6)
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "ROUTER_FULL")
    held.release("2")
    held.release("1")
    assert not held._of_tenant
    assert not held._by_request
