"""What a router brings to have an attempt run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry.context import Context

from forebay.worker.domain.grant import Grant
from forebay.worker.domain.usage import Attribution
from forebay.worker.engine import Sampling


@dataclass(frozen=True, slots=True)
class Start:
    """A payload and its grant, as a router brings them.

    Attributes:
        ref: the attempt's number within the router's session.
        continues: whether an earlier attempt can have reached an engine, even if nothing was delivered of it.
        completion_from: positions before it are billed by earlier attempts.
        remaining: seconds until the client's deadline; None for none.
        trace: the request's context.
    """

    ref: int
    grant: Grant
    attribution: Attribution
    prompt_token_ids: Sequence[int]
    continues: bool
    delivered_token_ids: Sequence[int]
    held_text: str
    completion_from: int
    sampling: Sampling
    remaining: float | None
    trace: Context
