"""Callers, models and requests for tests."""

from __future__ import annotations

import secrets
from dataclasses import replace

from forebay.policy.keys import hash_key
from forebay.policy.model import KeyPolicy, ServiceClass, TenantPolicy
from forebay.router.access import Caller
from forebay.router.client import Client, GatheredAnswer
from forebay.router.domain.ask import Ask, Chat, Message, ModelCard, Sampling
from forebay.router.models import Model, Models
from forebay.router.request import Payload, Request
from forebay.router.tokenizer import ByteTokenizer
from forebay.router.tokenizer_processes import TokenizerProcesses

PEPPER = b"a pepper for tests"
KEY_ID = "abcdefghij23"
KEY = f"fb_{KEY_ID}_{'x' * 43}"

ACME = TenantPolicy("acme", "enterprise", ServiceClass.GOLD, 3000, isolation_key=bytes(range(32)))
ACME_KEY = KeyPolicy(KEY_ID, "acme", hash_key(PEPPER, KEY))
CALLER = Caller(ACME, ACME_KEY)

CARD = ModelCard("tiny", context_tokens=4096, default_max_tokens=8)
HELLO = Chat((Message("user", "hello"),))
HELLO_IDS = ByteTokenizer().encode_chat(HELLO.messages)


def ask(**fields: object) -> Ask:
    """A request for a short answer."""
    return replace(Ask("tiny", HELLO, Sampling(max_tokens=8, seed=7)), **fields)  # type: ignore[arg-type]


def models(*cards: ModelCard) -> Models:
    """Models that tokenise by bytes."""
    none = TokenizerProcesses([], processes=1, max_waiting=1, max_prompt_bytes=1)  # they start with a long prompt
    return Models([Model(card, ByteTokenizer()) for card in cards or (CARD,)], none)


def request(
    client: Client | None = None, *, deadline_at: float = 600.0, max_tokens: int = 8, now: float = 0.0
) -> Request:
    """A request that has just been tokenised."""
    payload = Payload("tiny", HELLO_IDS, Sampling(max_tokens=max_tokens, seed=7), max_tokens, [11, 12], 32)
    return Request(
        secrets.token_hex(16),
        CALLER,
        ask(),
        payload,
        client or GatheredAnswer(),
        admitted_at=now,
        deadline_at=deadline_at,
        max_attempts=3,
    )
